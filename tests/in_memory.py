"""Files and directories that are on no disk, as the checks of formats see them."""

from __future__ import annotations

import contextlib
import errno
import io
import os
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from typing import BinaryIO

from ckptd.disk.opened import Inode
from ckptd.errors import RefusedError


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


@dataclass(frozen=True)
class Files:
    """A directory of files by their paths, all written in one moment. What ends in "/" is a directory in it."""

    files: Mapping[str, bytes]

    @property
    def names(self) -> Set[str]:
        return {path.split("/")[0] for path in self.files if path}

    def is_dir(self, name: str) -> bool:
        return any(path.startswith(f"{name}/") for path in self.files)

    def about(self, path: str) -> Inode:
        if path not in self.files and not self.is_dir(path):
            raise _not_there(path)
        return Inode(len(self.files.get(path, b"")), mtime_ns=0, ctime_ns=0, number=0)

    @contextlib.contextmanager
    def opened_file(self, name: str) -> Iterator[Bytes]:
        if self.is_dir(name):
            raise RefusedError(f"{name}: not a regular file")
        if name not in self.files:
            raise _not_there(name)
        yield Bytes(self.files[name])

    @contextlib.contextmanager
    def opened_dir(self, name: str) -> Iterator[Files]:
        if not self.is_dir(name):
            raise _not_there(name)
        way = f"{name}/"
        yield Files({path.removeprefix(way): inside for path, inside in self.files.items() if path.startswith(way)})


def _not_there(name: str) -> FileNotFoundError:
    return FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name)
