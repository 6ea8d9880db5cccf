"""Is this checkpoint complete, incomplete or in flight, and what is the evidence. Reads, never unpickles.

See docs/design.md, section 5. What the bytes look like is the business of files and directories; here is who may
still be at them.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from ..core.checkpoint import State
from ..core.entry import Entry
from ..disk.descriptors import opened_dir, opened_file
from ..disk.opened import OpenedDirectory, OpenedFile
from ..disk.walk import walk_opened
from ..errors import RefusedError
from .files import Structure, structure_of_file

if TYPE_CHECKING:
    from ..core.siblings import Files

_ONE_SAVE_S = 1.0  # by so much the ranks of one save may differ, however little has to settle
SETTLE_LOCAL_S, SETTLE_NETWORK_S, SETTLE_UNMARKED_S = 5.0, 60.0, 300.0
OPEN_FOR_WRITING = "open for writing"


@dataclass(frozen=True)
class Verdict:
    """What the bytes say: a state with its evidence, or `known` False for bytes that are no checkpoint's.

    kind: whose bytes they are, as in core.kinds.
    structure: what they look like. activity: who is at them, or was a moment ago; empty if nobody.
    checksum: whether the content can be checked too. hasty: whole by its structure, before it has settled.
    settles_s: of one in flight, after how many quiet seconds it is to be judged again; None: once its writer is done.
    late: of a directory, what speaks against it if that part of it which is younger than its marker was not so before.
    files: of a directory that is whole, its parts.
    """

    state: State
    structure: str
    known: bool = True
    activity: str = ""
    settles_s: float | None = None
    checksum: bool = False
    kind: str = ""
    hasty: bool = False
    late: str = ""
    files: Files | None = None

    @property
    def evidence(self) -> str:
        """All there is to say, for a person to read."""
        return f"{self.structure}; {self.activity}" if self.activity else self.structure


@dataclass(frozen=True)
class Settling:
    """How long something must be unchanged before it counts as quiet, and whether leases tell more.

    local: leases work and no other host writes. settle_s: as asked for, or None for the file system's own.
    hasty: what its structure proves whole need not settle.
    """

    local: bool
    settle_s: float | None = None
    hasty: bool = False

    def quiet_s(self, *, marked: bool = True) -> float:
        if self.settle_s is not None:
            return self.settle_s
        if not marked:
            return SETTLE_UNMARKED_S
        return SETTLE_LOCAL_S if self.local else SETTLE_NETWORK_S


def judge(
    entry: Entry, *, dir_fd: int, settling: Settling, now_ns: int, wanted: frozenset[str] | None = None,
    by_template: bool = False,
) -> Verdict:  # fmt: skip
    """Judge one entry of a work dir; `wanted`, `by_template` as in `structure_of_directory`. Raises OSError if it
    cannot be read."""
    if entry.forbidden:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), entry.name)
    if entry.is_dir:
        return _directory(entry, dir_fd, settling, now_ns, wanted, by_template)
    with opened_file(entry.name, dir_fd=dir_fd) as fd:
        # The writer first: what is looked at after it has gone is what it left.
        writer = has_writer(fd) if settling.local else None
        found = structure_of_file(OpenedFile(fd), entry.name)
    return _judge(entry, found, writer, settling, now_ns)


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


def has_writer_inside(dir_fd: int) -> bool | None:
    """Whether any file in the directory or below it is open for writing: a slow rank's shard."""
    answer: bool | None = False
    for fd, _, _, others in walk_opened(dir_fd, forgiving=True):
        for entry in others:
            writer: bool | None = False
            with contextlib.suppress(OSError, RefusedError), opened_file(entry.name, dir_fd=fd) as file_fd:
                writer = has_writer(file_fd)
            if writer:
                return True
            answer = None if writer is None else answer
    return answer


def age_seconds(entry: Entry, now_ns: int) -> float:
    """Seconds since the entry last changed. A time in the future says nothing; then the inode's own time counts."""
    changed_ns = entry.mtime_ns if entry.mtime_ns <= now_ns else entry.ctime_ns
    return max(0, now_ns - changed_ns) / 1e9


def _directory(
    entry: Entry, dir_fd: int, settling: Settling, now_ns: int, wanted: frozenset[str] | None, by_template: bool
) -> Verdict:
    from .directories import structure_of_directory  # here, because most runs save files, and these are slow to import
    from .lateness import late_part
    from .own_files import own_files

    with opened_dir(entry.name, dir_fd=dir_fd) as fd:
        writer = has_writer_inside(fd) if settling.local else None
        found = structure_of_directory(OpenedDirectory(fd), wanted, by_template=by_template)
        moment_s = max(settling.quiet_s(), _ONE_SAVE_S)
        late = late_part(fd, found.kind, entry.touched_ns, moment_s) if found.state.whole else None
        files = own_files(fd, moment_s) if found.state.whole and not entry.linked else None
    if entry.linked:
        text = f"{entry.linked} is a symlink, which is not followed: not checked, so kept, and not relied on"
        return _judge(entry, replace(found, state=State.DOUBTFUL, text=text), writer, settling, now_ns)
    if late is not None and late.by_s > moment_s and not late.together:
        doubtful = replace(found, state=State.DOUBTFUL, text=late.text)
        verdict = _judge(replace(entry, mtime_ns=late.part_ns), doubtful, writer, settling, now_ns)
        return replace(verdict, structure=late.doubt) if verdict.state is State.DOUBTFUL else verdict
    if entry.touched_ns > entry.mtime_ns and not (found.state.whole and found.marked):
        # Written over in place: its marker is that of an earlier save, and neither marks nor dates this one.
        found, entry = replace(found, marked=False), replace(entry, mtime_ns=entry.touched_ns)
    verdict = _judge(entry, found, writer, settling, now_ns)
    return replace(verdict, late=late.doubt if late is not None else "", files=files)


def _judge(entry: Entry, found: Structure, writer: bool | None, settling: Settling, now_ns: int) -> Verdict:
    if writer:
        return Verdict(State.IN_FLIGHT, found.text, found.known, OPEN_FOR_WRITING, kind=found.kind)
    age_s, quiet_s = age_seconds(entry, now_ns), settling.quiet_s(marked=found.marked)
    # Whole so far, but nobody can tell whether its writer is done; or broken, but perhaps not yet whole.
    unsure = writer is None or found.state is not State.COMPLETE or not found.marked
    hasty = unsure and age_s < quiet_s and settling.hasty and found.known and found.state is State.COMPLETE
    if unsure and age_s < quiet_s and not hasty:
        activity = f"changed {age_s:.0f} s ago"
        return Verdict(State.IN_FLIGHT, found.text, found.known, activity, quiet_s - age_s, kind=found.kind)
    return Verdict(found.state, found.text, found.known, checksum=found.checksum, kind=found.kind, hasty=hasty)
