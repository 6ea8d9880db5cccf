"""What the checks of formats see of a checkpoint: a directory that is listed, and a file that is read in ranges.

Only the shape counts: what has it need not import this. `disk.opened` has it, and in tests a dict of bytes.
Everything here raises OSError if the disk does not answer, or what is asked for is not there.
"""

from __future__ import annotations

from collections.abc import Set
from contextlib import AbstractContextManager
from typing import BinaryIO, Protocol


class DirectoryView(Protocol):
    """A directory, as it was when it was first asked for its names. A symlink in it is neither opened nor followed."""

    @property
    def names(self) -> Set[str]:
        """What is in it, of every kind."""

    def is_dir(self, name: str) -> bool:
        """Whether one of its names is that of a directory."""

    def about(self, path: str) -> Inode:
        """What bears a name in it, or is at the end of a path below it, now."""

    def opened_file(self, name: str) -> AbstractContextManager[FileView]:
        """A file in it, for as long as the `with` lasts. Raises RefusedError for what is neither that nor a symlink."""

    def opened_dir(self, name: str) -> AbstractContextManager[DirectoryView]:
        """A directory in it, for as long as the `with` lasts."""


class FileView(Protocol):
    """A regular file."""

    @property
    def size_bytes(self) -> int:
        """How long it is now."""

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from `offset`, or as many as there are."""

    def stream(self) -> BinaryIO:
        """All of it, for whoever wants to seek in it, and closes it."""

    def hole(self) -> int | None:
        """The first byte that was never written, and reads as zero; None if all were, or nobody can tell."""


class Inode(Protocol):
    """What is known of a file that is not open. Two are equal as long as nobody has written to it, or replaced it."""

    @property
    def size_bytes(self) -> int:
        """How long it is."""

    @property
    def mtime_ns(self) -> int:
        """When it was last written to."""
