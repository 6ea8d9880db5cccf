"""A directory and a file that are open, as those see them who only read: `inspect.view` says what they ask for."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator, Set
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple

from .descriptors import hole_in, listed, opened_dir, opened_file


class Inode(NamedTuple):
    """What changes when a file is written to, or replaced."""

    size_bytes: int
    mtime_ns: int
    ctime_ns: int
    number: int


class OpenedDirectory:
    """The directory open as `fd`. from_disk: what is read in it comes from the disk, not from the kernel's memory."""

    def __init__(self, fd: int, *, from_disk: bool = False) -> None:
        self._fd = fd
        self._from_disk = from_disk
        self._are_dirs: dict[str, bool] | None = None

    @property
    def names(self) -> Set[str]:
        """What was in it when it was listed."""
        return self._listed().keys()

    def is_dir(self, name: str) -> bool:
        """Whether that was a directory then."""
        return self._listed().get(name, False)

    def about(self, path: str) -> Inode:
        """What bears a name in it, or is at the end of a path below it, now; on the way there links are followed."""
        try:
            info = os.stat(path, dir_fd=self._fd, follow_symlinks=False)
        except ValueError as error:  # a NUL, or half of a character
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ascii(path)) from error
        return Inode(info.st_size, info.st_mtime_ns, info.st_ctime_ns, info.st_ino)

    @contextmanager
    def opened_file(self, name: str) -> Iterator[OpenedFile]:
        """As descriptors.opened_file."""
        with opened_file(name, dir_fd=self._fd) as fd:
            if self._from_disk:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            yield OpenedFile(fd)

    @contextmanager
    def opened_dir(self, name: str) -> Iterator[OpenedDirectory]:
        """As descriptors.opened_dir."""
        with opened_dir(name, dir_fd=self._fd) as fd:
            inside = OpenedDirectory(fd, from_disk=self._from_disk)
            with os.scandir(fd) as entries:  # nobody else has this descriptor: no other is needed to list it
                inside._are_dirs = _are_dirs(entries)
            yield inside

    def _listed(self) -> dict[str, bool]:
        if self._are_dirs is None:
            with listed(self._fd) as entries:
                self._are_dirs = _are_dirs(entries)
        return self._are_dirs


def _are_dirs(entries: Iterable[os.DirEntry[str]]) -> dict[str, bool]:
    return {entry.name: entry.is_dir(follow_symlinks=False) for entry in entries}


class OpenedFile:
    """The regular file open as `fd`."""

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
