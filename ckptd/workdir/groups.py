"""A checkpoint of several files goes into the trash as one and comes back as one: in a directory there, with a record.

While they go in, or come back, that directory bears a name that nothing frees. What a crash leaves of that is undone at
the next start.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import stat
from collections.abc import Iterator
from dataclasses import replace

from ..core.entry import Entry
from ..disk.descriptors import (
    NO_ROOM,
    exists,
    names_in,
    open_as_its_directory,
    opened_own_dir,
    rename_new,
    sync_dir,
    temporary_name,
)
from ..inspect.scan import entry_of, stat_entry
from . import trash
from .journal import Line
from .record import RECORD, Record, read_record, write_record
from .trash import GROUP

# What the directory is called while parts go in, and while they come back. In it they are called 0, 1, 2.
_GOING, _BACK = ".going", ".back"
_FORMS = (GROUP, _GOING, _BACK)


def is_group(item: str) -> bool:
    """Whether an item of the trash holds several files."""
    return item.endswith(GROUP)


def new_item(*, trash_fd: int, now_ms: int, first: int) -> str:
    """A name in the trash that no group has, whatever becomes of that; as `trash.put` finds one for a file."""
    for n in itertools.count(first):
        names = (f"{now_ms}-{n}{form}" for form in (*_FORMS, f"{GROUP}.gone"))
        if not any(exists(name, dir_fd=trash_fd) for name in names):
            return f"{now_ms}-{n}{GROUP}"
    raise AssertionError


def put(entry: Entry, line: Line, *, work_fd: int, trash_fd: int, who: trash.HolderOf) -> None:
    """Rename the parts of `entry` into the trash, as the item that `line` names, once a record of them is durable.

    Raises as `trash.put` does, FileNotFoundError only if none is there any more. `bring_back` is then to follow, and
    where nothing was raised, `sync` and `commit`.
    """
    gone = [part.name for part in entry.parts if not exists(part.name, dir_fd=work_fd)]
    if len(gone) == len(entry.parts):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), entry.name)
    if gone:
        raise trash.ChangedError(f"{gone[0]} is gone since it was scanned")
    for part in entry.parts:
        _checked(part, work_fd, who)
    with _made(Record(line, tuple(part.identity[:3] for part in entry.parts)), trash_fd) as fd:
        for n, part in enumerate(entry.parts):
            scores = trash.scores_of(part.name, dir_fd=work_fd)
            try:
                trash.put_as(part, iter([str(n)]), work_fd=work_fd, trash_fd=fd, who=who)
            except FileNotFoundError:
                raise trash.ChangedError(f"{part.name} is gone since it was scanned") from None
            except trash.ChangedError as error:
                raise trash.ChangedError(f"{part.name}: {error}") from error
            with contextlib.suppress(OSError):  # a small file, which then stays
                trash.put_beside(part.name, str(n), scores=scores, work_fd=work_fd, trash_fd=fd)


def sync(item: str, *, trash_fd: int) -> None:
    """Make durable that the parts have come; `trash.sync` is to follow. Raises SyncError."""
    with opened_own_dir(_called(item, _GOING), dir_fd=trash_fd) as fd:
        sync_dir(fd)


def commit(item: str, *, trash_fd: int) -> None:
    """Give a group of which all are in the trash, durably, the name by which it is freed; `sync_dir` is to follow."""
    rename_new(_called(item, _GOING), item, src_dir_fd=trash_fd, dst_dir_fd=trash_fd, ours=True)


def bring_back(item: str, *, work_fd: int, trash_fd: int) -> str | None:
    """Let all that is in the trash of a group have its name again, durably; where one of the names is taken, or not
    known, all of it stays in the trash for good.

    Returns what it is called there then, or None if all are back. Raises OSError; then it is to be called again.
    """
    at = _taken_out(item, trash_fd)
    if at is None:
        return None
    with opened_own_dir(at, dir_fd=trash_fd) as fd:
        record = read_record(fd)
        while True:
            try:
                if record is not None:
                    _rename_back(record, work_fd=work_fd, fd=fd)
            except FileExistsError:
                return _set_aside(at, trash_fd)
            if set(names_in(fd)) - {RECORD, temporary_name(RECORD)}:
                return _set_aside(at, trash_fd)
            sync_dir(work_fd)
            sync_dir(fd)
            if _is_removed(at, fd, trash_fd):
                return None
            if record is not None:  # more has come: without locks, another ckptd may be at it
                write_record(record, fd)


def restore(item: str, *, work_fd: int, trash_fd: int) -> None:
    """Let all parts of a group have their names again, durably, or none.

    Raises FileExistsError if a name is taken, OSError otherwise.
    """
    with opened_parts(item, trash_fd=trash_fd) as (fd, parts):
        record = read_record(fd)
        if record is None or len(parts) < len(record.names):
            raise FileNotFoundError(errno.ENOENT, f"some of its files are no longer in {trash.NAME}/{item}", item)
        for name in parts.values():
            if exists(name, dir_fd=work_fd):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    at = _taken_out(item, trash_fd)  # nobody frees it from here on
    if at is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), item)
    with opened_own_dir(at, dir_fd=trash_fd) as fd:
        try:
            _rename_back(record, work_fd=work_fd, fd=fd)
        except OSError:
            rename_new(at, item, src_dir_fd=trash_fd, dst_dir_fd=trash_fd, ours=True)
            raise
        sync_dir(work_fd)
        sync_dir(fd)
        _is_removed(at, fd, trash_fd)


def record_of(item: str, *, trash_fd: int) -> Record | None:
    """What is known of a group in the trash; None if that is nothing. Raises OSError."""
    with opened_own_dir(item, dir_fd=trash_fd) as fd:
        return read_record(fd)


@contextlib.contextmanager
def opened_parts(item: str, *, trash_fd: int) -> Iterator[tuple[int, dict[str, str]]]:
    """The directory of a group, and what is in it: the name there, and outside. Raises OSError if it is not there."""
    at = next((at for form in _FORMS if exists(at := _called(item, form), dir_fd=trash_fd)), item)
    with opened_own_dir(at, dir_fd=trash_fd) as fd:
        record = read_record(fd)
        names = record.names if record else []
        yield fd, {str(n): name for n, name in enumerate(names) if exists(str(n), dir_fd=fd)}


def entries_of(item: str, *, trash_fd: int) -> list[Entry]:
    """The parts of a group as they are in the trash, each with its name outside. Raises OSError."""
    with opened_parts(item, trash_fd=trash_fd) as (fd, names):
        return [replace(entry_of(inside, dir_fd=fd), name=name) for inside, name in names.items()]


def half_done(trash_fd: int) -> list[str]:
    """The groups that are neither in the trash nor out of it, as a crash leaves them, by the names of their items."""
    names = (name for name in names_in(trash_fd) if name.endswith((_GOING, _BACK)))
    return sorted({_called(name, GROUP) for name in names if name[:1].isdigit()})


@contextlib.contextmanager
def _made(record: Record, trash_fd: int) -> Iterator[int]:
    """A descriptor of a new directory with the record, all of that durable."""
    assert record.line.trash is not None
    going = _called(record.line.trash, _GOING)
    try:
        os.mkdir(going, dir_fd=trash_fd)
        with opened_own_dir(going, dir_fd=trash_fd) as fd:
            open_as_its_directory(fd, dir_fd=trash_fd)
            write_record(record, fd)
            sync_dir(trash_fd)
            yield fd
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(error.errno, f"{error.strerror}: files that go together need a few kB for a record") from error


def _called(item: str, form: str) -> str:
    return item.rpartition(".")[0] + form


def _checked(part: Entry, work_fd: int, who: trash.HolderOf) -> None:
    try:
        trash.check_same(part, work_fd, who)
    except trash.ChangedError as error:
        raise trash.ChangedError(f"{part.name}: {error}") from error


def _taken_out(item: str, trash_fd: int) -> str | None:
    """What a group's directory is called that is no item of the trash any more; None if it is nowhere."""
    at = _called(item, _BACK)
    for form in (_GOING, GROUP):
        with contextlib.suppress(FileNotFoundError):
            rename_new(_called(item, form), at, src_dir_fd=trash_fd, dst_dir_fd=trash_fd, ours=True)
            sync_dir(trash_fd)  # before any part comes back: an item lacks none
    return at if exists(at, dir_fd=trash_fd) else None


def _rename_back(record: Record, *, work_fd: int, fd: int) -> None:
    """Rename what is in the directory `fd` back. Raises OSError; then all of it is where it was."""
    inside = [(str(n), name) for n, name in enumerate(record.names) if exists(str(n), dir_fd=fd)]
    for item, name in inside:
        if _is_back(item, name, work_fd=work_fd, fd=fd):
            os.unlink(item, dir_fd=fd)  # a crash came between its second name and the loss of its first
        elif exists(name, dir_fd=work_fd) and exists(item, dir_fd=fd):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    back: list[tuple[str, str]] = []
    try:
        for item, name in inside:
            if not exists(item, dir_fd=fd):
                continue
            try:
                trash.rename_back(item, name, work_fd=work_fd, trash_fd=fd)
            except (FileNotFoundError, FileExistsError):
                if exists(item, dir_fd=fd):
                    raise  # else another process has brought it back
            else:
                back.append((item, name))
    except OSError:
        for item, name in back:
            with contextlib.suppress(OSError):
                scores = trash.scores_of(name, dir_fd=work_fd)
                rename_new(name, item, src_dir_fd=work_fd, dst_dir_fd=fd, ours=True)
                trash.put_beside(name, item, scores=scores, work_fd=work_fd, trash_fd=fd)
        raise


def _is_back(item: str, name: str, *, work_fd: int, fd: int) -> bool:
    """Whether a file bears its name already, and that in the trash too."""
    try:
        here, there = stat_entry(name, dir_fd=work_fd), stat_entry(item, dir_fd=fd)
    except FileNotFoundError:
        return False
    return stat.S_ISREG(here.st_mode) and os.path.samestat(here, there)


def _set_aside(at: str, trash_fd: int) -> str:
    kept = f"held-{_called(at, GROUP)}"
    rename_new(at, kept, src_dir_fd=trash_fd, dst_dir_fd=trash_fd, ours=True)
    return kept


def _is_removed(at: str, fd: int, trash_fd: int) -> bool:
    """Remove the record and the directory `at`, open as `fd`; whether that was empty."""
    for name in (temporary_name(RECORD), RECORD):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=fd)
    try:
        os.rmdir(at, dir_fd=trash_fd)
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        return False
    return True
