"""How often to do what is asked for again and again: at once first, then at a bounded rate.

Pure: it is told the time and says when. It has no clock, no timer and no thread.
"""

from __future__ import annotations

import math


class Pace:
    """Spaces out something that takes time, such as the passes over one work dir.

    share: how much of the time it may take in the long run. burst_s: how much it may take beyond that, after a calm.
    most_s: how long it is put off at the longest; so what takes long takes more than its share.
    """

    __slots__ = ("_ahead_s", "_from_s", "_most_s", "_share")  # of ten thousand work dirs

    def __init__(self, share: float, burst_s: float, most_s: float) -> None:
        self._share, self._ahead_s, self._most_s = share, burst_s / share, most_s
        self._from_s = -math.inf

    def due_s(self, now_s: float) -> float:
        """When it may be done next, if it is asked for now."""
        return max(now_s, self._from_s)

    def done(self, ended_s: float, took_s: float) -> None:
        """Note that it was done, and what it took."""
        paid_s = max(self._from_s, ended_s - took_s - self._ahead_s) + took_s / self._share
        self._from_s = min(paid_s, ended_s + self._most_s)
