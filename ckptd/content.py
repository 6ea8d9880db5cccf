"""Read a checkpoint's content once and check it: the CRC of every member of a torch zip. Reads, never unpickles.

A zero-filled middle passes every check of structure, and loads as wrong weights; only this finds it.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from collections.abc import Callable

from .disk import opened_file
from .formats import raise_disk_trouble
from .scan import Entry, entry_of

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
    if entry.is_dir:
        return ""
    with opened_file(entry.name, dir_fd=dir_fd) as fd:
        if from_disk:
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        fault = _zip_fault(fd, progress or (lambda _: None)) if os.pread(fd, len(_ZIP), 0) == _ZIP else ""
    now = entry_of(entry.name, dir_fd=dir_fd)
    if (now.inode, now.size_bytes, now.mtime_ns) != (entry.inode, entry.size_bytes, entry.mtime_ns):
        raise ChangedError(entry.name)
    return fault


def _zip_fault(fd: int, progress: Progress) -> str:
    with open(fd, "rb", closefd=False) as file:
        member = None
        try:
            with zipfile.ZipFile(file) as archive:
                members = [each for each in archive.infolist() if each.file_size]
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
