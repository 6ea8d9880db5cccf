"""How long a command takes from its start to its end, beside a Python that imports click and nothing else."""

from __future__ import annotations

import compileall
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from .beside import CKPTD
from .idle import with_checkpoints
from .lines import Line, compared
from .paired import time_each
from .processes import REPOSITORY

PEER = 'python -c "import click"'


def lines(place: Path, rounds: int) -> list[Line]:
    run = str(with_checkpoints(place / "run"))
    subprocess.run([*CKPTD, "prune", run, "--max-keep", "3"], check=True, capture_output=True)
    commands = {
        "ckptd --help": [*CKPTD, "--help"],
        "ckptd latest": [*CKPTD, "latest", run],
        "ckptd plan": [*CKPTD, "plan", run, "--max-keep", "3"],
        "ckptd verify": [*CKPTD, "verify", f"{run}/epoch_3.pth"],
        PEER: [sys.executable, "-c", "import click"],
    }
    # What is installed has its bytecode, whatever this environment says of writing any.
    compileall.compile_dir(REPOSITORY / "ckptd", quiet=1)
    calls = {name: started(command) for name, command in commands.items()}
    taken = time_each(calls, rounds, before=lambda: None, warm_up=2)
    budgets = {"ckptd --help": 2.0, "ckptd latest": 2.0}
    return [
        compared(name, PEER, ours, taken[PEER], at_most=budgets.get(name))
        for name, ours in taken.items()
        if name != PEER
    ]


def started(command: list[str]) -> Callable[[], None]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL) and None
