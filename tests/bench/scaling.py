"""How time grows with the number of checkpoints: a scan, a plan in memory, a pass that changes nothing."""

from __future__ import annotations

import gc
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from ckptd.core.checkpoint import Checkpoint
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.plan import plan
from ckptd.core.policy import Policy
from ckptd.disk.descriptors import opened_dir
from ckptd.inspect.scan import scan
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir.workdir import WorkDir

from .latency import torch_zip
from .lines import Line, compared, within
from .paired import Seconds, time_each

STEPPED = Policy(max_keep=3, interval=1)
NEWEST = Policy(max_keep=3, rule="newest")
FINDER = STEPPED.finder()
LISTED, SORTED = "os.scandir and a stat of each", "sorted() of the same checkpoints"


def lines(place: Path, rounds: int, largest_plan: int) -> list[Line]:
    found = of_scans(place / "scan", rounds)
    found += of_plans(rounds, largest_plan)
    found += of_passes(place / "pass", rounds)
    return found


def of_scans(place: Path, rounds: int) -> list[Line]:
    taken: dict[int, Seconds] = {}
    for count in powers(100_000):
        run = filled(place / str(count), count, b"")
        with opened_dir(str(run)) as fd:
            calls = {"ckptd": lambda run=run, fd=fd: scan(str(run), fd, FINDER), "peer": lambda run=run: listed(run)}
            taken[count] = timed(calls, rounds)
    return grown("a scan of {} names", LISTED, taken, rounds, 0.5)


def of_plans(rounds: int, largest: int) -> list[Line]:
    found = []
    for name, policy in (("newest", NEWEST), ("stepped", STEPPED)):
        taken: dict[int, Seconds] = {}
        for count in powers(largest):
            checkpoints = [
                Checkpoint(Entry("iter_{}.pth", f"iter_{step}.pth", step, 1 << 20, 10**18 + step))
                for step in range(1, count + 1)
            ]
            calls = {
                "ckptd": lambda c=checkpoints, p=policy: plan(
                    c, p, memory=Memory(), now_ns=2 * 10**18, protected={}, declared={}
                ),
                "peer": lambda c=checkpoints: sorted(c, key=lambda each: (each.mtime_ns, each.step)),
            }
            taken[count] = timed(calls, rounds if count < 10**6 else 2)
        found += grown(
            f"a plan of {{}} checkpoints, rule {name}", SORTED, taken, rounds, 3.0 if largest >= 10**6 else None
        )
    return found


def of_passes(place: Path, rounds: int) -> list[Line]:
    """Of a process that has looked before, as `watch` has."""
    taken: dict[int, Seconds] = {}
    background = Background()
    for count in powers(10_000):
        run = filled(place / str(count), count, torch_zip())
        work = WorkDir(str(run))
        reconciler = Reconciler(work, Policy(max_keep=count, interval=1), background)
        reconciler.reconcile()
        before = os.stat(run / ".ckptd/state.json").st_mtime_ns
        taken[count] = timed({"ckptd": reconciler.reconcile, "peer": lambda run=run: listed(run)}, rounds)
        assert os.stat(run / ".ckptd/state.json").st_mtime_ns == before, "a pass that changes nothing wrote"
        work.close()
    background.close(10)
    return grown("a pass over {} checkpoints that changes nothing", LISTED, taken, rounds, None)


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> Seconds:
    return time_each({name: lambda call=call: call() and None for name, call in calls.items()}, rounds,
                     before=gc.collect, warm_up=1)  # fmt: skip


def grown(what: str, peer: str, taken: dict[int, Seconds], rounds: int, at_most_s: float | None) -> list[Line]:
    """A line for each count, one for the exponent, and one for the budget of the largest."""
    found = [compared(what.format(f"{count:,}"), peer, each["ckptd"], each["peer"]) for count, each in taken.items()]
    ours, theirs = (
        exponent({n: statistics.median(each[who]) for n, each in taken.items()}) for who in ("ckptd", "peer")
    )
    found.append(
        Line(f"{what.format('n')} grows as n to the", f"{ours:.2f}", peer, f"{theirs:.2f}", None, "at most 1.15",
             ours <= 1.15, rounds)
    )  # fmt: skip
    if at_most_s is not None:
        largest = max(taken)
        median = statistics.median(taken[largest]["ckptd"])
        found.append(within(what.format(f"{largest:,}"), median, at_most_s, "s", len(taken[largest]["ckptd"])))
    return found


def exponent(medians: dict[int, float]) -> float:
    """The slope of the line of least squares through the logarithms."""
    return statistics.linear_regression([math.log(n) for n in medians], [math.log(s) for s in medians.values()]).slope


def powers(largest: int) -> list[int]:
    return [10**power for power in range(2, 7) if 10**power <= largest]


def filled(run: Path, count: int, content: bytes) -> Path:
    run.mkdir(parents=True)
    began_ns = time.time_ns() - 3600 * 10**9
    for step in range(1, count + 1):
        path = run / f"iter_{step}.pth"
        path.write_bytes(content)
        os.utime(path, ns=(began_ns + step, began_ns + step))
    return run


def listed(run: Path) -> list[os.stat_result]:
    with os.scandir(run) as entries:
        return [entry.stat(follow_symlinks=False) for entry in entries]
