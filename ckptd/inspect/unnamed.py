"""Series of checkpoints whose names nobody has given: names that differ in a number, and bytes that bear it out."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import NamedTuple

from ..core import kinds
from ..core.checkpoint import State
from ..core.finder import Finder
from ..core.guess import Guess, guesses
from ..core.layouts import DEFAULT_LAYOUTS, Layout
from ..disk.descriptors import listed, names_in, opened_dir, opened_file
from ..disk.opened import OpenedFile
from ..errors import CkptdError
from .directories import is_claimed, structure_of_directory
from .files import structure_of_file

# Of files whose bytes are no proof, those that a loader of checkpoints takes.
_ENDINGS = (".ckpt", ".h5", ".hdf5", ".keras", ".msgpack", ".npz", ".params", ".pdparams", ".pkl", ".pickle", ".pt",
            ".pth", ".tar", ".weights", ".zip")  # fmt: skip
_HEADS = (b"PK\x03\x04", b"\x89HDF", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"\x1f\x8b")


class Series(NamedTuple):
    """A series that nobody has named, and what its files are."""

    guess: Guess
    what: str


def series_in(dir_fd: int) -> list[Series]:
    """The series in a directory that have a checkpoint's bytes."""
    with listed(dir_fd) as entries:
        there = [(entry.name, entry.is_dir(follow_symlinks=False)) for entry in entries
                 if not entry.name.startswith(".") and (entry.is_dir(follow_symlinks=False)
                                                        or entry.is_file(follow_symlinks=False))]  # fmt: skip
    found: list[Series] = []
    for guess in guesses(name for name, is_dir in there if not is_dir):
        what = _files_of(guess, dir_fd)
        if what:
            found.append(Series(guess, what))
    found.extend(
        Series(guess, "directories")
        for guess in guesses(name for name, is_dir in there if is_dir)
        if all(_is_checkpoint(name, dir_fd, guess) for name in _some(guess.names))
    )
    return found


def _files_of(guess: Guess, dir_fd: int) -> str:
    """What the files of a series are, "" if they are no checkpoints."""
    seen, whole = set(), False
    for name in _some(guess.names):
        try:
            with opened_file(name, dir_fd=dir_fd) as fd:
                file = OpenedFile(fd)
                structure, head = structure_of_file(file), file.read(4, 0)
        except (OSError, CkptdError):
            return ""
        taken = guess.is_named_so and name.endswith(_ENDINGS) and head.startswith(_HEADS)
        if structure.kind not in kinds.FILES and not taken:
            return ""
        seen.add(structure.kind)
        whole = whole or structure.state is not State.INCOMPLETE
    if not whole:
        return ""  # half a zip could be of anybody's
    if seen <= {kinds.TORCH, kinds.LEGACY}:
        return "torch files"
    return "safetensors files" if seen == {kinds.SAFETENSORS} else "files"


def _is_checkpoint(name: str, dir_fd: int, guess: Guess) -> bool:
    """Whether a directory is one: by a framework's marker, or by what it holds, which is no run of its own."""
    try:
        with opened_dir(name, dir_fd=dir_fd) as fd:
            names = names_in(fd)
            if is_claimed(fd, set(names)):
                return True
            run = Finder((), DEFAULT_LAYOUTS)
            if guesses(names) or any(run.match(each) for each in names) or not (guess.is_named_so or _bare(name)):
                return False
            return any(_has_weights(each, fd) for each in names)
    except (OSError, CkptdError):
        return False


def _has_weights(name: str, dir_fd: int) -> bool:
    if not name.endswith(_ENDINGS) and not name.endswith(".safetensors"):
        return False
    try:
        with opened_file(name, dir_fd=dir_fd) as fd:
            return structure_of_file(OpenedFile(fd)).kind in kinds.FILES
    except (OSError, CkptdError):
        return False


def _bare(name: str) -> bool:
    return name.isascii() and name.isdigit()


def is_of(layout: Layout, name: str, dir_fd: int) -> bool:
    """Whether the bytes of `name` are a checkpoint by that layout."""
    try:
        if os.path.isdir(f"/proc/self/fd/{dir_fd}/{name}"):
            with opened_dir(name, dir_fd=dir_fd) as fd:
                return structure_of_directory(fd, layout.kinds).kind in layout.kinds
        with opened_file(name, dir_fd=dir_fd) as fd:
            return structure_of_file(OpenedFile(fd)).kind in layout.kinds
    except (OSError, CkptdError):
        return False


def _some(names: Sequence[str]) -> Sequence[str]:
    """The first, the last and one between."""
    return (names[0], names[len(names) // 2], names[-1])
