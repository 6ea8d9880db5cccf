"""Which checkpoints of several files are of two saves: some files were written over since, and others were not.

Pure. What each file was when its checkpoint was last whole is remembered until none of it is there any more: a job may
remove one file before it writes it anew, and be killed between them.
"""

from __future__ import annotations

from collections.abc import Mapping

from .entry import Entry, Written
from .memory import Seen


class Former:
    """What the files of a work dir were when the checkpoints that they are of were whole."""

    def __init__(self, seen: Mapping[str, Seen]) -> None:
        self._of: dict[str, Seen] = {}
        self._files: dict[str, Written] = {}
        for known in sorted(seen.values(), key=lambda known: known.order):
            for file in _files_of(known):
                self._files[file[0]] = file
                self._of[file[0]] = known

    def mixed(self, found: Entry) -> str:
        """What of `found` was written over since beside what was not, in words; else nothing."""
        left = self._left(found)
        halved = any(self._of[name].former for name in left)  # what it has beside these came after it was whole
        over = [part.name for part in found.parts if part.name not in left and (halved or part.name in self._files)]
        if not (over and left):
            return ""
        return (
            f"{over[0]} was written over and {left[0]} was not, as in the middle of a save; if they are of one save, "
            "touch both"
        )

    def kept(self, found: Entry) -> tuple[Written, ...]:
        """What is to be remembered of `found`, which is not whole: all that it was, if any of that is still there."""
        whole = {file[0]: file for name in self._left(found) for file in _files_of(self._of[name])}
        return tuple(whole.values())

    def _left(self, found: Entry) -> list[str]:
        return [part.name for part in found.parts if self._files.get(part.name) == part.identity[:3]]


def _files_of(known: Seen) -> tuple[Written, ...]:
    if known.former or not known.whole:
        return known.former
    return known.parts or ((known.name, known.size_bytes, known.mtime_ns),)
