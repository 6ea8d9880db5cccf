"""Two that save the same series into the same directory: told, and neither writes over the other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from ckptd.disk.descriptors import temporary_name
from ckptd.errors import CkptdError, UsageError
from ckptd.shim import CheckpointHook
from tests.conftest import environment, left

from .conftest import REPOSITORY


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def bound(place: Path, **settings: str) -> CheckpointHook:
    ours = CheckpointHook(place, interval=1, **settings)  # type: ignore[arg-type]
    ours.before_run(model=nn.Linear(1, 1))
    return ours


def test_a_second_hook_of_the_process_is_refused_until_the_first_is_closed(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("run")
    first = bound(tmp_path / "run")
    with pytest.raises(UsageError, match=r"link: another hook of this process saves epoch_\{\}\.pth there"):
        bound(tmp_path / "link")
    first.close()
    bound(tmp_path / "link").close()


def test_a_hook_that_nobody_holds_any_more_is_in_nobodys_way(tmp_path: Path) -> None:
    first = bound(tmp_path)
    first.after_train_epoch(0)
    del first
    bound(tmp_path).close()


def test_a_resume_that_failed_leaves_the_place_to_another_hook(tmp_path: Path) -> None:
    torch.save({"state_dict": {}}, tmp_path / "epoch_1.pth")
    first = CheckpointHook(tmp_path)
    with pytest.raises(CkptdError, match="does not fit"):
        first.resume(model=nn.Linear(1, 1))
    bound(tmp_path).close()


def test_two_series_in_one_directory_are_as_good_as_two_directories(tmp_path: Path) -> None:
    with bound(tmp_path) as first, bound(tmp_path, filename_tmpl="other_{}.pth") as second:
        first.after_train_epoch(0)
        second.after_train_epoch(0)
    assert left(tmp_path) == ["epoch_1.pth", "other_1.pth"]


def test_another_process_in_the_middle_of_a_save_is_told_and_nothing_of_its_is_lost(tmp_path: Path) -> None:
    script = (
        "import sys, torch\n"
        "from ckptd.shim import CheckpointHook, hook\n"
        "def slowly(state, file):\n"
        "    print('in the middle', flush=True)\n"
        "    sys.stdin.readline()\n"
        "    save(state, file)\n"
        "save, ours = torch.save, CheckpointHook(sys.argv[1], interval=1)\n"
        "ours.before_run(model=torch.nn.Linear(1, 1))\n"
        "hook.torch.save = slowly\n"
        "ours.after_train_epoch(0)\n"
    )
    ours = bound(tmp_path)
    command = [sys.executable, "-c", script, str(tmp_path)]
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(RANK="0"), **streams) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == b"in the middle\n"
        words = r"^epoch_\{\}\.pth: another run is saving this series in this directory right now\. Give each run"
        with pytest.raises(CkptdError, match=words):
            ours.after_train_epoch(4)
        ours.close()
        with pytest.raises(CkptdError, match=words):
            bound(tmp_path)
        assert os.path.exists(tmp_path / temporary_name("epoch_{}.pth"))
        other.stdin.write(b"\n")
        other.stdin.close()
        assert other.wait() == 0
    assert left(tmp_path) == ["epoch_1.pth"]
    assert torch.load(tmp_path / "epoch_1.pth", weights_only=True)["meta"]["epoch"] == 1
