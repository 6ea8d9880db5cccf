"""Saves that are written while training goes on: what they hold, when their failures are told, what an end leaves.

Nothing is timed: a gate holds the writer where a test needs it to be.
"""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ckptd.disk.descriptors import temporary_name
from ckptd.errors import CkptdError
from ckptd.shim import CheckpointHook, hook, publish
from ckptd.shim.snapshot import HostCopy
from tests.conftest import PATIENCE_S, environment, left

from .conftest import REPOSITORY

ASIDE = temporary_name("epoch_{}.pth")


class Gate:
    """Stands before torch.save: `begun` once the writer has come to it, which goes on when `opened`."""

    def __init__(self, save: Callable[..., None]) -> None:
        self.begun, self.opened = threading.Event(), threading.Event()
        self.failure: Exception | None = None
        self.state: Any = None  # what is being saved
        self.save = save

    def __call__(self, state: Any, file: Any) -> None:
        if isinstance(file, io.BytesIO):  # only tried, whether it could be saved
            self.save(state, file)
            return
        self.state = state
        self.begun.set()
        assert self.opened.wait(PATIENCE_S)
        if self.failure is not None:
            file.write(b"the first bytes")
            raise self.failure
        self.save(state, file)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    monkeypatch.delenv("RANK", raising=False)
    gate = Gate(torch.save)
    monkeypatch.setattr(hook.torch, "save", gate)
    yield gate
    gate.opened.set()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(3, 4)).sum().backward()
    optimizer.step()


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal, tensors bit by bit."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


# --- what is saved --------------------------------------------------------------------------------------------


def test_the_call_returns_before_anything_is_written_and_what_is_saved_is_of_that_moment(
    gate: Gate, tmp_path: Path
) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [5, 7])
    step(model, optimizer)
    rng, seen = torch.get_rng_state(), [{"loss": 1.0}]
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=model, optimizer=optimizer, scheduler=scheduler, rng=rng, seen=seen)
        whole = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(),
                 "scheduler": scheduler.state_dict(), "rng": rng, "seen": seen}  # fmt: skip
        gate.save(whole, tmp_path / "expected")
        path = ours.after_train_epoch(0)

        assert gate.begun.wait(PATIENCE_S)
        assert path == tmp_path / "epoch_1.pth"
        assert not path.exists()
        assert ours.last_ckpt is None
        for _ in range(2):
            step(model, optimizer)
            scheduler.step()
        rng.zero_()
        seen[0]["loss"] = 0.0
        seen.append({"loss": -1.0})
        scheduler.milestones[6] = 1
        for group in optimizer.param_groups:
            group["betas"] = (0.0, 0.0)
        gate.opened.set()
        ours.wait()
        assert ours.last_ckpt == path
    saved, expected = (torch.load(each, weights_only=True) for each in (path, tmp_path / "expected"))
    assert saved.pop("meta")["epoch"] == 1
    assert same(saved, expected)


def test_an_optimizer_whose_state_appears_later_is_saved_with_it(gate: Gate, tmp_path: Path) -> None:
    gate.opened.set()
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    expected = []
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=model, optimizer=optimizer)
        for epoch in range(3):
            ours.after_train_epoch(epoch)
            gate.save(optimizer.state_dict(), tmp_path / "expected")
            expected.append(torch.load(tmp_path / "expected"))
            step(model, optimizer)
    saved = [torch.load(tmp_path / f"epoch_{epoch}.pth", weights_only=True)["optimizer"] for epoch in (1, 2, 3)]
    assert [len(each["state"]) for each in saved] == [0, 4, 4]
    assert same(saved, expected)


def test_a_file_is_as_large_as_one_that_is_saved_at_once(gate: Gate, tmp_path: Path) -> None:
    gate.opened.set()
    large = torch.arange(1e5)
    states = {"view": large[::10], "expanded": torch.ones(3, 1).expand(3, 4000), "empty": torch.empty(0, 7)}
    model = network()
    model.tied = model[0]
    sizes = []
    for background in (False, True):
        place = tmp_path / str(background)
        with CheckpointHook(place, interval=1, background=background) as ours:
            ours.before_run(model=model, **states)
            ours.after_train_epoch(0)
        sizes.append((place / "epoch_1.pth").stat().st_size)
    assert sizes[1] <= sizes[0]


# --- one at a time --------------------------------------------------------------------------------------------


class Opener(logging.Handler):
    """Opens the gate when the hook says that it waits."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self.gate, self.heard = gate, []

    def emit(self, record: logging.LogRecord) -> None:
        self.heard.append(record.getMessage())
        if "Waiting" in record.getMessage():
            self.gate.opened.set()


@pytest.fixture
def opener(gate: Gate) -> Iterator[Opener]:
    log, handler = logging.getLogger("ckptd.shim"), Opener(gate)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    yield handler
    log.removeHandler(handler)
    log.setLevel(before)


@pytest.mark.parametrize("waits", ["the next save", "wait", "close", "resume"])
def test_who_must_wait_for_a_save_says_so(waits: str, gate: Gate, opener: Opener, tmp_path: Path) -> None:
    model = network()
    ours = CheckpointHook(tmp_path, interval=1, background=True)
    ours.before_run(model=model)
    ours.after_train_epoch(0)
    assert gate.begun.wait(PATIENCE_S)
    if waits == "the next save":
        ours.after_train_epoch(1)
        ours.close()
    elif waits == "resume":
        assert ours.resume(model=model).path == tmp_path / "epoch_1.pth"
        ours.close()
    else:
        getattr(ours, waits)()
    assert opener.heard.count("Waiting for epoch_1.pth, which is still being written") == 1
    assert left(tmp_path) == ["epoch_1.pth", *(["epoch_2.pth"] if waits == "the next save" else [])]


# --- what goes wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told", ["the next save", "wait", "close", "before_run", "the end of the block"])
def test_a_failed_save_is_said_at_once_and_raised_by_the_next_call(
    told: str, gate: Gate, opener: Opener, tmp_path: Path
) -> None:
    gate.opened.set()
    model = network()
    ours = CheckpointHook(tmp_path, interval=1, background=True)
    ours.before_run(model=model)
    ours.after_train_epoch(0)
    ours.wait()
    gate.failure = OSError(28, os.strerror(28))
    ours.after_train_epoch(1)

    words = r"epoch_2\.pth: could not be saved: No space left on device\. Free space"
    calls: dict[str, Callable[[], object]] = {
        "the next save": lambda: ours.after_train_epoch(2),
        "wait": ours.wait,
        "close": ours.close,
        "before_run": lambda: ours.before_run(model=model),
        "the end of the block": lambda: ours.__exit__(None),
    }
    with pytest.raises(CkptdError, match=words):
        calls[told]()
    assert len([line for line in opener.heard if "epoch_2.pth: could not be saved" in line]) == 1
    assert left(tmp_path) == ["epoch_1.pth"]
    assert not (tmp_path / ASIDE).exists()
    assert ours.last_ckpt == tmp_path / "epoch_1.pth"

    gate.failure = None
    ours.before_run(model=model)
    assert ours.after_train_epoch(3) == tmp_path / "epoch_4.pth"
    ours.close()  # what was raised once is not raised again
    assert left(tmp_path) == ["epoch_1.pth", "epoch_4.pth"]


@pytest.mark.parametrize("fails", [False, True])
def test_what_is_raised_in_the_block_is_not_masked_and_the_save_is_finished(
    fails: bool, gate: Gate, tmp_path: Path
) -> None:
    gate.opened.set()

    def training() -> None:
        with CheckpointHook(tmp_path, interval=1, background=True) as ours:
            ours.before_run(model=network())
            ours.after_train_epoch(0)
            ours.wait()
            ours.after_train_epoch(1)
            if fails:
                ours.wait()
                gate.failure = OSError(28, os.strerror(28))
                ours.after_train_epoch(2)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        training()
    assert left(tmp_path) == ["epoch_1.pth", "epoch_2.pth"]


def test_a_system_without_another_thread_fails_one_save_and_not_the_next(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    gate.opened.set()
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=network())
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", none_left)
            with pytest.raises(RuntimeError, match="new thread"):
                ours.after_train_epoch(0)
        ours.wait()
        ours.after_train_epoch(1)
    assert left(tmp_path) == ["epoch_2.pth"]


def test_who_is_interrupted_while_he_waits_lets_the_save_be_finished(
    gate: Gate, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the thread still asks the copy that it writes whether it is there, which from a GPU may take a while."""
    held, asked = threading.Event(), []
    take, finish = HostCopy.take, HostCopy.finish

    def slowly(host: HostCopy) -> None:
        assert held.wait(PATIENCE_S)
        asked.append(host)
        finish(host)

    def interrupted(thread: threading.Thread, timeout: float | None = None) -> None:
        raise KeyboardInterrupt

    taken = []
    monkeypatch.setattr(HostCopy, "take", lambda host, state: taken.append(host) or take(host, state))
    monkeypatch.setattr(HostCopy, "finish", slowly)
    gate.opened.set()
    ours = CheckpointHook(tmp_path, interval=1, background=True)
    ours.before_run(model=network())
    ours.after_train_epoch(0)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            ours.close()
    held.set()
    ours.wait()
    ours.close()
    assert asked == taken
    assert len(taken) == 1
    assert left(tmp_path) == ["epoch_1.pth"]


def test_what_is_closed_twice_is_closed(gate: Gate, tmp_path: Path) -> None:
    gate.opened.set()
    ours = CheckpointHook(tmp_path, interval=1, background=True)
    ours.close()
    ours.before_run(model=network())
    ours.after_train_epoch(0)
    for _ in range(2):
        ours.close()
        ours.wait()
    assert ours.last_ckpt == tmp_path / "epoch_1.pth"


# --- how a job ends -------------------------------------------------------------------------------------------

JOB = """
import os, signal, sys, threading, torch
from ckptd.shim import CheckpointHook, hook

def slowly(state, file):
    file.write(b"part")
    file.flush()
    if sys.argv[2] == "killed":
        print("in the middle", flush=True)
        threading.Event().wait()
    threading.main_thread().join()  # until there is nothing left of the training but this thread
    file.seek(0)
    save(state, file)

ours = CheckpointHook(sys.argv[1], interval=1, background=True)
ours.before_run(model=torch.nn.Linear(1, 1))
ours.after_train_epoch(0)
ours.wait()
save, hook.torch.save = torch.save, slowly
ours.after_train_epoch(1)
if sys.argv[2] == "exit":
    sys.exit(7)
if sys.argv[2] == "exception":
    raise RuntimeError("the training's own")
if sys.argv[2] == "killed":
    threading.Event().wait()
"""


@pytest.mark.parametrize(("end", "code"), [("exit", 7), ("exception", 1), ("return", 0)])
def test_a_job_that_ends_by_itself_finishes_what_is_being_saved(end: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path), end]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment(RANK="0"), timeout=60, capture_output=True)
    assert done.returncode == code, done.stderr
    assert left(tmp_path) == ["epoch_1.pth", "epoch_2.pth"]
    assert torch.load(tmp_path / "epoch_2.pth", weights_only=True)["meta"]["epoch"] == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_job_that_is_killed_in_mid_write_leaves_whole_names_and_one_stray(
    number: signal.Signals, tmp_path: Path
) -> None:
    command = [sys.executable, "-c", JOB, str(tmp_path), "killed"]
    with subprocess.Popen(command, cwd=REPOSITORY, env=environment(RANK="0"), stdout=subprocess.PIPE) as job:
        assert job.stdout is not None
        assert job.stdout.readline() == b"in the middle\n"
        job.send_signal(number)
    assert job.returncode == -number
    assert sorted(os.listdir(tmp_path)) == sorted([ASIDE, ".ckptd", "epoch_1.pth"])
    again = nn.Linear(1, 1)
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        assert ours.resume(model=again).epoch == 1
        assert not (tmp_path / ASIDE).exists()


# --- beside what else a job does ------------------------------------------------------------------------------


class Samples(torch.utils.data.Dataset[int]):
    """Each sample is the process that made it."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> int:
        return os.getpid()


def test_workers_that_are_forked_in_mid_write_do_not_hold_the_file_open(gate: Gate, tmp_path: Path) -> None:
    """They live on, and with the file open in them it would seem to be written still."""
    loader = torch.utils.data.DataLoader(
        Samples(), num_workers=2, persistent_workers=True, multiprocessing_context="fork"
    )
    with CheckpointHook(tmp_path, interval=1, background=True) as ours:
        ours.before_run(model=network())
        ours.after_train_epoch(0)
        assert gate.begun.wait(PATIENCE_S)
        workers = {int(number) for number in loader}
        assert len(workers) == 2
        assert str(tmp_path / ASIDE) in open_in(os.getpid())
        for worker in workers:
            assert str(tmp_path / ASIDE) not in open_in(worker)
        gate.opened.set()
        ours.wait()
        assert {int(number) for number in loader} == workers
        assert torch.load(tmp_path / "epoch_1.pth", weights_only=True)["meta"]["epoch"] == 1
    del loader


def test_a_child_that_is_forked_while_the_file_is_opened_has_it_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the moment between the system's answer and the interpreter's next step, in which another thread may fork."""
    monkeypatch.delenv("RANK", raising=False)
    seen: list[int] = []

    def fork() -> None:
        child = os.fork()
        if child == 0:
            os._exit(str(tmp_path / ASIDE) in open_in(os.getpid()))
        seen.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    forks = threading.Thread(target=fork)
    real = os.open

    def opened(path: Any, flags: int, *args: Any, **how: Any) -> int:
        fd = real(path, flags, *args, **how)
        if path == ASIDE and forks.ident is None:
            forks.start()
            forks.join(0.2)  # as long as it takes where nothing keeps it waiting
        return fd

    with CheckpointHook(tmp_path, interval=1) as ours:
        ours.before_run(model=network())
        with monkeypatch.context() as patched:
            patched.setattr(publish.os, "open", opened)
            ours.after_train_epoch(0)
        forks.join()
    assert seen == [0]


def open_in(pid: int) -> set[str]:
    place = f"/proc/{pid}/fd"
    paths = set()
    for number in os.listdir(place):
        try:
            paths.add(os.readlink(f"{place}/{number}"))
        except FileNotFoundError:  # closed meanwhile
            continue
    return paths
