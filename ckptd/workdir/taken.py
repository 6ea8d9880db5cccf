"""What went for want of room the last time, kept as `.ckptd/min-free.json` until that has shown on the disk.

A lost or broken file is as if nothing had gone.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core.entry import Entry
from ..disk.descriptors import NO_ROOM, read_small, replace_file
from ..errors import CkptdError

NAME = "min-free.json"
_LARGEST_BYTES = 1 << 26


@dataclass(frozen=True)
class Going:
    """One that was about to go: what it took on the disk, and which file or directory it was."""

    allocated_bytes: int
    inode: int
    mtime_ns: int

    @classmethod
    def of(cls, entry: Entry) -> Going:
        return cls(entry.allocated_bytes, entry.inode, entry.mtime_ns)


@dataclass(frozen=True)
class Taken:
    """What was about to go, by name, and when (ns since 1970); written down before, so some of it may not have gone.

    room_bytes: what was free on the disk then, and what our checkpoints and trash took of it. What is deleted and comes
    free, and what the run saves, leaves that as it is.
    """

    at_ns: int
    room_bytes: int
    going: Mapping[str, Going]

    def gone_bytes(self, there: Iterable[Entry]) -> int:
        """How much of it is really gone, where `there` is what has a checkpoint's name now."""
        still = {entry.name: Going.of(entry) for entry in there if entry.name in self.going}
        left = {name for name, was in self.going.items() if name in still and was.inode == still[name].inode
                and was.mtime_ns == still[name].mtime_ns}  # fmt: skip
        return sum(each.allocated_bytes for name, each in self.going.items() if name not in left)


def read_taken(own_fd: int) -> Taken | None:
    """What is written down in the `.ckptd` directory open as `own_fd`. Raises OSError if it cannot be read."""
    with contextlib.suppress(CkptdError, ValueError, TypeError, AttributeError, KeyError):
        raw = json.loads(read_small(NAME, dir_fd=own_fd, at_most=_LARGEST_BYTES) or b"null")
        going = {str(name): Going(*map(int, numbers)) for name, numbers in raw["going"].items()}
        return Taken(int(raw["at_ns"]), int(raw["room_bytes"]), going)
    return None


def write_taken(taken: Taken, own_fd: int) -> None:
    """Write it down, durably, unless the disk is full. Raises OSError."""
    going = {name: [each.allocated_bytes, each.inode, each.mtime_ns] for name, each in taken.going.items()}
    text = json.dumps({"at_ns": taken.at_ns, "room_bytes": taken.room_bytes, "going": going})
    try:
        replace_file(NAME, text.encode(), dir_fd=own_fd)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def forget_taken(own_fd: int) -> None:
    """It has shown. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=own_fd)
