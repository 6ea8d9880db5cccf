"""A work dir as it is: what bears a checkpoint's name, and what else matters for a decision. Reads, never writes.

It looks at names and inodes only; what the bytes say is verdict's business.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections import Counter
from collections.abc import Container
from dataclasses import dataclass, field, replace

from ..core.entry import Entry, LeftAlone
from ..core.finder import Finder
from ..core.forms import Known
from ..core.layouts import TRACKERS
from ..core.naming import PIN_ENDING as PIN_ENDING
from ..core.naming import SIDECAR_ENDING as SIDECAR_ENDING
from ..core.trackers import rows_of
from ..disk.descriptors import FORBIDDEN, exists, listed, names_in, opened_dir
from ..disk.walk import walk
from .links import names_behind

DCP_MARKER = ".metadata"
INDEX_ENDING = ".index.json"  # Hugging Face: names the shard of every tensor
TRAINER_STATE = "trainer_state.json"  # Hugging Face's Trainer writes it after all else
# What a directory's writer puts there last, or nearly so: its time is the checkpoint's.
MARKERS = {DCP_MARKER, TRAINER_STATE, "meta.pt", "metadata.json", "_CHECKPOINT_METADATA", ".metadata.json", "data.pt"}
# Where there is no marker, the files that hold the state itself tell one writing from another.
PARTS = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".ckpt")
SHARDS = (*PARTS, ".distcp")
STATES = (*PARTS, ".pdparams", ".pdopt")  # and of Paddle
# Names of parts without an ending: directories of parts, and what Orbax calls its data.
_PART_WITHOUT_ENDING = re.compile(
    r"(?:global_step|pytorch_model|optim|model|ema|actor|critic|policy|value|mp_rank|rank|dist_ckpt|checkpoint|weights"
    r"|state|train|default|params|arrays|items|unet|transformer|text_encoder|vae|controlnet)[^.]*|[0-9a-f]{16,}"
)
# What people and evaluators drop into directories: a change of these is none of the checkpoint's bytes.
_BESIDE = (".json", ".jsonl", ".txt", ".md", ".log", ".csv", ".tsv", ".yaml", ".yml", ".html", ".png", ".jpg", ".py")


@dataclass
class Found:
    """One look at a work dir. known: the series of the entries, by their texts. files: regular files that are no
    checkpoints. tracking: what the symlinks say that frameworks keep as their own pointers."""

    entries: list[Entry] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    pinned: set[str] = field(default_factory=set)
    linked: dict[str, str] = field(default_factory=dict)  # what a symlink in the work dir names -> that symlink
    known: dict[str, Known] = field(default_factory=dict)
    parts: list[Entry] = field(default_factory=list)  # of checkpoints of several files, which are among the entries
    files: list[str] = field(default_factory=list)
    tracking: dict[str, str] = field(default_factory=dict)


def scan(work_dir: str, dir_fd: int, finder: Finder) -> Found:
    """Look at `work_dir`, open as `dir_fd`, for what `finder` knows. Raises OSError if it cannot be read."""
    found = Found()
    if finder.learns:
        finder.learn(names_in(dir_fd))
    match = finder.match
    with listed(dir_fd) as entries:
        for entry in entries:
            name = entry.name
            _note_mark(found, work_dir, dir_fd, entry)
            matched = match(name)
            if matched is not None:
                _look_at(found, dir_fd, matched[0], matched[1], name)
            elif entry.is_file(follow_symlinks=False):
                found.files.append(name)
    if found.parts:
        from ..core.groups import Group, put_together  # few runs have any

        groups = {text: each.names for text, each in found.known.items() if isinstance(each.names, Group)}
        found.entries += put_together(found.parts, [each.name for each in found.left_alone], groups)
    return found


def scan_marks(work_dir: str, dir_fd: int, *, but: Container[str]) -> Found:
    """Look only for what is pinned there, or named by a symlink, and for files that may name something, `but` for those
    that are known to be checkpoints. Raises OSError if it cannot be read."""
    found = Found()
    with listed(dir_fd) as entries:
        for entry in entries:
            _note_mark(found, work_dir, dir_fd, entry)
            if entry.name not in but and entry.is_file(follow_symlinks=False):
                found.files.append(entry.name)
    return found


def entry_of(name: str, *, dir_fd: int) -> Entry:
    """One entry by its name, whatever that says. Raises OSError if it is missing or neither file nor directory."""
    info = stat_entry(name, dir_fd=dir_fd)
    if not (stat.S_ISREG(info.st_mode) or stat.S_ISDIR(info.st_mode)):
        raise OSError(errno.EINVAL, "neither a file nor a directory", name)
    return _entry("", name, 0, dir_fd, info)


def is_part(name: str) -> bool:
    """Whether what is called so in a directory is a part of a checkpoint, or a directory of some."""
    known = name in MARKERS or name.endswith((*STATES, ".distcp", INDEX_ENDING, ".ocdbt"))
    return known or _PART_WITHOUT_ENDING.fullmatch(name) is not None


def stat_entry(name: str, *, dir_fd: int) -> os.stat_result:
    """The inode that bears `name` itself, a symlink not followed."""
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False)


def _look_at(found: Found, dir_fd: int, known: Known, step: int, name: str) -> None:
    try:
        info = stat_entry(name, dir_fd=dir_fd)
    except FileNotFoundError:
        return  # gone since it was listed
    is_dir = stat.S_ISDIR(info.st_mode)
    is_file = stat.S_ISREG(info.st_mode)
    if is_file and not known.files:
        found.files.append(name)  # it may name something, as `last_checkpoint.rank_0` does
    if known.alone:
        if (known.directories and is_dir and _is_marked(name, dir_fd, known)) or (known.files and is_file):
            found.left_alone.append(LeftAlone(name, known.alone))
    elif stat.S_ISLNK(info.st_mode):
        found.left_alone.append(LeftAlone(name, "a symlink, not a checkpoint"))
    elif is_dir and not known.directories:
        found.left_alone.append(LeftAlone(name, f"a directory at the name of a file ({known.names.text})"))
    elif is_file and not known.files:
        found.left_alone.append(LeftAlone(name, f"a file at the name of a directory ({known.names.text})"))
    elif not (is_dir or is_file):
        found.left_alone.append(LeftAlone(name, "neither a file nor a directory"))
    else:
        try:
            entries = found.parts if known.names.is_group else found.entries
            entries.append(_entry(known.names.text, name, step, dir_fd, info))
            found.known.setdefault(known.names.text, known)
        except FileNotFoundError:
            return  # gone, or coming, while it was looked at
        except OSError as error:
            if error.errno not in (*FORBIDDEN, errno.ELOOP):
                raise
            found.left_alone.append(LeftAlone(name, f"cannot be read: {error.strerror}"))


def _is_marked(name: str, dir_fd: int, known: Known) -> bool:
    """Whether a directory that nobody asked for is what its name says, where the name alone says too little."""
    if not known.marker:
        return True
    try:
        with opened_dir(name, dir_fd=dir_fd) as fd:
            return exists(known.marker, dir_fd=fd)
    except OSError:
        return False


def _entry(series: str, name: str, step: int, dir_fd: int, info: os.stat_result) -> Entry:
    entry = Entry(
        series,
        name,
        step,
        info.st_size,
        info.st_mtime_ns,
        info.st_blocks * 512 if info.st_nlink == 1 else 0,
        info.st_ctime_ns,
        info.st_dev,
        info.st_ino,
        stat.S_ISDIR(info.st_mode),
        touched_ns=info.st_mtime_ns,
        changes=info.st_ctime_ns,
    )
    if not entry.is_dir:
        return entry
    # One that may not be read is still there; that it cannot be judged is said when it is judged.
    try:
        return _measured(entry, dir_fd)
    except PermissionError:
        return replace(entry, forbidden=True)


def _measured(entry: Entry, dir_fd: int) -> Entry:
    """A directory with what the files in it say of it: evaluators drop files into directories, so its marker's time
    counts where it has one, or else that of its parts."""
    inodes: dict[tuple[int, int], os.stat_result] = {}
    names_of: Counter[tuple[int, int]] = Counter()
    markers: list[os.stat_result] = []
    parts: list[os.stat_result] = []
    shards: list[os.stat_result] = []
    links: list[str] = []
    changes = 0
    for _, below, _, others in walk(entry.name, dir_fd=dir_fd):
        for each in others:
            is_marker = each.name in MARKERS or each.name.endswith(INDEX_ENDING)
            if each.is_file(follow_symlinks=False):
                inside = each.stat(follow_symlinks=False)
                inodes[inside.st_dev, inside.st_ino] = inside
                names_of[inside.st_dev, inside.st_ino] += 1
                if each.name.endswith(PARTS):
                    parts.append(inside)
                elif each.name.endswith(SHARDS):
                    shards.append(inside)
                if is_marker and not below:
                    markers.append(inside)
                if is_marker or not each.name.endswith(_BESIDE):
                    changes += inside.st_ctime_ns
            elif each.is_symlink() and is_part(each.name):
                links.append(f"{below}{each.name}")
    telling = markers or parts
    times = [each.st_mtime_ns for each in telling or inodes.values()] or [entry.mtime_ns]
    blocks = sum(each.st_blocks for inode, each in inodes.items() if each.st_nlink <= names_of[inode])
    every = [*parts, *shards] if markers else []
    younger = sum(each.st_mtime_ns > max(times) for each in every)
    return replace(
        entry,
        size_bytes=sum(each.st_size for each in inodes.values()),
        allocated_bytes=blocks * 512,
        mtime_ns=max(times),
        marker_bytes=sum(each.st_size for each in telling) if telling else None,
        touched_ns=max((each.st_mtime_ns for each in inodes.values()), default=max(times)),
        changes=changes,
        linked=min(links, default=""),
        older=len(every) - younger,
        younger=younger,
    )


def _note_mark(found: Found, work_dir: str, dir_fd: int, entry: os.DirEntry[str]) -> None:
    """Remember what a pin or a symlink says of others."""
    if entry.is_symlink():
        found.linked.update(dict.fromkeys(names_behind(entry.name, work_dir, dir_fd=dir_fd), entry.name))
        if rows_of(entry.name, TRACKERS):
            with contextlib.suppress(OSError):
                found.tracking[entry.name] = os.readlink(entry.name, dir_fd=dir_fd)
    if entry.name.endswith(PIN_ENDING):
        found.pinned.add(entry.name[: -len(PIN_ENDING)])
