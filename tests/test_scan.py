"""What a scan finds in a real directory: which names, which times, which sizes; and that it only reads."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ckptd.core.entry import Entry
from ckptd.core.finder import Finder
from ckptd.core.layouts import DEFAULT_LAYOUTS
from ckptd.core.naming import Template
from ckptd.disk.descriptors import opened_dir
from ckptd.inspect import scan as scanning
from ckptd.inspect.scan import Found, entry_of, scan
from ckptd.workdir import trash

from .conftest import Builder, a_pass, bottomless, epochs, left, picture, torch_zip


def look(work_dir: Path, *templates: str) -> Found:
    with opened_dir(str(work_dir)) as fd:
        return scan(str(work_dir), fd, Finder(map(Template, templates)) if templates else Finder((), DEFAULT_LAYOUTS))


def entries(work_dir: Path, *templates: str) -> dict[str, Entry]:
    return {entry.name: entry for entry in look(work_dir, *templates).entries}


def test_every_default_name_is_found_with_its_series_and_step(with_checkpoints: Builder) -> None:
    names = [
        f"{unit}_{step}{end}" for unit in ("epoch", "iter") for step in (7, 12) for end in (".pth", ".pt", ".ckpt")
    ]
    work_dir = with_checkpoints(*names, "epoch_7.safetensors", "notes.txt", "best_epoch_7.pth", "last_ckpt")
    with_checkpoints.shards("iter_7")
    found = entries(work_dir)
    assert set(found) == {*names, "epoch_7.safetensors", "iter_7"}
    assert {(e.series, e.step) for e in found.values() if e.step == 12} == {
        (f"{unit}_{{}}{end}", 12) for unit in ("epoch", "iter") for end in (".pth", ".pt", ".ckpt")
    }
    assert (found["iter_7"].series, found["iter_7"].is_dir) == ("iter_{}", True)


def test_a_given_template_takes_the_place_of_the_default_names(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("model-0003.ckpt", "model-3.ckpt", "model-12345.ckpt", "epoch_3.pth")
    found = entries(work_dir, "model-{:04d}.ckpt")
    assert {name: entry.step for name, entry in found.items()} == {"model-0003.ckpt": 3, "model-12345.ckpt": 12345}


def test_size_time_and_inode_are_those_of_the_file(with_checkpoints: Builder) -> None:
    path = with_checkpoints("epoch_1.pth") / "epoch_1.pth"
    found, info = entries(path.parent)["epoch_1.pth"], path.stat()
    assert (found.size_bytes, found.allocated_bytes) == (info.st_size, info.st_blocks * 512)
    assert (found.mtime_ns, found.ctime_ns) == (info.st_mtime_ns, info.st_ctime_ns)
    assert (found.device, found.inode) == (info.st_dev, info.st_ino)


def test_a_sparse_file_counts_for_what_its_deletion_frees(with_checkpoints: Builder) -> None:
    path = with_checkpoints("epoch_1.pth") / "epoch_1.pth"
    os.truncate(path, 1 << 30)
    found = entries(path.parent)["epoch_1.pth"]
    assert found.size_bytes == 1 << 30
    assert found.allocated_bytes < 1 << 20


def test_a_directorys_time_is_its_markers_whatever_is_dropped_into_it_later(with_checkpoints: Builder) -> None:
    path = with_checkpoints.shards("iter_1")
    written = (path / ".metadata").stat().st_mtime_ns
    (path / "eval.json").write_text("{}")
    (path / "deep" / "er").mkdir(parents=True)
    (path / "deep" / "er" / "plot.png").write_bytes(b"png" * 100)
    found = entries(path.parent)["iter_1"]
    assert found.mtime_ns == written
    assert found.size_bytes == sum(each.stat().st_size for each in path.rglob("*") if each.is_file())


def test_a_directory_without_a_marker_is_as_old_as_its_newest_file(with_checkpoints: Builder) -> None:
    path = with_checkpoints.shards("iter_1", whole=False)
    (path / "__1_0.distcp").write_bytes(b"s")
    with_checkpoints.tick(path / "__1_0.distcp")
    assert entries(path.parent)["iter_1"].mtime_ns == (path / "__1_0.distcp").stat().st_mtime_ns


def test_a_file_linked_twice_into_a_directory_counts_once(with_checkpoints: Builder) -> None:
    path = with_checkpoints.shards("iter_1")
    once = entries(path.parent)["iter_1"]
    os.link(path / "__0_0.distcp", path / "__0_1.distcp")
    twice = entries(path.parent)["iter_1"]
    assert (twice.size_bytes, twice.allocated_bytes) == (once.size_bytes, once.allocated_bytes)


def test_a_symlink_inside_a_checkpoint_is_neither_followed_nor_counted(
    with_checkpoints: Builder, tmp_path: Path
) -> None:
    path = with_checkpoints.shards("iter_1")
    before = entries(path.parent)["iter_1"].size_bytes
    (path / "data").symlink_to(tmp_path)
    (path / "dangling").symlink_to(tmp_path / "nowhere")
    (path / "again").symlink_to(path)
    assert entries(path.parent)["iter_1"].size_bytes == before


def test_a_pin_is_the_name_with_keep_after_it(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    (work_dir / "epoch_1.pth.keep").touch()
    assert look(work_dir).pinned == {"epoch_1.pth"}


@pytest.mark.parametrize(
    "make",
    [
        pytest.param(lambda d: (d / "best").symlink_to("epoch_1.pth"), id="a relative target"),
        pytest.param(lambda d: (d / "best").symlink_to(d / "epoch_1.pth"), id="an absolute target"),
        pytest.param(lambda d: (d / "best").symlink_to("../run/./epoch_1.pth"), id="a target around a corner"),
        pytest.param(
            lambda d: ((d.parent / "hop").symlink_to(d / "epoch_1.pth"), (d / "best").symlink_to("../hop")),
            id="a chain through a link outside",
        ),
        pytest.param(
            lambda d: ((d.parent / "alias").symlink_to(d), (d / "best").symlink_to("../alias/epoch_1.pth")),
            id="a target through a link to the work dir",
        ),
    ],
)
def test_a_symlink_in_the_work_dir_names_its_checkpoint(make, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    make(work_dir)
    assert look(work_dir).linked == {"epoch_1.pth": "best"}


def test_a_symlink_into_a_checkpoints_directory_names_the_checkpoint(with_checkpoints: Builder) -> None:
    path = with_checkpoints.shards("iter_1")
    (path.parent / "best").symlink_to("iter_1/__0_0.distcp")
    assert look(path.parent).linked == {"iter_1": "best"}


@pytest.mark.parametrize("target", [
    "/workspace/run/epoch_1.pth", "/workspace/run/epoch_1.pth/", "../moved/epoch_1.pth", "work_dirs/run/epoch_1.pth",
    "/workspace/run/epoch_1.pth/model.safetensors",
])  # fmt: skip
def test_a_symlink_that_leads_nowhere_here_names_what_bears_the_name_it_ends_with(
    target: str, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    (work_dir / "best").symlink_to(target)
    assert look(work_dir).linked["epoch_1.pth"] == "best"
    assert "epoch_2.pth" not in look(work_dir).linked


def test_a_symlink_through_another_that_leads_nowhere_here_names_it_too(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    (work_dir.parent / "hop").symlink_to("/workspace/run/epoch_1.pth")
    (work_dir / "best").symlink_to("../hop")
    assert look(work_dir).linked["epoch_1.pth"] == "best"


def test_a_symlink_to_something_else_that_is_there_names_that_alone(with_checkpoints: Builder, tmp_path: Path) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    (tmp_path / "epoch_1.pth").touch()
    (work_dir / "first").symlink_to(tmp_path / "epoch_1.pth")
    assert look(work_dir).linked == {}


def test_a_symlink_to_the_same_file_by_another_way_names_it(with_checkpoints: Builder, tmp_path: Path) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    (tmp_path / "mounted").mkdir()  # as a bind mount shows it
    (tmp_path / "mounted" / "epoch_1.pth").hardlink_to(work_dir / "epoch_1.pth")
    (work_dir / "best").symlink_to(tmp_path / "mounted" / "epoch_1.pth")
    assert look(work_dir).linked["epoch_1.pth"] == "best"


def test_a_checkpoint_that_vanishes_while_it_is_looked_at_is_not_there(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    stat_entry = scanning.stat_entry

    def after_it_has_gone(name: str, *, dir_fd: int) -> os.stat_result:
        if name == "epoch_1.pth":
            (work_dir / name).unlink(missing_ok=True)
        return stat_entry(name, dir_fd=dir_fd)

    monkeypatch.setattr(scanning, "stat_entry", after_it_has_gone)
    found = look(work_dir)
    assert ([entry.name for entry in found.entries], found.left_alone) == (epochs(2), [])


def test_a_scan_changes_nothing(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with_checkpoints.shards("iter_1")
    before = picture(work_dir)
    look(work_dir)
    assert picture(work_dir) == before


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/passwd"), os.mkfifo])
def test_an_entry_by_its_name_is_a_file_or_a_directory(make, work_dir: Path) -> None:
    make(work_dir / "odd")
    with opened_dir(str(work_dir)) as fd, pytest.raises(OSError, match="neither a file nor a directory"):
        entry_of("odd", dir_fd=fd)


def test_an_entry_by_its_name_needs_no_checkpoints_name(work_dir: Path) -> None:
    (work_dir / "any").write_bytes(torch_zip())
    with opened_dir(str(work_dir)) as fd:
        assert entry_of("any", dir_fd=fd).size_bytes == len(torch_zip())


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
