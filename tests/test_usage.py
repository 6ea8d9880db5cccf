"""What no command can work with: one line that names it, the right exit code, and nothing is lost or touched."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import Builder, Ckptd, Somebody, epochs, left, picture, torch_zip


@pytest.mark.parametrize("command", ["plan", "prune", "latest", "history", "restore", "watch"])
def test_a_work_dir_that_is_a_file_is_wrong_use(command: str, tmp_path: Path, ckptd: Ckptd) -> None:
    place = tmp_path / "run.pth"
    place.write_bytes(torch_zip())
    done = ckptd(command, place)
    assert (done.returncode, done.stdout) == (2, "")
    said = f"error: {place}: not a directory. Give the directory that holds the checkpoints"
    assert done.stderr.splitlines().count(said) == 1
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


@pytest.mark.parametrize(
    ("options", "said"),
    [
        pytest.param(["--max-keep", "0"], "0", id="a max-keep of 0"),
        pytest.param(["--max-keep", "-1"], "-1", id="a max-keep below 0"),
        pytest.param(["--max-keep", "9" * 5000], "max-keep", id="a max-keep of 5000 digits"),
        pytest.param(["--max-keep", "2.5"], "2.5", id="a max-keep that is no whole number"),
        pytest.param(["--max-keep", "1", "--interval", "0"], "interval", id="an interval of 0"),
        pytest.param(["--max-keep", "1", "--template", "epoch.pth"], "no fields", id="a template without a field"),
        pytest.param(["--max-keep", "1", "--template", "{}_{}.pth"], "could each be", id="a template with two fields"),
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
