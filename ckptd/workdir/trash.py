"""Delete: rename a checkpoint into the trash inside the work dir first, then remove it from there; or restore it.

A name in it, `<milliseconds>-<n>`, tells nobody's resume code anything; the journal holds where it came from.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from ..core.entry import Entry
from ..disk.descriptors import (
    NO_ROOM,
    exists,
    listed,
    open_as_its_directory,
    open_to_owner,
    opened_own_dir,
    rename_new,
    sync_dir,
)
from ..errors import NoRoomError, RefusedError, why
from ..inspect.scan import PIN_ENDING, SIDECAR_ENDING, entry_of, stat_entry

NAME = "trash"
GROUP = ".group"  # a directory with the files of one checkpoint: see groups.py
_ITEM = re.compile(r"([0-9]{1,19})-([0-9]{1,9})(?:\.group)?(\.gone)?", re.ASCII)
_MOVED_UP = 1_000_000  # the numbers from which on what was moved up is called
_GONE = ".gone"  # claimed for removal: `restore` no longer sees it
_LATE_NS = 60 * 10**9  # clocks of hosts differ, and renames take their time


class ChangedError(Exception):
    """The checkpoint is no longer the one that was scanned, or somebody wants it now."""


class HolderOf(Protocol):
    """Tells who is at what bears a name, for a person to read; "" if nobody is. Raises OSError or RefusedError."""

    def __call__(self, name: str, *, dir_fd: int) -> str: ...


@dataclass(frozen=True)
class Item:
    """One thing in the trash, and when it came there (milliseconds since 1970)."""

    name: str
    at_ms: int
    claimed: bool


def put(
    entry: Entry, *, work_fd: int, trash_fd: int, now_ms: int, first: int = 0, who: HolderOf = lambda *_, **__: ""
) -> str:
    """Rename a checkpoint into the trash and return its name there; `sync` makes that durable.

    first: how many came there in the same millisecond. who: tells who is at it. Raises ChangedError if what bears the
    name is not `entry` any more or somebody is at it, FileNotFoundError if nothing bears it, OSError for what the
    system refuses. Follows no symlink, overwrites nothing.
    """
    items = (name for n in itertools.count(first) if not exists(name := f"{now_ms}-{n}", dir_fd=trash_fd))
    return put_as(entry, items, work_fd=work_fd, trash_fd=trash_fd, who=who)


def put_as(entry: Entry, items: Iterator[str], *, work_fd: int, trash_fd: int, who: HolderOf) -> str:
    """As `put`, under the first name of `items` that is free."""
    check_same(entry, work_fd, who)
    item = _rename_to_free(entry.name, items, src_dir_fd=work_fd, trash_fd=trash_fd)
    moved = stat_entry(item, dir_fd=trash_fd)
    if (moved.st_dev, moved.st_ino) != (entry.device, entry.inode):
        # Somebody swapped it between the look and the rename: it goes back, unless its name is taken again.
        try:
            rename_new(item, entry.name, src_dir_fd=trash_fd, dst_dir_fd=work_fd)
        except FileExistsError:
            kept = set_aside(item, "not-ours", trash_fd=trash_fd)
            raise ChangedError(
                f"replaced twice while it was being renamed; one of them is now .ckptd/trash/{kept}"
            ) from None
        raise ChangedError("replaced while it was being renamed")
    return item


def scores_of(name: str, *, dir_fd: int) -> tuple[int, int] | None:
    """Which file bears the scores of `name`, and when it changed (ns since 1970); None if there is none."""
    beside = name + SIDECAR_ENDING
    with contextlib.suppress(FileNotFoundError):
        if exists(beside, dir_fd=dir_fd):  # no name is too long to be asked about
            info = stat_entry(beside, dir_fd=dir_fd)
            return (info.st_ino, info.st_ctime_ns) if stat.S_ISREG(info.st_mode) else None
    return None


def put_beside(name: str, item: str, *, scores: tuple[int, int] | None, work_fd: int, trash_fd: int) -> None:
    """Rename the scores that `name` had before it went, as `scores_of` told, beside it in the trash. Any that came, or
    were written over, since then stay: whoever wrote them wants them, and no checkpoint of that name is left."""
    if scores is not None and scores == scores_of(name, dir_fd=work_fd):
        _move_beside(name, item, src_fd=work_fd, dst_fd=trash_fd, ours=True)


def put_left_beside(name: str, item: str, *, inode: int | None, work_fd: int, trash_fd: int) -> None:
    """Do what a crash has left undone of `put_beside`. inode: of the scores that went, if that was written down; else
    those go that were there before the item came into the trash. In doubt they stay."""
    scores = scores_of(name, dir_fd=work_fd)
    if scores is None:
        return
    if scores[0] == inode or (inode is None and scores[1] < stat_entry(item, dir_fd=trash_fd).st_ctime_ns):
        _move_beside(name, item, src_fd=work_fd, dst_fd=trash_fd, ours=True)


def unlink(entry: Entry, *, work_fd: int, who: HolderOf = lambda *_, **__: "") -> None:
    """Delete a file without the trash, where there is no room even for that. One call: it is there or it is gone.

    Raises as `put` does, and ChangedError for a directory, or several files, which cannot go in one call.
    """
    if entry.is_dir or entry.parts:
        raise ChangedError(f"{'several files, which need' if entry.parts else 'a directory, which needs'} the trash")
    scores = scores_of(entry.name, dir_fd=work_fd)
    check_same(entry, work_fd, who)
    os.unlink(entry.name, dir_fd=work_fd)
    with contextlib.suppress(OSError):  # its scores are a small file; where it cannot go it stays
        if scores is not None and scores == scores_of(entry.name, dir_fd=work_fd):
            os.unlink(entry.name + SIDECAR_ENDING, dir_fd=work_fd)


def sync(*, work_fd: int, trash_fd: int) -> None:
    """Make renames between the two directories durable: where it arrives first, then where it left."""
    sync_dir(trash_fd)
    sync_dir(work_fd)


def items(trash_fd: int) -> list[Item]:
    """What is in the trash, oldest first. Names that are not ours are left alone and not listed."""
    found = []
    with listed(trash_fd) as entries:
        for entry in entries:
            match = _ITEM.fullmatch(entry.name)
            if match:
                found.append(Item(entry.name, int(match[1]), match[3] is not None))
    return sorted(found, key=lambda item: age(item.name))


def is_a_copy(trash_fd: int) -> bool:
    """Whether what is there was copied with its directory, as into a backup: every item has changed since it was
    renamed to the name that tells when. Raises OSError if that cannot be told."""
    there = [item for item in items(trash_fd) if not item.claimed]
    changed = (stat_entry(item.name, dir_fd=trash_fd).st_ctime_ns for item in there)
    return bool(there) and all(ns > item.at_ms * 10**6 + _LATE_NS for item, ns in zip(there, changed))


def age(item: str) -> tuple[int, int]:
    """By this the items of a trash are sorted, the oldest first: when it was put there (ms since 1970), a number."""
    match = _ITEM.fullmatch(item)
    assert match is not None, item
    return int(match[1]), int(match[2])


def is_claimed(item: str) -> bool:
    """Whether somebody had begun to remove it: it may be half gone."""
    return item.endswith(_GONE)


def claim(item: str, *, trash_fd: int) -> str:
    """Take an item for removal, so that nobody restores it meanwhile; returns its new name."""
    if is_claimed(item):
        return item
    rename_new(item, item + _GONE, src_dir_fd=trash_fd, dst_dir_fd=trash_fd, ours=True)
    return item + _GONE


def remove(item: str, *, trash_fd: int) -> None:
    """Free what a claimed item holds. Gone already is success; raises OSError for what cannot be removed.

    A directory inside is first moved up into the trash: so depth costs neither memory nor descriptors, no link is
    followed, and what a crash leaves bears a name that the next start goes on with.
    """
    beside = item.removesuffix(_GONE) + SIDECAR_ENDING
    if exists(beside, dir_fd=trash_fd):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside, dir_fd=trash_fd)
    ahead = [item]
    names = (f"{item.partition('-')[0]}-{n}{_GONE}" for n in itertools.count(_MOVED_UP))
    while ahead:
        try:
            info = stat_entry(ahead[-1], dir_fd=trash_fd)
        except FileNotFoundError:
            ahead.pop()
            continue
        if not stat.S_ISDIR(info.st_mode):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(ahead[-1], dir_fd=trash_fd)
            ahead.pop()
            continue
        inside = _empty(ahead[-1], names, trash_fd)
        if not inside:
            with contextlib.suppress(FileNotFoundError):
                os.rmdir(ahead[-1], dir_fd=trash_fd)
            ahead.pop()
        ahead += inside


def _empty(name: str, names: Iterator[str], trash_fd: int) -> list[str]:
    """Unlink the files in a directory, and move its directories up; returns what those are called now."""
    moved = []
    open_to_owner(name, dir_fd=trash_fd)  # one that was protected against writing is still to go
    with opened_own_dir(name, dir_fd=trash_fd) as fd:
        with os.scandir(fd) as entries:
            inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, is_dir in inside:
            if not is_dir:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(inner, dir_fd=fd)
                continue
            open_to_owner(inner, dir_fd=fd)  # to move a directory is to write its `..`
            moved.append(_rename_to_free(inner, names, src_dir_fd=fd, trash_fd=trash_fd))
    return moved


def restore(item: str, name: str, *, work_fd: int, trash_fd: int) -> None:
    """Rename an item back to `name`, durably. Raises FileExistsError if the name is taken, OSError otherwise."""
    rename_back(item, name, work_fd=work_fd, trash_fd=trash_fd)
    sync_dir(work_fd)
    sync_dir(trash_fd)


def give_back(item: str, name: str | None, *, work_fd: int, trash_fd: int) -> str | None:
    """Let what somebody is at have its name again; where that is taken, or not known, it stays in the trash for good.

    Returns what it is called there then, or None if it is back; `sync` makes that durable. Raises OSError.
    """
    if name is not None:
        with contextlib.suppress(FileExistsError):
            rename_back(item, name, work_fd=work_fd, trash_fd=trash_fd)
            return None
    return set_aside(item, "held", trash_fd=trash_fd)


def set_aside(item: str, why_kept: str, *, trash_fd: int) -> str:
    """Keep an item in the trash for good, under a name that nothing ever frees; returns it."""
    kept = f"{why_kept}-{item}"
    rename_new(item, kept, src_dir_fd=trash_fd, dst_dir_fd=trash_fd, ours=True)
    _move_beside(item, kept, src_fd=trash_fd, dst_fd=trash_fd, ours=True)
    return kept


@contextlib.contextmanager
def opened_trash(own_fd: int) -> Iterator[int]:
    """A descriptor of the trash below the `.ckptd` directory `own_fd`, made if it is missing."""
    try:
        os.mkdir(NAME, dir_fd=own_fd)
    except FileExistsError:
        pass
    except OSError as error:
        if error.errno in NO_ROOM:
            raise NoRoomError(f"{NAME}: {why(error)}. Free a few kB on that disk, and run ckptd again") from error
        raise
    with opened_own_dir(NAME, dir_fd=own_fd) as fd:
        open_as_its_directory(fd, dir_fd=own_fd)
        yield fd


def bytes_in(trash_fd: int) -> dict[str, int]:
    """What each thing in the trash takes on the disk, in bytes, by its name; oldest first."""
    sizes = {}
    for item in items(trash_fd):
        with contextlib.suppress(OSError):  # freed meanwhile
            sizes[item.name] = entry_of(item.name, dir_fd=trash_fd).allocated_bytes
    return sizes


def total_bytes(own_fd: int | None) -> int:
    """What the trash below the `.ckptd` directory `own_fd` takes on the disk; 0 where there is none."""
    if own_fd is None:
        return 0
    try:
        with opened_own_dir(NAME, dir_fd=own_fd) as trash_fd:
            return sum(bytes_in(trash_fd).values())
    except FileNotFoundError:
        return 0


def rename_back(item: str, name: str, *, work_fd: int, trash_fd: int) -> None:
    """Rename an item back to `name`, with its scores. Raises as `restore` does; nothing has moved then."""
    if exists(name, dir_fd=work_fd):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    moved = _move_beside(item, name, src_fd=trash_fd, dst_fd=work_fd)
    try:
        rename_new(item, name, src_dir_fd=trash_fd, dst_dir_fd=work_fd)
    except OSError:
        if moved:
            _move_beside(name, item, src_fd=work_fd, dst_fd=trash_fd, ours=True)
        raise


def _move_beside(name: str, new_name: str, *, src_fd: int, dst_fd: int, ours: bool = False) -> bool:
    """Let the scores of `name` follow it to `new_name`; only a file, and nothing is overwritten. Whether they did."""
    if scores_of(name, dir_fd=src_fd) is None:
        return False
    old, new = name + SIDECAR_ENDING, new_name + SIDECAR_ENDING
    try:
        rename_new(old, new, src_dir_fd=src_fd, dst_dir_fd=dst_fd, ours=ours)
    except (FileNotFoundError, FileExistsError):
        return False
    return True


def _rename_to_free(name: str, items: Iterator[str], *, src_dir_fd: int, trash_fd: int) -> str:
    """Rename into the trash, to the first of these names that is free; returns it."""
    while True:
        item = next(items)
        with contextlib.suppress(FileExistsError):
            rename_new(name, item, src_dir_fd=src_dir_fd, dst_dir_fd=trash_fd, ours=True)
            return item


def check_same(entry: Entry, work_fd: int, who: HolderOf) -> None:
    """Raise what `put` does if `entry` is not to go now."""
    now = entry_of(entry.name, dir_fd=work_fd)
    if (now.device, now.inode) != (entry.device, entry.inode):
        raise ChangedError("replaced since it was scanned")
    if not now.is_same_as(entry):
        raise ChangedError("changed since it was scanned")
    if exists(entry.name + PIN_ENDING, dir_fd=work_fd):
        raise ChangedError("pinned since it was scanned")
    try:
        holder = who(entry.name, dir_fd=work_fd)
    except (FileNotFoundError, RefusedError) as error:  # in it, or under its name
        raise ChangedError("changed since it was scanned") from error
    if holder:
        raise ChangedError(holder)
