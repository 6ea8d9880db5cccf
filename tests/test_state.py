"""The memory of a work dir on disk: what is written is read again, and nothing broken is ever believed."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.checkpoint import Durability
from ckptd.core.memory import BROUGHT_BACK, InForce, Memory, Seen, SeriesMemory
from ckptd.disk.descriptors import opened_dir
from ckptd.errors import CkptdError, RefusedError
from ckptd.workdir.state import NAME, read_state, write_state

from .conftest import Builder, a_pass, epochs, left, pointed

FULL = Memory(
    {
        "epoch_1.pth": Seen(
            "epoch_{}.pth", "epoch_1.pth", 1, 1000, 10**18, 10**18, 1, durability=Durability.SYNCED, owed=True
        ),
        "epoch_2.pth": Seen("epoch_{}.pth", "epoch_2.pth", 2, 1000, 10**18, 10**18, 2, whole=False),
        "epoch_3.pth": Seen("epoch_{}.pth", "epoch_3.pth", 3, 0, -5, 0, BROUGHT_BACK, durability=Durability.FAILED),
        "ü_4": Seen("ü_{}", "ü_4", 10**240, 2**63, 0, 0, 3, content="", inode=7, changes=10**20, older=3, younger=1),
        "step_6": Seen("step_{}", "step_6", 6, 1, 1, 1, 3, lacks=("optim/ü.pt", "{}"), lacks_until_ns=10**19),
        "G_5": Seen(
            "G_{} + D_{}",
            "G_5",
            5,
            7,
            9,
            9,
            3,
            inode=1,
            changes=2,
            parts=(("G_5", 3, 8), ("D_5", 4, 9)),
            former=(("G_5", 3, 8), ("D_5", 4, 1)),
        ),
    },
    {
        "epoch_{}.pth": SeriesMemory(1, (1, 2, 3), True, InForce(3, "stepped", 1), 2, (1,)),
        "iter_{}.pth": SeriesMemory(in_force=InForce(1, "newest", None), walked=0, ranks=((0, 0), (0, 1))),
        "ü_{}": SeriesMemory(usual=("a.pt", "ü/{}.pt")),
    },
    4,
)


@pytest.fixture
def own_fd(tmp_path: Path) -> Iterator[int]:
    with opened_dir(str(tmp_path)) as fd:
        yield fd


@pytest.mark.parametrize("memory", [Memory(), FULL], ids=["nothing", "everything"])
def test_what_is_written_is_read_again(memory: Memory, own_fd: int, tmp_path: Path) -> None:
    write_state(memory, own_fd)
    assert read_state(own_fd) == memory
    assert os.listdir(tmp_path) == [NAME]


def test_what_0_1_0_does_not_know_stands_where_it_passes_over_it(own_fd: int, tmp_path: Path) -> None:
    write_state(FULL, own_fd)
    raw = json.loads((tmp_path / NAME).read_text())
    known = {"series", "step", "size_bytes", "mtime_ns", "written_ns", "order", "whole", "durable", "owed", "content"}
    assert {key for seen in raw["seen"].values() for key in seen} <= known | {"inode"}


def test_what_0_1_0_found_out_about_bytes_is_found_out_again(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3, interval=1)
    state = work_dir / ".ckptd" / NAME
    raw = json.loads(state.read_text())
    del raw["changes"]
    raw["seen"]["epoch_3.pth"]["content"] = "damaged, it said"
    state.write_text(json.dumps(raw))
    a_pass(work_dir, max_keep=3, interval=1)
    seen = json.loads(state.read_text())["seen"]
    assert (seen["epoch_3.pth"]["content"], pointed(work_dir)) == ("", "epoch_3.pth")
    assert [seen[name]["order"] for name in epochs(1, 2, 3)] == [1, 2, 3]


def test_no_state_is_no_memory(own_fd: int) -> None:
    assert read_state(own_fd) is None


def changed(**fields: Any) -> bytes:
    """A whole state with something else in the first checkpoint that it remembers."""
    seen = {"series": "epoch_{}.pth", "step": 1, "size_bytes": 1, "mtime_ns": 1, "written_ns": 1, "order": 1}
    first = {key: value for key, value in {**seen, **fields}.items() if value is not ...}
    return json.dumps({"version": 1, "next_order": 9, "series": {}, "seen": {"epoch_1.pth": first}}).encode()


BROKEN = [
    pytest.param(b"", id="empty"),
    pytest.param(bytes(500), id="zeros"),
    pytest.param(b"\xff\xfe", id="no text"),
    pytest.param(b"null", id="null"),
    pytest.param(b"[]", id="a list"),
    pytest.param(b"{}", id="nothing in it"),
    pytest.param(b"[" * 100_000, id="brackets without an end"),
    pytest.param(b'{"version": 2, "next_order": 1, "series": {}, "seen": {}}', id="a later version"),
    pytest.param(b'{"version": 1, "next_order": 1, "series": {}}', id="a part missing"),
    pytest.param(b'{"version": 1, "next_order": 1, "series": {}, "seen": []}', id="a list for a table"),
    pytest.param(b'{"version": 1, "next_order": 1, "series": {"a": 3}, "seen": {}}', id="a series that is a number"),
    pytest.param(b'{"version": 1, "next_order": 1.5, "series": {}, "seen": {}}', id="a broken order"),
    pytest.param(b'{"version": 1, "next_order": NaN, "series": {}, "seen": {}}', id="no number"),
    pytest.param(
        b'{"version": 1, "next_order": ' + b"9" * 5000 + b', "series": {}, "seen": {}}', id="a number of 5000 digits"
    ),
    pytest.param(
        b'{"version": 1, "next_order": ' + b"9" * 4200 + b', "series": {}, "seen": {}}', id="a number that nothing has"
    ),
    pytest.param(
        b'{"version": 1, "next_order": 1, "series": {"a": {"interval": 0}}, "seen": {}}', id="an interval of 0"
    ),
    pytest.param(
        b'{"version": 1, "next_order": 1, "series": {"a": {"recent": ["x"]}}, "seen": {}}', id="a step in words"
    ),
    *(
        pytest.param(
            json.dumps({"version": 1, "next_order": 1, "series": {"a": known}, "seen": {}}).encode(), id=f"{known}"
        )
        for known in (
            {"in_force": 3},
            {"in_force": [3]},
            {"in_force": [0, "stepped", 1]},
            {"in_force": [3, 1, 1]},
            {"in_force": [3, "stepped", 0]},
            {"walked": "x"},
            {"late": [None]},
            {"late": 1},
            {"ranks": 1},
            {"ranks": [1]},
            {"ranks": [["x"]]},
        )
    ),
    pytest.param(changed(step="1"), id="a step that is text"),
    pytest.param(changed(step=True), id="a step that is true"),
    pytest.param(changed(order=None), id="no order"),
    pytest.param(changed(order=...), id="an order missing"),
    pytest.param(changed(series=7), id="a series that is no text"),
    pytest.param(changed(more=1), id="a field more"),
    pytest.param(changed(order=9), id="an order that the next save would get again"),
    pytest.param(changed(order=-1), id="an order below 0"),
    pytest.param(changed(durable="yes"), id="durable in words"),
    pytest.param(
        b'{"version": 1, "next_order": 1, "series": {}, "seen": {"a": {}}, "changes": []}', id="a list of changes"
    ),
    *(
        pytest.param(changed()[:-1] + b', "parts": {"epoch_1.pth": ' + parts + b"}}", id=f"parts {parts.decode()}")
        for parts in (b"3", b"[3]", b'["G_5"]', b"[[5, 3, 8]]", b'[["G_5", 3]]', b'[["G_5", 3, true]]')
    ),
]


@pytest.mark.parametrize("content", BROKEN)
def test_a_broken_state_is_told_from_a_whole_one(content: bytes, own_fd: int, tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(content)
    with pytest.raises(CkptdError, match=NAME):
        read_state(own_fd)


@pytest.mark.parametrize("content", BROKEN)
def test_a_pass_survives_a_broken_state_and_loses_nothing_it_should_keep(
    content: bytes, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3, interval=1)
    (work_dir / ".ckptd" / NAME).write_bytes(content)
    a_pass(work_dir, max_keep=2, interval=1)
    assert (left(work_dir), pointed(work_dir)) == (epochs(2, 3), "epoch_3.pth")


def test_cut_anywhere_it_is_never_believed(own_fd: int, tmp_path: Path) -> None:
    write_state(FULL, own_fd)
    content = (tmp_path / NAME).read_bytes()
    for length in range(len(content)):
        (tmp_path / NAME).write_bytes(content[:length])
        with pytest.raises(CkptdError):
            read_state(own_fd)


@pytest.mark.parametrize("make", [lambda p: p.symlink_to("/etc/hostname"), Path.mkdir, os.mkfifo])
def test_what_is_no_plain_file_is_refused(make, own_fd: int, tmp_path: Path) -> None:
    make(tmp_path / NAME)
    with pytest.raises(RefusedError, match=f"^{tmp_path}/{NAME}: "):
        read_state(own_fd)


def test_a_state_that_cannot_be_written_leaves_the_old_one(
    own_fd: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_state(FULL, own_fd)

    def refuse(fd: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", refuse)
        with pytest.raises(OSError, match="No space"):
            write_state(Memory(), own_fd)
    assert (read_state(own_fd), os.listdir(tmp_path)) == (FULL, [NAME])
