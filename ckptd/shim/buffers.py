"""Make the buffers of a module the same on every rank. Collectives in one order, whatever a rank holds."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._utils import _unflatten_dense_tensors

from ..errors import CkptdError, RefusedError
from .ranks import Group, agree, broadcast_text, device_of, rank_of, world_size
from .state import is_sharded


@torch.no_grad()
def average_buffers(module: nn.Module, *, group: Group = None) -> None:
    """Give every rank of `group` the same buffers, in place: floats the mean over ranks, others rank 0's value.

    Every rank of the group calls it. Buffers of any shape are averaged in one flat bucket, computed in float32
    (float64 ones in float64) and rounded to their own type at the end; integers and booleans, such as BatchNorm's
    `num_batches_tracked`, have no mean and take the value of the group's rank 0. Running variances are averaged as
    they are, without the variance between ranks, as in mmcv. Buffers registered as not persistent are left alone: no
    checkpoint holds them. A buffer with two names is averaged once.

    Raises CkptdError on every rank, before any buffer has changed, if the names, shapes or types of the buffers
    differ between ranks; it names a rank and a buffer. Without a process group, with one rank, and on ranks outside
    of `group` nothing happens.
    """
    if world_size(group) <= 1:
        return
    buffers = dict(_saved_buffers(module))
    _check_alike(buffers, group)
    for name, buffer in buffers.items():
        if is_sharded(buffer):
            raise RefusedError(f"buffer {name}: a {type(buffer).__name__}, of which each rank holds a part: no mean")

    averaged = [each for each in buffers.values() if each.is_floating_point() or each.is_complex()]
    for kind in (torch.float32, torch.float64):
        _average([each for each in averaged if _computed_in(each) is kind], kind, group)
    _take_from_rank_0([each for each in buffers.values() if not (each.is_floating_point() or each.is_complex())], group)


def _saved_buffers(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    seen: set[int] = set()
    for prefix, inside in module.named_modules():
        for name, buffer in inside._buffers.items():
            if buffer is None or name in inside._non_persistent_buffers_set or id(buffer) in seen:
                continue
            seen.add(id(buffer))
            yield (f"{prefix}.{name}" if prefix else name), buffer


def _computed_in(buffer: Tensor) -> torch.dtype:
    return torch.float64 if buffer.dtype in (torch.float64, torch.complex128) else torch.float32


def _average(buffers: list[Tensor], kind: torch.dtype, group: Group) -> None:
    if not any(each.numel() for each in buffers):
        return
    reals = [torch.view_as_real(each) if each.is_complex() else each for each in buffers]
    flat = _flat(reals, kind, group)
    dist.all_reduce(flat, group=group)
    flat.div_(world_size(group))
    _copy_back(flat, reals)


def _take_from_rank_0(buffers: list[Tensor], group: Group) -> None:
    if not any(each.numel() for each in buffers):
        return
    alike: dict[torch.dtype, list[Tensor]] = {}
    for each in buffers:
        alike.setdefault(each.dtype, []).append(each)
    # As bytes: one broadcast for all types, and those that a backend cannot send need not be known to it.
    flat = torch.cat([_flat(those, kind, group).view(torch.uint8) for kind, those in alike.items()])
    dist.broadcast(flat, 0 if group is None else dist.get_global_rank(group, 0), group=group)
    at = 0
    for kind, those in alike.items():
        size_bytes = sum(each.numel() * each.element_size() for each in those)
        # The clone begins where its storage begins, as the bytes of a larger number must.
        _copy_back(flat[at : at + size_bytes].clone().view(kind), those)
        at += size_bytes


def _flat(buffers: list[Tensor], kind: torch.dtype, group: Group) -> Tensor:
    """A copy of all buffers in one row."""
    device = device_of(group)
    return torch.cat([
        (each if each.dtype is kind and each.device == device else each.to(device, kind)).reshape(-1)
        for each in buffers
    ])  # fmt: skip


def _copy_back(flat: Tensor, buffers: list[Tensor]) -> None:
    pieces = _unflatten_dense_tensors(flat, buffers)  # type: ignore[no-untyped-call]
    if all(each.dtype is flat.dtype and each.device == flat.device for each in buffers):
        torch._foreach_copy_(buffers, pieces)  # one call into torch for hundreds of small buffers
        return
    for each, piece in zip(buffers, pieces):
        each.copy_(piece)


def _check_alike(buffers: dict[str, Tensor], group: Group) -> None:
    """Raise on every rank unless all ranks hold buffers of the same names, shapes and types, in the same order."""
    lines = [f"{name}\t{tuple(each.shape)} {each.dtype} {type(each).__name__}" for name, each in buffers.items()]
    ours = "\n".join(lines)
    digest = int.from_bytes(hashlib.sha256(ours.encode()).digest()[:7], "big")
    # The least digest and the least negative one: one all-reduce tells whether all are the same.
    both = torch.tensor([digest, -digest], dtype=torch.int64, device=device_of(group))
    dist.all_reduce(both, op=dist.ReduceOp.MIN, group=group)
    least, most = int(both[0].item()), -int(both[1].item())
    if least == most:
        return
    theirs = broadcast_text(ours, group=group)
    agree(None if ours == theirs else CkptdError(_difference(lines, theirs.splitlines(), rank_of(group))), group)


def _difference(ours: list[str], theirs: list[str], rank: int) -> str:
    advice = "Build the same module on every rank before its buffers are averaged"
    for our, their in itertools.zip_longest(ours, theirs):
        if our == their:
            continue
        (name, what), (name_0, what_0) = ((line or "\t").split("\t") for line in (our, their))
        if name == name_0:
            return f"buffer {name}: {what} on rank {rank}, {what_0} on rank 0. {advice}"
        if name_0 and not any(line.startswith(f"{name_0}\t") for line in ours):
            return f"buffer {name_0}: missing on rank {rank}, {what_0} on rank 0. {advice}"
        if name and not any(line.startswith(f"{name}\t") for line in theirs):
            return f"buffer {name}: {what} on rank {rank}, missing on rank 0. {advice}"
        return f"buffer {name}: in the place of {name_0} on rank {rank}. {advice}"
    raise AssertionError("called for two lists that do not differ")
