"""A few threads, at idle I/O priority for what no pass may wait for: reading contents, and freeing the trash.

First come, first served, but never two jobs of one work dir at a time, and of one disk only a few: one that is slow, or
does not answer at all, holds up no other.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import threading
import time
from collections import deque
from collections.abc import Callable

log = logging.getLogger("ckptd")

_WORKERS, _MOST = 2, 16
_LAST_MOMENT_S = 1.0
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_THIS_THREAD, _IDLE_CLASS = 1, 3 << 13

Job = Callable[[], None]


class Background:
    """Runs jobs. A job deals with its own failures; `stopping` is set when it had better come to an end.

    workers: how many at once of one disk; most: of all. idle: whether everybody else's reading and writing goes first.
    """

    def __init__(self, workers: int = _WORKERS, *, most: int = _MOST, idle: bool = True) -> None:
        self.stopping = threading.Event()
        self._of_each, self._most, self._idle = workers, most, idle
        self._threads: list[threading.Thread] = []
        self._waiting: dict[int, deque[tuple[str, Job]]] = {}  # by device, whose turn it is first
        self._unfinished: dict[str, tuple[int, int]] = {}  # by key: its device, and how many jobs
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, key: str, job: Job, *, device: int) -> None:
        """Run `job` soon, after all earlier ones of the same `key`. device: of the disk it has to do with."""
        with self._changed:
            # Where a key has jobs already, behind these: its disk may have been another when they came.
            device, count = self._unfinished.get(key, (device, 0))
            self._unfinished[key] = device, count + 1
            self._waiting.setdefault(device, deque()).append((key, job))
            if len(self._threads) < self._most and len(self._threads) < self._useful():
                thread = threading.Thread(target=self._work, name="ckptd-background", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def wait(self) -> None:
        """Wait until all that was submitted is done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unfinished)

    def close(self, patience_s: float | None = None) -> bool:
        """End once all jobs are done; after `patience_s` drop the rest, which the next start takes up again.

        Returns whether everything was done.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._unfinished, patience_s)
            if not done:
                self._drop()
                self.stopping.set()
        until_s = time.monotonic() + _LAST_MOMENT_S  # one for all: a disk that hangs may hold many
        for thread in self._threads:
            thread.join(None if done else max(0.0, until_s - time.monotonic()))
        return done

    def _work(self) -> None:
        if self._idle:
            _be_idle()
        while True:
            with self._changed:
                while (taken := self._take()) is None:
                    if self._closed and not self._waiting:
                        return
                    self._changed.wait()
            key, job = taken
            try:
                job()
            except Exception:  # the next job is not to blame
                log.exception("a job in the background failed: this is a bug in ckptd")
            except BaseException:
                with self._changed:
                    self._drop()  # this thread ends: nobody may wait for what it will not do
                raise
            finally:
                with self._changed:
                    self._busy.discard(key)
                    self._is_done(key)
                    self._changed.notify_all()

    def _take(self) -> tuple[str, Job] | None:
        """The next job that may run now: each disk has its turn, and each of its keys its order."""
        for device, jobs in self._waiting.items():
            if self._running(device) >= self._of_each:
                continue
            for at, (key, job) in enumerate(jobs):
                if key in self._busy:
                    continue
                self._busy.add(key)
                del jobs[at], self._waiting[device]
                if jobs:
                    self._waiting[device] = jobs  # behind all others
                return key, job
        return None

    def _running(self, device: int) -> int:
        return sum(self._unfinished[key][0] == device for key in self._busy)

    def _useful(self) -> int:
        """How many threads would have something to do."""
        waiting = ((len(jobs), self._running(device)) for device, jobs in self._waiting.items())
        return len(self._busy) + sum(min(jobs, self._of_each - running) for jobs, running in waiting)

    def _is_done(self, key: str) -> None:
        device, count = self._unfinished.pop(key)
        if count > 1:
            self._unfinished[key] = device, count - 1

    def _drop(self) -> None:
        """Forget what has not begun."""
        self._waiting.clear()
        self._unfinished = {key: (self._unfinished[key][0], 1) for key in self._busy}


class AtOnce(Background):
    """Does each job in the thread that submits it, and is done with it when `submit` returns."""

    def submit(self, key: str, job: Job, *, device: int) -> None:
        """Run `job` now."""
        job()


def _be_idle() -> None:
    """Ask for the idle I/O class for this thread. Best effort: not every kernel and scheduler knows it."""
    if _IOPRIO_SET is not None:
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _THIS_THREAD, 0, _IDLE_CLASS)
