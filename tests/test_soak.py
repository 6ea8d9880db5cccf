"""A short `make soak`: `ckptd watch` beside a job that saves as fast as it can, killed again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from .soak.soak import BrokenPromise, Job, soak


def test_a_job_that_saves_fast_can_always_resume_though_ckptd_is_killed_again_and_again(disk_path: Path) -> None:
    result = soak(disk_path, saves=500, seed=1, work_dirs=2, kills=4)
    assert (result.saves, result.kills) == (500, 4)
    assert result.pruned > 300
    assert result.rss_first_kb > 0


@pytest.mark.parametrize("how", ["gone", "changed", "pointer gone", "pointed at nothing"])
def test_the_job_notices_what_is_lost(how: str, tmp_path: Path) -> None:
    job = Job([tmp_path], seed=1)
    run = job.runs[0]
    for _ in range(20):
        job.save(run)
    newest = max((name for name in run.saved if run.saved[name][1]), key=lambda name: run.saved[name][0])
    (tmp_path / "last_ckpt").write_text(f"{tmp_path / newest}\n")
    _look(job)
    if how == "gone":
        (tmp_path / newest).unlink()
    elif how == "changed":
        (tmp_path / newest).write_bytes(b"other")
    elif how == "pointer gone":
        (tmp_path / "last_ckpt").unlink()
    else:
        (tmp_path / "last_ckpt").write_text(f"{tmp_path}/epoch_999.pth\n")
    with pytest.raises(BrokenPromise):
        _look(job)


def _look(job: Job) -> None:
    job.check(job.runs[0])
    job.resume(job.runs[0])
