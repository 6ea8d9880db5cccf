"""The scores that a save is given, in a file beside the checkpoint."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from ckptd.errors import CkptdError, UsageError
from ckptd.shim import CheckpointHook, hook
from tests.conftest import left


@pytest.fixture(params=[False, True], ids=["at once", "in the background"])
def ours(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CheckpointHook:
    monkeypatch.delenv("RANK", raising=False)
    bound = CheckpointHook(tmp_path, interval=1, background=request.param)
    bound.before_run(model=nn.Linear(1, 1))
    return bound


def test_scores_stand_beside_their_checkpoint_as_numbers(ours: CheckpointHook, tmp_path: Path) -> None:
    given = {"mAP": 0.25, "loss": torch.tensor([2.0]), "seen": 7, "top1": numpy.float32(0.5), "worst": math.nan}
    with ours:
        ours.after_train_epoch(0, metrics=given)
    scores = json.loads((tmp_path / "epoch_1.pth.metrics.json").read_text())
    assert math.isnan(scores.pop("worst"))
    assert scores == {"mAP": 0.25, "loss": 2.0, "seen": 7.0, "top1": 0.5}
    assert left(tmp_path) == ["epoch_1.pth", "epoch_1.pth.metrics.json"]


def test_a_checkpoint_that_is_saved_anew_has_not_the_scores_of_the_last(ours: CheckpointHook, tmp_path: Path) -> None:
    with ours:
        ours.after_train_epoch(0, metrics={"mAP": 0.25})
        ours.after_train_epoch(0)
    assert left(tmp_path) == ["epoch_1.pth"]


def test_a_save_that_fails_leaves_the_scores_with_what_they_are_of(
    ours: CheckpointHook, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours.after_train_epoch(0, metrics={"mAP": 0.25})
    ours.wait()

    def full(state: Any, file: Any) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(hook.torch, "save", full)

    def again() -> None:
        ours.after_train_epoch(0, metrics={"mAP": 0.5})
        ours.close()

    with pytest.raises(CkptdError, match="No space left"):
        again()
    assert json.loads((tmp_path / "epoch_1.pth.metrics.json").read_text()) == {"mAP": 0.25}


@pytest.mark.parametrize(
    "metrics", [{"mAP": "0.25"}, {"mAP": None}, {"mAP": 1j}, {"mAP": torch.zeros(2)}, {1: 0.5}, {"mAP": [0.5]}],
    ids=str,
)  # fmt: skip
def test_what_is_no_score_is_refused_before_anything_is_written(metrics: Any, tmp_path: Path) -> None:
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=nn.Linear(1, 1))
        with pytest.raises(UsageError, match=r"metrics\[.*: give names and numbers"):
            ours.after_train_epoch(0, metrics=metrics)
    assert left(tmp_path) == []
