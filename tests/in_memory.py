"""Files that are on no disk, as the checks of formats see them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import BinaryIO


@dataclass(frozen=True)
class Bytes:
    """A file with this content."""

    content: bytes

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read(self, count: int, offset: int) -> bytes:
        return self.content[offset : offset + count]

    def stream(self) -> BinaryIO:
        return io.BytesIO(self.content)

    def hole(self) -> None:
        return None
