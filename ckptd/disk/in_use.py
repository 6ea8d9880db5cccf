"""Who has a file inside a directory open or mapped: a look through /proc, as far as this user may see.

A single file's readers keep its inode and lose nothing; a directory's may open the next shard by name.
"""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from .descriptors import OWN_DIR
from .processes import Handle, Mapping, Views, handles, mapped
from .walk import walk, walk_opened

_LONGEST_COMMAND = 80  # characters


class Inode(NamedTuple):
    """A file or a directory that is looked for. name: the last part of its path, empty where that says nothing."""

    device: int
    number: int
    name: bytes


class OpenFiles:
    """What other processes have open or mapped, or work in.

    One look through /proc tells of any number of directories. It is made anew once it is older than it took: then at
    most half of the time goes into looking, however many directories and processes there are.
    """

    def __init__(self) -> None:
        self._look = _Look(frozenset())
        self._stale_s = 0.0

    def user_of(self, name: str, *, dir_fd: int) -> int | None:
        """A process that is in the directory `name`, or has something in it open or mapped; None if nobody has.

        Raises OSError if it cannot be read.
        """
        inside = list(_inodes(name, dir_fd))
        devices = frozenset(inode.device for inode in inside)
        if time.monotonic() > self._stale_s or not devices <= self._look.devices:
            began_s = time.monotonic()
            self._look = _Look(devices | self._look.devices)
            for pid in _others():
                self._look.add(pid)
            now_s = time.monotonic()
            self._stale_s = now_s + (now_s - began_s)
        return next(self._look.users_of(inside), None)


def writers_of(names: Iterable[str], *, dir_fd: int) -> list[int]:
    """The processes, as far as this user may see, that have one of the files `names` open for writing, or mapped so.

    Of a directory, any file in it. Raises OSError if one of them cannot be read.
    """
    inodes: set[Inode] = set()
    for name in names:
        info = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
        own = [Inode(info.st_dev, info.st_ino, os.fsencode(name))]
        inodes.update(_inodes(name, dir_fd) if stat.S_ISDIR(info.st_mode) else own)
    look = _Look(frozenset(inode.device for inode in inodes), writers=True)
    for pid in (*_others(), str(os.getpid())):
        look.add(pid)
    return sorted(set(look.users_of(inodes)))


def holder_of_files(*, dir_fd: int) -> int | None:
    """The pid of a process that has a file below a directory open or mapped, ours and our own files aside; 0 where
    not all of it can be read, so that nobody knows."""
    try:
        files = set(_files(dir_fd))
    except OSError:
        return 0
    look = _Look(frozenset(inode.device for inode in files))
    for pid in _others():
        look.add(pid)
    return next(look.users_of(files), None)


def process_text(pid: int) -> str:
    """A process for a person: its number, and how it was called."""
    words = b""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as file:
        words = file.read(4096)
    command = os.fsdecode(words.rstrip(b"\0").replace(b"\0", b" "))
    shown = command if len(command) <= _LONGEST_COMMAND else f"{command[:_LONGEST_COMMAND]}..."
    return f"process {pid} ({shown})" if shown else f"process {pid}"


class _Look:
    """What the processes that were added have at one moment. devices: of all that will be asked about. writers: only
    what is open or mapped for writing counts."""

    def __init__(self, devices: frozenset[int], *, writers: bool = False) -> None:
        self.devices = devices
        self._writers = writers
        self._views = Views(devices)
        self._numbered: dict[int, list[Handle]] = {}
        self._mapped: dict[int, list[tuple[Mapping, int]]] = {}
        self._asked: dict[tuple[int, int], int] = {}

    def add(self, pid: str) -> None:
        for handle in handles(pid):
            if handle.writes or not self._writers:
                self._add(handle)
        for mapping in mapped(pid):
            if mapping.writes or not self._writers:
                self._mapped.setdefault(mapping.inode, []).append((mapping, int(pid)))
        if not self._writers and (place := self._views.works_in(pid)) is not None:
            self._asked.setdefault(place, int(pid))

    def users_of(self, inodes: Iterable[Inode]) -> Iterator[int]:
        for device, number, name in inodes:
            if (device, number) in self._asked:
                yield self._asked[device, number]
            for handle in self._numbered.get(number, ()):
                if self._views.is_at(handle, device, name):
                    yield int(handle.pid)
            for mapping, pid in self._mapped.get(number, ()):
                # On btrfs and overlayfs the kernel shows another device here than stat does.
                if mapping.device == device or mapping.name == name:
                    yield pid

    def _add(self, handle: Handle) -> None:
        if handle.inode is not None and self._views.has_number(handle):
            self._numbered.setdefault(handle.inode, []).append(handle)
        elif (place := self._views.asked(handle)) is not None:
            self._asked.setdefault(place, int(handle.pid))


def _others() -> Iterator[str]:
    own = str(os.getpid())
    return (name for name in os.listdir("/proc") if name.isdigit() and name != own)


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
        yield Inode(info.st_dev, info.st_ino, b"")
        yield from _inodes_of(others)


def _inodes_of(entries: Iterable[os.DirEntry[str]]) -> Iterator[Inode]:
    for entry in entries:
        with contextlib.suppress(FileNotFoundError):
            info = entry.stat(follow_symlinks=False)
            yield Inode(info.st_dev, info.st_ino, os.fsencode(entry.name))
