"""The hook that a training loop calls: when to save, and what all ranks do then. It never deletes a checkpoint.

Saves exactly when the CheckpointHook of mmcv 1.x does; which ones stay is for the ckptd beside the job.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import numbers
import operator
import os
import time
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from ..core.naming import Template
from ..disk.descriptors import NO_ROOM, opened_dir, replace_file
from ..errors import CkptdError, UsageError, why
from ..inspect.scan import SIDECAR_ENDING
from . import state as states_of
from .attendance import warn_if_unattended
from .buffers import average_buffers
from .declaration import declare
from .publish import check_writable, link_latest, publish, sweep
from .ranks import agree, broadcast_text, own_group, rank_of, world_size
from .resume import Progress, newest_complete
from .snapshot import HostCopy
from .writer import Writer

_log = logging.getLogger("ckptd.shim")
# Which hook saves which series where, so that two of one process do not write over each other's checkpoints.
_saving: weakref.WeakValueDictionary[tuple[str, str], CheckpointHook] = weakref.WeakValueDictionary()


class CheckpointHook:
    """Save a run's state every `interval` epochs or iterations, whole under its final name or not at all.

    out_dir: where checkpoints go; made if need be. interval: steps between saves, or -1 for none but the last.
    by_epoch: steps are epochs, else iterations. save_optimizer: with the optimizer's state. max_keep_ckpts: how many
    are to be kept, or -1 for all; the hook tells ckptd and deletes nothing itself. save_last: also save the last
    step, known from max_epochs or max_iters, or from `last` at each call. sync_buffer: `average_buffers` before
    each save. filename_tmpl: `epoch_{}.pth` or `iter_{}.pth` unless given. create_symlink: keep `latest.pth` on the
    newest. meta: plain values for the checkpoint's `meta`. background: only copy the state when asked to save, and
    write it while training goes on.

    Every rank makes the same calls; rank 0 writes. A failure on one rank raises on all. Without `background` the
    checkpoint is on stable storage when a call returns. With it, one more copy of the state is held in rank 0's host
    memory, one save at a time is written, the next one waits for it, and what went wrong is raised at the next save,
    by `wait` and by `close`. Raises UsageError for settings that mean nothing.
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
        background: bool = False,
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
        self.background = background
        self.last_ckpt: Path | None = None  # the newest that this run knows to be on stable storage, or resumed from
        self._finished = {"epoch": 0, "iter": 0}
        self._model: nn.Module | None = None
        self._optimizer: Any = None
        self._states: dict[str, Any] = {}
        self._tried: set[str] = set()
        self._host = HostCopy()
        self._writer = Writer()
        self._in_flight: Path | None = None  # on every rank, though only rank 0 has a thread

    def before_run(self, *, model: nn.Module, optimizer: Any = None, **states: Any) -> None:
        """Bind what is to be saved, and fail now for what could only fail later.

        Every rank calls it: where one does not, the others wait for it, for an hour or CKPTD_SAVE_TIMEOUT seconds, and
        then raise. Here they make a process group of their own over gloo, in which all later calls agree, and compare
        interval, by_epoch, filename_tmpl, sync_buffer and background.

        optimizer: one, or a dict of them. states: what else a checkpoint holds, each under its name: anything with
        `state_dict()`, and plain values, as they are when they are saved. Raises CkptdError, on every rank, if
        checkpoints cannot be written to `out_dir`, or hold sharded state or what torch.load would refuse, or if those
        settings differ.
        """
        self.wait()
        failure: Exception | None = None
        try:
            states_of.check_bound(model, optimizer, states, rank=rank_of())
            plain = {"meta": self._meta, **_without_state_dict(states)}
            states_of.check(plain, rank=rank_of(), tried=set())
            if rank_of() == 0:
                self._prepare()
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failure = error
        with self._bound_or_not():
            agree(failure, own_group(), at=self._settings)
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
        with self._bound_or_not():
            return self._resume(map_location, weights_only)

    def _resume(self, map_location: Any, weights_only: bool) -> Progress:
        name, failure = "", None
        try:
            if rank_of() == 0 or world_size() <= 1:
                name = newest_complete(str(self.out_dir), self.template) or ""
        except OSError as error:
            failure = CkptdError(f"{self.out_dir}: cannot be read: {why(error)}")
        agree(failure, own_group(), at="the choice of a checkpoint to resume from")
        name = broadcast_text(name, group=own_group())
        if not name:
            return Progress()
        progress, failed = Progress(), None
        try:
            progress = self._load(self.out_dir / name, map_location, weights_only)
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failed = error
        agree(failed, own_group(), at=f"resume from {name}")
        self.last_ckpt = progress.path
        self._finished = {"epoch": progress.epoch, "iter": progress.iteration}
        if rank_of() == 0:
            _log.info("Resumed from %s", progress.path)
        return progress

    def after_train_epoch(
        self, epoch: int, *, last: bool | None = None, metrics: Mapping[str, float] | None = None
    ) -> Path | None:
        """Save if the epoch calls for it; `epoch` is the loop variable, which counts from 0.

        last: whether the run ends with it; None: as max_epochs says. metrics: scores of this checkpoint by name,
        written beside it as NAME.metrics.json. Returns the checkpoint's path, on every rank, or None if nothing was
        to be saved. Raises CkptdError on every rank if rank 0 could not save; the names in the directory are then as
        they were.
        """
        self._finished["epoch"] = finished = operator.index(epoch) + 1  # numpy's numbers are no plain values
        return self._after(finished, last, metrics) if self.by_epoch else None

    def after_train_iter(
        self, iteration: int, *, last: bool | None = None, metrics: Mapping[str, float] | None = None
    ) -> Path | None:
        """As `after_train_epoch`, for a hook with by_epoch=False; else it is only noted how far the run has come."""
        self._finished["iter"] = finished = operator.index(iteration) + 1
        return None if self.by_epoch else self._after(finished, last, metrics)

    def should_save(self, step: int, *, last: bool | None = None) -> bool:
        """Whether `step` (counted from 1, as in the checkpoint's name) is to be saved; for those who save themselves.

        last: whether the run ends with it; None: as max_epochs or max_iters says.
        """
        is_last = step == self._stop if last is None else last
        return (self.interval > 0 and step % self.interval == 0) or (self.save_last and is_last)

    def wait(self) -> None:
        """Return once every save is on stable storage. Raises CkptdError, on every rank, if one could not be made."""
        if self._in_flight is None:
            return
        failure: Exception | None = None
        try:
            self._writer.wait()
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failure = error
        path, self._in_flight = self._in_flight, None
        agree(failure, own_group(), at=f"the end of the save of {path.name}")
        self.last_ckpt = path

    def close(self) -> None:
        """Finish what is being saved, and let go of the run's state. Raises what `wait` raises."""
        try:
            self.wait()
        finally:
            self._let_go()

    def __enter__(self) -> CheckpointHook:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
            return
        # Whether the other ranks come by here too is not known: nothing is asked of them. The writer has said what
        # went wrong, and what was raised in the block goes on.
        with contextlib.suppress(Exception):
            self._writer.wait()
        self._in_flight = None
        self._let_go()

    @property
    def _settings(self) -> str:
        """What must be the same on every rank, or they would not make the same calls."""
        return (
            f"before_run\ninterval={self.interval}\nby_epoch={self.by_epoch}\nfilename_tmpl={self.template.text}"
            f"\nsync_buffer={self.sync_buffer}\nbackground={self.background}"
        )

    @property
    def _unit(self) -> str:
        return "epoch" if self.by_epoch else "iter"

    def _after(self, step: int, last: bool | None, metrics: Mapping[str, float] | None) -> Path | None:
        if self._model is None:
            raise UsageError("no state to save: call before_run(model=...) or resume(model=...) before the loop")
        if not self.should_save(step, last=last):
            return None
        self.wait()
        path = self.out_dir / self.template.name_of(step)
        at = f"the save of {path.name}"
        if self.sync_buffer:
            agree(None, own_group(), at=at)  # here still: buffers go through the training's own group
            average_buffers(self._model)
        failure: Exception | None = None
        try:
            if rank_of() == 0:
                _log.info("Saving checkpoint at %d %s", step, "epochs" if self.by_epoch else "iterations")
                self._save(path, self._model, _scores(metrics))
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failure = error
        try:
            agree(failure, own_group(), at=at)
        except BaseException:
            with contextlib.suppress(Exception):
                self._writer.wait()  # what this rank has begun alone, no later call would ask for
            raise
        if self.background:
            self._in_flight = path
        else:
            self.last_ckpt = path
        return path

    def _save(self, path: Path, model: nn.Module, scores: bytes | None) -> None:
        meta = {
            **self._meta,
            **self._finished,
            "time": time.asctime(),
            "hook_msgs": {**self._meta.get("hook_msgs", {}), "last_ckpt": str(path)},
        }
        state = {"meta": meta, **states_of.collect(model, self._optimizer, self._states)}
        # At each save: a score that is numpy's may come with the tenth.
        states_of.check(state, rank=rank_of(), tried=self._tried)
        if not self.background:
            self._write(path, state, scores)
            return
        host = self._host  # which the thread must go by, though another may have taken its place
        held = host.take(state)
        # Before the thread begins: each tensor that goes lets go of the interpreter's lock, which the thread would then
        # keep for 5 ms.
        del state
        self._writer.start(path.name, functools.partial(self._write, path, held, scores, host.finish))

    def _write(
        self, path: Path, state: dict[str, Any], scores: bytes | None, finish: Callable[[], None] | None = None
    ) -> None:
        """Everything that touches the disk; in a thread if need be, where there are no collectives.

        finish: returns once all of `state` is there.
        """

        def write(file: IO[bytes]) -> None:
            torch.save(state, file)

        try:
            if finish is not None:
                finish()
            with opened_dir(str(self.out_dir)) as fd:
                beside = path.name + SIDECAR_ENDING
                publish(path.name, self.template, write, dir_fd=fd, outdated=beside)
                if scores is not None:
                    replace_file(beside, scores, dir_fd=fd)
                if self.create_symlink:
                    self._link(path.name, fd)
        except Exception as error:
            raise _told(error, path) from error
        self._declare()
        warn_if_unattended(self.out_dir, self.template, self.max_keep_ckpts)

    def _link(self, name: str, fd: int) -> None:
        try:
            link_latest(name, dir_fd=fd)
        except OSError as error:  # some file systems have none; the checkpoint is there
            self.create_symlink = False
            _log.warning("could not link latest.pth in %s: %s; it is not tried again", self.out_dir, why(error))

    @contextlib.contextmanager
    def _bound_or_not(self) -> Iterator[None]:
        """What fails in the block leaves nothing bound, so that another hook can save there."""
        try:
            yield
        except BaseException:
            self._let_go()
            raise

    def _let_go(self) -> None:
        self._model, self._optimizer, self._states = None, None, {}
        self._host = HostCopy()
        if _saving.get(self._series) is self:
            del _saving[self._series]

    @property
    def _series(self) -> tuple[str, str]:
        return os.path.realpath(self.out_dir), self.template.text

    def _prepare(self) -> None:
        try:
            self.out_dir.mkdir(parents=True, exist_ok=True)
            if _saving.setdefault(self._series, self) is not self:
                raise UsageError(
                    f"{self.out_dir}: another hook of this process saves {self.template.text} there. Close it first, "
                    "or give one of them another filename_tmpl"
                )
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
        meta = saved.get("meta")
        meta = meta if isinstance(meta, dict) else {}
        # A checkpoint of another writer may count nothing; its name does.
        finished = {self._unit: self.template.step_of(path.name) or 0}
        finished.update({unit: int(meta[unit]) for unit in self._finished if isinstance(meta.get(unit), (int, float))})
        return Progress(finished.get("epoch", 0), finished.get("iter", 0), path, meta, values)


def _count(name: str, value: object, without: tuple[int, ...], advice: str) -> int:
    """A number of at least 1, or one of those that mmcv reads as none."""
    if isinstance(value, bool) or not isinstance(value, int) or (value < 1 and value not in without):
        raise UsageError(f"{name} is {value!r}: give a whole number of at least 1, or {advice}")
    return value


def _scores(metrics: Mapping[str, float] | None) -> bytes | None:
    """The content of a checkpoint's metrics file. Raises UsageError for what is no number."""
    if metrics is None:
        return None
    scores: dict[str, float] = {}
    for name, value in metrics.items():
        single = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value
        if not isinstance(name, str) or not isinstance(single, numbers.Real):
            raise UsageError(f"metrics[{name!r}] is a {type(value).__name__}: give names and numbers")
        scores[name] = float(single)
    return (json.dumps(scores, indent=2) + "\n").encode()


def _told(error: Exception, path: Path) -> Exception:
    """A failed save as a CkptdError if the system has refused something, which torch hides behind its own words."""
    if isinstance(error, CkptdError):
        return error
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
