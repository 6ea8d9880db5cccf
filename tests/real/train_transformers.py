"""Train a tiny model with the Trainer of Transformers and the callback of docs/frameworks.md, and say where it began.

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
from transformers import Trainer, TrainerCallback, TrainingArguments  # noqa: E402

RANK = int(os.environ.get("RANK", "0"))
INTERVAL = 2


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.norm = torch.nn.Linear(2, 1), torch.nn.BatchNorm1d(2)

    def forward(self, x):
        return {"loss": (self.layer(self.norm(x)) - 1).square().mean()}


class Rows(torch.utils.data.IterableDataset):
    def __iter__(self):
        while True:
            yield {"x": torch.full((2,), float(RANK))}


class Began(TrainerCallback):
    step = None

    def on_train_begin(self, args, state, control, **others):
        self.step = state.global_step


def main(recipe, until, checkpoint=None):
    names = {}
    exec(Path(recipe).read_text(), names)
    torch.manual_seed(0)
    arguments = TrainingArguments(
        "work_dir",
        save_steps=INTERVAL,
        max_steps=int(until),
        per_device_train_batch_size=2,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
        accelerator_config={"dispatch_batches": False, "split_batches": False},
    )
    began = Began()
    trainer = Trainer(Model(), arguments, train_dataset=Rows(), callbacks=[names["Declare"](), began])
    trainer.train(resume_from_checkpoint=True if checkpoint == "True" else checkpoint)
    if RANK == 0:
        print(json.dumps({"began": began.step}))
    if torch.distributed.is_initialized():
        # Not by the interpreter: DDP joins the threads of gloo, and these may want its lock, or be there after it.
        torch.distributed.barrier()
        sys.stdout.flush()
        os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
