"""Frees what is in the trash, in one thread of its own and at idle I/O priority, so that no pass waits for it.

What it is given is claimed by a rename first: from then on `restore` cannot see it.
"""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import queue
import threading
from dataclasses import dataclass

from . import delete
from .disk import opened_own_dir
from .errors import why

log = logging.getLogger("ckptd")

_IOPRIO_SET = {"x86_64": 251, "aarch64": 30}.get(platform.machine())
_THIS_THREAD, _IDLE_CLASS = 1, 3 << 13


@dataclass(frozen=True)
class _Job:
    trash_fd: int
    item: str


class Remover:
    """A queue of things to free. `failed` holds what could not be freed, until somebody asks for it."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self.failed: list[tuple[str, OSError]] = []

    def submit(self, own_fd: int, item: str) -> None:
        """Free `item` of the trash below the `.ckptd` directory `own_fd`, soon."""
        with opened_own_dir(delete.NAME, dir_fd=own_fd) as fd:
            trash_fd = os.dup(fd)  # outlives the pass, and the work dir if that is replaced
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="ckptd-remover", daemon=True)
            self._thread.start()
        self._jobs.put(_Job(trash_fd, item))

    def close(self) -> None:
        """Wait until all that was submitted has been tried."""
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        _be_idle()
        while (job := self._jobs.get()) is not None:
            try:
                delete.remove(delete.claim(job.item, trash_fd=job.trash_fd), trash_fd=job.trash_fd)
                log.debug("freed trash/%s", job.item)
            except FileNotFoundError:
                log.debug("trash/%s was gone", job.item)  # restored, or freed by hand
            except OSError as error:
                self.failed.append((job.item, error))
                log.warning("could not free trash/%s: %s; will try again at the next start", job.item, why(error))
            finally:
                os.close(job.trash_fd)


def _be_idle() -> None:
    """Ask for the idle I/O class for this thread. Best effort: not every kernel and scheduler knows it."""
    if _IOPRIO_SET is not None:
        ctypes.CDLL(None, use_errno=True).syscall(_IOPRIO_SET, _THIS_THREAD, 0, _IDLE_CLASS)
