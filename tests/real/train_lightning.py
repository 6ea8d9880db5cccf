"""Train a tiny model with Lightning's Trainer and the callback of docs/frameworks.md, and say where it began.

Started by the tests in a directory, to train in "work_dir" there: RECIPE UNTIL [CHECKPOINT]; under torchrun, on every
rank. Each rank sees nothing but its own number. Rank 0 prints {"began": step}.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import torch  # noqa: E402
from lightning.pytorch import LightningModule, Trainer  # noqa: E402
from torch.utils.data import DataLoader  # noqa: E402

RANK, RANKS = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(2)
        self.began = None

    def on_train_start(self):
        self.began = self.trainer.global_step

    def training_step(self, batch, index):
        return (self.layer(self.norm(batch)) - 1).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def main(recipe, until, checkpoint=None):
    names = {}
    exec(Path(recipe).read_text(), names)
    torch.manual_seed(0)
    model = Model()
    trainer = Trainer(
        max_steps=int(until),
        callbacks=[names["checkpoints"]],
        accelerator="cpu",
        devices=RANKS,
        strategy="ddp" if RANKS > 1 else "auto",
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    data = DataLoader([torch.full((2,), float(RANK))] * 4, batch_size=2)
    trainer.fit(model, data, ckpt_path=checkpoint)
    if RANK == 0:
        print(json.dumps({"began": model.began}))
    if torch.distributed.is_initialized():
        # Not by the interpreter: DDP joins the threads of gloo, and these may want its lock, or be there after it.
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
