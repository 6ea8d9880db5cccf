"""One work dir among many that were found below a root: it rests while nothing happens in it.

At rest it costs a few hundred bytes and one descriptor, that of the lock: it is still owned. All else is read again.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from typing import Any

from ..core.policy import Policy
from ..core.survey import Survey
from ..text.voice import Voice
from ..workdir.workdir import WorkDir, check_library_use, other_owner
from .keeper import Keeper

log = logging.getLogger("ckptd")


class FoundKeeper(Keeper):
    """A keeper of a work dir below `root`, no symlink between the two followed.

    due_s: infinite while nothing is due: who has found it tells when something may have changed.
    leave_alone: told of the work dir and its owner, where that is another user. device: the number of the disk that
    it was found on.
    """

    def __init__(
        self, path: str, policy: Policy, *, root: str, device: int, leave_alone: Callable[[str, str], None], **more: Any
    ) -> None:
        super().__init__(path, policy, label=path, **more)
        self.device = device
        self._root, self._leave_alone = root, leave_alone
        self._resting: WorkDir | None = None
        self._interval_s = math.inf

    def rest(self, *, keep_lock: bool = True) -> None:
        """Let go of all that the next pass can read again, unless something is going on."""
        reconciler = self._reconciler
        if reconciler is None or self.failure is not None or self._filling or not reconciler.can_rest:
            return
        self._reconciler = self.report = None
        if not self._dry_run:
            self._announced = [], []
        reconciler.work.rest()
        if not keep_lock:
            reconciler.work.close()
        self._resting = reconciler.work

    def close(self) -> None:
        """Give up the lock and every descriptor."""
        super().close()
        if self._resting is not None:
            self._resting.close()
            self._resting = None

    def _pass(self) -> float | None:
        if self._resting is not None:
            work, self._resting = self._resting, None
            try:
                if work.is_still_there():
                    work.wake()
                    self._reconciler = self._made(work)
            finally:
                if self._reconciler is None:
                    self._voice = Voice(self.label)
                    work.close()
        return super()._pass()

    def _meet(self) -> bool:
        if not os.path.lexists(self.path):
            return False  # gone again, and let go of as soon as that is noticed
        owner = other_owner(self.path)
        if owner is not None:
            self._leave_alone(self.path, owner)
            return False
        work = WorkDir(self.path, below=self._root)
        try:
            check_library_use(work)
        except BaseException:
            work.close()
            raise
        self._reconciler = self._made(work)
        return True

    def _summary(self, survey: Survey) -> list[str]:
        return super()._summary(survey) if survey.plan.decisions else []

    def _say_lost(self) -> None:
        if os.path.lexists(self.path):
            super()._say_lost()
