"""What a directory that is one checkpoint looks like: shards with their index, or what a Trainer leaves.

Structure only: nothing is unpickled, and of the files inside only the ends and headers are read.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from typing import Any

from . import dcp
from .core.checkpoint import State
from .disk import opened_dir, opened_file
from .errors import RefusedError
from .formats import Structure, structure_of_file
from .scan import INDEX_ENDING, TRAINER_STATE

_LONGEST_JSON = 1 << 28
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth")
_UNDER_WAY = "checkpoint-is-incomplete.txt"  # Transformers: there while it saves because of a signal


def structure_of_directory(fd: int) -> Structure:
    """Look at the directory open as `fd`. Raises OSError if something in it cannot be read."""
    names = set(os.listdir(fd))
    if dcp.MARKER in names or any(name.endswith(".distcp") for name in names):
        return _distributed(fd, names)
    if TRAINER_STATE in names:
        return _by_trainer(fd, names)
    for name in sorted(names):
        if name.endswith(INDEX_ENDING):
            # The index is written with the weights, not after all else: it marks nothing.
            fault, count = _missing_in_index(fd, name)
            return (
                _incomplete(fault) if fault else Structure(State.COMPLETE, f"{count} shards, all there", marked=False)
            )
    return Structure(State.UNVERIFIABLE, "a directory without any known marker", known=False, marked=False)


def _incomplete(text: str) -> Structure:
    return Structure(State.INCOMPLETE, text, marked=False)


def _distributed(fd: int, names: set[str]) -> Structure:
    if dcp.MARKER not in names:
        return _incomplete("distributed checkpoint, not marked complete")
    try:
        fault = dcp.missing_shard(fd)
    except (RefusedError, OSError) as error:
        fault = _no_file(dcp.MARKER, error)
    if fault is not None:
        return Structure(State.INCOMPLETE, f"distributed checkpoint, {fault}")
    return Structure(State.COMPLETE, "distributed checkpoint, every shard there")


def _by_trainer(fd: int, names: set[str]) -> Structure:
    """What the Trainer of Hugging Face Transformers writes, its state last. Source: transformers 4.0 to 5.23."""
    state = _json(fd, TRAINER_STATE)
    if not (isinstance(state, dict) and isinstance(state.get("global_step"), int)):
        return _incomplete(f"{TRAINER_STATE} is damaged")
    if _UNDER_WAY in names:
        return _incomplete(f"{_UNDER_WAY} is there: its save was never finished")
    count = 0
    for name in sorted(names):
        fault: str | None = None
        if name.endswith(INDEX_ENDING):
            fault, _ = _missing_in_index(fd, name)
        elif stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
            fault, count = _broken_inside(fd, name), count + 1  # sharded weights
        elif name.endswith(_WEIGHTS):
            fault, count = _broken(fd, name), count + 1
        if fault:
            return _incomplete(fault)
    if not count:
        return _incomplete("no weights beside its trainer_state.json")
    return Structure(State.COMPLETE, f"{TRAINER_STATE}, and every file beside it intact")


def _missing_in_index(fd: int, index: str) -> tuple[str | None, int]:
    """What is wrong with the shards that a Hugging Face index lists, and how many there are."""
    try:
        shards = sorted(set(_json(fd, index)["weight_map"].values()))
        if not all(isinstance(shard, str) and shard == os.path.basename(shard) for shard in shards):
            raise TypeError("a shard is not a file's name")
    except (TypeError, KeyError, AttributeError):
        return f"{index} is damaged", 0
    for shard in shards:
        fault = _broken(fd, shard)
        if fault:
            return f"shard {fault}", 0
    return None, len(shards)


def _broken(fd: int, name: str) -> str | None:
    try:
        with opened_file(name, dir_fd=fd) as file_fd:
            found = structure_of_file(file_fd)
    except FileNotFoundError:
        return f"{name} is missing"
    except (RefusedError, OSError) as error:
        return _no_file(name, error)
    return None if found.state.whole else f"{name}: {found.text}"


def _broken_inside(fd: int, name: str) -> str | None:
    try:
        with opened_dir(name, dir_fd=fd) as inside_fd:
            names = set(os.listdir(inside_fd))
            if dcp.MARKER not in names and not any(each.endswith(".distcp") for each in names):
                return None
            found = _distributed(inside_fd, names)
    except FileNotFoundError:
        return f"{name} is missing"
    return None if found.state.whole else f"{name}: {found.text}"


def _json(fd: int, name: str) -> Any:
    """What a JSON file in the directory holds; None if it is none."""
    try:
        with opened_file(name, dir_fd=fd) as file_fd:
            return json.loads(os.pread(file_fd, _LONGEST_JSON, 0))
    except (ValueError, RecursionError):
        return None
    except (RefusedError, OSError) as error:
        _no_file(name, error)
        return None


def _no_file(name: str, error: RefusedError | OSError) -> str:
    """What is wrong with what was no file when it was opened. Raises the error again if the disk's trouble was it."""
    if isinstance(error, RefusedError):
        return f"{name} is not a file"
    if error.errno == errno.ELOOP:
        return f"{name} is a symlink, which is not followed"
    raise error
