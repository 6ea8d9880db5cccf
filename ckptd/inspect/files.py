"""What the bytes of a checkpoint file look like: zips of torch and others, torch's legacy pickle, safetensors, HDF5.

Structure only: nothing is unpickled, and of a file only its ends and its header are read.
"""

from __future__ import annotations

import errno
import json
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from ..core import kinds
from ..core.checkpoint import State

if TYPE_CHECKING:
    from .view import FileView

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa8")  # the pickled magic number of torch before 1.6
_ELSEWHERE = (b"version https://git-lfs.github.com/spec/", b"/annex/objects/")  # Git LFS, git-annex
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_LARGEST_DIRECTORY, _MOST_MEMBERS = 1 << 26, 500_000  # bytes of a zip's central directory, and members in it
_MOST_INFLATED = 100  # times the size of the file
_MOST_VALUES = 2_000_000  # of a JSON text; each costs a hundred bytes or two, however short it is
_LARGEST_FILE = 1 << 63
_BEGINNINGS = {".safetensors": "safetensors", ".npz": "a zip", ".keras": "a zip", ".zip": "a zip"}  # what these are
PACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_HEAD = 4096
_LOCAL_HEADER = 30  # bytes before a member's name
_UTF8 = 0x800
_HARMLESS_FLAGS = _UTF8 | 0x8 | 0x6  # sizes behind the data, how hard a deflater tried; not: encrypted, patched
_END, _END64, _LOCATOR64 = struct.Struct("<4sHHHHLLH"), struct.Struct("<4sQHHLLQQQQ"), struct.Struct("<4sLQL")
_LENGTHS = struct.Struct("<HHH")  # of the name, the extra field and the comment of a member
_LONGEST_COMMENT = 65535


@dataclass(frozen=True)
class Structure:
    """What bytes look like: complete, incomplete, or unverifiable where the format cannot tell.

    known: whether they are a checkpoint's. kind: whose, as in core.kinds. checksum: whether the format, or that of
    some file of a directory, holds one for its content. marked: of a directory, whether its writer has marked it done.
    unmarked: of one that is incomplete, whether only because of what its framework would have written.
    """

    state: State
    text: str
    known: bool = True
    checksum: bool = False
    marked: bool = True
    kind: str = ""
    unmarked: bool = False


def structure_of_file(file: FileView, name: str = "") -> Structure:
    """Look at one file; `name`: what it is called, which can be contradicted by its bytes. Raises OSError if the disk
    does not answer."""
    found = _by_its_bytes(file)
    ending = name[name.rfind(".") :] if "." in name else ""
    if found.state.whole and not found.known and ending in _BEGINNINGS:
        head = file.read(len(_ZIP), 0)
        if ending == ".safetensors" or not head.startswith(_ZIP[:2]):
            return replace(found, state=State.INCOMPLETE, text=f"not {_BEGINNINGS[ending]}, as its name says")
    return found


def _by_its_bytes(file: FileView) -> Structure:
    size_bytes = file.size_bytes
    head = file.read(_HEAD, 0)
    if not head:
        return Structure(State.INCOMPLETE, "empty")
    if head.startswith(_ZIP):
        return _zip(file, head, size_bytes)
    if head.startswith(_LEGACY):
        legacy = Structure(State.UNVERIFIABLE, "torch's legacy format: holds no check", kind=kinds.LEGACY)
        return _whole_unless_sparse(file, legacy)
    if len(head) < len(_LEGACY) and (_ZIP.startswith(head) or _LEGACY.startswith(head)):
        return Structure(State.INCOMPLETE, f"ends after {len(head)} bytes")
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _LONGEST_HEADER:
        return _safetensors(file, head, size_bytes)
    if head.startswith(_HDF5):
        return _hdf5(head, size_bytes)
    if head.startswith(_ELSEWHERE):
        return Structure(State.INCOMPLETE, "only says where Git keeps it: not fetched", known=False)
    if not any(head):
        return Structure(State.INCOMPLETE, "begins with zeros: its data never reached the disk", known=False)
    return Structure(State.UNVERIFIABLE, "bytes of no known format", known=False)


def parse_json(text: bytes) -> Any:
    """What a JSON text says; raises ValueError if it is none, or holds more values than any that describes states."""
    if sum(text.count(each) for each in (b",", b"[", b"{")) > _MOST_VALUES:
        raise ValueError("more values than are looked at")
    return json.loads(text)


def raise_disk_trouble(error: BaseException) -> None:
    """Raise the OSError that `error` is, or that zipfile has hidden behind it: the disk's trouble, not the file's.

    EINVAL is neither: an offset in the file that leads nowhere.
    """
    for each in (error, error.__context__):
        if isinstance(each, OSError) and each.errno != errno.EINVAL:
            raise each


def _zip(file: FileView, head: bytes, size_bytes: int) -> Structure:
    end = _end_of_zip(file, size_bytes)
    # Its first member tells what it is, or would have become: torch begins with <name>/data.pkl.
    name_length = struct.unpack_from("<H", head, 26)[0] if len(head) >= 30 else 0
    first = head[30 : 30 + name_length]
    kind = _kind_of_beginning(first, name_length)
    known = bool(kind)
    if end is None:
        return Structure(State.INCOMPLETE, "no end record: cut short", known, kind=kind)
    entries, start, length = end
    listed = _entries_in(file.read(length, start))
    if listed is None or max(entries, listed) > _MOST_MEMBERS:
        return Structure(State.INCOMPLETE, "its central directory is damaged", known, kind=kind)
    try:
        with file.stream() as stream, zipfile.ZipFile(stream) as archive:
            members = archive.infolist()
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        EOFError,
        struct.error,
        NotImplementedError,
        OverflowError,
    ) as error:
        raise_disk_trouble(error)
        return Structure(State.INCOMPLETE, "its central directory cannot be read", known, kind=kind)
    kind = _kind_of_zip([member.filename for member in members])
    known = bool(kind)
    if not entries == len(members) == listed:
        return Structure(State.INCOMPLETE, "its central directory is damaged", known, kind=kind)
    for member in members:
        if not _fits(member, size_bytes):
            return Structure(State.INCOMPLETE, f"member {member.filename} does not fit into the file", known, kind=kind)
        if kind == kinds.TORCH and member.compress_type not in PACKED:
            return Structure(State.INCOMPLETE, f"member {member.filename} is packed as torch packs none", kind=kind)
    fault = _fault_between(members, size_bytes)
    if fault:
        return Structure(State.INCOMPLETE, fault, known, kind=kind)
    text = f"{kind} zip, structure intact".lstrip()
    return Structure(State.COMPLETE, text, known, checksum=True, kind=kind)


def _kind_of_zip(names: Sequence[str]) -> str:
    """Whose zip it is by the names in it, "" if nobody's who is known."""
    if any(name.rpartition("/")[2] == "data.pkl" for name in names):
        return kinds.TORCH
    if "_stable_baselines3_version" in names:
        return kinds.BASELINES
    return kinds.KERAS if "model.weights.h5" in names and "config.json" in names else ""


def _kind_of_beginning(first: bytes, name_length: int) -> str:
    """Whose zip it would have become, by the name of its first member; torch's where that is cut short too."""
    if len(first) < name_length or not first:
        return kinds.TORCH
    name = first.decode("utf-8", "replace")
    return {"data": kinds.BASELINES, "metadata.json": kinds.KERAS}.get(name, _kind_of_zip([name]))


def _fits(member: zipfile.ZipInfo, size_bytes: int) -> bool:
    """Whether what the central directory says of a member can be so: stricter than zipfile, as torch's reader is."""
    inside = member.header_offset + member.compress_size <= size_bytes
    stored = member.compress_type != zipfile.ZIP_STORED or member.compress_size == member.file_size
    # Only the name's last character may make a directory; the attributes' bit 4 would make one of any member.
    plain = member.volume == 0 and (not member.external_attr & 0x10 or member.is_dir())
    return inside and stored and plain and not member.flag_bits & ~_HARMLESS_FLAGS


def _fault_between(members: list[zipfile.ZipInfo], size_bytes: int) -> str:
    """What no writer does, and only a bomb: the bytes of a member twice, or far more of them than there are."""
    end, name = 0, ""
    for member in sorted(members, key=lambda member: member.header_offset):
        if member.header_offset < end:
            return f"members {name} and {member.filename} overlap"
        end, name = member.header_offset + _LOCAL_HEADER + member.compress_size, member.filename
    if sum(member.file_size for member in members) > _MOST_INFLATED * size_bytes:
        return f"its members inflate to more than {_MOST_INFLATED} times its size"
    return ""


def _entries_in(directory: bytes) -> int | None:
    """How many entries a central directory holds, None if they do not fill it to the byte."""
    at, count = 0, 0
    while at + 46 <= len(directory) and directory.startswith(b"PK\x01\x02", at):
        name, extra, comment = _LENGTHS.unpack_from(directory, at + 28)
        at += 46 + name + extra + comment
        count += 1
    return count if at == len(directory) else None


def _end_of_zip(file: FileView, size_bytes: int) -> tuple[int, int, int] | None:
    """How many members the end records say there are, and where the central directory begins and how long it is, in
    bytes; None if the records are missing, or do not fit the file.

    zipfile passes over most of what they say; torch's reader does not. Source: APPNOTE.TXT, sections 4.3.14 to 4.3.16.
    """
    length = min(size_bytes, _LOCATOR64.size + _END.size + _LONGEST_COMMENT)
    tail = file.read(length, size_bytes - length)
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) < at + _END.size:
        return None
    _, disk, start_disk, here, entries, directory, offset, comment = _END.unpack_from(tail, at)
    end = size_bytes - length + at
    if disk or start_disk or here != entries or at + _END.size + comment != len(tail):
        return None
    if tail[max(0, at - _LOCATOR64.size) : at].startswith(b"PK\x06\x07"):
        _, disk, end64, disks = _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)
        record = file.read(_END64.size, end64) if end64 < size_bytes else b""
        if len(record) < _END64.size or not record.startswith(b"PK\x06\x06") or disk or disks != 1:
            return None
        _, length64, _, _, disk, start_disk, here, entries, directory, offset = _END64.unpack(record)
        if disk or start_disk or here != entries or end64 + 12 + length64 != end - _LOCATOR64.size:
            return None
        end = end64
    if offset + directory != end or directory > _LARGEST_DIRECTORY:
        return None
    return int(entries), int(offset), int(directory)


def _safetensors(file: FileView, head: bytes, size_bytes: int) -> Structure:
    (length,) = struct.unpack("<Q", head[:8])
    text = file.read(length, 8)
    if len(text) < length:
        return Structure(State.INCOMPLETE, "safetensors, header cut short", kind=kinds.SAFETENSORS)
    try:
        header = parse_json(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends, default=0)
        if not (isinstance(end, int) and 0 <= end < _LARGEST_FILE):
            raise TypeError("an offset is not a place in a file")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return Structure(State.UNVERIFIABLE, "bytes of no known format", known=False)
    expected = 8 + length + end
    if size_bytes != expected:
        return Structure(State.INCOMPLETE, f"safetensors, {size_bytes} of {expected} bytes", kind=kinds.SAFETENSORS)
    whole = Structure(State.COMPLETE, "safetensors, all bytes there", kind=kinds.SAFETENSORS)
    return _whole_unless_sparse(file, whole)


def _hdf5(head: bytes, size_bytes: int) -> Structure:
    """Its superblock says how long the file is, as of when it was last flushed.

    Source: HDF5 File Format Specification 3.0, section II.A.
    """
    version, end = head[8] if len(head) > 8 else -1, None
    at, width = {0: (24, 13), 1: (28, 13), 2: (12, 9), 3: (12, 9)}.get(version, (0, 0))
    length = head[width] if 0 < width < len(head) else 0  # of an address, in bytes; the third is where the file ends
    if length in (2, 4, 8) and len(head) >= at + 3 * length:
        end = int.from_bytes(head[at + 2 * length : at + 3 * length], "little")
    if end is None:
        return Structure(State.INCOMPLETE, "HDF5, its superblock is damaged", kind=kinds.HDF5)
    if size_bytes < end:
        return Structure(State.INCOMPLETE, f"HDF5, {size_bytes} of {end} bytes", kind=kinds.HDF5)
    if version == 3 and head[11] & 1:
        return Structure(State.INCOMPLETE, "HDF5, not closed by whoever wrote it", kind=kinds.HDF5)
    if size_bytes > end:
        # What a kill leaves: data goes to the disk at once, and what tells of it when the file is closed, which then
        # ends where the superblock says.
        text = f"HDF5, not closed by whoever wrote it: {size_bytes} bytes, and it speaks of {end}"
        return Structure(State.INCOMPLETE, text, kind=kinds.HDF5)
    return Structure(State.COMPLETE, "HDF5, all bytes there", kind=kinds.HDF5)


def _whole_unless_sparse(file: FileView, whole: Structure) -> Structure:
    """A hole reads as zeros, and these formats have no checksum to find it by: it was never written."""
    hole = file.hole()
    if hole is not None:
        return Structure(State.INCOMPLETE, f"a hole at byte {hole}: never written", kind=whole.kind)
    return whole
