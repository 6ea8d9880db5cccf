"""How many files are a checkpoint whose names tell a rank, and not how many there are: as many as saves before had.

Pure. A rank that is missing leaves no trace in the names, so only other saves can tell of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from .checkpoint import Checkpoint, State
from .entry import Entry
from .groups import Group
from .memory import Memory, Ranks
from .naming import Names

_AT_LEAST = 2  # later saves that have to agree, before fewer files than there were are all of a checkpoint
_TOLD_BY_THE_NEXT = "whether these {count} files are all of it is told by the next save: kept, and not relied on"
_FEWER = "it has {count} files, and saves before had {before}: kept, and not relied on"


class Told(NamedTuple):
    """ranks: by series, what a whole checkpoint has now. settles_s: after how long one in flight may be judged."""

    checkpoints: list[Checkpoint]
    ranks: Mapping[str, Ranks]
    settles_s: float | None

    def written_into(self, memory: Memory) -> Memory:
        series = memory.series
        told = {text: replace(series[text], ranks=ranks) for text, ranks in self.ranks.items() if text in series}
        return replace(memory, series={**memory.series, **told})


def tell_ranks(
    checkpoints: Sequence[Checkpoint],
    names: Mapping[str, Names],
    memory: Memory,
    *,
    max_keep: int,
    settles_s: Callable[[Entry], float],
) -> Told:
    """Put those in doubt of which nobody can say whether all of their ranks are there.

    A set of ranks that is larger than any before counts once a second save has it, a smaller one once as many later
    saves in a row have it as are kept, and at least two. What was whole stays so. settles_s: for how long an entry has
    to be left alone yet, before what it lacks tells anything; 0 or less if that is over.
    """
    groups = {text: group for text, group in names.items() if isinstance(group, Group) and group.tells_ranks}
    told, ranks, waits = list(checkpoints), dict[str, Ranks](), list[float]()
    for text, group in groups.items():
        known = memory.series[text].ranks if text in memory.series else ()
        mine = [(at, c) for at, c in enumerate(told) if c.series == text and c.state.whole]
        of = {c.name: _ranks_of(c.entry, group) for _, c in mine}
        young = {c.name for _, c in mine if of[c.name] != known and settles_s(c.entry) > 0}
        saves = sorted((c for _, c in mine if c.name not in young), key=lambda c: (c.mtime_ns, c.step))
        ranks[text] = known = _in_force(known, [of[c.name] for c in saves], max_keep)
        for at, c in mine:
            if of[c.name] == known or _was_whole(c.entry, memory):
                continue
            doubt = (_FEWER if len(of[c.name]) < len(known) else _TOLD_BY_THE_NEXT).format(
                count=len(of[c.name]), before=len(known)
            )
            told[at] = replace(c, state=State.IN_FLIGHT if c.name in young else State.DOUBTFUL, evidence=doubt)
            if c.name in young:
                waits.append(settles_s(c.entry))
    return Told(told, ranks, min(waits, default=None))


def _in_force(known: Ranks, saves: Sequence[Ranks], max_keep: int) -> Ranks:
    """The ranks that a whole checkpoint has, by what was `known` and `saves`, in order of writing."""
    larger = [each for each, count in Counter(saves).items() if len(each) > len(known) and count > 1]
    if larger:
        return max(larger, key=len)
    latest = saves[-max(max_keep, _AT_LEAST) - 1 :]
    agree = len(latest) > max(max_keep, _AT_LEAST) and len(set(latest)) == 1
    return latest[-1] if known and agree else known


def _ranks_of(entry: Entry, group: Group) -> Ranks:
    return tuple(sorted(place.part for part in entry.parts if (place := group.place_of(part.name))))


def _was_whole(entry: Entry, memory: Memory) -> bool:
    known = memory.seen.get(entry.name)
    return known is not None and known.whole and known.identity == entry.identity
