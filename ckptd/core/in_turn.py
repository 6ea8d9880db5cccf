"""Which series may be one: those with the same steps, of which no step is written before the one before is.

Pure. It is advice: whether they are parts of one checkpoint only a person knows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint

if TYPE_CHECKING:
    from .plan import SeriesPlan

_FEWEST_STEPS = 2
_MOST_SERIES = 50  # more are told apart by what no part of a checkpoint is


def saved_together(series: Iterable[SeriesPlan]) -> list[list[SeriesPlan]]:
    """Those of the series that may be parts of one checkpoint each, in their order; none alone."""
    left = [(each, written) for each in series if (written := _written([d.checkpoint for d in each.decisions]))]
    found = []
    while left and len(left) <= _MOST_SERIES:
        (first, written), *left = left
        partners = [each for each, other in left if are_in_turn(written, other)]
        if partners:
            found.append([first, *partners])
            left = [each for each in left if each[0] not in partners]
    return found


def are_in_turn(one: Mapping[int, int], other: Mapping[int, int], *, ties: bool = False) -> bool:
    """Whether two series, as times of writing by steps, have the same steps, but for the newest, which may be being
    written; and each step of both is written before the next. Two runs side by side have the same steps too.

    ties: whether one time for a step and for the next is no objection.
    """
    common = sorted(one.keys() & other.keys())
    if len(common) < _FEWEST_STEPS or (one.keys() ^ other.keys()) - {max(*one, *other)}:
        return False
    spans = [sorted((one[step], other[step])) for step in common]
    pairs = zip(spans, spans[1:])
    return all(before[1] < after[0] or (ties and before[1] == after[0]) for before, after in pairs)


def _written(checkpoints: Sequence[Checkpoint]) -> dict[int, int]:
    """Times of writing by steps; empty where several checkpoints have one step, or are several files already."""
    written = {c.step: c.mtime_ns for c in checkpoints}
    is_plain = len(written) == len(checkpoints) >= _FEWEST_STEPS and not any(
        c.entry.parts or c.entry.is_dir for c in checkpoints
    )
    return written if is_plain else {}
