"""Watches of very many directories, each for itself, with one thread: what `watch --recursive` hears of the kernel.

Hints only, as in watch.py. watchdog's own recursive watch would also watch all that is inside checkpoints and our own
directories, and does not say which directories it could not watch.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Callable

from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchCallback, WatchDescriptor
from watchdog.observers.inotify_c import InotifyConstants as In

from .watch import limit_of

# Asked of the kernel, so that the thousands of writes into one big file never wake this process.
_MASK = In.IN_CLOSE_WRITE | In.IN_MOVED_FROM | In.IN_MOVED_TO | In.IN_CREATE | In.IN_DELETE | In.IN_ONLYDIR
_FATE = In.IN_DELETE_SELF | In.IN_MOVE_SELF

log = logging.getLogger("ckptd")


class DirectoryWatch(WatchCallback):
    """Calls `changed(directory, name, is_dir, gone)` from a thread of its own for what happens in the watched ones.

    The name is empty where it is the directory itself: no longer watched, or gone, if it was added with `fate`.
    lost: called when events were lost. Where the system has no watches left, `add` says so once and returns False:
    scanning does it there.
    """

    def __init__(self, changed: Callable[[str, str, bool, bool], None], lost: Callable[[], None]) -> None:
        self._changed, self._lost = changed, lost
        self._paths: dict[WatchDescriptor, str] = {}
        # The kernel has one watch for an inode. A directory that was moved has two paths here, until the old one goes.
        self._watches: dict[str, tuple[WatchDescriptor, CallbackId]] = {}
        self._inotify: InotifyFD | None = None
        self._ids = itertools.count()
        self._full = False

    def __contains__(self, path: str) -> bool:
        return path in self._watches

    def add(self, path: str, *, fate: bool = False) -> bool:
        """Watch a directory, no symlink followed; whether it is watched now. fate: also its own disappearance."""
        if path in self._watches:
            return True
        mask = _MASK | _FATE if fate else _MASK | In.IN_DONT_FOLLOW
        try:
            if self._inotify is None:
                self._inotify = InotifyFD()
                self._inotify.start()
            id_ = CallbackId(next(self._ids))
            wd = self._inotify.add_callback(os.fsencode(path), Mask(mask), self, id_)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if not self._full:
                self._full = True
                log.warning("could not watch %s: %s; scanning it, and all others that cannot be watched "
                            "(see %s)", path, error, limit_of(error))  # fmt: skip
            return False
        if wd < 0:
            return False  # not ours to read
        self._paths[wd], self._watches[path] = path, (wd, id_)
        return True

    def remove(self, path: str) -> None:
        """Watch a directory no more."""
        wd, id_ = self._watches.pop(path, (None, None))
        if wd is None or id_ is None:
            return
        if self._paths.get(wd) == path:
            del self._paths[wd]
        if self._inotify is not None:
            with contextlib.suppress(OSError):
                self._inotify.remove_callbacks([(wd, id_)])

    def is_alive(self) -> bool:
        """Whether hints still come, if any were promised."""
        return self._inotify is None or self._inotify.is_alive()

    def close(self) -> None:
        """Stop, and forget all watches."""
        inotify, self._inotify = self._inotify, None
        self._paths.clear()
        self._watches.clear()
        if inotify is not None:
            inotify.stop()
            inotify.join()

    # --- called by the thread of inotify ----------------------------------------------------------------------

    def on_event(self, event: InotifyEvent) -> None:
        """Something happened in a directory, or to it."""
        path = self._paths.get(event.wd)
        if path is None:
            return
        if event.is_delete_self or event.is_move_self:
            self._changed(path, "", True, True)
        elif event.name:
            gone = event.is_delete or event.is_moved_from
            self._changed(path, os.fsdecode(event.name), event.is_directory, gone)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The directory is gone, and its watch with it."""
        path = self._paths.pop(wd, None)
        if path is not None and self._watches.get(path, (None, None))[0] == wd:
            del self._watches[path]
            if self._inotify is not None:
                self._changed(path, "", True, False)  # another may be there by now, and is not watched

    def on_queue_overflow(self) -> None:
        """The kernel had more to tell than it could hold."""
        self._lost()
