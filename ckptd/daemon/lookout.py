"""Finds the work dirs below a root as they appear, and tells which may have changed. One thread, one tree.

A hint of the kernel concerns one directory, and only that is looked at. Now and then every known directory is asked for
its time of change, which finds what no hint told.
"""

from __future__ import annotations

import functools
import logging
import math
import os
import threading
from collections.abc import Callable, Iterable

from ..core.policy import name_test
from ..core.survey import Survey
from ..disk.descriptors import OWN_DIR, opened_dir
from ..disk.filesystem import SCAN_LOCAL_S, SCAN_NETWORK_S, is_local
from ..errors import why
from ..passes.background import Background
from ..workdir.place import IGNORE
from ..workdir.workdir import WorkDir, check_library_use, other_owner, others_text
from .exclude import idle
from .inotify import DirectoryWatch
from .process import Process
from .tree import Tree
from .watch import Watcher

_MOST_LEFT_OUT = 20  # that are said one by one
_EVERY_ONE_S = 3600.0  # what cannot be watched gets a whole pass so often, whatever its time of change says

log = logging.getLogger("ckptd")


class Lookout:
    """The source of the work dirs below `root`, which need not exist yet, no symlink between the two followed.

    look: told of a work dir that is new or may have changed. gone: told of one that is no more. walked: told once the
    tree was gone through for the first time. All are called by threads, and must not take long. exclude: as of Tree, by
    these `patterns`. hand: does one thing after the other, in a thread of its own.
    """

    def __init__(
        self,
        root: str,
        process: Process,
        *,
        look: Callable[[str], None],
        gone: Callable[[str], None],
        walked: Callable[[], None],
        exclude: Callable[[str], str] = lambda path: "",
        patterns: Iterable[str] = (),
        hand: Background | None = None,
    ) -> None:
        self.root = root
        self.scan_interval_s = process.scan_interval_s or SCAN_LOCAL_S  # written by the hand
        self._asked_interval_s = process.scan_interval_s
        self._look, self._gone, self._walked = look, gone, walked
        self._is_checkpoint = name_test(process.policy)
        self._filter = process.filter
        self._watch = DirectoryWatch(process.inotify, self._changed, self._lost)
        self._parent = Watcher(lambda _: self._ask(self._look_at, root), process.inotify, process.filter)
        self._hand = hand or Background(1, most=1, idle=False)
        self._stopping = threading.Event()
        # The hand's alone; others ask it for single entries.
        self._tree = Tree(
            root, self._is_checkpoint, exclude=exclude, on_look=self._on_look, on_gone=self._on_gone,
            on_trouble=self._on_trouble, clock=process.clock,
        )  # fmt: skip
        self._patterns = tuple(patterns)
        self._left_out: set[str] = set()  # of which that was said
        self._local = True
        self._said: set[str] = set()
        self._at = 0
        # Changed by the hand, read by the thread of inotify, by single operations.
        self._known: set[str] = set()
        # An entry of a work dir is changed by the pass over it, and read by both of those.
        self._filling: dict[str, set[str]] = {}
        # Anybody's, by single operations: what was asked of the hand, and whether it must distrust what it knows.
        self._pending: set[tuple[Callable[[str], None], str]] = set()
        self._events_lost = False
        self._left_alone: dict[str, object] = {}  # owners of whom that was said, by any pass

    @property
    def listed(self) -> int:
        """How many directories were listed so far."""
        return self._tree.listed

    # --- for the loop -------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to look."""
        self._ask(self._look_at, self.root)

    def look_again(self) -> None:
        """Ask every directory for its time of change, soon."""
        everything, self._events_lost = self._events_lost, False
        self._ask(self._look_everywhere if everything else self._look_around)

    def look_everywhere(self) -> None:
        """Look at everything as if for the first time, soon."""
        self._ask(self._look_everywhere)

    def then(self, call: Callable[[], None]) -> None:
        """Call `call` once all that was asked for so far is done."""
        self._hand.submit(self.root, call, device=0)

    def close(self) -> None:
        """Stop; what is under way is given a moment."""
        self._stopping.set()
        self._hand.close(1.0)

    # --- for the keepers, in the threads that make passes ---------------------------------------------------------

    def watch(self, path: str, inside: Iterable[str] = ()) -> bool:
        """Watch also the directories `inside` a work dir, which are being filled; whether one was not before."""
        wanted = {os.path.join(path, name) for name in inside}
        before = self._filling.get(path, set())
        if wanted:
            self._filling[path] = wanted
        else:
            self._filling.pop(path, None)
        for place in before - wanted:
            if place not in self._tree:
                self._watch.remove(place)
        added = {place for place in wanted if self._watch.add(place)}
        return bool(added)

    def forget(self, path: str) -> None:
        """Watch nothing inside `path` any more."""
        self.watch(path)

    def open(self, path: str, *, waited: bool) -> WorkDir | None:
        """Meet the work dir, unless it is gone again, or another user's."""
        if not os.path.lexists(path):
            return None  # and let go of as soon as that is noticed
        owner = other_owner(path)
        if owner is not None:
            first = object()
            if not self.leaves_out(path) and self._left_alone.setdefault(owner, first) is first:
                log.warning("%s", others_text(path, owner, self.root))
            return None
        work = WorkDir(path, below=self.root)
        try:
            check_library_use(work)
        except BaseException:
            work.close()
            raise
        return work

    def interval_s(self, work: WorkDir) -> float:
        """Infinite: the tree is looked at now and then, and tells of what has changed."""
        return math.inf

    def misses(self, path: str) -> bool:
        """Not one that is gone: that is told otherwise."""
        return os.path.lexists(path)

    def announces(self, survey: Survey) -> bool:
        """Only if it holds a checkpoint."""
        return bool(survey.plan.decisions)

    def leaves_out(self, path: str) -> bool:
        """Whether the tree knows it for left out, or a directory above it is by now: no event need have come yet."""
        return bool(self._tree.why_left_out(path)) or self._is_below_ignored(path)

    def check_left_out(self, path: str) -> None:
        """Nothing is said of one: its root was named."""

    def label(self, path: str) -> str:
        """Its path."""
        return path

    def device_of(self, path: str) -> int:
        """The number of the disk that it was found on."""
        return self._tree.device_of(path)

    def _is_below_ignored(self, path: str) -> bool:
        while path != self.root and (parent := os.path.dirname(path)) != path:
            path = parent
            if os.path.lexists(os.path.join(path, IGNORE)):
                return True
        return False

    # --- by the hand --------------------------------------------------------------------------------------------

    def _ask(self, do: Callable[[str], None], path: str = "") -> None:
        """Have the hand do it, unless it is about to."""
        task = do, path
        if task not in self._pending:
            self._pending.add(task)
            self._hand.submit(self.root, functools.partial(self._do, task), device=0)

    def _do(self, task: tuple[Callable[[str], None], str]) -> None:
        self._pending.discard(task)
        if not self._stopping.is_set():
            do, path = task
            do(path)

    def _forget(self, path: str) -> None:
        self._tree.forget(path)
        if path == self.root:
            self._look_at(path)

    def _look_everywhere(self, _: str) -> None:
        self._tree.distrust()
        self._look_around(_)

    def _look_around(self, _: str) -> None:
        if self.root in self._tree:
            for work_dir in self._tree.look_again():
                self._tell(work_dir)
            self._say_left_out()
            self._look_at_unwatched()
        if self.root not in self._tree:
            self._look_at(self.root)

    def _look_at(self, path: str) -> None:
        first = path == self.root and path not in self._tree
        if first:
            self._parent.watch(path)  # before the look, so that nothing falls between them
        for work_dir in self._tree.look(path):
            self._tell(work_dir)
            if self._stopping.is_set():
                return
        self._say_left_out(first=first)
        if not first:
            return
        if path not in self._tree:
            self._once("waiting", logging.INFO, f"waiting for {path}, which does not exist yet")
            self._walked()
            return
        self._parent.forget(path)
        with opened_dir(path) as fd:
            self._local = is_local(fd)
        self.scan_interval_s = self._asked_interval_s or (SCAN_LOCAL_S if self._local else SCAN_NETWORK_S)
        log.info("found %d work dirs in %d directories below %s", len(self._tree.work_dirs), len(self._tree), path)
        self._walked()

    def _look_at_unwatched(self) -> None:
        """Tell of a few of the work dirs of which no hint comes, so that each has its turn within an hour."""
        unheard = sorted(path for path in self._known if not self._local or path not in self._watch)
        count = math.ceil(len(unheard) * self.scan_interval_s / _EVERY_ONE_S)
        self._at = self._at if self._at < len(unheard) else 0
        for path in unheard[self._at : self._at + count]:
            self._look(path)
        self._at += count

    def _tell(self, work_dir: str) -> None:
        self._known.add(work_dir)
        self._look(work_dir)

    def _on_look(self, path: str) -> None:
        self._watch.add(path, follow=path == self.root, fate=path == self.root)

    def _on_gone(self, path: str) -> None:
        if path not in self._filling.get(os.path.dirname(path), ()):
            self._watch.remove(path)
        self._filter.forget(path)
        if path in self._known:
            self._known.discard(path)
            self._gone(path)

    def _on_trouble(self, path: str, error: OSError) -> None:
        self._once(path, logging.WARNING, f"could not look into {path}: {why(error)}; left out")

    def _say_left_out(self, *, first: bool = False) -> None:
        """Say of each directory that it is left out, and by what; and of a pattern that it leaves out none."""
        left_out = self._tree.left_out
        new = [f"left out {path} ({why})" for path, why in left_out.items() if path not in self._left_out]
        self._left_out = set(left_out)
        for line in new[:_MOST_LEFT_OUT]:
            log.info("%s", line)
        if new[_MOST_LEFT_OUT:]:
            log.info("left out %d more below %s", len(new) - _MOST_LEFT_OUT, self.root)
        if first and self.root in self._tree:
            for line in idle(self._patterns, left_out):
                log.warning("%s below %s", line, self.root)

    def _once(self, key: str, level: int, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.log(level, "%s", text)

    # --- called by the thread of inotify --------------------------------------------------------------------------

    def _changed(self, place: str, name: str, is_dir: bool, gone: bool) -> None:
        """Decide whom an event concerns: a work dir, or the directory in which there may be one now."""
        if not name:
            self._ask(self._forget if gone else self._look_at, place)
            return
        if self._filter.is_ours(name):
            if place in self._known:
                if self._filter.is_hint(place, name, gone=gone):
                    self._look(place)
            elif name == OWN_DIR and not gone:
                self._ask(self._look_at, place)
            return
        if name == IGNORE:
            self._ask(self._look_at, place)
        if is_dir:
            self._ask(self._forget if gone else self._look_at, os.path.join(place, name))
        if place in self._known:
            if self._filter.is_hint(place, name, gone=gone):
                self._look(place)
        elif not gone and self._is_checkpoint(name, is_dir):
            self._ask(self._look_at, place)
        parent, own_name = os.path.split(place)
        filling = place in self._filling.get(parent, ())
        if filling or (parent in self._known and self._is_checkpoint(own_name, True)):
            self._look(parent)
            if place in self._tree:
                self._ask(
                    self._look_at, place
                )  # it may by now be known as a checkpoint, and needs no more looking into

    def _lost(self) -> None:
        """Look at what has changed at once, and at everything when it is time: a storm may go on and on."""
        self._events_lost = True
        self._ask(self._look_around)
