"""How long saving stops a job: the hook, at once and in the background, against what trainers do, and a copy.

Run as `python -m tests.bench.saves PLACE ROUNDS LAYERS`: writes to PLACE/saves.json what each call took, in seconds.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ckptd.shim import CheckpointHook

from .paired import time_each
from .trainers import TRAINERS

WIDTH = 1024
KEEP = 2


def trained(layers: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(WIDTH, WIDTH) for _ in range(layers)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    model(torch.randn(2, WIDTH)).sum().backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def main(place: Path, rounds: int, layers: int) -> None:
    model, optimizer = trained(layers)
    state = {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()}

    background = ours(place / "background", model, optimizer, background=True)
    at_once = ours(place / "at_once", model, optimizer, background=False)
    plain = TorchSave(place / "torch", state)
    calls = {
        "background": background,
        "at once": at_once,
        "copy": copy(state),
        "torch.save, fsync": plain,
    }
    for name, made in TRAINERS.items():
        (place / name).mkdir()
        calls[name] = made(place / name, model, optimizer, KEEP)

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
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
