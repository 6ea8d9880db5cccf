"""What of a plan may be carried out now: on the strength of what is durable, and beside what the pointer names.

Pure: a plan says what is to go in the end. Which of it a pass may delete at this moment, what it has to rely on for
that, and for how long it can be taken back, is decided here, from what the disk has said.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

from .checkpoint import Checkpoint, Content, Durability, State
from .memory import Memory
from .plan import Decision, Plan, SeriesPlan
from .reason import Kind, Reason

LARGE_PRUNE_TTL_S = 3600.0


@dataclass(frozen=True)
class Permit:
    """What may be deleted now, oldest first; and by name, why the rest of what the plan prunes is held back."""

    prunes: tuple[Decision, ...]
    held: Mapping[str, Reason]


def permit(
    plan: Plan,
    *,
    durable: AbstractSet[str],
    pointed: str | None,
    stays: bool = False,
) -> Permit:
    """Nothing goes on the strength of what is not `durable`, and never what the pointer names.

    durable: the names whose bytes are read and on stable storage. pointed: what the pointer names by now, None if
    nothing. stays: whether it rightly does so, as `pointer_stays` says; else nothing at all goes beside a pointer
    whose checkpoint is not complete and durable (docs/design.md, section 7).
    """
    planned = plan.prune
    if not planned:
        return Permit((), {})
    pruned = {d.checkpoint.series for d in planned}
    series = [s for s in plan.series if s.grid.template.text in pruned]
    missing = {s.grid.template.text: _missing(s, durable) for s in series}
    dangling = None if stays else _dangling(plan, durable, pointed)
    prunes: list[Decision] = []
    held: dict[str, Reason] = {}
    for decision in planned:
        name = decision.checkpoint.name
        why = missing[decision.checkpoint.series] or dangling
        if why is None and name == pointed:
            why = Reason(Kind.POINTER, "the pointer names it")
        if why is not None:
            held[name] = why
        else:
            prunes.append(decision)
    return Permit(tuple(prunes), held)


def held_back(plan: Plan, *, met: Memory | None, pointed: str | None, is_there: bool) -> Mapping[str, Reason]:
    """By name, what is to be pruned and for what it still waits, as far as a look alone can tell.

    met: what passes have seen before, None if there was none. What they have not, or other bytes under its name, the
    next pass reads and flushes before it deletes: nothing is known that would hold anything back. is_there: as for
    `pointer_stays`.
    """

    def is_durable(c: Checkpoint) -> bool:
        seen = met.seen.get(c.name) if met is not None else None
        if seen is None or seen.bytes_on_disk != c.entry.bytes_on_disk:
            return True
        return seen.durability is Durability.SYNCED and not c.content.is_to_be_read

    durable = {c.name for c in relied_on(plan, pointed) if is_durable(c)}
    stays = pointer_stays(plan, pointed, is_there=is_there)
    if plan.newest is not None and plan.newest.name in durable:
        pointed = plan.newest.name  # a pass moves it there first
    return permit(plan, durable=durable, pointed=pointed, stays=stays).held


def pointer_stays(plan: Plan, pointed: str | None, *, is_there: bool) -> bool:
    """Whether the pointer stays on something newer than the plan's newest: on what is being written over, or on a
    checkpoint of a series that this policy does not look at. is_there: whether the disk has what it names, where that
    is none of the plan's."""
    seen = plan.memory.seen
    if pointed is None or plan.newest is None or pointed not in seen:
        return False
    if seen[pointed].order <= seen[plan.newest.name].order:
        return False
    states = [d.checkpoint.state for d in plan.decisions if d.checkpoint.name == pointed]
    return State.IN_FLIGHT in states or (not states and is_there)


def relied_on(plan: Plan, pointed: str | None) -> list[Checkpoint]:
    """What a deletion stands on, what the pointer is to name, and what it names now: it may have to stay there."""
    named = [d.checkpoint for d in plan.decisions if d.checkpoint.name == pointed and d.checkpoint.relied_on]
    wanted = [*plan.relied_on, *([plan.newest] if plan.newest else []), *named]
    return list({checkpoint.name: checkpoint for checkpoint in wanted}.values())


def trash_ttl_s(plan: Plan, prunes: Sequence[Decision], *, asked_s: float | None, free_bytes: int) -> float:
    """For how long `prunes` can be taken back: as asked for, or an hour for more than the saves since the last pass
    account for (first contact) and for all that goes by a changed max_keep, room permitting: that on the disk, and that
    of the budget."""
    if plan.budget is not None:
        pruned_bytes = sum(decision.checkpoint.allocated_bytes for decision in prunes)
        if plan.budget.kept_bytes + pruned_bytes > plan.budget.limit_bytes:
            return 0.0
    if asked_s is not None:
        return asked_s
    expected = sum(max(1, 0 if s.grid.first_contact else s.grid.saves) for s in plan.series if s.decisions)
    if (len(prunes) <= expected and not plan.goes_late) or plan.newest is None:
        return 0.0
    return LARGE_PRUNE_TTL_S if free_bytes >= 2 * plan.newest.size_bytes else 0.0


def _missing(series: SeriesPlan, durable: AbstractSet[str]) -> Reason | None:
    """What keeps a series from being pruned now, None if nothing does."""
    whole = [d.checkpoint for d in series.decisions if d.checkpoint.fit]
    # As many as there could be: what is still being read counts for nothing, and lowers no count.
    if len(series.relied_on) < min(series.grid.max_keep or 1, len(whole)):
        return _still_to_be_read(next(c.name for c in reversed(whole) if c.content is Content.UNREAD))
    if not series.relied_on:
        return Reason(Kind.WAITS, "there is no complete one to rely on")
    lacking = next((c for c in (*series.relied_on, *series.best) if c.name not in durable), None)
    if lacking is None:
        return None
    if lacking.content.is_to_be_read:
        return _still_to_be_read(lacking.name)
    return Reason(Kind.WAITS, f"{lacking.name} is not on stable storage yet")


def _still_to_be_read(name: str) -> Reason:
    return Reason(Kind.WAITS, f"{name} is still to be read")


def _dangling(plan: Plan, durable: AbstractSet[str], pointed: str | None) -> Reason | None:
    """What is wrong with what the pointer names, None if nothing is."""
    if pointed is None:
        return None
    target = next((d.checkpoint for d in plan.decisions if d.checkpoint.name == pointed), None)
    if target is not None and target.relied_on and pointed in durable:
        return None
    return Reason(Kind.POINTER, f"the pointer names {pointed}, which is not complete and durable")
