"""Laws of the plan (docs/design.md, section 12), over every subset of a small world, and what each reason says."""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from ckptd.core.checkpoint import Checkpoint, Content, Durability, State
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.plan import KEEP, PRUNE, SKIP, Plan, plan
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind, Reason
from ckptd.core.schedule import Schedule

NOW = 10**9
STEPS = range(1, 9)
RUNS = [run for n in range(9) for run in itertools.combinations(STEPS, n)]  # all 2**8
POLICIES = [
    *(Policy(max_keep=k, interval=i) for k in (1, 2, 3) for i in (1, 2, 3)),
    *(Policy(max_keep=k, rule="newest") for k in (1, 2, 5)),
    Policy(max_keep=2),
]


def epochs(
    *steps: int, series: str = "epoch_{}.pth", state: State = State.COMPLETE, start: int = 0
) -> list[Checkpoint]:
    """Checkpoints written one after the other, in the order given."""
    return [Checkpoint(Entry(series, series.format(s), s, 1, start + at), state) for at, s in enumerate(steps, 1)]


NOTHING_SEEN = Memory()


def decide(
    found: Iterable[Checkpoint], policy: Policy, memory: Memory = NOTHING_SEEN, protected: Sequence[str] = ()
) -> Plan:
    reasons = {name: [Reason(Kind.PINNED, "pinned")] for name in protected}
    return plan(found, policy, memory=memory, now_ns=NOW, protected=reasons, declared={})


def steps_of(decided: Plan, decision: str) -> set[int]:
    return {d.checkpoint.step for d in decided.decisions if d.decision == decision}


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_keep_and_prune_are_disjoint_and_cover_and_the_newest_survive(policy: Policy) -> None:
    for run in RUNS:
        decided = decide(epochs(*run), policy)
        assert sorted(run) == sorted(d.checkpoint.step for d in decided.decisions)
        assert policy.max_keep is not None
        assert not set(run[-policy.max_keep :]) & steps_of(decided, PRUNE)
        assert all(d.reasons for d in decided.decisions)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_newest_survive_though_some_of_them_are_still_to_be_read(policy: Policy) -> None:
    assert policy.max_keep is not None
    for run in RUNS[::2]:
        newest = run[-policy.max_keep :]
        for unread in itertools.chain.from_iterable(itertools.combinations(newest, n) for n in range(len(newest) + 1)):
            decided = decide(
                [replace(c, content=Content.UNREAD if c.step in unread else c.content) for c in epochs(*run)], policy
            )
            assert not {*newest} & steps_of(decided, PRUNE), (run, unread)
            assert not {*unread} & {c.step for c in decided.relied_on}


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_input_order_changes_nothing(policy: Policy) -> None:
    for run in RUNS[::3]:
        found = epochs(*run)
        assert decide(found, policy) == decide(found[::-1], policy) == decide(found[1:] + found[:1], policy)


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_planning_what_was_kept_prunes_nothing(policy: Policy) -> None:
    for run in RUNS:
        decided = decide(epochs(*run), policy)
        kept = [d.checkpoint for d in decided.decisions if d.decision != PRUNE]
        assert not decide(kept, policy, decided.memory).prune


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_protection_never_prunes_more_and_what_it_vetoes_goes_without_it(policy: Policy) -> None:
    for run in RUNS[::5]:
        free = decide(epochs(*run), policy)
        gone = steps_of(free, PRUNE)
        for step in gone:
            held = decide(epochs(*run), policy, protected=[f"epoch_{step}.pth"])
            assert gone - {step} == steps_of(held, PRUNE)
            assert {step} == steps_of(held, SKIP) - steps_of(free, SKIP)
            kept = [d.checkpoint for d in held.decisions if d.decision != PRUNE]
            assert {step} == steps_of(decide(kept, policy, held.memory), PRUNE)


@pytest.mark.parametrize("kind", Kind, ids=lambda kind: kind.value)
def test_a_prune_becomes_a_skip_by_a_kind_that_protects_and_is_kept_by_any_other(kind: Kind) -> None:
    policy = Policy(max_keep=1, rule="newest")
    for run in RUNS[::9]:
        for gone in decide(epochs(*run), policy).prune:
            held = plan(
                epochs(*run), policy, memory=Memory(), now_ns=NOW, declared={},
                protected={gone.checkpoint.name: [Reason(kind, "so it is said")]},
            )  # fmt: skip
            (found,) = [d for d in held.decisions if d.checkpoint == gone.checkpoint]
            assert (found.decision, found.reasons) == (SKIP if kind.protects else KEEP, ("so it is said",))


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_the_kinds_of_a_reason_tell_the_decision(policy: Policy) -> None:
    states = {State.INCOMPLETE: Kind.BROKEN, State.IN_FLIGHT: Kind.IN_FLIGHT, State.DOUBTFUL: Kind.IN_DOUBT}
    for run in RUNS[::3]:
        for state, step in ((State.COMPLETE, 0), *itertools.product(states, run)):
            found = [replace(c, state=state) if c.step == step else c for c in epochs(*run)]
            for d in decide(found, policy).decisions:
                kinds = {reason.kind for reason in d.reasons}
                assert kinds
                assert (d.decision == PRUNE) == (kinds <= {Kind.RULE, Kind.BROKEN} and "will be" not in d.reasons[0])
                assert d.decision != SKIP or any(kind.protects for kind in kinds)
                of_state = {states[d.checkpoint.state]} if d.checkpoint.state in states else set()
                assert kinds & set(states.values()) <= of_state
                assert d.checkpoint.state.settled or of_state <= kinds


def test_a_reason_is_its_text_and_keeps_its_kind_where_it_is_copied() -> None:
    reason = Reason(Kind.PINNED, "pinned")
    for same in (copy.copy(reason), copy.deepcopy(reason), pickle.loads(pickle.dumps(reason))):
        assert (same, same.kind, f"{same}", json.dumps(same)) == ("pinned", Kind.PINNED, "pinned", '"pinned"')


def test_under_newest_a_larger_k_never_prunes_more() -> None:
    for run in RUNS:
        pruned = [steps_of(decide(epochs(*run), Policy(max_keep=k, rule="newest")), PRUNE) for k in range(1, 6)]
        assert all(more >= less for more, less in itertools.pairwise(pruned))


def test_under_stepped_a_larger_k_can_prune_more_as_the_hook_does() -> None:
    """2, 4, 6, 10 with interval 2: with K=1 the hole at 8 stops the last walk, with K=2 it begins below the hole."""
    saved: dict[int, set[int]] = {}
    for k in (1, 2):
        everything = decide(epochs(2, 4, 6), Policy())
        saved[k] = steps_of(decide(epochs(2, 4, 6, 10), Policy(max_keep=k, interval=2), everything.memory), PRUNE)
    assert saved == {1: set(), 2: {2, 4}}


@pytest.mark.parametrize("policy", POLICIES, ids=repr)
def test_a_series_never_affects_another(policy: Policy) -> None:
    other = epochs(3, 4, 5, 6, 7, series="iter_{}.pth", start=3)
    alone = decide(other, policy)
    for run in RUNS[::7]:
        both = decide(epochs(*run) + other, policy)
        iters = [d for d in both.decisions if d.checkpoint.series == "iter_{}.pth"]
        assert [(d.checkpoint, d.decision, d.reasons) for d in alone.decisions] == [
            (d.checkpoint, d.decision, d.reasons) for d in iters
        ]


@pytest.mark.parametrize(("steps", "policy", "step", "reason"), [
    pytest.param([3, 6, 9, 10], Policy(max_keep=1, interval=3), 9, "off the grid of interval 3", id="off the grid"),
    pytest.param([1, 3, 5], Policy(max_keep=1, interval=1), 3, "stops at epoch_4.pth", id="behind a hole"),
    pytest.param([1, 2, 3], Policy(), 1, "no --max-keep", id="no policy"),
    pytest.param([4, 3], Policy(max_keep=1, interval=1), 4, "in doubt", id="first met in doubt"),
    pytest.param([0, 1, 2, 3], Policy(max_keep=1, interval=1), 0, "step 0", id="step 0"),
])  # fmt: skip
def test_what_stays_beyond_k_says_why(steps: list[int], policy: Policy, step: int, reason: str) -> None:
    decided = decide(epochs(*steps), policy)
    (found,) = [d for d in decided.decisions if d.checkpoint.step == step]
    assert found.decision == KEEP
    assert reason in found.reasons[0]


def test_a_run_resumed_from_an_older_checkpoint_keeps_what_lies_above_until_it_is_reached() -> None:
    for policy in (Policy(max_keep=2, interval=1), Policy(max_keep=2, rule="newest")):
        before = decide(epochs(5, 6, 7, 8), Policy())
        decided = decide([*epochs(5, 6, 7, 8), *epochs(6, start=10)][::-1][:4], policy, before.memory)
        assert 8 not in steps_of(decided, PRUNE), policy


def test_what_lies_above_is_not_reached_by_a_save_that_is_still_to_be_read() -> None:
    policy = Policy(max_keep=1, rule="newest")
    before = decide([*epochs(5), *epochs(1, start=10)], Policy())
    unread = replace(epochs(7, start=20)[0], content=Content.UNREAD)
    for newest, gone in ((unread, set()), (replace(unread, content=Content.CHECKED), {1, 5})):
        decided = decide([*epochs(5), *epochs(1, start=10), newest], policy, before.memory)
        assert steps_of(decided, PRUNE) == gone


def test_newest_is_by_writing_not_by_number() -> None:
    before = decide(epochs(7, 8, 9), Policy())
    decided = decide([*epochs(7, 8, 9), *epochs(2, start=10)], Policy(max_keep=1, interval=1), before.memory)
    assert decided.newest is not None
    assert decided.newest.step == 2


def test_a_file_brought_back_is_kept_is_never_newest_and_walks_nothing() -> None:
    before = decide(epochs(3, 4, 5, start=10), Policy())
    for policy in (Policy(max_keep=1, interval=1), Policy(max_keep=1, rule="newest")):
        decided = decide([*epochs(3, 4, 5, start=10), *epochs(2)], policy, before.memory)
        assert decided.newest is not None
        assert (decided.newest.step, 2 in steps_of(decided, KEEP)) == (5, True)
    assert not decide([*epochs(3, 4, 5, start=10), *epochs(2)], Policy(max_keep=1, interval=1), before.memory).prune


def test_a_future_time_of_writing_counts_as_now_and_the_next_save_is_still_newer() -> None:
    first = decide([*epochs(1, 2), Checkpoint(Entry("epoch_{}.pth", "epoch_9.pth", 9, 1, NOW * 2))], Policy())
    found = [*epochs(1, 2), Checkpoint(Entry("epoch_{}.pth", "epoch_9.pth", 9, 1, NOW * 2))]
    later = plan(
        [*found, Checkpoint(Entry("epoch_{}.pth", "epoch_3.pth", 3, 1, NOW + 5))], Policy(),
        memory=first.memory, now_ns=NOW + 10, protected={}, declared={},
    )  # fmt: skip
    assert later.newest is not None
    assert later.newest.step == 3


def test_what_was_written_after_the_clock_was_read_has_the_order_of_its_writing() -> None:
    before = decide([*epochs(1, 2), *epochs(1000, series="iter_{}.pth", start=5)], Policy())
    while_looking = [*epochs(2000, series="iter_{}.pth", start=NOW), *epochs(3, start=NOW + 1)]
    found = [*epochs(1, 2), *epochs(1000, series="iter_{}.pth", start=5), *while_looking]
    decided = decide(found, Policy(), before.memory)
    assert decided.newest is not None
    assert decided.newest.name == "epoch_3.pth"


def test_a_save_of_a_resumed_run_is_no_file_brought_back_though_both_were_written_after_the_clock_was_read() -> None:
    before = decide(epochs(1, 2), Policy())
    decided = decide([*epochs(1, 2), *epochs(9, 3, start=NOW)], Policy(), before.memory)
    assert decided.newest is not None
    assert decided.newest.step == 3


@pytest.mark.parametrize("state", [State.INCOMPLETE, State.IN_FLIGHT])
def test_what_is_not_whole_never_counts_and_never_is_the_newest(state: State) -> None:
    found = [*epochs(1, 2, 3), *epochs(4, state=state, start=5)]
    decided = decide(found, Policy(max_keep=2, interval=1))
    assert decided.newest is not None
    assert (decided.newest.step, steps_of(decided, PRUNE)) == (3, {1})


def test_an_incomplete_one_goes_once_k_complete_ones_were_written_after_it_whatever_the_grid() -> None:
    broken = epochs(7, state=State.INCOMPLETE)
    for count, expected in ((1, set()), (2, {7})):
        decided = decide([*broken, *epochs(*range(100, 100 + count), start=5)], Policy(max_keep=2, interval=100))
        assert expected == steps_of(decided, PRUNE)


def test_a_checkpoint_whose_fsync_failed_is_not_relied_on() -> None:
    bad = Checkpoint(Entry("epoch_{}.pth", "epoch_4.pth", 4, 1, 9), durability=Durability.FAILED)
    decided = decide([*epochs(1, 2, 3), bad], Policy(max_keep=2, interval=1))
    assert decided.newest is not None
    assert (decided.newest.step, {c.step for c in decided.relied_on}) == (3, {2, 3})


@pytest.mark.parametrize(("steps", "interval", "source"), [
    pytest.param([500, 1000, 1500, 2000], 500, "inferred from 3 of 3 gaps", id="three gaps agree"),
    pytest.param([500, 1000, 1500], None, None, id="two gaps are too few"),
    pytest.param([3, 6, 9, 10], 3, "inferred from 2 of 3 gaps", id="an off-grid last save"),
    pytest.param([1, 2, 4, 6, 7], None, None, id="no strict majority"),
])  # fmt: skip
def test_the_interval_is_the_gap_of_a_strict_majority(
    steps: list[int], interval: int | None, source: str | None
) -> None:
    (series,) = decide(epochs(*steps), Policy(max_keep=3)).series
    assert (interval, source) == (series.grid.interval, series.grid.interval_from)


def test_an_inferred_interval_stays_until_another_has_the_majority() -> None:
    memory = decide(epochs(4, 8, 12, 16), Policy()).memory
    assert memory.series["epoch_{}.pth"].interval == 4
    written, intervals = [4, 8, 12, 16], []
    for step in (19, 22, 25, 28):
        written.append(step)
        memory = decide(epochs(*written), Policy(), memory).memory
        intervals.append(memory.series["epoch_{}.pth"].interval)
    assert intervals == [4, 4, 4, 3]


def test_a_given_interval_beats_a_declared_one_and_that_an_inferred_one() -> None:
    declared = {"epoch_{}.pth": Schedule("epoch_{}.pth", "epoch", interval=2, max_keep=1)}
    for policy, expected in (
        (Policy(interval=3), ("given", 3, 1)),
        (Policy(), ("declared", 2, 1)),
        (Policy(max_keep=2), ("declared", 2, 2)),
    ):
        (series,) = plan(
            epochs(1, 2, 3, 4), policy, memory=Memory(), now_ns=NOW, protected={}, declared=declared
        ).series
        assert expected == (series.grid.interval_from, series.grid.interval, series.grid.max_keep)


@pytest.mark.parametrize(("keep", "says"), [(1, "the newest"), (3, "one of the 3 newest")])
def test_the_newest_say_of_how_many_they_are(keep: int, says: str) -> None:
    decided = decide(epochs(1, 2, 3, 4), Policy(max_keep=keep, interval=1))
    assert {d.checkpoint.step: d.reasons for d in decided.decisions}[4] == (says,)
    assert sum(d.reasons == (says,) for d in decided.decisions) == keep


@pytest.mark.parametrize(("broken", "fault"), [
    pytest.param({"state": State.INCOMPLETE, "evidence": "no end record"}, "no end record", id="incomplete"),
    pytest.param({"state": State.INCOMPLETE}, "incomplete", id="without evidence"),
    pytest.param({"durability": Durability.FAILED, "evidence": "all there"}, "not on stable storage", id="not durable"),
])  # fmt: skip
@pytest.mark.parametrize(("keep", "enough"), [(1, "a newer complete one exists"), (2, "2 newer complete ones exist")])
def test_a_broken_one_says_what_is_wrong_with_it_and_what_it_goes_after(
    broken: dict[str, Any], fault: str, keep: int, enough: str
) -> None:
    first = replace(epochs(1)[0], **broken)
    for newer in (keep - 1, keep):
        decided = decide([first, *epochs(*range(2, 2 + newer), start=1)], Policy(max_keep=keep, rule="newest"))
        (about,) = (d for d in decided.decisions if d.checkpoint.step == 1)
        expected = (PRUNE, f"{fault}; {enough}") if newer == keep else (KEEP, f"{fault}; will be pruned once {enough}")
        assert (about.decision, *about.reasons) == expected


@pytest.mark.parametrize(
    ("state", "says"), [(State.IN_FLIGHT, "being written"), (State.DOUBTFUL, "not all of one save")]
)
def test_what_is_not_settled_says_so_with_its_evidence_or_without(state: State, says: str) -> None:
    for evidence in ("", "open for writing"):
        found = [replace(epochs(1)[0], state=state, evidence=evidence), *epochs(2, 3, start=1)]
        (about,) = (d for d in decide(found, Policy(max_keep=1, rule="newest")).decisions if d.checkpoint.step == 1)
        assert (about.decision, about.reasons) == (KEEP, (evidence or says,))


def test_what_has_become_whole_is_a_save_of_now_though_nothing_else_of_it_has_changed() -> None:
    """As a directory does whose last shard comes after its marker."""
    found = epochs(1, 2, 3)
    half = [*found[:2], replace(found[2], state=State.INCOMPLETE)]
    before = decide(half, Policy())
    now = decide(found, Policy(), before.memory)
    assert (before.newest, now.newest) == (found[1], found[2])
    orders = [each.memory.seen["epoch_3.pth"].order for each in (before, now, decide(half, Policy(), now.memory))]
    assert orders[0] < orders[1] == orders[2], "what is spoiled later is the same save"


def test_what_is_saved_again_is_a_save_of_now() -> None:
    before = decide(epochs(1, 2, 3), Policy()).memory
    now = decide([*epochs(1, start=5), *epochs(2, 3, start=1)], Policy(), before)
    assert now.newest is not None
    assert (now.newest.step, now.memory.next_order) == (1, before.next_order + 1)
