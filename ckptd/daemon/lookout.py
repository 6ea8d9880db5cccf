"""Finds the work dirs below a root as they appear, and tells which may have changed. One thread, one tree.

A hint of the kernel concerns one directory, and only that is looked at. Now and then every known directory is asked for
its time of change, which finds what no hint told.
"""

from __future__ import annotations

import logging
import math
import os
import queue
import threading
from collections.abc import Callable, Iterable

from ..core.policy import Policy
from ..disk.descriptors import OWN_DIR, opened_dir
from ..disk.filesystem import SCAN_LOCAL_S, SCAN_NETWORK_S, is_local
from ..errors import why
from .inotify import DirectoryWatch, Inotify
from .notable import Filter
from .tree import Tree, name_test
from .watch import Watcher

_EVERY_ONE_S = 3600.0  # what cannot be watched gets a whole pass so often, whatever its time of change says

log = logging.getLogger("ckptd")


class Lookout:
    """Looks out below `root`, which need not exist yet.

    look: told of a work dir that is new or may have changed. gone: told of one that is no more. walked: told once the
    tree was gone through for the first time. All are called by threads, and must not take long. To the keepers of what
    it finds it is their watcher.
    """

    def __init__(
        self,
        root: str,
        policy: Policy,
        *,
        look: Callable[[str], None],
        gone: Callable[[str], None],
        walked: Callable[[str, int, int], None],
        scan_interval_s: float | None = None,
    ) -> None:
        self.root = root
        self.scan_interval_s = scan_interval_s or SCAN_LOCAL_S
        self._asked_interval_s, self._local = scan_interval_s, True
        self._look, self._gone, self._walked = look, gone, walked
        self._is_checkpoint = name_test(policy)
        self._filter = Filter(policy.pointer)
        self._inotify = Inotify()
        self._watch = DirectoryWatch(self._inotify, self._changed, self._lost)
        self._parent = Watcher(lambda _: self._put("look", root), policy.pointer, self._inotify)
        self._tree = Tree(
            root, self._is_checkpoint, on_look=self._on_look, on_gone=self._on_gone, on_trouble=self._on_trouble
        )
        self._known: set[str] = set()
        self._filling: dict[str, set[str]] = {}
        self._said: set[str] = set()
        self._events_lost = False
        self._at = 0
        self._calls: list[Callable[[], None]] = []
        self._tasks: queue.SimpleQueue[tuple[str, str] | None] = queue.SimpleQueue()
        self._pending: set[tuple[str, str]] = set()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ckptd-lookout", daemon=True)

    @property
    def listed(self) -> int:
        """How many directories were listed so far."""
        return self._tree.listed

    def device_of(self, path: str) -> int:
        """The number of the disk that a work dir is on, as far as is known: nothing is asked."""
        return self._tree.device_of(path)

    def start(self) -> None:
        """Begin to look."""
        self._put("look", self.root)
        self._thread.start()

    def look_again(self) -> None:
        """Ask every directory for its time of change, soon."""
        everything = self._events_lost or not self._inotify.is_alive()
        self._events_lost = False
        self._put("all" if everything else "again")

    def look_everywhere(self) -> None:
        """Look at everything as if for the first time, soon."""
        self._put("all")

    def then(self, call: Callable[[], None]) -> None:
        """Call `call` once all that was asked for so far is done."""
        self._calls.append(call)
        self._tasks.put(("call", ""))

    def close(self) -> None:
        """Stop; what is under way is given a moment."""
        self._stopping.set()
        self._tasks.put(None)
        self._inotify.close()
        if self._thread.is_alive():
            self._thread.join(1.0)

    # --- for the keepers ----------------------------------------------------------------------------------------

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
        """Watch nothing inside `path` any more, and take every name in it for one that counts."""
        self.watch(path)
        self._filter.forget(path)

    def heed(self, path: str, counts: Callable[[str], bool]) -> None:
        """From now on give hints of `path` only for names that count; until then for all of them."""
        self._filter.heed(path, counts)

    def expect_gone(self, path: str, names: set[str]) -> None:
        """Give no hint for the disappearance of the checkpoints `names` and their scores: it is our own doing."""
        self._filter.expect_gone(path, names)

    # --- in the thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            task = self._tasks.get()
            if task is None:
                return
            self._pending.discard(task)
            try:
                self._do(*task)
            except Exception:  # what comes next is not to blame
                log.exception("could not look below %s: this is a bug in ckptd", self.root)

    def _do(self, what: str, path: str) -> None:
        if what == "call":
            self._calls.pop(0)()
        elif what == "gone":
            self._tree.forget(path)
            if path == self.root:
                self._look_at(path)
        elif what == "look":
            self._look_at(path)
        else:
            if what == "all":
                self._tree.distrust()
            if not self._inotify.is_alive():
                log.warning("the watcher died; started another")
                self._inotify.close()
            for work_dir in self._tree.look_again():
                self._tell(work_dir)
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
        if not first:
            return
        if path not in self._tree:
            self._once("waiting", logging.INFO, f"waiting for {path}, which does not exist yet")
            self._walked(path, 0, 0)
            return
        self._parent.forget(path)
        with opened_dir(path) as fd:
            self._local = is_local(fd)
        self.scan_interval_s = self._asked_interval_s or (SCAN_LOCAL_S if self._local else SCAN_NETWORK_S)
        self._walked(path, len(self._known), len(self._tree))

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

    def _once(self, key: str, level: int, text: str) -> None:
        if key not in self._said:
            self._said.add(key)
            log.log(level, "%s", text)

    # --- called by the thread of inotify --------------------------------------------------------------------------

    def _changed(self, place: str, name: str, is_dir: bool, gone: bool) -> None:
        """Decide whom an event concerns: a work dir, or the directory in which there may be one now."""
        if not name:
            self._put("gone" if gone else "look", place)
            return
        if self._filter.is_ours(name):
            if place in self._known:
                if self._filter.is_hint(place, name, gone=gone):
                    self._look(place)
            elif name == OWN_DIR and not gone:
                self._put("look", place)
            return
        if is_dir:
            self._put("gone" if gone else "look", os.path.join(place, name))
        if place in self._known:
            if self._filter.is_hint(place, name, gone=gone):
                self._look(place)
        elif not gone and self._is_checkpoint(name, is_dir):
            self._put("look", place)
        parent, own_name = os.path.split(place)
        filling = place in self._filling.get(parent, ())
        if filling or (parent in self._known and self._is_checkpoint(own_name, True)):
            self._look(parent)
            if place in self._tree:
                self._put("look", place)  # it may by now be known as a checkpoint, and needs no more looking into

    def _lost(self) -> None:
        """Look at what has changed at once, and at everything when it is time: a storm may go on and on."""
        self._events_lost = True
        self._put("again")

    def _put(self, what: str, path: str = "") -> None:
        task = what, path
        if task not in self._pending:
            self._pending.add(task)
            self._tasks.put(task)
