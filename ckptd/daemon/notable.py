"""Which events in a work dir are hints: those whose name can matter to a pass, and that are not our own doing.

One rule for whoever listens. In doubt it is a hint; what is held to be none and was one waits for the next scan.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterable

from ..core.finder import Finder
from ..core.keyed import names_from
from ..core.layouts import FIRST_CONTACT_POINTERS, TRACKERS
from ..core.policy import Policy
from ..core.schedule import DIRECTORY
from ..core.survey import Survey
from ..core.trackers import rows_of
from ..disk.descriptors import OWN_DIR, temporary_name
from ..inspect.scan import PIN_ENDING, SIDECAR_ENDING, TRAINER_STATE
from ..workdir.place import IGNORE

_TELLING = frozenset({*FIRST_CONTACT_POINTERS, TRAINER_STATE, IGNORE})
_OUR_TEMPORARY = tuple(temporary_name("*").split("*"))
# Two changes of a directory within one tick of the kernel's clock can bear one time.
_TICK_NS = 50 * 10**6
_NONE: tuple[frozenset[str], frozenset[str]] = frozenset(), frozenset()

Stamp = tuple[int, int, int]


class Notable:
    """Tells of a name in one work dir whether what happens to it asks for a pass, by what the last survey knew.

    declared_at: `declared_at` of the work dir from before that survey. Where a run has declared something since, any
    name can be a checkpoint's. Changes nothing when called, so any thread may.
    """

    __slots__ = ("_at", "_finders", "_links", "_path")  # of ten thousand work dirs

    def __init__(self, path: str, policy: Policy, survey: Survey, declared_at: Stamp | None) -> None:
        asked = bool(policy.templates or policy.layouts)  # then nothing that is declared is looked for
        self._path: str | None = None if asked else path
        self._at: Stamp | None = declared_at
        self._links = survey.links
        self._finders = _finders(policy, survey.named)

    def __call__(self, name: str) -> bool:
        head, tail = _OUR_TEMPORARY
        if name.startswith(head) and name.endswith(tail):
            return False
        if name in _TELLING or name in self._links or rows_of(name, TRACKERS):
            return True
        whose = name.removesuffix(SIDECAR_ENDING).removesuffix(PIN_ENDING)
        if any(finder.could_match(each) for finder in self._finders for each in {name, whose}):
            return True
        return self._path is not None and declared_at(self._path) != self._at


class Filter:
    """Tells of an event in a work dir whether it is a hint. Keepers tell it what they know, a watcher asks.

    Both do so from threads of their own: each field is changed by single operations on its entry of a work dir.
    """

    def __init__(self, pointer: str) -> None:
        name = os.path.basename(pointer)
        self._pointer = {name, temporary_name(name)}
        self._counts: dict[str, Callable[[str], bool]] = {}
        self._gone: dict[str, tuple[frozenset[str], frozenset[str]]] = {}  # of the last pass, and of the one before

    def heed(self, path: str, counts: Callable[[str], bool]) -> None:
        """From now on only names that count are hints of the work dir at `path`; until then all are."""
        self._counts[path] = counts

    def expect_gone(self, path: str, names: Iterable[str]) -> None:
        """That the checkpoints `names` disappear, and their scores, is our own doing.

        So is what the pass before was told of: the next can have begun before that is heard.
        """
        now, before = frozenset(names), self._gone.get(path, _NONE)[0]
        if now or before:
            self._gone[path] = now, before
        else:
            self._gone.pop(path, None)  # of ten thousand work dirs

    def forget(self, path: str) -> None:
        """Nothing is known of the work dir at `path` any more."""
        self._counts.pop(path, None)
        self._gone.pop(path, None)

    def is_ours(self, name: str) -> bool:
        """Whether this is what ckptd itself keeps in a work dir, or beside one."""
        return name in self._pointer or is_ours(name)

    def is_hint(self, path: str, name: str, *, gone: bool) -> bool:
        """Whether it is a hint that `name` came into the work dir at `path`, was written there, or is `gone`."""
        if self.is_ours(name):
            return gone and name == OWN_DIR  # which we never take away, and with it goes our lock
        if gone and any(name.removesuffix(SIDECAR_ENDING) in names for names in self._gone.get(path, _NONE)):
            return False
        counts = self._counts.get(path)
        return counts is None or counts(name)


def is_ours(name: str) -> bool:
    """Whether a directory with this name holds what ckptd itself keeps."""
    return name == OWN_DIR or name.startswith(f"{OWN_DIR}.")


def declared_at(path: str) -> Stamp | None:
    """What changes whenever a run declares something new in the work dir at `path`; None if none ever did."""
    parent, name = os.path.split(path)
    for own in (f"{path}/{OWN_DIR}", f"{parent}/{OWN_DIR}.{name}"):  # asked thousands of times a second in a storm
        try:
            info = os.stat(f"{own}/{DIRECTORY}")
        except OSError:
            continue
        if abs(time.time_ns() - info.st_mtime_ns) < _TICK_NS:
            return (info.st_ino, info.st_mtime_ns, time.monotonic_ns())  # like no other
        return (info.st_ino, info.st_mtime_ns, 0)
    return None


@functools.lru_cache(maxsize=64)
def _finders(policy: Policy, named: frozenset[str]) -> tuple[Finder, ...]:
    """What finds checkpoints here: nearly always the same for all work dirs, and shared by them."""
    shared = _finder(policy)
    more = [names_from(text) for text in sorted(named) if shared.series_of(text) is None]
    return (shared, Finder(more)) if more else (shared,)


@functools.lru_cache(maxsize=8)
def _finder(policy: Policy) -> Finder:
    return policy.finder()
