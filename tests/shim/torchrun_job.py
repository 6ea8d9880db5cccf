"""A training job as torchrun starts it: `torchrun ... -m tests.shim.torchrun_job PLACE`.

PLACE/recipe.py has the lines of docs/training.md for sharded models. Each part trains a little and returns what the
rank saw; PLACE/RANK.json then holds it all. What it should be is for the tests to say.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from ckptd.errors import CkptdError
from ckptd.shim import CheckpointHook

STEPS = 9


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """One step, with data of this rank's own."""
    loss = model(torch.randn(16, 4)).square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def replicated(place: Path) -> dict[str, Any]:
    """DDP, whose buffers drift apart from rank to rank; saved by the hook, then resumed by every rank."""
    renamed: list[str] = []
    sys.addaudithook(lambda event, args: renamed.append(str(args[1])) if event == "os.rename" else None)
    torch.manual_seed(dist.get_rank())
    model = DistributedDataParallel(network(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    paths, means = [], torch.empty(0)
    with CheckpointHook(place / "replicated", interval=1, sync_buffer=True, max_epochs=3) as hook:
        hook.before_run(model=model, optimizer=optimizer)
        for epoch in range(3):
            train(model, optimizer)
            means = of_each_rank(model.module[1].running_mean)
            paths.append(str(hook.after_train_epoch(epoch)))
    first = fingerprint(model.module)

    torch.manual_seed(100 + dist.get_rank())
    model = DistributedDataParallel(network(), broadcast_buffers=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with CheckpointHook(place / "replicated", interval=1, sync_buffer=True, max_epochs=4) as hook:
        epoch = hook.resume(model=model, optimizer=optimizer).epoch
        second = fingerprint(model.module)
        train(model, optimizer)
        paths.append(str(hook.after_train_epoch(epoch)))
    return {
        "paths": paths,
        "published": sorted({os.path.basename(name) for name in renamed if name.endswith(".pth")}),
        "drifted": bool((means - means[0]).any()),
        "mean": means.mean(0).tolist(),
        "epoch": epoch,
        "first": first,
        "second": second,
    }


def sharded(place: Path) -> dict[str, Any]:
    """FSDP2: the hook refuses it; the lines of docs/training.md save it by DCP, and tell ckptd."""
    torch.manual_seed(0)
    os.chdir(place)
    names: dict[str, Any] = {}
    exec((place / "recipe.py").read_text(), names)
    model = fully_shard(nn.Linear(4, 8), mesh=init_device_mesh("cpu", (dist.get_world_size(),)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    refused = ""
    try:
        names["hook"].before_run(model=model, optimizer=optimizer)
    except CkptdError as error:
        refused = str(error)
    dist.barrier()  # nobody waits for the others in there
    for step in range(1, STEPS + 1):
        train(model, optimizer)
        names["after_step"](step, model, optimizer)
    weight = model.weight.full_tensor()
    return {"refused": refused, "weight": weight.tolist()}


def of_each_rank(tensor: torch.Tensor) -> torch.Tensor:
    found = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(found, tensor)
    return torch.stack(found)


def fingerprint(model: nn.Module) -> list[float]:
    return [value.double().sum().item() for value in model.state_dict().values()]


def main() -> None:
    place = Path(sys.argv[1])
    torch.set_num_threads(1)
    # A rank that waits for another for so long is one that hangs.
    dist.init_process_group("gloo", timeout=timedelta(seconds=40))
    answer = {"replicated": replicated(place), "sharded": sharded(place)}
    (place / f"{dist.get_rank()}.json").write_text(json.dumps(answer))
    dist.barrier()
    # Not by the interpreter: DDP joins the threads of gloo, and these may want its lock, or be there after it.
    os._exit(0)


if __name__ == "__main__":
    main()
