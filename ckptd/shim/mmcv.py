"""For runs of mmcv 1.x: its own CheckpointHook saves, and deletes nothing. Importing this makes `CkptdHook` known.

custom_imports = dict(imports=["ckptd.shim.mmcv"])
checkpoint_config = dict(type="CkptdHook", interval=1, max_keep_ckpts=3)
"""

from __future__ import annotations

from typing import Any

from mmcv.fileio.file_client import HardDiskBackend
from mmcv.runner import HOOKS, CheckpointHook, EpochBasedRunner

from ..errors import UsageError
from .adapter import Series
from .buffers import average_buffers
from .ranks import own_group


@HOOKS.register_module()
class CkptdHook(CheckpointHook):
    """The CheckpointHook of mmcv 1.7.2, whose arguments it takes, but for what becomes of old checkpoints.

    max_keep_ckpts: how many ckptd is to keep; mmcv itself keeps all. sync_buffer: by `average_buffers`, since mmcv's
    own raises on the integers of a BatchNorm. mmcv writes a checkpoint under its final name from the first byte on;
    ckptd waits until it is closed. A save that fails on rank 0 raises on all ranks.
    """

    def __init__(self, interval: int = -1, *, max_keep_ckpts: int = -1, sync_buffer: bool = False, **settings: Any):
        super().__init__(interval, max_keep_ckpts=-1, sync_buffer=False, **settings)
        self._max_keep, self._averages = max_keep_ckpts, sync_buffer
        self._series: Series | None = None

    def before_run(self, runner: Any) -> None:
        """Raises UsageError where checkpoints would not go into a directory of this host, and for a second hook."""
        super().before_run(runner)
        own_group()  # on every rank, before the first save needs it
        if not isinstance(self.file_client.client, HardDiskBackend):
            raise UsageError(f"checkpoints go to {self.out_dir} by {self.file_client.name}, where ckptd prunes nothing")
        # What the names count is for the runner to say; the interval may count something else.
        unit = "epoch" if self.by_epoch or isinstance(runner, EpochBasedRunner) else "iter"
        interval = self.interval if self.by_epoch == (unit == "epoch") else -1
        template = self.args.get("filename_tmpl", f"{unit}_{{}}.pth")
        others = [each._series for each in runner.hooks if isinstance(each, CkptdHook) and each is not self]
        self._series = Series(self.out_dir, template, unit, interval, self._max_keep).alone(others)

    def _save_checkpoint(self, runner: Any) -> None:
        assert self._series is not None  # mmcv calls before_run first
        if self._averages:
            average_buffers(runner.model)
        self._series.save(lambda: super(CkptdHook, self)._save_checkpoint(runner))
