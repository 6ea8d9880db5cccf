"""The walk over a directory and all below it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.disk.walk import walk, walk_opened


@contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield fd
    finally:
        os.close(fd)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def paths(tmp_path: Path) -> list[str]:
    with opened(tmp_path) as fd:
        return sorted(f"{each.below}{entry.name}" for each in walk("run", dir_fd=fd) for entry in each.others)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tmp_path / "run"
    for path in ("a", "model/b", "model/deep/c", "optim/d"):
        (run / path).parent.mkdir(parents=True, exist_ok=True)
        (run / path).write_bytes(b"bytes of " + path.encode())
    return run


@pytest.mark.usefixtures("run")
def test_each_file_is_met_once_with_its_path(tmp_path: Path) -> None:
    assert paths(tmp_path) == ["a", "model/b", "model/deep/c", "optim/d"]


def test_a_directory_comes_before_those_in_it_and_its_descriptor_is_its_own(tmp_path: Path, run: Path) -> None:
    met = []
    with opened(tmp_path) as fd:
        for each in walk("run", dir_fd=fd):
            met.append(each.below)
            assert os.path.samestat(os.fstat(each.fd), os.stat(run / each.below))
            assert all(entry.stat(follow_symlinks=False).st_size for entry in each.others)
    assert met.index("") < met.index("model/") < met.index("model/deep/")
    assert sorted(met) == ["", "model/", "model/deep/", "optim/"]


def test_a_directory_that_is_open_can_be_walked_again_and_again(run: Path) -> None:
    with opened(run) as fd:
        once = [each.below for each in walk_opened(fd)]
        assert [each.below for each in walk_opened(fd)] == once
        assert len(once) == 4


def test_a_symlink_is_told_of_and_not_followed(tmp_path: Path, run: Path) -> None:
    (run / "link").symlink_to("model")
    (run / "loop").symlink_to(".")
    assert paths(tmp_path) == ["a", "link", "loop", "model/b", "model/deep/c", "optim/d"]


def test_the_first_may_be_no_symlink(tmp_path: Path, run: Path) -> None:
    (tmp_path / "other").symlink_to(run)
    with opened(tmp_path) as fd, pytest.raises(NotADirectoryError):
        list(walk("other", dir_fd=fd))


@pytest.mark.usefixtures("run")
def test_what_is_taken_out_of_the_list_is_not_gone_into(tmp_path: Path) -> None:
    met = []
    with opened(tmp_path) as fd:
        for each in walk("run", dir_fd=fd):
            met.append(each.below)
            each.directories[:] = [entry for entry in each.directories if entry.name != "model"]
    assert met == ["", "optim/"]


@pytest.mark.parametrize(("levels", "fails"), [(32, False), (33, True)])
def test_what_is_deeper_than_any_checkpoint_is_an_error(run: Path, levels: int, fails: bool) -> None:
    (run / "/".join(["d"] * levels)).mkdir(parents=True)
    with opened(run) as fd:
        if not fails:
            assert max(each.below.count("d/") for each in walk_opened(fd)) == levels
            return
        with pytest.raises(OSError, match="nested deeper") as raised:
            list(walk_opened(fd))
        assert raised.value.errno == errno.ELOOP
        assert sum(each.below.startswith("d/") for each in walk_opened(fd, forgiving=True)) == 32


def test_a_directory_that_is_gone_when_its_turn_comes_is_an_error_or_left_out(run: Path) -> None:
    def met(fd: int, *, forgiving: bool) -> Iterator[str]:
        for each in walk_opened(fd, forgiving=forgiving):
            yield each.below
            if not each.below:
                os.rename("optim", "elsewhere", src_dir_fd=each.fd, dst_dir_fd=each.fd)

    with opened(run) as fd:
        with pytest.raises(FileNotFoundError):
            list(met(fd, forgiving=False))
        (run / "elsewhere").rename(run / "optim")
        assert sorted(met(fd, forgiving=True)) == ["", "model/", "model/deep/"]


def test_a_first_that_cannot_be_listed_is_an_error_even_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (tmp_path / "file").open() as file, pytest.raises(NotADirectoryError) as raised:
        list(walk_opened(file.fileno(), forgiving=True))
    assert raised.value.filename is None  # whoever calls knows which


def test_a_walk_has_one_descriptor_open_for_each_level(run: Path) -> None:
    with opened(run) as fd:
        before = descriptors()
        for each in walk_opened(fd):
            assert descriptors() - before == 1 + each.below.count("/")
        assert descriptors() == before


def test_a_walk_that_is_given_up_leaves_no_descriptor_open(run: Path) -> None:
    def look(fd: int) -> None:
        for each in walk_opened(fd):
            if each.below == "model/deep/":
                raise LookupError

    with opened(run) as fd:
        before = descriptors()
        try:
            look(fd)
        except LookupError:  # while the traceback is there
            assert descriptors() == before
