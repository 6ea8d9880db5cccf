"""The process group in which the hook's ranks agree: its own, whatever becomes of the training's, and never a trap."""

from __future__ import annotations

from pathlib import Path

import pytest

from ckptd.errors import UsageError
from ckptd.shim import ranks

from .conftest import TwoRanks, run_ranks

SCENARIOS = ("in_our_own_group", "settings_differ", "leaves_one_out", "groups_come_and_go", "without_gloo")


def test_the_trainings_own_group_is_never_used_and_one_more_is_enough(two_ranks: TwoRanks) -> None:
    assert two_ranks("in_our_own_group") == [[0, 2]] * 2


@pytest.mark.parametrize("name", ["interval", "by_epoch", "filename_tmpl", "sync_buffer", "background"])
def test_settings_that_differ_are_named_on_both_ranks_before_training(name: str, two_ranks: TwoRanks) -> None:
    first, second = (told[name] for told in two_ranks("settings_differ"))
    assert f"{name}=" in second
    assert " on rank 1, " in second
    assert f"{name}=" in second.partition(" on rank 1, ")[2]
    assert first == f"rank 1: {second}"


@pytest.mark.parametrize("background", [False, True])
def test_a_rank_that_leaves_out_a_save_is_found_at_the_next(background: bool, two_ranks: TwoRanks) -> None:
    first, second = (told[background] for told in two_ranks("leaves_one_out"))
    what = "the save of epoch_3.pth on rank 1, the save of epoch_2.pth on rank 0"
    assert second[0].startswith(f"{what}: every rank makes the same calls")
    assert first[0] == f"rank 1: {second[0]}"
    assert first[1:] == second[1:] == ["", str(two_ranks.place / f"leaves_one_out/{background}/epoch_4.pth")]


def test_a_process_group_may_come_late_go_early_and_be_made_again(two_ranks: TwoRanks) -> None:
    first, second = two_ranks("groups_come_and_go")
    run = two_ranks.place / "groups_come_and_go/run"
    for told in (first, second):
        assert told[:2] == [f"{run}/epoch_1.pth", f"{run}/epoch_2.pth"]
        assert (told[2], told[4]) == (2, 3)
    for number, name in ((3, "epoch_3.pth"), (5, "epoch_4.pth")):
        assert first[number].startswith(f"{run}/{name}: could not be saved: File too large")
        assert second[number] == f"rank 0: {first[number]}"


def test_where_gloo_is_not_there_or_reaches_nobody_the_trainings_group_serves_and_that_is_said(
    two_ranks: TwoRanks,
) -> None:
    first, second = two_ranks("without_gloo")
    for mine, theirs in ((first[0], second[0]), (first[2], second[2])):
        assert "could not be saved: File too large" in mine[0]
        assert theirs[0] == f"rank 0: {mine[0]}"
    assert first[1][0] == second[1][0] == ""
    assert second[1][1] == f"rank 0: {first[1][1]}"
    assert first[3] == ["this torch has no gloo", "the ranks do not reach each other by gloo (no route)"]
    assert second[3] == first[3][1:]


def test_a_save_that_one_rank_leaves_out_for_good_is_named_and_no_gradient_is_paired_with_it(tmp_path: Path) -> None:
    codes, said = run_ranks(tmp_path, ["leaves_one_out_and_trains"], CKPTD_SAVE_TIMEOUT="2")
    assert codes == [0, 0], said
    for sync_buffer in (False, True):
        first, second = (rank[sync_buffer] for rank in TwoRanks(tmp_path)("leaves_one_out_and_trains"))
        assert first[0].startswith("rank 0 was left alone at the save of epoch_2.pth: ")
        assert "not come within CKPTD_SAVE_TIMEOUT, 2 s" in first[0]
        assert second[0].startswith("rank 1 was left alone at the save of epoch_3.pth: ")
        assert first[1] == second[1] == [2.0] * 8


def test_of_three_ranks_each_learns_which_one_could_not_save(tmp_path: Path) -> None:
    codes, said = run_ranks(tmp_path, ["one_of_three_cannot_save"], count=3)
    assert codes == [0, 0, 0], said
    told = [TwoRanks(tmp_path).of(rank, "one_of_three_cannot_save") for rank in range(3)]
    assert "epoch_2.pth: could not be saved: File too large" in told[0][0]
    assert told[1][0] == told[2][0] == f"rank 0: {told[0][0]}"
    assert told[2][1] == "[Errno 28] No space left on device"
    assert told[0][1] == told[1][1] == f"rank 2: {told[2][1]}"


def test_a_rank_that_is_killed_is_no_hour_of_waiting(tmp_path: Path) -> None:
    codes, said = run_ranks(tmp_path, ["rank_1_ends"])
    assert codes == [0, -9], said
    told = (tmp_path / "rank_1_ends/told").read_text()
    assert told.startswith("rank 0 was left alone at the "), told
    assert "another rank has ended" in told
    assert [path.name for path in (tmp_path / "rank_1_ends/run").glob("*.pth")] == ["epoch_1.pth"]


def test_a_rank_that_never_comes_to_before_run_ends_the_others(tmp_path: Path) -> None:
    codes, said = run_ranks(tmp_path, ["rank_1_never_comes"], CKPTD_SAVE_TIMEOUT="2")
    assert codes == [0, 0], said
    told = (tmp_path / "rank_1_never_comes/told").read_text()
    assert told.startswith("rank 0 was left alone at before_run: "), told


@pytest.mark.parametrize("text", ["an hour", "0", "-1", "nan", "inf"])
def test_a_timeout_that_is_no_time_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CKPTD_SAVE_TIMEOUT", text)
    with pytest.raises(UsageError, match="CKPTD_SAVE_TIMEOUT="):
        ranks._timeout_s()
