"""The keepers of all work dirs, and the threads that make their passes.

First come, first served; of one work dir one pass at a time, and of one disk only a few, so that one that hangs holds
up no other.
"""

from __future__ import annotations

import functools
import heapq
import logging
import math
import resource
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from ..errors import ReplacedError
from ..passes.background import Background
from .keeper import Keeper
from .process import Process
from .source import Source

AT_ONCE = 4  # passes on one disk
_MOST_AWAKE = 64  # work dirs of which all is kept in memory: those in which something happened last
_SPARE_DESCRIPTORS = 512

log = logging.getLogger("ckptd")


@dataclass(eq=False, slots=True)
class _Tended:
    """A work dir that is looked after.

    under_way: how many passes were asked for and are not over. hinted: whether there was a hint since one began.
    """

    keeper: Keeper
    under_way: int = 0
    hinted: bool = False


class Crew:
    """Looks after work dirs. pool: makes the passes. tell: takes calls for the loop's thread. looked: told there of a
    pass that is over.

    All of it is the loop's thread's alone, but for what passes do: they take their work dir from those that wait, and
    put what comes after them into `tell`.
    """

    def __init__(
        self,
        process: Process,
        pool: Background,
        *,
        tell: Callable[[Callable[[], None]], None],
        looked: Callable[[str], None],
    ) -> None:
        self._process, self._pool, self._tell, self._looked = process, pool, tell, looked
        self._tended: dict[str, _Tended] = {}
        self._waiting: set[_Tended] = set()  # a pass is to come; a pass takes out its own, by a single operation
        self._passes = 0  # asked for and not over
        self._due: list[tuple[float, str]] = []
        self._awake: OrderedDict[str, None] = OrderedDict()
        self._said_locks = False  # any pass's
        self._job_left: bool | None = None

    @functools.cached_property
    def _most_locks(self) -> int:
        """Asked when the first one rests: a job that is started beside us should not have our limit."""
        return _most_descriptors() - _SPARE_DESCRIPTORS

    def __len__(self) -> int:
        return len(self._tended)

    def __getitem__(self, path: str) -> Keeper:
        return self._tended[path].keeper

    @property
    def failing(self) -> int:
        """How many work dirs cannot be looked after."""
        return sum(tended.keeper.failure is not None for tended in self._tended.values())

    @property
    def is_idle(self) -> bool:
        """Whether no pass is under way, nor waits for contents to be read."""
        reports = (self._tended[path].keeper.report for path in self._awake if path in self._tended)
        return not self._passes and not any(report is not None and report.waits for report in reports)

    @property
    def is_all_under_way(self) -> bool:
        """Whether there is no work dir without a pass that is to end."""
        return all(tended.under_way for tended in self._tended.values())

    def next_s(self) -> float:
        """Seconds until a pass is due."""
        return self._due[0][0] - self._process.monotonic() if self._due else math.inf

    def hint(self, path: str, source: Source | None) -> None:
        """A work dir may have changed: have a pass made over it, when it is its turn. source: as for `look`."""
        tended = self._tended.get(path)
        if tended is None or self._job_left is not None:
            self.look(path, source)
        elif tended in self._waiting:
            pass  # that pass will see it
        elif tended.under_way:
            tended.hinted = True
        else:
            before_s = tended.keeper.due_s
            tended.keeper.hint()
            if tended.keeper.due_s < before_s:
                heapq.heappush(self._due, (tended.keeper.due_s, path))

    def look(self, path: str, source: Source | None = None) -> int:
        """Make a pass over a work dir, soon; returns how many are to end until one has seen what is there now.

        Without a source: only if it is looked after already.
        """
        tended = self._tended.get(path)
        if tended is None:
            if source is None:
                return 0
            tended = self._tended[path] = _Tended(Keeper(path, self._process, source))
        tended.keeper.job_left = self._job_left
        if tended not in self._waiting:
            self._waiting.add(tended)
            tended.under_way += 1
            self._passes += 1
            self._pool.submit(path, functools.partial(self._pass, tended), device=tended.keeper.device)
        return tended.under_way

    def look_at_due(self) -> None:
        """Make the passes that are due."""
        while self._due and self._due[0][0] <= self._process.monotonic():
            due_s, path = heapq.heappop(self._due)
            if path in self._tended and self._tended[path].keeper.due_s == due_s:
                self.look(path)

    def finish(self, *, job_left: bool) -> None:
        """The job has ended: make the passes that something waits for, and all others too as those after it."""
        self._job_left = job_left
        for path, tended in self._tended.items():
            if tended.keeper.due_s < math.inf or tended.under_way:
                self.look(path)

    def let_go(self, path: str) -> None:
        """A work dir is gone: so is its keeper. One that comes again has its own."""
        tended = self._tended.pop(path, None)
        self._awake.pop(path, None)
        if tended is not None:
            log.info("%s is gone; let go of it", path)
            self._pool.submit(path, tended.keeper.close, device=tended.keeper.device)

    def close(self, patience_s: float) -> None:
        """End the passes under way; what is left of the rest is taken up by the next start."""
        if self._pool.close(patience_s):
            for tended in self._tended.values():
                tended.keeper.close()

    def _pass(self, tended: _Tended) -> None:
        self._waiting.discard(tended)  # from here on a hint asks for another
        failure: ReplacedError | None = None
        try:
            if not self._process.stopping():
                tended.keeper.look()
                if len(self._waiting) > _MOST_AWAKE:
                    self._rest(tended.keeper)  # so many wait that its next turn is far
        except ReplacedError as error:
            failure = error
        finally:
            self._tell(functools.partial(self._is_over, tended, failure))

    def _is_over(self, tended: _Tended, failure: ReplacedError | None) -> None:
        """Know when the next pass is due, and let those rest in which nothing has happened for longest."""
        if failure is not None:
            raise failure
        tended.under_way -= 1
        self._passes -= 1
        keeper, path = tended.keeper, tended.keeper.path
        if self._tended.get(path) is not tended:
            return
        if keeper.due_s < math.inf:
            heapq.heappush(self._due, (keeper.due_s, path))
        if tended.hinted and not tended.under_way:
            tended.hinted = False
            self.hint(path, None)
        self._awake[path] = None
        self._awake.move_to_end(path)
        while len(self._awake) > _MOST_AWAKE:
            longest, _ = self._awake.popitem(last=False)
            if longest in self._tended and not self._tended[longest].under_way:
                self._rest(self._tended[longest].keeper)
        self._looked(path)

    def _rest(self, keeper: Keeper) -> None:
        """Put a keeper to rest of which no pass is under way, but perhaps the one that calls."""
        keep_lock = len(self._tended) < self._most_locks
        if not keep_lock and not self._said_locks:
            self._said_locks = True
            log.warning("more work dirs than files may be open: those at rest are not locked against another ckptd "
                        "(see LimitNOFILE= in systemd.exec, or ulimit -Hn)")  # fmt: skip
        keeper.rest(keep_lock=keep_lock)


def _most_descriptors() -> int:
    """How many files may be open, once we have asked for as many as we may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard if hard != resource.RLIM_INFINITY else 1 << 20
