"""The walks that a changed max_keep asks for where no new save comes to make them.

Pure. The stepped rule acts at a save. Of a run that has ended nothing would go, although a person has made K smaller,
or given the first one after a look without it: then saves that are there already walk late (docs/design.md, section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from .memory import InForce, Seen, SeriesMemory
from .policy import Stepped

_QUIET_INTERVALS = 5  # so many without a save, and a run may be taken to have ended


def late_walks(saves: Sequence[Seen], was: SeriesMemory, asked: InForce, *, on_grid: bool) -> tuple[Seen, ...] | None:
    """Those of a series' complete `saves` (in order of writing) that are to walk by `asked`, which a person has given.

    Saves that were seen while no K was in force walk as they would have at a first contact: a look changes nothing.
    For a smaller K the newest walks once, and only where the interval was given or declared (`on_grid`): None where
    that is still to come. Nothing walks for a larger K, for another rule or interval, of a series in doubt, nor where
    it is not known what was in force.
    """
    if asked.rule != Stepped.name or was.walked is None or was.waits:
        return ()
    unwalked = tuple(save for save in saves if save.order > was.walked)
    if unwalked:
        return () if was.walked == 0 and in_doubt(unwalked) else unwalked
    if not is_smaller(asked, was.in_force):
        return ()
    return tuple(saves[-1:]) if on_grid else None


def is_behind(was: SeriesMemory, asked: InForce, newest: int) -> bool:
    """Whether there can be late walks at all; `newest` is the order of the newest save."""
    return newest > (was.walked or 0) or is_smaller(asked, was.in_force)


def is_smaller(asked: InForce | None, before: InForce | None) -> bool:
    """Whether the K has become smaller, and nothing else has changed."""
    return asked is not None and before is not None and asked.max_keep < before.max_keep and asked[1:] == before[1:]


def is_larger(asked: InForce | None, before: InForce | None) -> bool:
    """Whether the K has become larger, whatever else has changed."""
    return asked is not None and before is not None and asked.max_keep > before.max_keep


def in_doubt(saves: Iterable[Seen]) -> bool:
    """Whether the times of writing and the steps tell two stories: a resumed run, or a copied directory."""
    steps = [save.step for save in sorted(saves, key=lambda save: (save.mtime_ns, save.step))]
    return steps != sorted(steps)


def quiet_from_ns(saves: Sequence[Seen]) -> int | None:
    """From when a series has been quiet for five of its intervals, in time between saves; None: nothing tells."""
    written = [save.written_ns for save in saves]
    gaps = sorted(abs(after - before) for before, after in zip(written, written[1:]))
    return written[-1] + _QUIET_INTERVALS * gaps[len(gaps) // 2] if gaps else None


def after_pass(
    was: SeriesMemory, asked: InForce | None, known: int, last: int, *, walked: bool, settled: bool
) -> SeriesMemory:
    """What is remembered of the rule in force, once a pass has gone by `asked`.

    known, last: the orders of the newest that was known before it, and of the newest now. walked: whether saves have
    walked in it. settled: whether a person gave the K, and no walk is still to be made for it.
    """
    if asked is None:
        return replace(was, walked=known) if was.walked is None else was
    if walked or settled or was.walked is None:
        return replace(was, in_force=asked, walked=last)
    # What a run has declared acts at its saves only; but a larger K has taken back what a smaller one had asked for.
    return replace(was, in_force=asked) if is_larger(asked, was.in_force) else was
