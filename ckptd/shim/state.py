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
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Tensor, nn.Parameter)
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
        if each is not None and not hasattr(each, "state_dict"):
            where = f"optimizer[{name!r}]" if name else "optimizer"
            raise UsageError(f"{where} is a {type(each).__name__}: give an optimizer, or a dict of them")
    for name in states:
        if name in OWN_KEYS:
            raise UsageError(f"state {name!r}: a checkpoint has a key of that name already. Choose another")
    if any(type(each).__name__ == "FullyShardedDataParallel" for each in model.modules()):
        raise RefusedError(_sharded("state_dict", "a FullyShardedDataParallel model", rank))
    for kind in (model.named_parameters(), model.named_buffers()):
        for name, tensor in kind:
            if is_sharded(tensor):
                raise RefusedError(_sharded(f"state_dict.{name}", f"a {type(tensor).__name__}", rank))


def collect(model: nn.Module, optimizer: Any, states: Mapping[str, Any], *, rank: int) -> dict[str, Any]:
    """What a checkpoint holds beside `meta`. Raises RefusedError for sharded state, naming its key and the rank."""
    state: dict[str, Any] = {"state_dict": _without_wrappers(model)}
    if isinstance(optimizer, Mapping):
        state["optimizer"] = {name: each.state_dict() for name, each in optimizer.items()}
    elif optimizer is not None:
        state["optimizer"] = optimizer.state_dict()
    for name, value in states.items():
        state[name] = value.state_dict() if _is_stateful(value) else value
    for key, value in _leaves(state, ""):
        if is_sharded(value):
            raise RefusedError(_sharded(key, f"a {type(value).__name__}", rank))
    return state


def check_loadable(state: Mapping[str, Any]) -> None:
    """Raise CkptdError, naming the key, for what `torch.load` would refuse with weights_only=True.

    Tensors and plain values are known to be loadable; anything else is written to memory and read back.
    """
    for key, value in _leaves(state, ""):
        if type(value) in _PLAIN:
            continue
        held = io.BytesIO()
        try:
            torch.save(value, held)
            held.seek(0)
            torch.load(held, weights_only=True)
        except (pickle.PickleError, AttributeError, TypeError) as error:
            reason = str(error).strip().splitlines()[-1]
            raise CkptdError(
                f"{key}: a {type(value).__module__}.{type(value).__name__}, which torch.load refuses with "
                f"weights_only=True. Save plain values instead, or declare it with torch.serialization."
                f"add_safe_globals ({reason})"
            ) from error


def read(path: Path, *, map_location: Any, weights_only: bool) -> dict[str, Any]:
    """What the checkpoint at `path` holds. Raises CkptdError for what torch.load refuses, and for no dict."""
    try:
        saved = torch.load(path, map_location=map_location, weights_only=weights_only)
    except OSError as error:
        raise CkptdError(f"{path}: cannot be read: {why(error)}. Every rank reads it") from error
    except pickle.UnpicklingError as error:
        raise CkptdError(
            f"{path}: {str(error).strip().splitlines()[0]} "
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


def _leaves(value: Any, key: str) -> Iterator[tuple[str, Any]]:
    """Every value that is no plain container, with the keys that lead to it, joined by dots."""
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


def _sharded(key: str, what: str, rank: int) -> str:
    return (
        f"{key}: {what}, of which rank {rank} holds a part only: one file would hold that part and load as wrong "
        "weights. Save it with torch.distributed.checkpoint, and ask should_save when"
    )
