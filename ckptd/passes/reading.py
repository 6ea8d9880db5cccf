"""Reads the contents of checkpoints in the background, each once, and keeps the answers until a pass asks for them."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

from ..core.entry import Entry
from ..errors import RefusedError
from ..inspect.content import ChangedError, check_content
from .background import Background

log = logging.getLogger("ckptd")

_AT_ONCE_BYTES = 4 << 20  # read in less time than it takes to hand it over and come back

Answer = str | OSError | None  # what is wrong, "" for nothing; why it could not be read; None for not known yet


class Cancelled(Exception):
    """The process ends: what is half read is read again after the next start."""


class Reader:
    """Answers whether contents are sound.

    wait: whether `ask` waits for the answer. on_answer: told the work dir when there is a new one, by a thread of the
    background.
    """

    def __init__(
        self, background: Background, *, wait: bool, on_answer: Callable[[str], None] = lambda work_dir: None
    ) -> None:
        self._background, self._wait, self._on_answer = background, wait, on_answer
        self._answers: dict[tuple[str, Entry], Answer] = {}
        self._lock = threading.Lock()

    def ask(self, work_dir: str, work_fd: int, entry: Entry, *, from_disk: bool = False) -> Answer:
        """What is known of the content of `entry`, in the directory open as `work_fd`; asked for, if nothing is."""
        key = work_dir, entry
        with self._lock:
            if key in self._answers:
                answer = self._answers[key]
                if answer is not None:
                    del self._answers[key]
                return answer
            self._answers[key] = None
        done = threading.Event()
        fd = os.dup(work_fd)
        if entry.size_bytes <= _AT_ONCE_BYTES:
            self._read(key, fd, done, from_disk=from_disk)
            with self._lock:
                return self._answers.pop(key, None)
        self._background.submit(
            f"read {work_dir}", lambda: self._read(key, fd, done, from_disk=from_disk), device=entry.device
        )
        if not self._wait:
            return None
        done.wait()
        with self._lock:
            return self._answers.pop(key, None)

    def _read(self, key: tuple[str, Entry], fd: int, done: threading.Event, *, from_disk: bool) -> None:
        work_dir, entry = key
        answer: Answer = None
        try:
            answer = check_content(entry, dir_fd=fd, progress=self._go_on, from_disk=from_disk)
        except (Cancelled, ChangedError, RefusedError, FileNotFoundError):
            pass  # not what it was: the next pass sees what it is
        except OSError as error:
            answer = error
        finally:
            os.close(fd)
            with self._lock:
                if answer is None:
                    self._answers.pop(key, None)
                else:
                    self._answers[key] = answer
            done.set()
        if entry.size_bytes > _AT_ONCE_BYTES:
            self._on_answer(work_dir)

    def _go_on(self, _: int) -> None:
        if self._background.stopping.is_set():
            raise Cancelled
