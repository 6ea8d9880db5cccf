"""What a run declares, a ckptd beside it obeys; and no run fails because it could not."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from torch import nn

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.core.schedule import Schedule
from ckptd.errors import UsageError
from ckptd.shim import CheckpointHook, declare
from tests.conftest import Builder, a_pass, left


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def declared(work_dir: Path, **more: object) -> list[Schedule]:
    declare(work_dir, **{"template": "step_{}.pt", "unit": "step", "interval": 10, "max_keep": 2, **more})
    place = work_dir / ".ckptd/schedules"
    return [Schedule.from_text(path.read_text()) for path in place.iterdir()] if place.exists() else []


def test_a_series_is_declared_once_its_first_checkpoint_is_there(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    assert declared(work_dir) == []
    assert os.listdir(work_dir) == ["epoch_1.pth"]
    with_checkpoints("step_10.pt")
    assert declared(work_dir) == [Schedule("step_{}.pt", "step", 10, 2, str(work_dir))]


def test_ckptd_obeys_what_is_declared(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*(f"step_{step}.pt" for step in (10, 20, 30, 40)))
    declared(work_dir)
    a_pass(work_dir)
    assert left(work_dir) == ["step_30.pt", "step_40.pt"]


def test_what_already_stands_there_is_not_written_again(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("step_10.pt")
    declared(work_dir)
    (path,) = (work_dir / ".ckptd/schedules").iterdir()
    before = path.stat()
    declared(work_dir)
    assert path.stat() == before
    assert declared(work_dir, max_keep=3)[0].max_keep == 3


def test_each_template_has_a_file_that_the_daemon_reads(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("step_10.pt", ".hidden_1.pt")
    declared(work_dir)
    declared(work_dir, template=".hidden_{}.pt")
    survey = api.plan(work_dir, Policy())
    assert set(survey.declared) == {"step_{}.pt", ".hidden_{}.pt"}


def test_what_cannot_be_written_is_one_warning_and_no_error(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints("step_10.pt")
    (work_dir / ".ckptd").write_text("in the way")
    declared_twice = [declare(work_dir, template="step_{}.pt", unit="step") for _ in range(2)]
    assert declared_twice == [None, None]
    assert len([line for line in caplog.messages if "could not declare step_{}.pt" in line]) == 1


def test_a_symlink_in_the_way_is_not_followed(with_checkpoints: Builder, tmp_path: Path) -> None:
    work_dir = with_checkpoints("step_10.pt")
    (tmp_path / "outside").mkdir()
    (work_dir / ".ckptd").symlink_to(tmp_path / "outside")
    declare(work_dir, template="step_{}.pt", unit="step")
    assert os.listdir(tmp_path / "outside") == []


def test_only_rank_0_declares(with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    assert declared(with_checkpoints("step_10.pt")) == []


def test_what_means_nothing_is_refused(work_dir: Path) -> None:
    with pytest.raises(UsageError, match="max_keep is 0"):
        declare(work_dir, template="step_{}.pt", unit="step", max_keep=0)


def test_the_hook_declares_itself_with_its_first_save(work_dir: Path) -> None:
    with CheckpointHook(work_dir, interval=1, max_keep_ckpts=2) as hook:
        hook.before_run(model=nn.Linear(1, 1))
        assert os.listdir(work_dir) == []
        for epoch in range(4):
            hook.after_train_epoch(epoch)
            a_pass(work_dir)
    assert left(work_dir) == ["epoch_3.pth", "epoch_4.pth"]


def test_a_resumed_run_declares_itself_before_it_trains(work_dir: Path) -> None:
    for max_keep in (2, 5):
        with CheckpointHook(work_dir, interval=1, max_keep_ckpts=max_keep) as hook:
            hook.resume(model=nn.Linear(1, 1))
            assert max_keep == 2 or api.plan(work_dir, Policy()).declared["epoch_{}.pth"].max_keep == 5
            hook.after_train_epoch(0)
