"""Which checkpoint a run resumes from: the one that `ckptd latest` names, whatever became of the times on disk."""

from __future__ import annotations

import itertools
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.naming import Template
from ckptd.shim.resume import newest_complete
from tests.conftest import Builder, a_pass, epochs, torch_zip, truncated

EPOCHS = Template("epoch_{}.pth")
PASSED_OVER = "which is not complete: "


def resumed(work_dir: Path) -> str | None:
    """The name that a run resumes from, which is that of `ckptd latest`."""
    name, newest = newest_complete(str(work_dir), EPOCHS), api.latest(work_dir)
    assert name == (newest.name if newest else None)
    return name


def dated(work_dir: Path, *names: str, at: Sequence[int]) -> None:
    """Give each a new time, in seconds from an hour ago, as a copy or `touch` does."""
    began = int(time.time()) - 3600
    for name, second in zip(names, at, strict=True):
        os.utime(work_dir / name, (began + second, began + second))


def with_state(work_dir: Path, **changes: Any) -> None:
    path = work_dir / ".ckptd/state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_where_nothing_is_remembered_the_times_tell_and_then_the_steps(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    dated(work_dir, *epochs(1, 2, 3), at=[9, 9, 9])
    assert resumed(work_dir) == "epoch_3.pth"
    dated(work_dir, "epoch_3.pth", at=[1])
    assert newest_complete(str(work_dir), EPOCHS) == "epoch_2.pth"


def test_a_save_after_the_clock_was_set_back_is_the_newest(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir)
    with_checkpoints(*epochs(4))
    dated(work_dir, "epoch_4.pth", at=[-100])
    assert resumed(work_dir) == "epoch_4.pth"  # no pass has seen it
    a_pass(work_dir)
    with_checkpoints(*epochs(2))  # resumed from epoch 1
    dated(work_dir, "epoch_2.pth", at=[-90])
    a_pass(work_dir)
    assert resumed(work_dir) == "epoch_2.pth"


def test_what_a_pointer_told_of_a_copied_directory_is_remembered(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(3, 2, 1))
    (work_dir / "latest.pth").symlink_to("epoch_2.pth")
    a_pass(work_dir)
    (work_dir / "latest.pth").unlink()
    assert resumed(work_dir) == "epoch_2.pth"


def test_of_a_copy_the_highest_step_is_resumed_from_with_a_word(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    names = sorted(epochs(*range(1, 13)))
    work_dir = with_checkpoints(*names)
    dated(work_dir, *names, at=range(12))
    assert resumed(work_dir) == "epoch_12.pth"
    assert "those of a copy" in caplog.text
    (work_dir / "last_ckpt").write_text("/elsewhere/epoch_11.pth\n")
    assert resumed(work_dir) == "epoch_11.pth"
    (work_dir / "last_ckpt").unlink()
    a_pass(work_dir)
    assert resumed(work_dir) == "epoch_12.pth"
    (work_dir / "epoch_12.pth").write_bytes(truncated())
    dated(work_dir, *names, at=range(12))
    assert resumed(work_dir) == "epoch_11.pth"


def test_a_run_that_was_resumed_is_no_copy(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(8, 10, 9))
    dated(work_dir, *epochs(8, 10, 9), at=range(3))
    assert resumed(work_dir) == "epoch_9.pth"


@pytest.mark.parametrize("at", list(itertools.product((0, 1, 5000), repeat=3)), ids=str)
def test_equal_and_shuffled_times_lead_to_the_same_checkpoint(at: tuple[int, ...], with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 5))
    a_pass(work_dir)
    with_checkpoints(*epochs(3))
    a_pass(work_dir)
    dated(work_dir, *epochs(2, 5, 3), at=at)
    resumed(work_dir)
    with_checkpoints(*epochs(4))
    resumed(work_dir)


def test_what_somebody_brought_back_is_not_the_newest(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(4, 5, 6))
    a_pass(work_dir, max_keep=2, interval=1)
    (work_dir / "epoch_2.pth").write_bytes(torch_zip())
    dated(work_dir, "epoch_2.pth", at=[-100])
    (work_dir / "epoch_6.pth").unlink()
    assert resumed(work_dir) == "epoch_5.pth"


def test_a_save_that_no_pass_has_seen_is_the_newest(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir)
    with_checkpoints(*epochs(2))
    assert resumed(work_dir) == "epoch_2.pth"


@pytest.mark.parametrize("damage", ["corrupt", "of another version", "a symlink", "a directory", ".ckptd a symlink"])
def test_a_state_that_cannot_be_read_is_said_and_the_times_tell(
    damage: str, with_checkpoints: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir)
    path = work_dir / ".ckptd/state.json"
    if damage == "of another version":
        with_state(work_dir, version=99)
    elif damage == "corrupt":
        path.write_text("{")
    elif damage == ".ckptd a symlink":
        (work_dir / ".ckptd").rename(tmp_path / "elsewhere")
        (work_dir / ".ckptd").symlink_to(tmp_path / "elsewhere")
    else:
        path.rename(tmp_path / "elsewhere")
        path.symlink_to(tmp_path / "elsewhere") if damage == "a symlink" else path.mkdir()
    dated(work_dir, "epoch_1.pth", at=[3000])
    assert newest_complete(str(work_dir), EPOCHS) == "epoch_1.pth"
    assert [line for line in caplog.messages if line.startswith("could not read in ")]


def test_damaged_ones_are_passed_over_in_the_order_that_is_remembered(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(5, 3))
    a_pass(work_dir)
    with_checkpoints(*epochs(4))
    a_pass(work_dir)
    with_checkpoints("epoch_6.pth", content=truncated())
    os.utime(work_dir / "epoch_6.pth", (1e9, 1e9))  # quiet by now
    assert resumed(work_dir) == "epoch_4.pth"
    assert [line for line in caplog.messages if f"epoch_6.pth, {PASSED_OVER}" in line]


@pytest.mark.parametrize("doubt", [{"content": "data/0: its checksum is wrong"}, {"durable": False}], ids=str)
def test_what_a_pass_has_found_wrong_is_the_last_resort(
    doubt: dict[str, Any], with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir)
    seen = json.loads((work_dir / ".ckptd/state.json").read_text())["seen"]
    seen["epoch_2.pth"].update(doubt)
    with_state(work_dir, seen=seen)
    assert resumed(work_dir) == "epoch_1.pth"
    assert [line for line in caplog.messages if f"epoch_2.pth, {PASSED_OVER}" in line]
    (work_dir / "epoch_1.pth").unlink()
    assert newest_complete(str(work_dir), EPOCHS) == "epoch_2.pth"


def test_one_that_cannot_be_read_now_is_passed_over(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir)
    from ckptd.shim import resume

    real = resume.judge

    def judge(entry: Any, **more: Any) -> Any:
        if entry.name == "epoch_2.pth":
            raise OSError(5, "Input/output error")
        return real(entry, **more)

    monkeypatch.setattr(resume, "judge", judge)
    assert newest_complete(str(work_dir), EPOCHS) == "epoch_1.pth"
    assert [line for line in caplog.messages if "Input/output error" in line]
