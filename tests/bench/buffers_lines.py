"""What buffers.py measures on two and on four ranks, as lines."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from .lines import Line, compared
from .processes import start


def lines(place: Path, rounds: int) -> list[Line]:
    return [line for ranks in (2, 4) for line in of_ranks(place / str(ranks), rounds, ranks)]


def of_ranks(place: Path, rounds: int, ranks: int) -> list[Line]:
    place.mkdir()
    started = [start("buffers", place, str(rounds), RANK=str(rank), WORLD_SIZE=str(ranks)) for rank in range(ranks)]
    codes = [rank.wait() for rank in started]
    if any(codes):
        sys.exit("bench: buffers failed")
    taken = [json.loads((place / f"{rank}.json").read_text()) for rank in range(ranks)]
    # A collective is done when its last rank is.
    slowest = {name: [max(each) for each in zip(*(rank[name] for rank in taken), strict=True)] for name in taken[0]}
    what = f"average_buffers, all 159 of a ResNet-50, {ranks} ranks"
    # Only of two ranks is there a budget: four want more cores than a small machine has.
    at_most = 1.0 if ranks == 2 else None
    return [
        compared(what, "mmcv's allreduce_params, its 106 floats", slowest["ckptd"], slowest["mmcv"], at_most=at_most),
        compared(what, "mmengine's all_reduce_params, all 159", slowest["ckptd"], slowest["mmengine"]),
    ]
