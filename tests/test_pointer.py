"""The pointer: read whatever somebody left there, replaced whole or not at all, never followed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from ckptd.core.naming import named_by
from ckptd.disk.descriptors import opened_dir
from ckptd.errors import RefusedError
from ckptd.workdir.pointer import link_target, read_pointer, replace_pointer

from .conftest import Builder, Ckptd, Crash, epochs, left, picture, pointed, safetensors


def read(work_dir: Path, name: str = "last_ckpt") -> str | None:
    with opened_dir(str(work_dir)) as fd:
        return read_pointer(name, dir_fd=fd)


def replace(work_dir: Path, target: str) -> None:
    with opened_dir(str(work_dir)) as fd:
        replace_pointer("last_ckpt", target, dir_fd=fd)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"/runs/a/epoch_3.pth\n", "/runs/a/epoch_3.pth", id="as ckptd writes it"),
        pytest.param(b"epoch_3.pth", "epoch_3.pth", id="a bare name without a newline"),
        pytest.param(b"  epoch_3.pth \r\n", "epoch_3.pth", id="blanks around it"),
        pytest.param(b"", None, id="empty"),
        pytest.param(b"\n", None, id="a newline alone"),
        pytest.param(b"epoch_3.pth\nepoch_4.pth\n", None, id="two lines"),
        pytest.param(b"epoch_3\0.pth", None, id="a null byte"),
        pytest.param(b"a" * 9000, None, id="longer than any path"),
        pytest.param(b"run\xff/epoch_3.pth", os.fsdecode(b"run\xff/epoch_3.pth"), id="bytes that are no text"),
    ],
)
def test_a_pointer_is_one_line_of_text_or_nothing(content: bytes, expected: str | None, work_dir: Path) -> None:
    (work_dir / "last_ckpt").write_bytes(content)
    assert read(work_dir) == expected


@pytest.mark.parametrize("make", [lambda p: None, Path.mkdir, os.mkfifo, lambda p: p.symlink_to("/etc/hostname")])
def test_what_is_no_file_of_text_points_nowhere(make, work_dir: Path) -> None:
    make(work_dir / "last_ckpt")
    assert read(work_dir) is None


@pytest.mark.parametrize("text", ["/old/place/epoch_3.pth", "epoch_3.pth", "../x/epoch_3.pth", "/runs/epoch_3.pth/"])
def test_a_pointer_names_the_last_part_of_its_path(text: str) -> None:
    assert named_by(text) == "epoch_3.pth"


def test_what_was_written_is_read_again(work_dir: Path) -> None:
    for target in ("/runs/a/epoch_3.pth", os.fsdecode(b"/runs/\xff/epoch_4.pth")):
        replace(work_dir, target)
        assert read(work_dir) == target
        assert (work_dir / "last_ckpt").read_bytes() == os.fsencode(target) + b"\n"
    assert [path.name for path in work_dir.iterdir()] == ["last_ckpt"]


def test_a_pointer_is_replaced_and_never_written_over(work_dir: Path) -> None:
    replace(work_dir, "/a/epoch_1.pth")
    with (work_dir / "last_ckpt").open() as reader:
        replace(work_dir, "/a/epoch_2.pth")
        assert reader.read() == "/a/epoch_1.pth\n"  # whoever has begun to read it reads it to its end


@pytest.mark.parametrize("at", ["write", "fsync", "rename"])
def test_a_replacement_that_fails_leaves_the_old_pointer_and_nothing_else(
    at: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace(work_dir, "/a/epoch_1.pth")
    before = picture(work_dir / "last_ckpt")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, at, refuse)
        with pytest.raises(OSError, match="No space"):
            replace(work_dir, "/a/epoch_2.pth")
    after = picture(work_dir / "last_ckpt")
    assert (after, [path.name for path in work_dir.iterdir()]) == (before, ["last_ckpt"])


def test_a_temporary_file_that_a_crash_left_is_in_nobodys_way(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", crash)
        with pytest.raises(Crash):
            replace(work_dir, "/a/epoch_1.pth")
    assert [path.name for path in work_dir.iterdir()] == [".last_ckpt.ckptd-tmp"]
    replace(work_dir, "/a/epoch_2.pth")
    assert [path.name for path in work_dir.iterdir()] == ["last_ckpt"]


def test_a_temporary_name_planted_as_a_symlink_is_not_followed(work_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (work_dir / ".last_ckpt.ckptd-tmp").symlink_to(tmp_path / "precious")
    replace(work_dir, "/a/epoch_2.pth")
    assert (tmp_path / "precious").read_text() == "precious"
    assert read(work_dir) == "/a/epoch_2.pth"


def test_a_directory_in_its_place_is_refused_with_its_path(work_dir: Path) -> None:
    (work_dir / "last_ckpt").mkdir()
    with pytest.raises(RefusedError, match=f"^{work_dir}/last_ckpt: a directory where the pointer goes"):
        replace(work_dir, "/a/epoch_1.pth")


def test_a_link_names_the_last_part_of_its_target(work_dir: Path) -> None:
    (work_dir / "latest.pth").symlink_to("/old/place/epoch_7.pth")
    (work_dir / "plain").touch()
    with opened_dir(str(work_dir)) as fd:
        targets = [link_target(name, dir_fd=fd) for name in ("latest.pth", "plain", "missing")]
    assert targets == ["epoch_7.pth", None, None]


def test_a_pointer_that_holds_no_text_does_not_end_the_plan(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / "last_ckpt").write_bytes(b"/runs/\xff/epoch_2.pth\n")
    done = ckptd("plan", work_dir, "--max-keep", 1, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, done.stderr) == (0, "")
    done = ckptd("prune", work_dir, "--max-keep", 1, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, pointed(work_dir)) == (0, "epoch_3.pth")


def test_a_pointer_planted_as_a_symlink_is_replaced_and_never_followed(
    with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd
) -> None:
    work_dir, outside = with_checkpoints(*epochs(1, 2, 3)), tmp_path / "precious"
    outside.write_bytes(b"precious")
    (work_dir / "last_ckpt").symlink_to(outside)
    done = ckptd("prune", work_dir, "--max-keep", 1)
    assert (done.returncode, pointed(work_dir), outside.read_bytes()) == (0, "epoch_3.pth", b"precious")


def test_a_directory_in_the_pointers_place_is_refused_before_anything_is_deleted(
    with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3), content=safetensors())
    (work_dir / "last_ckpt").mkdir()
    done = ckptd("prune", work_dir, "--max-keep", 1)
    assert (done.returncode, left(work_dir)) == (4, epochs(1, 2, 3)), done.stderr
    assert f"{work_dir}/last_ckpt: a directory where the pointer goes" in done.stderr
    assert not any(path.name.startswith(".last_ckpt") for path in work_dir.iterdir())
