"""A few threads, at idle I/O priority for what no pass may wait for: reading contents, and freeing the trash.

First come, first served, but never two jobs of one work dir at a time, so that a slow one does not delay the others.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import threading
from collections import deque
from collections.abc import Callable

log = logging.getLogger("ckptd")

_WORKERS = 2
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_THIS_THREAD, _IDLE_CLASS = 1, 3 << 13


class Background:
    """Runs jobs. A job deals with its own failures; `stopping` is set when it had better come to an end.

    idle: whether everybody else's reading and writing goes first.
    """

    def __init__(self, workers: int = _WORKERS, *, idle: bool = True) -> None:
        self.stopping = threading.Event()
        self._wanted, self._idle = workers, idle
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[str, Callable[[], None]]] = deque()
        self._busy: set[str] = set()
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, key: str, job: Callable[[], None]) -> None:
        """Run `job` soon, after all earlier ones of the same `key`."""
        with self._changed:
            self._jobs.append((key, job))
            if len(self._threads) < self._wanted and len(self._threads) < len(self._jobs) + len(self._busy):
                thread = threading.Thread(target=self._work, name="ckptd-background", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()

    def wait(self) -> None:
        """Wait until all that was submitted is done."""
        with self._changed:
            self._changed.wait_for(lambda: not self._jobs and not self._busy)

    def close(self, patience_s: float | None = None) -> bool:
        """End once all jobs are done; after `patience_s` drop the rest, which the next start takes up again.

        Returns whether everything was done.
        """
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            done = self._changed.wait_for(lambda: not self._jobs and not self._busy, patience_s)
            if not done:
                self._jobs.clear()
                self.stopping.set()
        for thread in self._threads:
            thread.join(1.0 if not done else None)
        return done

    def _work(self) -> None:
        if self._idle:
            _be_idle()
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next() is not None or (self._closed and not self._jobs))
                at = self._next()
                if at is None:
                    return
                key, job = self._jobs[at]
                del self._jobs[at]
                self._busy.add(key)
            try:
                job()
            except Exception:  # the next job is not to blame
                log.exception("a job in the background failed: this is a bug in ckptd")
            except BaseException:
                with self._changed:
                    self._jobs.clear()  # this thread ends: nobody may wait for what it will not do
                raise
            finally:
                with self._changed:
                    self._busy.discard(key)
                    self._changed.notify_all()

    def _next(self) -> int | None:
        return next((at for at, (key, _) in enumerate(self._jobs) if key not in self._busy), None)


def _be_idle() -> None:
    """Ask for the idle I/O class for this thread. Best effort: not every kernel and scheduler knows it."""
    if _IOPRIO_SET is not None:
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _THIS_THREAD, 0, _IDLE_CLASS)
