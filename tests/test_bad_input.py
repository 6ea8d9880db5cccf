"""What people and programs put where ckptd looks: a clear message, the right exit code, and nothing lost or touched."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.workdir import trash

from .conftest import (
    Builder,
    Somebody,
    a_pass,
    environment,
    epochs,
    left,
    picture,
    pointed,
    safetensors,
    torch_zip,
)

Ckptd = Callable[..., subprocess.CompletedProcess[str]]

# --- the work dir itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["plan", "prune", "latest", "history", "restore", "watch"])
def test_a_work_dir_that_is_a_file_is_wrong_use(command: str, tmp_path: Path, ckptd: Ckptd) -> None:
    place = tmp_path / "run.pth"
    place.write_bytes(torch_zip())
    done = ckptd(command, place)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines()[-1] == (
        f"error: {place}: not a directory. Give the directory that holds the checkpoints"
    )
    assert place.read_bytes() == torch_zip()


@pytest.mark.parametrize("command", ["plan", "prune", "latest", "history", "restore"])
def test_a_work_dir_that_is_missing_is_named(command: str, tmp_path: Path, ckptd: Ckptd) -> None:
    done = ckptd(command, tmp_path / "nowhere")
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{tmp_path}/nowhere: does not exist." in done.stderr
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("command", ["plan", "prune", "latest"])
def test_an_unreadable_work_dir_is_an_error_that_names_it(command: str, somebody: Somebody, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2))
    somebody.owns(place)
    place.chmod(0o300)
    done = ckptd(command, place, user=somebody)
    assert done.returncode == (6 if command == "latest" else 1)
    assert done.stderr == f"error: {place}: cannot be opened: Permission denied. Run ckptd as its owner\n"
    place.chmod(0o700)
    assert left(place) == epochs(1, 2)


def test_a_work_dir_that_cannot_be_written_is_an_error_that_names_it(somebody: Somebody, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2, 3))
    somebody.owns(place)
    place.chmod(0o555)
    before = picture(place)
    done = ckptd("prune", place, "--max-keep", 1, user=somebody)
    assert done.returncode == 1
    assert done.stderr == f"error: {place}: cannot be written: Permission denied. Run ckptd as its owner\n"
    assert picture(place) == before


# --- options --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--max-keep", "0"], "0", id="a max-keep of 0"),
        pytest.param(["--max-keep", "-1"], "-1", id="a max-keep below 0"),
        pytest.param(["--max-keep", "9" * 5000], "max-keep", id="a max-keep of 5000 digits"),
        pytest.param(["--max-keep", "2.5"], "2.5", id="a max-keep that is no whole number"),
        pytest.param(["--max-keep", "1", "--interval", "0"], "interval", id="an interval of 0"),
        pytest.param(["--max-keep", "1", "--template", "epoch.pth"], "no fields", id="a template without a field"),
        pytest.param(["--max-keep", "1", "--template", "{}_{}.pth"], "2 fields", id="a template with two fields"),
        pytest.param(["--max-keep", "1", "--template", "run2{}.pth"], "digits", id="a field against digits"),
        pytest.param(["--max-keep", "1", "--template", "../epoch_{}.pth"], "'/'", id="a template with a path"),
        pytest.param(["--max-keep", "1", "--template", "epoch_{}\n"], "printed", id="a template with a newline"),
        pytest.param(["--max-keep", "1", "--template", "e_{:05000d}"], "longer", id="a template of 5000 digits"),
        pytest.param(["--max-keep", "1", "--template", "e_{:099999999999d}"], "longer", id="one of 100 GB"),
        pytest.param(["--max-keep", "1", "--pointer", "../last"], "pointer", id="a pointer with a path"),
        pytest.param(["--max-keep", "1", "--pointer", "epoch_1.pth"], "checkpoint", id="a checkpoint as pointer"),
        pytest.param(["--max-keep", "1", "--trash-ttl", "soon"], "soon", id="a duration in words"),
    ],
)
def test_an_option_that_makes_no_sense_is_wrong_use_and_nothing_happens(
    options: list[str], said: str, with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    before = picture(work_dir)
    done = ckptd("prune", work_dir, *options)
    assert done.returncode == 2, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert picture(work_dir) == before


# --- names ----------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("odd", [b"link\xff", b"link\nepoch_9.pth  complete"])
def test_a_symlink_with_an_odd_name_neither_ends_the_plan_nor_writes_lines_of_its_own(
    odd: bytes, with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    os.symlink(b"epoch_1.pth", os.path.join(os.fsencode(work_dir), odd))
    # As a terminal has it: text, not whatever bytes there are.
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for command in ("plan", "prune"):
        done = ckptd(command, work_dir, "--max-keep", 1, "--trash-ttl", 0, env=strict)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert not any(line.startswith("epoch_9.pth") for line in (done.stdout + done.stderr).splitlines())
    assert set(epochs(1, 3)) <= set(left(work_dir))


def test_a_pointer_that_holds_no_text_does_not_end_the_plan(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / "last_ckpt").write_bytes(b"/runs/\xff/epoch_2.pth\n")
    done = ckptd("plan", work_dir, "--max-keep", 1, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, done.stderr) == (0, "")
    done = ckptd("prune", work_dir, "--max-keep", 1, env={"PYTHONIOENCODING": "utf-8:strict"})
    assert (done.returncode, pointed(work_dir)) == (0, "epoch_3.pth")


# --- what changes under the hand --------------------------------------------------------------------------------


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


def test_a_copied_directory_whose_times_are_in_another_order_loses_nothing(
    with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(2, 10, 1, 3))
    done = ckptd("prune", work_dir, "--max-keep", 1)
    assert (done.returncode, left(work_dir)) == (0, epochs(1, 2, 3, 10))
    assert "the order of writing and the order of steps disagree" in done.stderr


# --- a full disk ------------------------------------------------------------------------------------------------

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
        pytest.skip("only root can mount a small file system; test_reconcile.py has the same with a refusing disk")
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


# --- planted links ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("planted", "goal"),
    [
        pytest.param(".ckptd", "directory", id="ckptd's own directory"),
        pytest.param(".ckptd/lock", "file", id="the lock"),
        pytest.param(".ckptd/state.json", "file", id="the state"),
        pytest.param(".ckptd/journal.jsonl", "file", id="the journal"),
        pytest.param(".ckptd/trash", "directory", id="the trash"),
        pytest.param(".ckptd/schedules", "directory", id="the schedules"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "watch"])
def test_a_symlink_planted_where_ckptd_keeps_its_own_is_refused_before_anything_is_deleted(
    planted: str, goal: str, command: str, with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd
) -> None:
    work_dir, outside = with_checkpoints(*epochs(1, 2, 3)), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (outside / "1000-0").write_bytes(b"named like something in the trash")
    path = work_dir / planted
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside if goal == "directory" else outside / "precious")
    before = picture(outside)
    done = ckptd(command, work_dir, "--max-keep", 1, "--trash-ttl", 0)
    assert (done.returncode, left(work_dir), picture(outside)) == (4, epochs(1, 2, 3), before), done.stderr
    assert str(path) in done.stderr.splitlines()[-1]
    assert "emove it" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


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
