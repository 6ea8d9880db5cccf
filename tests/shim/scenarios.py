"""What each of two ranks does; run as `python -m tests.shim.scenarios PLACE NAME...` with RANK and WORLD_SIZE set.

Each scenario has a directory PLACE/NAME to itself. It returns what can be written as JSON; what that should be is for
the tests to say.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import resource
import signal
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import nn

from ckptd.errors import CkptdError
from ckptd.shim import CheckpointHook, average_buffers


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8))


class Buffers(nn.Module):
    """One buffer of each kind that matters, with values that tell the rank."""

    def __init__(self, rank: int) -> None:
        super().__init__()
        values = torch.arange(6.0).reshape(2, 3) + rank / 3
        self.register_buffer("single", values.clone())
        self.register_buffer("rounded", values.half())
        self.register_buffer("precise", values.double() + rank * 1e-12)
        self.register_buffer("number", torch.complex(values, -values))
        self.register_buffer("transposed", values.clone().t())
        self.register_buffer("scalar", torch.tensor(float(rank)))
        self.register_buffer("count", torch.tensor(2**40 + rank))
        self.register_buffer("flags", torch.tensor([rank == 0, rank == 1]))
        self.register_buffer("small", torch.tensor([rank, 7], dtype=torch.int16))
        self.register_buffer("nothing", None)
        self.register_buffer("empty", torch.empty(0))
        self.register_buffer("cache", torch.tensor([float(rank)]), persistent=False)
        self.register_buffer("again", self.single)


def averaged(rank: int, place: Path) -> Any:
    module = Buffers(rank)
    before = {name: id(buffer) for name, buffer in module.named_buffers()}
    # What mmcv does with floats: the sum over ranks, divided by their number.
    as_mmcv = module.single.clone()
    dist.all_reduce(as_mmcv)
    as_mmcv.div_(2)
    average_buffers(module)
    return {
        "in place": before == {name: id(buffer) for name, buffer in module.named_buffers()},
        "as mmcv": torch.equal(as_mmcv, module.single),
        **{name: str(buffer.tolist()) for name, buffer in module.named_buffers()},
    }


def averaged_by_mmcv(rank: int, place: Path) -> Any:
    """Whether the real mmcv gives the floats of a network the same bytes."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "real/stubs"))  # mmcv imports torchvision, and does not use it
    from mmcv.runner.dist_utils import allreduce_params

    torch.manual_seed(rank)
    model = nn.Sequential(*(nn.BatchNorm1d(width) for width in (3, 64, 257)))
    for buffer in model.buffers():
        if buffer.is_floating_point():
            buffer.uniform_(-1, 1)
    theirs = [buffer.clone() for buffer in model.buffers() if buffer.is_floating_point()]
    allreduce_params(theirs)
    average_buffers(model)
    ours = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    return [len(ours), all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))]


# mmcv's runners sleep for seconds around every epoch, for data loaders that are not used here.
@mock.patch.object(time, "sleep")
def hook_in_mmcv(rank: int, place: Path, _: Any = None) -> Any:
    sys.path.insert(0, str(Path(__file__).parents[1] / "real/stubs"))
    from mmcv.fileio import BaseStorageBackend, FileClient
    from mmcv.runner import EpochBasedRunner

    from ckptd.shim.mmcv import CkptdHook

    FileClient.register_backend("store", _remote(BaseStorageBackend), prefixes="store")
    torch.manual_seed(0)
    model = network()
    model.train_step = lambda batch, optimizer: {"loss": model(batch).sum()}
    limits = {"max_epochs": 2, "optimizer": None, "logger": logging.getLogger(), "meta": {}}
    runner = EpochBasedRunner(model, work_dir=str(place / "run"), **limits)
    hook = CkptdHook(interval=1, max_keep_ckpts=1, sync_buffer=True)
    runner.register_hook(hook)
    told = lambda: error_of(lambda: runner.run([[torch.full((2, 4), float(rank))]], [("train", 1)]))  # noqa: E731
    answer = _hook_in(hook, runner, model, told, lambda other: other.before_run(runner))
    # An interval of iterations, in a runner whose names count epochs.
    runner = EpochBasedRunner(model, work_dir=str(place / "other"), **{**limits, "max_epochs": 4})
    runner.register_hook(CkptdHook(interval=2, by_epoch=False, max_keep_ckpts=1))
    runner.run([[torch.zeros(2, 4)]], [("train", 1)])
    return {
        **answer,
        "other": sorted(str(path.relative_to(place / "other")) for path in (place / "other").rglob("epoch*")),
    }


def hook_in_mmengine(rank: int, place: Path) -> Any:
    from mmengine.fileio import BaseStorageBackend, FileClient, register_backend
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    from ckptd.shim.mmengine import CkptdHook

    for register in (FileClient.register_backend, register_backend):  # the hook asks both
        register("store", _remote(BaseStorageBackend), prefixes="store")

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.network = network()

        def forward(self, inputs: list[torch.Tensor], mode: str) -> Any:
            return {"loss": self.network(torch.stack(inputs)).sum()}

    torch.manual_seed(0)
    model = Model()
    data = {"batch_size": 2, "dataset": [{"inputs": torch.full((4,), float(rank))}] * 4}
    hook = CkptdHook(interval=1, max_keep_ckpts=1, sync_buffer=True)
    runner = Runner(
        model,
        str(place / "run"),
        train_dataloader={**data, "sampler": {"type": "DefaultSampler"}},
        train_cfg={"by_epoch": True, "max_epochs": 2},
        optim_wrapper={"optimizer": {"type": "SGD", "lr": 0.0}},
        default_hooks={"checkpoint": hook},
        default_scope="mmengine",
        log_level=logging.ERROR,
    )
    return _hook_in(
        hook, runner, model.network, lambda: error_of(runner.train), lambda other: other.before_train(runner)
    )


def _remote(base: Any) -> Any:
    """A backend of the framework's kind that is no directory of this host."""
    nothing = lambda *args: None  # noqa: E731
    return type("Remote", (base,), {"get": nothing, "get_text": nothing, "join_path": lambda *args: "/".join(args[1:])})


def _hook_in(hook: Any, runner: Any, model: nn.Module, train: Any, begin: Any) -> Any:
    """Train two epochs, the second of which rank 0 cannot save; then the hook meets a store in the network.

    Rank r sees nothing but r. Of a layer that does not learn, the mean is what it makes of 0.5, as far as the momentum
    of so many steps has brought it.
    """
    save, calls = runner.save_checkpoint, []

    def save_once(*args: Any, **kwargs: Any) -> None:
        calls.append(args)
        if len(calls) == 2 and dist.get_rank() == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        save(*args, **kwargs)

    runner.save_checkpoint = save_once
    told = train()
    state = torch.load(Path(hook.out_dir, "epoch_1.pth"), weights_only=False)["state_dict"]
    means, steps = (
        next(value for name, value in state.items() if name.endswith(ending))
        for ending in ("1.running_mean", "1.num_batches_tracked")
    )
    expected = (1 - 0.9**steps) * model[0](torch.full((4,), 0.5))
    dist.barrier()
    there = sorted(path.name for path in Path(hook.out_dir).glob("epoch_*"))
    remote = error_of(lambda: begin(type(hook)(interval=1, out_dir="store://runs")))
    twins = [
        error_of(lambda more=more: begin(type(hook)(interval=1, **more)))
        for more in ({}, {"filename_tmpl": "a_{}.pth"})
    ]
    return {
        "means": means.tolist(),
        "expected": expected.tolist(),
        "told": told,
        "there": there,
        "remote": remote,
        "twins": twins,
        "out_dir": hook.out_dir,
    }


def one_of_a_group(rank: int, place: Path) -> Any:
    """Groups of one rank each: nothing to average, and nobody waits for anybody."""
    groups = [dist.new_group([each]) for each in range(2)]
    module = Buffers(rank)
    average_buffers(module, group=groups[0])
    average_buffers(module, group=groups[1])
    return module.scalar.item()


def differing(rank: int, place: Path) -> Any:
    """Each error must come on both ranks, before anything has changed, and leave them in step."""
    made = {
        "shape": lambda: ("mean", torch.zeros(3 + rank)),
        "type": lambda: ("mean", torch.zeros(3, dtype=(torch.float32, torch.float64)[rank])),
        "name": lambda: (("mean", "average")[rank], torch.zeros(3)),
    }
    told = {}
    for kind, make in made.items():
        module = nn.Module()
        module.register_buffer("first", torch.tensor([float(rank)]))
        module.register_buffer(*make())
        told[kind] = [error_of(lambda module=module: average_buffers(module)), module.first.item()]
    module = nn.BatchNorm1d(2) if rank else nn.Module()
    told["more"] = [error_of(lambda: average_buffers(module)), float(rank)]
    return told


def without_a_mean(rank: int, place: Path) -> Any:
    """On both ranks from the start; then on one of them, in the place of a buffer that has been averaged before."""
    values = torch.arange(6.0).reshape(2, 3)
    made = {
        "quantized": torch.quantize_per_tensor(values, 0.1, 0, torch.qint8),
        "sparse": values.to_sparse(),
        "rows": values.to_sparse_csr(),
        "meta": values.to("meta"),
        "expanded": torch.zeros(2, 1).expand(2, 3),
        "conjugated": values.to(torch.complex64).conj(),
        "nested": torch.nested.nested_tensor([values[0], values[1]]),
    }
    told = {}
    for kind, odd in made.items():
        module = nn.Module()
        module.register_buffer("first", torch.tensor([float(rank)]))
        module.register_buffer("odd", odd)
        both = [error_of(lambda module=module: average_buffers(module)), module.first.item()]
        module.odd = values.to(odd.dtype) if not odd.is_quantized else values.clone()
        again = error_of(lambda module=module: average_buffers(module))
        module.first.fill_(rank)
        if rank == 1:
            module.odd = odd
        one = [error_of(lambda module=module: average_buffers(module)), module.first.item()]
        told[kind] = [both, again, one]
    return told


def changing(rank: int, place: Path) -> Any:
    """What was the same on both ranks at the last call differs at this one; and two modules in turn."""
    sent: list[int] = []
    send = dist.all_reduce

    def counted(tensor: torch.Tensor, **how: Any) -> Any:
        sent.append(len(tensor))
        return send(tensor, **how)

    dist.all_reduce = counted
    modules = [nn.BatchNorm1d(3), nn.BatchNorm1d(5)]
    for module in modules:
        module.running_mean.fill_(rank)
    calls = []

    def call(module: nn.Module) -> None:
        sent.clear()
        calls.append([error_of(lambda: average_buffers(module)), len(sent), module.running_mean[0].item()])

    try:
        call(modules[0])
        modules[0].running_mean.fill_(rank)
        call(modules[0])
        modules[0].running_mean.fill_(rank)
        if rank == 1:
            modules[0].register_buffer("more", torch.zeros(2))
        call(modules[0])
        modules[0].more = None
        call(modules[0])
        call(modules[1])
        modules[0].running_mean.fill_(rank)
        call(modules[0])
    finally:
        dist.all_reduce = send
    return calls


def saved(rank: int, place: Path) -> Any:
    """Each rank has a directory of its own, so that what a rank writes can be told."""
    model = nn.parallel.DistributedDataParallel(network(), broadcast_buffers=False)
    model.module[1].running_mean.fill_(rank)
    model.module[1].num_batches_tracked.fill_(10 + rank)
    with CheckpointHook(place / f"run-{rank}", interval=2, sync_buffer=True) as hook:
        hook.before_run(model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.1))
        paths = [hook.after_train_epoch(epoch) for epoch in range(2)]
    return [str(path) for path in paths]


def save_fails(rank: int, place: Path) -> Any:
    """Rank 0 may write no more than a few bytes; then it may again."""
    hook = CheckpointHook(place / "run", interval=1)
    hook.before_run(model=network())
    hook.after_train_epoch(0)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if rank == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
    failed = error_of(lambda: hook.after_train_epoch(1))
    left = sorted(os.listdir(place / "run"))
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    dist.barrier()  # the other rank has looked
    hook.after_train_epoch(2)
    return [failed, left, str(hook.last_ckpt)]


def background_fails(rank: int, place: Path) -> Any:
    """Rank 0's thread may write no more than a few bytes, and each call that could tell of it does, on both ranks."""
    told: dict[str, Any] = {}
    calls = {
        "the next save": lambda hook: hook.after_train_epoch(2),
        "wait": lambda hook: hook.wait(),
        "close": lambda hook: hook.close(),
        "the end of the block": lambda hook: hook.__exit__(None),
    }
    for name, call in calls.items():
        hook = CheckpointHook(place / name, interval=1, background=True)
        hook.before_run(model=network())
        hook.after_train_epoch(0)
        hook.wait()
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        if rank == 0:
            resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
        at_once = error_of(lambda hook=hook: hook.after_train_epoch(1))
        later = error_of(lambda hook=hook, call=call: call(hook))
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        dist.barrier()
        hook.before_run(model=network())
        hook.after_train_epoch(2)
        hook.close()
        told[name] = [at_once, later, str(hook.last_ckpt), sorted(os.listdir(place / name))]
    return told


def resumed(rank: int, place: Path) -> Any:
    torch.manual_seed(rank)
    first, second = network(), network()
    with CheckpointHook(place / "run", interval=1) as hook:
        hook.before_run(model=first)
        hook.after_train_epoch(0)
    with CheckpointHook(place / "run", interval=1) as hook:
        epoch = hook.resume(model=second).epoch
    return [epoch, second[0].weight.sum().item(), str(hook.last_ckpt)]


def unseen(rank: int, place: Path) -> Any:
    """Rank 1 looks into another directory, as on a node that has not mounted it."""
    hook = CheckpointHook(place / f"run-{rank}", interval=1)
    hook.before_run(model=network())
    hook.after_train_epoch(0)
    hook.close()
    return error_of(lambda: CheckpointHook(place / f"run-{rank}").resume(model=network()))


def no_directory(rank: int, place: Path) -> Any:
    if rank == 0:
        (place / "run").write_text("a file")
    return error_of(lambda: CheckpointHook(place / "run").before_run(model=network()))


def sharded(rank: int, place: Path) -> Any:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    part = distribute_tensor(torch.zeros(4, 2), init_device_mesh("cpu", (2,)), [Shard(0)])
    model = nn.Linear(2, 4)
    model.weight = nn.Parameter(part)
    at_start = error_of(lambda: CheckpointHook(place / "run").before_run(model=model))
    hook = CheckpointHook(place / "run", interval=1)
    states: dict[str, Any] = {}
    hook.before_run(model=network(), ema=states)
    states["weight"] = part  # as an optimizer's state is: it comes with the first step
    return [at_start, error_of(lambda: hook.after_train_epoch(0)), os.listdir(place / "run")]


# --- the group in which the ranks agree -----------------------------------------------------------------------


def in_our_own_group(rank: int, place: Path) -> Any:
    """What the training's own group has done meanwhile, and how many groups there are."""
    world = dist.group.WORLD
    before = world._get_sequence_number_for_group()
    for background in (False, True):
        with CheckpointHook(place / str(background), interval=1, background=background) as hook:
            hook.before_run(model=network())
            for epoch in range(3):
                hook.after_train_epoch(epoch)
        CheckpointHook(place / str(background)).resume(model=network())
    return [world._get_sequence_number_for_group() - before, len(dist.distributed_c10d._world.pg_map)]


def settings_differ(rank: int, place: Path) -> Any:
    """Each is named on both ranks, which are in step afterwards."""
    of_rank = {
        "interval": rank + 1,
        "by_epoch": rank == 1,
        "filename_tmpl": f"{'ab'[rank]}_{{}}.pth",
        "sync_buffer": rank == 1,
        "background": rank == 1,
    }
    told = {}
    for name, value in of_rank.items():
        hook = CheckpointHook(place / name, **{"interval": 1, "filename_tmpl": "epoch_{}.pth", name: value})
        told[name] = error_of(lambda hook=hook: hook.before_run(model=network()))
    with CheckpointHook(place / "run", interval=1) as hook:
        hook.before_run(model=network())
        hook.after_train_epoch(0)
    return told


def leaves_one_out(rank: int, place: Path) -> Any:
    """Rank 1 leaves out a save, and comes to the next one while rank 0 is still at the first."""
    told = []
    for background in (False, True):
        hook = CheckpointHook(place / str(background), interval=1, background=background)
        hook.before_run(model=network())
        hook.after_train_epoch(0)
        if rank == 0:
            told.append([error_of(lambda hook=hook: hook.after_train_epoch(1))])
        else:
            told.append([error_of(lambda hook=hook: hook.after_train_epoch(2))])
        told[-1].append(error_of(hook.close))
        hook.before_run(model=network())
        told[-1].append(str(hook.after_train_epoch(3)))
        hook.close()
    return told


def leaves_one_out_and_trains(rank: int, place: Path) -> Any:
    """Rank 1 leaves out a save for good. Its gradients are paired with those of rank 0, which come after the error."""
    told = []
    for sync_buffer in (False, True):
        model = nn.parallel.DistributedDataParallel(network(), broadcast_buffers=False)
        hook = CheckpointHook(place / str(sync_buffer), interval=1, sync_buffer=sync_buffer)
        hook.before_run(model=model)
        hook.after_train_epoch(0)
        failed = error_of(lambda hook=hook: hook.after_train_epoch(1)) if rank == 0 else ""
        model(torch.full((2, 4), float(rank))).sum().backward()
        gradient = model.module[1].bias.grad.tolist()
        if rank == 1:
            failed = error_of(lambda hook=hook: hook.after_train_epoch(2))
        told.append([failed, gradient])
        dist.barrier()
        again()
    return told


def again() -> None:
    """End the process group and begin another one, as an elastic agent has it done."""
    size, rank = dist.get_world_size(), dist.get_rank()
    dist.barrier()
    dist.destroy_process_group()
    begin(rank, size)


def groups_come_and_go(rank: int, place: Path) -> Any:
    """A process group that is made after before_run, one that is gone before close, and others after it."""
    size = dist.get_world_size()
    told = []
    dist.barrier()
    dist.destroy_process_group()
    hook = CheckpointHook(place / "run", interval=1, background=True)
    hook.before_run(model=network())  # alone, by RANK
    begin(rank, size)
    told.append(str(hook.after_train_epoch(0)))
    hook.wait()
    hook.after_train_epoch(1)
    dist.barrier()
    dist.destroy_process_group()
    hook.close()
    told.append(str(hook.last_ckpt))
    for epoch in (2, 3):
        begin(rank, size)
        with CheckpointHook(place / "run", interval=1) as hook:
            told.append(hook.resume(model=network()).epoch)
            limits = resource.getrlimit(resource.RLIMIT_FSIZE)
            if rank == 0:
                resource.setrlimit(resource.RLIMIT_FSIZE, (300, limits[1]))
            told.append(error_of(lambda hook=hook, epoch=epoch: hook.after_train_epoch(epoch)))
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
            hook.after_train_epoch(epoch)
            dist.barrier()
            dist.destroy_process_group()
    begin(rank, size)
    return told


def without_gloo(rank: int, place: Path) -> Any:
    """A torch without gloo for our own group: that is said, once, and the training's own serves."""
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger("ckptd.shim").addHandler(handler)
    with mock.patch.object(dist, "is_gloo_available", return_value=False):
        again()
        told = [save_fails(rank, place / "1"), background_fails(rank, place / "2")["wait"][:2]]
    with (
        mock.patch.object(dist, "get_backend", return_value="another"),
        mock.patch.object(dist, "new_group", side_effect=RuntimeError("no route")),
    ):
        again()
        told.append(save_fails(rank, place / "3"))
    logging.getLogger("ckptd.shim").removeHandler(handler)
    again()
    return [*told, [line.partition(":")[0] for line in heard if " gloo" in line]]


def one_of_three_cannot_save(rank: int, place: Path) -> Any:
    from ckptd.shim.adapter import Series

    def save() -> None:
        if rank == 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    series = Series(str(place), "epoch_{}.pth", "epoch", 1, 1)
    return [save_fails(rank, place)[0], error_of(lambda: series.save(save))]


def rank_1_ends(rank: int, place: Path) -> Any:
    """At once, as by kill -9, in the middle of rank 0's save."""
    hook = CheckpointHook(place / "run", interval=1, background=True)
    hook.before_run(model=network())
    hook.after_train_epoch(0)
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    told = error_of(lambda: hook.after_train_epoch(1))
    (place / "told").write_text(told)
    os._exit(0)


def rank_1_never_comes(rank: int, place: Path) -> Any:
    """To before_run, on which rank 0 waits in vain."""
    if rank == 0:
        (place / "told").write_text(error_of(lambda: CheckpointHook(place / "run").before_run(model=network())))
        (place / "done").touch()
    while not (place / "done").exists():
        time.sleep(0.01)
    os._exit(0)


def error_of(call: Any) -> str:
    try:
        call()
    except (CkptdError, OSError) as error:
        return str(error)
    return ""


def begin(rank: int, size: int) -> None:
    begun.append(rank)
    store = Path(sys.argv[1], f"store-{len(begun)}").as_uri()
    # A rank that waits for another for so long is one that hangs.
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=size, timeout=timedelta(seconds=40))


begun: list[int] = []  # process groups


def main() -> None:
    place, names = Path(sys.argv[1]), sys.argv[2:]
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    torch.set_num_threads(1)
    begin(rank, size)
    for name in names:
        (place / name).mkdir(exist_ok=True)
        dist.barrier()
        answer = globals()[name](rank, place / name)
        (place / f"{name}-{rank}.json").write_text(json.dumps(answer))
    dist.barrier()
    # Not by the interpreter: DDP joins the threads of gloo, and these may want its lock, or be there after it.
    os._exit(0)


if __name__ == "__main__":
    main()
