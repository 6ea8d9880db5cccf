"""The loop of `ckptd watch --recursive`: looks after what is found below the roots until a signal, or the job's end.

The loop itself touches no work dir: it hears of them, has threads make the passes, and tells the manager that it lives.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from ..disk.descriptors import opened_dir
from ..errors import CkptdError, why
from ..systemd import notify
from ..workdir.workdir import become_owner
from .crew import Crew
from .job import Job
from .lookout import Lookout
from .service import ENDING, LEAVING_S, PATIENCE_S, JobEnded, Look, Service, Signalled, Told, Word, check_command
from .tree import is_hidden

log = logging.getLogger("ckptd")


@dataclass
class RecursiveService(Service):
    """As Service, with `paths` as roots."""

    _to_walk: int = 0
    _code: int | None = None  # of the job, once it has ended

    def run(self) -> int:
        """Raises CkptdError where a root cannot be looked into."""
        roots = _apart([os.path.abspath(path) for path in self.paths])
        existing = [root for root in roots if os.path.exists(root)]
        if self.command:
            check_command(existing)
        become_owner(existing)
        for root in existing:
            _check(root)
        with self._signals():
            job = self._start_job()  # before we ask for more descriptors than it should have
            lookouts = {
                root: Lookout(
                    root, self.policy, look=lambda path: self.inbox.put(Look(path)),
                    gone=lambda path: self.inbox.put(Told("gone", path)), walked=self._walked,
                    scan_interval_s=self.scan_interval_s,
                )
                for root in roots
            }  # fmt: skip
            crew = Crew(
                lookouts, self.policy, tell=lambda what, path: self.inbox.put(Told(what, path)),
                stopping=self._ending.is_set, on_met=self._say_policy, beside_job=lambda: self._job_runs,
                dry_run=self.dry_run,
            )  # fmt: skip
            try:
                return self._look_out(lookouts, crew, job)
            finally:
                self._ending.set()
                notify.stopping()
                for lookout in lookouts.values():
                    lookout.close()
                crew.close(PATIENCE_S)

    def _look_out(self, lookouts: dict[str, Lookout], crew: Crew, job: Job | None) -> int:
        ping_s = notify.watchdog_interval_s() or math.inf
        self._to_walk = len(lookouts)
        for root, lookout in lookouts.items():
            log.info("watching all work dirs below %s", root)
            lookout.start()
        again_s = dict.fromkeys(lookouts, math.inf)
        while True:
            notify.ping()
            now_s = time.monotonic()
            next_s = min(*again_s.values(), math.inf) - now_s
            words = list(self._words(min(next_s, crew.next_s(), ping_s, 3600.0)))
            code = self._hear(words, lookouts, crew, job)
            if code is not None:
                return code
            crew.look_at_due()
            now_s = time.monotonic()
            for root, lookout in lookouts.items():
                if again_s[root] == math.inf:
                    again_s[root] = now_s + lookout.scan_interval_s
                if again_s[root] <= now_s:
                    lookout.look_again()
                    again_s[root] = now_s + lookout.scan_interval_s
                    notify.status(_status(crew))  # not at every word: it counts all of them

    def _hear(self, words: Sequence[Word], lookouts: dict[str, Lookout], crew: Crew, job: Job | None) -> int | None:
        """Do what the words say; returns the exit code if it is the end."""
        numbers = [word.number for word in words if isinstance(word, Signalled)]
        for number in numbers:
            if job is not None and self._code is None:
                job.send_signal(number)
            elif job is not None:
                return self._code  # the job has ended, and nobody wants to wait for the last look
            elif number in ENDING:
                log.info("stopped by %s", signal.Signals(number).name)
                return 0
        if numbers and job is None:
            notify.reloading()
            for lookout in lookouts.values():
                lookout.look_everywhere()
                lookout.then(lambda: self.inbox.put(Told("reloaded", "")))
        for word in words:
            if isinstance(word, JobEnded) and job is not None:
                self._code, self._job_runs = word.code, False
                crew.finish(job_left=not job.has_left_nobody(LEAVING_S))
                self._to_walk = len(lookouts)
                for lookout in lookouts.values():
                    lookout.look_again()
                    lookout.then(lambda: self.inbox.put(Told("settled", "")))
            elif isinstance(word, Look):
                crew.look(word.path)
            elif isinstance(word, Told):
                self._told_of(word, crew)
        return self._code if self._code is not None and not self._to_walk and crew.is_idle else None

    def _told_of(self, word: Told, crew: Crew) -> None:
        if word.what == "looked":
            crew.looked(word.path)
        elif word.what == "changed":
            crew.look(word.path)
        elif word.what == "gone":
            crew.let_go(word.path)
        elif word.what == "reloaded":
            log.info("looked again, as SIGHUP asked")
            notify.ready(_status(crew))
        elif word.what == "settled":
            self._to_walk -= 1
        elif word.what == "walked" and self._to_walk and self._code is None:
            self._to_walk -= 1
            if not self._to_walk:
                notify.ready(_status(crew))

    def _walked(self, root: str, work_dirs: int, directories: int) -> None:
        if directories:
            log.info("found %d work dirs in %d directories below %s", work_dirs, directories, root)
        self.inbox.put(Told("walked", root))


def _apart(roots: Sequence[str]) -> list[str]:
    """The roots, each once, without those that are below another: what they hold would be looked after twice.

    One in a hidden directory below another stays: there the other does not look.
    """
    real = {root: os.path.realpath(root) for root in dict.fromkeys(roots)}
    chosen: list[str] = []
    for root, place in real.items():
        others = [other for other in real if other != root]
        if any(_looks_at(place, real[o]) or (place == real[o] and o in chosen) for o in others):
            continue
        chosen.append(root)
    return chosen


def _looks_at(place: str, root: str) -> bool:
    """Whether whoever looks below `root` comes to `place`, which is another directory."""
    root = root.rstrip("/") + "/"
    return place.startswith(root) and not any(map(is_hidden, place[len(root) :].split("/")))


def _check(root: str) -> None:
    try:
        with opened_dir(root) as fd:
            os.listdir(fd)
    except OSError as error:
        raise CkptdError(f"{root}: cannot be looked into: {why(error)}") from error


def _status(crew: Crew) -> str:
    """The line for `systemctl status`."""
    failing = crew.failing
    return f"watching {len(crew)} work dirs" + (f", {failing} failing" if failing else "")
