"""A checkpoint that a job never closes is said, once, with who holds it; one that is being saved is not."""

from __future__ import annotations

import contextlib
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.policy import Policy
from ckptd.disk.in_use import process_text, writers_of
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, Somebody, Watching, epochs, holding_open, torch_zip

Watch = Callable[..., contextlib.AbstractContextManager[Watching]]

JOB = """
import sys
held = [open(path, "wb") for path in sys.argv[2:]]
for file in held:
    file.write(open(sys.argv[1], "rb").read())
    file.flush()
print("saved", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def never_closing(*paths: Path, script: str = JOB) -> Iterator[subprocess.Popen[str]]:
    """A job that has written `paths`, and has each of them open until the `with` ends."""
    whole = paths[0].parent.parent / "whole"
    whole.write_bytes(torch_zip())
    command = [sys.executable, "-c", script, str(whole), *map(str, paths)]
    with subprocess.Popen(command, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == "saved\n"
        yield process


@contextlib.contextmanager
def passes(work_dir: Path, *, later_s: float = 0.0) -> Iterator[Reconciler]:
    """A process that makes pass after pass, `later_s` from now."""
    background = Background()
    with WorkDir(work_dir) as work:
        try:
            clock = lambda: time.time_ns() + int(later_s * 1e9)  # noqa: E731
            yield Reconciler(work, Policy(max_keep=1, interval=1), background, clock=clock)
        finally:
            background.close()


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [line for line in lines if "still open for writing" in line]


def test_what_is_never_closed_is_said_once_with_who_holds_it(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with never_closing(*(work_dir / name for name in epochs(1, 2, 3))) as job, passes(work_dir, later_s=6) as process:
        process.reconcile()
        (line,) = said(caplog)
        names = "epoch_1.pth, epoch_2.pth, epoch_3.pth"
        assert line.startswith(f"{names}: still open for writing in process {job.pid} ({sys.executable} -c ")
        assert "Close each file" in line
        with never_closing(work_dir / "epoch_4.pth"):
            process.reconcile()
        assert said(caplog) == [line]


@pytest.mark.parametrize("names", [epochs(1), epochs(1, 2)], ids=["the newest", "and one that a background writes"])
def test_what_may_be_being_saved_is_not_said(
    names: list[str], with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints("iter_1.pth", "iter_2.pth", "iter_3.pth")  # another series counts for nothing
    with never_closing(*(work_dir / name for name in names)), passes(work_dir, later_s=6) as process:
        again_s = process.reconcile().look_again_s
        assert again_s is not None
        assert again_s <= 0.5, "it may just have been closed"
        time.sleep(again_s)  # its clock is the real one, set on
        again_s = process.reconcile().look_again_s
        assert again_s is not None
        assert 590 < again_s < 600
        assert not said(caplog)


def test_what_is_written_to_is_not_said_however_many_came_later(
    work_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with never_closing(*(work_dir / name for name in epochs(1, 2, 3))), passes(work_dir) as process:
        again_s = process.reconcile().look_again_s
        assert again_s is not None
        assert again_s < 6
        assert not said(caplog)


def test_the_newest_is_said_once_it_has_been_so_for_ten_minutes(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with never_closing(work_dir / "epoch_2.pth"), passes(work_dir, later_s=601) as process:
        process.reconcile()
    assert said(caplog)[0].startswith("epoch_2.pth: ")


def test_one_that_a_worker_has_inherited_is_said_though_the_others_are_closed(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    with holding_open(work_dir / "epoch_2.pth", "r+b") as worker, passes(work_dir) as process:
        process.reconcile()
    assert said(caplog)[0].startswith(f"epoch_2.pth: still open for writing in process {worker.pid} ")


def test_a_shard_that_is_never_closed_is_said_of_its_directory(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2, 3):
        work_dir = with_checkpoints.shards(f"iter_{step}").parent
    with holding_open(work_dir / "iter_1/__0_0.distcp", "r+b") as job, passes(work_dir) as process:
        process.reconcile()
    assert said(caplog)[0].startswith(f"iter_1: still open for writing in process {job.pid} ")


MAPPED = """
import mmap, sys
with open(sys.argv[2], "r+b") as file:
    held = mmap.mmap(file.fileno(), 0)
print("saved", flush=True)
sys.stdin.read()
"""


def test_a_mapping_that_writes_is_a_writer_and_one_that_reads_is_none(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with never_closing(work_dir / "epoch_1.pth", script=MAPPED) as job, WorkDir(work_dir) as work:
        assert writers_of(epochs(1, 2), dir_fd=work.fd) == [job.pid]
        assert writers_of(epochs(2), dir_fd=work.fd) == []
    with holding_open(work_dir / "epoch_1.pth", "rb"), WorkDir(work_dir) as work:
        assert writers_of(epochs(1), dir_fd=work.fd) == []


def test_a_process_is_named_with_its_command_as_far_as_that_is_short(work_dir: Path) -> None:
    with holding_open(work_dir / ("x" * 200), "w") as process:
        text = process_text(process.pid)
        assert text.startswith(f"process {process.pid} ({sys.executable} -c import sys")
        assert text.endswith("...)")
        assert len(text) < 120
    assert process_text(process.pid) == f"process {process.pid}"  # it is gone


def test_who_cannot_be_seen_is_said_to_be_there_all_the_same(somebody: Somebody, ckptd: Any) -> None:
    if somebody.is_us:
        pytest.skip("only root can be somebody whom others do not see")
    work_dir = somebody.place / "run"
    work_dir.mkdir()
    Builder(work_dir)(*epochs(1, 2, 3))
    somebody.owns(work_dir)
    with holding_open(work_dir / "epoch_1.pth", "r+b"):
        done = ckptd("prune", work_dir, "--max-keep", "1", "--interval", "1", user=somebody)
    assert "epoch_1.pth: still open for writing in a process that cannot be seen from here" in done.stderr


@pytest.mark.parametrize("how", ["RUN", "ROOT"])
def test_a_watch_says_it_without_a_hint(how: str, work_dir: Path, watching: Watch) -> None:
    where = [work_dir] if how == "RUN" else ["--recursive", work_dir.parent]
    with watching(*where, "--max-keep", "1", "--scan-interval", "1d") as watch:
        with never_closing(*(work_dir / name for name in epochs(1, 2, 3, 4))) as job:
            assert f"process {job.pid}" in watch.heard("still open for writing")
        watch.heard("pointed last_ckpt at epoch_4.pth")
        assert watch.stop() == 0
    assert watch.said("still open for writing") == 1


def test_what_is_open_is_looked_at_once_more_soon_for_its_closing_may_have_been_told_too_early(
    with_checkpoints: Builder, work_dir: Path
) -> None:
    with_checkpoints("epoch_1.pth", "epoch_2.pth")
    now_ns = [time.time_ns()]
    background = Background()
    with WorkDir(work_dir) as work, holding_open(work_dir / "epoch_2.pth", "r+b"):
        reconciler = Reconciler(work, Policy(), background, clock=lambda: now_ns[0])
        soon = reconciler.reconcile().look_again_s
        assert soon is not None
        assert soon <= 1
        again = reconciler.reconcile().look_again_s  # a hint that came before that
        assert again == soon
        now_ns[0] += 10**9
        later = reconciler.reconcile().look_again_s
        assert later is None or later > 1, "no more than once"
        assert reconciler.reconcile().look_again_s == soon  # after the next event, or scan
    background.close()
