"""Keepers and budgets over real files: where scores come from, what goes with a checkpoint, what a trash may take."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.passes.restore import restore
from ckptd.workdir import journal

from .conftest import Builder, a_pass, epochs, left, torch_zip

BEST = {"max_keep": 1, "rule": "newest", "keep_best": ("mAP:max",), "trash_ttl_s": 0.0}


def scored(with_checkpoints: Builder, scores: dict[int, Any]) -> Path:
    """Epochs with their scores beside them; None for one without."""
    for step, score in scores.items():
        with_checkpoints(f"epoch_{step}.pth")
        if score is not None:
            text = score if isinstance(score, str) else json.dumps({"mAP": score, "note": "text"})
            (with_checkpoints.work_dir / f"epoch_{step}.pth.metrics.json").write_text(text)
    return with_checkpoints.work_dir


def checkpoints_left(work_dir: Path) -> list[str]:
    return [name for name in left(work_dir) if name.endswith(".pth")]


# --- where scores come from -----------------------------------------------------------------------------------


def test_the_best_by_the_scores_beside_them_stays(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: 0.9, 3: 0.3, 4: 0.1})
    a_pass(work_dir, **BEST)
    assert checkpoints_left(work_dir) == epochs(2, 4)


@pytest.mark.parametrize("score", [
    pytest.param('{"mAP": 0.9', id="cut in half"),
    pytest.param('["mAP", 0.9]', id="no object"),
    pytest.param('{"mAP": "0.9"}', id="text"),
    pytest.param('{"mAP": true}', id="a truth"),
    pytest.param('{"mAP": null}', id="null"),
    pytest.param("[" * 100_000, id="nested without end"),
    pytest.param('{"mAP": 1' + "0" * 5000 + "}", id="a number beyond all floats"),
    pytest.param(" " * (2 << 20), id="too large"),
])  # fmt: skip
def test_what_is_no_score_is_said_once_and_counts_as_none(
    with_checkpoints: Builder, score: str, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: score, 3: 0.1, 4: 0.1})
    with caplog.at_level(logging.WARNING, "ckptd"):
        a_pass(work_dir, **BEST)
    assert checkpoints_left(work_dir) == epochs(1, 4)
    assert sum("epoch_2.pth.metrics.json" in text for text in caplog.messages) == 1


@pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
def test_what_stands_where_scores_go_and_is_no_file_is_not_opened(with_checkpoints: Builder, kind: str) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: None, 3: 0.1, 4: 0.1})
    beside = work_dir / "epoch_2.pth.metrics.json"
    if kind == "link":
        (work_dir.parent / "outside").write_text('{"mAP": 1.0}')
        beside.symlink_to(work_dir.parent / "outside")
    elif kind == "fifo":
        os.mkfifo(beside)
    else:
        beside.mkdir()
    a_pass(work_dir, **BEST)
    assert checkpoints_left(work_dir) == epochs(1, 4)
    assert beside.is_symlink() or beside.exists(), "what is no file of scores stays where it is"


def test_nan_is_worse_than_any_number(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: '{"mAP": NaN}', 2: 0.1, 3: '{"mAP": NaN}'})
    a_pass(work_dir, **BEST)
    assert checkpoints_left(work_dir) == epochs(2, 3)


def test_one_whose_score_is_still_to_come_stays_until_a_later_one_is_scored(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.5, 2: None, 3: None})
    a_pass(work_dir, **BEST)
    assert checkpoints_left(work_dir) == epochs(1, 2, 3)
    (work_dir / "epoch_3.pth.metrics.json").write_text('{"mAP": 0.4}')
    a_pass(work_dir, **BEST)
    assert checkpoints_left(work_dir) == epochs(1, 3)


def test_a_metric_that_no_checkpoint_has_keeps_all_and_the_plan_names_those_there_are(
    with_checkpoints: Builder,
) -> None:
    work_dir = scored(with_checkpoints, {1: 0.5, 2: 0.4, 3: 0.3})
    survey = api.plan(work_dir, Policy(max_keep=1, rule="newest", keep_best=("map:max",)))
    assert not survey.prune
    assert any("no checkpoint has the metric map (there are mAP)" in text for text in survey.advice)


def test_a_score_that_is_written_anew_counts_anew(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.5, 2: 0.4, 3: 0.3})
    policy = Policy(max_keep=1, rule="newest", keep_best=("mAP:max",))
    assert api.plan(work_dir, policy).prune == ("epoch_2.pth",)
    (work_dir / "epoch_2.pth.metrics.json").write_text('{"mAP": 0.75}')
    assert api.plan(work_dir, policy).prune == ("epoch_1.pth",)


def trainer(work_dir: Path, step: int, loss: float, with_checkpoints: Builder) -> None:
    """A directory as the Trainer of Transformers leaves it."""
    path = work_dir / f"epoch_{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(torch_zip())
    log = [{"step": step - 1, "eval_loss": 0.0}, {"step": step, "eval_loss": loss, "epoch": 1.0}]
    (path / "trainer_state.json").write_text(json.dumps({"global_step": step, "log_history": log}))
    for each in path.iterdir():
        with_checkpoints.tick(each)


def test_a_trainers_state_holds_the_scores_of_its_own_step(with_checkpoints: Builder, work_dir: Path) -> None:
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.4)):
        trainer(work_dir, step, loss, with_checkpoints)
    survey = api.plan(work_dir, Policy(max_keep=1, rule="newest", keep_best=("eval_loss:min",)))
    assert survey.prune == ("epoch_1",)
    assert dict(survey.decisions[1].checkpoint.metrics) == {"eval_loss": 0.1}


# --- what goes with a checkpoint ------------------------------------------------------------------------------


def test_the_scores_go_where_their_checkpoint_goes_and_come_back_with_it(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: 0.9, 3: 0.3})
    a_pass(work_dir, **{**BEST, "trash_ttl_s": 3600.0})
    assert left(work_dir) == [f"epoch_{step}.pth{end}" for step in (2, 3) for end in ("", ".metrics.json")]
    assert restore(str(work_dir), ["epoch_1.pth"]) == (["epoch_1.pth"], {})
    assert json.loads((work_dir / "epoch_1.pth.metrics.json").read_text())["mAP"] == 0.2


def test_the_scores_are_freed_with_their_checkpoint(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: 0.9, 3: 0.3})
    a_pass(work_dir, **BEST)
    assert not list((work_dir / ".ckptd/trash").iterdir())


def test_scores_that_a_crash_has_left_behind_follow_at_the_next_start(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: 0.9, 3: 0.3})
    a_pass(work_dir, **{**BEST, "trash_ttl_s": 3600.0})
    (beside,) = (work_dir / ".ckptd/trash").glob("*.metrics.json")
    beside.rename(work_dir / "epoch_1.pth.metrics.json")  # as it is between the two renames
    a_pass(work_dir, **{**BEST, "trash_ttl_s": 3600.0})
    assert not (work_dir / "epoch_1.pth.metrics.json").exists()
    assert restore(str(work_dir), ["epoch_1.pth"]) == (["epoch_1.pth"], {})
    assert (work_dir / "epoch_1.pth.metrics.json").exists()


def test_scores_that_stand_in_the_way_of_a_restored_one_stay(with_checkpoints: Builder) -> None:
    work_dir = scored(with_checkpoints, {1: 0.2, 2: 0.9, 3: 0.3})
    a_pass(work_dir, **{**BEST, "trash_ttl_s": 3600.0})
    (work_dir / "epoch_1.pth.metrics.json").write_text('{"mAP": 0.7}')
    assert restore(str(work_dir), ["epoch_1.pth"]) == (["epoch_1.pth"], {})
    assert json.loads((work_dir / "epoch_1.pth.metrics.json").read_text()) == {"mAP": 0.7}


# --- budgets --------------------------------------------------------------------------------------------------


def allocated(*paths: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in paths)


def test_a_budget_empties_the_trash_first_the_oldest_before_the_others(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    each = allocated(work_dir / "epoch_1.pth")
    a_pass(work_dir, max_keep=2, interval=1, trash_ttl_s=3600.0)
    names = {line["name"]: line["trash"] for line in history(work_dir)}
    report = a_pass(work_dir, max_keep=2, interval=1, trash_ttl_s=3600.0, max_bytes=3 * each)
    assert not report.pruned
    assert [path.name for path in (work_dir / ".ckptd/trash").iterdir()] == [names["epoch_2.pth"]]


def history(work_dir: Path) -> list[dict[str, Any]]:
    fd = os.open(work_dir / ".ckptd", os.O_RDONLY)
    try:
        return journal.read(fd)
    finally:
        os.close(fd)


def test_what_a_budget_takes_is_freed_at_once_whatever_the_trash_is_for(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    each = allocated(work_dir / "epoch_1.pth")
    a_pass(work_dir, trash_ttl_s=3600.0, max_bytes=2 * each)
    assert left(work_dir) == epochs(3, 4)
    assert not list((work_dir / ".ckptd/trash").iterdir())


def test_a_budget_smaller_than_one_checkpoint_leaves_the_newest_and_is_an_error_in_the_log_once(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with caplog.at_level(logging.ERROR, "ckptd"):
        a_pass(work_dir, max_bytes=1)
    assert left(work_dir) == epochs(3)
    assert sum("--max-bytes 1 B cannot be met" in text for text in caplog.messages) == 1


def test_a_pass_that_meets_its_budget_changes_nothing_the_next_time(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    policy = {"max_bytes": 3 * allocated(work_dir / "epoch_1.pth")}
    a_pass(work_dir, **policy)
    before = sorted((path.name, path.stat().st_mtime_ns) for path in work_dir.rglob("*"))
    assert not a_pass(work_dir, **policy).pruned
    assert before == sorted((path.name, path.stat().st_mtime_ns) for path in work_dir.rglob("*"))


def test_the_bytes_of_a_plan_are_those_on_the_disk(with_checkpoints: Builder) -> None:
    from ckptd.text.render import as_json

    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    each = allocated(work_dir / "epoch_1.pth")
    a_pass(work_dir, max_keep=3, interval=1, trash_ttl_s=3600.0)
    survey = api.plan(work_dir, Policy(max_keep=2, rule="newest"))
    assert as_json(survey, str(work_dir))["bytes"] == {"kept": 2 * each, "to_free": each, "trash": each, "beyond": 0}


def test_a_score_in_lightnings_name_counts(with_checkpoints: Builder) -> None:
    names = [f"epoch={epoch}-val_loss={loss}.ckpt" for epoch, loss in enumerate(("0.50", "0.20", "0.40", "nan"))]
    work_dir = with_checkpoints(*names)
    a_pass(work_dir, max_keep=1, keep_best=("val_loss:min",), trash_ttl_s=0.0)
    assert set(left(work_dir)) == {names[1], names[3]}
