"""What runs declare in `.ckptd/schedules/`, read from a disk: what is corrupt or contradicted is ignored."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.core.schedule import LARGEST_BYTES, Schedule

from .conftest import Builder, Watching, a_pass, epochs, left, pointed

Ckptd = Callable[..., "subprocess.CompletedProcess[str]"]
GOOD = Schedule("epoch_{}.pth", "epoch", 1, 2).to_text()


def declare(work_dir: Path, content: str | bytes = GOOD, *, name: str = "epoch_{}.pth.json") -> Path:
    """Put a schedule there as a run does, before all its saves but the first."""
    path = work_dir / ".ckptd/schedules" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    os.utime(path, (1, 1))
    return path


def changed(**fields: Any) -> str:
    return json.dumps({**json.loads(GOOD), **fields})


@pytest.mark.parametrize("content", [
    pytest.param(b"", id="empty"),
    pytest.param(GOOD[:-10], id="truncated"),
    pytest.param(b"\xff\xfe\x00", id="no text"),
    pytest.param("[" * 4000, id="nested without end"),
    pytest.param(GOOD + " " * LARGEST_BYTES, id="larger than any schedule"),
    pytest.param("[]", id="no object"),
    pytest.param(changed(version=2), id="of a later version"),
    pytest.param(changed(interval=0), id="an interval of 0"),
    pytest.param(changed(interval=1.5), id="an interval that is no whole number"),
    pytest.param(changed(max_keep=-1), id="a negative max_keep"),
    pytest.param(changed(max_keep=True), id="a max_keep that is true"),
    pytest.param(changed(template="../epoch_{}.pth"), id="a template that leads out"),
    pytest.param(changed(template="epoch_{}{}.pth"), id="a template of two numbers"),
    pytest.param(changed(unit=None), id="no unit"),
    pytest.param(changed(work_dir="/a\n/b"), id="a path of two lines"),
])  # fmt: skip
def test_what_is_no_schedule_of_this_version_is_ignored_with_a_warning(
    content: str | bytes, with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    path = declare(work_dir, content)
    a_pass(work_dir)
    assert left(work_dir) == epochs(1, 2, 3, 4)
    assert [line for line in caplog.messages if line.startswith(f"ignored {path}: ")]


@pytest.mark.parametrize("kind", ["symlink", "fifo", "directory", "dangling symlink"])
def test_what_is_no_file_in_the_place_of_one_is_ignored_with_a_warning(
    kind: str, with_checkpoints: Builder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    path = declare(work_dir)
    path.unlink()
    (tmp_path / "elsewhere").write_text(GOOD)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / ("elsewhere" if kind == "symlink" else "nowhere"))
    a_pass(work_dir)
    assert left(work_dir) == epochs(1, 2, 3, 4)
    assert len([line for line in caplog.messages if line.startswith(f"ignored {path}: ")]) == 1


def test_one_that_may_not_be_read_is_ignored_with_a_warning(somebody: Any, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2, 3, 4))
    declare(place).chmod(0)
    somebody.owns(place)
    done = ckptd("prune", place, user=somebody)
    assert (done.returncode, left(place)) == (0, epochs(1, 2, 3, 4)), done.stderr
    assert "ignored " in done.stderr
    assert "ermission denied" in done.stderr


def test_one_corrupt_schedule_does_not_cost_the_others(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    declare(work_dir, "not one", name="a.json")
    declare(work_dir)
    declare(work_dir, "not one", name="z.json")
    a_pass(work_dir)
    assert left(work_dir) == epochs(3, 4)


def test_numbers_beyond_all_checkpoints_break_nothing(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    declare(work_dir, changed(interval=10**1900, max_keep=10**1900))
    declare(work_dir, changed(template="\ud800{}.pth"), name="no text.json")
    for command in (["plan"], ["plan", "--json"], ["prune"]):
        done = ckptd(*command, work_dir)
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
    assert left(work_dir) == epochs(1, 2, 3, 4)


# --- contradicted by what was saved ---------------------------------------------------------------------------


def test_a_schedule_of_another_run_is_ignored_and_plan_and_prune_say_so_once(
    with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(4, 5, 6, 7, 8))
    declare(work_dir, changed(interval=4, work_dir="/of/another/run"))
    text = "epoch_{}.pth: ignored what a run has declared: the last saves (6, 7, 8) contradict its interval of 4"
    assert ckptd("plan", work_dir).stdout.count(text) == 1
    assert ckptd("prune", work_dir).stderr.count(text) == 1
    assert left(work_dir) == epochs(4, 5, 6, 7, 8)
    assert pointed(work_dir) == "epoch_8.pth"  # by this work dir's own path
    assert api.plan(work_dir, Policy()).declared == {}


def test_watch_says_once_that_saves_have_come_to_contradict_a_schedule(
    with_checkpoints: Builder, watching: Callable[..., AbstractContextManager[Watching]]
) -> None:
    work_dir = with_checkpoints(*epochs(4, 8))
    declare(work_dir, changed(interval=4))
    with watching(work_dir) as watch:
        watch.heard("pointed last_ckpt at epoch_8.pth")
        with_checkpoints(*epochs(9))
        watch.heard("pointed last_ckpt at epoch_9.pth")
        assert not watch.said("ignored what a run has declared")  # a last save
        with_checkpoints(*epochs(10, 11))
        watch.heard("pointed last_ckpt at epoch_11.pth")
        with_checkpoints(*epochs(13, 15))
        watch.heard("pointed last_ckpt at epoch_15.pth")
        watch.stop()
    assert watch.said("ignored what a run has declared") == 1
    assert left(work_dir) == epochs(4, 8, 9, 10, 11, 13, 15)


def test_a_run_that_resumes_with_another_interval_is_believed_at_once(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("iter_4000.pth", "iter_5000.pth")
    a_pass(work_dir)
    path = declare(work_dir, Schedule("iter_{}.pth", "iter", 300, 2).to_text(), name="iter_{}.pth.json")
    with_checkpoints.tick(path)
    with_checkpoints("iter_5100.pth")
    assert set(api.plan(work_dir, Policy()).declared) == {"iter_{}.pth"}
