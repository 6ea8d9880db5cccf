"""`ckptd watch` as a process: whose it is, its threads, its signals, the job beside it, and its end."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

from ..core.policy import Policy
from ..disk.descriptors import opened_dir
from ..errors import CkptdError, RefusedError, why
from ..passes.background import AtOnce, Background
from ..passes.reading import Reader
from ..systemd import notify
from ..text.render import policy_text
from ..workdir.place import IGNORE, is_ignored, left_alone_text
from ..workdir.workdir import become_owner
from .crew import AT_ONCE
from .exclude import excluder
from .inotify import Inotify
from .job import Job, let_orphans_go
from .lookout import Lookout
from .loop import ENDING, Inbox, Loop
from .named import Named
from .notable import Filter
from .process import Process
from .signals import share_terminal, told_to
from .tree import is_hidden

_FROM_TERMINAL = (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP)
_FORWARDED = (*ENDING, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGQUIT)
_PATIENCE_S = 10.0  # for what is under way, once we are to end

log = logging.getLogger("ckptd")


@dataclass
class Service:
    """Watches work dirs until a signal, or the end of the command beside it. `run` returns the exit code.

    recursive: the paths are roots, and every directory below that holds a checkpoint is a work dir. scan_interval_s:
    None for the file system's own. excludes: patterns of what is left out below roots.
    """

    paths: Sequence[str]
    policy: Policy
    recursive: bool = False
    dry_run: bool = False
    scan_interval_s: float | None = None
    command: Sequence[str] = ()
    excludes: Sequence[str] = ()
    _inbox: Inbox = field(default_factory=queue.SimpleQueue)
    _loop: Loop = field(init=False)
    _ending: threading.Event = field(default_factory=threading.Event)  # for passes that are under way
    _saying: threading.Lock = field(default_factory=threading.Lock)
    _policy_said: bool = False  # under that lock
    _job_runs: bool = False  # written by the loop's thread

    def run(self) -> int:
        """Go on until the end; returns the exit code. Raises CkptdError where only a new start can go on."""
        paths = list(dict.fromkeys(os.path.abspath(path) for path in self.paths))
        exclude = self._excluder(paths)
        if self.recursive:
            paths = _apart(paths, exclude)
        self._become_owner(paths)
        background = Background()
        process = Process(
            self.policy, background, Reader(background, wait=False, on_answer=lambda path: self._loop.hint(path)),
            Inotify(), Filter(self.policy.pointer), dry_run=self.dry_run, scan_interval_s=self.scan_interval_s,
            stopping=self._is_stopping, beside_job=lambda: self._job_runs, met=self._say_policy,
        )  # fmt: skip
        # A pass over the only work dir keeps nobody waiting.
        pool = Background(AT_ONCE, idle=False) if self.recursive or len(paths) > 1 else AtOnce()
        self._loop = Loop(process, self._inbox, pool)
        with self._signals():
            job = self._start_job()
            lookouts = [self._lookout(path, process, exclude) for path in paths] if self.recursive else []
            named = None if self.recursive else Named(paths, process, self._loop.hint)
            try:
                self._loop.begin(named, lookouts, job)
                return self._loop.run()
            finally:
                self._ending.set()
                notify.stopping()
                for lookout in lookouts:
                    lookout.close()
                process.inotify.close()
                self._loop.crew.close(_PATIENCE_S)
                background.close(_PATIENCE_S)  # what is left is taken up by the next start

    def signalled(self, number: int) -> None:
        """A signal came; called by any thread."""
        if number in ENDING and not self.command:
            self._ending.set()
        self._inbox.put(lambda: self._loop.obey(number))

    def _excluder(self, roots: Sequence[str]) -> Callable[[str], str]:
        """By their real paths too, which tell whether one is below another. Of what was named no disk is asked."""
        real = map(os.path.realpath, roots) if self.recursive else ()
        return excluder(self.excludes, list(dict.fromkeys([*roots, *real])))

    def _become_owner(self, paths: Sequence[str]) -> None:
        """Only root asks whose they are, and only below roots what can be read: else a disk may hang, and the others
        not.
        """
        ask = self.recursive or os.geteuid() == 0
        existing = [path for path in paths if os.path.exists(path)] if ask else []
        if self.command:
            _check_command(existing)
        become_owner(existing)
        for root in existing if self.recursive else ():
            _check_root(root)

    def _lookout(self, root: str, process: Process, exclude: Callable[[str], str]) -> Lookout:
        lookout = Lookout(
            root, process, look=lambda path: self._loop.hint(path, lookout), gone=self._loop.gone,
            walked=lambda: self._loop.has_looked(root), exclude=exclude, patterns=self.excludes,
        )  # fmt: skip
        return lookout

    def _signals(self) -> contextlib.AbstractContextManager[None]:
        """Hear of signals; with a job beside us they are for the job, unless the terminal gave it its own."""
        if not self.command:
            return told_to(self.signalled, (*ENDING, signal.SIGHUP))
        muted = _FROM_TERMINAL if share_terminal() else ()
        return told_to(self.signalled, [number for number in _FORWARDED if number not in muted], muted=muted)

    def _say_policy(self) -> None:
        """Once, after the first line, which is for what there is."""
        with self._saying:
            if not self._policy_said:
                self._policy_said = True
                log.info("%s", policy_text(self.policy))

    def _is_stopping(self) -> bool:
        self._loop.sign_of_life()
        return self._ending.is_set()

    def _start_job(self) -> Job | None:
        if not self.command:
            let_orphans_go()
            return None
        self._job_runs = True
        return Job(self.command, lambda code: self._inbox.put(partial(self._job_ended, code)))

    def _job_ended(self, code: int) -> None:
        self._job_runs = False
        self._loop.finish(code)


def _check_command(existing: Sequence[str]) -> None:
    """A command that root starts must not lose its rights, nor keep more than we have: so both run as the owner."""
    if os.geteuid() == 0 and any(os.stat(path).st_uid != 0 for path in existing):
        raise RefusedError("a command beside a work dir of another user: run `ckptd watch ... -- COMMAND` as its owner")


def _check_root(root: str) -> None:
    try:
        with opened_dir(root) as fd:
            os.listdir(fd)
            ignored = is_ignored(fd)
    except OSError as error:
        raise CkptdError(f"{root}: cannot be looked into: {why(error)}") from error
    if ignored:
        raise RefusedError(left_alone_text(root))


def _apart(roots: Sequence[str], exclude: Callable[[str], str]) -> list[str]:
    """The roots, each once, without those that are below another: what they hold would be looked after twice.

    One in a directory below another that is hidden or left out stays: there the other does not look.
    """
    real = {root: os.path.realpath(root) for root in dict.fromkeys(roots)}
    chosen: list[str] = []
    for root, place in real.items():
        others = [other for other in real if other != root]
        if any(_looks_at(place, real[o], exclude) or (place == real[o] and o in chosen) for o in others):
            continue
        chosen.append(root)
    return chosen


def _looks_at(place: str, root: str, exclude: Callable[[str], str]) -> bool:
    """Whether whoever looks below `root` comes to `place`, which is another directory."""
    root = root.rstrip("/") + "/"
    if not place.startswith(root):
        return False
    while place != root.rstrip("/"):
        if is_hidden(os.path.basename(place)) or exclude(place) or os.path.lexists(os.path.join(place, IGNORE)):
            return False
        place = os.path.dirname(place)
    return True
