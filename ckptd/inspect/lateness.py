"""Whether a part of a directory was written after what its framework writes last: a save over an earlier one that was
not finished leaves parts of two, with a marker that says all is well. Looks at inodes only.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..core import kinds
from ..disk.walk import walk_opened
from .scan import DCP_MARKER, TRAINER_STATE

SLOWEST_COPY = 50_000_000  # bytes a second
_S = 10**9

_ENDING = r"\.(?:safetensors|bin|pt|pth|pkl|ckpt|pdparams|pdopt|pdstates)"
_NO_RESULT = r"(?!.*(?:pred|output|eval|result|logit|score|metric))"
_STATES = rf"(?:optimizer|scheduler|scaler|rng_state|training_args)[^/]*{_ENDING}"
# Below a directory only what several adapters or Sentence Transformers save there: others merge and convert into such.
_WEIGHTS = (
    rf"{_NO_RESULT}(?:(?:[0-9]+_[^/]+/)?(?:pytorch_)?model|master_weights|(?:[^/]+/)?adapter_model)[^/]*{_ENDING}"
)
_OF_DEEPSPEED = r"global_step[0-9]+/.*\.pt"

# As texts: most commands never ask, and to compile them takes longer than to import this module.
# What comes last, and what is a part: weights, the states of optimizer and random numbers; no evaluator's file.
_LAST_AND_PARTS = {
    kinds.TRAINER: (TRAINER_STATE, f"{_WEIGHTS}|{_STATES}|{_OF_DEEPSPEED}|.*\\.distcp"),
    kinds.DCP: (DCP_MARKER, r".*\.distcp"),
    kinds.LIGHTNING: ("meta.pt", r".*\.distcp|\.metadata"),
    kinds.MEGATRON: ("metadata.json", r".*\.distcp|\.metadata|common\.pt"),
    kinds.VERL: ("data.pt", r"[^/]+/(?:model|optim|extra_state)_world_size_.*\.pt|.*\.distcp"),
    kinds.OLMO: (".metadata.json", r"model_and_optim/.*|train/.*\.pt"),
    kinds.MMENGINE: ("meta.pth", r"(?:model|optimizer|scheduler)/.*"),
}
# With DeepSpeed, its own directory is what is loaded; what its script makes of that lies beside it, and comes later.
_WITH_DEEPSPEED = f"{_STATES}|{_OF_DEEPSPEED}"


@dataclass(frozen=True)
class Late:
    """The youngest part, younger than the marker. together: whether all were written in one go, as a copy is."""

    part: str
    marker: str
    part_ns: int
    marker_ns: int
    together: bool

    @property
    def by_s(self) -> float:
        """How much younger it is."""
        return (self.part_ns - self.marker_ns) / _S

    @property
    def text(self) -> str:
        """What is the matter."""
        return f"{self.part} is {_span(self.by_s)} younger than {self.marker}, which is written last"

    @property
    def doubt(self) -> str:
        """What that means, and the way out."""
        touch = f"touch -r {shlex.quote(self.part)} {self.marker}"
        return f"{self.text}: kept, and not relied on; if all of it is of one save, `{touch}` in it, else delete it"


def late_part(fd: int, kind: str, touched_ns: int, pause_s: float) -> Late | None:
    """The youngest part in the directory open as `fd`, of a checkpoint of `kind`, if that is late.

    touched_ns: when the last file in it was written. pause_s: how long a copy may rest between two files.
    """
    if not kind:
        return _late_below(files_in(fd), pause_s)
    if kind not in _LAST_AND_PARTS:
        return None
    marker, is_part = _LAST_AND_PARTS[kind]
    try:
        last = os.stat(marker, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None  # another way of saving, which marks nothing
    if touched_ns <= last.st_mtime_ns:
        return None
    found = files_in(fd)
    if any(re.match(_OF_DEEPSPEED, path) for path in found):
        is_part = _WITH_DEEPSPEED
    parts = {path: info for path, info in found.items() if path != marker and re.fullmatch(is_part, path)}
    return _latest(parts, marker, last, pause_s)


def _late_below(found: Mapping[str, os.stat_result], pause_s: float) -> Late | None:
    """The same of distributed checkpoints in the directories of one that no framework is known to have written."""
    late: list[Late] = []
    for marker in (path for path in found if path.endswith(f"/{DCP_MARKER}")):
        below = marker[: -len(DCP_MARKER)]
        shards = {path: info for path, info in found.items() if path.startswith(below) and path.endswith(".distcp")}
        each = _latest(shards, marker, found[marker], pause_s)
        if each is not None and not each.together:
            late.append(each)
    return max(late, key=lambda each: each.by_s, default=None)


def _latest(parts: Mapping[str, os.stat_result], marker: str, last: os.stat_result, pause_s: float) -> Late | None:
    youngest = max(parts, key=lambda path: parts[path].st_mtime_ns, default="")
    if not youngest or parts[youngest].st_mtime_ns <= last.st_mtime_ns:
        return None
    together = _were_written_together([*parts.values(), last], pause_s)
    return Late(youngest, marker, parts[youngest].st_mtime_ns, last.st_mtime_ns, together)


def files_in(dir_fd: int) -> dict[str, os.stat_result]:
    """Every file in the directory open as `dir_fd` and below it, by its path there."""
    return {
        f"{below}{entry.name}": entry.stat(follow_symlinks=False)
        for _, below, _, others in walk_opened(dir_fd)
        for entry in others
        if entry.is_file(follow_symlinks=False)
    }


def _were_written_together(files: Iterable[os.stat_result], pause_s: float) -> bool:
    """Whether they came one after the other with no pause between: a copy, whose order says nothing.

    One that has kept the times of writing shows that in the times of change, which then are younger than all of them.
    """
    files = list(files)
    kept = min(each.st_ctime_ns for each in files) > max(each.st_mtime_ns for each in files)
    times = sorted((each.st_ctime_ns if kept else each.st_mtime_ns, each.st_size) for each in files)
    return all(
        after - before <= (pause_s + size_bytes / SLOWEST_COPY) * _S
        for (before, _), (after, size_bytes) in zip(times, times[1:])
    )


def _span(seconds: float) -> str:
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.1f} s"
