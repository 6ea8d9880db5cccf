"""Who has a file inside a directory open or mapped: a look through /proc, as far as this user may see.

A single file's readers keep its inode and lose nothing; a directory's may open the next shard by name.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterable, Iterator
from typing import Union

from .descriptors import OWN_DIR
from .walk import walk, walk_opened

Inode = tuple[Union[int, bytes], int]  # its device, or the name of a file that is mapped, and its number
_LONGEST_COMMAND = 80  # characters

_MAPPED = re.compile(rb"^\S+ (\S+) \S+ ([0-9a-f]+):([0-9a-f]+) ([1-9][0-9]*) +(\S.*)", re.MULTILINE)


class OpenFiles:
    """What other processes have open or mapped, or work in.

    One look through /proc tells of any number of directories. It is made anew once it is older than it took: then at
    most half of the time goes into looking, however many directories and processes there are.
    """

    def __init__(self) -> None:
        self._users: dict[Inode, int] = {}
        self._stale_s = 0.0

    def user_of(self, name: str, *, dir_fd: int) -> int | None:
        """A process that is in the directory `name`, or has something in it open or mapped; None if nobody has.

        Raises OSError if it cannot be read.
        """
        inside = list(_inodes(name, dir_fd))
        if time.monotonic() > self._stale_s:
            self._look()
        return next((self._users[inode] for inode in inside if inode in self._users), None)

    def _look(self) -> None:
        began_s, own = time.monotonic(), str(os.getpid())
        self._users = {}
        for pid in filter(str.isdigit, os.listdir("/proc")):
            if pid != own:
                for inode in (*_opened_by(pid), *_mapped_by(pid)):
                    self._users.setdefault(inode, int(pid))
        now_s = time.monotonic()
        self._stale_s = now_s + (now_s - began_s)


def writers_of(names: Iterable[str], *, dir_fd: int) -> list[int]:
    """The processes, as far as this user may see, that have one of the files `names` open for writing, or mapped so.

    Of a directory, any file in it. Raises OSError if one of them cannot be read.
    """
    inodes: set[Inode] = set()
    for name in names:
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        of_file: list[Inode] = [(info.st_dev, info.st_ino), (os.fsencode(name), info.st_ino)]
        inodes.update(_inodes(name, dir_fd) if stat.S_ISDIR(info.st_mode) else of_file)
    pids = filter(str.isdigit, os.listdir("/proc"))
    return sorted(int(pid) for pid in pids if not inodes.isdisjoint((*_written_by(pid), *_mapped_by(pid, b"ws"))))


def process_text(pid: int) -> str:
    """A process for a person: its number, and how it was called."""
    words = b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096)
    command = os.fsdecode(words.rstrip(b"\0").replace(b"\0", b" "))
    shown = command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND]}..."
    return f"process {pid} ({shown})" if shown else f"process {pid}"


def _written_by(pid: str) -> Iterator[Inode]:
    with contextlib.suppress(OSError):  # gone, or another user's
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError, ValueError), open(f"/proc/{pid}/fdinfo/{fd}") as file:
                flags = next((int(line.split()[1], 8) for line in file if line.startswith("flags:")), 0)
                if flags & os.O_ACCMODE != os.O_RDONLY:
                    info = os.stat(f"/proc/{pid}/fd/{fd}")
                    yield info.st_dev, info.st_ino


def holder_of_files(*, dir_fd: int) -> int | None:
    """The pid of a process that has a file below a directory open or mapped, ours and our own files aside; 0 where
    not all of it can be read, so that nobody knows."""
    try:
        files = set(_files(dir_fd))
    except OSError:
        return 0
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if pid != str(os.getpid()) and any(inode in files for inode in (*_opened_by(pid), *_mapped_by(pid))):
            return int(pid)
    return None


def _files(dir_fd: int) -> Iterator[Inode]:
    """Of files only: who merely stands in a directory, as a shell does, holds nothing. Work dirs below it are others'
    runs."""
    for _, below, directories, others in walk_opened(dir_fd):
        if below and any(entry.name == OWN_DIR for entry in (*directories, *others)):
            directories.clear()
            continue
        directories[:] = [entry for entry in directories if entry.name != OWN_DIR]
        yield from _inodes_of(entry for entry in others if not entry.is_symlink())


def _inodes(name: str, dir_fd: int) -> Iterator[Inode]:
    for fd, _, _, others in walk(name, dir_fd=dir_fd):
        info = os.fstat(fd)
        yield info.st_dev, info.st_ino
        yield from _inodes_of(others)


def _inodes_of(entries: Iterable[os.DirEntry[str]]) -> Iterator[Inode]:
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            info = entry.stat(follow_symlinks=False)
            yield info.st_dev, info.st_ino
            yield os.fsencode(entry.name), info.st_ino


def _opened_by(pid: str) -> Iterator[Inode]:
    # By inode and not by path: a process in a container has another name for the same file.
    with contextlib.suppress(OSError):  # gone, or another user's
        for link in (f"/proc/{pid}/cwd", *(f"/proc/{pid}/fd/{fd}" for fd in os.listdir(f"/proc/{pid}/fd"))):
            with contextlib.suppress(OSError):
                info = os.stat(link)
                yield info.st_dev, info.st_ino


def _mapped_by(pid: str, how: bytes = b"") -> Iterator[Inode]:
    """Of the files that it has mapped those whose permissions hold each letter of `how`."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for allowed, major, minor, inode, path in set(_MAPPED.findall(maps.read())):
            if set(how) <= set(allowed):
                yield os.makedev(int(major, 16), int(minor, 16)), int(inode)
                # On btrfs and overlayfs the kernel shows another device here than stat does.
                yield path.rpartition(b"/")[2], int(inode)
