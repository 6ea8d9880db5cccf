"""Let Lightning's ModelCheckpoint write into directories below PLACE, each in another of its ways."""

from __future__ import annotations

import logging
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from lightning.pytorch import Callback, LightningModule, Trainer  # noqa: E402
from lightning.pytorch.callbacks import ModelCheckpoint  # noqa: E402
from lightning.pytorch.strategies import ModelParallelStrategy  # noqa: E402
from torch.distributed.fsdp import fully_shard  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

QUIET = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch, index):
        loss = (self.layer(batch) - 1).square().mean()
        self.log("val_loss", loss / 10 - 0.05)
        self.log("no_score", torch.tensor(float("nan")))
        self.log("consumed_samples", 2.0 * (self.global_step + 1))
        return loss

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


def one_shard():
    return ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1, process_group_backend="gloo")


def train(place, *, times=1, **how):
    trainer = {key: how.pop(key) for key in ("strategy",) if key in how}
    for _ in range(times):
        torch.manual_seed(0)
        saves = ModelCheckpoint(place, save_top_k=-1, every_n_train_steps=2, **how)
        run = Trainer(max_epochs=3, callbacks=[saves], devices=1, use_distributed_sampler=False, **QUIET, **trainer)
        run.fit(Model(), DataLoader([torch.ones(2)] * 8, batch_size=2))


def main(place):
    train(place / "default", save_last=True)
    train(place / "link", save_last="link")
    train(place / "metrics", filename="{epoch:02d}-{val_loss:.2f}-{no_score}")
    train(place / "versions", times=2)
    train(place / "front", filename="sample-mnist-{epoch:02d}-{step}")
    train(place / "nemo", filename="gpt--{val_loss:.2f}-{step}-{consumed_samples}", save_last=True)
    train(place / "sharded", strategy=one_shard())


class Began(Callback):
    def on_train_start(self, trainer, module):
        print(trainer.global_step)


def read(checkpoint):
    """Go on from it for an epoch; say at which step that began."""
    how = {"strategy": one_shard()} if checkpoint.is_dir() else {}
    run = Trainer(max_epochs=4, callbacks=[Began()], enable_checkpointing=False, devices=1,
                  use_distributed_sampler=False, **QUIET, **how)  # fmt: skip
    run.fit(Model(), DataLoader([torch.ones(2)] * 8, batch_size=2), ckpt_path=str(checkpoint))


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
