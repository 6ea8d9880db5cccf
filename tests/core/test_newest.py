"""Which checkpoint is to be resumed from: the last one, but for companions and for what its framework has not named."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence

import pytest

from ckptd.core.checkpoint import Checkpoint, State
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.newest import Latest
from ckptd.core.plan import PRUNE, SKIP, Plan, plan
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind

SERIES = "global_step{}"
NOW = 1000
ONE = Policy(max_keep=1, rule="newest", templates=(SERIES,))


def save(step: int, at: int, state: State = State.COMPLETE, series: str = SERIES) -> Checkpoint:
    return Checkpoint(Entry(series, series.format(step), step, 1, at), state)


def latest(step: int, at: int) -> Latest:
    return Latest("latest", SERIES, step, at)


def decide(
    found: Iterable[Checkpoint],
    *told: Latest,
    pointed: str | None = None,
    policy: Policy = ONE,
    memory: Memory | None = None,
) -> Plan:
    return plan(
        found, policy, memory=memory or Memory(), now_ns=NOW, protected={}, declared={}, latest=told, pointed=pointed
    )


def newest(*arguments: object, **more: object) -> str | None:
    decided = decide(*arguments, **more)  # type: ignore[arg-type]
    return decided.newest.name if decided.newest else None


THREE = [save(1, 10), save(2, 20), save(3, 30)]


@pytest.mark.parametrize(("at", "pointed", "expected"), [
    pytest.param(21, None, "global_step2", id="no pointer yet"),
    pytest.param(21, "global_step1", "global_step2", id="the pointer is older"),
    pytest.param(21, "global_step2", "global_step2", id="the pointer was set after it, to what it names"),
    pytest.param(20, "global_step2", "global_step2", id="written in the tick of the save that the pointer names"),
    pytest.param(19, "global_step2", "global_step3", id="older than the save that the pointer names"),
    pytest.param(21, "global_step3", "global_step3", id="the pointer is further, and the tracker has not moved"),
    pytest.param(31, "global_step3", "global_step2", id="somebody has set it back since"),
    pytest.param(31, "global_step9", "global_step2", id="the pointer names what is gone"),
])  # fmt: skip
def test_a_tracker_that_is_newer_than_the_pointer_holds_it_back(at: int, pointed: str | None, expected: str) -> None:
    assert newest(THREE, latest(2, at), pointed=pointed) == expected


@pytest.mark.parametrize(("later", "expected"), [
    ([], "global_step1"),
    ([save(2, 20)], "global_step1"),
    ([save(2, 20), save(3, 30, State.INCOMPLETE)], "global_step1"),
    ([save(2, 20), save(3, 30, State.IN_FLIGHT)], "global_step1"),
    ([save(2, 20, State.INCOMPLETE), save(3, 30)], "global_step1"),
    ([save(2, 20), save(3, 30)], "global_step3"),
    ([save(2, 20), save(3, 30, series="epoch_{}.pth")], "epoch_3.pth"),
])  # fmt: skip
def test_a_tracker_that_two_later_saves_have_not_moved_holds_nothing_back(
    later: list[Checkpoint], expected: str
) -> None:
    policy = Policy(max_keep=1, rule="newest", templates=(SERIES, "epoch_{}.pth"))
    assert newest([save(1, 10), *later], latest(1, 11), policy=policy) == expected


def test_a_tracker_that_is_dead_stays_so_when_only_one_later_save_is_left() -> None:
    assert newest([save(1, 10), save(3, 30)], latest(1, 11), pointed="global_step3") == "global_step3"


def test_a_time_in_the_future_tells_nothing_and_then_steps_do() -> None:
    assert newest(THREE[:2], latest(1, NOW + 1)) == "global_step1"
    assert newest(THREE, latest(1, NOW + 1)) == "global_step3"
    assert newest(THREE[:2], latest(1, NOW + 1), pointed="global_step2") == "global_step2"


def test_lower_steps_of_a_resumed_run_are_not_held_back() -> None:
    assert newest([save(5, 10), save(4, 20)], latest(5, 11)) == "global_step4"


def test_a_tracker_leaves_nothing_to_resume_from_only_where_nothing_is_complete() -> None:
    assert newest([save(2, 20)], latest(1, 11)) == "global_step2"
    assert newest([save(1, 10, State.INCOMPLETE), save(2, 20)], latest(1, 11)) == "global_step2"
    assert newest([save(2, 20, State.INCOMPLETE)], latest(1, 11)) is None
    other = Policy(max_keep=1, rule="newest", templates=(SERIES, "epoch_{}.pth"))
    assert newest([save(1, 10, series="epoch_{}.pth"), save(2, 20)], latest(1, 11), policy=other) == "global_step2"


def test_what_is_passed_over_is_said_and_what_is_named_instead_stays() -> None:
    found = [save(1, 10), save(2, 20, State.INCOMPLETE), save(3, 30)]
    decided = decide(found, latest(2, 21))
    assert decided.newest is not None
    assert (decided.newest.name, decided.behind) == ("global_step1", ("latest", "global_step3", "global_step1"))
    (held,) = [d for d in decided.decisions if d.checkpoint is decided.newest]
    assert (held.decision, held.reasons[0].kind) == (SKIP, Kind.POINTER)
    assert held.reasons == ("to be resumed from, as latest names none above it",)
    assert decide(THREE, latest(3, 31)).behind is None


def test_of_what_always_comes_together_the_first_template_is_named() -> None:
    model, buffer = "rl_model_{}_steps.zip", "rl_model_replay_buffer_{}_steps.pkl"
    policy = Policy(max_keep=1, templates=(model, buffer))
    pair = [
        each
        for step in (1, 2)
        for each in (save(step, 10 * step, series=model), save(step, 10 * step + 1, series=buffer))
    ]
    assert newest(pair, policy=policy) == "rl_model_2_steps.zip"
    assert newest([*pair, save(3, 30, series=buffer)], policy=policy) == "rl_model_2_steps.zip"
    assert newest([*pair, save(3, 30, series=model)], policy=policy) == "rl_model_3_steps.zip"
    assert newest([pair[0], pair[2], pair[3]], policy=policy) == "rl_model_2_steps.zip"
    assert newest([save(1, 10, series=buffer)], policy=policy) == "rl_model_replay_buffer_1_steps.pkl"


def test_of_series_with_steps_of_their_own_the_last_written_is_named() -> None:
    epochs, steps = "epoch-{}.pt", "checkpoint-{}.pt"
    policy = Policy(max_keep=3, templates=(epochs, steps))
    found = [save(1, 10, series=epochs), save(1000, 11, series=steps), save(2000, 12, series=steps)]
    assert newest(found, policy=policy) == "checkpoint-2000.pt"
    assert newest([*found, save(2, 13, series=epochs)], policy=policy) == "epoch-2.pt"


STATES = (State.COMPLETE, State.INCOMPLETE)
WORLDS = [
    [save(step, 10 * at, state) for at, (step, state) in enumerate(zip(steps, states, strict=True), 1)]
    for steps in itertools.permutations((1, 2, 3))
    for states in itertools.product(STATES, repeat=3)
]
TOLD: Sequence[Latest] = [latest(step, at) for step in (1, 2, 3, 4) for at in (5, 10, 15, 25, 35, NOW + 5)]


def test_laws_of_what_is_named() -> None:
    """It is complete; named wherever something is; no tracker prunes more; and order of input changes nothing."""
    for found in WORLDS:
        free = decide(found)
        for told in TOLD:
            for pointed in (None, "global_step1", "global_step3"):
                held = decide(found, told, pointed=pointed)
                assert (held.newest is None) == (free.newest is None)
                assert held.newest is None or held.newest.state.whole
                assert set(_pruned(held)) <= set(_pruned(free))
                assert held.newest is None or held.newest.name not in _pruned(held)
                assert decide(reversed(found), told, pointed=pointed) == held
                if held.behind is not None:
                    assert held.newest is not None
                    assert held.newest.step <= told.step
                else:
                    assert held.newest == free.newest
                    if held.newest is not None:  # once it is pointed at, it stays so while nothing happens
                        again = decide(found, told, pointed=held.newest.name, memory=held.memory)
                        assert again.newest == held.newest or told.written_ns > held.newest.mtime_ns


def test_two_trackers_leave_something_to_resume_from_too() -> None:
    for found in WORLDS:
        is_there = any(c.state.whole for c in found)
        for told in itertools.combinations(TOLD, 2):
            assert (decide(found, *told).newest is not None) == is_there


def _pruned(decided: Plan) -> list[str]:
    return [d.checkpoint.name for d in decided.decisions if d.decision == PRUNE]


MODEL, BUFFER = "model_{}.zip", "buffer_{}.pkl"


@pytest.mark.parametrize(("models", "buffers", "expected"), [
    ([1, 2], [1, 2], "model_2.zip"),
    ([1, 2], [1, 2, 3], "model_2.zip"),
    ([1, 2], [1, 2, 3, 4], "buffer_4.pkl"),
    ([1, 2, 3], [3], "model_3.zip"),
    ([1, 3], [2, 3], "buffer_3.pkl"),
    ([1, 2], [3], "buffer_3.pkl"),
    ([], [1], "buffer_1.pkl"),
])  # fmt: skip
def test_what_is_saved_together_is_resumed_from_by_the_template_that_was_given_first(
    models: list[int], buffers: list[int], expected: str
) -> None:
    """But for one save at most, which may be going on."""
    found = [save(step, 10 * step, series=MODEL) for step in models]
    found += [save(step, 10 * step + 1, series=BUFFER) for step in buffers]
    assert newest(found, policy=Policy(max_keep=1, rule="newest", templates=(MODEL, BUFFER))) == expected
