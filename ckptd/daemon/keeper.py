"""One work dir over time: waited for, met, looked after, at rest, lost, met again.

Knows when its next pass is due; who calls it, and in which thread, is the crew's.
"""

from __future__ import annotations

import functools
import logging
import os

# What a pass may need only later: by then another version of it may have been installed.
from ..core import newest  # noqa: F401
from ..core.survey import Survey
from ..disk.filesystem import SCAN_LOCAL_S
from ..errors import CkptdError, ReplacedError, why
from ..inspect import directories, grouping, lateness, metrics, own_files, trackers, unnamed  # noqa: F401
from ..passes import unrecognised  # noqa: F401
from ..passes.back_off import back_off_s
from ..passes.left_behind import LeftBehind
from ..passes.patience import Patience
from ..passes.reconcile import Reconciler
from ..passes.report import Report
from ..text.advice import beyond_text, ignored_text
from ..text.render import summary, will_happen
from ..text.voice import Voice
from ..workdir.place import is_ignored
from ..workdir.workdir import WorkDir
from .notable import Notable, Stamp, declared_at
from .pace import Pace
from .process import Process
from .source import Source

# Passes that hints ask for are made at once until they have taken half a second, then for a tenth of the time. None is
# more than 50 ms late for it, with what inotify.py puts off.
_SHARE, _BURST_S, _PUT_OFF_S = 0.1, 0.5, 0.04

log = logging.getLogger("ckptd")


class Keeper:
    """Looks after the work dir at `path`, whether it is there or not.

    One thread at a time may call it. What has no underscore is written by the pass under way, and may be read by
    others meanwhile; but for `job_left`, which is the loop's to write.

    due_s: when the next pass is due, on the monotonic clock; infinite while none is. report: the last pass. failure:
    why the last look was none, or None. device: the number of its disk, as far as is known. job_left: set once
    the job has ended: whether it has left somebody behind who may still write.
    """

    def __init__(self, path: str, process: Process, source: Source) -> None:
        self.path, self.due_s, self.device = path, 0.0, source.device_of(path)
        self.report: Report | None = None
        self.failure: Exception | None = None
        self.job_left: bool | None = None
        self._process, self._source, self._label = process, source, source.label(path)
        self._voice = Voice(self._label)
        self._patience = Patience(process.beside_job)
        self._reconciler: Reconciler | None = None
        self._left_behind: LeftBehind | None = None  # while it is left out
        self._resting: WorkDir | None = None
        self._waited = False
        self._announced: tuple[list[str], list[str]] = [], []
        self._filling: frozenset[str] = frozenset()
        self._failures = 0
        self._interval_s = SCAN_LOCAL_S  # until it is met
        self._pace = Pace(_SHARE, _BURST_S, _PUT_OFF_S)

    def hint(self) -> None:
        """The work dir may have changed since the last pass: have one made, in its turn. Not called during one."""
        self.due_s = min(self.due_s, self._pace.due_s(self._process.monotonic()))

    def look(self) -> None:
        """Make a pass, and know when the next is due. One failure is not the end: it is said, and tried again.

        Raises ReplacedError where only a restart of this process can follow the work dir.
        """
        began_s = self._process.monotonic()
        try:
            again_s = self._pass()
        except ReplacedError:
            raise
        except Exception as failure:  # even a bug about one work dir must not be the end of the others
            self.failure, self.report = failure, None
            self._failures += 1
            again_s = back_off_s(self._failures)
            if isinstance(failure, CkptdError):
                self._say(logging.ERROR, str(failure))
            elif isinstance(failure, OSError):
                self._say(logging.WARNING, f"{_where(self.path, failure)}: {why(failure)}; will try again")
            elif self._failures == 1:
                log.exception("%s: a bug in ckptd; will try again", self.path)
        else:
            if self.failure is not None:
                self._say(logging.INFO, f"{self.path}: works again")
            self._voice.forget("look")
            self.failure, self._failures = None, 0
        next_s = self._interval_s if again_s is None else min(again_s, self._interval_s)
        now_s = self._process.monotonic()
        self._pace.done(now_s, now_s - began_s)
        self.due_s = now_s + next_s

    def rest(self, *, keep_lock: bool = True) -> None:
        """Let go of all that the next pass can read again, unless something is going on.

        At rest it costs a few hundred bytes and one descriptor, that of the lock: it is still owned.
        """
        reconciler = self._reconciler
        if reconciler is None or self.failure is not None or self._filling or not reconciler.can_rest:
            return
        self._reconciler = self._left_behind = self.report = None
        if not self._process.dry_run:
            self._announced = [], []
        reconciler.work.rest()
        if not keep_lock:
            reconciler.work.close()
        self._resting = reconciler.work

    def close(self) -> None:
        """Give up the lock and every descriptor."""
        self._source.forget(self.path)
        self._process.filter.forget(self.path)
        self._filling = frozenset()
        work = self._reconciler.work if self._reconciler is not None else self._resting
        self._reconciler = self._left_behind = self._resting = None
        if work is not None:
            work.close()

    def _pass(self) -> float | None:
        if not self._has_come_back():
            self._announced = [], []
            if self._source.misses(self.path):
                self._say(
                    logging.WARNING,
                    f"lost {self.path}: it, or .ckptd in it, was replaced or removed, or cannot be reached",
                )
            self.close()
            self._voice = Voice(self._label)  # what comes there next is another
        self._source.watch(self.path, self._filling)  # before the look, so that nothing falls between them
        met = self._reconciler is None
        if met:
            if not self._meet():
                return None
            self._source.watch(self.path)  # it may have come between the watch of its parent and the look for it
        assert self._reconciler is not None
        if is_ignored(self._reconciler.work.fd) or self._source.leaves_out(self.path):
            return self._empty_trash(self._reconciler.work)
        if self._left_behind is not None:
            self._left_behind, self._reconciler = None, self._made(self._reconciler.work)
        before = declared_at(self.path)
        if met or self._process.dry_run:
            survey = self._reconciler.survey()
            lines, would = self._summary(survey), list(will_happen(survey)) if self._process.dry_run else []
            if (lines, would) != self._announced:
                self._announced = lines, would
                for line in lines:
                    log.info("%s", line)
                for line in would:
                    self._voice.info("%s", line)
            if met:
                self._process.met()
                for advice in survey.advice:
                    self._voice.warning("%s", advice)
            self._warn_of_series(survey, aloud=not met)
            if self._process.dry_run:
                return 0.0 if self._heed(survey, before) else survey.settles_s
        if self.job_left is None:
            self.report = self._reconciler.reconcile()
        else:
            self.report = self._reconciler.reconcile_at_end(alone=not self.job_left)
        self._warn_of_series(self.report.survey)
        return 0.0 if self._heed(self.report.survey, before) else self.report.look_again_s

    def _has_come_back(self) -> bool:
        """Go on with the work dir as it was left, at rest or not; False if it is not that one any more."""
        work, self._resting = self._resting, None
        if work is None:
            return self._reconciler is None or self._reconciler.work.is_still_there()
        try:
            if work.is_still_there():
                work.wake()
                self._reconciler = self._made(work)
        finally:
            if self._reconciler is None:
                work.close()
        return self._reconciler is not None

    def _empty_trash(self, work: WorkDir) -> float | None:
        """All that is done for a work dir that is left out; returns after how many seconds to do it again.

        Raises RefusedError where it was named.
        """
        self.report = again_s = None
        if not self._process.dry_run:
            if self._left_behind is None:
                process = self._process
                self._left_behind = LeftBehind(
                    work, process.policy, process.background, clock=process.clock, voice=self._voice
                )
            again_s = self._left_behind.empty_trash()
        self._source.check_left_out(self.path)
        if again_s is None:
            self.close()
        return again_s

    def _summary(self, survey: Survey) -> list[str]:
        return [summary(survey, self.path, self._process.policy)] if self._source.announces(survey) else []

    def _heed(self, survey: Survey, before: Stamp | None) -> bool:
        """Ask for hints of what matters now; whether something is new whose content may have come meanwhile.

        before: what `declared_at` told before the survey.
        """
        self._process.filter.heed(self.path, Notable(self.path, self._process.policy, survey, before))
        self._filling = survey.filling
        return self._source.watch(self.path, self._filling)

    def _warn_of_series(self, survey: Survey, *, aloud: bool = True) -> None:
        """Say what saves have brought: a schedule that they contradict, or more and more beyond K."""
        for series in survey.plan.series:
            text, ignored = series.grid.template.text, series.grid.ignored
            if ignored is not None:
                said = ignored_text(series, survey.plan.memory)
                self._voice.once("ignored", said, of=text, news=ignored, aloud=aloud)
            beyond = functools.partial(beyond_text, series)
            self._voice.when_doubled("beyond", len(series.beyond), beyond, of=text, aloud=aloud)

    def _meet(self) -> bool:
        """Open the work dir if it is there by now."""
        work = self._source.open(self.path, waited=self._waited)
        self._waited = True
        if work is None:
            return False
        self.device = work.device
        try:
            self._interval_s = self._source.interval_s(work)
        except BaseException:
            work.close()
            raise
        self._reconciler = self._made(work)
        return True

    def _made(self, work: WorkDir) -> Reconciler:
        process = self._process
        return Reconciler(
            work, process.policy, process.background, reader=process.reader, clock=process.clock,
            stopping=process.stopping, voice=self._voice,
            expecting=functools.partial(process.filter.expect_gone, self.path), patience=self._patience,
        )  # fmt: skip

    def _say(self, level: int, text: str) -> None:
        """Log it, unless it was the last thing said: a wait of a week is one line."""
        self._voice.once("look", text, level=level)


def _where(path: str, error: OSError) -> str:
    name = error.filename if isinstance(error.filename, str) else ""
    return os.path.join(path, name) if name and not name.isdigit() else path
