"""Runs whose checkpoints are several files each, and passes over them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ckptd.core.policy import Policy
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler, Report
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, torch_zip

NAMES = {2: ("G_{}.pth", "D_{}.pth"), 3: ("net_{}.pth", "opt_{}.pth", "ema_{}.pth")}


class Now(Background):
    """Does at once what ckptd would do soon."""

    def submit(self, key: str, job: Callable[[], None], *, device: int) -> None:
        job()


@dataclass
class Run:
    """A run in `work_dir` that saves `count` files each time."""

    work_dir: Path
    count: int
    builder: Builder = field(init=False)

    def __post_init__(self) -> None:
        self.work_dir.mkdir(exist_ok=True)
        self.builder = Builder(self.work_dir)

    def names(self, step: int) -> list[str]:
        return [name.format(step) for name in NAMES[self.count]]

    def content(self, name: str) -> bytes:
        return torch_zip(name.encode() * 30)

    def save(self, *steps: int) -> Path:
        for step in steps:
            for name in self.names(step):
                self.builder(name, content=self.content(name))
        return self.work_dir

    def policy(self, **more: Any) -> Policy:
        asked = {"max_keep": 1, "rule": "newest", "trash_ttl_s": 0.0, "settle_s": 0.0, "verify": "structure", **more}
        return Policy(templates=(" + ".join(NAMES[self.count]),), **asked)

    def make_pass(self, *, stopping: Callable[[], bool] = lambda: False, at: Any = None, **policy: Any) -> Report:
        """One pass of a process that has just started and then ends."""
        more = {} if at is None else {"clock": at}
        with WorkDir(self.work_dir) as work:
            return Reconciler(work, self.policy(**policy), Now(), stopping=stopping, **more).reconcile()

    def whole(self, *steps: int) -> list[int]:
        """Which of them are there with all of their files, as they were saved."""
        return [step for step in steps if all(self.is_there(name) for name in self.names(step))]

    def halves(self, *steps: int) -> list[int]:
        """Which of them have some of their names, and not all."""
        there = {step: sum(os.path.lexists(self.work_dir / name) for name in self.names(step)) for step in steps}
        return [step for step, count in there.items() if 0 < count < self.count]

    def is_there(self, name: str) -> bool:
        path = self.work_dir / name
        return path.exists() and path.read_bytes() == self.content(name)

    def kept_in_trash(self) -> list[bytes]:
        """The files in the trash, whatever they are called."""
        place = self.work_dir / ".ckptd/trash"
        return sorted(path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "record.json")


@contextlib.contextmanager
def passes(run: Run, *, clock: Callable[[], int] = time.time_ns, **policy: Any) -> Iterator[Reconciler]:
    """A process that makes pass after pass."""
    with WorkDir(run.work_dir) as work:
        yield Reconciler(work, run.policy(**policy), Now(), clock=clock)
