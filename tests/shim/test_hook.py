"""One process: what a save leaves, when it is refused, and what a run resumes from."""

from __future__ import annotations

import logging
import os
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch import nn

from ckptd import api
from ckptd.core.checkpoint import State
from ckptd.disk.descriptors import temporary_name
from ckptd.errors import CkptdError, UsageError
from ckptd.shim import CheckpointHook, Progress, hook, publish
from ckptd.shim.state import collect, name_without_wrappers
from tests.conftest import environment, left
from tests.golden_cases import CASES, EVENTS

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))


def trained() -> tuple[nn.Module, torch.optim.Optimizer]:
    """A model and an optimizer that have taken a step, so that the optimizer has a state."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def loaded(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


# --- when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("background", [False, True])
def test_it_saves_exactly_when_mmcvs_hook_does(background: bool, tmp_path: Path) -> None:
    model, events = nn.Linear(1, 1), 0
    for case in CASES:
        place = tmp_path / case["id"]
        place.mkdir()
        for name in case["pre"]:
            (place / name).touch()
        for segment in case["segments"]:
            expected = [(event["step"], event["saved"], event["last_ckpt"]) for event in segment["events"]]
            assert expected == list(driven(segment, place, model, background)), case["id"]
            events += len(expected)
    assert events == EVENTS


def driven(segment: dict[str, Any], place: Path, model: nn.Module, background: bool) -> Any:
    """The saves of our hook in the run that a golden segment tells of."""
    (settings,) = segment["hooks"]
    stop = {"max_epochs" if segment["runner"] == "epoch" else "max_iters": segment["stop"]}
    with CheckpointHook(place, **settings, **stop, background=background) as ours:
        ours.before_run(model=model)
        after = ours.after_train_epoch if segment["runner"] == "epoch" else ours.after_train_iter
        for counter in range(segment["start"], segment.get("killed_after", segment["stop"])):
            path = after(counter)
            if path is not None:
                ours.wait()
                assert path.stat().st_size > 0
                yield counter + 1, path.name, ours.last_ckpt.name


@pytest.mark.parametrize(("expected", "call"), [
    pytest.param(True, {"step": 6}, id="on the grid"),
    pytest.param(False, {"step": 7}, id="off the grid"),
    pytest.param(True, {"step": 10}, id="the last, known from max_epochs"),
    pytest.param(True, {"step": 7, "last": True}, id="the last, as the caller says"),
    pytest.param(False, {"step": 10, "last": False}, id="not the last, as the caller says"),
])  # fmt: skip
def test_should_save_tells_those_who_save_themselves(expected: bool, call: dict[str, Any], tmp_path: Path) -> None:
    assert CheckpointHook(tmp_path, interval=3, max_epochs=10).should_save(**call) is expected


def test_a_hook_counts_one_thing_and_notes_the_other(tmp_path: Path) -> None:
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network())
        assert ours.after_train_iter(99) is None
        path = ours.after_train_epoch(0)
    assert path == tmp_path / "epoch_1.pth"
    meta = loaded(path)["meta"]
    assert (meta["epoch"], meta["iter"]) == (1, 100)


# --- what a save leaves ---------------------------------------------------------------------------------------


def test_a_checkpoint_holds_the_run_and_names_itself(tmp_path: Path) -> None:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    record = {"accuracy": 0.0}
    with CheckpointHook(tmp_path / "a/b", interval=1, meta={"seed": 7}) as ours:
        ours.before_run(model=model, optimizer=optimizer, scheduler=scheduler, record=record)
        record["accuracy"] = 0.5
        path = ours.after_train_epoch(0)
    state = loaded(path)
    assert list(state) == ["meta", "state_dict", "optimizer", "scheduler", "record"]
    assert state["meta"]["hook_msgs"] == {"last_ckpt": str(path)}
    assert state["meta"]["seed"] == 7
    assert state["record"] == {"accuracy": 0.5}
    assert torch.equal(state["state_dict"]["0.weight"], model[0].weight)
    assert state["optimizer"]["state"][0]["step"] == 1
    assert api.verify(path).state is State.COMPLETE


@pytest.mark.parametrize("name", ["a b", "line\nbreak", "\udcff", "a'b\"c$d%{}", " ", "-n", "ünï", "s3:", "x" * 255])
def test_a_directory_may_be_called_anything(name: str, tmp_path: Path) -> None:
    place = tmp_path / name
    with CheckpointHook(place, interval=1, create_symlink=True, max_keep_ckpts=1) as ours:
        ours.before_run(model=network())
        path = ours.after_train_epoch(0, metrics={"loss": 1})
    assert left(place) == ["latest.pth", "epoch_1.pth", "epoch_1.pth.metrics.json"]
    assert loaded(path)["meta"]["hook_msgs"]["last_ckpt"] == str(path)
    assert CheckpointHook(place).resume(model=network()).path == path


@pytest.mark.parametrize("one", [numpy.int64(1), numpy.uint8(1), torch.tensor(1)])
def test_a_loop_may_count_with_numbers_of_a_library(one: Any, tmp_path: Path) -> None:
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network())
        ours.after_train_iter(one)
        path = ours.after_train_epoch(one)
    assert path == tmp_path / "epoch_2.pth"
    assert loaded(path)["meta"]["iter"] == 2


def test_it_is_said_on_which_step(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with CheckpointHook(tmp_path, interval=2) as ours:
        ours.before_run(model=network())
        ours.after_train_epoch(1)
    assert "Saving checkpoint at 2 epochs" in caplog.messages


def test_the_optimizer_is_left_out_if_asked_and_several_are_saved_by_name(tmp_path: Path) -> None:
    model, optimizer = trained()
    for settings, given in (({"save_optimizer": False}, optimizer), ({}, {"g": optimizer, "d": optimizer})):
        with CheckpointHook(tmp_path, interval=1, **settings) as ours:
            ours.before_run(model=model, optimizer=given)
            state = loaded(ours.after_train_epoch(0))
        assert list(state.get("optimizer", [])) == ([] if settings else ["g", "d"])


def test_wrappers_leave_no_trace_in_the_names_and_a_users_own_module_keeps_its_name() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)
            self.block = torch.compile(nn.Sequential(nn.BatchNorm1d(2)))

    model = nn.DataParallel(torch.compile(Model()))
    state = collect(model, None, {})["state_dict"]
    norm = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
    names = ["module.weight", "module.bias", *(f"block.0.{name}" for name in norm)]
    assert list(state) == names
    assert state._metadata["block.0"] == {"version": 2}
    assert name_without_wrappers(model, "module._orig_mod.block._orig_mod.0") == "block.0"


def test_a_wrapped_model_resumes_from_a_plain_ones_checkpoint(tmp_path: Path) -> None:
    plain, inside = network(), network()
    wrapped = torch.compile(inside)
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=plain)
        ours.after_train_epoch(0)
    with CheckpointHook(tmp_path) as ours:
        ours.resume(model=wrapped)
    assert torch.equal(plain[0].weight, inside[0].weight)


def test_the_final_name_is_never_that_of_a_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While it is written it has another name; the order of the steps is what makes it durable."""
    said: list[str] = []

    def noting(name: str, real: Any) -> Any:
        def call(*args: Any, **more: Any) -> Any:
            said.append(name if name != "fsync" else f"fsync {kind_of(args[0])}")
            return real(*args, **more)

        return call

    def kind_of(fd: int) -> str:
        return "directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file"

    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network())
        ours.after_train_epoch(0)  # so that what is declared once is not among the steps
        monkeypatch.setattr(hook.torch, "save", noting("save", torch.save))
        monkeypatch.setattr(os, "fsync", noting("fsync", os.fsync))
        monkeypatch.setattr(os, "rename", noting("rename", os.rename))
        ours.after_train_epoch(1)
    assert said == ["save", "fsync file", "rename", "fsync directory"]


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_the_mode_is_as_the_umask_says(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        with CheckpointHook(tmp_path, interval=1) as ours:
            ours.before_run(model=network())
            path = ours.after_train_epoch(0)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_a_failed_save_leaves_the_names_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network())
        first = ours.after_train_epoch(0)
        content = first.read_bytes()

        def full(state: Any, file: Any) -> None:
            file.write(b"the first bytes")
            raise OSError(28, os.strerror(28))

        with monkeypatch.context() as patched:
            patched.setattr(hook.torch, "save", full)
            with pytest.raises(CkptdError, match=r"epoch_1\.pth: could not be saved: No space left .* Free space"):
                ours.after_train_epoch(0)
        assert first.read_bytes() == content
        assert left(tmp_path) == ["epoch_1.pth"]
        assert ours.last_ckpt == first
        assert ours.after_train_epoch(1) == tmp_path / "epoch_2.pth"


def test_what_a_killed_save_left_is_swept_at_the_next_start(tmp_path: Path) -> None:
    """A real kill, in the middle of torch.save."""
    script = (
        "import os, sys, signal, torch\n"
        "from ckptd.shim import CheckpointHook, hook\n"
        "def killed(state, file): file.write(b'part'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "ours = CheckpointHook(sys.argv[1], interval=1)\n"
        "ours.before_run(model=torch.nn.Linear(1, 1))\n"
        "hook.torch.save = killed\n"
        "ours.after_train_epoch(0)\n"
    )
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], cwd=REPOSITORY, env=environment(), timeout=60)
    assert done.returncode == -9
    assert os.listdir(tmp_path) == [temporary_name("epoch_{}.pth")]
    CheckpointHook(tmp_path, interval=1).before_run(model=network())
    assert os.listdir(tmp_path) == []


def test_what_stands_at_the_name_is_replaced_and_a_symlink_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("dear")
    (tmp_path / "epoch_1.pth").symlink_to("elsewhere")
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network())
        path = ours.after_train_epoch(0)
    assert (tmp_path / "elsewhere").read_text() == "dear"
    assert path.is_file()
    assert not path.is_symlink()


def test_latest_pth_follows_the_saves(tmp_path: Path) -> None:
    with CheckpointHook(tmp_path, interval=1, create_symlink=True) as ours:
        ours.before_run(model=network())
        for epoch in range(2):
            path = ours.after_train_epoch(epoch)
            assert os.readlink(tmp_path / "latest.pth") == path.name
    assert left(tmp_path) == ["latest.pth", "epoch_1.pth", "epoch_2.pth"]


def test_where_there_are_no_symlinks_the_save_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def unsupported(*_: Any, **__: Any) -> None:
        raise OSError(95, os.strerror(95))

    monkeypatch.setattr(publish.os, "symlink", unsupported)
    with CheckpointHook(tmp_path, interval=1, create_symlink=True) as ours:
        ours.before_run(model=network())
        assert ours.after_train_epoch(0) is not None
        assert ours.after_train_epoch(1) is not None
    assert len([line for line in caplog.messages if "could not link latest.pth" in line]) == 1


def test_another_rank_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    with CheckpointHook(tmp_path / "run", interval=1) as ours:
        ours.before_run(model=network())
        assert ours.after_train_epoch(0) == tmp_path / "run/epoch_1.pth"
    assert not (tmp_path / "run").exists()


# --- what is refused, and when --------------------------------------------------------------------------------


@pytest.mark.parametrize(("words", "settings"), [
    ("interval is 0", {"interval": 0}),
    ("interval is 1.5", {"interval": 1.5}),
    ("max_keep_ckpts is -2", {"max_keep_ckpts": -2}),
    ("it has no fields", {"filename_tmpl": "model.pth"}),
    ("sub/epoch_", {"filename_tmpl": "sub/epoch_{}.pth"}),
])  # fmt: skip
def test_settings_that_mean_nothing_are_refused(words: str, settings: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        CheckpointHook(tmp_path, **settings)


@pytest.mark.parametrize(("words", "bound"), [
    ("model is a dict", {"model": {}}),
    ("optimizer is a str", {"model": nn.Linear(1, 1), "optimizer": "adam"}),
    ("state 'meta'", {"model": nn.Linear(1, 1), "meta": 1}),
    (r"scores\[0\]: a numpy.float64", {"model": nn.Linear(1, 1), "scores": [numpy.float64(1)]}),
])  # fmt: skip
def test_what_could_never_be_saved_is_refused_before_training(
    words: str, bound: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(CkptdError, match=words):
        CheckpointHook(tmp_path / "run").before_run(**bound)
    assert not (tmp_path / "run").exists()


def test_a_directory_that_cannot_be_made_is_told_before_training(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CkptdError, match=r"file/run: no checkpoint can be written there: Not a directory"):
        CheckpointHook(tmp_path / "file/run").before_run(model=network())


def test_nothing_is_left_in_a_directory_that_was_only_tried(tmp_path: Path) -> None:
    CheckpointHook(tmp_path).before_run(model=network())
    assert os.listdir(tmp_path) == []


def test_what_weights_only_would_refuse_is_named_at_the_first_save(tmp_path: Path) -> None:
    record: dict[str, Any] = {"best": {}}
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network(), record=record)
        record["best"]["where"] = Path("a")
        with pytest.raises(CkptdError, match=r"^record\.best\.where: a pathlib\.\w+, which torch\.load refuses"):
            ours.after_train_epoch(0)
    assert os.listdir(tmp_path) == []


def test_a_loop_without_before_run_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="call before_run"):
        CheckpointHook(tmp_path, interval=1).after_train_epoch(0)


def test_the_block_never_masks_what_was_raised_in_it(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), CheckpointHook(tmp_path):
        raise ZeroDivisionError


# --- resuming -------------------------------------------------------------------------------------------------


def test_a_run_resumes_with_all_that_it_had(tmp_path: Path) -> None:
    model, optimizer = trained()
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    optimizer.step()
    scheduler.step()
    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=model, optimizer=optimizer, scheduler=scheduler, best=0.25)
        ours.after_train_iter(41)
        ours.after_train_epoch(2)
    again = network()
    its_optimizer = torch.optim.Adam(again.parameters())
    its_scheduler = torch.optim.lr_scheduler.StepLR(its_optimizer, 1)
    with CheckpointHook(tmp_path, interval=1) as ours:
        progress = ours.resume(model=again, optimizer=its_optimizer, scheduler=its_scheduler, best=0.0)
        assert ours.last_ckpt == progress.path == tmp_path / "epoch_3.pth"
    assert (progress.epoch, progress.iteration, progress.states) == (3, 42, {"best": 0.25})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True))
    assert its_optimizer.state_dict()["state"][0]["step"] == 2
    assert its_scheduler.last_epoch == scheduler.last_epoch


def test_a_checkpoint_of_another_writer_counts_by_its_name(tmp_path: Path) -> None:
    for meta in (None, "by hand", {"epoch": None}):
        torch.save({"state_dict": network().state_dict(), "meta": meta}, tmp_path / "epoch_7.pth")
        assert CheckpointHook(tmp_path).resume(model=network()).epoch == 7


def test_an_empty_directory_is_a_run_from_the_start(tmp_path: Path) -> None:
    assert CheckpointHook(tmp_path).resume(model=network()) == Progress()


def test_newest_is_by_writing_and_not_by_number(tmp_path: Path) -> None:
    saved(tmp_path, 5, 3)
    assert CheckpointHook(tmp_path).resume(model=network()).epoch == 3


@pytest.mark.parametrize("damage", ["truncated", "zeros inside", "empty"])
def test_a_damaged_newest_is_passed_over_and_said(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 1, 2)
    path = tmp_path / "epoch_2.pth"
    content = path.read_bytes()
    at = content.index(b"/data/0") + 200
    damaged = {"truncated": content[:-100], "zeros inside": content[:at] + bytes(32) + content[at + 32 :], "empty": b""}
    path.write_bytes(damaged[damage])
    assert CheckpointHook(tmp_path).resume(model=network()).epoch == 1
    assert f"passed over {path}, which is not complete: " in caplog.text


def test_a_checkpoint_of_another_model_is_told(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    with pytest.raises(CkptdError, match=r"epoch_1\.pth: its state_dict does not fit the model"):
        CheckpointHook(tmp_path).resume(model=nn.Linear(1, 1))
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=1)
    with pytest.raises(CkptdError, match=r"epoch_1\.pth: holds no 'optimizer'"):
        CheckpointHook(tmp_path).resume(model=model, optimizer=optimizer)


def test_what_is_not_weights_only_is_loaded_if_the_user_says_so(tmp_path: Path) -> None:
    state = {"state_dict": network().state_dict(), "meta": {"epoch": 4, "path": Path("x")}}
    torch.save(state, tmp_path / "epoch_4.pth")
    with pytest.raises(CkptdError, match="weights_only=False"):
        CheckpointHook(tmp_path).resume(model=network())
    assert CheckpointHook(tmp_path).resume(model=network(), weights_only=False).epoch == 4


def saved(place: Path, *epochs: int) -> None:
    """Checkpoints of these epochs, written in this order, a second apart."""
    with CheckpointHook(place, interval=1) as ours:
        ours.before_run(model=network())
        for index, epoch in enumerate(epochs):
            path = ours.after_train_epoch(epoch - 1)
            os.utime(path, (1_700_000_000 + index, 1_700_000_000 + index))
