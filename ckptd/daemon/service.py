"""The loop of `ckptd watch`: a pass on start, on every hint, and on a timer; signals, readiness, the job beside it.

Only the main thread makes passes. Everything else, threads and signal handlers, puts a word into its inbox.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..core.policy import Policy
from ..errors import CkptdError, RefusedError
from ..passes.background import Background
from ..passes.reading import Reader
from ..systemd import notify
from ..text.render import policy_text
from ..workdir.workdir import become_owner
from .job import Job, let_orphans_go
from .keeper import Keeper
from .signals import share_terminal, told_to
from .watch import Watcher

ENDING = (signal.SIGTERM, signal.SIGINT)
_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_FORWARDED = (*ENDING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)

_LAST_READ_S = 5.0
LEAVING_S = 1.0  # for those whom the job has started, to end after it
PATIENCE_S = 10.0  # for the background, once we are to end

log = logging.getLogger("ckptd")


@dataclass(frozen=True)
class Look:
    """A word in the inbox: this work dir may have changed."""

    path: str


@dataclass(frozen=True)
class Signalled:
    """A word in the inbox: a signal came."""

    number: int


@dataclass(frozen=True)
class JobEnded:
    """A word in the inbox: the command beside us ended, with this exit code."""

    code: int


@dataclass(frozen=True)
class Told:
    """A word in the inbox, of those who look out below a root and those who make the passes there: `what` of `path`."""

    what: str
    path: str


Word = Look | Signalled | JobEnded | Told


@dataclass
class Service:
    """Watches work dirs until a signal, or the end of the command beside it. `run` returns the exit code.

    inbox: where words arrive; a test hands in its own. scan_interval_s: None for the file system's own.
    """

    paths: Sequence[str]
    policy: Policy
    dry_run: bool = False
    scan_interval_s: float | None = None
    command: Sequence[str] = ()
    inbox: queue.SimpleQueue[Word] = field(default_factory=queue.SimpleQueue)
    _policy_said: bool = False
    _job_runs: bool = False
    _ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> int:
        """Raises CkptdError where no work dir at all can be looked after, or only a restart can go on."""
        paths = list(dict.fromkeys(os.path.abspath(path) for path in self.paths))
        existing = [path for path in paths if os.path.exists(path)]
        if self.command:
            check_command(existing)
        become_owner(existing)
        background = Background()
        reader = Reader(background, wait=False, on_answer=lambda path: self.inbox.put(Look(path)))
        watcher = Watcher(lambda path: self.inbox.put(Look(path)), self.policy.pointer)
        keepers = {
            path: Keeper(
                path, self.policy, watcher=watcher, background=background, reader=reader, dry_run=self.dry_run,
                scan_interval_s=self.scan_interval_s, label=path if len(paths) > 1 else "", stopping=self._stopping,
                on_met=self._say_policy, beside_job=lambda: self._job_runs,
            )
            for path in paths
        }  # fmt: skip
        with self._signals():
            job = self._start_job()
            try:
                return self._loop(keepers, watcher, job)
            finally:
                notify.stopping()
                watcher.close()
                for keeper in keepers.values():
                    keeper.close()
                background.close(PATIENCE_S)  # what is left is taken up by the next start

    def _loop(self, keepers: dict[str, Keeper], watcher: Watcher, job: Job | None) -> int:
        ping_s = notify.watchdog_interval_s()
        self._first_looks(keepers, has_job=job is not None)
        while True:
            notify.ping()
            next_s = min(keeper.due_s for keeper in keepers.values()) - time.monotonic()
            words = list(self._words(next_s if ping_s is None else min(next_s, ping_s)))
            code = self._obey(words, keepers, job)
            if code is not None:
                return code
            if not watcher.is_alive():
                log.warning("the watcher died; started another")
                watcher.close()
                for keeper in keepers.values():
                    keeper.due_s = 0.0
            self._due_looks(keepers)

    def _obey(self, words: Sequence[Word], keepers: dict[str, Keeper], job: Job | None) -> int | None:
        """Do what the words say, an end first and nothing twice; returns the exit code if it is the end."""
        numbers = [word.number for word in words if isinstance(word, Signalled)]
        if job is not None:
            for number in numbers:
                job.send_signal(number)
        for word in words:
            if isinstance(word, JobEnded) and job is not None:
                self._job_runs = False
                left = not job.has_left_nobody(LEAVING_S)
                for keeper in keepers.values():
                    keeper.job_left = left
                self._last_looks(keepers)
                return word.code
            if isinstance(word, Look):
                keepers[word.path].due_s = 0.0
        if job is None:
            ending = next((number for number in numbers if number in ENDING), None)
            if ending is not None:
                log.info("stopped by %s", signal.Signals(ending).name)
                return 0
            if numbers:
                self._reload(keepers)
        return None

    def _first_looks(self, keepers: dict[str, Keeper], *, has_job: bool) -> None:
        """A service that can do nothing at all must not look up: it ends with the first thing to mend."""
        self._due_looks(keepers)
        failures = [keeper.failure for keeper in keepers.values() if isinstance(keeper.failure, CkptdError)]
        if len(failures) == len(keepers) and not has_job:
            raise failures[0]
        notify.ready(_status(keepers))

    def _due_looks(self, keepers: dict[str, Keeper]) -> None:
        looked = False
        for keeper in keepers.values():
            if keeper.due_s <= time.monotonic():
                keeper.look()
                looked = True
                notify.ping()  # many work dirs take long, each of them is a sign of life
        if looked:
            notify.status(_status(keepers))

    def _last_looks(self, keepers: dict[str, Keeper]) -> None:
        """A last pass over each work dir, and another once what it waits for was read; a signal ends that."""
        waiting = list(keepers.values())
        while waiting:
            for keeper in waiting:
                with contextlib.suppress(CkptdError):  # said already; the job's code is what counts
                    keeper.look()
            waiting = [keeper for keeper in waiting if keeper.report is not None and keeper.report.waits]
            if waiting and any(isinstance(word, Signalled) for word in self._words(_LAST_READ_S)):
                return

    def _reload(self, keepers: dict[str, Keeper]) -> None:
        notify.reloading()
        for keeper in keepers.values():
            keeper.look()
        log.info("looked again, as SIGHUP asked")
        notify.ready(_status(keepers))

    def _words(self, timeout_s: float) -> Iterator[Word]:
        """The words that are there, or the first that comes within the timeout."""
        with contextlib.suppress(queue.Empty):
            yield self.inbox.get(timeout=max(0.0, timeout_s))
            while True:
                yield self.inbox.get_nowait()

    def _signals(self) -> contextlib.AbstractContextManager[None]:
        """Turn signals into words; with a job beside us they are for the job, unless the terminal gave it its own."""
        if not self.command:
            return told_to(self._told, (*ENDING, signal.SIGHUP))
        muted = _FROM_TERMINAL if share_terminal() else ()
        return told_to(self._told, [number for number in _FORWARDED if number not in muted], muted=muted)

    def _told(self, number: int) -> None:
        if number in ENDING and not self.command:
            self._ending.set()  # for a pass that is under way
        self.inbox.put(Signalled(number))

    def _say_policy(self) -> None:
        """Once, after the first line, which is for what there is."""
        if not self._policy_said:
            self._policy_said = True
            log.info("%s", policy_text(self.policy))

    def _stopping(self) -> bool:
        notify.ping()
        return self._ending.is_set()

    def _start_job(self) -> Job | None:
        if self.command:
            self._job_runs = True
            return Job(self.command, lambda code: self.inbox.put(JobEnded(code)))
        let_orphans_go()
        return None


def check_command(existing: Sequence[str]) -> None:
    """A command that root starts must not lose its rights, nor keep more than we have: so both run as the owner."""
    if os.geteuid() == 0 and any(os.stat(path).st_uid != 0 for path in existing):
        raise RefusedError("a command beside a work dir of another user: run `ckptd watch ... -- COMMAND` as its owner")


def _status(keepers: dict[str, Keeper]) -> str:
    """The line for `systemctl status`."""
    if len(keepers) == 1:
        (keeper,) = keepers.values()
        if keeper.failure is not None:
            return f"cannot look after {keeper.path}: {keeper.failure}"
        if keeper.report is None:
            return f"waiting for {keeper.path}"
        newest = keeper.report.survey.plan.newest
        return (
            f"watching {keeper.path}, newest {newest.name}" if newest else f"watching {keeper.path}, no checkpoint yet"
        )
    failing = sum(keeper.failure is not None for keeper in keepers.values())
    return f"watching {len(keepers)} work dirs" + (f", {failing} failing" if failing else "")
