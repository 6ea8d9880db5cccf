"""Decide which checkpoints of a work dir stay, which go, and why.

Pure: the same arguments give the same plan, in any order. What is on disk is scan's business.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .budget import MAX_BYTES, Budget, Disk, budget_of, over_budget
from .checkpoint import Checkpoint, State
from .keepers import KeepBest, Keeper
from .memory import BROUGHT_BACK, Memory, Seen
from .naming import Names
from .policy import Newest, Policy, Stepped
from .reason import Kind, Reason
from .replay import Grid, replay
from .schedule import Schedule

if TYPE_CHECKING:
    from .newest import Behind, Latest

KEEP, PRUNE, SKIP = "keep", "prune", "skip"  # skip: would be pruned, vetoed

_FITS = Reason(Kind.BUDGET, "fits into --max-bytes")
_HAS_ROOM = Reason(Kind.BUDGET, "stays while --min-free leaves room for it")
_NO_RULE = Reason(Kind.NO_RULE, "no --max-keep: nothing is pruned")
_BROUGHT_BACK = Reason(Kind.BROUGHT_BACK, "copied or restored by hand")
_DOUBT = Reason(Kind.ORDER_IN_DOUBT, "order in doubt until the next save")
_AHEAD = Reason(Kind.AHEAD, "ahead of the newest, until the run gets there")


@dataclass(frozen=True)
class Decision:
    """What happens to one checkpoint, and for which reasons."""

    checkpoint: Checkpoint
    decision: str
    reasons: tuple[Reason, ...]
    order: int


@dataclass(frozen=True)
class SeriesPlan:
    """One series: the rule in force, and a decision for each checkpoint, by step."""

    grid: Grid
    decisions: tuple[Decision, ...]
    relied_on: tuple[Checkpoint, ...]  # the K newest complete ones, oldest first: what a deletion stands on
    best: tuple[Checkpoint, ...]  # what a keeper holds as the best, and others go because of
    beyond: tuple[Checkpoint, ...]  # whole ones that nothing names and the rule leaves, though K others would do
    spare: tuple[Checkpoint, ...]  # what a budget may take: older than the newest, and kept by nothing


@dataclass(frozen=True)
class Plan:
    """The decision for a work dir as a value; `prune` is what `delete` is given, oldest first."""

    series: tuple[SeriesPlan, ...]
    memory: Memory
    newest: Checkpoint | None  # to be resumed from, over all series: what the pointer should name
    budget: Budget | None = None
    behind: Behind | None = None  # why that is not the last one, where it is not

    @property
    def decisions(self) -> tuple[Decision, ...]:
        return tuple(d for series in self.series for d in series.decisions)

    @property
    def prune(self) -> tuple[Decision, ...]:
        return tuple(
            sorted(
                (d for d in self.decisions if d.decision == PRUNE),
                key=lambda d: (d.order, d.checkpoint.step, d.checkpoint.name),
            )
        )

    @property
    def goes_late(self) -> bool:
        """Whether something of `prune` goes because of a changed max_keep, and of no new save."""
        late = {text: set(known.late) for text, known in self.memory.series.items() if known.late}
        return any(d.checkpoint.step in late.get(d.checkpoint.series, ()) for d in self.prune)

    @property
    def relied_on(self) -> tuple[Checkpoint, ...]:
        """What has to be durable before any of `prune` goes."""
        pruned = [s for s in self.series if any(d.decision == PRUNE for d in s.decisions)]
        return tuple(dict.fromkeys(c for s in pruned for c in (*s.relied_on, *s.best)))


def plan(
    found: Iterable[Checkpoint],
    policy: Policy,
    *,
    memory: Memory,
    now_ns: int,
    protected: Mapping[str, Sequence[Reason]],
    declared: Mapping[str, Schedule],
    trusted: str | None = None,
    patterns: Sequence[Names] | None = None,
    ended: Callable[[str], bool] = lambda series: False,
    disk: Disk | None = None,
    latest: Sequence[Latest] = (),
    pointed: str | None = None,
) -> Plan:
    """Decide for every checkpoint in `found`.

    `protected` maps a name to the reasons for which it stays whatever a rule says; `memory` is what earlier passes
    saw, `now_ns` the time (nanoseconds since 1970), `trusted` and `ended` as in `replay`, `patterns` the templates
    looked for, where they are not the policy's, `disk` the file system with the trash, for `min_free`: where it is None
    nothing goes for that; `latest` and `pointed` as in `to_resume_from`. Names are unique.
    """
    found = list(found)
    replayed = replay(
        found, memory, policy, now_ns=now_ns, declared=declared, trusted=trusted, patterns=patterns, ended=ended
    )
    seen = replayed.memory.seen
    by_series: dict[str, list[Checkpoint]] = {text: [] for text in replayed.grids}
    for checkpoint in found:
        by_series[checkpoint.entry.series].append(checkpoint)
    newest, behind = max((c for c in found if c.relied_on), key=lambda c: seen[c.name].rank, default=None), None
    if latest or len(policy.templates) > 1:
        from .newest import to_resume_from  # here, because few have either

        newest, behind = to_resume_from(
            found, seen, templates=policy.templates, latest=latest, pointed=pointed, now_ns=now_ns
        )
    if newest is not None and behind is not None:
        text = f"to be resumed from, as {behind.file} names none above it"
        protected = {**protected, newest.name: (*protected.get(newest.name, ()), Reason(Kind.POINTER, text))}
    series = tuple(
        _plan_series(by_series[text], grid, policy, seen, protected) for text, grid in replayed.grids.items()
    )
    budget = None
    if policy.has_budget:
        budget = budget_of(policy.max_bytes, policy.min_free, disk, found)
        series, budget = _within_budget(series, budget, seen)
    return Plan(series, replayed.memory, newest, budget, behind)


def _plan_series(
    found: list[Checkpoint],
    grid: Grid,
    policy: Policy,
    seen: Mapping[str, Seen],
    protected: Mapping[str, Sequence[Reason]],
) -> SeriesPlan:
    found = sorted(found, key=lambda c: (c.entry.step, c.entry.name))
    whole = sorted((c for c in found if c.state.whole), key=lambda c: seen[c.entry.name].rank)
    fit = [c for c in whole if c.fit]
    good = [c for c in fit if c.relied_on]
    # A budget may take what no max_keep asks for, but never the newest.
    at_least = grid.max_keep or (1 if policy.has_budget else 0)
    relied_on = tuple(_newest(good, at_least, grid))
    # Until it was read, one of the newest takes nobody's place, and nobody takes its own.
    newest_names = {c.name for c in (*relied_on, *_newest(fit, at_least, grid))}
    fits = None
    if policy.has_budget:
        fits = _HAS_ROOM if policy.max_bytes is None else _FITS
    judge = _Judge(grid, seen, found, fit, good, fits=fits)
    newest = Reason(Kind.NEWEST, "the newest" if at_least == 1 else f"one of the {at_least} newest")
    # What is broken stays where somebody has asked for it: perhaps it can be mended.
    broken = [c for c in found if not c.state.whole and c.name in seen]
    kept = _kept(policy.keepers_of(grid.template), whole, broken, seen)
    decisions: list[Decision] = []
    beyond: list[Checkpoint] = []
    spare: list[Checkpoint] = []
    for checkpoint in found:
        name, reasons = checkpoint.entry.name, []
        known = seen.get(name)
        if name in newest_names:
            reasons.append(newest)
        if not checkpoint.state.settled:
            reasons.append(_why_not_settled(checkpoint))
        reasons.extend(protected.get(name, ()))
        reasons.extend(kept.get(name, ()))
        gone = judge.why_it_goes(checkpoint, known)
        if gone is None:
            decision = KEEP
            if not reasons:
                reasons = [judge.why_it_stays(checkpoint, known)]
                if checkpoint.state.whole and grid.rule is not None and not grid.waits:
                    beyond.append(checkpoint)
                if judge.is_spare(checkpoint, known):
                    spare.append(checkpoint)
        elif reasons:
            decision = SKIP if any(reason.kind.protects for reason in reasons) else KEEP
        else:
            decision, reasons = PRUNE, [gone]
        decisions.append(Decision(checkpoint, decision, tuple(reasons), known.order if known else BROUGHT_BACK))
    best = [c for keeper in policy.keepers if isinstance(keeper, KeepBest) for c in keeper.best(whole)]
    return SeriesPlan(grid, tuple(decisions), relied_on, tuple(best), tuple(beyond), tuple(spare))


def _newest(ranked: Sequence[Checkpoint], count: int, grid: Grid) -> Sequence[Checkpoint]:
    """The `count` newest of `ranked`, the oldest first.

    Where several names can have one step, so many steps, and all that have one of them: none goes for another of its
    own step.
    """
    if count == 0 or grid.template.has_grid:
        return ranked[-count:] if count else ()
    steps = set(list(dict.fromkeys(c.step for c in reversed(ranked)))[:count])
    return [c for c in ranked if c.step in steps]


def _why_not_settled(checkpoint: Checkpoint) -> Reason:
    if checkpoint.state is State.IN_FLIGHT:
        return Reason(Kind.IN_FLIGHT, checkpoint.evidence or "being written")
    return Reason(Kind.IN_DOUBT, checkpoint.evidence or "not all of one save")


def _kept(
    keepers: Sequence[Keeper], whole: Sequence[Checkpoint], broken: Sequence[Checkpoint], seen: Mapping[str, Seen]
) -> Mapping[str, Sequence[Reason]]:
    """By name, why the keepers keep what they keep."""
    kept: dict[str, list[Reason]] = {}
    for keeper in keepers:
        for name, reason in keeper.keeps(whole, broken, seen).items():
            kept.setdefault(name, []).append(reason)
    return kept


def _within_budget(
    series: tuple[SeriesPlan, ...], budget: Budget, seen: Mapping[str, Seen]
) -> tuple[tuple[SeriesPlan, ...], Budget]:
    """The plan with what is over the budget gone too; all series of a work dir share one."""
    staying = [d.checkpoint for s in series for d in s.decisions if d.decision != PRUNE]
    kept_bytes, gone = over_budget(budget.limit_bytes, staying, [c for s in series for c in s.spare], seen)
    over = f"{'over' if budget.option == MAX_BYTES else 'less free than'} {budget.option}"

    def decide(d: Decision) -> Decision:
        what = "the oldest that nothing keeps" if d.checkpoint.state.whole else "nothing to resume from"
        reason = Reason(Kind.BUDGET, f"{over}: {what}")
        return replace(d, decision=PRUNE, reasons=(reason,)) if d.checkpoint.name in gone else d

    def without(s: SeriesPlan) -> SeriesPlan:
        beyond = tuple(c for c in s.beyond if c.name not in gone)
        return replace(s, decisions=tuple(map(decide, s.decisions)), beyond=beyond)

    return (tuple(map(without, series)) if gone else series), replace(budget, kept_bytes=kept_bytes)


class _Judge:
    """The rule's own view of a series, before any protection."""

    def __init__(
        self,
        grid: Grid,
        seen: Mapping[str, Seen],
        found: list[Checkpoint],
        fit: list[Checkpoint],
        good: list[Checkpoint],
        *,
        fits: Reason | None,
    ) -> None:
        self.fits = fits
        self.grid, self.steps = grid, {c.entry.step for c in found}
        self.newest = fit[-1] if fit else None
        # Where that is still to be read, what the run has reached for certain is the last that was.
        self.reached = min((c.step for c in (*fit[-1:], *good[-1:])), default=None)
        keep = grid.max_keep or 0
        self.kept = {c.step for c in _newest(fit, keep, grid)}
        enough = {c.step: seen[c.name].order for c in _newest(good, keep, grid)}  # the newest of each step
        self.enough_since = min(enough.values()) if 0 < keep == len(enough) else None
        self.newest_good = seen[good[-1].name].order if good else BROUGHT_BACK
        self.walked = Reason(Kind.RULE, f"{keep} or more intervals behind")
        self.outrun = Reason(Kind.RULE, f"{keep} newer ones are kept" if keep > 1 else "a newer one is kept")

    def why_it_goes(self, checkpoint: Checkpoint, known: Seen | None) -> Reason | None:
        rule = self.grid.rule
        if rule is None or known is None:
            return None
        if known.owed:
            return self.walked
        if checkpoint.spoiled:
            if self.enough_since is not None and known.order < self.enough_since and not self._is_variant(checkpoint):
                return Reason(Kind.BROKEN, f"{_fault(checkpoint)}; {_enough(rule.max_keep)}")
            return None
        if isinstance(rule, Newest) and checkpoint.state.whole and not self.grid.waits:
            if checkpoint.step in self.kept or known.order == BROUGHT_BACK or self._above_newest(checkpoint):
                return None
            return self.outrun
        return None

    def is_spare(self, checkpoint: Checkpoint, known: Seen | None) -> bool:
        """Whether a budget may take it: never what is in doubt, brought back, or ahead of a resumed run. A broken one
        goes before any whole one has to."""
        broken = checkpoint.state is State.INCOMPLETE
        if known is None or self.grid.waits or not (checkpoint.relied_on or broken):
            return False
        older = BROUGHT_BACK < known.order < self.newest_good
        return older if broken else older and not self._above_newest(checkpoint)

    def why_it_stays(self, checkpoint: Checkpoint, known: Seen | None) -> Reason:
        rule = self.grid.rule
        if rule is None:
            return self.fits or _NO_RULE
        if checkpoint.spoiled:
            return Reason(Kind.BROKEN, f"{_fault(checkpoint)}; will be pruned once {_enough(rule.max_keep)}")
        if known is not None and known.order == BROUGHT_BACK:
            return _BROUGHT_BACK
        if self.grid.waits:
            return _DOUBT
        if self._above_newest(checkpoint):
            return _AHEAD
        return Reason(Kind.UNREACHED, self._why_no_walk_reached(checkpoint.step))

    def _is_variant(self, checkpoint: Checkpoint) -> bool:
        """Whether another name of its step is among the newest: it goes with that."""
        return checkpoint.step in self.kept and not self.grid.template.has_grid

    def _above_newest(self, checkpoint: Checkpoint) -> bool:
        return self.reached is not None and checkpoint.step > self.reached

    def _why_no_walk_reached(self, step: int) -> str:
        if not isinstance(self.grid.rule, Stepped) or self.newest is None:
            return "no newer save has been seen"
        interval, keep = self.grid.rule.interval, self.grid.rule.max_keep
        if step <= 0:
            return "step 0: the rule never reaches it"
        if (self.newest.step - step) % interval:
            return f"off the grid of interval {interval}"
        first = self.newest.step - keep * interval
        hole = next((x for x in range(first, step, -interval) if x not in self.steps), None)
        if hole is not None:
            return f"the rule stops at {self.grid.template.name_of(hole)}, which is missing"
        return "the rule acts at the next save"


def _fault(spoiled: Checkpoint) -> str:
    return "not on stable storage" if spoiled.state.whole else spoiled.evidence or "incomplete"


def _enough(keep: int) -> str:
    return f"{keep} newer complete ones exist" if keep > 1 else "a newer complete one exists"
