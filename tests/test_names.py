"""Nearly a checkpoint's name, or its name over something else: listed at most, and left beside what is pruned."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from .conftest import Builder, Ckptd, epochs, left, picture, pointed, torch_zip


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("epoch_1.pth\n", id="a newline at the end"),
        pytest.param("epoch_\n1.pth", id="a newline in it"),
        pytest.param("epoch_١.pth", id="Arabic digits"),
        pytest.param("epoch_1².pth", id="a superscript"),
        pytest.param("epoch_01.pth", id="a leading zero"),
        pytest.param("epoch_-1.pth", id="a sign"),
        pytest.param("epoch_1_.pth", id="an underscore after digits"),
        pytest.param("epoch_1.pth.tmp", id="an ending more"),
        pytest.param("best_epoch_1.pth", id="a word before"),
        pytest.param("EPOCH_1.PTH", id="capitals"),
        pytest.param(os.fsdecode(b"epoch_\xff1.pth"), id="bytes that are no text"),
    ],
)
def test_a_name_that_is_not_exactly_a_checkpoints_is_never_touched(
    name: str, with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(name, *epochs(2, 3, 4))
    done = ckptd("prune", work_dir, "--max-keep", 1, "--trash-ttl", 0)
    assert (done.returncode, left(work_dir)) == (0, sorted([name, "epoch_4.pth"], key=lambda n: n == "epoch_4.pth"))
    assert (work_dir / name).read_bytes() == torch_zip()


def test_the_longest_number_that_fits_into_a_name_is_a_step(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    longest = f"epoch_{'9' * 245}.pth"
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4), longest)
    assert len(longest) == 255
    for _ in range(2):  # its number goes through the state file, and through JSON
        done = ckptd("prune", work_dir, "--max-keep", 2, "--trash-ttl", 0)
        assert (done.returncode, pointed(work_dir)) == (0, longest), done.stderr
    assert ckptd("plan", work_dir, "--json").returncode == 0


@pytest.mark.parametrize("kind", ["symlink", "dangling symlink", "fifo", "socket", "directory"])
def test_what_is_no_file_but_bears_a_checkpoints_name_is_listed_and_left(
    kind: str, with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(2, 3, 4))
    odd, outside = work_dir / "epoch_1.pth", tmp_path / "elsewhere.pth"
    outside.write_bytes(torch_zip())
    if kind == "symlink":
        odd.symlink_to(outside)
    elif kind == "dangling symlink":
        odd.symlink_to(tmp_path / "nowhere")
    elif kind == "fifo":
        os.mkfifo(odd)
    elif kind == "socket":
        monkeypatch.chdir(work_dir)  # the path of a socket must be short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(odd.name)
    else:
        odd.mkdir()
        (odd / "data.pkl").write_bytes(b"weights")
    before = picture(odd), picture(outside)
    planned = ckptd("plan", work_dir, "--max-keep", 1)
    done = ckptd("prune", work_dir, "--max-keep", 1, "--trash-ttl", 0)
    assert (done.returncode, left(work_dir)) == (0, epochs(1, 4)), done.stderr
    assert "left alone: epoch_1.pth (" in planned.stdout
    assert (picture(odd), picture(outside)) == before


def test_a_folder_of_images_named_like_a_checkpoint_is_listed_and_left(work_dir: Path, ckptd: Ckptd) -> None:
    for step in (1, 2, 3):
        (work_dir / f"epoch_{step}").mkdir()
        (work_dir / f"epoch_{step}" / "sample.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    before = picture(work_dir)
    planned = ckptd("plan", work_dir, "--max-keep", 1)
    assert ckptd("prune", work_dir, "--max-keep", 1).returncode == 0
    assert planned.stdout.count("left alone: epoch_") == 3
    assert picture(work_dir) == before


def test_a_file_of_unknown_bytes_named_like_a_checkpoint_is_listed_and_left(
    with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    with_checkpoints("epoch_1.pth", content=b"\x7fELF" + b"program" * 99)
    work_dir = with_checkpoints(*epochs(2, 3, 4))
    done = ckptd("prune", work_dir, "--max-keep", 1, "--trash-ttl", 0)
    assert (done.returncode, left(work_dir)) == (0, epochs(1, 4))
    assert (work_dir / "epoch_1.pth").read_bytes().startswith(b"\x7fELF")
