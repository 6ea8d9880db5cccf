"""Who has a file inside a directory open or mapped: a look through /proc, as far as this user may see.

A single file's readers keep its inode and lose nothing; a directory's may open the next shard by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .disk import check_depth, opened_dir


def reader_of(name: str, *, dir_fd: int) -> int | None:
    """The process that has something inside the directory `name` open or mapped, or works in it; None if none does."""
    inside = set(_inodes(name, dir_fd))
    own = str(os.getpid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid != own and (_opens(pid, inside) or _maps(pid, inside)):
            return int(pid)
    return None


def _inodes(name: str, dir_fd: int, depth: int = 0) -> Iterator[tuple[int, int]]:
    check_depth(depth, name)
    with opened_dir(name, dir_fd=dir_fd) as fd:
        info = os.fstat(fd)
        yield info.st_dev, info.st_ino
        with os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from _inodes(entry.name, fd, depth + 1)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        inside = entry.stat(follow_symlinks=False)
                        yield inside.st_dev, inside.st_ino


def _opens(pid: str, inside: set[tuple[int, int]]) -> bool:
    # By inode and not by path: a process in a container has another name for the same file.
    with contextlib.suppress(OSError):  # gone, or another user's
        for link in (f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))):
            with contextlib.suppress(OSError):
                info = os.stat(link)
                if (info.st_dev, info.st_ino) in inside:
                    return True
    return False


def _maps(pid: str, inside: set[tuple[int, int]]) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.split(None, 5)
            if len(fields) > 4 and fields[4] != b"0":
                major, _, minor = fields[3].partition(b":")
                if (os.makedev(int(major, 16), int(minor, 16)), int(fields[4])) in inside:
                    return True
    return False
