"""The journal: only ever appended to, and readable whatever a crash or a person did to it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.disk.descriptors import opened_dir
from ckptd.errors import RefusedError
from ckptd.passes.restore import restorable
from ckptd.workdir import journal

from .conftest import Builder, a_pass, epochs, left

LINE = {"did": "pruned", "name": "epoch_1.pth"}


@pytest.fixture
def own_fd(tmp_path: Path) -> Iterator[int]:
    with opened_dir(str(tmp_path)) as fd:
        yield fd


def test_what_was_appended_is_read_in_that_order(own_fd: int) -> None:
    assert journal.read(own_fd) == []
    journal.append([LINE, {**LINE, "name": "epoch_2.pth\n"}], own_fd)
    journal.append([{**LINE, "name": "ü\udcff"}], own_fd)
    assert [line["name"] for line in journal.read(own_fd)] == ["epoch_1.pth", "epoch_2.pth\n", "ü\udcff"]


def test_appending_nothing_creates_nothing(own_fd: int, tmp_path: Path) -> None:
    journal.append([], own_fd)
    journal.check(own_fd)
    assert os.listdir(tmp_path) == []


def test_a_line_cut_short_by_a_crash_costs_that_line_only(own_fd: int, tmp_path: Path) -> None:
    journal.append([LINE, LINE], own_fd)
    whole = (tmp_path / journal.NAME).read_bytes()
    for length in range(len(whole) // 2 + 1, len(whole)):
        (tmp_path / journal.NAME).write_bytes(whole[:length])
        journal.append([{**LINE, "name": "later"}], own_fd)
        names = [line["name"] for line in journal.read(own_fd)]
        assert (names[0], names[-1]) == ("epoch_1.pth", "later"), length


@pytest.mark.parametrize(
    "odd",
    [b"\xff\xfe", b"null", b"[]", b"3", b'{"did": "pruned"}', b'{"name": 3}', b"[" * 100_000, b"9" * 5000, bytes(99)],
)
def test_a_line_of_something_else_is_passed_over(odd: bytes, own_fd: int, tmp_path: Path) -> None:
    journal.append([LINE], own_fd)
    with (tmp_path / journal.NAME).open("ab") as file:
        file.write(odd + b"\n")
    journal.append([LINE], own_fd)
    assert journal.read(own_fd) == [LINE, LINE]


@pytest.mark.parametrize("make", [lambda p: p.symlink_to(p.parent / "precious"), Path.mkdir, os.mkfifo])
def test_what_is_no_plain_file_is_refused(make, own_fd: int, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    make(tmp_path / journal.NAME)
    for use in (journal.check, journal.read, lambda fd: journal.append([LINE], fd)):
        with pytest.raises(RefusedError, match=f"^{tmp_path}/{journal.NAME}: "):
            use(own_fd)
    assert (tmp_path / "precious").read_text() == "precious"


def test_a_write_in_pieces_loses_none_of_them(own_fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:7]))
    journal.append([LINE, LINE], own_fd)
    assert journal.read(own_fd) == [LINE, LINE]


@pytest.mark.parametrize(
    "odd",
    [
        {"did": "pruned", "name": "epoch_1.pth"},
        {"did": "pruned", "name": "epoch_1.pth", "trash": ["1000-0"], "until_ms": "soon"},
        {"did": "pruned", "name": "epoch_1.pth", "trash": "1000-0", "until_ms": 10**30, "size_bytes": "big"},
        {"did": "pruned", "name": "../epoch_1.pth", "trash": "1000-0", "until_ms": 0, "at": 3},
    ],
)
def test_a_line_that_somebody_edited_ends_no_command(odd: dict[str, object], with_checkpoints: Builder, ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3)
    (work_dir / ".ckptd/trash/1000-0").write_bytes(b"left by a crash")
    (work_dir / ".ckptd" / journal.NAME).write_text(json.dumps(odd) + "\n")
    for command in (["history"], ["history", "--json"], ["restore"], ["restore", "--json"], ["prune"]):
        done = ckptd(command[0], work_dir, *command[1:])
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
    assert left(work_dir) == epochs(1, 2, 3)


def test_a_journal_with_a_name_that_no_file_can_have_is_passed_over(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=3600)
    path = work_dir / ".ckptd/journal.jsonl"
    path.write_text(path.read_text().replace("epoch_1.pth", "a\\u0000b"))
    assert json.loads(path.read_text())["name"] == "a\0b"
    assert restorable(str(work_dir)) == []
