"""What bears a checkpoint's name, as a scan found it: names, sizes, times and inodes.

Pure: values; what fills them reads the disk, and is inspect's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

Written = tuple[str, int, int]  # a name, its size in bytes and its time of writing in ns


class Identity(NamedTuple):
    """Which bytes bear a name: of the same save, what is equal but for the inode and its changes may be a copy."""

    name: str
    size_bytes: int
    mtime_ns: int
    inode: int
    changes: int
    parts: tuple[Written, ...] = ()


@dataclass(frozen=True)
class Entry:
    """Something that bears a checkpoint's name and could be one by its kind.

    mtime_ns: of the file, or of a directory's marker, or else of its newest part, or file. size_bytes: of all files.
    allocated_bytes: what deleting it frees: each inode once, and none that has a name elsewhere. device, inode: of
    the entry itself. marker_bytes: of a directory's marker, or of its parts. touched_ns: when the last file in it was
    written, whatever that is. changes: another number after every change to the inode of the file, or of any part of
    the directory, whatever times of writing they then bear: the times of change, added up. linked: the path of a part
    of the directory that is a symlink; empty if none is. older, younger: how many parts of a directory are no younger
    than its marker, and how many are. parts: of a checkpoint of several files their entries, in the order of its
    template; empty for any other.
    """

    series: str
    name: str
    step: int
    size_bytes: int
    mtime_ns: int
    allocated_bytes: int = 0
    ctime_ns: int = 0
    device: int = 0
    inode: int = 0
    is_dir: bool = False
    marker_bytes: int | None = None
    forbidden: bool = False
    touched_ns: int = 0
    changes: int = 0
    linked: str = ""
    older: int = 0
    younger: int = 0
    parts: tuple[Entry, ...] = ()

    @cached_property  # each pass asks several times, and of what has not changed it is the same entry
    def identity(self) -> tuple[str, int, int, tuple[Written, ...]]:
        """What tells a rewritten checkpoint from the one that was there before: of a group, whichever part was."""
        return *self._written, tuple([part._written for part in self.parts]) if self.parts else ()

    @cached_property
    def bytes_on_disk(self) -> Identity:
        """The identity with the inode and its changes: a copy put in its place, or what was written over it with the
        old time, is the same save, but nobody has flushed or read it."""
        name, size_bytes, mtime_ns, parts = self.identity
        return Identity(name, size_bytes, mtime_ns, self.inode, self.changes, parts)

    def is_same_as(self, other: Entry) -> bool:
        """Whether it is the same inode, and nothing in it has been written since; of a group, in any part."""
        same = ("device", "inode", "size_bytes", "mtime_ns", "touched_ns")
        if [part.name for part in self.parts] != [part.name for part in other.parts]:
            return False
        pairs = zip((self, *self.parts), (other, *other.parts))
        return all(getattr(one, what) == getattr(another, what) for one, another in pairs for what in same)

    @property
    def files(self) -> tuple[Entry, ...]:
        """What bears a name of its own in the work dir: the parts of a group, or else the checkpoint itself."""
        return self.parts or (self,)

    @property
    def _written(self) -> Written:
        # Of a directory the size of its marker: evaluators drop files beside it.
        return self.name, self.size_bytes if self.marker_bytes is None else self.marker_bytes, self.mtime_ns


def entry_of_parts(series: str, name: str, step: int, parts: Sequence[Entry]) -> Entry:
    """Several files that are one checkpoint, called `name`: the sums of their sizes and changes, the latest of their
    times, the inode of the first."""
    first = parts[0]
    return Entry(
        series, name, step, sum(part.size_bytes for part in parts), max(part.mtime_ns for part in parts),
        allocated_bytes=sum(part.allocated_bytes for part in parts),
        ctime_ns=max(part.ctime_ns for part in parts), device=first.device, inode=first.inode,
        forbidden=any(part.forbidden for part in parts), touched_ns=max(part.touched_ns for part in parts),
        changes=sum(part.changes for part in parts), parts=tuple(parts),
    )  # fmt: skip


@dataclass(frozen=True)
class Unreadable:
    """An entry that the system does not let anybody here read, with its reason."""

    entry: Entry
    reason: str


@dataclass(frozen=True)
class LeftAlone:
    """Something that bears a checkpoint's name and is none, with the reason.

    filling: a directory that may become one by what is written into it.
    """

    name: str
    reason: str
    filling: bool = False
