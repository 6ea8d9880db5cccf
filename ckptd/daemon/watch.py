"""Watches directories by name, whether they are there or not: a work dir that was named, or a root."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from .inotify import DirectoryWatch, Inotify
from .notable import Filter


class Watcher:
    """Calls `hint(path)`, from the thread of inotify, whenever something under a watched path changed.

    Any thread may call it.
    """

    def __init__(self, hint: Callable[[str], None], inotify: Inotify, filter_: Filter) -> None:
        self._hint, self._filter = hint, filter_
        self._watch = DirectoryWatch(inotify, self._changed, self._lost)
        self._lock = threading.Lock()
        # Both are changed under the lock, by single operations: the thread of inotify reads them without.
        self._places: dict[str, set[str]] = {}  # what is watched for a path
        self._paths: dict[str, frozenset[str]] = {}  # for which paths a place is watched

    def watch(self, path: str, inside: Iterable[str] = ()) -> bool:
        """Watch `path` and, for its own fate, its parent; while it is missing, the nearest parent that exists.

        inside: names of directories in it whose own content is watched too. Returns whether something is watched now
        that was not: what has changed there since the caller last looked gave no hint.
        """
        there = os.path.isdir(path)
        places = {path, os.path.dirname(path)} if there else {str(next(p for p in Path(path).parents if p.is_dir()))}
        places.update(os.path.join(path, name) for name in inside)
        new = self._want(path, places)
        # The fate of a parent matters to all that is waited for in it.
        added = {place for place in places if self._watch.add(place, follow=True, fate=place != path)}
        return any(place in self._watch for place in new | added)

    def forget(self, path: str) -> None:
        """Stop watching `path`."""
        self._want(path, set())

    def _want(self, path: str, places: set[str]) -> set[str]:
        """Note for what `path` is watched from now on, and watch the rest no more; returns what is new."""
        with self._lock:
            before = self._places.get(path, set())
            if places:
                self._places[path] = places
            else:
                self._places.pop(path, None)
            for place in places - before:
                self._paths[place] = self._paths.get(place, frozenset()) | {path}
            for place in before - places:
                left = self._paths[place] - {path}
                if left:
                    self._paths[place] = left
                else:
                    del self._paths[place]
                    self._watch.remove(place)
            return places - before

    # --- called by the thread of inotify ----------------------------------------------------------------------

    def _changed(self, place: str, name: str, is_dir: bool, gone: bool) -> None:
        for path in self._paths.get(place, ()):
            if not name or self._is_hint(path, place, name, gone=gone):
                self._hint(path)

    def _is_hint(self, path: str, place: str, name: str, *, gone: bool) -> bool:
        if place == path:
            return self._filter.is_hint(path, name, gone=gone)
        if f"{path}/".startswith(f"{place.rstrip('/')}/"):  # a parent, of which all else is no concern of ours
            return f"{path}/".startswith(f"{os.path.join(place, name)}/")
        return True

    def _lost(self) -> None:
        for path in list(self._places):
            self._hint(path)
