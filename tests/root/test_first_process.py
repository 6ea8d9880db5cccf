"""`ckptd watch` as process 1, as in a container: it has no default signals, and is handed every orphan."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Watching, epochs, eventually, left
from tests.root.strace import needs

pytestmark = pytest.mark.root

IN_ITS_OWN = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"]

# Two processes that nobody waits for, then rest until a signal.
_JOB = """
import os, signal, sys
for _ in range(2):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(0)
        os._exit(0)
    os.wait()
signal.signal(signal.SIGTERM, lambda *_: os._exit(9))
open(sys.argv[1], "w").close()
while True:
    signal.pause()
"""


@contextlib.contextmanager
def as_first_process(*args: str | Path) -> Iterator[tuple[Watching, Callable[[], int]]]:
    """A `ckptd watch` that is process 1, and what tells its number out here."""
    needs("unshare", "nsenter")
    watch = Watching((), command=[*IN_ITS_OWN, sys.executable, "-m", "ckptd", "watch", *map(str, args)])
    try:
        yield watch, lambda: children_of(watch.process.pid)[0]
    finally:
        watch.discard()


def children_of(pid: int) -> list[int]:
    return [
        int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()
    ]


def test_it_reaps_what_loses_its_parent_and_hands_the_end_on(work_dir: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with as_first_process(work_dir, "--", sys.executable, "-c", _JOB, made) as (watch, first):
        eventually(made.exists)
        eventually(lambda: len(children_of(first())) == 1, what="the end of the orphans")
        os.kill(first(), signal.SIGTERM)
        assert watch.ends() == 9


def test_a_job_that_is_killed_is_137_and_its_last_save_is_pointed_at(with_checkpoints: Callable[..., Path]) -> None:
    work_dir = with_checkpoints(*epochs(1))
    script = "import os, shutil, sys; shutil.copy(*sys.argv[1:]); os.kill(os.getpid(), 9)"
    copied = [work_dir / name for name in epochs(1, 2)]
    with as_first_process(work_dir, "--", sys.executable, "-c", script, *copied) as (watch, _):
        assert watch.ends() == 137
    assert (work_dir / "last_ckpt").read_text() == f"{work_dir}/epoch_2.pth\n"


def test_without_a_job_it_reaps_too_and_ends_when_it_is_told(with_checkpoints: Callable[..., Path]) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with as_first_process(work_dir, "--max-keep", "1", "--interval", "1") as (watch, first):
        watch.heard("pointed last_ckpt at epoch_2.pth")
        for _ in range(3):
            inside = ["nsenter", f"--target={first()}", "--pid", "sh", "-c", "(sleep 0.01 &) ; exit 0"]
            subprocess.run(inside, check=True)
        eventually(lambda: children_of(first()) == [], what="the end of the orphans")
        os.kill(first(), signal.SIGTERM)
        assert watch.ends() == 0
    assert left(work_dir) == epochs(2)
