"""`ckptd watch` without a thread, a timer or a second of waiting: a test says what happens next, and in which order.

The events are the kernel's own, and wait here until they are delivered; so do the passes, what is asked of a lookout,
and the calls for the loop. The
clocks are where a test has set them.
"""

from __future__ import annotations

import contextlib
import os
import queue
import select
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path

from watchdog.observers.inotify_c import InotifyConstants as In
from watchdog.observers.inotify_c import InotifyEvent, InotifyFD

from ckptd.core.policy import Policy
from ckptd.daemon.inotify import Inotify
from ckptd.daemon.lookout import Lookout
from ckptd.daemon.loop import Loop
from ckptd.daemon.named import Named
from ckptd.daemon.notable import Filter
from ckptd.daemon.process import Process
from ckptd.passes.background import AtOnce, Background
from ckptd.passes.reading import Reader

SECOND = 10**9


class Unread(InotifyFD):
    """A reader without a thread."""

    def __init__(self) -> None:
        super().__init__()
        self._is_reading = False  # so that who closes it need not wait for the thread

    def join(self, timeout: float | None = None) -> None:
        pass


class Kernel(Inotify):
    """The kernel's events, handed out one by one, for as long as nobody says that they were lost."""

    def __init__(self) -> None:
        super().__init__()
        self.events: deque[InotifyEvent] = deque()
        self.alive = True

    def _opened(self) -> InotifyFD | None:
        if self._reader is None and not self._closed:
            self._reader, self.alive = Unread(), True
        return self._reader

    def is_alive(self) -> bool:
        return self._reader is None or self.alive

    def begin_anew(self) -> None:
        super().begin_anew()
        self.events.clear()

    def hear(self) -> int:
        """Take what the kernel has to tell; returns how many events wait."""
        if self._reader is not None and self.alive:
            fd = self._reader._inotify_fd
            while select.select([fd], [], [], 0)[0]:
                self.events.extend(self._reader.read_events())
        return len(self.events)

    def tell(self, count: int = 1) -> None:
        """Deliver the first of them."""
        for _ in range(min(count, self.hear())):
            self._reader.handle_event(self.events.popleft())

    def lose(self, *, silently: bool = False) -> None:
        """Lose those that wait, as where a queue is full; silently, as on a network file system."""
        if self.hear() and self._reader is not None:
            kept = [event for event in self.events if event.is_ignored]  # the kernel's bookkeeping is never lost
            self.events = deque(kept if silently else [InotifyEvent(-1, In.IN_Q_OVERFLOW, 0, b""), *kept])

    @property
    def watched(self) -> int:
        """How many watches the kernel has for us."""
        if self._reader is None:
            return 0
        return Path(f"/proc/self/fdinfo/{self._reader._inotify_fd}").read_text().count("inotify wd:")


class Hands(Background):
    """Does what it was asked for when it is told to: of each key one thing after the other."""

    def __init__(self, name: str, diary: list[str]) -> None:
        super().__init__()
        self.name, self._diary = name, diary
        self.asked: dict[str, deque[Callable[[], None]]] = {}
        self.hung: set[str] = set()  # keys of which nothing is done

    def submit(self, key: str, job: Callable[[], None], *, device: int) -> None:
        self.asked.setdefault(key, deque()).append(job)

    @property
    def ready(self) -> list[str]:
        """The keys for which something is to be done."""
        return [key for key in self.asked if key not in self.hung]

    def do(self, key: str) -> None:
        """Do the next thing of one key."""
        self._diary.append(f"{self.name} {os.path.basename(key)}")
        jobs = self.asked[key]
        job = jobs.popleft()
        if not jobs:
            del self.asked[key]
        job()

    def close(self, patience_s: float | None = None) -> bool:
        for key in list(self.asked):
            while key in self.asked and key not in self.hung:
                self.do(key)
        return not self.asked


class Watched:
    """One `ckptd watch`, over named work dirs or over what is below roots."""

    def __init__(
        self, policy: Policy, *, named: Sequence[Path] = (), roots: Sequence[Path] = (), scan_interval_s: float = 60.0
    ) -> None:
        self.now_s = 1000.0
        self.diary: list[str] = []
        self.kernel, self.ending = Kernel(), False
        self.pool = Hands("pass", self.diary)
        self.hands: list[Hands] = []
        background = AtOnce()
        process = Process(
            policy, background, Reader(background, wait=False), self.kernel, Filter(policy.pointer),
            scan_interval_s=scan_interval_s, stopping=lambda: self.ending, clock=self._clock,
            monotonic=lambda: self.now_s,
        )  # fmt: skip
        self.loop = Loop(process, queue.SimpleQueue(), self.pool)
        self.lookouts = [self._lookout(str(root), process) for root in roots]
        self.named = Named([str(path) for path in named], process, self.loop.hint) if named else None
        self.loop.begin(self.named, self.lookouts, None)
        self.code: int | None = None

    def _clock(self) -> int:
        return time.time_ns() + round((self.now_s - 1000.0) * SECOND)

    def _lookout(self, root: str, process: Process) -> Lookout:
        self.hands.append(Hands("look", self.diary))
        lookout = Lookout(
            root, process, look=lambda path: self.loop.hint(path, lookout), gone=self.loop.gone,
            walked=lambda: self.loop.has_looked(root), hand=self.hands[-1],
        )  # fmt: skip
        return lookout

    # --- one thing at a time --------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Let the loop do what it was called for, and what is due."""
        self.diary.append("turn")
        code = self.loop.turn(0.0)
        self.code = code if self.code is None else self.code

    def do(self, index: int) -> None:
        """Make one of the passes that are to be made, or of the looks that lookouts were asked for."""
        ready = [(hands, key) for hands in (self.pool, *self.hands) for key in hands.ready]
        if ready:
            hands, key = ready[index % len(ready)]
            hands.do(key)

    def settle(self) -> int:
        """Deliver and do everything until nothing is left; returns how many passes that took."""
        before = self.passes
        for _ in range(100_000):
            self.turn()
            if self.kernel.hear():
                self.kernel.tell()
            elif self.pool.ready or any(hands.ready for hands in self.hands):
                self.do(0)
            elif self.loop._inbox.empty() and self.loop.next_s() > 0:
                return self.passes - before
        raise AssertionError(f"it never rests: {self.diary[-20:]}")

    def signal(self, number: int) -> None:
        """Let a signal come."""
        self.loop._inbox.put(lambda: self.loop.obey(number))

    def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.now_s += seconds

    @property
    def passes(self) -> int:
        """How many were made."""
        return sum(entry.startswith("pass ") for entry in self.diary)

    def close(self) -> None:
        self.ending = True
        for lookout in self.lookouts:
            lookout.close()
        self.kernel.close()
        self.loop.crew.close(0.0)


def a_tick(place: Path) -> None:
    """Wait until the kernel gives what changes now another time than what changed before: some milliseconds."""
    probe = place / ".tick"
    before = os.stat(place).st_mtime_ns
    while True:
        probe.touch()
        now = os.stat(probe).st_mtime_ns
        with contextlib.suppress(FileNotFoundError):
            probe.unlink()
        if now > before:
            return


def keeper_paths(watched: Watched) -> set[str]:
    """The work dirs that are looked after."""
    return set(watched.loop.crew._tended)
