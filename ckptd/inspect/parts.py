"""The parts of a checkpoint that is a directory: is each of them whole, are all of a number there.

Structure only: nothing is unpickled, and of the files inside only the ends and headers are read.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterable, Iterator, Set
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..core.checkpoint import State
from ..disk.descriptors import check_depth
from ..errors import RefusedError
from . import dcp
from .files import Structure, parse_json, structure_of_file
from .scan import INDEX_ENDING, STATES, TRAINER_STATE

if TYPE_CHECKING:
    from .view import DirectoryView

_ONE_OF = re.compile(r"(.+)-([0-9]{1,9})-of-([0-9]{1,9})(\.[^/]+)")
_RESULT = re.compile(r"(?:^|[_-])(?:eval|predictions|generations|results|metrics|scores|logits|outputs)(?:[_.-]|$)")
_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pdparams", ".h5", ".msgpack")
_CHECKED = (".h5", ".hdf5", ".npz", ".keras", ".zip")  # what else contradicts itself when it is cut short
_NO_WEIGHTS = (
    "optimizer", "scheduler", "sampler", "scaler", "dl_state_dict", "custom_checkpoint", "random_states_", "rng_state",
    "training_args", "master_weights", "recipe_state",
)  # fmt: skip
_LONGEST_JSON = 1 << 26  # bytes; the index of the largest models is a quarter of it
_HEAD_BYTES, _TAIL_BYTES = 1 << 16, 1 << 10


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


def incomplete(kind: str, text: str, *, unmarked: bool = False) -> Structure:
    """unmarked: as of Structure."""
    return Structure(State.INCOMPLETE, text, marked=False, kind=kind, unmarked=unmarked)


def parts_of(directory: DirectoryView, *, below: str = "", depth: int = 0, into: Parts | None = None) -> Parts:
    """Look at every part in the directory and below it, up to the first that is broken.

    Shards of a distributed checkpoint below it are judged by their own `.metadata`, those of an index by that.
    """
    check_depth(depth, below or ".")
    found = into or Parts()
    if depth and dcp.is_one(directory):
        found.count += 1
        found.fault = _below(below, missing_of_distributed(directory))
    for name in sorted(directory.names):
        if found.fault is not None:
            break
        if directory.is_dir(name):
            with directory.opened_dir(name) as within:
                parts_of(within, below=f"{below}{name}/", depth=depth + 1, into=found)
        elif name.endswith(INDEX_ENDING):
            found.fault = _below(below, missing_in_index(directory, name)[0])
        elif name.endswith(STATES) or (name.endswith(_CHECKED) and not is_result(name)):
            part = part_of(directory, name)
            found.count += name.endswith(STATES)
            found.checksum = found.checksum or part.checksum
            found.fault = _below(below, _fault(name, part))
    found.fault = found.fault or _below(below, missing_of_numbered(directory.names))
    return found


def has_any_weights(directory: DirectoryView) -> bool:
    """Whether in the directory is a file of weights, of a model or an adapter, or a directory with some in it."""
    others = sorted(name for name in directory.names if not (name.startswith(_NO_WEIGHTS) or is_result(name)))
    return any(name.endswith(_WEIGHTS) for name in others) or any(_is_of_weights(directory, name) for name in others)


def part_of(directory: DirectoryView, name: str) -> Structure:
    """What one file in the directory looks like; incomplete if it is missing, or no file."""
    try:
        with directory.opened_file(name) as file:
            return structure_of_file(file, name)
    except FileNotFoundError:
        return Structure(State.INCOMPLETE, "is missing")
    except (RefusedError, OSError) as error:
        return Structure(State.INCOMPLETE, no_file(error))


def missing_of_distributed(directory: DirectoryView) -> str | None:
    """What is wrong with the distributed checkpoint in the directory, None if nothing is."""
    if dcp.MARKER not in directory.names:
        return "distributed checkpoint, not marked complete"
    try:
        fault = dcp.missing_shard(directory)
    except (RefusedError, OSError) as error:
        fault = f"{dcp.MARKER} {no_file(error)}"
    return None if fault is None else f"distributed checkpoint, {fault}"


def missing_in_index(directory: DirectoryView, index: str) -> tuple[str | None, int]:
    """What is wrong with the shards that a Hugging Face index lists, and how many there are."""
    try:
        shards = sorted(set(json_of(directory, index)["weight_map"].values()))
        if not all(isinstance(shard, str) and shard == os.path.basename(shard) for shard in shards):
            raise TypeError("a shard is not a file's name")
    except (TypeError, KeyError, AttributeError):
        return f"{index} is damaged", 0
    for shard in shards:
        fault = _fault(shard, part_of(directory, shard))
        if fault is not None:
            return f"shard {fault}", 0
    return None, len(shards)


def missing_of_numbered(names: Set[str]) -> str | None:
    """What is missing of parts that say in their names how many there are, where no index says which; None if nothing.

    An earlier save may have left some of another number: one number of which all are there is enough.
    """
    found: dict[tuple[str, str], dict[int, set[int]]] = {}
    for name in names:
        match = _ONE_OF.fullmatch(name)
        listed = match is not None and f"{match[1]}{match[4]}{INDEX_ENDING}" in names
        if match and name.endswith((*STATES, ".h5")) and not (listed or is_result(name)):
            found.setdefault((match[1], match[4]), {}).setdefault(int(match[3]), set()).add(int(match[2]))
    for (name, ending), by_total in sorted(found.items()):
        if not any(_are_all(there, total) for total, there in by_total.items()):
            total, there = max(by_total.items())
            return f"{name}-*-of-{total:05d}{ending}: {len(there)} of {total} are there"
    return None


def is_result(name: str) -> bool:
    """Whether a file is called as evaluators call theirs: no part of a checkpoint."""
    return _RESULT.search(name) is not None


def _is_of_weights(directory: DirectoryView, name: str) -> bool:
    with inside(directory, name) as within:
        return within is not None and bool(parts_of(within, depth=1).count)


def _are_all(there: set[int], total: int) -> bool:
    return len(there) == total == max(there) - min(there) + 1 and min(there) in (0, 1)


def numbered(names: Iterable[str], pattern: re.Pattern[str]) -> list[tuple[int, ...]]:
    """The numbers in those of `names` that are like `pattern`, one tuple for each."""
    found = (pattern.fullmatch(name) for name in names)
    return sorted(tuple(int(number) for number in each.groups()) for each in found if each)


def gap_in(numbers: Iterable[int]) -> int | None:
    """The first that is missing of 0, 1, 2, ... up to the greatest, or None."""
    there = set(numbers)
    return next((number for number in range(max(there, default=-1) + 1) if number not in there), None)


@contextmanager
def inside(directory: DirectoryView, name: str) -> Iterator[DirectoryView | None]:
    """The directory `name` in another; None if it is none."""
    with ExitStack() as stack:
        try:
            within: DirectoryView | None = stack.enter_context(directory.opened_dir(name))
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                raise
            within = None
        yield within


def json_of(directory: DirectoryView, name: str) -> Any:
    """What a JSON file in the directory holds; None if it is none."""
    try:
        with directory.opened_file(name) as file:
            return parse_json(file.read(_LONGEST_JSON, 0))
    except (ValueError, RecursionError, FileNotFoundError):
        return None
    except (RefusedError, OSError) as error:
        no_file(error)
        return None


def trainer_state(directory: DirectoryView) -> dict[str, Any] | None:
    """What `trainer_state.json` in the directory holds; None if it is damaged or missing.

    The log in it grows for as long as a run does. Of a huge one only what stands before the log: the keys are sorted.
    """
    try:
        with directory.opened_file(TRAINER_STATE) as file:
            size_bytes = file.size_bytes
            if size_bytes <= _LONGEST_JSON:
                head, tail = b"", b""
            else:
                head = file.read(_HEAD_BYTES, 0)
                tail = file.read(_TAIL_BYTES, size_bytes - _TAIL_BYTES)
    except (OSError, RefusedError):
        head, tail = b"", b""
    if not head:
        state = json_of(directory, TRAINER_STATE)
        return state if isinstance(state, dict) else None
    if not tail.rstrip().endswith(b"}"):
        return None
    found = re.findall(rb'^ *"(global_step|best_model_checkpoint)": ([0-9]{1,20}|"[^"\\\n]*"),$', head, re.MULTILINE)
    return {key.decode(): json.loads(value) for key, value in found}


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
