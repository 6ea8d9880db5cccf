"""What is mounted where, as the kernel knows it: no disk is asked, for one may not answer."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from typing import NamedTuple

MOUNTS = "/proc/self/mountinfo"
# Kinds that need no server: no network's, and none of a process. Of others nobody knows whether they ever answer.
_NEED_NO_SERVER = frozenset({
    "ext2", "ext3", "ext4", "xfs", "btrfs", "bcachefs", "zfs", "f2fs", "jfs", "reiserfs", "tmpfs", "ramfs", "rootfs",
    "overlay", "aufs", "squashfs", "erofs", "iso9660", "vfat", "exfat", "ntfs3", "proc", "sysfs", "devtmpfs", "devpts",
    "mqueue", "hugetlbfs", "cgroup", "cgroup2", "securityfs", "debugfs", "tracefs", "bpf", "pstore", "configfs",
    "fusectl", "binfmt_misc", "efivarfs", "nsfs",
})  # fmt: skip


class Mount(NamedTuple):
    """One file system, mounted at `place`. device: the number of its disk. kind: as in mount(8). number: the mount's
    own."""

    place: str
    device: int
    kind: str
    number: int = 0

    @property
    def answers(self) -> bool:
        """Whether what is asked of it comes back, whatever has become of others."""
        return self.kind in _NEED_NO_SERVER

    def is_above(self, path: str) -> bool:
        """Whether `path`, absolute and without a symlink in it, is reached through this mount."""
        return self.place == "/" or path == self.place or path.startswith(self.place + "/")


def mounts(table: str | None = None) -> list[Mount]:
    """All of them, the later above the earlier where two have one place; `table`: as another process sees them. Raises
    OSError."""
    with open(table or MOUNTS, errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    return [
        Mount(
            unescaped(fields[4]),
            os.makedev(*map(int, fields[2].split(":"))),
            fields[fields.index("-") + 1],
            int(fields[0]),
        )
        for fields in lines
    ]


def way_to(path: str, among: Iterable[Mount]) -> list[Mount]:
    """What whoever asks for `path`, absolute and without a symlink in it, passes through."""
    topmost = {each.place: each for each in among if each.is_above(path)}
    return list(topmost.values())


def unescaped(field: str) -> str:
    """A path as fstab and the kernel write it: a space is \\040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
