"""Run one save at a time: at once, or in a thread while training goes on. Knows nothing of what is saved."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

_log = logging.getLogger("ckptd.shim")


class Writer:
    """At most one save is under way. What went wrong with it is raised by whoever waits for it next."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._name = ""

    def start(self, name: str, save: Callable[[], None]) -> None:
        """Begin `save` in a thread; the last one must have been waited for. `name`: what is saved, for the log."""
        if self._thread is not None:
            raise AssertionError(f"{name}: begun while {self._name} is being written")

        begin = threading.Event()

        def run() -> None:
            begin.wait()
            try:
                save()
            except BaseException as error:  # noqa: BLE001 - raised by wait, in the thread that trains
                # Said at once too: a run that never asks again would never know.
                _log.error("%s", error)
                self._failure = error

        # No daemon thread: the interpreter waits for it on its way out, after an exception or sys.exit too.
        thread = threading.Thread(target=run, name=f"ckptd saves {name}")
        thread.start()
        self._name, self._thread = name, thread  # not before: a system may have no more threads
        # Only now: a thread that had work at once would keep the interpreter's lock for its first 5 ms, and training
        # would wait for it.
        begin.set()

    def wait(self) -> None:
        """Return once nothing is being written; raises what the save raised, once."""
        thread = self._thread
        if thread is None:
            return
        if thread.is_alive():
            _log.info("Waiting for %s, which is still being written", self._name)
        thread.join()
        failure, self._thread, self._failure = self._failure, None, None
        if failure is not None:
            raise failure
