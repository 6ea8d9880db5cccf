"""The loop of `ckptd watch`: a pass on start, on every hint, and on a timer; signals, readiness, the job beside it.

Only the main thread makes passes. Everything else, threads and signal handlers, puts a word into its inbox.
"""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType

from . import notify
from .core.policy import Policy
from .errors import CkptdError, RefusedError, why
from .keeper import Keeper
from .remover import Remover
from .watch import Watcher
from .workdir import become_owner

_ENDING = (signal.SIGTERM, signal.SIGINT)
_FORWARDED = (*_ENDING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)

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


Word = Look | Signalled | JobEnded


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

    def run(self) -> int:
        """Raises CkptdError where no work dir at all can be looked after, or only a restart can go on."""
        paths = list(dict.fromkeys(os.path.abspath(path) for path in self.paths))
        existing = [path for path in paths if os.path.exists(path)]
        if self.command:
            _check_command(existing)
        become_owner(existing)
        remover = Remover()
        watcher = Watcher(lambda path: self.inbox.put(Look(path)), self.policy.pointer)
        keepers = {
            path: Keeper(
                path, self.policy, watcher=watcher, remover=remover, dry_run=self.dry_run,
                scan_interval_s=self.scan_interval_s, label=path if len(paths) > 1 else "",
            )
            for path in paths
        }  # fmt: skip
        with self._signals():
            job = self._start_job() if self.command else None
            try:
                return self._loop(keepers, watcher, job)
            finally:
                notify.stopping()
                watcher.close()
                for keeper in keepers.values():
                    keeper.close()
                remover.close()

    def _loop(self, keepers: dict[str, Keeper], watcher: Watcher, job: subprocess.Popen[bytes] | None) -> int:
        ping_s = notify.watchdog_interval_s()
        self._first_looks(keepers, has_job=job is not None)
        while True:
            notify.ping()
            next_s = min(keeper.due_s for keeper in keepers.values()) - time.monotonic()
            for word in self._words(next_s if ping_s is None else min(next_s, ping_s)):
                if isinstance(word, Look):
                    keepers[word.path].due_s = 0.0
                elif isinstance(word, JobEnded):
                    for keeper in keepers.values():
                        with contextlib.suppress(CkptdError):  # said already; the job's code is what counts
                            keeper.look()
                    return word.code
                elif job is not None:
                    job.send_signal(word.number)
                elif word.number in _ENDING:
                    log.info("stopped by %s", signal.Signals(word.number).name)
                    return 0
                else:
                    self._reload(keepers)
            if not watcher.is_alive():
                log.warning("the watcher died; started another")
                watcher.close()
                for keeper in keepers.values():
                    keeper.due_s = 0.0
            self._due_looks(keepers)

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

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn signals into words; with a job beside us they are for the job."""
        if threading.current_thread() is not threading.main_thread():
            yield  # a test in a thread
            return
        wanted: tuple[signal.Signals, ...] = _FORWARDED if self.command else (*_ENDING, signal.SIGHUP)
        if self.command and _shares_terminal():
            wanted = tuple(number for number in wanted if number != signal.SIGINT)  # the terminal signals both

        # A signal that comes just before the main thread falls asleep wakes nobody: its handler would run when the next
        # event or scan does. So the kernel's side writes its number into a pipe, and a thread that reads it tells.
        reader, writer = os.pipe()
        os.set_blocking(writer, False)

        def tell() -> None:
            while numbers := os.read(reader, 64):
                for number in numbers:
                    if number in wanted:
                        self.inbox.put(Signalled(number))

        teller = threading.Thread(target=tell, name="ckptd-signals", daemon=True)
        teller.start()
        before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        ours = (*wanted, signal.SIGINT) if self.command and _shares_terminal() else wanted
        before = {number: signal.signal(number, _noted) for number in ours}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(before_fd)
            os.close(writer)
            teller.join()
            os.close(reader)

    def _start_job(self) -> subprocess.Popen[bytes]:
        try:
            job = subprocess.Popen(list(self.command))
        except OSError as error:
            raise CkptdError(f"{self.command[0]}: cannot be started: {why(error)}") from error

        def wait() -> None:
            code = job.wait()
            self.inbox.put(JobEnded(128 - code if code < 0 else code))

        threading.Thread(target=wait, name="ckptd-job", daemon=True).start()
        return job


def _noted(_number: int, _frame: FrameType | None) -> None:
    """A signal is no reason to end: its number is in the pipe."""


def _check_command(existing: Sequence[str]) -> None:
    """A command that root starts must not lose its rights, nor keep more than we have: so both run as the owner."""
    if os.geteuid() == 0 and any(os.stat(path).st_uid != 0 for path in existing):
        raise RefusedError("a command beside a work dir of another user: run `ckptd watch ... -- COMMAND` as its owner")


def _shares_terminal() -> bool:
    """Whether ^C reaches the job without us: it is in our process group, in front of the terminal."""
    with contextlib.suppress(OSError, ValueError):
        return os.tcgetpgrp(sys.stdin.fileno()) == os.getpgrp()
    return False


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
