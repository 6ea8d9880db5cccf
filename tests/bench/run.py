"""Run the measurements, and print them as a Markdown table: each as a ratio to a peer that ran beside it.

Run as `python -m tests.bench.run [ROUNDS]`, in an environment with mmcv. Where files are written is TMPDIR's disk.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from ckptd.disk import opened_dir
from ckptd.filesystem import is_local

from .paired import Ratio, Seconds

REPOSITORY = Path(__file__).parents[2]
SAVES, BUFFERS = 15, 300


@dataclass(frozen=True)
class Line:
    """One comparison. at_most: the budget for ours as a multiple of the peer's time."""

    what: str
    peer: str
    ratio: Ratio
    at_most: float
    count: int

    def __str__(self) -> str:
        verdict = "kept" if self.ratio.median <= self.at_most else "OVER"
        return f"| {self.what} | {self.peer} | {self.ratio} | {self.at_most:g}x | {verdict} | {self.count} |"


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else SAVES
    with tempfile.TemporaryDirectory(prefix="ckptd-bench-") as name:
        place = Path(name)
        tell(machine(place))
        tell("| what | against | median ratio (quartiles) | budget | | rounds |\n|---|---|---|---|---|---|")
        for line in (*of_saves(place, rounds), *of_buffers(place, BUFFERS)):
            tell(str(line))


def tell(text: str) -> None:
    print(text, flush=True)


def machine(place: Path) -> str:
    with opened_dir(str(place)) as fd:
        local = "a local" if is_local(fd) else "a network"
    kinds = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=True).stdout.strip()
    python = f"Python {platform.python_version()}, torch {torch.__version__}"
    return f"{os.cpu_count()} cores, Linux {platform.release()}, {local} file system ({kinds}), {python}\n"


def of_saves(place: Path, rounds: int) -> list[Line]:
    run("saves", place, str(rounds))
    taken: Seconds = json.loads((place / "saves.json").read_text())

    def line(what: str, ours: str, peer: str, theirs: str, at_most: float) -> Line:
        return Line(what, peer, Ratio.of(taken[ours], taken[theirs]), at_most, rounds)

    stall = "a step's wait for a save of 504 MB in the background"
    return [
        line(stall, "background", "a copy of the state into tensors kept for it", "copy", 1.3),
        line(stall, "background", "mmcv's CheckpointHook", "mmcv", 1 / 20),
        line("a save of 504 MB at once", "at once", "torch.save and fsync", "torch.save, fsync", 1.0),
    ]


def of_buffers(place: Path, rounds: int) -> list[Line]:
    two = [start("buffers", place, str(rounds), RANK=str(rank), WORLD_SIZE="2") for rank in range(2)]
    codes = [rank.wait() for rank in two]
    if codes != [0, 0]:
        sys.exit("bench: buffers failed")
    taken = [json.loads((place / f"{rank}.json").read_text()) for rank in range(2)]
    # A collective is done when its last rank is.
    slower = {name: [max(pair) for pair in zip(taken[0][name], taken[1][name], strict=True)] for name in taken[0]}
    what, peer = "average_buffers, all 159 of a ResNet-50, 2 ranks", "mmcv's allreduce_params, its 106 floats alone"
    return [Line(what, peer, Ratio.of(slower["ckptd"], slower["mmcv"]), 1.0, rounds)]


def run(module: str, *args: str | Path) -> None:
    if start(module, *args).wait():
        sys.exit(f"bench: {module} failed")


def start(module: str, *args: str | Path, **more: str) -> subprocess.Popen[bytes]:
    # mmcv imports torchvision, and does not use it.
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests/real/stubs"), "GLOO_SOCKET_IFNAME": "lo", **more}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.bench.{module}", *map(str, args)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env)


if __name__ == "__main__":
    main()
