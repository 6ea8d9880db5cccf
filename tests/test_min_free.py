"""`--min-free`: what passes and commands do where the disk is tight; the disk is played."""

from __future__ import annotations

import logging
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.entry import Entry
from ckptd.core.policy import Policy
from ckptd.passes import floor
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.text.human import human_bytes
from ckptd.workdir import taken, trash
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, Watching, a_pass, epochs, eventually, left

Command = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., AbstractContextManager[Watching]]
SIZE, FLOOR = 10**12, 10**9


class ADisk:
    """A file system with so much free beside what the work dir takes; `comes_free`: whether what is deleted does."""

    def __init__(self, work_dir: Path, beside: int) -> None:
        self.work_dir, self.beside, self.comes_free = work_dir, beside, True
        self.full = self.taken()

    def taken(self) -> int:
        return sum(path.stat().st_blocks * 512 for path in self.work_dir.rglob("*.pth*")) + sum(
            path.stat().st_blocks * 512 for path in self.work_dir.glob(".ckptd/trash/*")
        )

    def room(self, _fd: int) -> tuple[int, int]:
        return SIZE, self.beside - (self.taken() if self.comes_free else self.full)


@pytest.fixture
def disk(with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch) -> ADisk:
    """A disk on which five epochs take all but the floor."""
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    disk = ADisk(work_dir, 0)
    disk.beside = FLOOR + disk.taken()
    monkeypatch.setattr(floor, "room_on", disk.room)
    return disk


class Passes:
    """Passes of one process, at a clock that is set by hand."""

    def __init__(self, work_dir: Path, **policy: object) -> None:
        self.now_ns = time.time_ns()
        self.work = WorkDir(work_dir)
        self.background = Background()
        self.reconciler = Reconciler(self.work, Policy(**policy), self.background, clock=lambda: self.now_ns)

    def __call__(self, *, after_s: float = 0) -> list[str]:
        self.now_ns += int(after_s * 1e9)
        report = self.reconciler.reconcile()
        self.background.wait()
        self.again_s = report.look_again_s
        return [d.checkpoint.name for d in report.pruned]


@pytest.fixture
def passes(disk: ADisk) -> Iterator[Passes]:
    made = Passes(disk.work_dir, min_free=FLOOR)
    yield made
    made.background.close()
    made.work.close()


def test_nothing_goes_while_there_is_room_and_then_only_what_is_missing(disk: ADisk, passes: Passes) -> None:
    assert passes() == []
    disk.beside -= 1
    assert passes() == ["epoch_1.pth"]
    assert passes(after_s=60) == []
    disk.beside -= disk.taken() // 2  # as much as two of the four that are left, and there was room for nearly one
    assert passes(after_s=60) == epochs(2, 3)
    assert left(disk.work_dir) == epochs(4, 5)


def test_plan_says_what_the_pass_does_and_why(disk: ADisk) -> None:
    disk.beside -= 1
    survey = api.plan(disk.work_dir, Policy(min_free=FLOOR))
    assert survey.prune == ("epoch_1.pth",)
    reasons = {d.checkpoint.name: str(d.reasons[0]) for d in survey.decisions}
    assert reasons["epoch_1.pth"] == "less free than --min-free: the oldest that nothing keeps"
    assert reasons["epoch_2.pth"] == "stays while --min-free leaves room for it"
    assert [d.checkpoint.name for d in a_pass(disk.work_dir, min_free=FLOOR).pruned] == list(survey.prune)


def test_our_trash_is_emptied_before_anything_goes(disk: ADisk) -> None:
    a_pass(disk.work_dir, max_keep=3, interval=1, trash_ttl_s=3600)
    disk.beside -= 1
    before = left(disk.work_dir)
    assert not a_pass(disk.work_dir, max_keep=3, interval=1, trash_ttl_s=3600, min_free=FLOOR).pruned
    assert (left(disk.work_dir), len(list((disk.work_dir / ".ckptd/trash").iterdir()))) == (before, 1)


def test_the_newest_stays_however_tight_it_is_and_that_is_an_error_once(
    disk: ADisk, passes: Passes, caplog: pytest.LogCaptureFixture
) -> None:
    disk.beside = 0
    passes()
    passes(after_s=60)
    assert left(disk.work_dir) == ["epoch_5.pth"]
    assert caplog.text.count("--min-free 1.0 GB cannot be met") == 1


def test_between_two_times_it_waits_until_what_was_deleted_can_have_come_free(disk: ADisk, passes: Passes) -> None:
    passes()
    disk.comes_free = False  # for now
    disk.beside -= 1
    assert passes() == ["epoch_1.pth"]
    assert passes() == []
    assert passes.again_s is not None
    assert 4.9 < passes.again_s <= floor.CALM_S + 0.1
    disk.comes_free = True
    assert passes(after_s=6) == []


@pytest.mark.parametrize("restarts", [False, True], ids=["one process", "a process for each pass"])
def test_where_what_is_deleted_does_not_come_free_no_more_goes_until_there_is_room(
    restarts: bool, disk: ADisk, passes: Passes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(floor, "frees_what_is_deleted", lambda _: False)

    def a_look(after_s: float) -> list[str]:
        if restarts:
            passes.work.close()
            now_ns = passes.now_ns
            passes.__init__(disk.work_dir, min_free=FLOOR)  # type: ignore[misc]
            passes.now_ns = now_ns
        return passes(after_s=after_s)

    disk.comes_free = False
    disk.beside -= 1
    assert a_look(0) == ["epoch_1.pth"]
    for _ in range(3):
        assert a_look(60) == []
    assert "have not come free" in caplog.text
    assert "min-free.json is removed" in caplog.text
    if not restarts:
        assert caplog.text.count("have not come free") == 1
    disk.beside += 1
    assert a_look(60) == []  # there is room
    disk.beside -= 1
    assert a_look(60) == ["epoch_2.pth"]
    (disk.work_dir / ".ckptd" / taken.NAME).unlink()
    passes.reconciler.surveyor.room_keeper = floor.RoomKeeper(passes.work, Policy(min_free=FLOOR).min_free)
    assert passes(after_s=60) == ["epoch_3.pth"]


def test_where_it_has_come_free_the_next_may_go(disk: ADisk, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(floor, "frees_what_is_deleted", lambda _: False)
    disk.beside -= 1
    assert passes() == ["epoch_1.pth"]
    assert passes(after_s=60) == []
    disk.beside -= disk.taken() // 4
    assert passes(after_s=60) == ["epoch_2.pth"]


def test_what_was_refused_or_never_begun_does_not_have_to_come_free(
    disk: ADisk, passes: Passes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(floor, "frees_what_is_deleted", lambda _: False)
    passes()
    disk.beside -= 1

    def killed(*_: object) -> tuple[list[object], dict[str, str]]:
        return [], {}

    with monkeypatch.context() as patched:
        patched.setattr(passes.reconciler._pruner, "prune", killed)
        assert passes() == []
    assert "epoch_1.pth" in (disk.work_dir / ".ckptd" / taken.NAME).read_text()
    disk.beside -= disk.taken() // 10  # others write meanwhile
    assert passes(after_s=1) == ["epoch_1.pth"]
    assert "have not come free" not in caplog.text


def test_only_what_is_really_gone_is_said_not_to_have_come_free(
    disk: ADisk, passes: Passes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(floor, "frees_what_is_deleted", lambda _: False)
    passes()
    disk.comes_free = False
    disk.beside -= disk.taken() // 5 + 1
    put, refused = trash.put, []

    def refusing(entry: Entry, **where: Any) -> str:
        if entry.name == "epoch_1.pth":
            refused.append(entry.name)
            raise PermissionError(1, "Operation not permitted")
        return put(entry, **where)

    monkeypatch.setattr(trash, "put", refusing)
    one = disk.taken() // 5
    assert passes() == ["epoch_2.pth"]
    assert refused
    assert passes(after_s=60) == []
    assert f"{human_bytes(one)} were deleted for --min-free" in caplog.text


def test_what_the_run_saves_meanwhile_does_not_hide_that_it_has_come_free(
    disk: ADisk, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(floor, "frees_what_is_deleted", lambda _: False)
    disk.beside -= 1
    assert passes() == ["epoch_1.pth"]
    Builder(disk.work_dir)(*epochs(6, 7))
    assert passes(after_s=60) == epochs(2, 3)


def test_the_nearer_the_floor_the_sooner_it_looks_again(disk: ADisk, passes: Passes) -> None:
    for spare, again_s in ((10**12, 60), (30 * 10**9, 30), (10**9, 5), (0, 5), (-(10**6), 5), (-(10**6), 60)):
        disk.beside = FLOOR + disk.taken() + spare
        passes(after_s=60)
        assert passes.again_s == pytest.approx(again_s, abs=0.2)


def test_a_broken_note_is_as_if_nothing_had_gone(disk: ADisk, passes: Passes) -> None:
    passes()
    for content in (b"", b"[]", b'{"at_ns": "x"}', b'{"going": {"a": [1]}}', b"null", b"x" * 2000):
        (disk.work_dir / ".ckptd" / taken.NAME).write_bytes(content)
        keeper = floor.RoomKeeper(passes.work, Policy(min_free=FLOOR).min_free)
        assert keeper.look(passes.now_ns, ()).disk is not None


def test_watch_takes_it_as_the_disk_fills_without_an_event(disk: ADisk, watching: Watch) -> None:
    percent = "0.000001%"
    with watching(disk.work_dir, "--min-free", percent, "--scan-interval", "1000s") as watch:
        watch.heard(f"at least {percent.replace('0.000001', '1e-06')} of the disk free")
        assert watch.stop() == 0
    assert left(disk.work_dir) == epochs(1, 2, 3, 4, 5)
    with watching(disk.work_dir, "--min-free", "99.9999%") as watch:
        watch.heard("cannot be met")
        eventually(lambda: left(disk.work_dir) == epochs(5))
        assert watch.stop() == 0


def test_nothing_goes_for_more_than_the_disk_has_and_that_is_said(
    disk: ADisk, caplog: pytest.LogCaptureFixture
) -> None:
    assert not a_pass(disk.work_dir, min_free=SIZE).pruned
    assert "--min-free 1.0 TB can never be met, for the whole file system has 1.0 TB" in caplog.text
    assert left(disk.work_dir) == epochs(1, 2, 3, 4, 5)


def test_a_size_that_no_file_system_has_is_refused_as_such(work_dir: Path, ckptd: Command) -> None:
    for option in ("--min-free", "--max-bytes"):
        done = ckptd("plan", work_dir, option, "99999999TB")
        assert done.returncode == 2
        assert "'99999999TB' is out of range: no file system is as large" in done.stderr


def test_it_is_for_one_work_dir(work_dir: Path, ckptd: Command) -> None:
    for args in ((work_dir, work_dir.parent), (work_dir, "--recursive")):
        for command in ("watch", "plan", "prune"):
            done = ckptd(command, *args, "--min-free", "10%")
            assert (done.returncode, "--min-free is for one work dir" in done.stderr) == (2, True)
    for wrong in ("0", "100%", "ten", "5 %%"):
        assert ckptd("plan", work_dir, "--min-free", wrong).returncode == 2


def test_the_unit_and_the_policy_in_force_name_it(work_dir: Path, ckptd: Command) -> None:
    assert "--min-free 10%%" in ckptd("unit", work_dir, "--min-free", "10%").stdout
    assert "--min-free 5000000000" in ckptd("unit", work_dir, "--min-free", "5GB").stdout
    done = ckptd("plan", work_dir, "--min-free", "5GB", "-v")
    assert "keep as many as fit; at least 5.0 GB of the disk free" in done.stdout


def test_it_cannot_be_simulated(ckptd: Command) -> None:
    done = ckptd("plan", "--simulate", "epoch_{}.pth:1..9", "--max-keep", "1", "--min-free", "5GB")
    assert (done.returncode, "--min-free cannot be simulated" in done.stderr) == (2, True)


def test_it_is_said_though_the_log_is_quiet(disk: ADisk, caplog: pytest.LogCaptureFixture) -> None:
    disk.beside -= 1
    with caplog.at_level(logging.INFO, "ckptd"):
        a_pass(disk.work_dir, min_free=FLOOR)
    assert "reason='less free than --min-free: the oldest that nothing keeps'" in caplog.text
