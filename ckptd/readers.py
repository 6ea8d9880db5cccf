"""Who has a file inside a directory open or mapped: a look through /proc, as far as this user may see.

A single file's readers keep its inode and lose nothing; a directory's may open the next shard by name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

from .disk import check_depth, opened_dir


def readers_of(names: Iterable[str], *, dir_fd: int) -> dict[str, int]:
    """Of the directories `names`, those that a process has something of open or mapped, or works in; with its pid.

    Raises OSError if one of them cannot be read.
    """
    inside = {inode: name for name in names for inode in _inodes(name, dir_fd)}
    found: dict[str, int] = {}
    if not inside:
        return found
    own = str(os.getpid())
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid != own:
            for inode in (*_opened_by(pid), *_mapped_by(pid)):
                if inode in inside:
                    found.setdefault(inside[inode], int(pid))
    return found


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


def _opened_by(pid: str) -> Iterator[tuple[int, int]]:
    # By inode and not by path: a process in a container has another name for the same file.
    with contextlib.suppress(OSError):  # gone, or another user's
        for link in (f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))):
            with contextlib.suppress(OSError):
                info = os.stat(link)
                yield info.st_dev, info.st_ino


def _mapped_by(pid: str) -> Iterator[tuple[int, int]]:
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for line in maps:
            fields = line.split(None, 5)
            if len(fields) > 4 and fields[4] != b"0":
                major, _, minor = fields[3].partition(b":")
                yield os.makedev(int(major, 16), int(minor, 16)), int(fields[4])
