"""Laws of what may be deleted now, over every small world: each checkpoint whole, in flight, in doubt, unread, broken
or lost to a failed fsync, durable or not, and the pointer on any of them."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace

import pytest

from ckptd.core.budget import Budget, over_in_trash
from ckptd.core.checkpoint import Checkpoint, Content, Durability, State
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.permit import LARGE_PRUNE_TTL_S, held_back, permit, pointer_stays, relied_on, trash_ttl_s
from ckptd.core.plan import PRUNE, Decision, Plan, plan
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind

SERIES = "epoch_{}.pth"
STEPS = (1, 2, 3, 4)
NAMES = [SERIES.format(step) for step in STEPS]
SUBSETS = [frozenset(each) for n in range(len(NAMES) + 1) for each in itertools.combinations(NAMES, n)]
POINTED = [None, "iter_9.pth", *NAMES]
STATES = ("whole", "in flight", "in doubt", "unread", "broken", "fsync failed")
POLICIES = [
    Policy(max_keep=1, interval=1),
    Policy(max_keep=2, interval=1),
    Policy(max_keep=1, rule="newest"),
    Policy(max_keep=1, rule="newest", keep_best=("acc:max",)),
    Policy(max_bytes=2),
]
WORLDS = pytest.mark.parametrize(
    "policy", POLICIES, ids=["the newest", "the two newest", "by rule newest", "and the best", "a budget alone"]
)


def checkpoint(step: int, state: str = "whole", series: str = SERIES) -> Checkpoint:
    found = Checkpoint(
        Entry(series, series.format(step), step, 1, step, allocated_bytes=1), metrics=(("acc", float(-step)),)
    )
    if state == "in flight":
        return replace(found, state=State.IN_FLIGHT)
    if state == "in doubt":
        return replace(found, state=State.DOUBTFUL, evidence="not all of one save")
    if state == "broken":
        return replace(found, state=State.INCOMPLETE)
    durability = Durability.FAILED if state == "fsync failed" else Durability.UNKNOWN
    content = Content.UNREAD if state == "unread" else Content.UNCHECKED
    return replace(found, content=content, durability=durability)


def awaiting(decided: Plan, unread: AbstractSet[str]) -> Plan:
    """The same plan where the content of `unread` is still to be read, and taken for good until then."""

    def known(c: Checkpoint) -> Checkpoint:
        return replace(c, content=Content.AWAITED) if c.name in unread and c.relied_on else c

    series = [
        replace(
            each,
            decisions=tuple(replace(d, checkpoint=known(d.checkpoint)) for d in each.decisions),
            relied_on=tuple(map(known, each.relied_on)),
            best=tuple(map(known, each.best)),
        )
        for each in decided.series
    ]
    return replace(decided, series=tuple(series), newest=decided.newest and known(decided.newest))


def decide(found: list[Checkpoint], policy: Policy, memory: Memory | None = None) -> Plan:
    return plan(found, policy, memory=memory or Memory(), now_ns=10**9, protected={}, declared={})


@functools.cache
def plans(policy: Policy) -> list[Plan]:
    """What is decided of four saves that passes have met one by one, whatever has become of each since."""
    memory = Memory()
    for last in STEPS:
        memory = decide([checkpoint(step) for step in STEPS if step <= last], policy, memory).memory
    worlds = itertools.product(STATES, repeat=len(STEPS))
    found = ([checkpoint(step, states[step - 1]) for step in STEPS] for states in worlds)
    return [decided for each in found if (decided := decide(each, policy, memory)).prune]


def names(decisions: Sequence[Decision]) -> set[str]:
    return {d.checkpoint.name for d in decisions}


@WORLDS
def test_what_is_permitted_and_what_is_held_back_are_together_what_is_planned(policy: Policy) -> None:
    for decided in plans(policy):
        for durable, pointed, stays in itertools.product(SUBSETS, POINTED, (False, True)):
            allowed = permit(decided, durable=durable, pointed=pointed, stays=stays)
            assert [d for d in decided.prune if d.checkpoint.name not in allowed.held] == list(allowed.prunes)
            assert allowed.held.keys() == names(decided.prune) - names(allowed.prunes)
            assert all(allowed.held.values())


@WORLDS
def test_nothing_is_permitted_on_the_strength_of_what_is_not_durable_and_read(policy: Policy) -> None:
    for decided in plans(policy):
        (series,) = decided.series
        for durable, pointed in itertools.product(SUBSETS, POINTED):
            if permit(decided, durable=durable, pointed=pointed).prunes:
                stands_on = [*series.relied_on, *series.best]
                assert stands_on
                assert all(c.name in durable and c.relied_on for c in stands_on)


@WORLDS
def test_what_is_being_written_or_in_doubt_is_never_permitted_nor_stood_on(policy: Policy) -> None:
    for decided in plans(policy):
        open_ones = {d.checkpoint.name for d in decided.decisions if not d.checkpoint.state.settled}
        assert not open_ones & names(decided.prune)
        for pointed in POINTED:
            assert not open_ones & {c.name for c in relied_on(decided, pointed)}
            allowed = permit(decided, durable=frozenset(NAMES), pointed=pointed)
            assert not open_ones & {*names(allowed.prunes), *allowed.held}


@WORLDS
def test_what_the_pointer_names_is_never_permitted_nor_anything_beside_a_pointer_that_dangles(policy: Policy) -> None:
    for decided in plans(policy):
        for durable, pointed, stays in itertools.product(SUBSETS, POINTED, (False, True)):
            allowed = permit(decided, durable=durable, pointed=pointed, stays=stays)
            assert pointed not in names(allowed.prunes)
            target = [
                d.checkpoint for d in decided.decisions if d.checkpoint.name == pointed and d.checkpoint.relied_on
            ]
            if pointed and not stays and not (target and pointed in durable):
                assert not allowed.prunes


@WORLDS
def test_one_more_that_is_durable_never_permits_less(policy: Policy) -> None:
    for decided in plans(policy):
        for pointed, stays in itertools.product(POINTED, (False, True)):
            allowed = {
                each: names(permit(decided, durable=each, pointed=pointed, stays=stays).prunes) for each in SUBSETS
            }
            for durable, name in itertools.product(SUBSETS, NAMES):
                assert allowed[durable] <= allowed[durable | {name}]


@WORLDS
def test_after_what_is_permitted_k_complete_ones_remain_or_all_that_there_were(policy: Policy) -> None:
    for decided in plans(policy):
        fit = {d.checkpoint.name for d in decided.decisions if d.checkpoint.fit}
        for durable, pointed in itertools.product(SUBSETS, POINTED):
            gone = names(permit(decided, durable=durable, pointed=pointed).prunes)
            left = {d.checkpoint.name for d in decided.decisions if d.checkpoint.relied_on} - gone
            if gone:
                assert len(left & durable) >= min(policy.max_keep or 1, len(fit))


@WORLDS
def test_where_all_is_durable_and_the_pointer_moved_only_what_is_unread_or_gone_holds_anything_back(
    policy: Policy,
) -> None:
    for decided in plans(policy):
        newest = decided.newest.name if decided.newest else None
        allowed = permit(decided, durable=frozenset(NAMES), pointed=newest)
        unread = any(d.checkpoint.content is Content.UNREAD for d in decided.decisions)
        assert allowed.prunes == decided.prune or unread or newest is None


def test_a_series_that_is_not_durable_holds_back_no_other() -> None:
    other = "iter_{}.pth"
    found = [checkpoint(step, series=series) for step in (1, 2) for series in (SERIES, other)]
    decided = decide(found, Policy(max_keep=1, rule="newest"))
    allowed = permit(decided, durable={"iter_2.pth"}, pointed="iter_2.pth")
    assert names(allowed.prunes) == {"iter_1.pth"}
    assert allowed.held == {"epoch_1.pth": "epoch_2.pth is not on stable storage yet"}


NOT_FLUSHED = "epoch_4.pth is not on stable storage yet"
DANGLING = "the pointer names epoch_1.pth, which is not complete and durable"
UNREAD = ("broken", "whole", "broken", "unread")
LOST = ("broken", *["fsync failed"] * 3)


@pytest.mark.parametrize(("why", "states", "max_keep", "durable", "pointed"), [
    pytest.param(NOT_FLUSHED, ["whole"] * 4, 1, [1], "epoch_1.pth", id="what it stands on is not flushed"),
    pytest.param(DANGLING, ["whole"] * 4, 1, [4], "epoch_1.pth", id="the pointer names what is not durable"),
    pytest.param("the pointer names it", ["whole"] * 4, 1, [1, 4], "epoch_1.pth", id="the pointer names it"),
    pytest.param("epoch_4.pth is still to be read", UNREAD, 2, [2], "epoch_2.pth", id="too few are read"),
    pytest.param("there is no complete one to rely on", LOST, 1, [], None, id="nothing is left"),
])  # fmt: skip
def test_what_is_held_back_says_what_it_waits_for(
    why: str, states: list[str], max_keep: int, durable: list[int], pointed: str | None
) -> None:
    policy = Policy(max_keep=max_keep, interval=1)
    before = decide([checkpoint(step) for step in STEPS], policy)
    decided = decide([checkpoint(step, states[step - 1]) for step in STEPS], policy, before.memory)
    allowed = permit(decided, durable={SERIES.format(step) for step in durable}, pointed=pointed)
    assert allowed.held["epoch_1.pth"] == why


@WORLDS
def test_before_any_pass_a_look_holds_back_only_what_no_pass_could_do(policy: Policy) -> None:
    for decided in plans(policy):
        for pointed in POINTED:
            held = held_back(decided, met=None, pointed=pointed, is_there=False)
            newest = decided.newest.name if decided.newest else pointed
            stays = pointer_stays(decided, pointed, is_there=False)
            sure = permit(decided, durable=frozenset(NAMES), pointed=pointed if stays else newest, stays=stays)
            assert held == sure.held


@WORLDS
def test_what_passes_have_met_holds_back_until_it_is_durable_and_read(policy: Policy) -> None:
    for decided in plans(policy):
        stands_on = {c.name for series in decided.series for c in (*series.relied_on, *series.best)}
        for durable, unread in itertools.product(SUBSETS, (frozenset(), frozenset(NAMES[-1:]))):
            seen = {name: replace(s, durability=Durability(name in durable)) for name, s in decided.memory.seen.items()}
            met = replace(decided.memory, seen=seen)
            held = held_back(awaiting(decided, unread), met=met, pointed=None, is_there=False)
            assert held.keys() <= names(decided.prune)
            if stands_on - (durable - unread):
                assert held.keys() == names(decided.prune)
                assert {reason.kind for reason in held.values()} == {Kind.WAITS}


@WORLDS
def test_a_pass_relies_on_the_newest_and_on_what_the_pointer_names_and_never_on_what_cannot_be(policy: Policy) -> None:
    for decided in plans(policy):
        for pointed in POINTED:
            wanted = relied_on(decided, pointed)
            assert len({c.name for c in wanted}) == len(wanted)
            assert all(c.relied_on for c in wanted)
            assert set(decided.relied_on) <= set(wanted)
            assert decided.newest is None or decided.newest in wanted


def test_a_pass_relies_on_the_newest_and_the_pointers_though_nothing_is_to_be_pruned() -> None:
    decided = decide([checkpoint(step) for step in STEPS], Policy())
    for pointed, wanted in ((None, {4}), ("epoch_2.pth", {2, 4}), ("epoch_4.pth", {4}), ("iter_9.pth", {4})):
        assert {c.step for c in relied_on(decided, pointed)} == wanted


def test_what_a_pass_met_says_nothing_of_a_save_that_was_written_over_it() -> None:
    decided = decide([checkpoint(1), checkpoint(2)], Policy(max_keep=1, rule="newest"))
    for inode, held in ((0, {"epoch_1.pth"}), (7, set())):
        seen = {name: replace(known, inode=inode) for name, known in decided.memory.seen.items()}
        met = replace(decided.memory, seen=seen)
        assert held_back(decided, met=met, pointed=None, is_there=False).keys() == held


def test_the_pointer_stays_on_what_is_newer_only_while_it_is_written_over_or_another_policys() -> None:
    policy = Policy(max_keep=1, interval=1)
    for state in STATES:
        memory = decide([checkpoint(step) for step in STEPS], policy).memory
        decided = decide([*map(checkpoint, STEPS[:-1]), checkpoint(4, state)], policy, memory)
        assert pointer_stays(decided, "epoch_4.pth", is_there=True) == (state == "in flight")
        assert not pointer_stays(decided, "epoch_2.pth", is_there=True)
        assert not pointer_stays(decided, None, is_there=False)
    both = decide([checkpoint(1), checkpoint(2, series="iter_{}.pth")], Policy())
    alone = decide([checkpoint(1)], Policy(templates=(SERIES,)), both.memory)
    assert [pointer_stays(alone, "iter_2.pth", is_there=there) for there in (False, True)] == [False, True]


# --- the trash -----------------------------------------------------------------------------------------------------


def test_the_trash_is_kept_as_asked_for_or_an_hour_after_a_large_prune_if_there_is_room() -> None:
    first = decide([checkpoint(step) for step in STEPS], Policy(max_keep=1, rule="newest"))
    assert len(first.prune) > 1
    later = decide([checkpoint(step) for step in STEPS[2:]], Policy(max_keep=1, rule="newest"), first.memory)
    for decided, usual_s in ((first, LARGE_PRUNE_TTL_S), (later, 0.0)):
        assert trash_ttl_s(decided, decided.prune, asked_s=None, free_bytes=2) == usual_s
        assert trash_ttl_s(decided, decided.prune, asked_s=None, free_bytes=1) == 0.0
        for asked_s in (0.0, 7.0):
            assert trash_ttl_s(decided, decided.prune, asked_s=asked_s, free_bytes=0) == asked_s


def test_what_goes_by_a_changed_k_can_be_taken_back_for_an_hour_though_it_is_but_one() -> None:
    four = [checkpoint(step) for step in STEPS]
    before = decide(four, Policy(max_keep=2, interval=1))
    left = [d.checkpoint for d in before.decisions if d.decision != PRUNE]
    decided = plan(
        left, Policy(max_keep=1, interval=1), memory=before.memory, now_ns=10**9, protected={}, declared={},
        ended=lambda series: True,
    )  # fmt: skip
    assert names(decided.prune) == {"epoch_3.pth"}
    for asked_s, free_bytes, kept_s in ((None, 2, LARGE_PRUNE_TTL_S), (None, 1, 0.0), (7.0, 0, 7.0)):
        assert trash_ttl_s(decided, decided.prune, asked_s=asked_s, free_bytes=free_bytes) == kept_s


def test_a_budget_that_the_trash_would_exceed_keeps_none() -> None:
    for limit in range(1, 5):
        decided = decide([checkpoint(step) for step in STEPS], Policy(max_bytes=limit))
        assert sum(d.decision == PRUNE for d in decided.decisions) == 4 - limit
        assert trash_ttl_s(decided, decided.prune, asked_s=9.0, free_bytes=0) == (9.0 if limit == 4 else 0.0)


def test_of_the_trash_no_more_goes_than_the_budget_takes_and_the_oldest_first() -> None:
    for sizes in itertools.product(range(4), repeat=4):
        for limit in range(10):
            trash = list(zip("abcd", sizes, strict=True))
            over = over_in_trash(Budget(limit, 3), trash)
            left = 3 + sum(size for name, size in trash if name not in over)
            assert over == [name for name, _ in trash[: len(over)]]
            assert left <= limit or len(over) == len(trash)
            assert not over or left + dict(trash)[over[-1]] > limit
