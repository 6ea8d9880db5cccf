"""Deleting is a rename, then a removal: what is there at every moment between, and what is never touched."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.core.entry import Entry
from ckptd.disk import descriptors
from ckptd.disk.descriptors import SyncError, opened_dir
from ckptd.errors import RefusedError
from ckptd.inspect.scan import entry_of
from ckptd.passes.remover import Remover
from ckptd.workdir import trash

from .conftest import Builder, Crash, Somebody, a_pass, epochs, in_trash, left, picture, pointed, torch_zip


@contextmanager
def opened(work_dir: Path) -> Iterator[dict[str, int]]:
    """Both descriptors, as `put` and `restore` take them."""
    (work_dir / ".ckptd").mkdir(exist_ok=True)
    with (
        opened_dir(str(work_dir)) as work_fd,
        opened_dir(str(work_dir / ".ckptd")) as own_fd,
        trash.opened_trash(own_fd) as trash_fd,
    ):
        yield {"work_fd": work_fd, "trash_fd": trash_fd}


def entry(work_dir: Path, name: str) -> Entry:
    with opened_dir(str(work_dir)) as fd:
        return entry_of(name, dir_fd=fd)


def test_what_was_put_into_the_trash_bears_no_checkpoints_name_and_is_whole(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with opened(work_dir) as dirs:
        names = [trash.put(entry(work_dir, name), now_ms=1000, **dirs) for name in epochs(1, 2)]
    assert (left(work_dir), names, in_trash(work_dir)) == ([], ["1000-0", "1000-1"], ["1000-0", "1000-1"])
    assert (work_dir / ".ckptd/trash/1000-0").read_bytes() == torch_zip()


def test_what_is_restored_is_what_was_put_there(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    shards = with_checkpoints.shards("iter_5")
    for path in (work_dir / "epoch_1.pth", shards):
        # ctime changes with every rename
        before = [each[:4] + each[5:] for each in picture(path).values()]
        with opened(work_dir) as dirs:
            item = trash.put(entry(work_dir, path.name), now_ms=7, **dirs)
            assert not path.exists()
            trash.restore(item, path.name, **dirs)
        assert [each[:4] + each[5:] for each in picture(path).values()] == before
    assert in_trash(work_dir) == []


def test_a_name_that_is_taken_is_never_restored_over(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with opened(work_dir) as dirs:
        item = trash.put(entry(work_dir, "epoch_1.pth"), now_ms=7, **dirs)
        (work_dir / "epoch_1.pth").write_bytes(b"saved anew")
        with pytest.raises(FileExistsError):
            trash.restore(item, "epoch_1.pth", **dirs)
    assert ((work_dir / "epoch_1.pth").read_bytes(), in_trash(work_dir)) == (b"saved anew", ["7-0"])


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def replace(path: Path) -> None:
    path.with_name("new").write_bytes(torch_zip())
    os.utime(path.with_name("new"), ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    path.with_name("new").replace(path)


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to("elsewhere")


def make_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("change", [grow, replace, link, make_directory, os.utime], ids=lambda change: change.__name__)
def test_what_is_no_longer_what_was_scanned_stays(change, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    scanned = entry(work_dir, "epoch_1.pth")
    change(work_dir / "epoch_1.pth")
    before = picture(work_dir / "epoch_1.pth")
    with opened(work_dir) as dirs, pytest.raises((trash.ChangedError, OSError)):
        trash.put(scanned, now_ms=1, **dirs)
    assert (picture(work_dir / "epoch_1.pth"), in_trash(work_dir)) == (before, [])


def test_a_directory_into_which_somebody_saves_stays(with_checkpoints: Builder) -> None:
    path = with_checkpoints.shards("iter_1")
    scanned = entry(path.parent, "iter_1")
    (path / "__1_0.distcp").write_bytes(b"another shard")
    with opened(path.parent) as dirs, pytest.raises(trash.ChangedError):
        trash.put(scanned, now_ms=1, **dirs)
    assert sorted(os.listdir(path)) == [".metadata", "__0_0.distcp", "__1_0.distcp"]


@pytest.mark.parametrize("name_is_free", [True, False])
def test_names_that_are_swapped_between_the_look_and_the_rename_lose_nothing(
    name_is_free: bool, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with_checkpoints("epoch_1.pth")
    work_dir = with_checkpoints("epoch_2.pth", content=torch_zip(b"two" * 99))
    scanned, rename, swapped = entry(work_dir, "epoch_1.pth"), trash.rename_new, []

    def swap_first(src: str, dst: str, **more: int) -> None:
        if not swapped:
            swapped.append(src)
            (work_dir / "epoch_1.pth").rename(work_dir / "aside")
            (work_dir / "epoch_2.pth").rename(work_dir / "epoch_1.pth")
            (work_dir / "aside").rename(work_dir / "epoch_2.pth")
        rename(src, dst, **more)
        if swapped and not name_is_free and dst == "1-0":
            (work_dir / "epoch_1.pth").write_bytes(b"a third")

    monkeypatch.setattr(trash, "rename_new", swap_first)
    with opened(work_dir) as dirs, pytest.raises(trash.ChangedError):
        trash.put(scanned, now_ms=1, **dirs)
    contents = {path.read_bytes() for path in [*work_dir.glob("*.pth"), *(work_dir / ".ckptd/trash").iterdir()]}
    assert {torch_zip(), torch_zip(b"two" * 99)} <= contents
    assert (work_dir / "epoch_1.pth").read_bytes() == (torch_zip(b"two" * 99) if name_is_free else b"a third")


def test_only_our_own_names_in_the_trash_are_ours(work_dir: Path) -> None:
    with opened(work_dir) as dirs:
        for name in ("5-0", "30-0", "30-2", "30-10", "4-0.gone", "notes", "1-", "١-0", "1-0.pth", ".1-0"):
            (work_dir / ".ckptd/trash" / name).touch()
        found = trash.items(dirs["trash_fd"])
    assert [item.name for item in found] == ["4-0.gone", "5-0", "30-0", "30-2", "30-10"]
    assert [item.claimed for item in found] == [True, False, False, False, False]


def test_a_removal_frees_a_whole_directory_and_follows_no_symlink_in_it(
    with_checkpoints: Builder, tmp_path: Path
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    path = with_checkpoints.shards("iter_1")
    (path / "data").symlink_to(tmp_path / "outside")
    with opened(path.parent) as dirs:
        item = trash.put(entry(path.parent, "iter_1"), now_ms=1, **dirs)
        claimed = trash.claim(item, trash_fd=dirs["trash_fd"])
        assert trash.claim(claimed, trash_fd=dirs["trash_fd"]) == claimed
        trash.remove(claimed, trash_fd=dirs["trash_fd"])
        trash.remove(claimed, trash_fd=dirs["trash_fd"])  # gone already is success
    assert (in_trash(path.parent), os.listdir(tmp_path / "outside")) == ([], ["precious"])


def test_a_symlink_in_the_place_of_what_is_to_be_removed_goes_alone(work_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").touch()
    with opened(work_dir) as dirs:
        (work_dir / ".ckptd/trash/1-0.gone").symlink_to(tmp_path / "outside")
        trash.remove("1-0.gone", trash_fd=dirs["trash_fd"])
    assert (in_trash(work_dir), os.listdir(tmp_path / "outside")) == ([], ["precious"])


def test_a_file_deleted_without_the_trash_is_deleted_in_one_call_or_not_at_all(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with_checkpoints.shards("iter_1")
    with opened_dir(str(work_dir)) as fd:
        trash.unlink(entry(work_dir, "epoch_1.pth"), work_fd=fd)
        changed = entry(work_dir, "epoch_2.pth")
        grow(work_dir / "epoch_2.pth")
        for each in (changed, entry(work_dir, "iter_1")):
            with pytest.raises(trash.ChangedError):
                trash.unlink(each, work_fd=fd)
    assert left(work_dir) == ["iter_1", "epoch_2.pth"]


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/tmp"), lambda p: p.touch()])
def test_a_trash_that_is_no_directory_is_refused(make, work_dir: Path) -> None:
    (work_dir / ".ckptd").mkdir()
    make(work_dir / ".ckptd/trash")
    with (
        opened_dir(str(work_dir / ".ckptd")) as own_fd,
        pytest.raises(RefusedError, match=f"^{work_dir}/.ckptd/trash: "),
        trash.opened_trash(own_fd),
    ):
        pass


# --- crashes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["after the rename", "before the journal", "before the removal", "in the removal"])
def test_what_a_crash_leaves_is_finished_at_the_next_start(
    moment: str, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with_checkpoints.shards("iter_1")
    with_checkpoints.shards("iter_2")

    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        if moment == "after the rename":
            patch.setattr("ckptd.workdir.trash.sync", crash)
        elif moment == "before the journal":
            patch.setattr("ckptd.workdir.journal.append", crash)
        elif moment == "before the removal":
            patch.setattr(Remover, "submit", crash)
        else:
            patch.setattr(threading, "excepthook", lambda _: None)
            patch.setattr(trash, "remove", crash)  # in the remover's thread, and by then claimed
        with contextlib.suppress(Crash):
            a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0, settle_s=0)
        if moment != "before the journal":  # which each is written into as it goes
            assert left(work_dir) == ["iter_2", "epoch_3.pth"]  # no name half deleted
        assert len(in_trash(work_dir)) == (1 if moment == "before the journal" else 3)
    a_pass(work_dir, max_keep=1, rule="newest", settle_s=0)
    assert (left(work_dir), in_trash(work_dir)) == (["iter_2", "epoch_3.pth"], [])


def test_nothing_that_a_crash_left_is_freed_while_the_fsync_of_its_rename_fails(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))

    def crash(*_: object, **__: object) -> None:
        raise Crash

    def refuse(**_: object) -> None:
        raise SyncError(errno.EIO, os.strerror(errno.EIO))

    for what in (crash, refuse):
        with monkeypatch.context() as patch, contextlib.suppress(Crash):
            patch.setattr("ckptd.workdir.trash.sync", what)
            a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
        assert len(in_trash(work_dir)) == 2
    a_pass(work_dir, max_keep=1, rule="newest")
    assert (left(work_dir), in_trash(work_dir)) == (epochs(3), [])


def test_the_trash_that_is_to_be_kept_survives_a_restart_with_its_time(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=500)
    lines = [json.loads(line) for line in (work_dir / ".ckptd/journal.jsonl").read_text().splitlines()]
    a_pass(work_dir, max_keep=1, rule="newest")
    assert in_trash(work_dir) == sorted(line["trash"] for line in lines)
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert in_trash(work_dir) == []


def test_what_is_not_ours_in_the_trash_stays_there(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / ".ckptd/trash").mkdir(parents=True)
    (work_dir / ".ckptd/trash/precious").touch()
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert in_trash(work_dir) == ["precious"]


# --- nothing is replaced ----------------------------------------------------------------------------------------

WAYS = [0, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP]  # of the file system, to answer a rename that replaces nothing


@pytest.fixture(params=WAYS, ids=lambda number: errno.errorcode.get(number, "in one call"))
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    if request.param:
        monkeypatch.setattr(descriptors, "_renameat2", lambda: lambda *_: request.param)
    return request.param


@pytest.mark.parametrize("ours", [False, True])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["a file", "a directory"])
@pytest.mark.parametrize("taken", [None, Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")],
                         ids=["is free", "is a file's", "is a directory's", "is a symlink's"])  # fmt: skip
def test_a_rename_to_a_new_name_replaces_nothing_on_any_file_system(
    taken: Callable[[Path], None] | None, make: Callable[[Path], None], ours: bool, way: int, work_dir: Path
) -> None:
    make(work_dir / "old")
    inode = (work_dir / "old").stat().st_ino
    if taken:
        taken(work_dir / "new")
    before = picture(work_dir)
    with opened_dir(str(work_dir)) as fd:
        if taken:
            with pytest.raises(FileExistsError):
                descriptors.rename_new("old", "new", src_dir_fd=fd, dst_dir_fd=fd, ours=ours)
            assert picture(work_dir) == before
        else:
            descriptors.rename_new("old", "new", src_dir_fd=fd, dst_dir_fd=fd, ours=ours)
            assert (os.listdir(work_dir), (work_dir / "new").stat().st_ino) == (["new"], inode)


def test_a_name_that_is_missing_is_told_as_such_on_any_file_system(way: int, work_dir: Path) -> None:
    with opened_dir(str(work_dir)) as fd, pytest.raises(FileNotFoundError):
        descriptors.rename_new("old", "new", src_dir_fd=fd, dst_dir_fd=fd)


def test_a_file_system_without_second_names_gets_a_look(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(descriptors, "_renameat2", lambda: lambda *_: errno.EINVAL)
    monkeypatch.setattr(os, "link", refuse)
    (work_dir / "old").touch()
    with opened_dir(str(work_dir)) as fd:
        descriptors.rename_new("old", "new", src_dir_fd=fd, dst_dir_fd=fd)
        assert os.listdir(work_dir) == ["new"]
        (work_dir / "old").touch()
        with pytest.raises(FileExistsError):
            descriptors.rename_new("old", "new", src_dir_fd=fd, dst_dir_fd=fd)


def test_what_a_job_saves_at_the_moment_of_a_restore_is_not_replaced_and_keeps_its_own_scores(
    way: int, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    scores = work_dir / "epoch_1.pth.metrics.json"
    scores.write_text("old")
    rename = trash.rename_new

    def save_first(src: str, dst: str, **more: int) -> None:
        if dst == "epoch_1.pth":
            (work_dir / "epoch_1.pth").write_bytes(b"saved anew")
        rename(src, dst, **more)

    with opened(work_dir) as dirs:
        before = trash.scores_of("epoch_1.pth", dir_fd=dirs["work_fd"])
        item = trash.put(entry(work_dir, "epoch_1.pth"), now_ms=7, **dirs)
        trash.put_beside("epoch_1.pth", item, scores=before, **dirs)
        monkeypatch.setattr(trash, "rename_new", save_first)
        with pytest.raises(FileExistsError):
            trash.restore(item, "epoch_1.pth", **dirs)
    assert left(work_dir) == ["epoch_1.pth"]
    assert (work_dir / "epoch_1.pth").read_bytes() == b"saved anew"
    assert in_trash(work_dir) == [item, f"{item}.metrics.json"]


# --- scores that come late --------------------------------------------------------------------------------------


def write_anew(path: Path) -> None:
    path.write_text("late")


def copy_an_older_one(path: Path) -> None:
    path.write_text("late")
    os.utime(path, ns=(10**18, 10**18))


def move_in(path: Path) -> None:
    path.with_name("written before").rename(path)


@pytest.mark.parametrize("had_some", [False, True], ids=["it had none", "it had some"])
@pytest.mark.parametrize("come", [write_anew, copy_an_older_one, move_in], ids=lambda come: come.__name__)
def test_scores_that_come_after_their_checkpoint_was_pruned_stay(
    come: Callable[[Path], None], had_some: bool, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    late = work_dir / "epoch_1.pth.metrics.json"
    (work_dir / "written before").write_text("late")
    if had_some:
        late.write_text("before")
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=3600)
    come(late)
    for ttl_s in (3600, 0, 0):
        a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=ttl_s)
    assert late.read_text() == "late"
    assert in_trash(work_dir) == []


def test_scores_that_come_between_the_rename_of_their_checkpoint_and_their_own_stay(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    scores, rename = work_dir / "epoch_1.pth.metrics.json", trash.rename_new

    def write_after(src: str, dst: str, **more: int) -> None:
        rename(src, dst, **more)
        if src == "epoch_1.pth":
            scores.write_text("late")

    monkeypatch.setattr(trash, "rename_new", write_after)
    a_pass(work_dir, max_keep=1, rule="newest", trash_ttl_s=0)
    assert scores.read_text() == "late"


# --- modes ------------------------------------------------------------------------------------------------------


def test_a_removal_changes_the_mode_of_nothing_that_somebody_puts_in_a_directorys_place(
    with_checkpoints: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    precious = tmp_path / "precious"
    precious.touch(0o644)
    path = with_checkpoints.shards("iter_1")
    (path / "sub").mkdir()
    scandir = os.scandir

    def swap_after(fd: int) -> object:
        with scandir(fd) as entries:
            found = list(entries)
            [entry.is_dir(follow_symlinks=False) for entry in found]
        if "sub" in os.listdir(fd):
            os.rename("sub", "aside", src_dir_fd=fd, dst_dir_fd=fd)
            os.symlink(precious, "sub", dir_fd=fd)
        return contextlib.nullcontext(found)

    with opened(path.parent) as dirs:
        item = trash.claim(trash.put(entry(path.parent, "iter_1"), now_ms=1, **dirs), trash_fd=dirs["trash_fd"])
        with monkeypatch.context() as patch:
            patch.setattr(os, "scandir", swap_after)
            trash.remove(item, trash_fd=dirs["trash_fd"])
    assert (precious.stat().st_mode & 0o777, in_trash(path.parent)) == (0o644, [])


def test_directories_that_not_even_their_owner_may_open_are_freed_all_the_same(
    somebody: Somebody, ckptd: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    work_dir = somebody.place / "run"
    work_dir.mkdir()
    with_checkpoints = Builder(work_dir)
    for name in ("iter_1", "iter_2"):
        shards = with_checkpoints.shards(name)
        (shards / "closed" / "deeper").mkdir(parents=True)
        (shards / "closed" / "deeper" / "file").touch()
    policy = ("--max-keep", "1", "--rule", "newest")
    somebody.owns(work_dir)
    assert ckptd("prune", work_dir, *policy, "--trash-ttl", "1h", user=somebody).returncode == 0
    (item,) = (work_dir / ".ckptd/trash").iterdir()
    for place in (item / "closed" / "deeper", item / "closed", item):
        place.chmod(0)
    done = ckptd("prune", work_dir, *policy, "--trash-ttl", "0", user=somebody)
    assert (done.returncode, in_trash(work_dir)) == (0, []), done.stderr


def test_a_checkpoint_that_vanishes_between_scan_and_rename_is_a_success(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    put = trash.put

    def somebody_is_faster(entry, **dirs):
        if entry.name == "epoch_1.pth":
            (work_dir / entry.name).unlink()
        return put(entry, **dirs)

    monkeypatch.setattr(trash, "put", somebody_is_faster)
    report = a_pass(work_dir, max_keep=1, interval=1)
    assert (report.exit_code, left(work_dir), pointed(work_dir)) == (0, epochs(3), "epoch_3.pth")
