"""Replay the saves that no earlier pass saw, in order of writing, each walking over what was there before it.

Pure. This is why one pass after many saves decides what a pass after each of them would have.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

from .checkpoint import Checkpoint, Durability, State
from .late import after_pass, is_behind, is_larger, late_walks, quiet_from_ns
from .memory import BROUGHT_BACK, InForce, Memory, Seen, SeriesMemory
from .naming import Names
from .policy import Policy, Rule, Stepped
from .schedule import WITNESSES, Schedule

if TYPE_CHECKING:
    from .half_saved import Former


class Source(str, Enum):
    """Who says what the interval of a series is."""

    GIVEN = "given"
    DECLARED = "declared"
    INFERRED = "inferred"


@dataclass(frozen=True)
class Grid:
    """The rule in force for one series, and where its interval comes from; evidence: what it was inferred from."""

    template: Names
    rule: Rule | None
    max_keep: int | None
    interval: int | None
    source: Source | None
    evidence: str
    waits: bool
    first_contact: bool
    saves: int  # how many no earlier pass saw
    ignored: Schedule | None = None  # what a run has declared, and the last saves contradict
    no_grid: bool = False  # the stepped rule or an interval was asked for, and these names have no grid to step on
    waits_for_end: bool = False  # a changed max_keep acts at the next save, or once the run may be taken to have ended
    waits_for_interval: bool = False  # ... at the next save, or once somebody gives or declares the interval
    quiet_from_ns: int | None = None  # of one that waits: from when there was no save for long enough

    @property
    def asked(self) -> InForce | None:
        """What a changed max_keep is a change to."""
        return InForce(self.rule.max_keep, self.rule.name, self.interval) if self.rule is not None else None

    @property
    def on_grid(self) -> bool:
        """Whether somebody gave or declared the interval."""
        return self.source in (Source.GIVEN, Source.DECLARED)

    @property
    def interval_from(self) -> str | None:
        """Where the interval comes from, for a person to read."""
        if self.source is None:
            return None
        return f"{self.source.value} from {self.evidence}" if self.evidence else self.source.value


@dataclass(frozen=True)
class Replayed:
    """What is remembered from now on, and by which rule each series was judged."""

    memory: Memory
    grids: Mapping[str, Grid]


def replay(
    found: Iterable[Checkpoint],
    memory: Memory,
    policy: Policy,
    *,
    now_ns: int,
    declared: Mapping[str, Schedule],
    trusted: str | None = None,
    patterns: Sequence[Names] | None = None,
    ended: Callable[[str], bool] = lambda series: False,
) -> Replayed:
    """Put the unseen among `found` in order, and let each save walk by its series' rule.

    `declared` are the schedules by template; `trusted` is the name that a pointer in the work dir gives: the newest
    where the order of writing is in doubt. Steps that a rule prunes come out as `owed`. `ended` tells of which series
    no new save is waited for, so that a changed max_keep acts on what is there.
    """
    found = list(found)
    of: dict[str, list[Checkpoint]] = defaultdict(list)
    for checkpoint in found:
        of[checkpoint.series].append(checkpoint)
    looked_for: tuple[Names, ...] = policy.patterns if patterns is None else tuple(patterns)
    seen, unseen, there = _sort_out(found, memory)
    # A series that this policy does not name is another's business: what is remembered of it stays as it is.
    others = set(memory.series) - {template.text for template in looked_for}
    seen.update((name, known) for name, known in memory.seen.items() if known.series in others and name not in seen)
    saves: dict[str, list[Seen]] = {}
    order = _Order(seen.values(), memory.next_order)
    arrivals: list[Seen] = []
    first_met = {c.entry.series for c in found} - set(memory.series)
    new: dict[str, list[Checkpoint]] = {series: [] for series in first_met}
    for checkpoint in unseen:
        new.get(checkpoint.entry.series, []).append(checkpoint)
    doubtful = {series for series, those in new.items() if _in_doubt(those)}
    former: Former | None = None
    for checkpoint in sorted(unseen, key=lambda c: _when(c, now_ns, last=trusted if c.series in doubtful else None)):
        arrival = order.place(checkpoint, now_ns, is_save=checkpoint.series in doubtful)
        if checkpoint.entry.parts and not arrival.whole:
            from .half_saved import Former  # here, because few runs save several files

            former = former or Former(memory.seen)
            arrival = replace(arrival, former=former.kept(checkpoint.entry))
        seen[arrival.name] = arrival
        arrivals.append(arrival)
        if arrival.whole and arrival.order != BROUGHT_BACK:
            saves.setdefault(arrival.series, []).append(arrival)

    series: dict[str, SeriesMemory] = dict(memory.series)
    grids: dict[str, Grid] = {}
    walks = _Walks(seen, there)
    for template in looked_for:
        text = template.text
        if text not in first_met and text not in series:
            continue
        steps = [save.step for save in saves.get(text, ())]
        was = series.get(text, SeriesMemory(walked=0))
        if text in doubtful:
            series[text] = replace(SeriesMemory(walked=order.next - 1).after(sorted(steps)), waits=True)
        elif was.walked == 0 and not steps and policy.max_keep is not None and ended(text):
            series[text] = was.met_anew([save.step for save in _complete(of[text], seen)])
        else:
            series[text] = was.after(steps)
        obeyed, ignored = declared.get(text), None
        if obeyed is not None and obeyed.is_contradicted_by(_since(obeyed, template, series[text].recent, seen)):
            obeyed, ignored = None, obeyed
        grid = _grid(template, series[text], policy, obeyed, text in first_met, len(steps))
        grids[text] = replace(grid, ignored=ignored)
        series[text] = walks.take_back(grid, series[text])

    # Before anything arrives: what somebody has just brought back goes for no walk that is made up for.
    for text, grid in grids.items():
        was, asked, walked, settled = series[text], grid.asked, text in saves, policy.max_keep is not None
        if asked is not None and settled and not walked and is_behind(was, asked, order.newest(text)):
            complete = _complete(of[text], seen)
            late = late_walks(complete, was, asked, on_grid=grid.on_grid)
            settled, walked = late == (), bool(late) and ended(text)
            if late and walked:
                was = replace(was, late=(*was.late, *walks.make_late(grid, late)))
            elif late != ():
                grids[text] = replace(
                    grid, waits_for_interval=late is None, waits_for_end=bool(late),
                    quiet_from_ns=quiet_from_ns(complete),
                )  # fmt: skip
        series[text] = after_pass(was, asked, memory.next_order - 1, order.next - 1, walked=walked, settled=settled)

    for arrival in arrivals:
        is_save = arrival.whole and arrival.order != BROUGHT_BACK and arrival.series not in doubtful
        walks.arrive(arrival)
        if is_save:
            walks.make(grids[arrival.series], arrival)
    return Replayed(Memory(seen, series, order.next), grids)


class _Walks:
    """Lets saves walk, and knows what is there for the next one."""

    def __init__(self, seen: dict[str, Seen], there: dict[str, set[int]]) -> None:
        self._seen, self._there = seen, there

    def arrive(self, arrival: Seen) -> None:
        """It is there from now on; an earlier save may have walked over what stood under this name before."""
        self._there.setdefault(arrival.series, set()).add(arrival.step)
        self._seen[arrival.name] = arrival

    def make(self, grid: Grid, save: Seen) -> list[int]:
        """Let `save` walk by its series' rule; the steps that are owed for it."""
        present, gone = self._there.setdefault(save.series, set()), []
        for step in grid.rule.walk(save.step, present.__contains__) if isinstance(grid.rule, Stepped) else ():
            present.discard(step)
            name = grid.template.name_of(step)
            self._seen[name] = replace(self._seen[name], owed=True)
            gone.append(step)
        return gone

    def make_late(self, grid: Grid, saves: Sequence[Seen]) -> list[int]:
        """Let `saves` walk one after the other, each over what was there before it."""
        present = self._there.setdefault(grid.template.text, set())
        present.difference_update(save.step for save in saves)
        gone = []
        for save in saves:
            present.add(save.step)
            gone += self.make(grid, save)
        return gone

    def take_back(self, grid: Grid, was: SeriesMemory) -> SeriesMemory:
        """Forget what late walks have asked for, where it is gone, and all of it where K has become larger since."""
        there = [self._seen.get(grid.template.name_of(step)) for step in was.late]
        owed = [known for known in there if known is not None and known.owed]
        if grid.asked is not None and is_larger(grid.asked, was.in_force):
            for known in owed:
                self.arrive(replace(known, owed=False))
            owed = []
        return replace(was, late=tuple(known.step for known in owed)) if was.late else was


def _complete(series: Iterable[Checkpoint], seen: Mapping[str, Seen]) -> list[Seen]:
    """The saves of a series that are complete now, in order of writing."""
    known = [seen[c.name] for c in series if c.state.whole]
    return sorted((each for each in known if each.order != BROUGHT_BACK), key=lambda each: each.order)


def _sort_out(found: list[Checkpoint], memory: Memory) -> tuple[dict[str, Seen], list[Checkpoint], dict[str, set[int]]]:
    """What is remembered and still there, what is unseen, and the steps that a walk finds before any of that."""
    seen: dict[str, Seen] = {}
    unseen: list[Checkpoint] = []
    there: dict[str, set[int]] = {}
    for checkpoint in found:
        entry = checkpoint.entry
        known = memory.seen.get(entry.name)
        if known is not None and known.series != entry.series:
            known = known.named_anew(entry)
        if known is not None and not known.owed:
            there.setdefault(entry.series, set()).add(entry.step)
        if known is not None and (known.is_still(checkpoint) or checkpoint.state is State.IN_FLIGHT):
            # Of what is being written, or in doubt, nothing is known anew: what it was tells what has changed since.
            about = known.about(entry) if checkpoint.state.settled else known
            seen[known.name] = about if checkpoint.state is State.IN_FLIGHT else about.lacking(checkpoint)
        elif checkpoint.state is not State.IN_FLIGHT:
            unseen.append(checkpoint)
    return seen, unseen, there


def _in_doubt(unseen: Iterable[Checkpoint]) -> bool:
    """Whether the times of writing and the steps tell two stories: a resumed run, or a copied directory."""
    written = sorted((c.entry.mtime_ns, c.entry.step) for c in unseen if c.is_save)
    steps = [step for _, step in written]
    return steps != sorted(steps)


def _when(checkpoint: Checkpoint, now_ns: int, last: str | None) -> tuple[bool, int, int, int, str]:
    # A time in the future counts as now; among several, the times still tell the order: saves go on while one looks.
    entry = checkpoint.entry
    return entry.name == last, min(entry.mtime_ns, now_ns), entry.mtime_ns, entry.step, entry.name


class _Order:
    """Gives each arrival its place, and knows the newest save of every series."""

    def __init__(self, seen: Iterable[Seen], next_order: int) -> None:
        self.next = next_order
        self._newest: dict[str, Seen] = {}
        for known in seen:
            if known.whole and known.order != BROUGHT_BACK:
                newest = self._newest.get(known.series)
                if newest is None or known.order > newest.order:
                    self._newest[known.series] = known

    def place(self, checkpoint: Checkpoint, now_ns: int, *, is_save: bool) -> Seen:
        entry, whole = checkpoint.entry, checkpoint.is_save
        written_ns = min(entry.mtime_ns, now_ns)
        newest = self._newest.get(entry.series)
        order = self.next
        new = is_save or not whole or newest is None or entry.step > newest.step
        if not new and newest and not _is_newer(checkpoint, written_ns, newest):
            order = BROUGHT_BACK  # neither written later nor further on than the newest: somebody put it there
        else:
            self.next += 1
        # That an fsync has succeeded is written down after the pointer has moved, and not as the save is met.
        failed = checkpoint.durability if checkpoint.durability.failed else Durability.UNKNOWN
        arrival = Seen.of(
            entry, order=order, written_ns=written_ns, whole=whole, durability=failed, lacks=checkpoint.lacks,
            lacks_until_ns=checkpoint.lacks_until_ns,
        )  # fmt: skip
        if whole and order != BROUGHT_BACK:
            self._newest[entry.series] = arrival
        return arrival

    def newest(self, series: str) -> int:
        """The order of the newest save of a series."""
        return self._newest[series].order if series in self._newest else BROUGHT_BACK


def _is_newer(checkpoint: Checkpoint, written_ns: int, newest: Seen) -> bool:
    """Whether it was written after the newest; another name of the same step may be written at the same time."""
    one, other = (written_ns, checkpoint.mtime_ns), (newest.written_ns, newest.mtime_ns)
    return one > other or (one == other and checkpoint.step == newest.step and checkpoint.name != newest.name)


def _since(schedule: Schedule, template: Names, recent: Sequence[int], seen: Mapping[str, Seen]) -> list[int]:
    """The steps of the last saves, less those known to be older than the schedule: no word of it was about them."""
    if schedule.declared_ns is None or not template.has_grid:
        return list(recent)

    def is_older(step: int) -> bool:
        known = seen.get(template.name_of(step))
        return known is not None and schedule.declared_ns is not None and known.written_ns < schedule.declared_ns

    return [step for step in recent[-WITNESSES:] if not is_older(step)]


def _grid(
    template: Names,
    memory: SeriesMemory,
    policy: Policy,
    declared: Schedule | None,
    first_contact: bool,
    saves: int,
) -> Grid:
    interval: int | None = memory.interval
    source = Source.INFERRED if interval is not None else None
    if policy.interval is not None:
        interval, source = policy.interval, Source.GIVEN
    elif declared is not None and declared.interval is not None:
        interval, source = declared.interval, Source.DECLARED
    if not template.has_grid:
        interval, source = None, None
    max_keep = policy.max_keep
    if max_keep is None and declared is not None:
        max_keep = declared.max_keep
    evidence = memory.evidence if source is Source.INFERRED else ""
    on_grid = source in (Source.GIVEN, Source.DECLARED)
    rule = policy.rule_for(template, interval, max_keep=max_keep, on_grid=on_grid)
    no_grid = (policy.rule == "stepped" or policy.interval is not None) and not template.has_grid
    return Grid(
        template, rule, max_keep, interval, source, evidence, memory.waits, first_contact, saves, no_grid=no_grid
    )
