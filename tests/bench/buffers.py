"""Buffers on several ranks: ours, of all of a ResNet-50's, against mmengine's, of all, and mmcv's, of its floats alone.

mmcv's raises on the integers of a BatchNorm, so that it is never measured with them. Run on each rank, with RANK and
WORLD_SIZE set, as `python -m tests.bench.buffers PLACE ROUNDS`.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from mmcv.runner.dist_utils import allreduce_params
from mmengine.dist import all_reduce_params
from torch import nn

from ckptd.shim import average_buffers

from .paired import time_each

# The channels of the 53 BatchNorms of a ResNet-50, stage by stage: 159 buffers, 53 of them integers.
STAGES = ((64, 256, 3), (128, 512, 4), (256, 1024, 6), (512, 2048, 3))


def resnet_50() -> nn.Module:
    """The modules of a ResNet-50 under its own names; the weights of the convolutions, which nobody looks at, empty."""
    root = nn.Module()
    root.conv1, root.bn1, root.relu = convolution(), nn.BatchNorm2d(64), nn.ReLU()
    for number, (inside, out, blocks) in enumerate(STAGES, start=1):
        layer = nn.Sequential()
        for index in range(blocks):
            block = nn.Module()
            for place, channels in enumerate((inside, inside, out), start=1):
                setattr(block, f"conv{place}", convolution())
                setattr(block, f"bn{place}", nn.BatchNorm2d(channels))
            block.relu = nn.ReLU()
            if index == 0:
                block.downsample = nn.Sequential(convolution(), nn.BatchNorm2d(out))
            layer.append(block)
        setattr(root, f"layer{number}", layer)
    return root


def convolution() -> nn.Module:
    return nn.Conv2d(1, 1, 1, device="meta")


def rank(place: Path, rounds: int) -> None:
    """One of the ranks: writes how long each round of each took, in seconds, to PLACE/RANK.json."""
    torch.set_num_threads(1)
    # By a file, so that no port has to be free.
    world = int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(str(place / "store"), world)
    number = int(os.environ["RANK"])
    dist.init_process_group("gloo", store=store, rank=number, world_size=world, timeout=timedelta(seconds=60))
    ours, theirs, others = resnet_50(), resnet_50(), resnet_50()

    def floats() -> list[torch.Tensor]:
        return [buffer for buffer in theirs.buffers() if buffer.is_floating_point()]

    assert (len(list(ours.buffers())), len(floats())) == (159, 106)
    calls = {
        "ckptd": lambda: average_buffers(ours),
        "mmcv": lambda: allreduce_params(floats()),
        "mmengine": lambda: all_reduce_params(others.buffers(), op="mean"),
    }
    taken = time_each(calls, rounds, before=dist.barrier, warm_up=5)
    (place / f"{number}.json").write_text(json.dumps(taken))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    rank(Path(sys.argv[1]), int(sys.argv[2]))
