"""The last look, just before a checkpoint is renamed, and again in the trash before it is freed: who wants it now?

Decides what nobody knew when the plan was made; whoever holds or names a checkpoint then keeps it.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence

from ..core.entry import Entry
from ..core.naming import Names
from ..core.plan import Decision
from ..core.reason import Kind, Reason
from ..core.survey import Survey
from ..core.trackers import INSIDE
from ..disk.descriptors import exists, names_in, opened_dir, opened_file
from ..disk.filesystem import is_local
from ..disk.in_use import OpenFiles
from ..inspect.scan import entry_of, stat_entry
from ..inspect.verdict import OPEN_FOR_WRITING, has_writer, has_writer_inside
from ..workdir.place import IGNORE, is_ignored

PINNED_INSIDE = f"pinned by the {INSIDE} in it"


class Holders:
    """Tells who is at a checkpoint now: a writer, or of a directory also a reader, or somebody who has put a file
    into it by which ckptd leaves a directory alone, or T5X does.

    A single file's readers keep its inode and lose nothing. For one batch of looks on one file system: what a look
    through /proc tells, and whether leases work, is shared by them.
    """

    def __init__(self) -> None:
        self._open_files = OpenFiles()
        self._leases: bool | None = None

    def of(self, name: str, *, dir_fd: int) -> str:
        """Who, for a person to read; "" if nobody. Raises OSError if that cannot be told."""
        if self._leases is None:
            self._leases = is_local(dir_fd)
        writer: bool | None = False
        kind = stat_entry(name, dir_fd=dir_fd).st_mode
        if stat.S_ISDIR(kind):
            pid = self._open_files.user_of(name, dir_fd=dir_fd)
            if pid is not None:
                return f"open in process {pid}"
            with opened_dir(name, dir_fd=dir_fd) as fd:
                if is_ignored(fd):
                    return f"left alone by the {IGNORE} in it"
                if exists(INSIDE, dir_fd=fd):
                    return PINNED_INSIDE
                writer = self._leases and has_writer_inside(fd)
        elif self._leases and stat.S_ISREG(kind):
            with opened_file(name, dir_fd=dir_fd) as fd:
                writer = has_writer(fd)
        return OPEN_FOR_WRITING if writer else ""


def reasons_to_stay(
    survey: Survey, prunes: Sequence[Decision], named: Mapping[str, Sequence[Reason]], *, work_fd: int
) -> dict[str, Reason]:
    """By name, why some of `prunes` are not to go after all: `named` by now names them, what they rely on to go is no
    longer what was judged, or a file of theirs has come since. Raises OSError if that cannot be told."""
    stays = {d.checkpoint.name: reason for d in prunes if (reason := _why_named(d.checkpoint.entry, named))}
    for series in survey.plan.series:
        names = series.grid.template
        going = [d.checkpoint.name for d in prunes if d.checkpoint.series == names.text]
        if going and names.is_group:
            stays |= _lacking(names, [d.checkpoint.entry for d in prunes if d.checkpoint.series == names.text], work_fd)
        for kept in (*series.relied_on, *series.best) if going else ():
            if not all(is_still(file, file.name, dir_fd=work_fd) for file in kept.entry.files):
                text = f"{kept.name}, which stays in its place, has changed or is gone"
                stays |= dict.fromkeys(going, Reason(Kind.WAITS, text))
    return stays


def is_still(entry: Entry, name: str, *, dir_fd: int) -> bool:
    """Whether `name` is what was scanned as `entry`, not written to since. Raises OSError if that cannot be told."""
    try:
        now = entry_of(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    if now.forbidden:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)
    return now.is_same_as(entry)


def _why_named(entry: Entry, named: Mapping[str, Sequence[Reason]]) -> Reason | None:
    """What names it, or one of its files, and which."""
    for file in entry.files:
        if file.name in named:
            reason = named[file.name][0]
            return Reason(reason.kind, f"{file.name} is {reason}") if entry.parts else reason
    return None


def _lacking(names: Names, going: Sequence[Entry], work_fd: int) -> dict[str, Reason]:
    """Of checkpoints of several files, by name: that one was judged without a file that is there by now."""
    from ..core.groups import Group  # here, because most checkpoints are one file

    assert isinstance(names, Group)
    known = {file.name: entry for entry in going for file in entry.files}
    places = {place[:2]: entry for name, entry in known.items() if (place := names.place_of(name)) is not None}
    stays = {}
    for name in names_in(work_fd):
        place = names.place_of(name) if name not in known else None
        if place is not None and place[:2] in places:
            stays[places[place[:2]].name] = Reason(Kind.IN_FLIGHT, f"{name} has come since it was scanned")
    return stays
