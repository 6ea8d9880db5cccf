"""The scores of a checkpoint: what its name, its Trainer's state and the file beside it say. Reads, never writes.

Scores are advice from outside: what is no number is none, and never an error of a pass.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from ..core.entry import Entry
from ..errors import CkptdError, RefusedError, why
from .files import parse_json
from .scan import SIDECAR_ENDING, TRAINER_STATE

if TYPE_CHECKING:
    from .view import DirectoryView, Inode

_LARGEST_SIDECAR = 1 << 20  # bytes
_LARGEST_STATE = 1 << 26  # bytes; the log of a long run is a tenth of it
_COUNTERS = frozenset({"step", "epoch"})

Metrics = tuple[tuple[str, float], ...]


@dataclass
class Scores:
    """Reads the scores of checkpoints, of an unchanged one only once.

    wanted: the metrics that somebody goes by. warn: is told where there is none of them, and why.
    """

    wanted: frozenset[str]
    warn: Callable[[str], None]
    _known: dict[str, tuple[Entry, Inode | None, Metrics]] = field(default_factory=dict)

    def of(self, entry: Entry, named: Mapping[str, float], around: DirectoryView) -> Metrics:
        """The scores of `entry` in the work dir `around`: `named` by its name, its Trainer's, and those beside it.

        Where two sources know one metric, the file beside it counts: somebody has put it there.
        """
        beside = entry.name + SIDECAR_ENDING
        inode = _inode(around, beside)
        known = self._known.get(entry.name)
        if known is not None and known[:2] == (entry, inode):
            return known[2]
        found = dict(named)
        if entry.is_dir:
            found |= self._read(f"{entry.name}/{TRAINER_STATE}", lambda: _of_trainer(around, entry.name))
        if inode is not None:
            found |= self._read(beside, lambda: _beside(around, beside))
        metrics = tuple(sorted(found.items()))
        self._known[entry.name] = entry, inode, metrics
        return metrics

    def _read(self, where: str, read: Callable[[], Any]) -> dict[str, float]:
        try:
            raw = read()
        except (ValueError, RecursionError):
            self.warn(f"{where}: not JSON, so no score is read from it")
            return {}
        except (OSError, CkptdError) as error:
            reason = why(error) if isinstance(error, OSError) and error.errno != errno.ELOOP else "not a file of scores"
            self.warn(f"{where}: {reason}, so no score is read from it")
            return {}
        if not isinstance(raw, dict):
            self.warn(f"{where}: no JSON object of scores, so none is read from it")
            return {}
        for key in sorted(self.wanted & raw.keys()):
            if not _is_number(raw[key]):
                self.warn(f"{where}: {key} is {raw[key]!r:.40}, no number, so no score")
        return {key: float(value) for key, value in raw.items() if _is_number(value)}


def _is_number(value: Any) -> bool:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return not isinstance(value, int) or value.bit_length() < 1024  # a larger one is no float


def _inode(around: DirectoryView, name: str) -> Inode | None:
    try:
        return around.about(name)
    except OSError:
        return None


def _beside(around: DirectoryView, name: str) -> Any:
    try:
        with around.opened_file(name) as file:
            content = file.read(_LARGEST_SIDECAR + 1, 0)
    except FileNotFoundError:
        return {}
    if len(content) > _LARGEST_SIDECAR:
        raise RefusedError(f"{name}: larger than any file of scores")
    return parse_json(content or b"{}")


def _of_trainer(around: DirectoryView, name: str) -> dict[str, Any]:
    """What the Trainer of Hugging Face Transformers has logged at this checkpoint's own step.

    Source: transformers 4.0 to 5.23.
    """
    try:
        with around.opened_dir(name) as directory, directory.opened_file(TRAINER_STATE) as file:
            state = parse_json(file.read(_LARGEST_STATE, 0))
    except (FileNotFoundError, RefusedError):
        return {}
    scores: dict[str, Any] = {}
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        return scores
    for logged in state["log_history"]:
        if isinstance(logged, dict) and logged.get("step") == state.get("global_step"):
            scores |= {key: value for key, value in logged.items() if key not in _COUNTERS}
    return scores
