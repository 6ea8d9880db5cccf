"""A full disk: what goes makes the room that the pointer and the state need, and nothing goes on their account."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Builder, a_pass, environment, epochs, left, passes, pointed, refuse, torch_zip, truncated


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_pointer_that_finds_no_room_neither_stops_the_deletion_nor_loses_its_checkpoint(
    number: int, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    (work_dir / "last_ckpt").write_text(f"{work_dir}/epoch_2.pth\n")
    with passes(work_dir, max_keep=1, interval=1, trash_ttl_s=0) as process:
        with monkeypatch.context() as patch:
            refuse(patch, number, ".last_ckpt.ckptd-tmp")
            report = process.reconcile()
        assert left(work_dir) == epochs(2, 4)
        assert pointed(work_dir) == "epoch_2.pth"
        assert report.look_again_s is not None  # it will be tried again
        process.reconcile()
    assert (left(work_dir), pointed(work_dir)) == (epochs(4), "epoch_4.pth")


def test_a_pointer_that_finds_no_room_deletes_nothing_if_what_it_names_is_broken(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_checkpoints("epoch_2.pth", content=truncated())
    work_dir = with_checkpoints(*epochs(1, 3, 4))
    (work_dir / "last_ckpt").write_text(f"{work_dir}/epoch_2.pth\n")
    refuse(monkeypatch, errno.ENOSPC, ".last_ckpt.ckptd-tmp")
    a_pass(work_dir, max_keep=1, rule="newest")
    assert left(work_dir) == epochs(1, 2, 3, 4)


def test_a_pointer_at_a_directory_that_finds_no_room_is_handled_like_one_at_a_file(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        work_dir = with_checkpoints.shards(f"iter_{step}").parent
    (work_dir / "last_ckpt").write_text(f"{work_dir}/iter_2\n")
    refuse(monkeypatch, errno.ENOSPC, ".last_ckpt.ckptd-tmp")
    a_pass(work_dir, max_keep=1, interval=1, settle_s=0)
    assert (left(work_dir), pointed(work_dir)) == (["iter_2", "iter_3"], "iter_2")


@pytest.mark.parametrize("name", [".state.json.ckptd-tmp", "journal.jsonl"])
def test_a_state_or_journal_that_finds_no_room_is_written_after_the_deletion(
    name: str, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with passes(work_dir, max_keep=1, interval=1, trash_ttl_s=3600) as process:
        with monkeypatch.context() as patch:
            refuse(patch, errno.ENOSPC, name)
            process.reconcile()
        assert left(work_dir) == epochs(3)
        process.reconcile()
    lines = [json.loads(line) for line in (work_dir / ".ckptd/journal.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == epochs(1, 2)
    assert set(json.loads((work_dir / ".ckptd/state.json").read_text())["seen"]) == set(epochs(3))


def test_what_a_pass_counts_adds_up_on_a_full_disk(with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    opened = os.open

    def full(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if flags & os.O_CREAT and (work_dir / "epoch_4.pth").exists() and str(path) == ".last_ckpt.ckptd-tmp":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        return opened(path, flags, mode, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", full)  # until something has gone
        report = a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert left(work_dir) == epochs(5)
    assert report.counts.startswith("reconciled kept=1 pruned=4 ")


def test_what_went_to_make_room_for_ckptds_directory_counts_as_pruned(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    made = os.mkdir

    def full(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if (work_dir / "epoch_1.pth").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        made(path, mode, dir_fd=dir_fd)

    with passes(work_dir, max_keep=1, interval=1, trash_ttl_s=0) as process:
        with monkeypatch.context() as patch:
            patch.setattr(os, "mkdir", full)
            report = process.reconcile()
        assert [d.checkpoint.name for d in report.pruned] == epochs(1, 2)
        assert report.counts.startswith("reconciled kept=1 pruned=2 ")
        assert process.reconcile().counts.startswith("reconciled kept=1 pruned=0 ")  # each is counted once
    assert left(work_dir) == epochs(3)


def test_what_is_pinned_meanwhile_does_not_go_to_make_room(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    made = os.mkdir

    def full(path: str, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        if (work_dir / "epoch_2.pth").exists():
            (work_dir / "epoch_1.pth.keep").touch()
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        made(path, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "mkdir", full)
    report = a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert [d.checkpoint.name for d in report.pruned] == epochs(2)
    assert "left epoch_1.pth alone: pinned" in caplog.text
    assert {*epochs(1, 3)} <= set(left(work_dir))


_ON_A_FULL_DISK = r"""
set -e
mount -t tmpfs -o size=64k tmpfs "$1"
cp "$2"/epoch_*.pth "$1"
for n in 1 2 3 4 5; do touch -d "2024-01-0$n" "$1/epoch_$n.pth"; done
mkdir "$1/.ckptd"
echo "$1/epoch_4.pth" > "$1/last_ckpt"
dd if=/dev/zero of="$1/full" bs=1k 2>/dev/null || true
"$3" -m ckptd prune "$1" --max-keep 1 --interval 1 --trash-ttl 0 2>&1
echo "first $(cd "$1"; echo epoch*) $(cat "$1/last_ckpt")"
rm "$1/full"
"$3" -m ckptd prune "$1" --max-keep 1 --interval 1 --trash-ttl 0 2>&1
echo "pointer $(cat "$1/last_ckpt")"; cd "$1"; echo "left" *
"""


def test_a_really_full_disk_neither_stops_the_deletion_nor_costs_what_last_ckpt_names(
    with_checkpoints: Builder, tmp_path: Path
) -> None:
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        pytest.skip("only root can mount a small file system; the others here have the same with a refusing disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5), content=torch_zip(b"w" * 5000))
    script = ["unshare", "-m", "--propagation", "private", "sh", "-c", _ON_A_FULL_DISK, "sh", disk, work_dir]
    done = subprocess.run([*script, sys.executable], capture_output=True, text=True, env=environment(), timeout=60)
    if "permission denied" in done.stderr or "Operation not permitted" in done.stderr:
        pytest.skip("no private mount namespace here")
    said = done.stdout.splitlines()
    assert done.returncode == 0, done.stdout + done.stderr
    assert any("could not move last_ckpt to epoch_5.pth: No space left on device" in line for line in said), said
    assert f"first epoch_5.pth {disk}/epoch_5.pth" in said, said  # what went made the room that the pointer needed
    assert said[-2:] == [f"pointer {disk}/epoch_5.pth", "left epoch_5.pth last_ckpt"]
