"""Ten thousand work dirs and one `ckptd watch --recursive`: found, pruned, asleep, and a save in one of them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from ckptd.core.policy import Policy, name_test
from ckptd.daemon.tree import Tree

from .beside import CKPTD, cpu_s, resident_mb, switches, until
from .idle import settled
from .latency import pointed, renamed, torch_zip
from .lines import Line, amount, compared, said, within

EACH = 20  # checkpoints in a work dir
SAVES = 40
GAP_S = 0.1
PATIENCE_S = 1200.0


def lines(place: Path, count: int, idle_s: float) -> list[Line]:
    """`count` work dirs, watched by one process; `idle_s`: for how long it is looked at while nothing happens."""
    dirs = f"{count:,} work dirs of {EACH} checkpoints"
    make(place / "root", count)
    found = of_looks(place / "root", dirs)
    with watching(place / "root", place / "log", count) as (pid, took_s):
        each = f"{amount(took_s, 's')}, {amount(took_s / count, 's')} each"
        found.append(said(f"first passes over {dirs}, until every pointer is there", each))
        settled(pid, patience_s=PATIENCE_S)
        found.append(within(f"resident, {dirs}, after the first passes", resident_mb(pid), 100, "MB", 1))
        time.sleep(60)  # after them one scan of each is due
        settled(pid, patience_s=PATIENCE_S)
        before = switches(pid), cpu_s(pid)
        time.sleep(idle_s)
        woken, used_s = switches(pid) - before[0], cpu_s(pid) - before[1]
        found.append(said(f"{idle_s:g} s idle, {dirs}", f"{woken} wake-ups, {amount(used_s, 's')} of CPU"))
        found.append(within(f"resident, {dirs}, at rest", resident_mb(pid), 100, "MB", 1))
        found += of_saves(place / "root", count)
    return found


def of_looks(root: Path, dirs: str) -> list[Line]:
    """A look at all, against `os.walk`; and one more, which asks each directory for its time of change alone."""
    tree = Tree(str(root), name_test(Policy()), clock=lambda: time.time_ns() + 10**10)
    walk_s = timed(lambda: [len(files) for _, _, files in os.walk(root)])
    return [
        compared(f"to find {dirs}", "os.walk", [timed(lambda: list(tree.look(str(root))))], [walk_s]),
        compared(f"to ask {dirs} if they have changed", "os.walk", [timed(lambda: list(tree.look_again()))], [walk_s]),
    ]


def of_saves(root: Path, count: int) -> list[Line]:
    """Each of the first in a work dir that has slept until then; the others one after another in the same."""
    content = torch_zip()
    asleep = [saved(place_of(root, number), content) for number in range(min(SAVES, count))]
    awake = [saved(place_of(root, 0), content) for _ in range(SAVES)]
    what = "a save in one of them, until its pointer is there"
    return [compared(f"{what}: {count:,} work dirs, this one asleep", "the same, awake", asleep, awake[: len(asleep)])]


@contextlib.contextmanager
def watching(root: Path, log: Path, count: int) -> Iterator[tuple[int, float]]:
    """The process that watches all, once each has a pointer, and how many seconds that took."""
    command = [*CKPTD, "watch", "--recursive", str(root), "--max-keep", "3", "--interval", "1"]
    began_s = time.monotonic()
    with log.open("w") as to:
        watch = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=to)
    try:
        while log.read_text().count(": pointed last_ckpt") < count:
            time.sleep(0.5)
            if watch.poll() is not None or time.monotonic() - began_s > PATIENCE_S:
                sys.exit(f"bench: {command} has not done all first passes:\n{log.read_text()[-2000:]}")
        yield watch.pid, time.monotonic() - began_s
    finally:
        watch.terminate()
        watch.wait()


def make(root: Path, count: int) -> None:
    content = torch_zip()
    for number in range(count):
        place_of(root, number).mkdir(parents=True)
        for epoch in range(1, EACH + 1):
            path = place_of(root, number) / f"epoch_{epoch}.pth"
            path.write_bytes(content)
            at_ns = 1_700_000_000_000_000_000 + epoch * 10**9
            os.utime(path, ns=(at_ns, at_ns))


def place_of(root: Path, number: int) -> Path:
    return root / f"group{number % 100}" / f"run{number}"


def saved(run: Path, content: bytes) -> float:
    """Seconds from a save by rename to the pointer that names it."""
    new = run / f"epoch_{int(pointed(run).rpartition('_')[2][:-4]) + 1}.pth"
    renamed(new, content)
    began_s = time.perf_counter()
    until(lambda: pointed(run) == str(new), f"a pointer at {new}")
    took_s = time.perf_counter() - began_s
    time.sleep(GAP_S)
    return took_s


def timed(call: Callable[[], object]) -> float:
    began_s = time.perf_counter()
    call()
    return time.perf_counter() - began_s
