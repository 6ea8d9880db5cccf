"""The floor of free space: nothing goes while there is more, and never more goes than is missing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest

from ckptd.core.budget import Disk, Floor, over_in_trash
from ckptd.core.checkpoint import Checkpoint, State
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.permit import trash_ttl_s
from ckptd.core.plan import PRUNE, Plan, plan
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind, Reason
from ckptd.errors import UsageError

NOW = 10**12
STEPS = (1, 2, 3, 4, 5)
SIZES = (10, 3, 7, 10, 5)
FLOOR = 100
BESIDE = [{}, {"max_keep": 2, "rule": "newest"}, {"max_keep": 1, "interval": 1}, {"keep_every": 2}, {"max_bytes": 20}]


def epochs(broken: Iterable[int] = ()) -> list[Checkpoint]:
    return [
        Checkpoint(
            Entry("epoch_{}.pth", f"epoch_{s}.pth", s, size, s * 10**9, allocated_bytes=size),
            State.INCOMPLETE if s in broken else State.COMPLETE,
        )
        for s, size in zip(STEPS, SIZES, strict=True)
    ]  # fmt: skip


def decide(policy: Policy, disk: Disk | None, *, broken: Iterable[int] = (), pinned: Iterable[int] = ()) -> Plan:
    protected = {f"epoch_{step}.pth": [Reason(Kind.PINNED, "pinned")] for step in pinned}
    return plan(epochs(broken), policy, memory=Memory(), now_ns=NOW, protected=protected, declared={}, disk=disk)


def gone(decided: Plan) -> list[int]:
    return [d.checkpoint.step for d in decided.prune]


def by_floor(decided: Plan) -> list[int]:
    return [d.checkpoint.step for d in decided.prune if "--min-free" in d.reasons[0]]


@pytest.mark.parametrize("beside", BESIDE, ids=str)
def test_while_more_is_free_it_is_as_if_there_were_no_floor(beside: dict[str, object]) -> None:
    for free in (FLOOR, FLOOR + 1, 10 * FLOOR):
        with_floor = decide(Policy(**beside, min_free=Floor(FLOOR)), Disk(1000, free))
        without = decide(Policy(**beside), None)
        assert gone(with_floor) == gone(without)
        assert with_floor.budget is not None
        assert with_floor.budget.short_bytes == (without.budget.short_bytes if without.budget else 0)


@pytest.mark.parametrize("beside", BESIDE, ids=str)
def test_no_more_goes_than_is_missing_and_the_oldest_first(beside: dict[str, object]) -> None:
    size = dict(zip(STEPS, SIZES, strict=True))
    policy = Policy(**beside, min_free=Floor(FLOOR))
    for free, trash, n in itertools.product(range(60, 101), (0, 4), range(len(STEPS) + 1)):
        for pinned in itertools.combinations(STEPS, n):
            decided = decide(policy, Disk(1000, free, trash), pinned=pinned)
            taken = by_floor(decided)
            after = free + trash + sum(size[step] for step in gone(decided))
            assert decided.budget is not None
            assert not set(taken) & {*pinned, 5}
            if taken:
                assert after - size[taken[-1]] < FLOOR, "it would have done without the last"
                assert taken == sorted(taken), "the oldest go first"
            if after < FLOOR and decided.budget.option == "--min-free":
                assert decided.budget.short_bytes == FLOOR - after, "what cannot be met is known"
            if not beside:
                spare = [step for step in STEPS[:-1] if step not in pinned]
                assert taken == spare[: len(taken)], "nothing is passed over"
                assert after >= FLOOR or taken == spare, "and nothing is kept that could go"


def test_what_the_rule_prunes_anyway_counts() -> None:
    decided = decide(Policy(max_keep=2, rule="newest", min_free=Floor(FLOOR)), Disk(1000, FLOOR - 20))
    assert (gone(decided), by_floor(decided)) == ([1, 2, 3], [])


def test_the_trash_goes_first_and_only_as_much_of_it_as_is_missing() -> None:
    decided = decide(Policy(min_free=Floor(FLOOR)), Disk(1000, FLOOR - 5, trash_bytes=12))
    assert gone(decided) == []
    assert decided.budget is not None
    assert over_in_trash(decided.budget, [("1-0", 4), ("2-0", 4), ("3-0", 4)]) == ["1-0", "2-0"]
    decided = decide(Policy(min_free=Floor(FLOOR)), Disk(1000, FLOOR + 5, trash_bytes=12))
    assert decided.budget is not None
    assert over_in_trash(decided.budget, [("1-0", 4), ("2-0", 4), ("3-0", 4)]) == []


def test_what_goes_for_want_of_room_is_not_kept_in_the_trash() -> None:
    short = decide(Policy(min_free=Floor(FLOOR), trash_ttl_s=3600.0), Disk(1000, FLOOR - 1))
    assert trash_ttl_s(short, short.prune, asked_s=3600.0, free_bytes=10**12) == 0
    policy = Policy(max_keep=2, rule="newest", min_free=Floor(FLOOR))
    enough = decide(policy, Disk(1000, FLOOR))
    assert trash_ttl_s(enough, enough.prune, asked_s=3600.0, free_bytes=10**12) == 3600


def test_what_nothing_can_be_resumed_from_goes_before_anything_whole() -> None:
    assert gone(decide(Policy(min_free=Floor(FLOOR)), Disk(1000, FLOOR - 2), broken=[3])) == [3]


def test_the_tighter_of_two_budgets_counts() -> None:
    both = Policy(max_bytes=30, min_free=Floor(FLOOR))
    assert gone(decide(both, Disk(1000, FLOOR))) == [1]
    assert gone(decide(both, Disk(1000, FLOOR - 12))) == [1, 2]
    assert by_floor(decide(both, Disk(1000, FLOOR - 12))) == [1, 2]


def test_where_nothing_is_known_of_the_disk_nothing_goes_for_it() -> None:
    decided = decide(Policy(min_free=Floor(FLOOR)), None)
    assert gone(decided) == []
    assert decided.budget is not None
    assert decided.budget.short_bytes == 0
    assert over_in_trash(decided.budget, [("1-0", 4)]) == []
    assert gone(decide(Policy(max_bytes=30, min_free=Floor(FLOOR)), None)) == [1]


def test_a_percentage_is_one_of_the_whole_file_system() -> None:
    policy = Policy(min_free="10%")
    assert policy.min_free == Floor(percent=10)
    assert gone(decide(policy, Disk(1000, 100))) == []
    assert gone(decide(policy, Disk(1000, 99))) == [1]
    assert gone(decide(replace(policy, min_free=Floor.from_text("2.5%")), Disk(4000, 99))) == [1]


@pytest.mark.parametrize("wrong", [0, -1, "0", "0%", "100%", "101%", "-5%", "ten", "", "1.5", "%", 1.5, True])
def test_a_floor_that_can_never_be_meant_is_refused(wrong: object) -> None:
    with pytest.raises(UsageError, match="min_free"):
        Policy(min_free=wrong)


def test_a_floor_is_written_as_it_is_read() -> None:
    assert [str(Policy(min_free=given).min_free) for given in ("10%", "2.5%", 5000, "5000")] == [
        "10%", "2.5%", "5000", "5000",
    ]  # fmt: skip


def test_of_what_is_protected_nothing_goes_however_little_is_free() -> None:
    decided = decide(Policy(min_free=Floor(FLOOR)), Disk(1000, 0), pinned=[1, 3])
    assert gone(decided) == [2, 4]
    assert {d.checkpoint.step for d in decided.decisions if d.decision != PRUNE} == {1, 3, 5}
