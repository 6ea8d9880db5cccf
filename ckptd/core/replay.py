"""Replay the saves that no earlier pass saw, in order of writing, each walking over what was there before it.

Pure. This is why one pass after many saves decides what a pass after each of them would have (DESIGN section 3).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from .checkpoint import Checkpoint, State
from .memory import BROUGHT_BACK, Memory, Seen, SeriesMemory
from .naming import Names
from .policy import Policy, Rule, Stepped
from .schedule import WITNESSES, Schedule


@dataclass(frozen=True)
class Grid:
    """The rule in force for one series, and where its interval comes from."""

    template: Names
    rule: Rule | None
    max_keep: int | None
    interval: int | None
    interval_from: str | None
    waits: bool
    first_contact: bool
    saves: int  # how many no earlier pass saw
    ignored: Schedule | None = None  # what a run has declared, and the last saves contradict
    no_grid: bool = False  # the stepped rule was asked for, and these names have no grid to step on


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
) -> Replayed:
    """Put the unseen among `found` in order, and let each save walk by its series' rule.

    `declared` are the schedules by template; `trusted` is the name that a pointer in the work dir gives: the newest
    where the order of writing is in doubt. Steps that a rule prunes come out as `owed`.
    """
    found = list(found)
    looked_for: tuple[Names, ...] = policy.patterns if patterns is None else tuple(patterns)
    seen, unseen, there = _sort_out(found, memory)
    # A series that this policy does not name is another's business: what is remembered of it stays as it is.
    others = set(memory.series) - {template.text for template in looked_for}
    seen.update((name, known) for name, known in memory.seen.items() if known.series in others and name not in seen)
    saves: dict[str, list[Seen]] = {}
    order = _Order(seen.values(), memory.next_order)
    arrivals: list[Seen] = []
    first_met = {c.series for c in found} - set(memory.series)
    new: dict[str, list[Checkpoint]] = {series: [] for series in first_met}
    for checkpoint in unseen:
        new.get(checkpoint.series, []).append(checkpoint)
    doubtful = {series for series, those in new.items() if _in_doubt(those)}
    for checkpoint in sorted(unseen, key=lambda c: _when(c, now_ns, last=trusted if c.series in doubtful else None)):
        arrival = order.place(checkpoint, now_ns, is_save=checkpoint.series in doubtful)
        seen[arrival.name] = arrival
        arrivals.append(arrival)
        if arrival.whole and arrival.order != BROUGHT_BACK:
            saves.setdefault(arrival.series, []).append(arrival)

    series: dict[str, SeriesMemory] = dict(memory.series)
    grids: dict[str, Grid] = {}
    for template in looked_for:
        text = template.text
        if text not in first_met and text not in series:
            continue
        steps = [save.step for save in saves.get(text, ())]
        if text in doubtful:
            series[text] = replace(SeriesMemory().after(sorted(steps)), waits=True)
        else:
            series[text] = series.get(text, SeriesMemory()).after(steps)
        obeyed, ignored = declared.get(text), None
        if obeyed is not None and obeyed.is_contradicted_by(_since(obeyed, template, series[text].recent, seen)):
            obeyed, ignored = None, obeyed
        grid = _grid(template, series[text], policy, obeyed, text in first_met, len(steps))
        grids[text] = replace(grid, ignored=ignored)

    for arrival in arrivals:
        grid, present = grids[arrival.series], there.setdefault(arrival.series, set())
        present.add(arrival.step)
        # An earlier save may have walked over what stood under this name before.
        seen[arrival.name] = arrival
        is_save = arrival.whole and arrival.order != BROUGHT_BACK and arrival.series not in doubtful
        if is_save and isinstance(grid.rule, Stepped):
            for step in grid.rule.walk(arrival.step, present.__contains__):
                present.discard(step)
                name = grid.template.name_of(step)
                seen[name] = replace(seen[name], owed=True)
    return Replayed(Memory(seen, series, order.next), grids)


def _sort_out(found: list[Checkpoint], memory: Memory) -> tuple[dict[str, Seen], list[Checkpoint], dict[str, set[int]]]:
    """What is remembered and still there, what is unseen, and the steps that a walk finds before any of that."""
    seen: dict[str, Seen] = {}
    unseen: list[Checkpoint] = []
    there: dict[str, set[int]] = {}
    for checkpoint in found:
        known = memory.seen.get(checkpoint.name)
        if known is not None and known.series != checkpoint.series:
            known = None
        if known is not None and not known.owed:
            there.setdefault(checkpoint.series, set()).add(checkpoint.step)
        if known is not None and (known.is_still(checkpoint) or checkpoint.state is State.IN_FLIGHT):
            # Of what is being written, or in doubt, nothing is known anew: what it was tells what has changed since.
            seen[known.name] = known.about(checkpoint) if checkpoint.state.settled else known
        elif checkpoint.state is not State.IN_FLIGHT:
            unseen.append(checkpoint)
    return seen, unseen, there


def _in_doubt(unseen: Iterable[Checkpoint]) -> bool:
    """Whether the times of writing and the steps tell two stories: a resumed run, or a copied directory."""
    steps = [c.step for c in sorted((c for c in unseen if c.state.whole), key=lambda c: (c.mtime_ns, c.step))]
    return steps != sorted(steps)


def _when(checkpoint: Checkpoint, now_ns: int, last: str | None) -> tuple[bool, int, int, int, str]:
    # A time in the future counts as now; among several, the times still tell the order: saves go on while one looks.
    mtime_ns = checkpoint.mtime_ns
    return checkpoint.name == last, min(mtime_ns, now_ns), mtime_ns, checkpoint.step, checkpoint.name


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
        written_ns = min(checkpoint.mtime_ns, now_ns)
        newest = self._newest.get(checkpoint.series)
        whole = checkpoint.state.whole
        order = self.next
        new = is_save or not whole or newest is None or checkpoint.step > newest.step
        if not new and newest and (written_ns, checkpoint.mtime_ns) <= (newest.written_ns, newest.mtime_ns):
            order = BROUGHT_BACK  # neither written later nor further on than the newest: somebody put it there
        else:
            self.next += 1
        name, size_bytes, mtime_ns = checkpoint.identity
        arrival = Seen(
            checkpoint.series, name, checkpoint.step, size_bytes, mtime_ns, written_ns, order, whole,
            durable=None if checkpoint.durable else False, inode=checkpoint.inode, changes=checkpoint.changes,
            older=checkpoint.older, younger=checkpoint.younger,
        )  # fmt: skip
        if whole and order != BROUGHT_BACK:
            self._newest[checkpoint.series] = arrival
        return arrival


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
    source: str | None = memory.evidence if interval is not None else None
    if policy.interval is not None:
        interval, source = policy.interval, "given"
    elif declared is not None and declared.interval is not None:
        interval, source = declared.interval, "declared"
    if not template.has_grid:
        interval, source = None, None
    max_keep = policy.max_keep
    if max_keep is None and declared is not None:
        max_keep = declared.max_keep
    on_grid = source in ("given", "declared")
    rule = policy.rule_for(template, interval, max_keep=max_keep, on_grid=on_grid)
    no_grid = policy.rule == "stepped" and not template.has_grid
    return Grid(template, rule, max_keep, interval, source, memory.waits, first_contact, saves, no_grid=no_grid)
