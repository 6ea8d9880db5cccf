"""What the keepers keep, and the laws of a plan with keepers and a budget, over every subset of a small world."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import pytest

from ckptd.core.checkpoint import Checkpoint, Content, Durability, State
from ckptd.core.entry import Entry
from ckptd.core.keepers import KeepBest, KeepWithin
from ckptd.core.memory import Memory
from ckptd.core.plan import KEEP, PRUNE, SKIP, Plan, plan
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind, Reason
from ckptd.errors import UsageError

NOW = 10**12
STEPS = range(1, 8)
RUNS = [run for n in range(8) for run in itertools.combinations(STEPS, n)]  # all 2**7
SCORES = {1: 0.5, 2: 0.9, 3: math.nan, 5: 0.9, 6: 0.1}  # 4 and 7 have none
KEEPERS: list[dict[str, Any]] = [
    {"keep_every": 3},
    {"keep_best": ("mAP:max",)},
    {"keep_best": ("mAP:min:2",)},
    {"keep_within_s": 2.0},
    {"max_bytes": 30},
]
RULES: list[dict[str, Any]] = [
    {"max_keep": 1, "interval": 1}, {"max_keep": 2, "interval": 2}, {"max_keep": 2, "rule": "newest"},
]  # fmt: skip
POLICIES = [
    {**rule, **{key: value for keeper in chosen for key, value in keeper.items()}}
    for rule in RULES
    for n in range(len(KEEPERS) + 1)
    for chosen in itertools.combinations(KEEPERS, n)
    if sum("keep_best" in keeper for keeper in chosen) < 2
]
NOTHING_SEEN = Memory()


def epochs(*steps: int, scores: Mapping[int, float] = SCORES, start: int = 0) -> list[Checkpoint]:
    """Checkpoints of 10 bytes, written one second after the other, with their scores."""
    return [
        Checkpoint(
            Entry("epoch_{}.pth", f"epoch_{s}.pth", s, 10, (start + at) * 10**9, allocated_bytes=10),
            metrics=(("mAP", scores[s]),) if s in scores else (),
        )
        for at, s in enumerate(steps, 1)
    ]  # fmt: skip


def decide(
    found: Iterable[Checkpoint], policy: Policy, memory: Memory = NOTHING_SEEN, protected: Iterable[str] = ()
) -> Plan:
    reasons = {name: [Reason(Kind.PINNED, "pinned")] for name in protected}
    return plan(found, policy, memory=memory, now_ns=NOW, protected=reasons, declared={})


def steps_of(decided: Plan, decision: str) -> set[int]:
    return {d.checkpoint.step for d in decided.decisions if d.decision == decision}


def name_of(policy: Mapping[str, Any]) -> str:
    return " ".join(f"{key}={value}" for key, value in policy.items())


# --- what each keeps ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("keeper", "steps", "expected"), [
    pytest.param({"keep_every": 5}, [4, 5, 9, 10, 11, 12], [5, 10, 12], id="milestones stay"),
    pytest.param({"keep_best": ("mAP:max",)}, [1, 2, 5, 6], [2, 6], id="of two equals the first stays"),
    pytest.param({"keep_best": ("mAP:min",)}, [1, 2, 5, 6, 7, 8], [6, 7, 8], id="the smallest, and the unscored"),
    pytest.param({"keep_best": ("mAP:max:2",)}, [1, 2, 3, 5, 6], [2, 5, 6], id="the two best"),
    pytest.param({"keep_best": ("mAP:max:3",)}, [1, 3, 6], [1, 3, 6], id="NaN is worst, but better than none"),
    pytest.param({"keep_best": ("mAP:max",)}, [3, 5, 6], [5, 6], id="NaN is worse than any number"),
    pytest.param({"keep_best": ("mAP:max",)}, [4, 6, 7, 8], [6, 7, 8], id="unscored stays what is newer than a score"),
    pytest.param({"keep_best": ("loss:min",)}, [1, 2, 3], [1, 2, 3], id="nothing goes before the first score"),
    pytest.param({"keep_within_s": 2.0}, [1, 2, 3, 4, 5], [3, 4, 5], id="the latest seconds, from the newest on"),
])  # fmt: skip
def test_a_keeper_keeps_what_it_says(keeper: dict[str, Any], steps: list[int], expected: list[int]) -> None:
    assert expected == sorted(steps_of(decide(epochs(*steps), Policy(max_keep=1, rule="newest", **keeper)), KEEP))


@pytest.mark.parametrize("unread", [{2}, {1, 2}])
def test_until_the_best_was_read_what_would_be_the_best_without_it_stays(unread: set[int]) -> None:
    policy = Policy(max_keep=1, rule="newest", keep_best=("mAP:max",))
    found = epochs(1, 2, 3, scores={1: 0.8, 2: 0.9, 3: 0.1})
    decided = decide([replace(c, content=Content.UNREAD if c.step in unread else c.content) for c in found], policy)
    assert not steps_of(decided, PRUNE)
    assert steps_of(decide(found, policy), PRUNE) == {1}


def test_each_keeper_names_itself_and_its_score_in_the_reason() -> None:
    policy = Policy(max_keep=1, rule="newest", keep_every=2, keep_best=("mAP:max",), keep_within_s=6.0)
    reasons = {d.checkpoint.step: d.reasons for d in decide(epochs(1, 2, 5, 6), policy).decisions}
    assert reasons[2] == (
        "a milestone of --keep-every 2",
        "mAP 0.9 is among the best for --keep-best mAP:max",
        "within --keep-within 6s of the newest",
    )


def test_what_a_keeper_let_go_is_owed_and_goes_by_the_stepped_rule() -> None:
    """Epoch 1 is walked over while it is the best, and goes once 5 is better."""
    policy = Policy(max_keep=1, interval=1, keep_best=("mAP:max",))
    scores = {1: 0.5, 2: 0.1, 3: 0.1}
    memory = decide(epochs(1, scores=scores), policy).memory
    for n in (2, 3):
        decided = decide(epochs(*range(1, n + 1), scores=scores), policy, memory)
        memory = decided.memory
        assert 1 in steps_of(decided, KEEP)
    better = epochs(1, 2, 3, 4, scores={**scores, 4: 0.7})
    assert steps_of(decide(better, policy, memory), PRUNE) == {1, 2, 3}


def test_the_best_is_read_and_durable_before_others_go_because_of_it() -> None:
    found = epochs(1, 2, 3, 4, scores={1: 0.5, 2: 0.9, 3: 0.1, 4: 0.2})
    policy = Policy(max_keep=1, rule="newest", keep_best=("mAP:max",))
    assert {c.step for c in decide(found, policy).relied_on} == {2, 4}
    unread = [found[0], replace(found[1], content=Content.UNREAD), *found[2:]]
    decided = decide(unread, policy)
    assert {c.step for c in decided.relied_on} == {1, 4}, "the best of those that can be relied on"
    assert {1, 2, 4} == steps_of(decided, KEEP), "the unread one takes nobody's place, and stays"


@pytest.mark.parametrize(
    "spoiled", [{"state": State.INCOMPLETE}, {"state": State.DOUBTFUL}, {"durability": Durability.FAILED}]
)
@pytest.mark.parametrize("keeper", [{"keep_every": 4}, {"keep_best": ("mAP:max",)}, {"keep_within_s": 2.0}])
def test_what_a_keeper_keeps_stays_whatever_became_of_it(keeper: dict[str, Any], spoiled: dict[str, Any]) -> None:
    found = epochs(4, 5, 6, scores={4: 0.9, 5: 0.5, 6: 0.6})
    broken = [replace(found[0], **spoiled), *found[1:]]
    assert steps_of(decide(broken, Policy(max_keep=2, interval=1, **keeper)), PRUNE) == set()


def test_the_best_of_the_broken_takes_nobodys_place() -> None:
    found = epochs(1, 2, 3, 4, scores={1: 0.9, 2: 0.7, 3: 0.1, 4: 0.2})
    broken = [replace(found[0], state=State.INCOMPLETE), *found[1:]]
    decided = decide(broken, Policy(max_keep=1, rule="newest", keep_best=("mAP:max",)))
    assert steps_of(decided, PRUNE) == {3}
    assert {c.step for c in decided.relied_on} == {2, 4}


def test_a_broken_one_with_a_score_lets_none_go_that_waits_for_its_own() -> None:
    found = epochs(1, 2, 3, 4, scores={1: 0.5, 3: 0.9})
    broken = [*found[:2], replace(found[2], state=State.INCOMPLETE), found[3]]
    decided = decide(broken, Policy(max_keep=1, rule="newest", keep_best=("mAP:max",)))
    assert steps_of(decided, PRUNE) == set()


def test_a_broken_one_that_no_keeper_keeps_goes_once_enough_complete_ones_are_there() -> None:
    broken = [replace(epochs(4)[0], state=State.INCOMPLETE), *epochs(5, 6, start=1)]
    assert steps_of(decide(broken, Policy(max_keep=2, interval=1, keep_every=3)), PRUNE) == {4}


def test_what_is_in_doubt_stays_and_carries_nothing() -> None:
    found = [replace(c, state=State.DOUBTFUL) if c.step > 2 else c for c in epochs(1, 2, 3, 4)]
    decided = decide(found, Policy(max_keep=1, rule="newest", max_bytes=1))
    assert (steps_of(decided, PRUNE), {c.step for c in decided.relied_on}) == ({1}, {2})
    assert decided.newest == found[1]


# --- laws -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chosen", POLICIES, ids=name_of)
def test_with_keepers_and_budgets_the_laws_of_a_plan_hold(chosen: dict[str, Any]) -> None:
    policy = Policy(**chosen)
    for run in RUNS:
        found = epochs(*run)
        decided = decide(found, policy)
        assert sorted(run) == sorted(d.checkpoint.step for d in decided.decisions), "keep and prune cover"
        assert all(d.reasons for d in decided.decisions)
        assert decided == decide(found[::-1], policy), "input order changes nothing"
        gone = steps_of(decided, PRUNE)
        assert not set(run[-chosen["max_keep"] :]) & gone, "the K newest stay"
        kept = [d.checkpoint for d in decided.decisions if d.decision != PRUNE]
        again = decide(kept, policy, decided.memory)
        assert not again.prune, "planning what was kept prunes nothing"
        for step in sorted(gone)[:2]:
            held = decide(found, policy, protected=[f"epoch_{step}.pth"])
            assert step not in steps_of(held, PRUNE), "a protection beats all"
            if policy.max_bytes is None:
                assert gone - {step} == steps_of(held, PRUNE)


@pytest.mark.parametrize("chosen", [c for c in POLICIES if "max_bytes" not in c], ids=name_of)
def test_one_more_keeper_never_prunes_more(chosen: dict[str, Any]) -> None:
    fewer = Policy(**chosen)
    more = [Policy(**chosen, **keeper) for keeper in KEEPERS[:-1] if not keeper.keys() & chosen.keys()]
    for run in RUNS:
        gone = steps_of(decide(epochs(*run), fewer), PRUNE)
        for policy in more:
            assert steps_of(decide(epochs(*run), policy), PRUNE) <= gone


@pytest.mark.parametrize("chosen", [c for c in POLICIES if "max_bytes" not in c][::3], ids=name_of)
def test_keepers_of_one_series_never_affect_another(chosen: dict[str, Any]) -> None:
    policy = Policy(**chosen)
    iters = [
        replace(c, entry=replace(c.entry, series="iter_{}.pth", name=f"iter_{c.step}.pth"))
        for c in epochs(3, 4, 5, 6, start=3, scores={5: 9.0})
    ]
    alone = [(d.checkpoint, d.decision, d.reasons) for d in decide(iters, policy).decisions]
    for run in RUNS[::5]:
        both = decide([*epochs(*run), *iters], policy).decisions
        assert alone == [(d.checkpoint, d.decision, d.reasons) for d in both if d.checkpoint.series == "iter_{}.pth"]


# --- the budget -----------------------------------------------------------------------------------------------


def test_a_budget_takes_the_oldest_that_nothing_else_keeps_across_all_series() -> None:
    iters = [
        replace(c, entry=replace(c.entry, series="iter_{}.pth", name=f"iter_{c.step}.pth"))
        for c in epochs(10, 20, start=2, scores={})
    ]
    decided = decide([*epochs(1, 2), *iters], Policy(max_bytes=25))
    assert [d.checkpoint.name for d in decided.prune] == ["epoch_1.pth", "iter_10.pth"]
    assert decided.budget is not None
    assert (decided.budget.kept_bytes, decided.budget.short_bytes) == (20, 0)


def test_a_budget_never_takes_what_a_keeper_a_protection_or_the_newest_keeps_and_says_what_is_short() -> None:
    policy = Policy(max_bytes=5, max_keep=2, rule="newest", keep_every=2)
    decided = decide(epochs(1, 2, 3, 4, 5), policy, protected=["epoch_3.pth"])
    assert steps_of(decided, PRUNE) == {1}
    assert steps_of(decided, SKIP) == {3}
    assert decided.budget is not None
    assert decided.budget.short_bytes == 35


def test_without_max_keep_a_budget_leaves_the_newest_complete_one_however_small_it_is() -> None:
    assert steps_of(decide(epochs(1, 2, 3), Policy(max_bytes=1)), KEEP) == {3}


def test_a_budget_takes_nothing_in_doubt_nor_what_lies_ahead_of_a_resumed_run_nor_what_was_brought_back() -> None:
    policy = Policy(max_bytes=1)
    assert not decide(epochs(3, 2, 1), policy).prune, "order in doubt"
    before = decide(epochs(7, 8, 9), Policy())
    assert steps_of(decide([*epochs(7, 8, 9), *epochs(2, start=10)], policy, before.memory), KEEP) == {2, 7, 8, 9}
    before = decide(epochs(3, 4, start=10), Policy())
    assert steps_of(decide([*epochs(3, 4, start=10), *epochs(2)], policy, before.memory), KEEP) == {2, 4}


def test_a_budget_never_takes_what_is_newer_than_the_newest_that_was_read() -> None:
    found = epochs(1, 2, 3)
    unread = [found[0], found[1], replace(found[2], content=Content.UNREAD)]
    assert steps_of(decide(unread, Policy(max_bytes=1)), PRUNE) == {1}


# --- what can never be meant ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("wrong", "says"), [
    pytest.param({"keep_every": 0}, "keep_every", id="every 0th"),
    pytest.param({"keep_best": ("mAP",)}, "mAP", id="no direction"),
    pytest.param({"keep_best": ("mAP:up",)}, "min or METRIC:max", id="an unknown direction"),
    pytest.param({"keep_best": ("mAP:max:0",)}, "keep_best is 0", id="none of the best"),
    pytest.param({"keep_best": ("mAP:max:many",)}, "'many'", id="no number of the best"),
    pytest.param({"keep_best": (":max",)}, "name a metric", id="no metric"),
    pytest.param({"keep_best": ("mAP:max", "mAP:min")}, "mAP twice", id="both ways"),
    pytest.param({"keep_within_s": 0.0}, "keep_within", id="within no time"),
    pytest.param({"keep_within_s": math.nan}, "keep_within", id="within NaN"),
    pytest.param({"max_bytes": 0}, "max_bytes", id="a budget of nothing"),
])  # fmt: skip
def test_a_keeper_that_can_never_be_meant_is_refused_by_name(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Policy(max_keep=3, **wrong)


def test_a_metric_may_hold_colons_itself() -> None:
    assert KeepBest.from_text("eval:acc:max:3") == KeepBest("eval:acc", "max", 3)
    assert KeepBest.from_text("eval:acc:min") == KeepBest("eval:acc", "min")


def test_a_budget_takes_what_nothing_can_be_resumed_from_before_anything_whole() -> None:
    broken = {2, 3, 6}
    found = [
        replace(c, state=State.INCOMPLETE if c.step in broken else State.COMPLETE) for c in epochs(1, 2, 3, 4, 5, 6)
    ]
    for limit, gone in ((60, set()), (50, {2}), (40, {2, 3}), (30, {1, 2, 3}), (1, {1, 2, 3, 4})):
        assert steps_of(decide(found, Policy(max_bytes=limit)), PRUNE) == gone


@pytest.mark.parametrize("text", ["mAP:max", "eval_loss:min", "mAP:max:2", "eval:acc:max:3"])
def test_a_keeper_is_named_as_it_was_asked_for(text: str) -> None:
    assert str(KeepBest.from_text(text)) == f"--keep-best {text}"


def test_a_direction_is_min_or_max_and_a_time_is_above_0_and_has_an_end() -> None:
    with pytest.raises(UsageError, match="say which is best"):
        KeepBest("mAP", "best")
    for seconds in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(UsageError):
            KeepWithin(seconds)
