"""What a save lacks that the older ones of its run have, as values."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.checkpoint import Checkpoint
from ckptd.core.entry import Entry
from ckptd.core.memory import BROUGHT_BACK, Seen
from ckptd.core.siblings import Compared, Files, compare

HOUR = 3600 * 10**9
NAMES = ("model.pt", "optimizer.pt", "ema.pt", "rng_0.pth")


def save(step: int, mtime_ns: int | None = None) -> Checkpoint:
    at_ns = step * HOUR if mtime_ns is None else mtime_ns
    return Checkpoint(Entry("step_{}", f"step_{step}", step, 1, at_ns, is_dir=True))


def parts(*names: str, added: Iterable[str] = ()) -> Files:
    return Files(frozenset((*names, *added)), frozenset(names))


def compared(
    *of: Files, now_h: float = 0, keep: int | None = None, seen: Iterable[Seen] = (), **more: object
) -> Compared:
    saves = [save(step) for step in range(1, 1 + len(of))]
    files = {c.name: each for c, each in zip(saves, of, strict=True)}
    known = {each.name: each for each in seen}
    now_ns = int((len(of) + now_h) * HOUR)
    return compare(saves, files, known, keep=keep, now_ns=now_ns, **more)  # type: ignore[arg-type]


def remembered(step: int, order: int, *lacks: str, until_h: int = 99) -> Seen:
    return Seen.of(save(step).entry, order=order, written_ns=step * HOUR, lacks=lacks, lacks_until_ns=until_h * HOUR)


BOTH, ONE = parts("model.pt", "optimizer.pt"), parts("model.pt")


def test_what_every_older_one_has_is_missed_and_nothing_else() -> None:
    assert compared(BOTH, BOTH, ONE).doubts["step_3"].lacks == ("optimizer.pt",)
    assert not compared(BOTH, ONE).doubts
    assert not compared(BOTH, ONE, ONE).doubts
    assert not compared(ONE, BOTH, ONE).doubts
    assert not compared(BOTH, BOTH, parts("model.pt", added=["optimizer.pt"])).doubts


def test_what_was_added_to_the_older_ones_is_not_missed() -> None:
    with_more = parts("model.pt", added=["merged.pt"])
    assert not compared(with_more, with_more, ONE).doubts


def test_it_ends_in_time_or_with_those_that_are_like_it() -> None:
    assert list(compared(BOTH, BOTH, ONE, ONE).doubts) == ["step_3", "step_4"]
    assert not compared(BOTH, BOTH, ONE, ONE, ONE).doubts
    assert list(compared(BOTH, BOTH, ONE, ONE, ONE, keep=3).doubts) == ["step_3", "step_4", "step_5"]
    assert list(compared(BOTH, BOTH, ONE, ONE, BOTH, ONE).doubts) == ["step_3", "step_4", "step_6"]
    assert not compared(BOTH, BOTH, ONE, *[BOTH] * 10).doubts
    assert compared(BOTH, BOTH, ONE, *[BOTH] * 10).accepted == {"step_3": ("optimizer.pt",)}
    seen = [remembered(1, 1), remembered(2, 2), remembered(3, 3, "optimizer.pt", until_h=13)]
    assert compared(BOTH, BOTH, ONE, now_h=9.9, seen=seen).doubts
    assert compared(BOTH, BOTH, ONE, now_h=10, seen=seen).accepted == {"step_3": ("optimizer.pt",)}


def test_a_reader_counts_the_time_from_the_save() -> None:
    assert compared(BOTH, BOTH, ONE, now_h=11).doubts
    assert not compared(BOTH, BOTH, ONE, now_h=11, reads_only=True).doubts


def test_what_is_remembered_goes_on_where_the_older_ones_are_gone() -> None:
    known = remembered(1, 3, "optimizer.pt")
    assert compared(ONE, seen=[known]).doubts["step_1"].lacks == ("optimizer.pt",)
    assert not compared(BOTH, seen=[known]).doubts
    assert not compared(ONE, BOTH, BOTH, seen=[remembered(1, 3)]).doubts
    assert compared(ONE, usual=("model.pt", "optimizer.pt")).doubts
    assert not compared(ONE, usual=("model.pt", "optimizer.pt"), seen=[remembered(1, 3)]).doubts


def test_what_somebody_brought_back_is_no_older_save_and_is_not_compared() -> None:
    back = [remembered(1, BROUGHT_BACK), remembered(2, BROUGHT_BACK)]
    assert not compared(BOTH, BOTH, ONE, seen=back).doubts
    assert not compared(BOTH, BOTH, ONE, seen=[remembered(3, BROUGHT_BACK)]).doubts


def test_a_number_that_is_the_step_and_one_that_is_a_rank() -> None:
    def ranks(step: int, count: int) -> Files:
        return parts(f"global_step{step}/optim.pt", *(f"rng_state_{rank}.pth" for rank in range(count)))

    steps = [ranks(step, 4) for step in (1, 2, 3, 4, 5, 6)]
    assert not compared(*steps).doubts
    assert compared(*steps, ranks(7, 3)).doubts["step_7"].lacks == ("rng_state_3.pth",)
    two = [parts(*(f"global_step{step}/optim_{rank}.pt" for rank in range(2))) for step in (1, 2, 3)]
    one = parts("global_step4/optim_0.pt")
    assert compared(*two, one).doubts["step_4"].lacks == ("global_step{}/optim_1.pt",)
    without = Files(steps[3].there - {"global_step4/optim.pt"}, steps[3].own - {"global_step4/optim.pt"})
    assert compared(*steps[:3], without).doubts["step_4"].lacks == ("global_step{}/optim.pt",)


def test_what_is_there_under_another_number_is_not_missed() -> None:
    one, other = parts("model_epoch0.pt", "optim.pt"), parts("model_epoch1.pt", "optim.pt")
    assert not compared(one, one, other, other, other).doubts
    two = parts("model-00001-of-00002.pt", "model-00002-of-00002.pt")
    three = parts(*(f"model-0000{shard}-of-00003.pt" for shard in (1, 2, 3)))
    assert not compared(two, two, three).doubts
    assert compared(two, two, parts("model-00001-of-00002.pt")).doubts


@given(st.lists(st.sets(st.sampled_from(NAMES), min_size=1), max_size=8), st.integers(1, 4), st.integers(0, 20))
def test_the_first_two_and_what_has_all_are_in_no_doubt(of: list[set[str]], keep: int, now_h: int) -> None:
    found = compared(*(parts(*names) for names in of), keep=keep, now_h=now_h)
    assert not found.doubts.keys() & {"step_1", "step_2"}
    for at, names in enumerate(of, 1):
        if names >= set(NAMES):
            assert f"step_{at}" not in found.doubts
    assert found.doubts.keys().isdisjoint(found.accepted)
    assert set(found.usual) <= set(NAMES)
