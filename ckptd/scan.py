"""A work dir as it is: what bears a checkpoint's name, and what else matters for a decision. Reads, never writes.

It looks at names and inodes only; what the bytes say is verify's business.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field

from .core.layouts import takes_directories
from .core.naming import Template
from .disk import FORBIDDEN, check_depth, opened_dir

PIN_ENDING = ".keep"
SIDECAR_ENDING = ".metrics.json"  # the scores beside a checkpoint, which go where it goes
DCP_MARKER = ".metadata"
INDEX_ENDING = ".index.json"  # Hugging Face: names the shard of every tensor
TRAINER_STATE = "trainer_state.json"  # Hugging Face's Trainer writes it after all else
_MARKERS = (DCP_MARKER, TRAINER_STATE)


@dataclass(frozen=True)
class Entry:
    """Something that bears a checkpoint's name and could be one by its kind.

    mtime_ns: of the file, or of a directory's marker, or else of its newest file. size_bytes: of all files.
    allocated_bytes: what deleting it frees (each inode once). device, inode: of the entry itself.
    """

    series: str
    name: str
    step: int
    size_bytes: int
    allocated_bytes: int
    mtime_ns: int
    ctime_ns: int
    device: int
    inode: int
    is_dir: bool
    marker_bytes: int | None = None
    forbidden: bool = False


@dataclass(frozen=True)
class LeftAlone:
    """Something that bears a checkpoint's name and is none, with the reason."""

    name: str
    reason: str


@dataclass
class Found:
    """One look at a work dir."""

    entries: list[Entry] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    linked: dict[str, str] = field(default_factory=dict)  # what a symlink in the work dir names -> that symlink


def scan(work_dir: str, dir_fd: int, templates: Sequence[Template]) -> Found:
    """Look at `work_dir`, open as `dir_fd`. Raises OSError if it cannot be read."""
    found = Found()
    with os.scandir(dir_fd) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_symlink():
                _note_link(found, work_dir, dir_fd, name)
            if name.endswith(PIN_ENDING):
                found.pinned.add(name[: -len(PIN_ENDING)])
            for template in templates:
                step = template.step_of(name)
                if step is not None:
                    _look_at(found, dir_fd, template, name, step)
                    break
    return found


def entry_of(name: str, *, dir_fd: int) -> Entry:
    """One entry by its name, whatever that says. Raises OSError if it is missing or neither file nor directory."""
    info = stat_entry(name, dir_fd=dir_fd)
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        raise OSError(errno.EINVAL, "neither a file nor a directory", name)
    return _entry("", name, 0, dir_fd, info)


def stat_entry(name: str, *, dir_fd: int) -> os.stat_result:
    """The inode that bears `name` itself, a symlink not followed."""
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _look_at(found: Found, dir_fd: int, template: Template, name: str, step: int) -> None:
    try:
        info = stat_entry(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return  # gone since it was listed
    is_dir = stat.S_ISDIR(info.st_mode)
    if stat.S_ISLNK(info.st_mode):
        found.left_alone.append(LeftAlone(name, "a symlink, not a checkpoint"))
    elif is_dir and not takes_directories(template):
        found.left_alone.append(LeftAlone(name, f"a directory at the name of a file ({template.text})"))
    elif not (is_dir or stat.S_ISREG(info.st_mode)):
        found.left_alone.append(LeftAlone(name, "neither a file nor a directory"))
    else:
        try:
            found.entries.append(_entry(template.text, name, step, dir_fd, info))
        except FileNotFoundError:
            return  # gone, or coming, while it was looked at
        except OSError as error:
            if error.errno not in (*FORBIDDEN, errno.ELOOP):
                raise
            found.left_alone.append(LeftAlone(name, f"cannot be read: {error.strerror}"))


def _entry(series: str, name: str, step: int, dir_fd: int, info: os.stat_result) -> Entry:
    size_bytes, allocated_bytes, mtime_ns = info.st_size, info.st_blocks * 512, info.st_mtime_ns
    is_dir = stat.S_ISDIR(info.st_mode)
    marker_bytes, forbidden = None, False
    if is_dir:
        # One that may not be read is still there; that it cannot be judged is said when it is judged.
        try:
            size_bytes, allocated_bytes, mtime_ns, marker_bytes = _measure(name, dir_fd, info)
        except PermissionError:
            forbidden = True
    return Entry(
        series,
        name,
        step,
        size_bytes,
        allocated_bytes,
        mtime_ns,
        info.st_ctime_ns,
        info.st_dev,
        info.st_ino,
        is_dir,
        marker_bytes,
        forbidden,
    )


def _measure(name: str, dir_fd: int, info: os.stat_result) -> tuple[int, int, int, int | None]:
    """Apparent bytes, allocated bytes, time of writing and size of the marker of a directory: evaluators drop files
    into directories, so its marker's time counts where it has one."""
    inodes: dict[tuple[int, int], os.stat_result] = {}
    markers: list[os.stat_result] = []

    def walk(name: str, dir_fd: int, depth: int) -> None:
        check_depth(depth, name)
        with opened_dir(name, dir_fd=dir_fd) as fd, os.scandir(fd) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    walk(entry.name, fd, depth + 1)
                elif entry.is_file(follow_symlinks=False):
                    inside = entry.stat(follow_symlinks=False)
                    inodes[inside.st_dev, inside.st_ino] = inside
                    if depth == 0 and (entry.name in _MARKERS or entry.name.endswith(INDEX_ENDING)):
                        markers.append(inside)

    walk(name, dir_fd, 0)
    times = [each.st_mtime_ns for each in markers or inodes.values()] or [info.st_mtime_ns]
    sizes, blocks = (sum(getattr(i, kind) for i in inodes.values()) for kind in ("st_size", "st_blocks"))
    return sizes, blocks * 512, max(times), sum(each.st_size for each in markers) if markers else None


def _note_link(found: Found, work_dir: str, dir_fd: int, link: str) -> None:
    """Remember what a symlink names inside the work dir: the name it holds, and the one it ends at."""
    try:
        target = os.readlink(link, dir_fd=dir_fd)
    except OSError:
        return
    here = os.path.realpath(work_dir)
    for path in (os.path.normpath(os.path.join(here, target)), os.path.realpath(os.path.join(here, link))):
        inside = os.path.relpath(path, here).split(os.sep)[0]
        if inside not in (os.curdir, os.pardir) and inside != link:
            found.linked[inside] = link
