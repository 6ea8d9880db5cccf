"""A few threads, at idle I/O priority for what no pass may wait for: reading contents, and freeing the trash.

First come, first served, but never two jobs of one work dir at a time, and of one disk only a few: one that is slow, or
does not answer at all, holds up no other.
"""

from __future__ import annotations

import ctypes
import logging
import platform
import threading
from collections import Counter, deque
from collections.abc import Callable

log = logging.getLogger("ckptd")

_WORKERS, _MOST = 2, 16
_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_THIS_THREAD, _IDLE_CLASS = 1, 3 << 13


class Background:
    """Runs jobs. A job deals with its own failures; `stopping` is set when it had better come to an end.

    workers: how many at once of one disk; most: of all. idle: whether everybody else's reading and writing goes first.
    """

    def __init__(self, workers: int = _WORKERS, *, most: int = _MOST, idle: bool = True) -> None:
        self.stopping = threading.Event()
        self._of_each, self._most, self._idle = workers, most, idle
        self._threads: list[threading.Thread] = []
        self._jobs: deque[tuple[str, int, Callable[[], None]]] = deque()
        self._unfinished: Counter[int] = Counter()  # by device, those under way too
        self._busy: dict[str, int] = {}
        self._changed = threading.Condition()
        self._closed = False

    def submit(self, key: str, job: Callable[[], None], *, device: int) -> None:
        """Run `job` soon, after all earlier ones of the same `key`. device: of the disk it has to do with."""
        with self._changed:
            self._jobs.append((key, device, job))
            self._unfinished[device] += 1
            fewer = len(self._threads) < self._most  # a sum over all disks is only asked for while it is short
            if fewer and len(self._threads) < sum(min(n, self._of_each) for n in self._unfinished.values()):
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
                key, device, job = self._jobs[at]
                del self._jobs[at]
                self._busy[key] = device
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
                    del self._busy[key]
                    self._unfinished[device] -= 1
                    if not self._unfinished[device]:
                        del self._unfinished[device]
                    self._changed.notify_all()

    def _next(self) -> int | None:
        full = {device for device, count in Counter(self._busy.values()).items() if count >= self._of_each}
        return next(
            (at for at, (key, device, _) in enumerate(self._jobs) if device not in full and key not in self._busy), None
        )


def _be_idle() -> None:
    """Ask for the idle I/O class for this thread. Best effort: not every kernel and scheduler knows it."""
    if _IOPRIO_SET is not None:
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _THIS_THREAD, 0, _IDLE_CLASS)
