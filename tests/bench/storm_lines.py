"""What watching costs in a storm of files that are no checkpoints, and how late a save in the middle is dealt with.

`ckptd watch` and inotifywait watch the same work dir at the same time, and hear of the same events.
"""

from __future__ import annotations

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from .beside import CKPTD, cpu_s, has_inotifywait, running, until
from .idle import settled
from .latency import pointed, renamed, torch_zip
from .lines import Line, amount, compared, said, within
from .storm import APPENDS, CREATES

FEW, MANY = 3, 5_000
PAIRS = 6  # of saves, one in the storm and one while it is held
MEASURED_S, CALM_S = 1.5, 0.1
# What `ckptd watch` asks of the kernel.
EVENTS = "close_write,moved_from,moved_to,create,delete"


@dataclass
class Place:
    """A work dir that is watched, and what was measured there. how: of the appends, as storm.py has it."""

    what: str
    run: Path
    newest: int
    how: str = "closed"
    recursive: bool = False
    made: list[float] = field(default_factory=list)
    ours: list[float] = field(default_factory=list)
    theirs: list[float] = field(default_factory=list)
    in_storm_s: list[float] = field(default_factory=list)
    in_calm_s: list[float] = field(default_factory=list)


def lines(place: Path, rounds: int) -> list[Line]:
    if not has_inotifywait():
        return []
    places = [
        Place(f"{FEW} checkpoints", place / "a/run", FEW),
        Place(f"{MANY:,} checkpoints", place / "b/run", MANY),
        Place(f"{FEW} checkpoints, --recursive", place / "c/run", FEW, recursive=True),
        Place(f"{MANY:,} checkpoints, --recursive", place / "d/run", MANY, recursive=True),
        Place(f"{FEW} checkpoints, the logs held open", place / "e/run", FEW, how="held"),
    ]
    with contextlib.ExitStack() as stack:
        watched = [(each, *stack.enter_context(watching(each))) for each in places]
        for number in range(rounds):
            for each, ours, theirs in watched[:: -1 if number % 2 else 1]:
                storm(each, ours, theirs)
    made = statistics.median(rate for each in places for rate in each.made)
    events = f"{CREATES:,} foreign files and {APPENDS:,} appends a second"
    return [
        said("foreign files made in a second", f"{made:.0f}"),
        *(
            compared(f"CPU at {events}: {each.what}", f"inotifywait -m -e {EVENTS}", each.ours, each.theirs, "%",
                     at_most=3)
            for each in places
        ),
        *(line for each in places for line in of_saves(each)),
    ]  # fmt: skip


def of_saves(place: Place) -> list[Line]:
    what = f"from a save to its pointer in that storm: {place.what}"
    later_s = [late - early for late, early in zip(place.in_storm_s, place.in_calm_s, strict=True)]
    return [
        compared(what, "the same while it is held", place.in_storm_s, place.in_calm_s),
        within(f"{what}: later by, median", max(0.0, statistics.median(later_s)), 0.05, "s", len(later_s)),
        said(f"{what}: later by, latest", amount(max(0.0, *later_s), "s")),
    ]


@contextlib.contextmanager
def watching(place: Place) -> Iterator[tuple[int, int]]:
    """The process ids of ckptd and of inotifywait."""
    place.run.mkdir(parents=True)
    content = torch_zip()
    for number in range(1, place.newest + 1):
        (place.run / f"epoch_{number}.pth").write_bytes(content)
    what = ["--recursive", place.run.parent] if place.recursive else [place.run]
    ours = [*CKPTD, "watch", *what, "--max-keep", "3", "--interval", "1", "--keep-every", "1"]
    theirs = ["inotifywait", "-m", "-q", "-e", EVENTS, str(place.run)]
    with running(theirs, watches=1) as their_pid, running(ours, watches=2) as our_pid:
        settled(our_pid)
        yield our_pid, their_pid


def storm(place: Place, ours: int, theirs: int) -> None:
    """Measure once, and clear up."""
    command = [sys.executable, "-m", "tests.bench.storm", str(place.run), place.how]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as writer:
        until((place.run / "rank0.log").exists, "the storm")
        time.sleep(CALM_S)
        before = time.perf_counter(), len(os.listdir(place.run)), cpu_s(ours), cpu_s(theirs)
        time.sleep(MEASURED_S)
        after = time.perf_counter(), len(os.listdir(place.run)), cpu_s(ours), cpu_s(theirs)
        passed_s, made, our_s, their_s = (late - early for late, early in zip(after, before, strict=True))
        place.made.append(made / passed_s)
        place.ours.append(100 * our_s / passed_s)
        place.theirs.append(100 * their_s / passed_s)
        for _ in range(PAIRS):
            place.in_storm_s.append(save(place))
            writer.send_signal(signal.SIGSTOP)
            place.in_calm_s.append(save(place))
            writer.send_signal(signal.SIGCONT)
    for entry in os.scandir(place.run):
        if entry.name.startswith(("pred_", "rank")):
            os.unlink(entry)


def save(place: Place) -> float:
    """Save the next checkpoint, after a moment in which what was before it ends; tells when the pointer names it."""
    time.sleep(CALM_S)
    place.newest += 1
    new = place.run / f"epoch_{place.newest}.pth"
    renamed(new, torch_zip())
    began = time.perf_counter()
    until(lambda: pointed(place.run) == str(new), f"a pointer at {new}")
    return time.perf_counter() - began


if __name__ == "__main__":
    print(*lines(Path(sys.argv[1]), int(sys.argv[2])), sep="\n")
