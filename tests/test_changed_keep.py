"""A changed --max-keep on a run that saves no more, over real files: `prune` at once, `watch` when it has ended."""

from __future__ import annotations

import contextlib
import os
import random
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.plan import SKIP
from ckptd.core.policy import Policy
from ckptd.daemon.service import Service
from ckptd.disk.descriptors import opened_dir
from ckptd.disk.in_use import holder_of_files
from ckptd.passes import patience
from ckptd.passes.background import Background
from ckptd.passes.patience import Patience
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.report import Report
from ckptd.passes.restore import restorable
from ckptd.workdir import journal
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, Watching, a_pass, epochs, eventually, holding_open, left, pointed, torch_zip
from .golden_cases import CASES, Outside, happenings, policy_of
from .test_golden_passes import Directory

Ckptd = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., contextlib.AbstractContextManager[Watching]]


@pytest.fixture
def ended(work_dir: Path) -> Callable[..., Path]:
    """A run that has saved these steps, one each minute until an hour ago."""

    def ended(*steps: int, ago_s: int = 3600, every_s: int = 60) -> Path:
        last_s = int(time.time()) - ago_s
        for at, step in enumerate(steps, 1 - len(steps)):
            path = work_dir / f"epoch_{step}.pth"
            path.write_bytes(torch_zip())
            os.utime(path, (last_s + at * every_s,) * 2)
        return work_dir

    return ended


# --- prune


def test_prune_with_a_smaller_k_on_a_run_that_has_ended_leaves_k(ended: Callable[..., Path], ckptd: Ckptd) -> None:
    work_dir = ended(*range(1, 10))
    assert ckptd("prune", work_dir, "--max-keep", "5", "--interval", "1").returncode == 0
    assert left(work_dir) == epochs(5, 6, 7, 8, 9)
    shown = ckptd("plan", work_dir, "--max-keep", "1", "--interval", "1").stdout
    assert "keep 1" in shown
    assert "prune 4" in shown
    assert ckptd("prune", work_dir, "--max-keep", "1", "--interval", "1").returncode == 0
    assert (left(work_dir), pointed(work_dir)) == (epochs(9), "epoch_9.pth")


@pytest.mark.parametrize("given", [(), ("--interval", "1")], ids=["inferred", "given"])
@pytest.mark.parametrize(
    "look", [("plan",), ("plan", "--max-keep", "7"), ("prune",), ("watch", "--dry-run"), ("latest",), ("watch",)]
)
def test_a_look_changes_nothing_of_what_prune_does(
    look: tuple[str, ...], given: tuple[str, ...], ended: Callable[..., Path], ckptd: Ckptd, watching: Watch
) -> None:
    work_dir = ended(*range(1, 41))
    command, *options = look
    if command == "watch":
        with watching(work_dir, *options) as watch:
            watch.heard("watching")
            watch.heard("policy") if options else eventually(lambda: (work_dir / "last_ckpt").exists())
            watch.stop()
    else:
        ckptd(command, work_dir, *options)
    assert ckptd("prune", work_dir, "--max-keep", "3", *given).returncode == 0
    assert left(work_dir) == epochs(38, 39, 40)


def test_where_the_interval_is_only_inferred_prune_says_what_has_a_smaller_k_act(
    ended: Callable[..., Path], ckptd: Ckptd
) -> None:
    work_dir = ended(*range(1, 8))
    ckptd("prune", work_dir, "--max-keep", "5")
    said = ckptd("prune", work_dir, "--max-keep", "2").stderr
    assert "3 beyond --max-keep 2" in said
    assert "`--interval 1` has it act now" in said
    assert left(work_dir) == epochs(3, 4, 5, 6, 7)
    ckptd("prune", work_dir, "--max-keep", "2", "--interval", "1")
    assert left(work_dir) == epochs(6, 7)


def test_what_goes_by_a_changed_k_can_be_restored_for_an_hour_however_little_it_is(ended: Callable[..., Path]) -> None:
    work_dir = ended(1, 2, 3)
    a_pass(work_dir, max_keep=2, interval=1)
    assert list(restorable(work_dir)) == []
    a_pass(work_dir, max_keep=1, interval=1)
    assert [each["name"] for each in restorable(work_dir)] == epochs(2)


def test_a_trash_ttl_that_was_asked_for_is_obeyed(ended: Callable[..., Path]) -> None:
    work_dir = ended(1, 2, 3)
    a_pass(work_dir, max_keep=2, interval=1)
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert (left(work_dir), list(restorable(work_dir))) == (epochs(3), [])


def test_what_was_decided_before_a_kill_goes_after_it_and_is_in_the_trash_as_long(
    ended: Callable[..., Path],
) -> None:
    work_dir = ended(1, 2, 3)
    a_pass(work_dir, max_keep=2, interval=1)
    with passes(work_dir, Policy(max_keep=1, interval=1), stopping=lambda: True) as stopped:
        assert stopped.reconcile().pruned == ()
    assert left(work_dir) == epochs(2, 3)
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(3)
    assert [each["name"] for each in restorable(work_dir)] == epochs(2)


def test_a_k_that_was_raised_again_after_a_kill_takes_back_what_was_decided(ended: Callable[..., Path]) -> None:
    work_dir = ended(*range(1, 6))
    a_pass(work_dir, max_keep=4, interval=1)
    with passes(work_dir, Policy(max_keep=1, interval=1), stopping=lambda: True) as stopped:
        stopped.reconcile()
    a_pass(work_dir, max_keep=3, interval=1)
    assert left(work_dir) == epochs(2, 3, 4, 5)


def test_a_second_pass_writes_nothing(ended: Callable[..., Path]) -> None:
    work_dir = ended(*range(1, 6))
    state = work_dir / ".ckptd" / "state.json"
    for policy in ({}, {"max_keep": 3, "interval": 1}, {"max_keep": 1, "interval": 1}):
        a_pass(work_dir, **policy)
        before = state.stat().st_ino
        a_pass(work_dir, **policy)
        assert state.stat().st_ino == before


# --- watch


@contextlib.contextmanager
def passes(work_dir: Path, policy: Policy, **more: Any) -> Iterator[Reconciler]:
    """A process that makes pass after pass over one work dir."""
    background = Background()
    with WorkDir(work_dir) as work:
        try:
            yield Reconciler(work, policy, background, **more)
        finally:
            background.close()


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """No grace for a job that is started together with ckptd."""
    monkeypatch.setattr(patience, "_GRACE_S", 0.0)


TWO = Policy(max_keep=2, interval=1)


@pytest.mark.parametrize(("ago_s", "goes"), [(200, False), (295, False), (305, True)])
def test_watch_waits_until_no_save_came_for_five_intervals(
    ago_s: int, goes: bool, ended: Callable[..., Path], at_once: None
) -> None:
    work_dir = ended(*range(1, 8), ago_s=ago_s)
    a_pass(work_dir, max_keep=5, interval=1)
    with passes(work_dir, TWO, patience=Patience()) as watching:
        report = watching.reconcile()
        assert left(work_dir) == (epochs(6, 7) if goes else epochs(3, 4, 5, 6, 7))
        assert goes or 290 - ago_s < report.look_again_s < 302 - ago_s


def test_a_save_that_comes_while_watch_waits_is_all_that_counts(ended: Callable[..., Path], at_once: None) -> None:
    work_dir = ended(*range(1, 8), ago_s=200)
    a_pass(work_dir, max_keep=5, interval=1)
    with passes(work_dir, TWO, patience=Patience()) as watching:
        watching.reconcile()
    (work_dir / "epoch_12.pth").write_bytes(torch_zip())
    year_s = 365 * 86400
    with passes(work_dir, TWO, patience=Patience(), clock=lambda: time.time_ns() + year_s * 10**9) as watching:
        watching.reconcile()
        watching.reconcile()
    assert left(work_dir) == epochs(3, 4, 5, 6, 7, 12)


@pytest.mark.parametrize("what", ["epoch_4.pth", "log.txt", "tb/events", "epoch_5"])
def test_watch_waits_while_a_process_has_a_file_of_the_run_open(
    what: str, ended: Callable[..., Path], with_checkpoints: Builder, at_once: None
) -> None:
    work_dir = ended(*range(1, 8))
    place = with_checkpoints.shards(what) / "__0_0.distcp" if what == "epoch_5" else work_dir / what
    place.parent.mkdir(exist_ok=True)
    if not place.exists():
        place.touch()
    a_pass(work_dir, max_keep=5, interval=1)
    before = left(work_dir)
    with passes(work_dir, TWO, patience=Patience()) as watching:
        with holding_open(place, "r"):
            assert watching.reconcile().look_again_s == pytest.approx(60, abs=1)
            assert left(work_dir) == before
        watching.reconcile()
        assert len(left(work_dir)) == len(before) - 3


def test_who_only_stands_in_the_work_dir_holds_nothing(ended: Callable[..., Path], at_once: None) -> None:
    work_dir = ended(*range(1, 8))
    a_pass(work_dir, max_keep=5, interval=1)
    script = "import sys; print('there', flush=True); sys.stdin.read()"
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script], cwd=work_dir, text=True, **streams) as shell:
        assert shell.stdout.readline() == "there\n"
        with passes(work_dir, TWO, patience=Patience()) as watching:
            watching.reconcile()
        shell.stdin.close()
    assert left(work_dir) == epochs(6, 7)


def test_what_ckptd_itself_keeps_there_is_no_file_of_the_run(ended: Callable[..., Path]) -> None:
    work_dir = ended(1, 2)
    a_pass(work_dir, max_keep=1, interval=1)
    with holding_open(work_dir / ".ckptd" / "state.json", "r"), WorkDir(work_dir) as work:
        assert holder_of_files(dir_fd=work.fd) is None
        with holding_open(work_dir / "epoch_2.pth", "r") as reader:
            assert holder_of_files(dir_fd=work.fd) == reader.pid


def test_the_files_of_a_run_below_are_that_runs(ended: Callable[..., Path]) -> None:
    work_dir = ended(1, 2)
    (work_dir / "other" / "logs").mkdir(parents=True)
    (work_dir / "other" / "logs" / "log.txt").touch()
    with holding_open(work_dir / "other" / "logs" / "log.txt", "r") as reader, WorkDir(work_dir) as work:
        assert holder_of_files(dir_fd=work.fd) == reader.pid
        (work_dir / "other" / ".ckptd").mkdir()
        assert holder_of_files(dir_fd=work.fd) is None


def test_watch_waits_while_the_newest_is_being_written(ended: Callable[..., Path], at_once: None) -> None:
    work_dir = ended(*range(1, 8))
    a_pass(work_dir, max_keep=5, interval=1)
    (work_dir / "epoch_8.pth").write_bytes(torch_zip()[:300])
    with passes(work_dir, TWO, patience=Patience()) as watching:
        watching.reconcile()
        assert left(work_dir) == epochs(3, 4, 5, 6, 7, 8)
        (work_dir / "epoch_8.pth").write_bytes(torch_zip())
        watching.reconcile()
    assert left(work_dir) == epochs(7, 8)


def test_watch_waits_while_the_job_that_it_was_started_with_runs(ended: Callable[..., Path], at_once: None) -> None:
    work_dir = ended(*range(1, 8))
    a_pass(work_dir, max_keep=5, interval=1)
    runs = True
    with passes(work_dir, TWO, patience=Patience(lambda: runs)) as watching:
        watching.reconcile()
        assert left(work_dir) == epochs(3, 4, 5, 6, 7)
        runs = False
        watching.reconcile()
        assert left(work_dir) == epochs(6, 7)


@pytest.mark.parametrize("recursive", [False, True])
def test_a_command_behind_watch_is_such_a_job_until_it_ends(
    recursive: bool, ended: Callable[..., Path], at_once: None
) -> None:
    work_dir = ended(*range(1, 8))
    a_pass(work_dir, max_keep=5, interval=1)
    (work_dir / "last_ckpt").unlink()
    script = "import os, sys, time\nwhile not os.path.exists(sys.argv[1]): time.sleep(0.01)\ntime.sleep(0.3)"
    places = [str(work_dir / "last_ckpt"), str(work_dir.parent / "over")]
    command = [sys.executable, "-c", f"{script}\nopen(sys.argv[2], 'w')", *places]
    assert Service([str(work_dir)], TWO, recursive, command=command).run() == 0
    assert left(work_dir) == epochs(6, 7)
    over_s = (work_dir.parent / "over").stat().st_mtime
    with opened_dir(str(work_dir / ".ckptd")) as own_fd:
        late = [line for line in journal.read(own_fd) if line["name"] == "epoch_5.pth"]
    assert datetime.fromisoformat(late[0]["at"]).timestamp() > over_s - 0.01


def test_a_job_that_is_started_together_with_watch_finds_what_it_resumes_from(ended: Callable[..., Path]) -> None:
    work_dir = ended(*range(1, 8))
    a_pass(work_dir, max_keep=5, interval=1)
    with passes(work_dir, TWO, patience=Patience()) as watching:
        assert 9 < watching.reconcile().look_again_s < 11
        assert left(work_dir) == epochs(3, 4, 5, 6, 7)


@pytest.mark.parametrize("recursive", [False, True])
def test_watch_lets_a_smaller_k_act_on_a_run_that_has_ended(
    recursive: bool, ended: Callable[..., Path], watching: Watch
) -> None:
    work_dir = ended(*range(1, 8))
    a_pass(work_dir, max_keep=5, interval=1)
    where = ["--recursive", work_dir.parent] if recursive else [work_dir]
    with watching(*where, "--max-keep", "2", "--interval", "1", "--scan-interval", "1d") as watch:
        first = watch.heard(f"watching {work_dir}:")
        assert "keeping 3..7, 3 of them beyond --max-keep 2" in first
        assert "pruning none before the next save, or before the run has ended" in first
        eventually(lambda: left(work_dir) == epochs(6, 7))
        watch.stop()


def test_the_first_line_of_watch_names_what_is_beyond_k_and_a_command_that_frees_it(
    ended: Callable[..., Path], watching: Watch, ckptd: Ckptd, tmp_path: Path
) -> None:
    """With all of the policy in it: what a keeper keeps must not go for it."""
    place = tmp_path / "it's here"
    ended(10, 20, 25, 30, 31, 40, 50).rename(place)
    options = ["--max-keep", "2", "--interval", "10", "--keep-every", "25"]
    with watching(place, *options) as watch:
        first = watch.heard("watching")
        watch.heard("pointed")
        watch.stop()
    assert "1 of them beyond --max-keep 2 (4.1 kB)" in first
    command = shlex.split(re.search(r"`(ckptd prune .*)`", first)[1])
    assert ckptd(*command[1:]).returncode == 0
    assert left(place) == epochs(25, 40, 50)


def test_what_no_command_frees_is_named_without_one(ended: Callable[..., Path], watching: Watch) -> None:
    work_dir = ended(1, 2, 3, 4)
    a_pass(work_dir, max_keep=2, interval=1)
    os.utime(work_dir / "epoch_3.pth", (1, 1))
    os.utime(work_dir / "epoch_4.pth")
    a_pass(work_dir, max_keep=2, interval=1)
    with watching(work_dir, "--max-keep", "1", "--rule", "newest") as watch:
        assert "stop this and run" not in watch.heard("watching")
        watch.stop()


# --- golden cases


@pytest.mark.parametrize("shard", range(4))
def test_watch_restarted_under_the_new_k_before_the_first_save_leaves_what_the_hook_left(
    tmp_path: Path, shard: int
) -> None:
    changed = [case for case in CASES if len(case["segments"]) > 1]
    for case in changed[shard::8]:
        rng = random.Random(case["id"])
        directory = Directory(tmp_path / case["id"], case)

        def restart(policy: Policy, directory: Directory = directory) -> Report:
            with passes(directory.path, policy, patience=Patience()) as watching:
                return watching.reconcile()

        for segment in case["segments"]:
            restart(policy_of(segment))
            for each in happenings({"segments": [segment]}):
                if isinstance(each, Outside):
                    restart(each.policy)
                    directory.change(each)
                    restart(each.policy)
                    continue
                directory.write(each.name)
                if each.last or rng.random() < 0.5:
                    decisions = restart(each.policy).survey.plan.decisions
                    owed = {d.checkpoint.name for d in decisions if d.decision == SKIP}
                    assert each.files | owed == directory.files(), (case["id"], each.step)
