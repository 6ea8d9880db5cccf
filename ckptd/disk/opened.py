"""A file that is open, as those see it who only read: `inspect.view` says what they ask for."""

from __future__ import annotations

import os
from typing import BinaryIO

from .descriptors import hole_in


class OpenedFile:
    """The file open as `fd`."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @property
    def size_bytes(self) -> int:
        """How long it is now."""
        return os.fstat(self._fd).st_size

    def read(self, count: int, offset: int) -> bytes:
        """`count` bytes from `offset`, or as many as there are."""
        return os.pread(self._fd, count, offset)

    def stream(self) -> BinaryIO:
        """All of it; to close this leaves `fd` open."""
        return open(self._fd, "rb", closefd=False)

    def hole(self) -> int | None:
        """The first byte that was never written; None where the file system does not tell."""
        return hole_in(self._fd, self.size_bytes)
