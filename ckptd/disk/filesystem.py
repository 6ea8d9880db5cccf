"""What kind of file system a directory is on: whether other hosts can change it behind the kernel's back.

Reads statfs only. Unknown kinds count as network file systems: looking more often is the careful mistake.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable

SCAN_LOCAL_S, SCAN_NETWORK_S = 60.0, 10.0  # how often to look where events tell of all changes, and where they do not

# f_type of file systems that only this host writes (linux/magic.h and the file systems' own headers).
_LOCAL = frozenset({
    0xEF53,  # ext2, ext3, ext4
    0x58465342,  # xfs
    0x9123683E,  # btrfs
    0xCA451A4E,  # bcachefs
    0x2FC12FC1,  # zfs
    0xF2F52010,  # f2fs
    0x3153464A,  # jfs
    0x01021994,  # tmpfs
    0x858458F6,  # ramfs
    0x794C7630,  # overlayfs
})  # fmt: skip


# Of these, those that never keep the blocks of a deleted file for a snapshot.
_WITHOUT_SNAPSHOTS = frozenset({0xEF53, 0x58465342, 0xF2F52010, 0x3153464A, 0x01021994, 0x858458F6})


def is_local(dir_fd: int) -> bool:
    """Whether the directory is on a file system where leases work and no other host writes."""
    kind = _statfs_type(dir_fd)
    return kind is not None and kind in _LOCAL


def free_bytes(dir_fd: int) -> int:
    """Bytes that an unprivileged process can still write there."""
    return room_on(dir_fd)[1]


def room_on(dir_fd: int) -> tuple[int, int]:
    """The size of the file system in bytes, and how much of it an unprivileged process can still write."""
    room = os.statvfs(dir_fd)
    return room.f_blocks * room.f_frsize, room.f_bavail * room.f_frsize


def frees_what_is_deleted(dir_fd: int) -> bool:
    """Whether what is deleted there surely comes free: neither a snapshot nor a server may hold it."""
    return _statfs_type(dir_fd) in _WITHOUT_SNAPSHOTS


def is_read_only(dir_fd: int) -> bool:
    """Whether nothing can be written there, whoever asks: as in a service manager's view of a replaced directory."""
    return bool(os.statvfs(dir_fd).f_flag & os.ST_RDONLY)


def _statfs_type(dir_fd: int) -> int | None:
    if not sys.platform.startswith("linux"):
        return None
    return _fstatfs()(dir_fd)


@functools.cache
def _fstatfs() -> Callable[[int], int | None]:
    """The call itself; it returns the kind, or None."""
    import ctypes  # here, because reading commands seldom need it and it is slow to import

    libc, answer_type = ctypes.CDLL(None, use_errno=True), ctypes.c_long * 64  # more than the kernel's structure

    def call(dir_fd: int) -> int | None:
        answer = answer_type()
        failed = libc.fstatfs(dir_fd, ctypes.byref(answer))
        return None if failed else answer[0] & 0xFFFFFFFF  # which begins with f_type

    return call
