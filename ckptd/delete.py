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

from .disk import NO_ROOM, exists, open_as_its_directory, opened_own_dir, sync_dir
from .errors import NoRoomError, why
from .scan import PIN_ENDING, SIDECAR_ENDING, Entry, entry_of, stat_entry

NAME = "trash"
_ITEM = re.compile(r"([0-9]{1,19})-([0-9]{1,9})(\.gone)?", re.ASCII)
_MOVED_UP = 1_000_000  # the numbers from which on what was moved up is called
_GONE = ".gone"  # claimed for removal: `restore` no longer sees it


class ChangedError(Exception):
    """The checkpoint is no longer the one that was scanned, or can no longer be judged as it was."""


@dataclass(frozen=True)
class Item:
    """One thing in the trash, and when it came there (milliseconds since 1970)."""

    name: str
    at_ms: int
    claimed: bool


def put(entry: Entry, *, work_fd: int, trash_fd: int, now_ms: int, first: int = 0) -> str:
    """Rename a checkpoint into the trash and return its name there; `sync` makes that durable.

    first: how many came there in the same millisecond. Raises ChangedError if what bears the name is not `entry` any
    more, FileNotFoundError if nothing does, OSError for what the system refuses. Follows no symlink, overwrites
    nothing.
    """
    _check_same(entry, work_fd)
    item = next(name for n in itertools.count(first) if not exists(name := f"{now_ms}-{n}", dir_fd=trash_fd))
    os.rename(entry.name, item, src_dir_fd=work_fd, dst_dir_fd=trash_fd)
    moved = stat_entry(item, dir_fd=trash_fd)
    if (moved.st_dev, moved.st_ino) != (entry.device, entry.inode):
        # Somebody swapped it between the look and the rename: it goes back, unless its name is taken again.
        if not exists(entry.name, dir_fd=work_fd):
            os.rename(item, entry.name, src_dir_fd=trash_fd, dst_dir_fd=work_fd)
            raise ChangedError("replaced while it was being renamed")
        # Under a name that is none of ours, so that nothing ever frees it.
        os.rename(item, f"not-ours-{item}", src_dir_fd=trash_fd, dst_dir_fd=trash_fd)
        raise ChangedError(
            f"replaced twice while it was being renamed; one of them is now .ckptd/trash/not-ours-{item}"
        )
    return item


def put_beside(name: str, item: str, *, work_fd: int, trash_fd: int) -> None:
    """Rename what bears the scores of `name` beside its checkpoint in the trash. None there is no error.

    A crash between the two renames leaves it behind: the next start calls this again.
    """
    _move_beside(name, item, src_fd=work_fd, dst_fd=trash_fd)


def unlink(entry: Entry, *, work_fd: int) -> None:
    """Delete a file without the trash, where there is no room even for that. One call: it is there or it is gone.

    Raises as `put` does, and ChangedError for a directory, which cannot go in one call.
    """
    if entry.is_dir:
        raise ChangedError("a directory, which needs the trash")
    _check_same(entry, work_fd)
    os.unlink(entry.name, dir_fd=work_fd)
    with contextlib.suppress(OSError):  # its scores are a small file; where it cannot go it stays
        os.unlink(entry.name + SIDECAR_ENDING, dir_fd=work_fd)


def sync(*, work_fd: int, trash_fd: int) -> None:
    """Make renames between the two directories durable: where it arrives first, then where it left."""
    sync_dir(trash_fd)
    sync_dir(work_fd)


def items(trash_fd: int) -> list[Item]:
    """What is in the trash, oldest first. Names that are not ours are left alone and not listed."""
    found = []
    with os.scandir(trash_fd) as entries:
        for entry in entries:
            match = _ITEM.fullmatch(entry.name)
            if match:
                found.append(Item(entry.name, int(match[1]), match[3] is not None))
    return sorted(found, key=lambda item: age(item.name))


def age(item: str) -> tuple[int, int]:
    """By this the items of a trash are sorted, the oldest first: when it was put there (ms since 1970), a number."""
    match = _ITEM.fullmatch(item)
    assert match is not None, item
    return int(match[1]), int(match[2])


def claim(item: str, *, trash_fd: int) -> str:
    """Take an item for removal, so that nobody restores it meanwhile; returns its new name."""
    if item.endswith(_GONE):
        return item
    os.rename(item, item + _GONE, src_dir_fd=trash_fd, dst_dir_fd=trash_fd)
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
    with opened_own_dir(name, dir_fd=trash_fd) as fd:
        with contextlib.suppress(PermissionError):
            os.fchmod(fd, 0o700)  # one that was protected against writing is still to go
        with os.scandir(fd) as entries:
            inside = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries]
        for inner, is_dir in inside:
            if not is_dir:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(inner, dir_fd=fd)
                continue
            with contextlib.suppress(PermissionError):
                os.chmod(inner, 0o700, dir_fd=fd)  # to move a directory is to write its `..`
            free = next(each for each in names if not exists(each, dir_fd=trash_fd))
            os.rename(inner, free, src_dir_fd=fd, dst_dir_fd=trash_fd)
            moved.append(free)
    return moved


def restore(item: str, name: str, *, work_fd: int, trash_fd: int) -> None:
    """Rename an item back to `name`, durably. Raises FileExistsError if the name is taken, OSError otherwise."""
    if exists(name, dir_fd=work_fd):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), name)
    _move_beside(item, name, src_fd=trash_fd, dst_fd=work_fd)
    os.rename(item, name, src_dir_fd=trash_fd, dst_dir_fd=work_fd)
    sync_dir(work_fd)
    sync_dir(trash_fd)


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


def _move_beside(name: str, new_name: str, *, src_fd: int, dst_fd: int) -> None:
    """Let the scores of `name` follow it to `new_name`; only a file, and nothing is overwritten."""
    old, new = name + SIDECAR_ENDING, new_name + SIDECAR_ENDING
    if not exists(old, dir_fd=src_fd):
        return
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISREG(stat_entry(old, dir_fd=src_fd).st_mode) and not exists(new, dir_fd=dst_fd):
            os.rename(old, new, src_dir_fd=src_fd, dst_dir_fd=dst_fd)


def _check_same(entry: Entry, work_fd: int) -> None:
    now = entry_of(entry.name, dir_fd=work_fd)
    if (now.device, now.inode) != (entry.device, entry.inode):
        raise ChangedError("replaced since it was scanned")
    if any(getattr(now, what) != getattr(entry, what) for what in ("size_bytes", "mtime_ns", "touched_ns")):
        raise ChangedError("changed since it was scanned")
    if exists(entry.name + PIN_ENDING, dir_fd=work_fd):
        raise ChangedError("pinned since it was scanned")
