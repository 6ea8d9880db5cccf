"""Is this checkpoint complete, incomplete or in flight, and what is the evidence. Reads, never unpickles.

DESIGN section 5. The structure of known formats is checked here; the content of a torch zip is not read.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import signal
import struct
import zipfile
from dataclasses import dataclass

from .core.checkpoint import State
from .disk import opened_dir, opened_file
from .scan import DCP_MARKER, Entry

SETTLE_LOCAL_S, SETTLE_NETWORK_S, SETTLE_UNMARKED_S = 5.0, 60.0, 300.0

_ZIP = b"PK\x03\x04"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa8")  # the pickled magic number of torch before 1.6
_LONGEST_HEADER = 100_000_000  # bytes; the safetensors format's own limit
_HEAD = 4096


@dataclass(frozen=True)
class Verdict:
    """What the bytes say: a state with its evidence, or `known` False for bytes that are no checkpoint's.

    structure: what they look like. activity: who is at them, or was a moment ago; empty if nobody.
    settles_s: of one in flight, after how many quiet seconds it is to be judged again; None: once its writer is done.
    """

    state: State
    structure: str
    known: bool = True
    activity: str = ""
    settles_s: float | None = None

    @property
    def evidence(self) -> str:
        """All there is to say, for a person to read."""
        return f"{self.structure}; {self.activity}" if self.activity else self.structure


@dataclass(frozen=True)
class Settling:
    """How long something must be unchanged before it counts as quiet, and whether leases tell more.

    local: leases work and no other host writes. settle_s: as asked for, or None for the file system's own.
    """

    local: bool
    settle_s: float | None = None

    def quiet_s(self, *, marked: bool = True) -> float:
        if self.settle_s is not None:
            return self.settle_s
        if not marked:
            return SETTLE_UNMARKED_S
        return SETTLE_LOCAL_S if self.local else SETTLE_NETWORK_S


def judge(entry: Entry, *, dir_fd: int, settling: Settling, now_ns: int) -> Verdict:
    """Judge one entry of a work dir. Raises OSError if it cannot be read."""
    if entry.is_dir:
        return _directory(entry, dir_fd, settling, now_ns)
    with opened_file(entry.name, dir_fd=dir_fd) as fd:
        verdict = _structure(fd, os.fstat(fd).st_size)
        writer = has_writer(fd) if settling.local else None
    if writer:
        return Verdict(State.IN_FLIGHT, verdict.structure, verdict.known, "open for writing")
    age_s, quiet_s = age_seconds(entry, now_ns), settling.quiet_s()
    # Whole so far, but nobody can tell whether its writer is done; or broken, but perhaps not yet whole.
    unsure = writer is None or verdict.state is not State.COMPLETE
    if unsure and age_s < quiet_s:
        return _young(verdict.structure, age_s, quiet_s, verdict.known)
    return verdict


def has_writer(fd: int) -> bool | None:
    """Whether any process on this host has the file behind the read-only `fd` open for writing; None: cannot tell.

    A read lease is refused with EAGAIN while there is a writer. It is dropped at once; should somebody open the
    file for writing in that moment, the kernel signals the lease's holder: with SIGURG, which is ignored by default,
    and not with SIGIO, which kills.
    """
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return True if error.errno == errno.EAGAIN else None
    with contextlib.suppress(OSError):
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return False


def age_seconds(entry: Entry, now_ns: int) -> float:
    """Seconds since the entry last changed. A time in the future says nothing; then the inode's own time counts."""
    changed_ns = entry.mtime_ns if entry.mtime_ns <= now_ns else entry.ctime_ns
    return max(0, now_ns - changed_ns) / 1e9


def _structure(fd: int, size_bytes: int) -> Verdict:
    head = os.pread(fd, _HEAD, 0)
    if not head:
        return Verdict(State.INCOMPLETE, "empty")
    if head.startswith(_ZIP):
        return _zip(fd, head)
    if head.startswith(_LEGACY):
        return Verdict(State.UNVERIFIABLE, "torch's legacy format: holds no check")
    if len(head) < len(_LEGACY) and (_ZIP.startswith(head) or _LEGACY.startswith(head)):
        return Verdict(State.INCOMPLETE, f"ends after {len(head)} bytes")
    if len(head) > 8 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] <= _LONGEST_HEADER:
        return _safetensors(fd, head, size_bytes)
    if not any(head):
        return Verdict(State.INCOMPLETE, "begins with zeros: its data never reached the disk", known=False)
    return Verdict(State.UNVERIFIABLE, "bytes of no known format", known=False)


def _zip(fd: int, head: bytes) -> Verdict:
    try:
        with open(fd, "rb", closefd=False) as file, zipfile.ZipFile(file) as archive:
            members = archive.infolist()
            size_bytes = os.fstat(fd).st_size
    except (
        zipfile.BadZipFile,
        OSError,
        ValueError,
        EOFError,
        struct.error,
        NotImplementedError,
        OverflowError,
    ) as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise  # the disk's trouble; EINVAL is an offset in the file that leads nowhere
        # Its first member tells what it would have become: torch begins with <name>/data.pkl.
        name_length = struct.unpack_from("<H", head, 26)[0] if len(head) >= 30 else 0
        first = head[30 : 30 + name_length]
        known = len(first) < name_length or not first or _is_pickle_member(first.decode("utf-8", "replace"))
        return Verdict(State.INCOMPLETE, "no end record: cut short", known)
    known = any(_is_pickle_member(member.filename) for member in members)
    for member in members:
        if member.header_offset + member.compress_size > size_bytes:
            return Verdict(State.INCOMPLETE, f"member {member.filename} lies outside the file", known)
    return Verdict(State.COMPLETE, "torch zip, structure intact" if known else "zip, structure intact", known)


def _is_pickle_member(name: str) -> bool:
    return name.rpartition("/")[2] == "data.pkl"


def _safetensors(fd: int, head: bytes, size_bytes: int) -> Verdict:
    (length,) = struct.unpack("<Q", head[:8])
    text = os.pread(fd, length, 8)
    if len(text) < length:
        return Verdict(State.INCOMPLETE, "safetensors, header cut short")
    try:
        header = json.loads(text)
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        end = max(ends, default=0)
        if not isinstance(end, int):
            raise TypeError("an offset is not a number")
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return Verdict(State.UNVERIFIABLE, "bytes of no known format", known=False)
    expected = 8 + length + end
    if size_bytes != expected:
        return Verdict(State.INCOMPLETE, f"safetensors, {size_bytes} of {expected} bytes")
    return Verdict(State.COMPLETE, "safetensors, all bytes there")


def _directory(entry: Entry, dir_fd: int, settling: Settling, now_ns: int) -> Verdict:
    with opened_dir(entry.name, dir_fd=dir_fd) as fd:
        names = set(os.listdir(fd))
        marked = DCP_MARKER in names and os.stat(DCP_MARKER, dir_fd=fd, follow_symlinks=False).st_size > 0
    sharded = any(name.endswith(".distcp") for name in names)
    if not (marked or sharded):
        return Verdict(State.UNVERIFIABLE, "a directory without any known marker", known=False)
    age_s = age_seconds(entry, now_ns)
    quiet_s = 0.0 if marked and settling.local else settling.quiet_s(marked=marked)
    structure = "distributed checkpoint, " + (".metadata there" if marked else "not marked complete")
    if age_s < quiet_s:
        return _young(structure, age_s, quiet_s, known=True)
    return Verdict(State.COMPLETE if marked and sharded else State.INCOMPLETE, structure)


def _young(structure: str, age_s: float, quiet_s: float, known: bool) -> Verdict:
    return Verdict(State.IN_FLIGHT, structure, known, f"changed {age_s:.0f} s ago", quiet_s - age_s)
