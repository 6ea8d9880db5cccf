"""Train a tiny model with mmcv's own runners and CheckpointHook, and say what every save left.

Started by the tests, with `serve.py` for its requests: {"train": [JOB...], "lockstep": bool}, the jobs one
after the other, each with a fresh runner; or {"load": [unit, path]}: where `runner.resume` would go on.
A JOB is an object: work_dir, unit ("epoch" or "iter"), until, interval, max_keep, symlink, resume_from (a path or
null), and config: null for mmcv's own hook, or the text of a config file, whose checkpoint_config is taken with the
job's interval and unit. After every save it says {"job": index, "saved": name, "files": [...]}, and in lockstep it
then waits for a line. What ckptd's shim has warned of comes as {"warned": message}.
"""

from __future__ import annotations

import logging
import os
import time
import warnings

# mmcv's runners sleep two seconds around every epoch and one at the end, for data loaders and loggers that
# are not used here. In this process nobody else wants to sleep.
time.sleep = lambda seconds: None
warnings.filterwarnings("ignore", "On January 1, 2023, MMCV will release", UserWarning)

import torch  # noqa: E402
import torch._dynamo  # noqa: E402  (the first optimizer does it, for two seconds: once here, not in every job)
from mmcv import Config  # noqa: E402
from mmcv.runner import EpochBasedRunner, Hook, IterBasedRunner  # noqa: E402
from serve import say, serve, wait_for_go  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

RUNNERS = {"epoch": (EpochBasedRunner, "max_epochs"), "iter": (IterBasedRunner, "max_iters")}


class Model(torch.nn.Module):
    """Two weights and a bias, which learn that the answer is 1."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def train_step(self, batch, optimizer, **_):
        optimizer.zero_grad()
        loss = (self.layer(batch[0]) - 1).square().mean()
        loss.backward()
        optimizer.step()
        return {"loss": loss}


class Report(Hook):
    """Runs after the CheckpointHook: says what was saved, and what is there now.

    It knows a save by `hook_msgs.last_ckpt`. A resumed run begins with an older file's there, or with none.
    """

    def __init__(self, job, lockstep):
        self.job, self.lockstep = job, lockstep

    def before_run(self, runner):
        self.reported = self._last(runner)

    def after_train_epoch(self, runner):
        self._report(runner)

    def after_train_iter(self, runner):
        self._report(runner)

    def _report(self, runner):
        if self._last(runner) == self.reported:
            return
        self.reported = self._last(runner)
        name, files = os.path.basename(self.reported), os.listdir(runner.work_dir)
        say({"job": self.job, "saved": name, "files": sorted(files)})
        if self.lockstep:
            wait_for_go()

    @staticmethod
    def _last(runner):
        return runner.meta.get("hook_msgs", {}).get("last_ckpt")


class Warned(logging.Handler):
    def emit(self, record):
        say({"warned": record.getMessage()})


def handle(train=(), lockstep=False, load=None):
    torch.manual_seed(0)
    logging.getLogger("ckptd.shim").addHandler(Warned())
    for index, job in enumerate(train):
        train_one(job, Report(index, lockstep))
    if load:
        load_one(*load)


def train_one(job, report):
    runner = new_runner(job["unit"], job["until"], job["work_dir"])
    runner.register_checkpoint_hook(checkpoint_config(job))
    runner.register_hook(report, "VERY_LOW")
    if job["resume_from"]:
        runner.resume(job["resume_from"], map_location="cpu")
    batches = DataLoader(TensorDataset(torch.ones(4, 2)), batch_size=2)  # two iterations are an epoch
    runner.run([batches], [("train", 1)])


def checkpoint_config(job):
    config = {"type": "CheckpointHook", "max_keep_ckpts": job["max_keep"]}
    if job["config"]:
        config = dict(Config.fromstring(job["config"], ".py").checkpoint_config)
    if not job["symlink"]:
        config["create_symlink"] = False
    return {**config, "interval": job["interval"], "by_epoch": job["unit"] == "epoch"}


def load_one(unit, path):
    runner = new_runner(unit, 1, None)
    runner.resume(path, map_location="cpu")
    say({"epoch": runner.epoch, "iter": runner.iter})


def new_runner(unit, until, work_dir):
    runner_class, limit = RUNNERS[unit]
    model = Model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    logger = logging.getLogger("train")
    return runner_class(model, optimizer=optimizer, work_dir=work_dir, logger=logger, meta={}, **{limit: until})


if __name__ == "__main__":
    serve(handle)
