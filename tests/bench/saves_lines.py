"""What saves.py, forks.py and training.py measure, as lines."""

from __future__ import annotations

import json
from pathlib import Path

from ckptd.text.human import human_bytes

from .lines import Line, compared
from .paired import Seconds
from .processes import run

LAYER_MB = 12.6  # with the two moments of Adam, of layers as wide as those of saves.py
SMALL, MIDDLE, LARGE = 1, 40, 160
PEERS = {
    "copy": "a copy of the state into tensors kept for it",
    "mmcv": "mmcv's CheckpointHook",
    "mmengine": "mmengine's CheckpointHook",
    "lightning": "Lightning's Trainer",
    "transformers": "Transformers' Trainer",
    "torch.save, fsync": "torch.save and fsync",
}


def lines(place: Path, rounds: int, *, large: bool) -> list[Line]:
    found = []
    for layers in (SMALL, MIDDLE, *([LARGE] if large else [])):
        found += of_saves(place / str(layers), rounds if layers <= MIDDLE else min(rounds, 5), layers)
    return found + of_training(place / "training", rounds)


def of_saves(place: Path, rounds: int, layers: int) -> list[Line]:
    place.mkdir()
    run("saves", place, str(rounds), str(layers))
    taken: Seconds = json.loads((place / "saves.json").read_text())
    size = human_bytes(round(layers * LAYER_MB * 1e6))
    # The budgets are of a save of 500 MB.
    budgets = {"copy": 1.3, "mmcv": 1 / 20} if layers == MIDDLE else {}
    stall = f"a step's wait for a save of {size} in the background"
    found = [
        compared(stall, peer, taken["background"], taken[name], at_most=budgets.get(name))
        for name, peer in PEERS.items()
    ]
    once = f"a save of {size} at once"
    at_most = 1.0 if layers == MIDDLE else None
    plain = "torch.save, fsync"
    found.append(compared(once, PEERS[plain], taken["at once"], taken[plain], at_most=at_most))
    found.append(compared(once, PEERS["mmcv"], taken["at once"], taken["mmcv"]))
    return found


def of_forks(place: Path, rounds: int) -> list[Line]:
    run("forks", place, str(rounds), str(MIDDLE))
    taken: Seconds = json.loads((place / "forks.json").read_text())
    stall = f"a step's wait for a save of {human_bytes(round(MIDDLE * LAYER_MB * 1e6))} in the background"
    return [
        compared(f"{stall}, {when}", "the same without workers", taken[name], taken["none"], at_most=1.3)
        for name, when in (
            ("living", "beside a DataLoader's workers"),
            ("ended", "after a DataLoader's workers have ended"),
        )
    ]


def of_training(place: Path, rounds: int) -> list[Line]:
    place.mkdir()
    run("training", place, str(rounds), str(MIDDLE))
    taken: Seconds = json.loads((place / "training.json").read_text())
    what = f"training beside a background save of {human_bytes(round(MIDDLE * LAYER_MB * 1e6))}"
    return [
        compared(what, "the same steps alone", taken["hook"], taken["alone"]),
        compared(what, "the same steps beside torch.save and fsync in a thread", taken["hook"], taken["thread"]),
    ]
