"""How long saving stops a job: the hook, at once and in the background, against mmcv's, `torch.save` and a plain copy.

Run as `python -m tests.bench.saves PLACE ROUNDS`: writes to PLACE/saves.json what each call took, in seconds.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from mmcv.runner import CheckpointHook as MmcvHook
from mmcv.runner import EpochBasedRunner
from torch import nn

from ckptd.shim import CheckpointHook

from .paired import time_each

LAYERS, WIDTH = 40, 1024  # with Adam's two moments: 504 MB
KEEP = 2


def main(place: Path, rounds: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    model(torch.randn(2, WIDTH)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}

    background = ours(place / "background", model, optimizer, background=True)
    at_once = ours(place / "at_once", model, optimizer, background=False)
    plain = TorchSave(place / "torch", state)
    calls = {
        "background": background,
        "at once": at_once,
        "copy": copy(state),
        "mmcv": mmcv(place / "mmcv", model, optimizer),
        "torch.save, fsync": plain,
    }

    def before() -> None:
        background.hook.wait()
        for each in (background, at_once, plain):
            each.prune()
        os.sync()  # nobody pays for what another has left in memory

    taken = time_each(calls, rounds, before=before, warm_up=2)
    background.hook.close()
    (place / "saves.json").write_text(json.dumps(taken))


class Saves:
    """Saves the next epoch at each call; deleting is for somebody else."""

    def __init__(self, place: Path) -> None:
        self.place, self.epoch = place, 0

    def __call__(self) -> None:
        self.save(self.epoch)
        self.epoch += 1

    def save(self, epoch: int) -> None:
        raise NotImplementedError

    def prune(self) -> None:
        (self.place / f"epoch_{self.epoch - KEEP}.pth").unlink(missing_ok=True)


class Ours(Saves):
    """The hook."""

    def __init__(self, place: Path, hook: CheckpointHook) -> None:
        super().__init__(place)
        self.hook = hook

    def save(self, epoch: int) -> None:
        self.hook.after_train_epoch(epoch)


class TorchSave(Saves):
    """What a careful loop does by itself."""

    def __init__(self, place: Path, state: Any) -> None:
        super().__init__(place)
        self.state = state
        place.mkdir()

    def save(self, epoch: int) -> None:
        with open(self.place / f"epoch_{epoch + 1}.pth", "wb") as file:
            torch.save(self.state, file)
            file.flush()
            os.fsync(file.fileno())


def ours(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, *, background: bool) -> Ours:
    hook = CheckpointHook(place, interval=1, background=background)
    hook.before_run(model=model, optimizer=optimizer)
    return Ours(place, hook)


def mmcv(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """mmcv's own hook in mmcv's own runner, which deletes what is too old as well."""
    model.train_step = lambda *_: None  # which the runner asks for
    limits: dict[str, Any] = {"max_epochs": 1 << 30, "logger": logging.getLogger("mmcv"), "meta": {}}
    runner = EpochBasedRunner(model, optimizer=optimizer, work_dir=str(place), **limits)
    hook = MmcvHook(interval=1, max_keep_ckpts=KEEP)
    hook.before_run(runner)

    def save() -> None:
        hook.after_train_epoch(runner)
        runner._epoch += 1

    return save


def copy(state: Any) -> Callable[[], None]:
    """The floor: each tensor into one of the same kind that is there already."""
    tensors = [*state["state_dict"].values()]
    tensors += [each for one in state["optimizer"]["state"].values() for each in one.values()]
    kept = [torch.empty_like(tensor) for tensor in tensors]

    def run() -> None:
        for ours, theirs in zip(kept, tensors, strict=True):
            ours.copy_(theirs)

    return run


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
