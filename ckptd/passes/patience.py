"""When `watch` lets a changed max_keep act on a run that saves no more: docs/design.md, section 3. Looks, never writes.

Until then the run may be about to save, or to resume from something that K newer ones make superfluous.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from ..core.checkpoint import State
from ..core.plan import SeriesPlan
from ..disk.in_use import holder_of_files

_GRACE_S = 10.0  # for a job that is started together with us
_HELD_AGAIN_S = 60.0


class Patience:
    """Knows since when something of one work dir waits. beside_job: whether a job runs that we were started with."""

    def __init__(self, beside_job: Callable[[], bool] = lambda: False) -> None:
        self._beside_job = beside_job
        self._since_s: float | None = None

    def ended(self, waiting: Sequence[SeriesPlan], *, dir_fd: int, now_ns: int) -> tuple[frozenset[str], float | None]:
        """The series, of those that wait, that have ended; and after how many seconds to ask again, if that may help.

        One has ended that was quiet for as long as its plan says, while no process has a file of the run open.
        """
        if not waiting:
            self._since_s = None
            return frozenset(), None
        now_s = time.monotonic()
        self._since_s = now_s if self._since_s is None else self._since_s
        if self._beside_job():
            return frozenset(), None
        grace_s = self._since_s + _GRACE_S - now_s
        left_s = {}
        for series in waiting:
            quiet_from_ns = series.grid.quiet_from_ns
            in_flight = any(d.checkpoint.state is State.IN_FLIGHT for d in series.decisions)
            if quiet_from_ns is not None and not in_flight:  # else a save is what it waits for
                left_s[series.grid.template.text] = max(grace_s, (quiet_from_ns - now_ns) / 1e9)
        ended = frozenset(text for text, seconds in left_s.items() if seconds <= 0)
        if ended and holder_of_files(dir_fd=dir_fd) is not None:
            return frozenset(), _HELD_AGAIN_S
        return ended, min((seconds for seconds in left_s.values() if seconds > 0), default=None)
