"""Which rank this process is, and how all ranks come to the same answer. Knows nothing of checkpoints.

Every function with a collective in it is to be called on every rank of the group.
"""

from __future__ import annotations

import os
from typing import Optional

import torch
import torch.distributed as dist

from ..errors import CkptdError, UsageError

Group = Optional["dist.ProcessGroup"]


def rank_of(group: Group = None) -> int:
    """This process's number, from 0; without a process group, what `RANK` in the environment says."""
    if _has_group():
        return dist.get_rank(group)
    text = os.environ.get("RANK") or "0"
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"RANK={text!r} in the environment is no number: who writes cannot be told") from None


def world_size(group: Group = None) -> int:
    """How many processes talk to each other: 1 without a process group, and 0 outside of `group`."""
    if not _has_group():
        return 1
    return max(0, dist.get_world_size(group))


def device_of(group: Group = None) -> torch.device:
    """Where tensors must be for the collectives of `group`."""
    if str(dist.get_backend(group)) == "nccl":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def agree(failure: Exception | None, group: Group = None) -> None:
    """Raise on every rank if any rank has failed: its own failure where it happened, elsewhere a CkptdError with
    that rank's number and words. One all-reduce of one number; the words are sent only after a failure."""
    size = world_size(group)
    if size <= 1:
        if failure is not None:
            raise failure
        return
    rank = rank_of(group)
    first = torch.tensor([size if failure is None else rank], dtype=torch.int64, device=device_of(group))
    dist.all_reduce(first, op=dist.ReduceOp.MIN, group=group)
    failed = int(first.item())
    if failed == size:
        return
    words = broadcast_text(str(failure) if rank == failed else "", source=failed, group=group)
    if failure is not None:
        raise failure
    raise CkptdError(f"rank {failed}: {words}")


def broadcast_text(text: str, *, source: int = 0, group: Group = None) -> str:
    """The text that rank `source` of the group has, on every rank."""
    if world_size(group) <= 1:
        return text
    content = text.encode("utf-8", "surrogateescape")
    device, sender = device_of(group), source if group is None else dist.get_global_rank(group, source)
    length = torch.tensor([len(content)], dtype=torch.int64, device=device)
    dist.broadcast(length, sender, group=group)
    if rank_of(group) == source:
        sent = torch.tensor(list(content), dtype=torch.uint8, device=device)
    else:
        sent = torch.empty(int(length.item()), dtype=torch.uint8, device=device)
    if len(sent):
        dist.broadcast(sent, sender, group=group)
    return bytes(sent.tolist()).decode("utf-8", "surrogateescape")


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
