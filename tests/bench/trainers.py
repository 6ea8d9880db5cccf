"""The trainers that people use, each around the same model, ready to save again and again as its own loop would."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

# First, and without the torchvision that stands in for mmcv's: torchmetrics would take it for the real one.
_STUBS = [path for path in sys.path if path.endswith("stubs")]
sys.path[:] = [path for path in sys.path if path not in _STUBS]
from lightning.pytorch import LightningModule  # noqa: E402
from lightning.pytorch import Trainer as LightningTrainer  # noqa: E402
from transformers import Trainer, TrainingArguments  # noqa: E402

sys.path += _STUBS
from mmcv.runner import CheckpointHook as MmcvHook  # noqa: E402
from mmcv.runner import EpochBasedRunner  # noqa: E402
from mmengine.hooks import CheckpointHook as MmengineHook  # noqa: E402
from mmengine.optim import OptimWrapper  # noqa: E402
from mmengine.runner import Runner  # noqa: E402

Save = Callable[[], None]
Make = Callable[[Path, nn.Module, torch.optim.Optimizer, int], Save]


def mmcv(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Save:
    """mmcv's hook in mmcv's runner, which deletes what is too old as well."""
    model.train_step = lambda *_: None  # which the runner asks for
    limits: dict[str, Any] = {"max_epochs": 1 << 30, "logger": logging.getLogger("mmcv"), "meta": {}}
    runner = EpochBasedRunner(model, optimizer=optimizer, work_dir=str(place), **limits)
    hook = MmcvHook(interval=1, max_keep_ckpts=keep)
    hook.before_run(runner)

    def save() -> None:
        hook.after_train_epoch(runner)
        runner._epoch += 1

    return save


def mmengine(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Save:
    """mmengine's hook in mmengine's runner, which deletes as mmcv's does."""
    runner = Runner(
        model,
        str(place),
        train_dataloader={"batch_size": 1, "dataset": [0], "sampler": {"type": "DefaultSampler"}},
        train_cfg={"by_epoch": True, "max_epochs": 1 << 30},
        optim_wrapper=OptimWrapper(optimizer),
        default_hooks={"checkpoint": {"type": "CheckpointHook", "interval": 1, "max_keep_ckpts": keep}, "logger": None},
        default_scope="mmengine",
        log_level=logging.ERROR,
    )
    loop = runner.build_train_loop(runner.train_loop)
    runner._train_loop = loop
    hook = next(each for each in runner.hooks if isinstance(each, MmengineHook))
    hook.before_train(runner)

    def save() -> None:
        hook.after_train_epoch(runner)
        loop._epoch += 1

    return save


class Module(LightningModule):
    """As little around the model as Lightning's Trainer asks for."""

    def __init__(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__()
        self.model, self.optimizer = model, optimizer

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return self.model(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.optimizer


def lightning(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Save:
    """Lightning's Trainer, after a step of its own; what is too old goes as its ModelCheckpoint would delete it."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    trainer = LightningTrainer(max_steps=1, accelerator="cpu", devices=1, enable_checkpointing=False, **quiet)
    width = next(model.parameters()).shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what it would like to be told about loaders
        trainer.fit(Module(model, optimizer), DataLoader([torch.zeros(width)]))
    saved: list[Path] = []

    def save() -> None:
        path = place / f"epoch={len(saved)}.ckpt"
        trainer.save_checkpoint(path)
        saved.append(path)
        if len(saved) > keep:
            trainer.strategy.remove_checkpoint(saved[-keep - 1])

    return save


def transformers(place: Path, model: nn.Module, optimizer: torch.optim.Optimizer, keep: int) -> Save:
    """Transformers' Trainer, which deletes what is too old as well."""
    told = TrainingArguments(str(place), save_total_limit=keep, use_cpu=True, report_to=[], disable_tqdm=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    trainer = Trainer(model, told, train_dataset=[0], optimizers=(optimizer, schedule))

    def save() -> None:
        trainer.state.global_step += 1
        trainer._save_checkpoint(model, trial=None)

    return save


TRAINERS: dict[str, Make] = {"mmcv": mmcv, "mmengine": mmengine, "lightning": lightning, "transformers": transformers}
