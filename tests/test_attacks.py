"""What an attack found once, each in the smallest world in which it happens."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

from ckptd.core.policy import Policy
from ckptd.daemon.keeper import Keeper
from ckptd.daemon.watch import Watcher
from ckptd.disk.descriptors import opened_dir
from ckptd.errors import RefusedError
from ckptd.passes.background import Background
from ckptd.passes.reading import Reader
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.restore import restorable
from ckptd.workdir import trash
from ckptd.workdir.workdir import WorkDir, _owner_of

from .conftest import Builder, a_pass, environment, epochs, left, torch_zip


def in_trash(work_dir: Path) -> list[str]:
    return os.listdir(work_dir / ".ckptd/trash")


class Crash(BaseException):
    """The process ends here."""


def test_a_large_prune_that_is_cut_off_can_be_restored_and_is_not_freed_by_a_start_without_a_policy(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(*range(1, 12)))
    put, count = trash.put, 0

    def cut_off(*args, **more):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == 6:
            raise Crash
        return put(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(trash, "put", cut_off)
        with pytest.raises(Crash):
            a_pass(work_dir, max_keep=1, interval=1)
    a_pass(work_dir)
    assert [each["name"] for each in restorable(str(work_dir))] == epochs(1, 2, 3, 4, 5)


def test_what_a_crash_left_without_a_name_is_kept_for_a_while(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir)
    nameless = work_dir / f".ckptd/trash/{time.time_ns() // 10**6}-0"
    nameless.write_bytes(b"somebody's")
    a_pass(work_dir)
    assert nameless.exists()


def test_the_trash_is_named_in_linear_time(with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    def counting(name: str, *, dir_fd: int) -> bool:
        nonlocal asked
        asked += not name.endswith((".keep", ".metrics.json"))
        return False

    monkeypatch.setattr(trash, "exists", counting)
    a_pass(with_checkpoints(*epochs(*range(1, 41))), max_keep=1, interval=1)
    assert asked == 39


def test_a_large_prune_ends_where_it_is_told_to_and_goes_on_at_the_next_start(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(*range(1, 12)))
    answers = iter([False, False, True])
    background = Background()
    with WorkDir(work_dir) as work:
        policy = Policy(max_keep=1, interval=1)
        report = Reconciler(work, policy, background, stopping=lambda: next(answers)).reconcile()
    background.close()
    assert [d.checkpoint.name for d in report.pruned] == epochs(1, 2)
    assert left(work_dir) == epochs(*range(3, 12))
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(11)


def test_a_save_walked_over_in_its_earlier_life_is_not_owed_once_it_is_saved_anew(with_checkpoints: Builder) -> None:
    """Seen at 8. Then, unseen: 9; resumed from 6: 7, 8; resumed from 3: 4. The hook leaves all four."""
    work_dir = with_checkpoints(*epochs(7, 8))
    a_pass(work_dir)
    with_checkpoints("epoch_9.pth", "epoch_7.pth", "epoch_8.pth", "epoch_4.pth")
    a_pass(work_dir, max_keep=2, interval=1)
    assert left(work_dir) == epochs(4, 7, 8, 9)


def nines() -> bytes:
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 4200 + b"]}}"
    return struct.pack("<Q", len(header)) + header


def huge_directory() -> bytes:
    """The end of a zip whose central directory would fill the memory."""
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFF0, 10, 0)
    return torch_zip()[:200] + end


@pytest.mark.parametrize("hostile", [nines, huge_directory])
def test_a_file_with_absurd_numbers_is_no_checkpoint_and_no_end(hostile, with_checkpoints: Builder) -> None:  # type: ignore[no-untyped-def]
    work_dir = with_checkpoints("epoch_1.pth", "epoch_2.pth")
    with_checkpoints("epoch_3.safetensors", content=hostile())
    report = a_pass(work_dir, max_keep=1, interval=1)
    assert [d.checkpoint.name for d in report.pruned] == ["epoch_1.pth"]
    assert (work_dir / "epoch_3.safetensors").exists()


def test_a_bug_about_one_work_dir_is_not_the_end_of_the_watch(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    background, watcher = Background(), Watcher(lambda _: None, "last_ckpt")
    reader = Reader(background, wait=True)
    keeper = Keeper(str(work_dir), Policy(), watcher=watcher, background=background, reader=reader)

    def fail(self: Reconciler) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Reconciler, "survey", fail)
        keeper.look()
        keeper.look()
    assert caplog.text.count("a bug in ckptd") == 1
    assert isinstance(keeper.failure, MemoryError)
    keeper.look()
    assert keeper.failure is None
    keeper.close()
    watcher.close()
    background.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_a_users_link_behind_roots_own_link_is_refused(tmp_path: Path) -> None:
    for name, uid in (("home", 12345), ("theirs", 12346)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, uid, uid)
    (tmp_path / "home/cur").symlink_to(tmp_path / "theirs")
    os.chown(tmp_path / "home/cur", 12345, 12345, follow_symlinks=False)
    (tmp_path / "link").symlink_to("home/cur")
    with pytest.raises(RefusedError, match="symlink of another user"):
        _owner_of(tmp_path / "link")
    os.chown(tmp_path / "home/cur", 12346, 12346, follow_symlinks=False)
    assert _owner_of(tmp_path / "link") == 12346


def test_what_was_ignored_at_the_start_stays_ignored_for_the_job(tmp_path: Path) -> None:
    """`nohup ckptd watch DIR -- python train.py`: the hang-up must not reach the training."""
    job = "import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    command = [sys.executable, "-m", "ckptd", "watch", str(tmp_path), "--", sys.executable, "-c", job]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0)


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


def test_a_journal_with_a_name_that_no_file_can_have_is_passed_over(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=3600)
    path = work_dir / ".ckptd/journal.jsonl"
    path.write_text(path.read_text().replace("epoch_1.pth", "a\\u0000b"))
    assert json.loads(path.read_text())["name"] == "a\0b"
    assert restorable(str(work_dir)) == []


def test_a_state_with_a_number_that_nothing_has_is_no_state(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir)
    path = work_dir / ".ckptd/state.json"
    path.write_text(path.read_text().replace('"next_order":3', '"next_order":' + "9" * 4200))
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(2)


def test_a_metadata_that_is_a_directory_marks_nothing(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints.shards("iter_1", whole=False).parent
    (work_dir / "iter_1/.metadata").mkdir()
    (report,) = a_pass(work_dir, settle_s=0).survey.decisions
    assert report.checkpoint.state.value == "incomplete"


def test_a_zip_of_ten_thousand_members_is_still_read(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with zipfile.ZipFile(work_dir / "epoch_2.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
        for member in range(10_000):
            archive.writestr(f"archive/data/{member}", b"y")
    with_checkpoints.tick(work_dir / "epoch_2.pth")
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(2)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_root_becomes_the_owner_even_where_the_owner_cannot_read_roots_python(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    for path in (*work_dir.parents[:3], work_dir):
        path.chmod(0o755)
    for path in (work_dir, *work_dir.iterdir()):
        os.chown(path, 12345, 12345)
    for command in ("plan", "prune", "latest", "history", "restore", "plan"):
        asked = [sys.executable, "-m", "ckptd", command, str(work_dir)]
        done = subprocess.run(asked, capture_output=True, text=True, env=environment(CKPTD_MAX_KEEP="1"), timeout=60)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (command, done.stderr)
    assert {path.stat().st_uid for path in (work_dir / ".ckptd").iterdir()} == {12345}
    assert left(work_dir) == epochs(3)


def bottomless(path: Path, *, depth: int) -> None:
    """A directory in a directory in a directory ..., some of them protected against writing."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        if level % 1000 == 0:
            os.fchmod(fd, 0o555)
        os.close(fd)
        fd = inner
    os.close(fd)


def test_a_tree_of_any_depth_and_protected_against_writing_is_freed(tmp_path: Path) -> None:
    bottomless(tmp_path / "1-0.gone", depth=3000)
    with opened_dir(str(tmp_path)) as fd:
        trash.remove("1-0.gone", trash_fd=fd)
    assert os.listdir(tmp_path) == []


def test_a_directory_nested_deeper_than_any_checkpoint_is_left_alone(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints.shards("iter_1").parent
    bottomless(work_dir / "iter_1/d", depth=2000)
    with_checkpoints.shards("iter_2")
    with_checkpoints.shards("iter_3")
    report = a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert [(each.name, each.reason) for each in report.survey.left_alone] == [
        ("iter_1", "cannot be read: nested deeper than any checkpoint")
    ]
    assert left(work_dir) == ["iter_1", "iter_3"]
    with opened_dir(str(work_dir)) as fd:
        trash.remove("iter_1", trash_fd=fd)  # or nobody could


def test_hundreds_pruned_at_once_need_no_descriptor_each(with_checkpoints: Builder) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    work_dir = with_checkpoints(*epochs(*range(1, 301)))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, hard))
        report = a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (report.failed, left(work_dir), in_trash(work_dir)) == ({}, epochs(300), [])


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


def test_a_result_dropped_into_a_directory_checkpoint_is_no_save(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints.shards("epoch_1").parent
    with_checkpoints("iter_4.pth")
    a_pass(work_dir)
    (work_dir / "epoch_1/eval.json").write_text("{}")
    a_pass(work_dir)
    assert (work_dir / "last_ckpt").read_text() == f"{work_dir}/iter_4.pth\n"


def test_a_copy_in_the_place_of_a_durable_checkpoint_is_made_durable_too(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    a_pass(work_dir)
    shutil.copy2(work_dir / "epoch_1.pth", work_dir / "copy")
    (work_dir / "copy").rename(work_dir / "epoch_1.pth")
    (work_dir / "last_ckpt").unlink()
    synced: list[str] = []
    fsync = os.fsync

    def noting(fd: int) -> None:
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", noting)
    a_pass(work_dir)
    assert synced[0] == "epoch_1.pth"
