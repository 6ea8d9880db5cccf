"""Which rank this process is, and how all ranks come to the same answer. Knows nothing of checkpoints.

Every function with a collective in it is to be called on every rank of the group.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
import threading
import weakref
from datetime import timedelta
from typing import Optional

import torch
import torch.distributed as dist

from ..errors import CkptdError, UsageError

Group = Optional["dist.ProcessGroup"]

_TIMEOUT = "CKPTD_SAVE_TIMEOUT"
_LONG_S = 60.0  # for ranks to find each other

_log = logging.getLogger("ckptd.shim")
_own: weakref.WeakKeyDictionary[dist.ProcessGroup, Group] = weakref.WeakKeyDictionary()  # by the training's group


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


def own_group() -> Group:
    """A group of all ranks over gloo that nobody else uses; made at the first call in each process group.

    In the training's own group, a flag would wait for the GPU under nccl, be paired with somebody's gradients where a
    rank leaves out a call, and give a save no more time than a step. Here a rank waits for the others for an hour: a
    checkpoint that takes longer is larger than one file should be, and a rank that has died is noticed at once.
    CKPTD_SAVE_TIMEOUT in the environment says otherwise, in seconds. None, the training's own group, without gloo.
    """
    if world_size() <= 1:
        return None
    training = dist.group.WORLD
    assert training is not None  # since there is more than one rank
    if training not in _own:
        _own[training] = _made()
    return _own[training]


def agree(failure: Exception | None, group: Group = None, *, at: str = "") -> None:
    """Raise on every rank if any rank has failed: its own failure where it happened, elsewhere a CkptdError with
    that rank's number and words. One all-reduce of three numbers; the words are sent only after a failure.

    at: what this rank is doing, a line or more, of which the first is enough for a message. If that is not the same on
    every rank, that is the failure. Raises CkptdError if the other ranks do not come.
    """
    size = world_size(group)
    if size <= 1:
        if failure is not None:
            raise failure
        return
    rank = rank_of(group)
    digest = int.from_bytes(hashlib.sha256(at.encode()).digest()[:7], "big")
    first = torch.tensor([size if failure is None else rank, digest, -digest], dtype=torch.int64)
    first = first.to(device_of(group))
    try:
        dist.all_reduce(first, op=dist.ReduceOp.MIN, group=group)
    except RuntimeError as error:
        if failure is not None:
            raise failure  # noqa: B904 - which came before
        raise CkptdError(_alone(rank, at, error)) from error
    failed, least, negative = first.tolist()
    if least != -negative:
        theirs = broadcast_text(at, group=group)
        agree(failure if at == theirs else CkptdError(_difference(at, theirs, rank)), group)
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


def _made() -> Group:
    if not dist.is_gloo_available():
        if rank_of() == 0:
            _log.warning("this torch has no gloo: saves are agreed on in the training's own process group, where a "
                         "rank that leaves one out may end the job")  # fmt: skip
        return None
    late = threading.Timer(_LONG_S, _log.warning, (
        "still waiting for every rank to come to before_run. If all have, gloo does not reach them: say "
        "GLOO_SOCKET_IFNAME=... for the network that the nodes share",
    ))  # fmt: skip
    late.daemon = True
    late.start()
    group: Group = None
    failure: RuntimeError | None = None
    try:
        group = dist.new_group(backend="gloo", timeout=timedelta(seconds=_timeout_s()))
    except RuntimeError as error:
        failure = error
    finally:
        late.cancel()
    if str(dist.get_backend()) == "gloo":  # which works
        if failure is not None:
            raise CkptdError(_alone(rank_of(), "before_run", failure)) from failure
        return group
    there = torch.tensor([failure is None], dtype=torch.int64, device=device_of())
    dist.all_reduce(there, op=dist.ReduceOp.MIN)
    if there.item():
        return group
    _log.warning("the ranks do not reach each other by gloo (%s): saves are agreed on in the training's own process "
                 "group. Say GLOO_SOCKET_IFNAME=... for the network that the nodes share",
                 failure or "as another one says")  # fmt: skip
    return None


def _timeout_s() -> float:
    text = os.environ.get(_TIMEOUT) or "3600"
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1 <= seconds <= 1e8:
        raise UsageError(f"{_TIMEOUT}={text!r} in the environment: give a number of seconds, at least 1")
    return seconds


def _alone(rank: int, at: str, error: RuntimeError) -> str:
    """What is wrong where a rank has waited in vain for the others; gloo's words begin with their source."""
    words = str(error).partition("] ")[2] or str(error)
    return (
        f"rank {rank} was left alone at {at.partition(chr(10))[0] or 'a call'}: another rank has ended, left out that "
        f"call, or not come within {_TIMEOUT}, {_timeout_s():g} s ({words.partition(chr(10))[0]}). "
        "Every rank makes the same calls"
    )


def _difference(ours: str, theirs: str, rank: int) -> str:
    pairs = itertools.zip_longest(ours.splitlines(), theirs.splitlines(), fillvalue="nothing")
    our, their = next(pair for pair in pairs if pair[0] != pair[1])
    return f"{our} on rank {rank}, {their} on rank 0: every rank makes the same calls, with the same settings"


def _has_group() -> bool:
    return dist.is_available() and dist.is_initialized()
