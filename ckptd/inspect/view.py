"""What the checks of formats see of a checkpoint: a directory that is listed, and a file that is read in ranges.

Only the shape counts: what has it need not import this. `disk.opened` has it, and in tests a dict of bytes.
"""

from __future__ import annotations

from typing import BinaryIO, Protocol


class FileView(Protocol):
    """A regular file. Each call raises OSError if the disk does not answer."""

    @property
    def size_bytes(self) -> int:
        """How long it is."""

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from `offset`, or as many as there are."""

    def stream(self) -> BinaryIO:
        """All of it, for whoever wants to seek in it; whoever asked for it closes it."""

    def hole(self) -> int | None:
        """The first byte that was never written, and reads as zero; None if all were, or nobody can tell."""
