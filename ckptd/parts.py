"""The parts of a checkpoint that is a directory: is each of them whole, are all of a number there.

Structure only: nothing is unpickled, and of the files inside only the ends and headers are read.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from . import dcp
from .core.checkpoint import State
from .disk import check_depth, names_in, opened_dir, opened_file
from .errors import RefusedError
from .formats import Structure, structure_of_file
from .scan import INDEX_ENDING, PARTS

_LONGEST_JSON = 1 << 28


@dataclass
class Parts:
    """What a look at the parts of a directory has found.

    fault: what is wrong with one of them, or None. count: how many there are. checksum: whether one of them has one.
    """

    fault: str | None = None
    count: int = 0
    checksum: bool = False

    def structure(self, kind: str, text: str, *, marked: bool = False) -> Structure:
        """Complete if no part is broken."""
        if self.fault is not None:
            return incomplete(kind, self.fault)
        return Structure(State.COMPLETE, text, checksum=self.checksum, marked=marked, kind=kind)


def incomplete(kind: str, text: str) -> Structure:
    return Structure(State.INCOMPLETE, text, marked=False, kind=kind)


def parts_of(fd: int, *, below: str = "", depth: int = 0, into: Parts | None = None) -> Parts:
    """Look at every part in the directory open as `fd` and below it, up to the first that is broken.

    Shards of a distributed checkpoint are judged by their own `.metadata`, those of an index by that.
    """
    check_depth(depth, below or ".")
    found = into or Parts()
    names = sorted(names_in(fd))
    if depth and (dcp.MARKER in names or any(name.endswith(".distcp") for name in names)):
        found.count += 1
        found.fault = _below(below, missing_of_distributed(fd, names))
        return found
    for name in names:
        if found.fault is not None:
            break
        mode = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode
        if stat.S_ISDIR(mode):
            with opened_dir(name, dir_fd=fd) as inside_fd:
                parts_of(inside_fd, below=f"{below}{name}/", depth=depth + 1, into=found)
        elif name.endswith(INDEX_ENDING):
            found.fault = _below(below, missing_in_index(fd, name)[0])
        elif name.endswith(PARTS):
            part = part_of(fd, name)
            found.count += 1
            found.checksum = found.checksum or part.checksum
            found.fault = _below(below, _fault(name, part))
    return found


def part_of(fd: int, name: str) -> Structure:
    """What one file in the directory looks like; incomplete if it is missing, or no file."""
    try:
        with opened_file(name, dir_fd=fd) as file_fd:
            return structure_of_file(file_fd)
    except FileNotFoundError:
        return Structure(State.INCOMPLETE, "is missing")
    except (RefusedError, OSError) as error:
        return Structure(State.INCOMPLETE, no_file(error))


def missing_of_distributed(fd: int, names: Iterable[str]) -> str | None:
    """What is wrong with the distributed checkpoint in the directory, None if nothing is."""
    if dcp.MARKER not in names:
        return "distributed checkpoint, not marked complete"
    try:
        fault = dcp.missing_shard(fd)
    except (RefusedError, OSError) as error:
        fault = f"{dcp.MARKER} {no_file(error)}"
    return None if fault is None else f"distributed checkpoint, {fault}"


def missing_in_index(fd: int, index: str) -> tuple[str | None, int]:
    """What is wrong with the shards that a Hugging Face index lists, and how many there are."""
    try:
        shards = sorted(set(json_of(fd, index)["weight_map"].values()))
        if not all(isinstance(shard, str) and shard == os.path.basename(shard) for shard in shards):
            raise TypeError("a shard is not a file's name")
    except (TypeError, KeyError, AttributeError):
        return f"{index} is damaged", 0
    for shard in shards:
        fault = _fault(shard, part_of(fd, shard))
        if fault is not None:
            return f"shard {fault}", 0
    return None, len(shards)


def numbered(names: Iterable[str], pattern: re.Pattern[str]) -> list[tuple[int, ...]]:
    """The numbers in those of `names` that are like `pattern`, one tuple for each."""
    found = (pattern.fullmatch(name) for name in names)
    return sorted(tuple(int(number) for number in each.groups()) for each in found if each)


def gap_in(numbers: Iterable[int]) -> int | None:
    """The first that is missing of 0, 1, 2, ... up to the greatest, or None."""
    there = set(numbers)
    return next((number for number in range(max(there, default=-1) + 1) if number not in there), None)


@contextmanager
def inside(fd: int, name: str) -> Iterator[int | None]:
    """A descriptor of the directory `name` in the directory open as `fd`; None if it is none."""
    with ExitStack() as stack:
        try:
            inside_fd: int | None = stack.enter_context(opened_dir(name, dir_fd=fd))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            inside_fd = None
        yield inside_fd


def json_of(fd: int, name: str) -> Any:
    """What a JSON file in the directory holds; None if it is none."""
    try:
        with opened_file(name, dir_fd=fd) as file_fd:
            return json.loads(os.pread(file_fd, _LONGEST_JSON, 0))
    except (ValueError, RecursionError, FileNotFoundError):
        return None
    except (RefusedError, OSError) as error:
        no_file(error)
        return None


def no_file(error: RefusedError | OSError) -> str:
    """What is wrong with what was no file when it was opened. Raises the error again if the disk's trouble was it."""
    if isinstance(error, RefusedError):
        return "is not a file"
    if error.errno == errno.ELOOP:
        return "is a symlink, which is not followed"
    raise error


def _fault(name: str, part: Structure) -> str | None:
    if part.state.whole:
        return None
    return f"{name} {part.text}" if part.text.startswith("is ") else f"{name}: {part.text}"


def _below(below: str, fault: str | None) -> str | None:
    return f"{below.rstrip('/')}: {fault}" if fault and below else fault
