"""The state that a checkpoint holds: collected without wrappers' prefixes, checked, and loaded back.

Writes nothing. What cannot be saved or loaded is refused by its key.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import CkptdError, RefusedError, UsageError, why

OWN_KEYS = ("meta", "state_dict", "optimizer")
_TENSORS = (torch.Tensor, nn.Parameter)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, *_TENSORS)
_LONGEST_INT_BITS = 8 * 255 - 1  # beside its sign; torch.load reads no larger one
_SHARDED = ("DTensor", "ShardedTensor")


def is_sharded(value: object) -> bool:
    """Whether `value` is a tensor of which this rank holds a part only. Told by name: the classes have moved."""
    if type(value) is torch.Tensor:  # as most are
        return False
    return any(kind.__name__ in _SHARDED and kind.__module__.startswith("torch.") for kind in type(value).__mro__)


def check_bound(model: Any, optimizer: Any, states: Mapping[str, Any], *, rank: int) -> None:
    """Raise for what could never be saved: UsageError for no state at all, RefusedError for a rank's part of one."""
    if not isinstance(model, nn.Module):
        raise UsageError(f"model is a {type(model).__name__}: give the torch.nn.Module that is trained")
    for name, each in optimizer.items() if isinstance(optimizer, Mapping) else [("", optimizer)]:
        if each is not None and not _is_stateful(each):
            where = f"optimizer[{name!r}]" if name else "optimizer"
            raise UsageError(f"{where} is a {type(each).__name__}: give an optimizer, or a dict of them")
    for name, value in states.items():
        if name in OWN_KEYS:
            raise UsageError(f"state {name!r}: a checkpoint has a key of that name already. Choose another")
        if _is_stateful(value) and isinstance(value, type):
            raise UsageError(f"state {name!r} is the class {value.__name__}: give an object of it")
        if _is_stateful(value) and not callable(getattr(value, "load_state_dict", None)):
            raise UsageError(
                f"state {name!r}: a {type(value).__name__} has a state_dict and no load_state_dict, so that what is "
                "saved of it could never be loaded. Give what its state_dict() returns instead, as a plain value"
            )
    if any(type(each).__name__ == "FullyShardedDataParallel" for each in model.modules()):
        raise RefusedError(_sharded("state_dict", "a FullyShardedDataParallel model", rank))
    for kind in (model.named_parameters(), model.named_buffers()):
        for name, tensor in kind:
            if is_sharded(tensor):
                raise RefusedError(_sharded(f"state_dict.{name}", f"a {type(tensor).__name__}", rank))


def collect(model: nn.Module, optimizer: Any, states: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds beside `meta`."""
    state: dict[str, Any] = {"state_dict": _without_wrappers(model)}
    if isinstance(optimizer, Mapping):
        state["optimizer"] = {name: each.state_dict() for name, each in optimizer.items()}
    elif optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    for name, value in states.items():
        state[name] = value.state_dict() if _is_stateful(value) else value
    return state


def check(state: Mapping[str, Any], *, rank: int, tried: set[str]) -> None:
    """Raise, naming the key, for what would be missing from a file or could not be read from it again.

    RefusedError for sharded state, with the rank; CkptdError for what `torch.load` would refuse with
    weights_only=True, for tensors without values, and for a container that holds itself. Tensors and plain values are
    known to be loadable; anything else is written to memory and read back. tried: the keys of tensors that were, which
    are large; they are not tried again.
    """
    name = ""
    try:
        for name, part in state.items():
            for key, value in _leaves(part, name):
                _check_leaf(key, value, rank, tried)
    except RecursionError as error:
        raise CkptdError(f"{name}: holds itself, or is nested too deeply to be saved") from error


def _check_leaf(key: str, value: Any, rank: int, tried: set[str]) -> None:
    kind = type(value)
    if kind in _TENSORS:
        if value.is_meta:
            raise CkptdError(f"{key}: a tensor on the meta device, which has no values to be saved")
        return
    if kind in _PLAIN and not (kind is int and value.bit_length() > _LONGEST_INT_BITS):
        return
    if is_sharded(value):
        raise RefusedError(_sharded(key, f"a {kind.__name__}", rank))
    if key in tried:
        return
    held = io.BytesIO()
    try:
        torch.save(value, held)
        held.seek(0)
        torch.load(held, weights_only=True)
    except Exception as error:
        raise CkptdError(
            f"{key}: a {kind.__module__}.{kind.__name__}, which torch.load refuses with weights_only=True. Save "
            f"plain values instead, or declare it with torch.serialization.add_safe_globals ({_refusal(error)})"
        ) from error
    if isinstance(value, torch.Tensor):
        tried.add(key)


def read(path: Path, *, map_location: Any, weights_only: bool) -> dict[str, Any]:
    """What the checkpoint at `path` holds. Raises CkptdError for what torch.load refuses, and for no dict."""
    try:
        saved = torch.load(path, map_location=map_location, weights_only=weights_only)
    except OSError as error:
        raise CkptdError(f"{path}: cannot be read: {why(error)}. Every rank reads it") from error
    except pickle.UnpicklingError as error:
        raise CkptdError(
            f"{path}: torch.load refuses it with weights_only=True ({_refusal(error)}). "
            "If you trust whoever wrote it, resume with weights_only=False"
        ) from error
    if not isinstance(saved, dict):
        raise CkptdError(f"{path}: holds a {type(saved).__name__}, not the keys of a run")
    return saved


def load(
    saved: Mapping[str, Any], model: nn.Module, optimizer: Any, states: Mapping[str, Any], *, source: str
) -> dict[str, Any]:
    """Load what `collect` collected; returns the plain values by name. Raises CkptdError for what does not fit."""
    _load_model(_part(saved, "state_dict", source), model, source)
    if isinstance(optimizer, Mapping):
        parts = _part(saved, "optimizer", source)
        for name, each in optimizer.items():
            _load_into(each, _part(parts, name, f"{source}: optimizer"), f"optimizer.{name}", source)
    elif optimizer is not None:
        _load_into(optimizer, _part(saved, "optimizer", source), "optimizer", source)
    values = {}
    for name, value in states.items():
        if _is_stateful(value):
            _load_into(value, _part(saved, name, source), name, source)
        elif name in saved:
            values[name] = saved[name]
    return values


def name_without_wrappers(model: nn.Module, name: str) -> str:
    """`name` of a parameter, buffer or module below `model`, as it would be without DDP and torch.compile.

    Only what a wrapper has put into the name goes: a module of the user's that is called `module` keeps its name.
    """
    kept: list[str] = []
    here: nn.Module | None = model
    for part in name.split("."):
        if here is None or part != _inner_name(here):
            kept.append(part)
        here = here._modules.get(part) if here is not None else None
    return ".".join(kept)


def _inner_name(module: nn.Module) -> str | None:
    """What a wrapper calls the module in it."""
    if isinstance(module, (nn.parallel.DistributedDataParallel, nn.parallel.DataParallel)):
        return "module"
    return "_orig_mod" if type(module).__name__ == "OptimizedModule" else None


def _without_wrappers(model: nn.Module) -> dict[str, Any]:
    state = model.state_dict()
    named = OrderedDict((name_without_wrappers(model, name), value) for name, value in state.items())
    # The versions of the modules' own formats, which load_state_dict asks for.
    metadata = getattr(state, "_metadata", None)
    if metadata is not None:
        inner = OrderedDict((name_without_wrappers(model, name), value) for name, value in metadata.items())
        named._metadata = inner  # type: ignore[attr-defined]
    return named


def _load_model(saved: Mapping[str, Any], model: nn.Module, source: str) -> None:
    names = {name_without_wrappers(model, name): name for name in model.state_dict()}
    state = OrderedDict((names.get(name, name), value) for name, value in saved.items())
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CkptdError(f"{source}: its state_dict does not fit the model: {error}") from error


def _load_into(target: Any, saved: Any, name: str, source: str) -> None:
    try:
        target.load_state_dict(saved)
    except (ValueError, KeyError, RuntimeError) as error:
        raise CkptdError(f"{source}: its {name} does not fit: {error}") from error


def _part(saved: Mapping[str, Any], key: str, source: str) -> Any:
    try:
        return saved[key]
    except KeyError:
        raise CkptdError(f"{source}: holds no {key!r}. Resume without it, or from another checkpoint") from None


def _is_stateful(value: Any) -> bool:
    return callable(getattr(value, "state_dict", None))


def _refusal(error: Exception) -> str:
    """What torch.load says is wrong, out of the page of advice that is around it."""
    words = str(error).partition("WeightsUnpickler error:")[2] or str(error) or type(error).__name__
    return words.strip().splitlines()[0].partition(" Please use ")[0].rstrip(". ")


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no plain container, with the keys that lead to it, joined by dots.

    Also what somebody has hung on a tensor, which torch.save writes with it.
    """
    if type(value) in (dict, OrderedDict):
        for name, inside in value.items():
            path = f"{key}.{name}" if key else str(name)
            if type(name) not in _PLAIN:
                yield f"{path} (the key itself)", name
            yield from _leaves(inside, path)
    elif type(value) in (list, tuple):
        for index, inside in enumerate(value):
            yield from _leaves(inside, f"{key}[{index}]")
    else:
        yield key, value
        if type(value) in _TENSORS and value.__dict__:
            yield from _leaves(value.__dict__, key)


def _sharded(key: str, what: str, rank: int) -> str:
    return (
        f"{key}: {what}, of which rank {rank} holds a part only: one file would hold that part and load as wrong "
        "weights. Save it with torch.distributed.checkpoint, and ask should_save when"
    )
