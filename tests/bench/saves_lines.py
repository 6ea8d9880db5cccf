"""What saves.py measures, as lines."""

from __future__ import annotations

import json
from pathlib import Path

from .lines import Line, compared
from .paired import Seconds
from .processes import run


def lines(place: Path, rounds: int) -> list[Line]:
    run("saves", place, str(rounds))
    taken: Seconds = json.loads((place / "saves.json").read_text())

    def line(what: str, ours: str, peer: str, theirs: str, at_most: float) -> Line:
        return compared(what, peer, taken[ours], taken[theirs], at_most=at_most)

    stall = "a step's wait for a save of 504 MB in the background"
    return [
        line(stall, "background", "a copy of the state into tensors kept for it", "copy", 1.3),
        line(stall, "background", "mmcv's CheckpointHook", "mmcv", 1 / 20),
        line("a save of 504 MB at once", "at once", "torch.save and fsync", "torch.save, fsync", 1.0),
    ]
