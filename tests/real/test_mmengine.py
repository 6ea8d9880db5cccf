"""`ckptd watch` beside the real mmengine with ckptd's hook in it, and mmengine's own resume from what is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ..conftest import readme

pytestmark = pytest.mark.real

POINTER = ("--pointer", "last_checkpoint")
Train = Callable[..., dict[str, Any]]


@pytest.fixture
def train(framework, trainer, work_dir, monkeypatch) -> Train:
    """Train until an epoch, with the config of docs/frameworks.md; returns where it began and what was there then."""
    framework("mmengine", "0.10.7")
    job = trainer("train_mmengine.py")

    def run(until: int, *, resume: bool = False, **more: Any) -> dict[str, Any]:
        config = readme("mmengine")
        (said,) = job.do(config=config, work_dir=str(work_dir), until=until, resume=resume, more=more)
        return said

    # Without it mmengine cannot read its own checkpoints, as docs/frameworks.md says.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    return run


def test_without_options_ckptd_leaves_what_the_config_says_and_mmengine_resumes(train, watch, work_dir):
    watching = watch(work_dir, *POINTER)
    assert train(6)["began"] == 0
    watching.until(lambda: left(work_dir), epochs(4, 5, 6))
    assert pointed(work_dir) == "epoch_6.pth"
    assert train(9, resume=True)["began"] == 6
    watching.until(lambda: left(work_dir), epochs(7, 8, 9))
    watching.stop_well()
    assert pointed(work_dir) == "epoch_9.pth"


def test_the_pointer_leads_mmengine_past_a_checkpoint_that_was_cut_short(train, ckptd, work_dir):
    train(5)
    with open(work_dir / "epoch_5.pth", "r+b") as file:
        file.truncate(1000)
    settled = ckptd("prune", work_dir, *POINTER, "--settle", "0")
    assert settled.returncode == 0, settled.stderr
    assert pointed(work_dir) == "epoch_4.pth"
    assert train(6, resume=True)["began"] == 4


def test_the_best_is_left_to_mmengine(train, watch, work_dir):
    watching = watch(work_dir, *POINTER)
    said = train(5, save_best="score/acc", max_keep_ckpts=1)
    watching.until(lambda: left(work_dir), ["best_score_acc_epoch_5.pth", *epochs(5)])
    assert said["best"] == str(work_dir / "best_score_acc_epoch_5.pth")
    watching.stop_well()


def left(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob("*.pth"))


def epochs(*steps: int) -> list[str]:
    return [f"epoch_{step}.pth" for step in steps]


def pointed(work_dir: Path) -> str:
    return Path((work_dir / "last_checkpoint").read_text().strip()).name
