"""Hints that a work dir may have changed. Hints only: the disk is the truth, and a lost one delays, never decides.

The only import of watchdog. Where the system has no watches left, there are no hints, and scanning does it all.
"""

from __future__ import annotations

import errno
import logging
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path

from watchdog.events import (
    DirCreatedEvent,
    DirDeletedEvent,
    DirMovedEvent,
    FileClosedEvent,
    FileCreatedEvent,
    FileDeletedEvent,
    FileMovedEvent,
    FileSystemEvent,
    FileSystemEventHandler,
)
from watchdog.observers import Observer
from watchdog.observers.api import BaseObserver, ObservedWatch
from watchdog.observers.inotify_move_event_grouper import InotifyMoveEventGrouper

from .notable import Filter

# watchdog holds back what follows a file moved away, our own renames into the trash, for half a second, to pair it with
# its arrival. A hint needs no pairs.
InotifyMoveEventGrouper.delay = 0.0

# Asked of the kernel, so that the thousands of writes into one big file never wake this process.
_EVENTS: list[type[FileSystemEvent]] = [
    FileClosedEvent, FileMovedEvent, FileCreatedEvent, FileDeletedEvent,
    DirMovedEvent, DirCreatedEvent, DirDeletedEvent,
]  # fmt: skip

log = logging.getLogger("ckptd")


class Watcher:
    """Calls `hint(path)` from a thread of its own whenever something under a watched path changed."""

    def __init__(self, hint: Callable[[str], None], pointer: str) -> None:
        self._hint = hint
        self._filter = Filter(pointer)
        self._observer: BaseObserver | None = None
        self._watches: dict[str, dict[str, tuple[_Handler, ObservedWatch]]] = {}  # by path, then by the place watched
        self._said_full = False
        self._alarm = _Alarm(self)

    def watch(self, path: str, inside: Iterable[str] = ()) -> bool:
        """Watch `path` and, for its own fate, its parent; while it is missing, the nearest parent that exists.

        inside: names of directories in it whose own content is watched too. Returns whether something is watched now
        that was not: what has changed there since the caller last looked gave no hint.
        """
        there = os.path.isdir(path)
        places = {path, os.path.dirname(path)} if there else {str(next(p for p in Path(path).parents if p.is_dir()))}
        places.update(os.path.join(path, name) for name in inside)
        watched = self._watches.setdefault(path, {})
        for place in watched.keys() - places:
            self._unwatch(path, place)
        added = [place for place in sorted(places - watched.keys()) if self._schedule(path, place)]
        return bool(added)

    def _schedule(self, path: str, place: str) -> bool:
        handler = _Handler(self, path, path if len(place) < len(path) else None)
        try:
            if self._observer is None:
                self._observer = Observer()
                logging.getLogger("watchdog").addHandler(self._alarm)  # adding it again does nothing
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RuntimeWarning)  # watchdog's own, about directories that churn
                scheduled = self._observer.schedule(handler, place, event_filter=_EVENTS)
                if not self._observer.is_alive():
                    self._observer.start()
        except OSError as error:
            # Out of watches or instances (ENOSPC, EMFILE), or gone again: scanning goes on without.
            if error.errno != errno.ENOENT and not self._said_full:
                self._said_full = True
                log.warning("could not watch %s: %s; scanning instead (see %s)", place, error, limit_of(error))
            if self._observer is not None and not any(self._watches.values()):
                self._observer.stop()  # it has an inotify instance and a thread from the moment it was made
                self._observer = None
            return False
        self._watches[path][place] = handler, scheduled
        return True

    def forget(self, path: str) -> None:
        """Stop watching `path`."""
        for place in list(self._watches.get(path, ())):
            self._unwatch(path, place)
        self._watches.pop(path, None)
        self._filter.forget(path)

    def _unwatch(self, path: str, place: str) -> None:
        handler, scheduled = self._watches[path].pop(place)
        if self._observer is not None:
            try:
                self._observer.remove_handler_for_watch(handler, scheduled)
                if not any(scheduled == w for watched in self._watches.values() for _, w in watched.values()):
                    self._observer.unschedule(scheduled)
            except (KeyError, OSError) as error:
                log.debug("unwatched %s: %s", place, error)

    def heed(self, path: str, counts: Callable[[str], bool]) -> None:
        """From now on give hints of `path` only for names that count; until then for all of them."""
        self._filter.heed(path, counts)

    def expect_gone(self, path: str, names: set[str]) -> None:
        """Give no hint for the disappearance of the checkpoints `names` and their scores: it is our own doing."""
        self._filter.expect_gone(path, names)

    def is_alive(self) -> bool:
        """Whether hints still come, if any were promised."""
        return self._observer is None or self._observer.is_alive()

    def close(self) -> None:
        """Stop; what is under way ends first."""
        if self._observer is not None and self._observer.is_alive():
            self._observer.stop()
            self._observer.join()
        self._observer = None
        self._watches.clear()
        logging.getLogger("watchdog").removeHandler(self._alarm)

    def lost(self, text: str) -> None:
        """watchdog is in trouble, an overflowed queue most of all: whatever it lost, the disk still has."""
        log.debug("watchdog: %s; looking everywhere", text)
        for path in list(self._watches):
            self._hint(path)

    def changed(self, path: str, event: FileSystemEvent, only: str | None) -> None:
        """Decide whether an event is a hint; called by the observer's thread. `only`: all that counts in a parent."""
        went = [os.fsdecode(event.src_path)] if event.src_path else []
        came = [os.fsdecode(event.dest_path)] if event.dest_path else []
        if only is not None:
            if any(only == place or only.startswith(place + os.sep) for place in (*went, *came)):
                self._hint(path)
            return
        gone = event.event_type in ("deleted", "moved")
        if any(self._is_hint(path, p, gone) for p in went) or any(self._is_hint(path, p, False) for p in came):
            self._hint(path)

    def _is_hint(self, path: str, place: str, gone: bool) -> bool:
        parent, name = os.path.split(place)
        return parent != path or self._filter.is_hint(path, name, gone=gone)


def limit_of(error: OSError) -> str:
    """The kernel's limit that stands behind an error of inotify."""
    return "fs.inotify.max_user_instances" if error.errno == errno.EMFILE else "fs.inotify.max_user_watches"


class _Handler(FileSystemEventHandler):
    def __init__(self, watcher: Watcher, path: str, only: str | None) -> None:
        self._watcher, self._path, self._only = watcher, path, only

    def on_any_event(self, event: FileSystemEvent) -> None:
        self._watcher.changed(self._path, event, self._only)


class _Alarm(logging.Handler):
    """watchdog tells of lost events in its log only."""

    def __init__(self, watcher: Watcher) -> None:
        super().__init__(logging.WARNING)
        self._watcher = watcher

    def emit(self, record: logging.LogRecord) -> None:
        self._watcher.lost(record.getMessage())
