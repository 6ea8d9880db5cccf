"""One pass: in which order things happen, what stops it and what does not, and what it leaves behind."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from ckptd import CkptdError
from ckptd.core.policy import Policy
from ckptd.disk.descriptors import opened_dir
from ckptd.inspect.scan import entry_of
from ckptd.passes.background import Background
from ckptd.passes.reading import Reader
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir import trash
from ckptd.workdir.workdir import WorkDir

from .conftest import (
    Builder,
    a_pass,
    epochs,
    eventually,
    holding_open,
    in_trash,
    kept,
    left,
    passes,
    picture,
    pointed,
    refuse,
    safetensors,
    torch_zip,
    truncated,
)


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Every fsync and rename of this process, in order, with the paths they were about."""
    recorded: list[tuple[str, ...]] = []
    fsync, unlink = os.fsync, os.unlink

    def path_of(name: str, dir_fd: int | None) -> str:
        return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name) if dir_fd is not None else str(name)

    def recording_fsync(fd: int) -> None:
        recorded.append(("fsync", os.readlink(f"/proc/self/fd/{fd}")))
        fsync(fd)

    def recording(rename: Callable[..., None]) -> Callable[..., None]:
        def recorded_rename(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int, **more: bool) -> None:
            recorded.append(("rename", path_of(src, src_dir_fd), path_of(dst, dst_dir_fd)))
            rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more)

        return recorded_rename

    def recording_unlink(path: str, *, dir_fd: int | None = None) -> None:
        recorded.append(("unlink", path_of(path, dir_fd)))
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "fsync", recording_fsync)
    monkeypatch.setattr(os, "rename", recording(os.rename))
    monkeypatch.setattr(trash, "rename_new", recording(trash.rename_new))
    monkeypatch.setattr(os, "unlink", recording_unlink)
    return recorded


def refuse_fsync(monkeypatch: pytest.MonkeyPatch, name: str) -> list[str]:
    """Let fsync of `name` fail once, as of a disk that has lost what was written; returns who was refused."""
    fsync, refused = os.fsync, []

    def refusing(fd: int) -> None:
        if os.path.basename(os.readlink(f"/proc/self/fd/{fd}")) == name and not refused:
            refused.append(name)
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(fd)

    monkeypatch.setattr(os, "fsync", refusing)
    return refused


# --- the order --------------------------------------------------------------------------------------------------


def test_what_is_relied_on_is_durable_before_the_pointer_and_the_pointer_before_any_deletion(
    with_checkpoints: Builder, calls: list[tuple[str, ...]]
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir, max_keep=2, interval=1, trash_ttl_s=0)
    assert left(work_dir) == epochs(4, 5)
    own = f"{work_dir}/.ckptd"
    put = [call for call in calls if call[0] == "rename" and call[1].startswith(f"{work_dir}/epoch_")]
    freed = [call for call in calls if call[0] == "unlink" and call[1].startswith(f"{own}/trash/")]
    assert [os.path.basename(call[1]) for call in put] == epochs(1, 2, 3)
    assert len(freed) == 3
    pointer = ("rename", f"{work_dir}/.last_ckpt.ckptd-tmp", f"{work_dir}/last_ckpt")
    state = ("rename", f"{own}/.state.json.ckptd-tmp", f"{own}/state.json")
    at = {call: calls.index(call) for call in calls}  # the first of each
    last = {call: len(calls) - 1 - calls[::-1].index(call) for call in calls}
    relied_on = [("fsync", f"{work_dir}/{name}") for name in epochs(4, 5)]
    whole_order = [
        max(at[call] for call in relied_on),
        at["fsync", str(work_dir)],
        at[state],  # at first contact, that a pointer of ours is known as ours
        calls.index(("fsync", own), at[state]),
        at["fsync", f"{work_dir}/.last_ckpt.ckptd-tmp"],
        at[pointer],
        calls.index(("fsync", str(work_dir)), at[pointer]),
        calls.index(state, at[pointer]),
        calls.index(("fsync", own), calls.index(state, at[pointer])),
        at[put[0]],
        at[put[-1]],
        at["fsync", f"{own}/trash"],
        calls.index(("fsync", str(work_dir)), at["fsync", f"{own}/trash"]),
        last["fsync", f"{own}/journal.jsonl"],
        at[freed[0]],
    ]
    assert whole_order == sorted(set(whole_order))


def test_a_failed_fsync_is_never_relied_on_again_not_even_after_a_restart(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3), content=safetensors())  # which has no checksum to read back by
    with monkeypatch.context() as patch:
        refused = refuse_fsync(patch, "epoch_3.pth")
        with passes(work_dir, max_keep=1, interval=1) as process:
            process.reconcile()
            process.reconcile()  # by now an fsync would succeed, and would not mean a thing
    assert refused == ["epoch_3.pth"]
    assert "fsync of" in caplog.text
    assert "epoch_2.pth" in left(work_dir)
    assert pointed(work_dir) == "epoch_2.pth"
    a_pass(work_dir, max_keep=1, interval=1)
    assert "epoch_2.pth" in left(work_dir)
    assert pointed(work_dir) == "epoch_2.pth"
    with_checkpoints("epoch_3.pth")  # saved anew
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert (left(work_dir), pointed(work_dir)) == (epochs(3), "epoch_3.pth")


def test_what_a_failed_fsync_of_the_work_dir_was_for_is_not_relied_on(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are on the disk by then, but perhaps not its name."""
    work_dir = with_checkpoints(*epochs(1, 2, 3), content=safetensors())
    with monkeypatch.context() as patch:
        refused = refuse_fsync(patch, work_dir.name)
        with passes(work_dir, max_keep=1, interval=1, trash_ttl_s=0) as process:
            process.reconcile()
            process.reconcile()
    assert refused == [work_dir.name]
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert (left(work_dir), pointed(work_dir)) == (epochs(2, 3), "epoch_2.pth")
    with_checkpoints("epoch_4.pth")
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert pointed(work_dir) == "epoch_4.pth"


def test_a_failed_fsync_of_what_the_pointer_names_is_remembered_when_the_pointer_could_not_move(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3), content=safetensors())
    (work_dir / "last_ckpt").write_text(f"{work_dir}/epoch_2.pth\n")
    for _ in range(2):
        with monkeypatch.context() as patch:
            refused = refuse_fsync(patch, "epoch_2.pth")
            refuse(patch, errno.ENOSPC, ".last_ckpt.ckptd-tmp")
            a_pass(work_dir, max_keep=1, interval=1)
            if not refused:
                break
        assert left(work_dir) == epochs(1, 2, 3)
    assert not refused, "epoch_2.pth was asked for its durability again, and the answer would have been believed"


def test_after_a_failed_fsync_what_is_read_back_whole_from_the_disk_is_relied_on_again(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with monkeypatch.context() as patch:
        refuse_fsync(patch, "epoch_3.pth")
        with passes(work_dir, max_keep=1, interval=1) as process:
            assert process.reconcile().look_again_s == 1  # though nothing else may happen here
            assert not process.can_rest
    assert pointed(work_dir) == "epoch_2.pth"
    advised = []
    monkeypatch.setattr(os, "posix_fadvise", lambda fd, *_: advised.append(os.readlink(f"/proc/self/fd/{fd}")))
    a_pass(work_dir, max_keep=1, interval=1)
    assert advised == [str(work_dir / "epoch_3.pth")]  # the kernel's own copy was forgotten first
    assert pointed(work_dir) == "epoch_3.pth"


def test_after_a_failed_fsync_what_is_read_back_damaged_is_incomplete(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    newest = work_dir / "epoch_3.pth"
    with monkeypatch.context() as patch:
        refuse_fsync(patch, "epoch_3.pth")
        a_pass(work_dir, max_keep=1, interval=1)
    info, damaged = newest.stat(), bytearray(newest.read_bytes())
    damaged[damaged.index(b"data/0") + 100] ^= 1  # as the disk has it, with the times it had
    newest.write_bytes(damaged)
    os.utime(newest, ns=(info.st_atime_ns, info.st_mtime_ns))
    report = a_pass(work_dir, max_keep=1, interval=1)
    (decision,) = [d for d in report.survey.decisions if d.checkpoint.name == "epoch_3.pth"]
    assert (decision.checkpoint.state.value, pointed(work_dir)) == ("incomplete", "epoch_2.pth")


def test_an_fsync_that_could_not_even_be_tried_deletes_nothing_and_is_tried_again(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with passes(work_dir, max_keep=1, interval=1, trash_ttl_s=0) as process:
        with monkeypatch.context() as patch:
            opened = os.open

            def out_of_descriptors(path, flags, mode=0o777, *, dir_fd=None):
                if threading.current_thread() is threading.main_thread() and path == "epoch_3.pth" and tried:
                    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)
                return opened(path, flags, mode, dir_fd=dir_fd)

            tried = []
            process.survey()  # judged already: what is opened now is opened for the fsync
            tried.append(True)
            patch.setattr(os, "open", out_of_descriptors)
            process.reconcile()
            assert left(work_dir) == epochs(1, 2, 3)
        process.reconcile()
    assert (left(work_dir), pointed(work_dir)) == (epochs(3), "epoch_3.pth")


# --- nothing to do ----------------------------------------------------------------------------------------------


def test_a_pass_that_changes_nothing_writes_nothing(with_checkpoints: Builder, calls: list[tuple[str, ...]]) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    with_checkpoints("epoch_9.pth", content=truncated())
    with passes(work_dir, max_keep=2, interval=1) as process:
        process.reconcile()
        process.reconcile()
        before = picture(work_dir)
        calls.clear()
        process.reconcile()
        assert (calls, picture(work_dir)) == ([], before)
    a_pass(work_dir, max_keep=2, interval=1)  # and so does the first pass of the next process
    assert (calls, picture(work_dir)) == ([], before)


@pytest.mark.parametrize("there", [[], ["notes.txt"], ["best_epoch_3.pth", "last_checkpoint"]])
def test_nothing_is_created_before_the_first_checkpoint(there: list[str], with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*there)
    with passes(work_dir, max_keep=1) as process:
        before = picture(work_dir)
        process.reconcile()
        assert picture(work_dir) == before
        with_checkpoints("epoch_1.pth")
        process.reconcile()
    assert pointed(work_dir) == "epoch_1.pth"
    assert (work_dir / ".ckptd").stat().st_mode == work_dir.stat().st_mode


# --- what stays and what goes -------------------------------------------------------------------------------------


def test_what_is_owed_goes_when_its_pin_goes(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / "epoch_1.pth.keep").touch()
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == ["epoch_1.pth", "epoch_1.pth.keep", "epoch_3.pth"]
    (work_dir / "epoch_1.pth.keep").unlink()
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(3)


def test_a_pointers_checkpoint_rewritten_in_place_keeps_the_pointer_until_it_is_settled(
    with_checkpoints: Builder,
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=2, interval=1)
    newest = work_dir / "epoch_3.pth"
    with holding_open(newest, "r+b"):
        newest.write_bytes(truncated())
        a_pass(work_dir, max_keep=2, interval=1)
        assert (left(work_dir), pointed(work_dir)) == (epochs(2, 3), "epoch_3.pth")
    with_checkpoints.tick(newest)  # nobody writes it, and it is old: its writer died
    a_pass(work_dir, max_keep=2, interval=1)
    assert (left(work_dir), pointed(work_dir)) == (epochs(2, 3), "epoch_2.pth")
    with_checkpoints("epoch_3.pth")
    a_pass(work_dir, max_keep=2, interval=1)
    assert pointed(work_dir) == "epoch_3.pth"


def test_an_incomplete_one_goes_once_enough_complete_ones_were_written_after_it(with_checkpoints: Builder) -> None:
    with_checkpoints("epoch_1.pth")
    work_dir = with_checkpoints("epoch_2.pth", content=truncated())
    a_pass(work_dir, max_keep=2, interval=1)
    with_checkpoints("epoch_3.pth")
    a_pass(work_dir, max_keep=2, interval=1)
    assert left(work_dir) == epochs(1, 2, 3)
    with_checkpoints("epoch_4.pth")
    a_pass(work_dir, max_keep=2, interval=1)
    assert "epoch_2.pth" not in left(work_dir)
    assert {"epoch_3.pth", "epoch_4.pth"} <= set(left(work_dir))


@pytest.mark.parametrize("rule", ["stepped", "newest"])
def test_files_that_somebody_brought_back_are_kept(rule: str, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(3, 4))
    a_pass(work_dir, max_keep=2, interval=1, rule=rule)
    for name in epochs(1, 2):
        (work_dir / name).write_bytes(torch_zip())
        os.utime(work_dir / name, (1, 1))  # as `cp -p` from an archive leaves it
    a_pass(work_dir, max_keep=2, interval=1, rule=rule)
    assert (left(work_dir), pointed(work_dir)) == (epochs(1, 2, 3, 4), "epoch_4.pth")


def test_a_checkpoint_that_is_being_written_is_left_until_its_writer_is_done(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3, rule="newest")
    with holding_open(work_dir / "epoch_1.pth", "r+b"):
        a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
        assert left(work_dir) == epochs(1, 3)
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert left(work_dir) == epochs(3)


def test_without_a_max_keep_only_the_pointer_is_kept(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(*range(1, 9)))
    a_pass(work_dir)
    assert (left(work_dir), pointed(work_dir)) == (epochs(*range(1, 9)), "epoch_8.pth")


def test_the_series_of_a_work_dir_do_not_count_together(with_checkpoints: Builder) -> None:
    names = itertools.chain(*zip(epochs(1, 2, 3), ["iter_10.pth", "iter_20.pth", "iter_30.pth"], strict=True))
    work_dir = with_checkpoints(*names, "iter_40.safetensors", content=None)
    (work_dir / "iter_40.safetensors").write_bytes(safetensors())
    with_checkpoints.tick(work_dir / "iter_40.safetensors")
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert left(work_dir) == ["epoch_3.pth", "iter_30.pth", "iter_40.safetensors"]
    assert pointed(work_dir) == "iter_40.safetensors"


def test_the_plan_is_what_the_pass_then_does_while_the_pointers_checkpoint_is_rewritten(
    with_checkpoints: Builder, ckptd: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    a_pass(work_dir, max_keep=5, interval=1)
    with holding_open(work_dir / "epoch_5.pth", "r+b"):
        (work_dir / "epoch_5.pth").write_bytes(truncated())
        planned = json.loads(ckptd("plan", work_dir, "--max-keep", 1, "--rule", "newest", "--json").stdout)
        a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
        rows = planned["series"][0]["checkpoints"]
        assert left(work_dir) == [row["name"] for row in rows if row["decision"] != "prune"]


def test_what_could_not_be_freed_is_tried_again_at_the_next_start(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    unlink = os.unlink

    def refusing(path: str, *, dir_fd: int | None = None) -> None:
        if str(path).endswith(".gone"):
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        unlink(path, dir_fd=dir_fd)

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing)
        a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert len(in_trash(work_dir)) == 2
    assert "could not free" in caplog.text
    a_pass(work_dir, max_keep=1, interval=1)
    eventually(lambda: not in_trash(work_dir))


def test_a_second_process_is_told_who_owns_the_work_dir(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with passes(work_dir, max_keep=1, interval=1) as process:
        process.reconcile()
        with pytest.raises(CkptdError, match="owns this work dir"):
            a_pass(work_dir, max_keep=1, interval=1)


class SlowReader(Reader):
    """Reads from a slow disk; meanwhile somebody does something."""

    def __init__(self, background: Background, meanwhile: Callable[[], None]) -> None:
        super().__init__(background, wait=True)
        self._meanwhile = meanwhile

    def ask(self, *args: Any, **more: Any) -> Any:
        time.sleep(0.15)  # the disk
        self._meanwhile()
        return super().ask(*args, **more)


@pytest.mark.parametrize("what", ["a pin", "a link", "the framework's pointer"])
def test_what_somebody_protects_while_the_newest_is_read_stays(with_checkpoints: Builder, what: str) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))

    def protect() -> None:
        if what == "a pin":
            (work_dir / "epoch_1.pth.keep").touch()
        elif what == "a link" and not (work_dir / "best.pth").is_symlink():
            (work_dir / "best.pth").symlink_to("epoch_1.pth")
        elif what == "the framework's pointer":
            (work_dir / "last_checkpoint").write_text("epoch_1.pth")

    background = Background()
    with WorkDir(work_dir) as work:
        reader = SlowReader(background, protect)
        report = Reconciler(work, Policy(max_keep=1, interval=1), background, reader=reader).reconcile()
        background.close()
    assert [d.checkpoint.name for d in report.pruned] == epochs(2)


def test_a_pin_made_just_before_the_rename_counts(with_checkpoints: Builder) -> None:
    with_checkpoints("epoch_1.pth")
    (with_checkpoints.work_dir / "trash").mkdir()
    with opened_dir(str(with_checkpoints.work_dir)) as fd, opened_dir("trash", dir_fd=fd) as trash_fd:
        entry = entry_of("epoch_1.pth", dir_fd=fd)
        (with_checkpoints.work_dir / "epoch_1.pth.keep").touch()
        with pytest.raises(trash.ChangedError, match="pinned"):
            trash.put(entry, work_fd=fd, trash_fd=trash_fd, now_ms=1)


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


def test_what_is_saved_again_is_the_newest(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    kept(work_dir, max_keep=2, interval=1)
    with_checkpoints("epoch_1.pth")
    assert kept(work_dir, max_keep=1, rule="newest") == epochs(1, 2)
    assert pointed(work_dir) == "epoch_1.pth"


def test_what_somebody_deletes_or_renames_by_hand_stops_no_pass(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    kept(work_dir, max_keep=4, interval=1)
    (work_dir / "epoch_2.pth").unlink()
    (work_dir / "epoch_1.pth").rename(work_dir / "mine.pth")
    assert kept(work_dir, max_keep=1, rule="newest") == ["mine.pth", "epoch_4.pth"]
