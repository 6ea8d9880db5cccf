"""Train a tiny model with mmengine's own Runner, and say where it began and what is there in the end.

Started by the tests, with `serve.py` for its requests: {"config": text, "work_dir", "until": epoch, "resume": bool,
"more": {}}, the last being more settings of the config's checkpoint hook. Says {"began": epoch, "best": path or null,
"files": [...]}.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import warnings

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  (the first optimizer does it, for two seconds)
from mmengine.config import Config  # noqa: E402
from mmengine.evaluator import BaseMetric, Evaluator  # noqa: E402
from mmengine.hooks import Hook  # noqa: E402
from mmengine.model import BaseModel  # noqa: E402
from mmengine.runner import Runner  # noqa: E402
from serve import say, serve  # noqa: E402


class Model(BaseModel):
    """Two weights and a bias, which learn that the answer is 1."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def forward(self, inputs, mode="loss"):
        error = (self.layer(torch.stack(inputs)) - 1).square()
        return {"loss": error.mean()} if mode == "loss" else [error]


class Better(BaseMetric):
    """Is better after every epoch, so that each is the best so far."""

    values = iter(range(1000))

    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        return {"acc": float(next(self.values))}


class Began(Hook):
    def before_train(self, runner):
        self.epoch = runner.epoch


def handle(config, work_dir, until, resume, more):
    torch.manual_seed(0)
    config = Config.fromstring(config, ".py")
    config.default_hooks.checkpoint.update(more)
    began = Began()
    batches = {"batch_size": 2, "dataset": [{"inputs": torch.ones(2)}] * 4, "sampler": {"type": "DefaultSampler"}}
    with contextlib.redirect_stdout(sys.stderr):  # its log, which would stand between the answers
        runner = Runner(
            Model(),
            work_dir,
            train_dataloader=batches,
            val_dataloader=batches,
            train_cfg={"by_epoch": True, "max_epochs": until},
            val_cfg={},
            val_evaluator=Evaluator(Better(prefix="score")),
            optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.01}},
            default_hooks=config.default_hooks,
            custom_hooks=[began],
            default_scope="mmengine",
            experiment_name=f"until {until}",
            resume=resume,
            log_level=logging.ERROR,
        )
        runner.train()
    best = runner.message_hub.runtime_info.get("best_ckpt")
    say({"began": began.epoch, "best": best, "files": sorted(os.listdir(work_dir))})


if __name__ == "__main__":
    serve(handle)
