"""Make the buffers of a module the same on every rank. Collectives in one order, whatever a rank holds."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import weakref

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import CkptdError, RefusedError
from .bucket import Bucket
from .ranks import Group, agree, broadcast_text, device_of, rank_of, world_size
from .state import is_sharded

# What the ranks of a group have last found to be alike on all of them, and the length of its row: all that a rank must
# know to take part in a sum, whatever it holds by now. The same on every rank, since all make the same calls.
_agreed: weakref.WeakKeyDictionary[dist.ProcessGroup, tuple[str, int]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def average_buffers(module: nn.Module, *, group: Group = None) -> None:
    """Give every rank of `group` the same buffers, in place: floats the mean over ranks, others rank 0's value.

    Every rank of the group calls it. Buffers of any shape are averaged in one flat bucket, computed in float32
    (float64 ones in float64) and rounded to their own type at the end; integers and booleans, such as BatchNorm's
    `num_batches_tracked`, have no mean and take the value of the group's rank 0. Running variances are averaged as
    they are, without the variance between ranks, as in mmcv. Buffers that lie where the group's backend cannot reach
    them, such as those in host memory under nccl, go there and back. Those registered as not persistent are left
    alone: no checkpoint holds them. A buffer with two names is averaged once.

    One all-reduce for all but float64; two more where the buffers are not those of the group's last call. Raises
    CkptdError on every rank, before any buffer has changed, if the names, shapes or types of the buffers differ
    between ranks, naming a rank and a buffer; RefusedError, with its name, for a buffer that is sharded, quantized,
    sparse, nested, conjugated, on the meta device, or expanded. Without a process group, with one rank, and on ranks
    outside of `group` nothing happens.
    """
    if world_size(group) <= 1:
        return
    named = _saved_buffers(module)
    buffers = [each for _, each in named]
    held = _described(named)
    bucket = _summed_as_before(held, buffers, group)
    if bucket is None:
        _check_alike(held, _refusal(named), group)
        bucket = _bucket(buffers, group)
        _agreed[_key(group)] = held, len(bucket.row)
        bucket.sum()
    bucket.give_back()
    wide = [each for each in buffers if each.dtype in _WIDE]
    if wide:
        bucket = Bucket(wide, torch.float64, group)
        bucket.sum()
        bucket.give_back()


_WIDE = {torch.float64, torch.complex128}


def _key(group: Group) -> dist.ProcessGroup:
    each = group or dist.group.WORLD
    assert each is not None  # there is one, since world_size has found more than one rank
    return each


def _bucket(buffers: list[Tensor], group: Group) -> Bucket:
    return Bucket([each for each in buffers if each.dtype not in _WIDE], torch.float32, group)


def _summed_as_before(held: str, buffers: list[Tensor], group: Group) -> Bucket | None:
    """The bucket, summed, if all ranks hold what they held at the group's last call.

    A rank that holds something else sends a row of the length that the others expect, and says so in it.
    """
    before, length = _agreed.get(_key(group), ("", 0))
    if not length:
        return None
    bucket = None
    if held == before:
        with contextlib.suppress(RuntimeError):  # what cannot be in a row is refused, once all ranks know
            bucket = _bucket(buffers, group)
    bucket = bucket or Bucket.of_another_kind(length, group)
    return bucket if bucket.sum() else None


def _saved_buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Each buffer that a checkpoint holds, once, with its first name; a walk several times as fast as torch's own."""
    found: list[tuple[str, Tensor]] = []
    seen: set[int] = set()
    ahead = [("", module)]
    while ahead:
        prefix, inside = ahead.pop()
        if id(inside) in seen:
            continue
        seen.add(id(inside))
        if inside._buffers:
            left_out = inside._non_persistent_buffers_set
            for name, buffer in inside._buffers.items():
                if buffer is not None and name not in left_out and id(buffer) not in seen:
                    seen.add(id(buffer))
                    found.append((prefix + name, buffer))
        if inside._modules:
            children = reversed(inside._modules.items())
            ahead.extend([(f"{prefix}{name}.", child) for name, child in children if child is not None])
    return found


def _check_alike(held: str, refusal: RefusedError | None, group: Group) -> None:
    """Raise on every rank unless all ranks hold buffers of the same names, shapes and types, in the same order, and
    none refuses one of them."""
    digest = int.from_bytes(hashlib.sha256(held.encode()).digest()[:7], "big")
    # The least digest and the least negative one: one all-reduce tells whether all are the same.
    found = torch.tensor([digest, -digest, refusal is None], dtype=torch.int64, device=device_of(group))
    dist.all_reduce(found, op=dist.ReduceOp.MIN, group=group)
    least, negative, accepted = found.tolist()
    if least == -negative:
        if not accepted:
            agree(refusal, group, at="average_buffers")
        return
    theirs = broadcast_text(held, group=group)
    told = _difference(held.splitlines(), theirs.splitlines(), rank_of(group)) if held != theirs else ""
    agree(CkptdError(told) if told else None, group, at="average_buffers")


def _described(named: list[tuple[str, Tensor]]) -> str:
    lines = []
    for name, each in named:
        try:
            words = _in_words(each.shape, each.stride(), each.dtype, type(each), each.device)
        except RuntimeError:  # it has no strides, or no shape
            words = f"{each.dtype} {type(each).__name__} {each.layout}"
        lines.append(f"{name}\t{words}")
    return "\n".join(lines)


@functools.lru_cache(maxsize=1024)
def _in_words(
    shape: torch.Size, strides: tuple[int, ...], kind: torch.dtype, holder: type[Tensor], device: torch.device
) -> str:
    expanded = " expanded" if _is_expanded(shape, strides) else ""
    return f"{tuple(shape)} {kind} {holder.__name__}{expanded}{' meta' if device.type == 'meta' else ''}"


def _refusal(named: list[tuple[str, Tensor]]) -> RefusedError | None:
    for name, buffer in named:
        what = _without_a_mean(buffer)
        if what:
            return RefusedError(
                f"buffer {name}: {what}, so that no mean over the ranks can be written into it. Leave sync_buffer "
                "off, and call average_buffers for the modules that do not hold it"
            )
    return None


def _without_a_mean(buffer: Tensor) -> str:
    """Why torch could not add up such buffers and write the mean over them; nothing if it can."""
    if is_sharded(buffer):
        return f"a {type(buffer).__name__} with a part on each rank"
    if buffer.is_quantized:
        return f"quantized ({buffer.dtype})"
    if buffer.is_nested:
        return "a nested tensor"
    if buffer.layout is not torch.strided:
        return f"in the layout {buffer.layout}"
    if buffer.is_meta:
        return "on the meta device"
    if buffer.is_conj() or buffer.is_neg():
        return "conjugated or negated as it is read"
    return "expanded, with one number in several places" if _is_expanded(buffer.shape, buffer.stride()) else ""


def _is_expanded(shape: torch.Size, strides: tuple[int, ...]) -> bool:
    return any(step == 0 and size > 1 for size, step in zip(shape, strides))


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
