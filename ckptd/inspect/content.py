"""Read a checkpoint's content once and check it: the CRC of every member of a torch zip, or of every torch zip in a
directory. Reads, never unpickles.

A zero-filled middle passes every check of structure, and loads as wrong weights; only this finds it.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable

from ..core.entry import Entry
from ..disk.descriptors import check_depth, listed, opened_dir, opened_file
from .files import PACKED, raise_disk_trouble
from .scan import PARTS, entry_of

_CHUNK_BYTES = 1 << 20
_ZIP = b"PK\x03\x04"

Progress = Callable[[int], None]  # told how many bytes were read since the last call


class ChangedError(Exception):
    """The checkpoint was written to while it was read: what was found says nothing."""


def check_content(entry: Entry, *, dir_fd: int, progress: Progress | None = None, from_disk: bool = False) -> str:
    """Read `entry` to its end; returns what is wrong with it, or "" if nothing is, as far as its format can tell.

    Formats without a checksum, and zips whose writer was told to leave it out (all of them zero), are taken as they
    are: then structure decides. from_disk: forget what the kernel holds in memory first, so that the disk answers.
    Raises ChangedError, or OSError if the disk does not answer.
    """
    progress = progress or (lambda _: None)
    if entry.is_dir:
        with opened_dir(entry.name, dir_fd=dir_fd) as fd:
            fault = _fault_below(fd, progress, from_disk, 0)
    else:
        fault = _file_fault(entry.name, dir_fd, progress, from_disk)
    if _written(entry_of(entry.name, dir_fd=dir_fd)) != _written(entry):
        raise ChangedError(entry.name)
    return fault


def _written(entry: Entry) -> tuple[int, int, int, int]:
    """What a write changes; of a directory by its marker and parts, for evaluators drop files beside them."""
    marker_bytes = entry.size_bytes if entry.marker_bytes is None else entry.marker_bytes
    return entry.inode, marker_bytes, entry.mtime_ns, entry.changes


def _fault_below(dir_fd: int, progress: Progress, from_disk: bool, depth: int) -> str:
    """What is wrong with the first part in the directory, or below it, that is damaged."""
    check_depth(depth, ".")
    with listed(dir_fd) as entries:
        inside = sorted((entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries)
    for name, is_dir in inside:
        fault, joint = "", "/"
        if is_dir:
            with opened_dir(name, dir_fd=dir_fd) as fd:
                fault = _fault_below(fd, progress, from_disk, depth + 1)
        elif name.endswith(PARTS):
            before = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            fault, joint = _file_fault(name, dir_fd, progress, from_disk), ": "
            after = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if any(
                getattr(before, what) != getattr(after, what)
                for what in ("st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")
            ):
                raise ChangedError(name)
        if fault:
            return f"{name}{joint}{fault}"
    return ""


def _file_fault(name: str, dir_fd: int, progress: Progress, from_disk: bool) -> str:
    with opened_file(name, dir_fd=dir_fd) as fd:
        if from_disk:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return _zip_fault(fd, progress) if os.pread(fd, len(_ZIP), 0) == _ZIP else ""


def _zip_fault(fd: int, progress: Progress) -> str:
    with open(fd, "rb", closefd=False) as file:
        member = None
        try:
            with zipfile.ZipFile(file) as archive:
                # In other ways than these nobody packs states, and some of them take any memory to unpack.
                members = [each for each in archive.infolist() if each.file_size and each.compress_type in PACKED]
                if not any(each.CRC for each in members):
                    return ""
                for member in members:
                    with archive.open(member) as stream:  # raises at its end if the CRC is another
                        while chunk := stream.read(_CHUNK_BYTES):
                            progress(len(chunk))
        except (OSError, zipfile.BadZipFile, ValueError, EOFError, struct.error, RuntimeError, zlib.error) as error:
            raise_disk_trouble(error)
            return f"member {member.filename} is damaged (CRC)" if member else "zip, cannot be read"
    return ""
