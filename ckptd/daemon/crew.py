"""The keepers of all work dirs below some roots, and the threads that make their passes.

First come, first served; of one work dir one pass at a time, and of one disk only a few, so that one that hangs holds
up no other.
"""

from __future__ import annotations

import functools
import heapq
import logging
import math
import resource
import time
from collections import OrderedDict
from collections.abc import Callable

from ..core.policy import Policy
from ..passes.background import Background
from ..passes.reading import Reader
from ..workdir.workdir import others_text
from .found import FoundKeeper
from .lookout import Lookout

_AT_ONCE = 4  # passes on one disk
_MOST_AWAKE = 64  # work dirs of which all is kept in memory: those in which something happened last
_SPARE_DESCRIPTORS = 512

log = logging.getLogger("ckptd")


class Crew:
    """Looks after what `lookouts` find. tell: called by threads with "looked" and a path, after each pass."""

    def __init__(
        self,
        lookouts: dict[str, Lookout],
        policy: Policy,
        *,
        tell: Callable[[str, str], None],
        stopping: Callable[[], bool],
        on_met: Callable[[], None],
        beside_job: Callable[[], bool],
        dry_run: bool,
    ) -> None:
        self._lookouts, self._policy, self._tell = lookouts, policy, tell
        self._stopping, self._on_met, self._beside_job, self._dry_run = stopping, on_met, beside_job, dry_run
        self._background, self._pool = Background(), Background(_AT_ONCE, idle=False)
        self._reader = Reader(self._background, wait=False, on_answer=lambda path: tell("changed", path))
        self._keepers: dict[str, FoundKeeper] = {}
        self._queued: set[str] = set()  # a pass is to come
        self._under_way: dict[str, int] = {}  # how many were asked for and have not told yet
        self._due: list[tuple[float, str]] = []
        self._awake: OrderedDict[str, None] = OrderedDict()
        self._others: set[str] = set()
        self._most_locks = _most_descriptors() - _SPARE_DESCRIPTORS
        self._said_locks = False
        self._job_left: bool | None = None

    def __len__(self) -> int:
        return len(self._keepers)

    @property
    def failing(self) -> int:
        """How many work dirs cannot be looked after."""
        return sum(keeper.failure is not None for keeper in self._keepers.values())

    @property
    def is_idle(self) -> bool:
        """Whether no pass is under way, nor waits for contents to be read."""
        reports = (self._keepers[path].report for path in self._awake if path in self._keepers)
        return not self._under_way and not any(report is not None and report.waits for report in reports)

    def next_s(self) -> float:
        """Seconds until a pass is due."""
        return self._due[0][0] - time.monotonic() if self._due else math.inf

    def look(self, path: str) -> None:
        """Make a pass over a work dir, soon."""
        if path not in self._keepers:
            root = self._root_of(path)
            self._keepers[path] = FoundKeeper(
                path, self._policy, root=root, device=self._lookouts[root].device_of(path),
                leave_alone=self._leave_alone, watcher=self._lookouts[root], background=self._background,
                reader=self._reader, stopping=self._stopping, dry_run=self._dry_run, on_met=self._on_met,
                beside_job=self._beside_job,
            )  # fmt: skip
        self._keepers[path].job_left = self._job_left
        if path not in self._queued:
            self._queued.add(path)
            self._under_way[path] = self._under_way.get(path, 0) + 1
            keeper = self._keepers[path]
            self._pool.submit(path, functools.partial(self._pass, path, keeper), device=keeper.device)

    def looked(self, path: str) -> None:
        """A pass is over: know when the next is due, and let those rest in which nothing has happened for longest."""
        left = self._under_way.get(path, 1) - 1
        if left:
            self._under_way[path] = left
        else:
            self._under_way.pop(path, None)
        keeper = self._keepers.get(path)
        if keeper is None:
            return
        if keeper.due_s < math.inf:
            heapq.heappush(self._due, (keeper.due_s, path))
        self._awake[path] = None
        self._awake.move_to_end(path)
        while len(self._awake) > _MOST_AWAKE:
            self._put_to_rest(self._awake.popitem(last=False)[0])

    def look_at_due(self) -> None:
        """Make the passes that are due."""
        while self._due and self._due[0][0] <= time.monotonic():
            due_s, path = heapq.heappop(self._due)
            keeper = self._keepers.get(path)
            if keeper is not None and keeper.due_s == due_s:
                self.look(path)

    def finish(self, *, job_left: bool) -> None:
        """The job has ended: make the passes that something waits for, and all others too as those after it."""
        self._job_left = job_left
        for path, keeper in self._keepers.items():
            if keeper.due_s < math.inf or path in self._under_way:
                self.look(path)

    def let_go(self, path: str) -> None:
        """A work dir is gone: so is its keeper."""
        keeper = self._keepers.pop(path, None)
        self._awake.pop(path, None)
        self._queued.discard(path)  # that pass would be the old keeper's: one that comes again needs its own
        if keeper is not None:
            log.info("%s is gone; let go of it", path)
            self._pool.submit(path, keeper.close, device=keeper.device)

    def close(self, patience_s: float) -> None:
        """End the passes under way; what is left of the rest is taken up by the next start."""
        if self._pool.close(patience_s):
            for keeper in self._keepers.values():
                keeper.close()
        self._background.close(patience_s)

    def _root_of(self, path: str) -> str:
        return max((root for root in self._lookouts if _is_below(path, root)), key=len)

    def _pass(self, path: str, keeper: FoundKeeper) -> None:
        self._queued.discard(path)  # from here on a hint asks for another
        try:
            if not self._stopping():
                keeper.look()
                if len(self._queued) > _MOST_AWAKE:
                    self._rest(keeper)  # so many wait that its next turn is far
        finally:
            self._tell("looked", path)

    def _put_to_rest(self, path: str) -> None:
        keeper = self._keepers.get(path)
        if keeper is not None and path not in self._under_way:
            self._rest(keeper)

    def _rest(self, keeper: FoundKeeper) -> None:
        """Put a keeper to rest of which no pass is under way, but perhaps the one that calls."""
        keep_lock = len(self._keepers) < self._most_locks
        if not keep_lock and not self._said_locks:
            self._said_locks = True
            log.warning("more work dirs than files may be open: those at rest are not locked against another ckptd "
                        "(see LimitNOFILE= in systemd.exec, or ulimit -Hn)")  # fmt: skip
        keeper.rest(keep_lock=keep_lock)

    def _leave_alone(self, path: str, owner: str) -> None:
        if owner not in self._others:
            self._others.add(owner)
            log.warning("%s", others_text(path, owner, self._root_of(path)))


def _is_below(path: str, root: str) -> bool:
    return path == root or path.startswith(root.rstrip("/") + "/")


def _most_descriptors() -> int:
    """How many files may be open, once we have asked for as many as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
