"""Forks of a process that keeps memory for its saves: it stays the parent's, and its children do as they please."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptd.shim import CheckpointHook
from ckptd.shim.snapshot import HostCopy
from tests.conftest import environment, left

from .conftest import PATIENCE_S, REPOSITORY
from .test_background import Gate, gate, same  # noqa: F401 - a fixture

SIZE = 2**20  # numbers: more than malloc would take from what it has


class Places(torch.utils.data.Dataset[Any]):
    """Each sample is the process that made it, and what it has mapped."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Any:
        return os.getpid(), mapped()


def mapped() -> list[tuple[int, int]]:
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [tuple(int(each, 16) for each in line.split()[0].split("-")) for line in lines]


@pytest.fixture(autouse=True)
def no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)


def state(number: float) -> dict[str, Any]:
    return {"weight": torch.full((SIZE,), number), "count": torch.tensor(number)}


def in_a_child(do: Any) -> int:
    """The exit code of a forked child that does this."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # the parent's others are not here
            do()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_data_loaders_workers_do_not_have_the_memory_that_is_being_written(
    gate: Gate,  # noqa: F811
    tmp_path: Path,
) -> None:
    model = nn.Linear(1024, 1024)
    loader = torch.utils.data.DataLoader(
        Places(), num_workers=2, persistent_workers=True, multiprocessing_context="fork", batch_size=None
    )
    expected = {name: each.clone() for name, each in model.state_dict().items()}
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=model)
        ours.after_train_epoch(0)
        assert gate.begun.wait(PATIENCE_S)
        place = gate.state["state_dict"]["weight"].data_ptr()
        assert any(begin <= place < end for begin, end in mapped())
        samples = list(loader)
        assert len({worker for worker, _ in samples}) == 2
        for _, theirs in samples:
            assert not any(begin <= place < end for begin, end in theirs)
        gate.opened.set()
        for epoch in (1, 2):  # beside the same workers
            ours.after_train_epoch(epoch)
    for epoch in (1, 2, 3):
        assert same(torch.load(tmp_path / f"epoch_{epoch}.pth", weights_only=True)["state_dict"], expected)
    del loader


def test_a_child_copies_into_memory_of_its_own_and_so_does_its_child() -> None:
    host = HostCopy()
    held = host.take(state(1))

    def grandchild() -> None:
        assert same(host.take(state(3)), state(3))

    def child() -> None:
        for number in (2, 4):
            assert same(host.take(state(number)), state(number))
            assert in_a_child(grandchild) == 0
        assert same(host.take({"other": torch.ones(2 * SIZE)}), {"other": torch.ones(2 * SIZE)})

    assert in_a_child(child) == 0
    assert same(held, state(1))
    assert same(host.take(state(5)), state(5))


@pytest.mark.parametrize("while_writing", [False, True])
def test_a_child_saves_by_the_hook_that_it_was_born_with(
    while_writing: bool,
    gate: Gate,  # noqa: F811
    tmp_path: Path,
) -> None:
    """It must not come from the middle of a save, whose file is the parent's; a hook of its own may save elsewhere."""
    model = nn.Linear(1024, 1024)
    ours = CheckpointHook(tmp_path / "parent", interval=1, background=True)
    ours.before_run(model=model)
    if not while_writing:
        gate.opened.set()
    ours.after_train_epoch(0)
    if while_writing:
        assert gate.begun.wait(PATIENCE_S)
    else:
        ours.wait()

    def child() -> None:
        gate.opened.set()
        hook = CheckpointHook(tmp_path / "child", interval=1, background=True) if while_writing else ours
        hook.before_run(model=model)
        for epoch in (1, 2):
            hook.after_train_epoch(epoch)
        hook.close()

    assert in_a_child(child) == 0
    gate.opened.set()
    ours.after_train_epoch(3)
    ours.close()
    theirs = ["epoch_2.pth", "epoch_3.pth"]
    assert left(tmp_path / "parent") == sorted(["epoch_1.pth", "epoch_4.pth", *([] if while_writing else theirs)])
    for path in tmp_path.glob("*/epoch_*"):
        assert same(torch.load(path, weights_only=True)["state_dict"], dict(model.state_dict())), path


# A child takes for itself what lies where its parent's memory would be, lets go of all that it was born with, and ends
# as a process does that runs to its end.
CHILD = """
import gc, mmap, os, sys, torch
from ckptd.shim import CheckpointHook
from ckptd.shim.snapshot import HostCopy

size = 2**22
torch.set_num_threads(1)
host = HostCopy()
held = host.take({"weight": torch.ones(size)})
other, more = HostCopy().take({"weight": torch.ones(size)}), HostCopy()
more.take({"weight": torch.ones(size)})
place = held["weight"].data_ptr()
if os.fork() == 0:
    maps = [mmap.mmap(-1, 4 * size) for _ in range(8)]
    places = [torch.frombuffer(each, dtype=torch.uint8).data_ptr() for each in maps]
    assert any(begin <= place < begin + 4 * size for begin in places), "the case has not come up"
    for each in maps:
        each[:] = b"x" * len(each)
    if sys.argv[1] == "drops":
        del held, host, other, more
        gc.collect()
    elif sys.argv[1] == "saves":
        host.take({"weight": torch.ones(size)})
        more.take({"weight": torch.ones(2 * size)})
    assert all(each[-1:] + each[:1] == b"xx" for each in maps)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.wait()[1]) == 0
assert held["weight"].eq(1).all()
"""


@pytest.mark.parametrize("what", ["drops", "saves", "ends"])
def test_what_a_child_was_born_with_takes_none_of_its_own_memory_away(what: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHILD, what], cwd=REPOSITORY, env=environment(), timeout=60, capture_output=True
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_children_that_are_forked_all_the_time_spoil_no_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From another thread, at any moment of a copy or a write; a state that grows and shrinks."""
    ended, codes = threading.Event(), []

    def storm() -> None:
        while not ended.is_set():
            child = os.fork()
            if child == 0:
                os._exit(0)
            codes.append(os.waitpid(child, 0)[1])

    forks = threading.Thread(target=storm)
    model = nn.Linear(256, 256)
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        extra: dict[str, Any] = {}
        ours.before_run(model=model, extra=extra)
        forks.start()
        try:
            for epoch in range(12):
                extra["noise"] = torch.full((1 + 2**17 * (epoch % 4),), float(epoch))
                ours.after_train_epoch(epoch)
        finally:
            ended.set()
            forks.join()
    assert set(codes) == {0}
    for epoch in range(12):
        saved = torch.load(tmp_path / f"epoch_{epoch + 1}.pth", weights_only=True)
        assert saved["extra"]["noise"].eq(epoch).all()
        assert same(saved["state_dict"], dict(model.state_dict()))
