"""What earlier passes saw of a work dir, and in which order: the order of writing.

Pure: a value that goes into a decision and comes out of it. How it is kept on disk is state.py's business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from .checkpoint import Checkpoint, Durability, State
from .entry import Entry, Identity, Written
from .naming import joined

_GAPS = 8  # how many of the latest gaps between saves speak for the interval
_FEWEST_GAPS = 3

Ranks = tuple[tuple[int, ...], ...]  # which template of a group, and the numbers of its fields for ranks

BROUGHT_BACK = 0  # the order of a checkpoint that is no save: older than every save


@dataclass(frozen=True)
class Seen:
    """One checkpoint as a pass saw it.

    order: its place among all saves of the work dir, from 1; BROUGHT_BACK if somebody put it there.
    written_ns: its time of writing, a time in the future counted as the time of that pass.
    whole: complete, by what it was then. owed: a rule has pruned it; it goes as soon as nothing else keeps it.
    content: what is wrong with its content, "" if nothing is, None if it was not read yet. inode, changes: of the
    bytes that `durability` and `content` are about; changes is 0 where an earlier version remembered none. older,
    younger: as an entry's, then. parts: of a checkpoint of several files, what tells each of them from a rewritten one.
    lacks, lacks_until_ns: as a checkpoint's, while it is in doubt for that. former: of one that is not whole any more,
    what its files were when it was.
    """

    series: str
    name: str
    step: int
    size_bytes: int
    mtime_ns: int
    written_ns: int
    order: int
    whole: bool = True
    durability: Durability = Durability.UNKNOWN
    owed: bool = False
    content: str | None = None
    inode: int = 0
    changes: int = 0
    older: int = 0
    younger: int = 0
    parts: tuple[Written, ...] = ()
    lacks: tuple[str, ...] = ()
    lacks_until_ns: int = 0
    former: tuple[Written, ...] = ()

    @classmethod
    def of(
        cls, found: Entry, *, order: int, written_ns: int, whole: bool = True, owed: bool = False,
        durability: Durability = Durability.UNKNOWN, lacks: tuple[str, ...] = (), lacks_until_ns: int = 0,
    ) -> Seen:  # fmt: skip
        """`found` as it is met now; of its content nothing is known."""
        name, size_bytes, mtime_ns, parts = found.identity
        return cls(
            found.series, name, found.step, size_bytes, mtime_ns, written_ns, order, whole, durability, owed,
            inode=found.inode, changes=found.changes, older=found.older, younger=found.younger, parts=parts,
            lacks=lacks, lacks_until_ns=lacks_until_ns,
        )  # fmt: skip

    @cached_property
    def identity(self) -> tuple[str, int, int, tuple[Written, ...]]:
        """As an entry's."""
        return self.name, self.size_bytes, self.mtime_ns, self.parts

    @cached_property
    def bytes_on_disk(self) -> Identity:
        """As an entry's."""
        return Identity(self.name, self.size_bytes, self.mtime_ns, self.inode, self.changes, self.parts)

    @property
    def rank(self) -> tuple[int, int, int]:
        """The greater, the newer: by order of writing, which is all but for those brought back."""
        return self.order, self.written_ns, self.step

    def about(self, found: Entry) -> Seen:
        """What is known of the same save as it is `found` now: nothing of its bytes, if these may be others.

        But that an fsync has failed stays known: what the kernel has dropped does not come back with a change of mode.
        """
        if (self.inode, self.changes) == (found.inode, found.changes):
            return self
        return replace(
            self, durability=Durability.FAILED if self.has_failed(found) else Durability.UNKNOWN, content=None,
            inode=found.inode, changes=found.changes, older=found.older, younger=found.younger,
        )  # fmt: skip

    def has_failed(self, found: Entry) -> bool:
        """Whether an fsync of `found` has failed that was not made good since."""
        return self.durability.failed and self.is_same_file(found)

    def is_same_file(self, found: Entry) -> bool:
        """Whether `found` is this save, and no copy of it, though its bytes may have been changed in place."""
        return (self.identity, self.inode) == (found.identity, found.inode)

    def named_anew(self, found: Entry) -> Seen | None:
        """What is still known of it where its name is `found` to be of another series by now, as where a template was
        spelt in another way: nothing but that somebody has put it there."""
        if self.order != BROUGHT_BACK or not self.is_same_file(found):
            return None
        return replace(self, series=found.series, step=found.step, owed=False)

    def was_written_over(self, found: Entry) -> bool:
        """Whether a part of `found`, a directory, is younger than its marker that was not when all was whole."""
        # One that has come since, a slow rank's, makes the younger more, but the older no fewer.
        return self.whole and self.is_same_file(found) and found.younger > self.younger and found.older < self.older

    def was_in_doubt(self, found: Entry) -> bool:
        """Whether `found`, a directory with a part younger than its marker, was not whole before, and no part of it was
        written since: a change of mode, or another link, changes their times as a copy does, but makes none of it."""
        same_parts = (self.older, self.younger) == (found.older, found.younger)
        return not self.whole and self.is_same_file(found) and same_parts

    def is_still(self, found: Checkpoint) -> bool:
        """Whether `found` is this checkpoint, and not one written over it since."""
        same = (self.series, self.identity) == (found.series, found.entry.identity)
        # A directory can become whole without a change of its marker: then it has only now been saved.
        return same and (self.whole or not found.is_save)

    def lacking(self, found: Checkpoint) -> Seen:
        """The same with what is known by now of what it lacks."""
        if found.state is State.DOUBTFUL and not found.lacks:
            return self
        if (self.lacks, self.lacks_until_ns) == (found.lacks, found.lacks_until_ns):
            return self
        return replace(self, lacks=found.lacks, lacks_until_ns=found.lacks_until_ns)


class InForce(NamedTuple):
    """The rule by which a series was last judged: what a changed max_keep is a change of."""

    max_keep: int
    rule: str
    interval: int | None


@dataclass(frozen=True)
class SeriesMemory:
    """What is remembered of a series beside its checkpoints.

    interval: as last inferred. recent: the steps of the latest saves, in order of writing, gone ones too.
    waits: first met in doubt, so nothing of it is pruned before a save is seen.
    in_force: the rule that acted last, or None if no max_keep ever has. walked: the order up to which every save has
    had its walk, or never gets one; None where that was not written down, as in the states of 0.1.0. late: the steps
    that are owed because of a changed max_keep, and of no new save. ranks: of names that tell ranks and not how many
    there are, what a whole checkpoint has; empty before that is known. usual: which files all of the last saves have,
    of those that are directories.
    """

    interval: int | None = None
    recent: tuple[int, ...] = ()
    waits: bool = False
    in_force: InForce | None = None
    walked: int | None = None
    late: tuple[int, ...] = ()
    ranks: Ranks = ()
    usual: tuple[str, ...] = ()

    def after(self, steps: Sequence[int]) -> SeriesMemory:
        """The memory once saves of `steps` were seen, in order of writing.

        The interval is the gap that is a strict majority of at least 3; without one it stays what it was.
        """
        recent = (*self.recent, *steps)[-_GAPS - 1 :]
        gap, count, of = _commonest_gap(recent)
        known = of >= _FEWEST_GAPS and 2 * count > of
        return replace(self, interval=gap if known else self.interval, recent=recent, waits=self.waits and not steps)

    def met_anew(self, steps: Sequence[int]) -> SeriesMemory:
        """The memory with the interval as a first contact with saves of `steps` finds it."""
        first = SeriesMemory().after(steps)
        return replace(self, interval=first.interval, recent=first.recent)

    @property
    def evidence(self) -> str:
        """What the interval was inferred from, for a person to read."""
        gap, count, of = _commonest_gap(self.recent)
        return f"{count} of {of} gaps" if gap == self.interval else "earlier saves"


@dataclass(frozen=True)
class Memory:
    """What earlier passes saw: checkpoints by name, series by template."""

    seen: Mapping[str, Seen] = field(default_factory=dict)
    series: Mapping[str, SeriesMemory] = field(default_factory=dict)
    next_order: int = 1

    @property
    def in_force(self) -> set[str]:
        """The series that hold by what the last pass was told: of those that claim the same files, where a template was
        changed or parts were put together, the one in which checkpoints were seen last."""
        parts = {text: frozenset(joined(text)) for text in self.series}
        groups = [text for text in parts if len(parts[text]) > 1]
        if not groups:
            return set(parts)
        last: dict[str, int] = {}
        for seen in self.seen.values():
            last[seen.series] = max(last.get(seen.series, 0), seen.order)
        lost = set()
        for group in groups:
            for other in parts:
                if parts[other] & parts[group] and last.get(other, -1) != last.get(group, -1):
                    lost.add(min(group, other, key=lambda text: last.get(text, -1)))
        return set(parts) - lost

    def with_usual(self, usual: Mapping[str, tuple[str, ...]]) -> Memory:
        """The memory with what the saves of each series have in common now; where too few are left, what it was."""
        series = {
            text: replace(known, usual=usual[text]) if usual.get(text) and usual[text] != known.usual else known
            for text, known in self.series.items()
        }
        return replace(self, series=series) if usual else self

    def without(self, gone: Container[str]) -> Memory:
        """The memory once the checkpoints `gone` are no longer there."""
        kept = {name: known for name, known in self.seen.items() if name not in gone}
        lost = {(known.series, known.step) for name, known in self.seen.items() if name in gone}

        def of(text: str, series: SeriesMemory) -> SeriesMemory:
            late = tuple(step for step in series.late if (text, step) not in lost)
            return series if late == series.late else replace(series, late=late)

        return replace(self, seen=kept, series={text: of(text, series) for text, series in self.series.items()})


def _commonest_gap(steps: Sequence[int]) -> tuple[int, int, int]:
    """The commonest forward gap, how often it occurs, and the number of forward gaps.

    A step back is a resumed run, and a step again is a save repeated: neither says anything of the grid.
    """
    gaps = Counter(after - before for before, after in zip(steps, steps[1:]) if after > before)
    if not gaps:
        return 0, 0, 0
    gap, count = gaps.most_common(1)[0]
    return gap, count, sum(gaps.values())
