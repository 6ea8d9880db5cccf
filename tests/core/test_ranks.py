"""How many ranks are all of a checkpoint is told by other saves, where no name says it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ckptd.core.checkpoint import Checkpoint, State
from ckptd.core.entry import Entry, entry_of_parts
from ckptd.core.keyed import given as named
from ckptd.core.memory import Memory, Seen, SeriesMemory
from ckptd.core.ranks import Told, tell_ranks

TEXT = "model_{step}.rank_{rank}.pth"
WHOLE, DOUBT, FLYING = State.COMPLETE, State.DOUBTFUL, State.IN_FLIGHT


def save(step: int, ranks: Sequence[int], state: State = WHOLE) -> Checkpoint:
    parts = [Entry(TEXT, f"model_{step}.rank_{rank}.pth", step, 5, step) for rank in ranks]
    return Checkpoint(entry_of_parts(TEXT, parts[0].name, step, parts), state)


def tell(
    saves: Sequence[Checkpoint], *, known: Sequence[int] = (), memory: Memory | None = None, max_keep: int = 1,
    young: Sequence[int] = (),
) -> Told:  # fmt: skip
    before = memory or Memory(series={TEXT: SeriesMemory(ranks=tuple((0, rank) for rank in known))})
    return tell_ranks(
        saves, {TEXT: named(TEXT)}, before, max_keep=max_keep,  # type: ignore[dict-item]
        settles_s=lambda entry: 7.0 if entry.step in young else 0.0,
    )  # fmt: skip


def states(told: Told) -> list[State]:
    return [checkpoint.state for checkpoint in told.checkpoints]


@pytest.mark.parametrize(("worlds", "known", "expected"), [
    pytest.param([8], 0, [DOUBT], id="a first save is not relied on"),
    pytest.param([8, 8], 0, [WHOLE, WHOLE], id="until a second agrees"),
    pytest.param([4, 8], 0, [DOUBT, DOUBT], id="two that differ tell nothing"),
    pytest.param([4, 8, 8], 0, [DOUBT, WHOLE, WHOLE], id="the largest that two have is all"),
    pytest.param([4, 4, 8, 8], 0, [DOUBT, DOUBT, WHOLE, WHOLE], id="the largest, not the first"),
    pytest.param([8], 8, [WHOLE], id="one that has what is known is whole"),
    pytest.param([8, 4], 8, [WHOLE, DOUBT], id="a smaller world is doubt"),
    pytest.param([8, 4, 4], 8, [WHOLE, DOUBT, DOUBT], id="and a second time too"),
    pytest.param([8, 4, 4, 4], 8, [DOUBT, WHOLE, WHOLE, WHOLE], id="until two later saves in a row have the same"),
    pytest.param([8, 4, 8, 4, 4], 8, [WHOLE, DOUBT, WHOLE, DOUBT, DOUBT], id="in a row"),
    pytest.param([8, 16], 8, [WHOLE, DOUBT], id="a larger world is not relied on at once"),
    pytest.param([16, 16], 8, [WHOLE, WHOLE], id="but once a second agrees"),
])  # fmt: skip
def test_a_rank_that_is_missing_is_told_by_other_saves(worlds: list[int], known: int, expected: list[State]) -> None:
    told = tell([save(at, range(world)) for at, world in enumerate(worlds)], known=range(known))
    assert states(told) == expected
    again = tell([save(at, range(world)) for at, world in enumerate(worlds)], memory=told.written_into(
        Memory(series={TEXT: SeriesMemory()})
    ))  # fmt: skip
    assert states(again) == expected


def test_more_are_kept_more_have_to_agree_on_a_smaller_world() -> None:
    saves = [save(at, range(4)) for at in range(4)]
    assert states(tell(saves, known=range(8), max_keep=4)) == [DOUBT] * 4
    assert states(tell([*saves, save(9, range(4))], known=range(8), max_keep=4)) == [WHOLE] * 5


def test_the_same_number_of_other_ranks_is_another_world() -> None:
    assert states(tell([save(1, [0, 1, 2]), save(2, [0, 1, 3])], known=range(3))) == [WHOLE, DOUBT]


def test_what_was_whole_stays_so() -> None:
    old = save(1, range(4))
    memory = Memory({old.name: Seen.of(old.entry, order=1, written_ns=1)}, {TEXT: SeriesMemory()})
    assert states(tell([old, save(2, range(8)), save(3, range(8))], memory=memory)) == [WHOLE] * 3
    lost = save(1, range(3))
    assert states(tell([lost, save(2, range(8)), save(3, range(8))], memory=memory)) == [DOUBT, WHOLE, WHOLE]


def test_what_was_not_left_alone_long_enough_tells_nothing() -> None:
    told = tell([save(1, range(4)), save(2, range(4))], young=[2])
    assert (states(told), told.settles_s) == ([DOUBT, FLYING], 7.0)
    # What has all that is known is whole at once.
    assert states(tell([save(1, range(4)), save(2, range(4))], known=range(4), young=[1, 2])) == [WHOLE, WHOLE]


def test_what_is_broken_tells_nothing_and_stays_what_it_is() -> None:
    broken = save(1, range(8), State.INCOMPLETE)
    assert states(tell([broken, save(2, range(8))])) == [State.INCOMPLETE, DOUBT]


def test_names_that_say_how_many_there_are_are_not_asked_about() -> None:
    told = tell_ranks([save(1, range(4))], {TEXT: named("G_{}.pth + D_{}.pth")}, Memory(), max_keep=1,  # type: ignore[dict-item]
                      settles_s=lambda entry: 0)  # fmt: skip
    assert (states(told), told.ranks) == ([WHOLE], {})
