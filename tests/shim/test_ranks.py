"""Two real processes: every rank makes the same calls, rank 0 writes, and no rank is left waiting for a failed one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import torch

from ckptd.errors import UsageError
from ckptd.shim import CheckpointHook, ranks

from .conftest import TwoRanks

SCENARIOS = ("averaged", "one_of_a_group", "differing", "without_a_mean", "changing", "saved", "save_fails",
             "background_fails", "resumed", "unseen", "no_directory", "sharded")  # fmt: skip


def test_floats_are_averaged_and_all_else_is_rank_0s(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("averaged")
    own = "cache"  # not persistent
    assert {k: v for k, v in first.items() if k != own} == {k: v for k, v in second.items() if k != own}
    assert (first[own], second[own]) == ("[0.0]", "[1.0]")
    assert first.pop("in place") is True
    assert first.pop("as mmcv") is True
    got = {name: torch.tensor(ast.literal_eval(text)) for name, text in first.items() if name != "number"}
    mean = torch.arange(6.0).reshape(2, 3) + 1 / 6
    torch.testing.assert_close(got["single"], mean)
    torch.testing.assert_close(got["transposed"], mean.t())
    torch.testing.assert_close(got["rounded"], mean.half().float(), rtol=2**-10, atol=0)
    double = torch.arange(6, dtype=torch.float64).reshape(2, 3)
    theirs = double.float() + 1 / 3
    expected = (double + theirs.double() + 1e-12) / 2
    computed = torch.tensor(ast.literal_eval(first["precise"]), dtype=torch.float64)
    torch.testing.assert_close(computed, expected, rtol=1e-15, atol=1e-15)
    numbers = torch.tensor(ast.literal_eval(first["number"]))
    torch.testing.assert_close(numbers, torch.complex(mean, -mean))
    assert first["scalar"] == "0.5"
    assert first["count"] == str(2**40)
    assert (first["flags"], first["small"]) == ("[True, False]", "[0, 7]")


def test_a_group_of_one_averages_nothing(two_ranks: TwoRanks) -> None:
    assert two_ranks("one_of_a_group") == [0.0, 1.0]


def test_buffers_that_differ_are_an_error_on_both_ranks_and_none_has_changed(two_ranks: TwoRanks) -> None:
    for rank, told in enumerate(two_ranks("differing")):
        for kind, buffer in (("shape", "mean"), ("type", "mean"), ("name", "mean"), ("more", "running_mean")):
            words, first = told[kind]
            assert f"buffer {buffer}: " in words, kind
            assert "on rank 1" in words, kind
            assert first == rank, kind


WITHOUT_A_MEAN = {
    "quantized": "quantized (torch.qint8)",
    "sparse": "in the layout torch.sparse_coo",
    "rows": "in the layout torch.sparse_csr",
    "meta": "on the meta device",
    "expanded": "expanded, with one number in several places",
    "conjugated": "conjugated or negated as it is read",
    "nested": "a nested tensor",
}


@pytest.mark.parametrize("kind", WITHOUT_A_MEAN)
def test_a_buffer_that_no_mean_can_be_written_into_is_refused_by_name_on_both_ranks(
    kind: str, two_ranks: TwoRanks
) -> None:
    for rank, told in enumerate(two_ranks("without_a_mean")):
        both, again, one = told[kind]
        assert f"buffer odd: {WITHOUT_A_MEAN[kind]}, so that no mean" in both[0]
        assert again == ""
        assert "buffer odd: " in one[0]
        assert "rank 1" in one[0] or rank == 1
        assert [both[1], one[1]] == [rank, rank], "no buffer has changed"


def test_one_all_reduce_does_while_both_ranks_hold_what_they_held(two_ranks: TwoRanks) -> None:
    answers = two_ranks("changing")
    told = [[words for words, *_ in answer] for answer in answers]
    assert [[bool(words) for words in each] for each in told] == [[False, False, True, False, False, False]] * 2
    assert all("buffer more: " in words and "on rank 1" in words for _, _, words, *_ in told)
    for rank, answer in enumerate(answers):
        assert [value for _, _, value in answer] == [0.5, 0.5, rank, 0.5, 0.5, 0.5]
        first, second, _, again, other, back = (count for _, count, _ in answer)
        # The first module of all is found to be another than what was averaged before.
        assert (first, second, again, other, back) == (3, 1, 1, 3, 3)


def test_only_rank_0_publishes_and_what_it_publishes_is_averaged(two_ranks: TwoRanks) -> None:
    answers = two_ranks("saved")
    place = two_ranks.place / "saved"
    assert answers == [["None", str(place / f"run-{rank}/epoch_2.pth")] for rank in range(2)]
    assert sorted(path.name for path in (place / "run-0").iterdir()) == [".ckptd", "epoch_2.pth"]
    assert not (place / "run-1").exists()
    state = torch.load(place / "run-0/epoch_2.pth", weights_only=True)
    assert "0.weight" in state["state_dict"]
    assert state["state_dict"]["1.running_mean"].tolist() == [0.5] * 8
    assert state["state_dict"]["1.num_batches_tracked"].item() == 10


def test_a_failed_save_raises_on_both_ranks_and_the_next_one_works(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("save_fails")
    place = two_ranks.place / "save_fails"
    assert first[0] == f"{place}/run/epoch_2.pth: could not be saved: File too large. What was there before still is"
    assert second[0] == f"rank 0: {first[0]}"
    assert first[1] == second[1] == [".ckptd", "epoch_1.pth"]
    assert first[2] == second[2] == f"{place}/run/epoch_3.pth"
    assert torch.load(place / "run/epoch_3.pth", weights_only=True)["meta"]["epoch"] == 3


@pytest.mark.parametrize("call", ["the next save", "wait", "close", "the end of the block"])
def test_a_save_that_fails_in_the_background_is_raised_on_both_ranks_by(call: str, two_ranks: TwoRanks) -> None:
    first, second = (rank[call] for rank in two_ranks("background_fails"))
    place = two_ranks.place / "background_fails" / call
    assert first[0] == second[0] == ""
    assert first[1] == f"{place}/epoch_2.pth: could not be saved: File too large. What was there before still is"
    assert second[1] == f"rank 0: {first[1]}"
    for rank in (first, second):
        assert rank[2:] == [f"{place}/epoch_3.pth", [".ckptd", "epoch_1.pth", "epoch_3.pth"]]


def test_both_ranks_resume_from_what_rank_0_has_saved(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("resumed")
    place = two_ranks.place / "resumed"
    assert first == second
    assert (first[0], first[2]) == (1, f"{place}/run/epoch_1.pth")


def test_a_rank_that_cannot_see_the_checkpoint_stops_both(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("unseen")
    place = two_ranks.place / "unseen"
    assert second == f"{place}/run-1/epoch_1.pth: cannot be read: No such file or directory. Every rank reads it"
    assert first == f"rank 1: {second}"


def test_a_directory_that_rank_0_cannot_make_stops_both_before_training(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("no_directory")
    place = two_ranks.place / "no_directory"
    assert first == f"{place}/run: no checkpoint can be written there: File exists"
    assert second == f"rank 0: {first}"


def test_sharded_state_is_refused_with_its_key_and_rank(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("sharded")
    for rank, told in enumerate((first, second)):
        assert told[0].startswith(f"state_dict.weight: a DTensor, of which rank {rank} holds a part only")
        assert "ema.weight: a DTensor, of which rank 0 holds a part only" in told[1]
        assert told[2] == []


@pytest.mark.parametrize(("value", "rank"), [("3", 3), ("", 0), (None, 0)])
def test_without_a_process_group_the_environment_tells_the_rank(
    value: str | None, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    if value is not None:
        monkeypatch.setenv("RANK", value)
    assert ranks.rank_of() == rank


def test_a_rank_without_a_group_writes_nothing_in_the_background_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    with CheckpointHook(tmp_path / "run", interval=1, background=True) as hook:
        hook.before_run(model=torch.nn.Linear(2, 2))
        assert hook.after_train_epoch(0) == tmp_path / "run/epoch_1.pth"
    assert not (tmp_path / "run").exists()
    assert hook.last_ckpt == tmp_path / "run/epoch_1.pth"


def test_a_rank_that_is_no_number_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "first")
    with pytest.raises(UsageError, match="RANK='first'"):
        ranks.rank_of()
