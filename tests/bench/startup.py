"""How long a command takes from its start to its end, beside a Python that imports click and nothing else.

And how long `ckptd watch` takes until it watches, beside what others watch with.
"""

from __future__ import annotations

import compileall
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from .beside import CKPTD, running
from .idle import peers, with_checkpoints
from .lines import Line, compared
from .paired import Seconds, time_each
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
    ] + of_watches(place / "watched", rounds)


def started(command: list[str]) -> Callable[[], None]:
    return lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL) and None


def of_watches(place: Path, rounds: int) -> list[Line]:
    run = with_checkpoints(place)
    commands = peers(run)
    taken: Seconds = {name: [] for name in commands}
    for number in range(-1, rounds):  # the first is not counted
        for name in sorted(commands, reverse=bool(number % 2)):
            began = time.perf_counter()
            with running(commands[name], watches=2 if name == "ckptd" else 1):
                took_s = time.perf_counter() - began
            if number >= 0:
                taken[name].append(took_s)
    what = "ckptd watch, from its start until it watches"
    return [compared(what, name, taken["ckptd"], theirs) for name, theirs in taken.items() if name != "ckptd"]
