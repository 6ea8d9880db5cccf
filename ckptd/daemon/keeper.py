"""One work dir over time, as `watch` sees it: waited for, met, looked after, lost, met again.

Knows when its next pass is due; the loop that calls it is service's.
"""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable

from ..core.policy import Policy
from ..core.survey import Survey
from ..disk.filesystem import SCAN_LOCAL_S, SCAN_NETWORK_S, is_local, is_read_only
from ..errors import CkptdError, ReplacedError, why

# What a pass may need only later: by then another version of it may have been installed.
from ..inspect import directories, lateness, metrics, unnamed  # noqa: F401
from ..passes import unrecognised  # noqa: F401
from ..passes.back_off import back_off_s
from ..passes.background import Background
from ..passes.patience import Patience
from ..passes.reading import Reader
from ..passes.reconcile import Reconciler, Report
from ..systemd import notify
from ..text.advice import beyond_text, ignored_text
from ..text.render import summary, will_happen
from ..text.voice import Voice
from ..workdir.workdir import WorkDir, become_owner, check_library_use
from .hints import Hints
from .notable import Notable, Stamp, declared_at

log = logging.getLogger("ckptd")


class Keeper:
    """Looks after the work dir at `path`, whether it is there or not.

    due_s: when the next pass is due, on the monotonic clock. report: the last pass. failure: why the last look was
    none, or None. job_left: set once the job has ended: whether it has left somebody behind who may still write.
    """

    def __init__(
        self,
        path: str,
        policy: Policy,
        *,
        watcher: Hints,
        background: Background,
        reader: Reader,
        stopping: Callable[[], bool] = lambda: False,
        dry_run: bool = False,
        scan_interval_s: float | None = None,
        label: str = "",
        on_met: Callable[[], None] = lambda: None,
        beside_job: Callable[[], bool] = lambda: False,
    ) -> None:
        self._on_met = on_met
        self.path, self.label, self.due_s = path, label, 0.0
        self._voice = Voice(label)
        self.report: Report | None = None
        self.failure: Exception | None = None
        self.job_left: bool | None = None
        self._policy, self._watcher = policy, watcher
        self._background, self._reader, self._stopping = background, reader, stopping
        self._dry_run, self._scan_interval_s = dry_run, scan_interval_s
        self._patience = Patience(beside_job)
        self._reconciler: Reconciler | None = None
        self._looked_for = False
        self._announced: tuple[list[str], list[str]] = [], []
        self._filling: frozenset[str] = frozenset()
        self._failures = 0
        self._interval_s = SCAN_LOCAL_S

    def look(self) -> None:
        """Make a pass, and know when the next is due. One failure is not the end: it is said, and tried again.

        Raises ReplacedError where only a restart of this process can follow the work dir.
        """
        try:
            again_s = self._pass()
        except ReplacedError:
            raise
        except Exception as failure:  # even a bug about one work dir must not be the end of the others
            self.failure = failure
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
        self.due_s = time.monotonic() + (self._interval_s if again_s is None else min(again_s, self._interval_s))

    def close(self) -> None:
        """Give up the lock and every descriptor."""
        self._watcher.forget(self.path)
        self._filling = frozenset()
        if self._reconciler is not None:
            self._reconciler.work.close()
            self._reconciler = None

    def _pass(self) -> float | None:
        if self._reconciler is not None and not self._reconciler.work.is_still_there():
            self._announced = [], []
            self._say_lost()
            self.close()
            self._voice = Voice(self.label)  # what comes there next is another
        self._watcher.watch(self.path, self._filling)  # before the look, so that nothing falls between them
        met = self._reconciler is None
        if met:
            if not self._meet():
                return None
            self._watcher.watch(self.path)  # it may have come between the watch of its parent and the look for it
        assert self._reconciler is not None
        before = declared_at(self.path)
        if met or self._dry_run:
            survey = self._reconciler.survey()
            lines, would = self._summary(survey), list(will_happen(survey)) if self._dry_run else []
            if (lines, would) != self._announced:
                self._announced = lines, would
                for line in lines:
                    log.info("%s", line)
                for line in would:
                    self._voice.info("%s", line)
            if met:
                self._on_met()
                for advice in survey.advice:
                    self._voice.warning("%s", advice)
            self._warn_of_series(survey, aloud=not met)
            if self._dry_run:
                return 0.0 if self._heed(survey, before) else survey.settles_s
        if self.job_left is None:
            self.report = self._reconciler.reconcile()
        else:
            self.report = self._reconciler.reconcile_at_end(alone=not self.job_left)
        self._warn_of_series(self.report.survey)
        return 0.0 if self._heed(self.report.survey, before) else self.report.look_again_s

    def _summary(self, survey: Survey) -> list[str]:
        return [summary(survey, self.path, self._policy)]

    def _say_lost(self) -> None:
        self._say(
            logging.WARNING, f"lost {self.path}: it, or .ckptd in it, was replaced or removed, or cannot be reached"
        )

    def _heed(self, survey: Survey, before: Stamp | None) -> bool:
        """Ask for hints of what matters now; whether something is new whose content may have come meanwhile.

        before: what `declared_at` told before the survey.
        """
        self._watcher.heed(self.path, Notable(self.path, self._policy, survey, before))
        self._filling = survey.filling
        return self._watcher.watch(self.path, self._filling)

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
        if not os.path.exists(self.path):
            if not self._looked_for:
                self._say(logging.INFO, f"waiting for {self.path}, which does not exist yet")
            self._looked_for = True
            return False
        become_owner([self.path])
        work = WorkDir(self.path)
        try:
            check_library_use(work)
            if is_read_only(work.fd) and self._looked_for and notify.under_systemd():
                raise ReplacedError(f"{self.path}: appeared after the start, and only a restart makes it writable")
            self._looked_for = True
            self._interval_s = self._scan_interval_s or (SCAN_LOCAL_S if is_local(work.fd) else SCAN_NETWORK_S)
        except BaseException:
            work.close()
            raise
        self._reconciler = self._made(work)
        return True

    def _made(self, work: WorkDir) -> Reconciler:
        return Reconciler(
            work, self._policy, self._background, reader=self._reader, stopping=self._stopping, voice=self._voice,
            expecting=functools.partial(self._watcher.expect_gone, self.path),
            patience=self._patience,
        )  # fmt: skip

    def _say(self, level: int, text: str) -> None:
        """Log it, unless it was the last thing said: a wait of a week is one line."""
        self._voice.once("look", text, level=level)


def _where(path: str, error: OSError) -> str:
    name = error.filename if isinstance(error.filename, str) else ""
    return os.path.join(path, name) if name and not name.isdigit() else path
