"""What is remembered of a save, and of a series: what a change of its inode makes unknown, and what the gaps say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from ckptd.core.checkpoint import Durability
from ckptd.core.memory import BROUGHT_BACK, Memory, Seen, SeriesMemory

EPOCHS = "epoch_{}.pth"
KNOWN = Seen(
    EPOCHS,
    "epoch_3.pth",
    3,
    10,
    500,
    500,
    7,
    durability=Durability.SYNCED,
    content="",
    inode=1,
    changes=1,
    older=2,
    younger=1,
)


def now(**more: Any) -> Any:
    """What is found of the same save now, as far as the memory asks."""
    return replace(KNOWN, **more)


# --- one save


def test_all_that_is_known_of_bytes_stays_while_these_are_the_same() -> None:
    assert KNOWN.about(now()) is KNOWN
    failed = replace(KNOWN, durability=Durability.FAILED)
    assert failed.about(now()) is failed


@pytest.mark.parametrize("changed", [{"inode": 2}, {"changes": 2}], ids=["another inode", "a change of it"])
def test_nothing_is_known_of_bytes_that_may_be_others(changed: dict[str, int]) -> None:
    found = now(**changed, older=5, younger=6)
    about = KNOWN.about(found)
    assert (about.durability, about.content) == (Durability.UNKNOWN, None)
    assert (about.inode, about.changes, about.older, about.younger) == (found.inode, found.changes, 5, 6)
    assert replace(about, durability=Durability.SYNCED, content="", inode=1, changes=1, older=2, younger=1) == KNOWN


@pytest.mark.parametrize(("changed", "stays"), [
    pytest.param({"changes": 2}, True, id="a change of its mode brings nothing back"),
    pytest.param({"changes": 2, "inode": 2}, False, id="a copy in its place"),
    pytest.param({"changes": 2, "mtime_ns": 501}, False, id="what was saved anew"),
    pytest.param({"changes": 2, "size_bytes": 11}, False, id="what has another size"),
])  # fmt: skip
def test_that_an_fsync_has_failed_is_known_of_the_same_file_alone(changed: dict[str, int], stays: bool) -> None:
    failed = replace(KNOWN, durability=Durability.FAILED)
    assert failed.has_failed(now(**changed)) is stays
    assert failed.about(now(**changed)).durability is (Durability.FAILED if stays else Durability.UNKNOWN)
    assert not KNOWN.has_failed(now(**changed))
    assert not replace(KNOWN, durability=Durability.UNKNOWN).has_failed(now(**changed))


@pytest.mark.parametrize("older", [1, 2, 3])
@pytest.mark.parametrize("younger", [0, 1, 2])
def test_it_was_written_over_where_a_part_has_gone_over_to_the_younger(older: int, younger: int) -> None:
    found = now(older=older, younger=younger)
    assert KNOWN.was_written_over(found) is (younger > 1 and older < 2)
    assert not replace(KNOWN, whole=False).was_written_over(found)
    assert not KNOWN.was_written_over(replace(found, inode=2)), "a copy"
    assert not KNOWN.was_written_over(replace(found, mtime_ns=501)), "saved anew"


@pytest.mark.parametrize("older", [1, 2])
@pytest.mark.parametrize("younger", [1, 2])
def test_it_was_in_doubt_before_where_no_part_has_moved_since(older: int, younger: int) -> None:
    doubtful, found = replace(KNOWN, whole=False), now(older=older, younger=younger, changes=2)
    assert doubtful.was_in_doubt(found) is ((older, younger) == (2, 1))
    assert not KNOWN.was_in_doubt(found)
    assert not doubtful.was_in_doubt(replace(found, inode=2))
    assert not doubtful.was_in_doubt(replace(found, size_bytes=11))


# --- a series


@pytest.mark.parametrize(("steps", "interval"), [
    pytest.param([1, 2], None, id="one gap"),
    pytest.param([1, 2, 3], None, id="two gaps"),
    pytest.param([1, 2, 3, 4], 1, id="three gaps"),
    pytest.param([2, 4, 6, 7], 2, id="two of three"),
    pytest.param([1, 2, 3, 5, 7], None, id="two of four is no majority"),
    pytest.param([1, 2, 3, 4, 6, 8], 1, id="three of five is one"),
    pytest.param([3, 6, 9, 4, 4, 7], 3, id="a step back, or the same again, is no gap"),
    pytest.param([4, 4, 4, 4, 4], None, id="nothing but the same again"),
    pytest.param([1, 2, 3, 4, 10, 20, 30, 40, 50, 60, 70, 80], 10, id="the latest eight alone"),
])  # fmt: skip
def test_the_interval_is_the_gap_of_most_of_the_latest_saves(steps: list[int], interval: int | None) -> None:
    assert interval == SeriesMemory().after(steps).interval
    one_by_one = SeriesMemory()
    for step in steps:
        one_by_one = one_by_one.after([step])
    assert one_by_one.recent == SeriesMemory().after(steps).recent == tuple(steps[-9:])


def test_an_interval_stays_until_another_has_a_majority() -> None:
    memory = SeriesMemory(interval=5).after([1, 2, 3])
    assert (memory.interval, memory.evidence) == (5, "earlier saves")
    memory = memory.after([4])
    assert (memory.interval, memory.evidence) == (1, "3 of 3 gaps")


def test_a_series_waits_until_a_save_is_seen() -> None:
    waits = SeriesMemory(waits=True)
    assert waits.after([]).waits
    assert not waits.after([1]).waits


def test_met_anew_the_interval_is_that_of_these_saves_and_all_else_is_remembered() -> None:
    before = SeriesMemory(interval=5, recent=(5, 10, 15, 20), waits=True, walked=3, late=(5,))
    anew = before.met_anew([1, 2, 3, 4])
    assert (anew.interval, anew.recent) == (1, (1, 2, 3, 4))
    assert replace(anew, interval=5, recent=before.recent) == before
    assert before.met_anew([1]).interval is None


def test_what_is_gone_is_forgotten_with_what_is_owed_of_it_in_its_own_series() -> None:
    series = {EPOCHS: SeriesMemory(late=(1, 2)), "iter_{}.pth": SeriesMemory(late=(1,))}
    seen = {name: replace(KNOWN, name=name, step=step) for step, name in enumerate(("epoch_1.pth", "epoch_2.pth"), 1)}
    memory = Memory(seen, series, 9).without({"epoch_1.pth", "unknown.pth"})
    assert (set(memory.seen), memory.next_order) == ({"epoch_2.pth"}, 9)
    assert {text: each.late for text, each in memory.series.items()} == {EPOCHS: (2,), "iter_{}.pth": (1,)}


def test_newer_is_by_order_then_by_time_then_by_step() -> None:
    ranks = [(1, 1, 0), (BROUGHT_BACK, 10, 1), (BROUGHT_BACK, 9, 2), (BROUGHT_BACK, 9, 1)]
    seen = [replace(KNOWN, order=order, written_ns=written_ns, step=step) for order, written_ns, step in ranks]
    assert seen[::-1] == sorted(seen, key=lambda each: each.rank)
