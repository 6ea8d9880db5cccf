"""For runs of mmengine: its own CheckpointHook saves, and deletes nothing. Importing this makes `CkptdHook` known.

custom_imports = dict(imports=["ckptd.shim.mmengine"])
default_hooks = dict(checkpoint=dict(type="CkptdHook", interval=1, max_keep_ckpts=3))
"""

from __future__ import annotations

from typing import Any

from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.registry import HOOKS

from ..errors import UsageError
from .adapter import Series
from .buffers import average_buffers
from .ranks import own_group


@HOOKS.register_module()
class CkptdHook(CheckpointHook):
    """The CheckpointHook of mmengine 0.10.7, whose arguments it takes, but for what becomes of old checkpoints.

    max_keep_ckpts: how many ckptd is to keep; mmengine itself keeps all (it would delete the oldest before it writes
    the next). Best and published checkpoints are mmengine's own: it replaces them, ckptd leaves them alone.
    sync_buffer: `average_buffers` before each save, as mmcv's hook had it. A save that fails raises on all ranks.
    """

    def __init__(self, interval: int = -1, *, max_keep_ckpts: int = -1, sync_buffer: bool = False, **settings: Any):
        super().__init__(interval, max_keep_ckpts=-1, **settings)
        self._max_keep, self._averages = max_keep_ckpts, sync_buffer
        self._series: Series | None = None

    def before_train(self, runner: Any) -> None:
        """Raises UsageError where checkpoints would not go into a directory of this host, and for a second hook."""
        super().before_train(runner)
        own_group()  # on every rank, before the first save needs it
        backend = getattr(self.file_backend, "client", self.file_backend)
        if not isinstance(backend, LocalBackend):
            name = type(backend).__name__
            raise UsageError(f"checkpoints go to {self.out_dir} by {name}, where ckptd prunes nothing")
        unit = "epoch" if self.by_epoch else "iter"
        others = [each._series for each in runner.hooks if isinstance(each, CkptdHook) and each is not self]
        self._series = Series(self.out_dir, self.filename_tmpl, unit, self.interval, self._max_keep).alone(others)

    def _save_checkpoint_with_step(self, runner: Any, step: int, meta: dict[str, Any]) -> None:
        assert self._series is not None  # mmengine calls before_train first
        if self._averages:
            average_buffers(runner.model)
        self._series.save(lambda: super(CkptdHook, self)._save_checkpoint_with_step(runner, step, meta))
