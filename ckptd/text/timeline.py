"""A run as one line of a terminal: which of its checkpoints stay, and which go.

Only text; nothing is decided here.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..core.plan import PRUNE, SKIP, Decision, SeriesPlan
from ..core.reason import Kind

# What stands for a checkpoint; where several share a cell the first of these wins, so that what matters is seen.
_MARKS = (("*", "best"), ("#", "milestone"), ("=", "kept"), ("!", "skipped"), ("x", "to be pruned"), ("?", "not whole"))
_EMPTY = "."


def timeline(series: SeriesPlan, *, width: int) -> Iterator[str]:
    """A bar from the first step to the last, `width` characters wide, and a legend of what is in it.

    Nothing where there is no more than one step to show.
    """
    steps = [d.checkpoint.step for d in series.decisions]
    first, last = min(steps, default=0), max(steps, default=0)
    if first == last:
        return
    left, right = f"{first} ", f" {last}"
    cells = max(10, width - len(left) - len(right))
    bar = [_EMPTY] * cells
    order = "".join(mark for mark, _ in _MARKS) + _EMPTY
    for d in series.decisions:
        at = (d.checkpoint.step - first) * (cells - 1) // (last - first)
        bar[at] = min(bar[at], _mark(d), key=order.index)
    yield left + "".join(bar) + right
    yield "  ".join(f"{mark} {word}" for mark, word in _MARKS if mark in bar)


def _mark(d: Decision) -> str:
    kinds = {reason.kind for reason in d.reasons}
    if d.decision == PRUNE:
        return "x"
    if not d.checkpoint.state.whole:
        return "?"
    if Kind.BEST in kinds:
        return "*"
    if Kind.MILESTONE in kinds:
        return "#"
    return "!" if d.decision == SKIP else "="
