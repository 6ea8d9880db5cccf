"""A run that nobody prunes for says so once, and asking disturbs no ckptd."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ckptd.core.naming import Template
from ckptd.shim import attendance
from ckptd.shim.attendance import warn_if_unattended
from ckptd.workdir.workdir import WorkDir
from tests.conftest import Builder, Watching, a_pass, environment, epochs, picture

EPOCHS = Template("epoch_{}.pth")


@pytest.fixture(autouse=True)
def nothing_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attendance, "_warned", set())


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Callable[..., int]:
    """Ask after a save, and tell how many warnings there were so far."""

    def ask(work_dir: Path, max_keep: int = 3, template: Template = EPOCHS) -> int:
        warn_if_unattended(work_dir, template, max_keep)
        return len([line for line in caplog.messages if "no ckptd is there to prune" in line])

    return ask


def test_it_is_said_once_with_the_command_to_run(
    with_checkpoints: Builder, said: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    assert said(work_dir) == 0  # a ckptd may be about to prune the oldest
    with_checkpoints(*epochs(5))
    assert [said(work_dir), said(work_dir)] == [1, 1]
    assert f"`ckptd watch {work_dir}`" in caplog.messages[-1]


def test_each_work_dir_has_its_own_warning_and_a_path_that_a_shell_takes(
    tmp_path: Path, said: Callable[..., int], caplog: pytest.LogCaptureFixture
) -> None:
    for at, name in enumerate(("a", "b c"), 1):
        (tmp_path / name).mkdir()
        assert said(Builder(tmp_path / name)(*epochs(1, 2, 3, 4, 5))) == at
    assert f"`ckptd watch '{tmp_path}/b c'`" in caplog.messages[-1]


@pytest.mark.parametrize("max_keep", [-1, 0])
def test_a_run_that_keeps_all_wants_no_ckptd(
    max_keep: int, with_checkpoints: Builder, said: Callable[..., int]
) -> None:
    assert said(with_checkpoints(*epochs(*range(1, 9))), max_keep) == 0


def test_only_the_series_of_the_run_counts(with_checkpoints: Builder, said: Callable[..., int]) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4), "iter_1.pth", "best_epoch_1.pth", "epoch_01.pth")
    assert said(work_dir) == 0


def test_nothing_is_said_while_a_ckptd_owns_the_work_dir(
    with_checkpoints: Builder,
    said: Callable[..., int],
    watching: Callable[..., AbstractContextManager[Watching]],
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    with watching(work_dir) as watch:
        watch.heard("pointed last_ckpt")
        assert said(work_dir) == 0
        watch.stop()
    assert said(work_dir) == 1  # the lock file it left says nothing


def test_what_an_earlier_pass_left_is_no_ckptd(with_checkpoints: Builder, said: Callable[..., int]) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir)
    assert said(work_dir) == 1


def test_asking_changes_nothing_on_disk(with_checkpoints: Builder, said: Callable[..., int]) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    before = picture(work_dir)
    assert (said(work_dir), picture(work_dir)) == (1, before)
    a_pass(work_dir)
    attendance._warned.clear()
    before = picture(work_dir)
    assert (said(work_dir), picture(work_dir)) == (2, before)


def test_jobs_that_ask_at_one_moment_are_no_owners_to_each_other(
    with_checkpoints: Builder, said: Callable[..., int]
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir)
    with (work_dir / ".ckptd/lock").open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert said(work_dir) == 1


def test_a_ckptd_that_starts_while_jobs_ask_gets_the_work_dir(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir)
    asked, stop = threading.Event(), threading.Event()

    def ask() -> None:
        while not stop.is_set():
            attendance._warned.clear()
            warn_if_unattended(work_dir, EPOCHS, 1)
            asked.set()

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        assert asked.wait(20)
        for _ in range(20):
            with WorkDir(work_dir) as work:
                assert work.take()
    finally:
        stop.set()
        asking.join()


def test_a_worker_forked_in_that_moment_does_not_hold_the_lock(
    with_checkpoints: Builder, said: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir)
    real, workers = fcntl.flock, []

    def flock(fd: int, operation: int) -> None:
        real(fd, operation)
        if operation & fcntl.LOCK_SH:
            code = "import sys; sys.stdin.read()"  # as a fork has it: with the very same open file
            workers.append(subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, pass_fds=[fd]))

    monkeypatch.setattr(fcntl, "flock", flock)
    try:
        assert said(work_dir) == 1
        with (work_dir / ".ckptd/lock").open() as file:
            real(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        for worker in workers:
            worker.communicate()


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOTSUP, errno.EIO])
def test_where_it_cannot_be_told_nothing_is_said(
    number: int, with_checkpoints: Builder, said: Callable[..., int], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir)

    def flock(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    assert said(work_dir) == 0


@pytest.mark.parametrize("planted", ["a symlink", "a fifo", "a directory", ".ckptd a symlink"])
def test_what_stands_where_the_lock_goes_is_not_followed_and_no_error(
    planted: str, with_checkpoints: Builder, tmp_path: Path, said: Callable[..., int]
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    (tmp_path / "elsewhere").mkdir()
    if planted == ".ckptd a symlink":
        (work_dir / ".ckptd").symlink_to(tmp_path / "elsewhere")
    else:
        path = work_dir / ".ckptd/lock"
        path.parent.mkdir()
        make = {"a symlink": lambda: path.symlink_to(tmp_path / "elsewhere"), "a fifo": lambda: os.mkfifo(path)}
        make.get(planted, path.mkdir)()
    assert said(work_dir) == 0


def test_a_work_dir_that_is_gone_is_no_error(tmp_path: Path, said: Callable[..., int]) -> None:
    assert said(tmp_path / "gone") == 0


def test_it_needs_no_torch(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    code = ("import sys; from ckptd.core.naming import Template; from ckptd.shim.attendance import warn_if_unattended; "
            "warn_if_unattended(sys.argv[1], Template('epoch_{}.pth'), 1); print('torch' in sys.modules)")  # fmt: skip
    command = [sys.executable, "-c", code, str(work_dir)]
    done = subprocess.run(command, env=environment(), text=True, capture_output=True, timeout=60, check=True)
    assert done.stdout == "False\n"
    assert "no ckptd is there to prune" in done.stderr
