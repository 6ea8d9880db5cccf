"""The trash: what is in it is freed whatever it is, in bounded time, and what cannot be freed is tried again."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

import pytest

from ckptd.core.policy import Policy
from ckptd.disk.descriptors import opened_dir
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir import trash
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, a_pass, bottomless, epochs, in_trash, left


def test_what_a_crash_left_without_a_name_is_kept_for_a_while(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir)
    nameless = work_dir / f".ckptd/trash/{time.time_ns() // 10**6}-0"
    nameless.write_bytes(b"somebody's")
    a_pass(work_dir)
    assert nameless.exists()


def test_what_cannot_be_freed_is_tried_again_while_the_watch_goes_on(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    background, at_ns = Background(), time.time_ns()
    remove = trash.remove

    def refuse(item: str, *, trash_fd: int) -> None:
        raise OSError(5, "Input/output error")

    with WorkDir(work_dir) as work:
        policy = Policy(max_keep=1, interval=1, trash_ttl_s=0)
        reconciler = Reconciler(work, policy, background, clock=lambda: at_ns)
        monkeypatch.setattr(trash, "remove", refuse)
        reconciler.reconcile()
        background.wait()
        report = reconciler.reconcile()
        assert report.look_again_s is not None
        monkeypatch.setattr(trash, "remove", remove)
        at_ns += int(report.look_again_s * 1e9) + 10**7
        reconciler.reconcile()
        background.wait()
    assert in_trash(work_dir) == []
    background.close()


def test_a_tree_of_any_depth_and_protected_against_writing_is_freed(tmp_path: Path) -> None:
    bottomless(tmp_path / "1-0.gone", depth=3000)
    with opened_dir(str(tmp_path)) as fd:
        trash.remove("1-0.gone", trash_fd=fd)
    assert os.listdir(tmp_path) == []


def test_hundreds_pruned_at_once_need_no_descriptor_each(with_checkpoints: Builder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    work_dir = with_checkpoints(*epochs(*range(1, 301)))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        report = a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.failed, left(work_dir), in_trash(work_dir)) == ({}, epochs(300), [])


def test_the_trash_is_named_in_linear_time(with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def counting(name: str, *, dir_fd: int) -> bool:
        nonlocal asked
        asked += not name.endswith((".keep", ".metrics.json"))
        return False

    monkeypatch.setattr(trash, "exists", counting)
    a_pass(with_checkpoints(*epochs(*range(1, 41))), max_keep=1, interval=1)
    assert asked == 39


def test_a_trash_full_of_things_is_said_in_one_line(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir)
    for n in range(2000):
        (work_dir / f".ckptd/trash/1-{n}").touch()
    a_pass(work_dir)
    assert caplog.text.count("nothing is written down") == 1
    assert len(in_trash(work_dir)) == 0  # an hour of 1970 is over
