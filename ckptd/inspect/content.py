"""Read a checkpoint's content once and check it: the CRC of every member of a torch zip, or of every torch zip in a
directory. Reads, never unpickles.

A zero-filled middle passes every check of structure, and loads as wrong weights; only this finds it.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from ..core.entry import Entry
from ..disk.descriptors import check_depth
from ..disk.opened import OpenedDirectory
from .files import PACKED, raise_disk_trouble
from .scan import PARTS, entry_of

if TYPE_CHECKING:
    from .view import DirectoryView, FileView

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
    if entry.parts:
        faults = ((part, check_content(part, dir_fd=dir_fd, progress=progress, from_disk=from_disk))
                  for part in entry.parts)  # fmt: skip
        return next((f"{part.name}: {fault}" for part, fault in faults if fault), "")
    around = OpenedDirectory(dir_fd, from_disk=from_disk)
    if entry.is_dir:
        with around.opened_dir(entry.name) as directory:
            fault = fault_of_directory(directory, progress)
    else:
        with around.opened_file(entry.name) as file:
            fault = fault_of_file(file, progress)
    if entry_of(entry.name, dir_fd=dir_fd).bytes_on_disk != entry.bytes_on_disk:
        raise ChangedError(entry.name)
    return fault


def fault_of_directory(directory: DirectoryView, progress: Progress) -> str:
    """What is wrong with the content of the first part in it, or below it, that is damaged; "" if none is."""
    for within, below, name in _files_in(directory):
        if name.endswith(PARTS):
            before = within.about(name)
            with within.opened_file(name) as file:
                fault = fault_of_file(file, progress)
            if within.about(name) != before:
                raise ChangedError(name)
            if fault:
                return f"{below}{name}: {fault}"
    return ""


def fault_of_file(file: FileView, progress: Progress) -> str:
    """What is wrong with the content of a file, or "" if nothing is."""
    return _zip_fault(file, progress) if file.read(len(_ZIP), 0) == _ZIP else ""


def _files_in(directory: DirectoryView, below: str = "", depth: int = 0) -> Iterator[tuple[DirectoryView, str, str]]:
    """Each file in the directory and below it, by name: where it is, the way there, its name."""
    check_depth(depth, below or ".")
    for name in sorted(directory.names):
        if directory.is_dir(name):
            with directory.opened_dir(name) as within:
                yield from _files_in(within, f"{below}{name}/", depth + 1)
        else:
            yield directory, below, name


def _zip_fault(file: FileView, progress: Progress) -> str:
    with file.stream() as stream:
        member = None
        try:
            with zipfile.ZipFile(stream) as archive:
                # In other ways than these nobody packs states, and some of them take any memory to unpack.
                members = [each for each in archive.infolist() if each.file_size and each.compress_type in PACKED]
                if not any(each.CRC for each in members):
                    return ""
                for member in members:
                    with archive.open(member) as packed:  # raises at its end if the CRC is another
                        while chunk := packed.read(_CHUNK_BYTES):
                            progress(len(chunk))
        except (OSError, zipfile.BadZipFile, ValueError, EOFError, struct.error, RuntimeError, zlib.error) as error:
            raise_disk_trouble(error)
            return f"member {member.filename} is damaged (CRC)" if member else "zip, cannot be read"
    return ""
