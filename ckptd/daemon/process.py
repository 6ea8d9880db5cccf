"""What all work dirs of one process share."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.policy import Policy
from ..passes.background import Background
from ..passes.reading import Reader
from .inotify import Inotify
from .notable import Filter


@dataclass(frozen=True)
class Process:
    """Made once, and handed to whoever needs any of it. Any thread may call what is in it.

    background: frees the trash, and reads contents for the reader. inotify, filter: tell of events, and which of them
    are hints. scan_interval_s: None for each file system's own. stopping: whether a pass had better come to an end;
    also a sign of life. beside_job: whether a job runs that we were started with. met: called when a work dir is met.
    clock, monotonic: the wall's, and the one that is never set.
    """

    policy: Policy
    background: Background
    reader: Reader
    inotify: Inotify
    filter: Filter
    dry_run: bool = False
    scan_interval_s: float | None = None
    stopping: Callable[[], bool] = lambda: False
    beside_job: Callable[[], bool] = lambda: False
    met: Callable[[], None] = lambda: None
    clock: Callable[[], int] = time.time_ns
    monotonic: Callable[[], float] = time.monotonic
