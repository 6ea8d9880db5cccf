"""Has a save all that the older saves of its run have? If not, that is a doubt, and no proof: fewer ranks after a
resume, averaging switched off, or a last save without its optimizer are as they should be.

Pure. Only for directories: a file is one part.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from .checkpoint import Checkpoint, Content, State
from .memory import BROUGHT_BACK, Memory, Seen

_FEWEST_OLDER, _FEWEST_LATER, _INTERVALS = 2, 2, 10
_SHORTEST_INTERVAL_NS = 60 * 10**9  # however fast a run saves, or a test
_MOST_NAMES = 1000  # that are remembered of a series, or of a save
_NUMBER = re.compile("[0-9]+")
_STEP = "{}"  # stands for the save's own step in the name of a file


@dataclass(frozen=True)
class Files:
    """The parts of a directory, by their paths in it. own: those that were written with it, and not added later."""

    there: frozenset[str]
    own: frozenset[str]


@dataclass(frozen=True)
class Doubt:
    """What a save lacks; until when (ns since 1970) that is a doubt at the latest, and how many later saves in a row
    end it."""

    lacks: tuple[str, ...]
    until_ns: int
    later: int

    @property
    def text(self) -> str:
        return (
            f"{without(self.lacks)} as every older save has: kept, and not relied on until {self.later} later ones in "
            "a row are like it, or ten save intervals have passed"
        )


@dataclass
class Compared:
    """The saves of one series, compared. doubts: by name. accepted: what those lack whose time is over. usual: what the
    saves have in common that are in no doubt, where there are several."""

    doubts: dict[str, Doubt] = field(default_factory=dict)
    accepted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    usual: tuple[str, ...] = ()


@dataclass
class AllCompared:
    """The saves of all series, compared. checkpoints: with those in doubt that are. accepted: as Compared's. usual: of
    each series with something new. until_ns: when the first doubt ends."""

    checkpoints: list[Checkpoint]
    accepted: dict[str, tuple[str, ...]] = field(default_factory=dict)
    usual: dict[str, tuple[str, ...]] = field(default_factory=dict)
    until_ns: int | None = None


def without(lacks: Sequence[str]) -> str:
    """In words."""
    more = f" and {len(lacks) - 1} more" if len(lacks) > 1 else ""
    return f"no {lacks[0]}{more},"


def compare_all(
    checkpoints: Sequence[Checkpoint],
    files: Mapping[str, Files],
    memory: Memory,
    keep: Callable[[str], int | None],
    *,
    now_ns: int,
    reads_only: bool,
) -> AllCompared:
    """Compare those of `checkpoints` of which `files` tells, each series by itself. keep: the K in force for one."""
    doubts: dict[str, Doubt] = {}
    done = AllCompared([])
    by_series: dict[str, list[Checkpoint]] = {}
    for c in checkpoints:
        if c.name in files:
            by_series.setdefault(c.series, []).append(c)
    for series, saves in by_series.items():
        if _are_settled(saves, memory.seen):
            continue
        usual = memory.series[series].usual if series in memory.series else ()
        found = compare(
            saves, files, memory.seen, usual, keep=keep(series), now_ns=now_ns, reads_only=reads_only
        )  # fmt: skip
        doubts |= found.doubts
        done.accepted |= found.accepted
        done.usual[series] = found.usual
    for c in checkpoints:
        doubt = doubts.get(c.name)
        done.checkpoints.append(c if doubt is None else _in_doubt(c, doubt))
    done.until_ns = min((doubt.until_ns for doubt in doubts.values()), default=None)
    return done


def compare(
    saves: Iterable[Checkpoint],
    files: Mapping[str, Files],
    seen: Mapping[str, Seen],
    usual: Sequence[str] = (),
    *,
    keep: int | None,
    now_ns: int,
    reads_only: bool = False,
) -> Compared:
    """Compare the whole saves of one series, each with those that are older.

    seen, usual: what earlier passes have left; what they were in no doubt about is not doubted anew. keep: the K in
    force. reads_only: nothing goes because of the answer, so that a doubt may be as old as its save.
    """
    order = [c for c in sorted(saves, key=lambda c: _when(c, seen)) if c.name in files and not _is_foreign(c, seen)]
    found, common = Compared(), _Common()
    lasts_ns = _INTERVALS * _interval_ns(order, now_ns)
    for at, save in enumerate(order):
        known = _known(save, seen)
        until_ns, lacks = (known.lacks_until_ns, known.lacks) if known else (0, ())
        if known is None:
            common.begin_with(usual)
            until_ns = (min(save.mtime_ns, now_ns) if reads_only else now_ns) + lasts_ns
            lacks = common.missing_of(files[save.name], save.step)
        here = files[save.name].there
        lacks = tuple(name for name in lacks if not _has(here, name, save.step) and common.may_have(name))
        if lacks:
            later = [(files[c.name].there, c.step) for c in order[at + 1 :]]
            needed = max(_FEWEST_LATER, keep or 0)
            if not _are_like_it(later, lacks, needed):
                if now_ns < until_ns and len(later) < _INTERVALS:
                    found.doubts[save.name] = Doubt(lacks[:_MOST_NAMES], until_ns, needed)
                    continue
                found.accepted[save.name] = lacks
        common.add(files[save.name], save.step)
    found.usual = common.names
    return found


def _in_doubt(save: Checkpoint, doubt: Doubt) -> Checkpoint:
    return replace(
        save, state=State.DOUBTFUL, evidence=doubt.text, content=Content.UNCHECKED, lacks=doubt.lacks,
        lacks_until_ns=doubt.until_ns,
    )  # fmt: skip


def _are_settled(saves: Iterable[Checkpoint], seen: Mapping[str, Seen]) -> bool:
    """Whether all of them were compared before, and none was in doubt."""
    return all((known := _known(save, seen)) is not None and not known.lacks for save in saves)


class _Common:
    """What all saves have that were added, by name, or by a name that differs only in their own steps."""

    def __init__(self) -> None:
        self._count = 0
        self._names: set[str] = set()
        self._last: list[tuple[frozenset[str], int]] = []

    @property
    def names(self) -> tuple[str, ...]:
        several = self._count >= _FEWEST_OLDER and len(self._names) <= _MOST_NAMES
        return tuple(sorted(self._names)) if several else ()

    def begin_with(self, usual: Sequence[str]) -> None:
        """What is to come is newer than all that is remembered, of which little may be left."""
        if usual and self._count < _FEWEST_OLDER:
            self._names = self._names & set(usual) if self._count else set(usual)
            self._count = _FEWEST_OLDER

    def add(self, files: Files, step: int) -> None:
        names = {form for name in files.own for form in _forms(name, step)}
        self._names = self._names & names if self._count else set(names)
        self._count += 1
        self._last = [*self._last[-1:], (files.there, step)]

    def missing_of(self, files: Files, step: int) -> tuple[str, ...]:
        if self._count < _FEWEST_OLDER:
            return ()
        missing = [name for name in self._names if not _has(files.there, name, step) and self._is_told(name)]
        if not missing:
            return ()
        # Another number in a name, as of an epoch or of how many shards there are: it is there under a new one.
        new = [name for name in files.there if self._names.isdisjoint(_forms(name, step))]
        renamed = {_NUMBER.sub("#", name) for name in new}
        return tuple(sorted(name for name in missing if _NUMBER.sub("#", name.replace(_STEP, "0")) not in renamed))

    def may_have(self, name: str) -> bool:
        """Whether none that was added is known to lack it: those that have gone by now may all have had it."""
        return not self._count or name in self._names

    def _is_told(self, name: str) -> bool:
        """Whether the step in a name is the save's, and not a rank that happens to be the same number."""
        if _STEP not in name or len(self._last) < _FEWEST_OLDER:
            return _STEP not in name
        (one, first), (other, second) = self._last
        return name.replace(_STEP, str(second)) not in one and name.replace(_STEP, str(first)) not in other


def _has(there: frozenset[str], name: str, step: int) -> bool:
    return name in there or (_STEP in name and name.replace(_STEP, str(step)) in there)


def _forms(name: str, step: int) -> list[str]:
    """A name, and what it may be of any step: a rank can be the same number as a step."""
    forms, text = [name], str(step)
    if text in name:
        found = [match.span() for match in re.finditer(rf"(?<![0-9]){text}(?![0-9])", name)]
        forms += [f"{name[:start]}{_STEP}{name[end:]}" for start, end in found]
        forms += [re.sub(rf"(?<![0-9]){text}(?![0-9])", _STEP, name)] if len(found) > 1 else []
    return forms


def _are_like_it(later: Iterable[tuple[frozenset[str], int]], lacks: Sequence[str], needed: int) -> bool:
    """Whether so many later saves in a row lack that too."""
    run = 0
    for there, step in later:
        run = 0 if any(_has(there, name, step) for name in lacks) else run + 1
        if run == needed:
            return True
    return False


def _when(save: Checkpoint, seen: Mapping[str, Seen]) -> tuple[bool, int, int, int, str]:
    known = _known(save, seen)
    return known is None, known.order if known else 0, save.mtime_ns, save.step, save.name


def _known(save: Checkpoint, seen: Mapping[str, Seen]) -> Seen | None:
    """What is remembered of it as a whole one."""
    known = seen.get(save.name)
    same = known is not None and known.whole and (known.series, known.identity) == (save.series, save.entry.identity)
    return known if same else None


def _is_foreign(save: Checkpoint, seen: Mapping[str, Seen]) -> bool:
    known = _known(save, seen)
    return known is not None and known.order == BROUGHT_BACK


def _interval_ns(order: Sequence[Checkpoint], now_ns: int) -> int:
    """The usual time between two saves."""
    written = [min(c.mtime_ns, now_ns) for c in order]
    gaps = sorted(abs(after - before) for before, after in zip(written, written[1:]))
    return max(_SHORTEST_INTERVAL_NS, gaps[(len(gaps) - 1) // 2] if gaps else 0)
