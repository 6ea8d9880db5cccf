"""Is this a copy? `cp -r` writes files in the order of their names as text, so that their times say nothing of the run.

Pure. Advice for who reads: nothing is pruned by it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from .plan import Plan


def highest_of_a_copy(plan: Plan) -> Checkpoint | None:
    """The highest step of the series of the newest, where that is not the newest by the times, and these are those of a
    copy. None where it is not so."""
    newest = plan.newest
    series = next((s for s in plan.series if newest and s.grid.template.text == newest.series), None)
    if series is None or not series.grid.waits:
        return None
    there = [d.checkpoint for d in series.decisions]
    if not are_a_copy(there):
        return None
    highest = max((c for c in there if c.fit), key=lambda c: c.step, default=None)
    return None if highest is newest else highest


def are_a_copy(series: Iterable[Checkpoint]) -> bool:
    """Whether the times of a series that waits are those of a copy: in the order of the names as text, which is not
    that of the steps.

    A run that was resumed from 8 and wrote epoch_10 before epoch_9 looks the same.
    """
    by_time = sorted(series, key=lambda c: c.mtime_ns)
    names, steps = [c.name for c in by_time], [c.step for c in by_time]
    return len({c.mtime_ns for c in by_time}) == len(by_time) and names == sorted(names) and steps != sorted(steps)
