"""Processes that watch beside the one that measures: started, waited for, and what they have used."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

PATIENCE_S = 30.0
CKPTD = [sys.executable, "-m", "ckptd"]
WATCHMEDO = [sys.executable, "-m", "watchdog.watchmedo"]
WATCHFILES = [sys.executable, "-m", "watchfiles"]


@contextlib.contextmanager
def running(command: Sequence[str | Path], *, watches: int = 0, then: str = "") -> Iterator[int]:
    """Run the command until the `with` ends, from the moment it has that many inotify watches; gives its process id.

    then: a shell script that reads what the command prints.
    """
    quiet = subprocess.DEVNULL
    first = subprocess.Popen([*map(str, command)], stdin=quiet, stderr=quiet, stdout=subprocess.PIPE if then else quiet)
    second = subprocess.Popen(["sh", "-c", then], stdin=first.stdout) if then else None
    try:
        until(lambda: inotify_watches(first.pid) >= watches or first.poll() is not None, f"{command[0]}'s watch")
        assert first.poll() is None, f"{command} ended with {first.returncode}"
        yield first.pid
    finally:
        first.terminate()
        first.wait()
        if first.stdout is not None:
            first.stdout.close()
        if second is not None:
            second.wait()


def until(is_so: Callable[[], bool], what: str, *, patience_s: float = PATIENCE_S) -> None:
    """Look again and again, some 0.2 ms apart."""
    deadline = time.monotonic() + patience_s
    while not is_so():
        if time.monotonic() > deadline:
            sys.exit(f"bench: {what} did not come within {patience_s:g} s")
        time.sleep(0.0001)


def inotify_watches(pid: int) -> int:
    count = 0
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for path in Path(f"/proc/{pid}/fdinfo").iterdir():
            with contextlib.suppress(FileNotFoundError):
                count += path.read_text().count("inotify wd:")
    return count


def switches(pid: int) -> int:
    """How often its threads have gone to sleep: each wake-up of an idle process ends so."""
    return sum(_number(task / "status", "voluntary_ctxt_switches:") for task in Path(f"/proc/{pid}/task").iterdir())


def cpu_s(pid: int) -> float:
    """What all its threads have used, those that have ended too."""
    return time.clock_gettime((~pid << 3) | 2)  # as clock_getcpuclockid makes it of a process


def resident_mb(pid: int) -> float:
    return _number(Path(f"/proc/{pid}/status"), "VmRSS:") * 1024 / 1e6


def _number(path: Path, key: str) -> int:
    return next(int(line.split()[1]) for line in path.read_text().splitlines() if line.startswith(key))


def has_inotifywait() -> bool:
    """It is Debian's inotify-tools; where it is missing, that is said, and its lines are not there."""
    found = any(os.access(os.path.join(place, "inotifywait"), os.X_OK) for place in os.get_exec_path())
    if not found:
        print("bench: inotifywait is missing, so nothing is compared with it: install inotify-tools", flush=True)
    return found
