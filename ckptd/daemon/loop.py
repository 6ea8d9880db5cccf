"""The loop of `ckptd watch`: what is done when, for work dirs that were named and for those found below roots.

It touches no work dir: it hears of them, has passes made, and tells the service manager that it lives. All of it
happens in the thread that calls `run`; every other thread, and the handlers of signals, put a call into the inbox.
"""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from functools import partial

from ..errors import CkptdError
from ..passes.background import Background
from ..systemd import notify
from .crew import Crew
from .job import Job
from .lookout import Lookout
from .named import Named
from .process import Process
from .source import Source

ENDING = (signal.SIGTERM, signal.SIGINT)
_LEAVING_S = 1.0  # for those whom the job has started, to end after it
_FIRST_LOOKS_S = 30.0  # for what was named to be looked at, before the others are what there is
_LONGEST_S = 3600.0

log = logging.getLogger("ckptd")

Inbox = queue.SimpleQueue[Callable[[], None]]


class Loop:
    """Looks after what its sources know until a signal, or the end of the job. pool: makes the passes."""

    def __init__(self, process: Process, inbox: Inbox, pool: Background) -> None:
        self._process, self._inbox = process, inbox
        self.crew = Crew(process, pool, tell=inbox.put, looked=self._looked)
        self._job: Job | None = None
        self._named: Named | None = None
        self._again_s: dict[Lookout, float] = {}  # when each root is looked at again
        self._awaited: dict[str, int] = {}  # of named work dirs the passes, of roots the looks, that `_then` waits for
        self._then: Callable[[], None] = lambda: None
        self._late_s = math.inf  # when it waits no longer
        self._sign_s = process.monotonic()  # the last sign of life of a pass; written by passes
        self._thread = threading.current_thread()
        self._code: int | None = None  # of the job, once it has ended
        self._ended: int | None = None  # the exit code

    # --- called by any thread -----------------------------------------------------------------------------------

    def hint(self, path: str, source: Source | None = None) -> None:
        """A work dir may have changed. The one way of all hints."""
        self._inbox.put(partial(self._hinted, path, source))

    def gone(self, path: str) -> None:
        """A work dir that was found is there no more."""
        self._inbox.put(partial(self.crew.let_go, path))

    def has_looked(self, what: str) -> None:
        """A root was looked at, or whatever else is waited for."""
        self._inbox.put(partial(self._looked, what))

    def sign_of_life(self) -> None:
        """A pass is getting on."""
        self._sign_s = self._process.monotonic()
        if threading.current_thread() is self._thread:
            notify.ping()  # for nobody else does it meanwhile

    # --- called by one thread -----------------------------------------------------------------------------------

    def begin(self, named: Named | None, lookouts: Sequence[Lookout], job: Job | None) -> None:
        """Look at everything for the first time."""
        self._named, self._job = named, job
        self._again_s = dict.fromkeys(lookouts, math.inf)
        self._wait_for(self._begun, self._look_at_named() | {lookout.root: 1 for lookout in lookouts})
        for lookout in lookouts:
            log.info("watching all work dirs below %s", lookout.root)
            lookout.start()

    def run(self) -> int:
        """Go on until the end; returns the exit code."""
        ping_s = notify.watchdog_interval_s() or _LONGEST_S
        while (code := self.turn(min(self.next_s(), ping_s))) is None:
            if not self._hangs(ping_s):
                notify.ping()
        return code

    def next_s(self) -> float:
        """Seconds until something is due."""
        due_s = min(*self._again_s.values(), self._late_s, math.inf) - self._process.monotonic()
        return max(0.0, min(due_s, self.crew.next_s()))

    def turn(self, timeout_s: float) -> int | None:
        """Do what was called for by now, or within the timeout, and what is due; returns the exit code at the end."""
        for call in self._calls(timeout_s):
            call()
            if self._ended is not None:
                return self._ended
        if not self._process.inotify.is_alive():
            self._begin_to_hear_again()
        self.crew.look_at_due()
        self._look_again()
        if self._late_s <= self._process.monotonic():
            self._stop_waiting()
        if self._ended is not None:
            return self._ended
        if self._code is not None and not self._awaited and self.crew.is_idle:
            return self._code
        return None

    def status(self) -> str:
        """The line for `systemctl status`."""
        if self._named is not None and len(self._named.paths) == 1:
            return _status(self.crew, self._named.paths[0])
        failing = self.crew.failing
        return f"watching {len(self.crew)} work dirs" + (f", {failing} failing" if failing else "")

    def _calls(self, timeout_s: float) -> Iterator[Callable[[], None]]:
        """The calls that are there, or the first that comes within the timeout."""
        with contextlib.suppress(queue.Empty):
            yield self._inbox.get(timeout=timeout_s) if timeout_s > 0 else self._inbox.get_nowait()
            while True:
                yield self._inbox.get_nowait()

    def _hinted(self, path: str, source: Source | None) -> None:
        self.crew.hint(path, source)

    def _look_at_named(self) -> dict[str, int]:
        """Look at what was named; returns how many passes are to end for each."""
        if self._named is None:
            return {}
        return {path: self.crew.look(path, self._named) for path in self._named.paths}

    def _look_again(self) -> None:
        now_s = self._process.monotonic()
        for lookout, again_s in self._again_s.items():
            if again_s == math.inf:
                self._again_s[lookout] = now_s + lookout.scan_interval_s
            elif again_s <= now_s:
                self._again_s[lookout] = now_s + lookout.scan_interval_s
                lookout.look_again()
                notify.status(self.status())  # not at every pass: it counts all of them

    def _begin_to_hear_again(self) -> None:
        log.warning("the watcher died; started another")
        self._process.inotify.begin_anew()
        self._look_at_named()
        for lookout in self._again_s:
            lookout.look_everywhere()

    def _hangs(self, limit_s: float) -> bool:
        """Whether all that was named has passes under way, and none gets on: a manager may then start us again.

        Below a root it is the disk that hangs, and a new start would end in the same place.
        """
        silent = self._process.monotonic() - self._sign_s > limit_s
        return silent and not self._again_s and self.crew.is_all_under_way

    # --- what comes once something was looked at ------------------------------------------------------------------

    def _wait_for(self, then: Callable[[], None], awaited: dict[str, int]) -> None:
        """Call `then` once all that is awaited was looked at so often."""
        self._awaited, self._then = awaited, then
        self._late_s = self._process.monotonic() + _FIRST_LOOKS_S

    def _looked(self, what: str) -> None:
        left = self._awaited.pop(what, 0)
        if left > 1:
            self._awaited[what] = left - 1
        elif left and not self._awaited:
            self._stop_waiting()
        if not self._again_s:
            notify.status(self.status())

    def _stop_waiting(self) -> None:
        """Go on, also without what was named and does not answer, unless that is everything."""
        self._late_s = math.inf
        named = set(self._named.paths) if self._named is not None else set()
        if self._awaited.keys() <= named and (not self._awaited or self._awaited.keys() < named):
            self._awaited.clear()
            then, self._then = self._then, lambda: None
            then()

    def _begun(self) -> None:
        """A service that can do nothing at all must not look up: it ends. Each keeper has said what is to be mended."""
        if self._named is not None and self._job is None:
            failures = [self.crew[path].failure for path in self._named.paths]
            mendable = [failure for failure in failures if isinstance(failure, CkptdError)]
            if mendable and len(mendable) == len(failures):
                self._ended = mendable[0].exit_code
                return
        notify.ready(self.status())

    def _reloaded(self) -> None:
        log.info("looked again, as SIGHUP asked")
        notify.ready(self.status())

    # --- signals, and the job -------------------------------------------------------------------------------------

    def obey(self, number: int) -> None:
        """A signal came: it is for the job while there is one."""
        if self._code is not None:
            self._ended = self._code  # the job has ended, and nobody wants to wait for the last look
        elif self._job is not None:
            self._job.send_signal(number)
        elif number in ENDING:
            log.info("stopped by %s", signal.Signals(number).name)
            self._ended = 0
        else:
            self._reload()

    def finish(self, code: int) -> None:
        """The job has ended: look again where something may have changed, and once more if it has to be read."""
        assert self._job is not None
        self._code = code
        self.crew.finish(job_left=not self._job.has_left_nobody(_LEAVING_S))
        self._wait_for(lambda: None, {lookout.root: 1 for lookout in self._again_s})
        self._late_s = math.inf
        for lookout in self._again_s:
            lookout.look_again()
            lookout.then(partial(self.has_looked, lookout.root))

    def _reload(self) -> None:
        notify.reloading()
        self._wait_for(self._reloaded, self._look_at_named() | {lookout.root: 1 for lookout in self._again_s})
        for lookout in self._again_s:
            lookout.look_everywhere()
            lookout.then(partial(self.has_looked, lookout.root))


def _status(crew: Crew, path: str) -> str:
    """Of the one work dir that was named."""
    keeper = crew[path]
    report = keeper.report
    if keeper.failure is not None:
        return f"cannot look after {path}: {keeper.failure}"
    if report is None:
        return f"waiting for {path}"
    newest = report.survey.plan.newest
    return f"watching {path}, newest {newest.name}" if newest else f"watching {path}, no checkpoint yet"
