"""The hook that a training loop calls: when to save, and what all ranks do then. It never deletes a checkpoint.

Saves exactly when the CheckpointHook of mmcv 1.x does; which ones stay is for the ckptd beside the job.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ..core.naming import Template
from ..disk import NO_ROOM, opened_dir
from ..errors import CkptdError, UsageError, why
from . import state as states_of
from .buffers import average_buffers
from .declaration import declare
from .publish import check_writable, link_latest, publish, sweep
from .ranks import agree, broadcast_text, rank_of, world_size
from .resume import Progress, newest_complete

_log = logging.getLogger("ckptd.shim")


class CheckpointHook:
    """Save a run's state every `interval` epochs or iterations, whole under its final name or not at all.

    out_dir: where checkpoints go; made if need be. interval: steps between saves, or -1 for none but the last.
    by_epoch: steps are epochs, else iterations. save_optimizer: with the optimizer's state. max_keep_ckpts: how many
    are to be kept, or -1 for all; the hook tells ckptd and deletes nothing itself. save_last: also save the last
    step, known from max_epochs or max_iters, or from `last` at each call. sync_buffer: `average_buffers` before
    each save. filename_tmpl: `epoch_{}.pth` or `iter_{}.pth` unless given. create_symlink: keep `latest.pth` on the
    newest. meta: plain values for the checkpoint's `meta`.

    Every rank makes the same calls; rank 0 writes. A failure on one rank raises on all. Saves are synchronous: when
    a call returns, the checkpoint is on stable storage. Raises UsageError for settings that mean nothing.
    """

    def __init__(
        self,
        out_dir: str | os.PathLike[str],
        *,
        interval: int = -1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        sync_buffer: bool = False,
        filename_tmpl: str | None = None,
        create_symlink: bool = False,
        max_epochs: int | None = None,
        max_iters: int | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.out_dir = Path(os.path.abspath(out_dir))
        self.by_epoch = by_epoch
        self.template = Template(filename_tmpl or f"{self._unit}_{{}}.pth")
        self.interval = _count("interval", interval, (-1,), "-1 for no saves but the last")
        self.max_keep_ckpts = _count("max_keep_ckpts", max_keep_ckpts, (-1, 0), "-1 for all")
        self.save_optimizer = save_optimizer
        self.save_last = save_last
        self.sync_buffer = sync_buffer
        self.create_symlink = create_symlink
        self._stop = max_epochs if by_epoch else max_iters
        self._meta = dict(meta or {})
        self.last_ckpt: Path | None = None  # the newest checkpoint that this run has saved or resumed from
        self._finished = {"epoch": 0, "iter": 0}
        self._model: nn.Module | None = None
        self._optimizer: Any = None
        self._states: dict[str, Any] = {}
        self._has_saved = False

    def before_run(self, *, model: nn.Module, optimizer: Any = None, **states: Any) -> None:
        """Bind what is to be saved, and fail now for what could only fail later.

        optimizer: one, or a dict of them. states: what else a checkpoint holds, each under its name: anything with
        `state_dict()`, and plain values, as they are when they are saved. Raises CkptdError, on every rank, if
        checkpoints cannot be written to `out_dir`, or hold sharded state or what torch.load would refuse.
        """
        failure: Exception | None = None
        try:
            states_of.check_bound(model, optimizer, states, rank=rank_of())
            states_of.check_loadable({"meta": self._meta, **_without_state_dict(states)})
            if rank_of() == 0:
                self._prepare()
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failure = error
        agree(failure)
        self._model, self._states = model, states
        self._optimizer = optimizer if self.save_optimizer else None
        self._declare()  # here for a resumed run: the ckptd beside it may have another run's word

    def resume(
        self,
        *,
        model: nn.Module,
        optimizer: Any = None,
        map_location: Any = "cpu",
        weights_only: bool = True,
        **states: Any,
    ) -> Progress:
        """`before_run`, then load the newest complete checkpoint of `out_dir` on every rank, if there is one.

        One that is truncated or damaged is passed over with a warning, and the one written before it is taken. Rank
        0 chooses. map_location, weights_only: as of torch.load. Raises CkptdError, on every rank, if what the
        checkpoint holds cannot be read or does not fit, or if a rank cannot see the file.
        """
        self.before_run(model=model, optimizer=optimizer, **states)
        name, failure = "", None
        try:
            if rank_of() == 0 or world_size() <= 1:
                name = newest_complete(str(self.out_dir), self.template) or ""
        except OSError as error:
            failure = CkptdError(f"{self.out_dir}: cannot be read: {why(error)}")
        agree(failure)
        name = broadcast_text(name)
        if not name:
            return Progress()
        progress, failed = Progress(), None
        try:
            progress = self._load(self.out_dir / name, map_location, weights_only)
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failed = error
        agree(failed)
        self.last_ckpt = progress.path
        self._finished = {"epoch": progress.epoch, "iter": progress.iteration}
        if rank_of() == 0:
            _log.info("Resumed from %s", progress.path)
        return progress

    def after_train_epoch(self, epoch: int, *, last: bool | None = None) -> Path | None:
        """Save if the epoch calls for it; `epoch` is the loop variable, which counts from 0.

        last: whether the run ends with it; None: as max_epochs says. Returns the checkpoint's path, on every rank,
        or None if nothing was to be saved. Raises CkptdError on every rank if rank 0 could not save; the names in
        the directory are then as they were.
        """
        self._finished["epoch"] = epoch + 1
        return self._after(epoch + 1, last) if self.by_epoch else None

    def after_train_iter(self, iteration: int, *, last: bool | None = None) -> Path | None:
        """As `after_train_epoch`, for a hook with by_epoch=False; else it is only noted how far the run has come."""
        self._finished["iter"] = iteration + 1
        return None if self.by_epoch else self._after(iteration + 1, last)

    def should_save(self, step: int, *, last: bool | None = None) -> bool:
        """Whether `step` (counted from 1, as in the checkpoint's name) is to be saved; for those who save themselves.

        last: whether the run ends with it; None: as max_epochs or max_iters says.
        """
        is_last = step == self._stop if last is None else last
        return (self.interval > 0 and step % self.interval == 0) or (self.save_last and is_last)

    def wait(self) -> None:
        """Return once every save is on stable storage: at once, since saves are synchronous."""

    def close(self) -> None:
        """Finish what is being saved, and let go of the run's state."""
        self.wait()
        self._model, self._optimizer, self._states = None, None, {}

    def __enter__(self) -> CheckpointHook:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def _unit(self) -> str:
        return "epoch" if self.by_epoch else "iter"

    def _after(self, step: int, last: bool | None) -> Path | None:
        if self._model is None:
            raise UsageError("no state to save: call before_run(model=...) or resume(model=...) before the loop")
        if not self.should_save(step, last=last):
            return None
        if self.sync_buffer:
            average_buffers(self._model)
        path = self.out_dir / self.template.name_of(step)
        failure: Exception | None = None
        try:
            if rank_of() == 0:
                _log.info("Saving checkpoint at %d %s", step, "epochs" if self.by_epoch else "iterations")
                self._save(path, self._model)
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failure = _told(error, path)
        agree(failure)
        self.last_ckpt = path
        if not self._has_saved:
            self._has_saved = True
            self._declare()
        return path

    def _save(self, path: Path, model: nn.Module) -> None:
        meta = {
            **self._meta,
            **self._finished,
            "time": time.asctime(),
            "hook_msgs": {**self._meta.get("hook_msgs", {}), "last_ckpt": str(path)},
        }
        state = {"meta": meta, **states_of.collect(model, self._optimizer, self._states, rank=rank_of())}
        if not self._has_saved:
            states_of.check_loadable(state)

        def write(file: IO[bytes]) -> None:
            torch.save(state, file)

        with opened_dir(str(self.out_dir)) as fd:
            publish(path.name, self.template, write, dir_fd=fd)
            if self.create_symlink:
                try:
                    link_latest(path.name, dir_fd=fd)
                except OSError as error:  # some file systems have none; the checkpoint is there
                    self.create_symlink = False
                    _log.warning("could not link latest.pth in %s: %s; it is not tried again", self.out_dir, why(error))

    def _prepare(self) -> None:
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            with opened_dir(str(self.out_dir)) as fd:
                if sweep(self.template, dir_fd=fd):
                    _log.info("Removed what a killed save had left in %s", self.out_dir)
                check_writable(self.template, dir_fd=fd)
        except OSError as error:
            raise CkptdError(f"{self.out_dir}: no checkpoint can be written there: {why(error)}") from error

    def _declare(self) -> None:
        declare(
            self.out_dir,
            template=self.template.text,
            unit=self._unit,
            interval=self.interval if self.interval > 0 else None,
            max_keep=self.max_keep_ckpts if self.max_keep_ckpts > 0 else None,
        )

    def _load(self, path: Path, map_location: Any, weights_only: bool) -> Progress:
        assert self._model is not None  # bound by before_run, which resume has called
        saved = states_of.read(path, map_location=map_location, weights_only=weights_only)
        values = states_of.load(saved, self._model, self._optimizer, self._states, source=str(path))
        meta = saved.get("meta", {})
        # A checkpoint of another writer may count nothing; its name does.
        finished = {self._unit: self.template.step_of(path.name), **meta}
        return Progress(int(finished.get("epoch") or 0), int(finished.get("iter") or 0), path, meta, values)


def _count(name: str, value: object, without: tuple[int, ...], advice: str) -> int:
    """A number of at least 1, or one of those that mmcv reads as none."""
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value not in without):
        raise UsageError(f"{name} is {value!r}: give a whole number of at least 1, or {advice}")
    return value


def _told(error: Exception, path: Path) -> Exception:
    """A failed save as a CkptdError if the system has refused something, which torch hides behind its own words."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__context__
    if cause is None:
        return error
    advice = "Free space on that disk" if cause.errno in NO_ROOM else "What was there before still is"
    told = CkptdError(f"{path}: could not be saved: {why(cause)}. {advice}")
    told.__cause__ = cause
    return told


def _without_state_dict(states: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in states.items() if not callable(getattr(value, "state_dict", None))}
