"""What other processes have open, by what /proc says: no file is asked, for its disk may not answer.

One file that is open on a dead server, in any process, would else hold up every work dir on this host.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from .mounts import Mount, mounts, way_to

_INFO = re.compile(rb"^flags:\s*([0-7]+)\nmnt_id:\s*(\d+)(?:\nino:\s*(\d+))?", re.MULTILINE)
_STACKED = frozenset({"overlay", "aufs"})  # there an inode may have another number than the one that stat tells
_MAPPED = re.compile(rb"^\S+ (\S+) \S+ ([0-9a-f]+):([0-9a-f]+) ([1-9][0-9]*) +(\S.*)", re.MULTILINE)


class Handle(NamedTuple):
    """One descriptor of a process. mount: the number of the mount that it was opened through. inode: its number, or
    None where the kernel (before 5.14) does not say."""

    pid: str
    fd: str
    writes: bool
    mount: int
    inode: int | None

    @property
    def link(self) -> str:
        return f"/proc/{self.pid}/fd/{self.fd}"


class Mapping(NamedTuple):
    """One file that a process has mapped. name: the last part of its path."""

    device: int
    inode: int
    name: bytes
    writes: bool


def handles(pid: str) -> Iterator[Handle]:
    """All that it has open; nothing where it is gone, or another user's."""
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError), open(f"/proc/{pid}/fdinfo/{fd}", "rb", buffering=0) as file:
                said = _INFO.search(file.read(512))
                if said is not None:
                    writes = int(said[1], 8) & os.O_ACCMODE != os.O_RDONLY
                    yield Handle(pid, fd, writes, int(said[2]), int(said[3]) if said[3] else None)


def mapped(pid: str) -> set[Mapping]:
    """The files that it has mapped."""
    found: set[Mapping] = set()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/maps", "rb") as maps:
        for allowed, major, minor, inode, path in set(_MAPPED.findall(maps.read())):
            device = os.makedev(int(major, 16), int(minor, 16))
            found.add(Mapping(device, int(inode), path.rpartition(b"/")[2], {*b"ws"} <= {*allowed}))
    return found


class Views:
    """What each process sees mounted, and by that whether a file of its may be asked. For one look through /proc.

    devices: of what is looked for. A file system with one of them is asked anyway, so it may be asked here too.
    """

    def __init__(self, devices: Collection[int]) -> None:
        self._devices = devices
        self._seen_by: dict[str, dict[int, Mount]] = {}  # by process
        self._tables: dict[tuple[str, str], dict[int, Mount]] = {}
        self._own = _namespace_of("self")

    def has_number(self, handle: Handle) -> bool:
        """Whether its inode's number is known, and the one that stat would tell."""
        mount = self._mount_of(handle)
        return handle.inode is not None and (mount is None or mount.kind not in _STACKED)

    def is_at(self, handle: Handle, device: int, name: bytes) -> bool:
        """Whether what is open, with the number of the inode that bears `name` on `device`, is that."""
        mount = self._mount_of(handle)
        if mount is None:
            # On what is mounted no more, or never was, as a pipe: that is not to be asked, but has a name.
            with contextlib.suppress(OSError):
                return os.fsencode(os.readlink(handle.link)).rpartition(b"/")[2] == name
            return False
        if mount.device == device or not mount.answers:
            return mount.device == device
        return self.asked(handle) == (device, handle.inode)  # btrfs has a device for each subvolume

    def asked(self, handle: Handle) -> tuple[int, int] | None:
        """The device and the inode of what is open; None if it may not be asked."""
        mount = self._mount_of(handle)
        if mount is not None and not self._may_be_asked(mount):
            return None
        try:
            info = os.stat(handle.link)
        except OSError:  # closed meanwhile
            return None
        return info.st_dev, info.st_ino

    def works_in(self, pid: str) -> tuple[int, int] | None:
        """The device and the inode of the directory that it works in; None if it may not be asked."""
        try:
            path = os.readlink(f"/proc/{pid}/cwd")
            way = way_to(path, self._table(pid).values())
            if not way or not all(map(self._may_be_asked, way)):
                return None
            root = "" if _namespace_of(pid) == self._own else f"/proc/{pid}/root"
            info = os.stat(root + path)
        except OSError:  # gone, or another user's
            return None
        return info.st_dev, info.st_ino

    def _may_be_asked(self, mount: Mount) -> bool:
        return mount.answers or mount.device in self._devices

    def _mount_of(self, handle: Handle) -> Mount | None:
        return self._table(handle.pid).get(handle.mount)

    def _table(self, pid: str) -> dict[int, Mount]:
        if pid not in self._seen_by:
            self._seen_by[pid] = self._read(pid)
        return self._seen_by[pid]

    def _read(self, pid: str) -> dict[int, Mount]:
        namespace = _namespace_of(pid)
        if namespace == self._own:  # one that is in a chroot there sees but a part
            pid, key = "self", (namespace, "")
        else:
            key = (namespace, _root_of(pid))
        if key not in self._tables:
            self._tables[key] = {}
            with contextlib.suppress(OSError):
                self._tables[key] = {each.number: each for each in mounts(f"/proc/{pid}/mountinfo")}
        return self._tables[key]


def _namespace_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/mnt")
    except OSError:
        return pid


def _root_of(pid: str) -> str:
    try:
        return os.readlink(f"/proc/{pid}/root")
    except OSError:
        return ""
