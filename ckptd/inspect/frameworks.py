"""What directories look like that Lightning, mmengine, DeepSpeed, Megatron-LM, NeMo, Orbax, torchtune, OLMo and
SpeechBrain write.

Each judge wants its framework's marker, or counts the shards that ranks have written; sources are the rows of
core.layouts. Structure only, nothing is unpickled.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from ..core import kinds
from ..core.checkpoint import State
from . import dcp
from .files import Structure
from .parts import (
    gap_in,
    has_any_weights,
    incomplete,
    inside,
    json_of,
    missing_of_distributed,
    numbered,
    part_of,
    parts_of,
)
from .scan import INDEX_ENDING

if TYPE_CHECKING:
    from .view import DirectoryView

_MODEL_STATES = re.compile(r"(?:zero_pp_rank_[0-9]+_)?mp_rank_([0-9]+)_model_states\.pt")
_ZERO_MODEL_STATES = re.compile(r"zero_pp_rank_([0-9]+)_mp_rank_([0-9]+)_model_states\.pt")
_OPTIM_STATES = re.compile(r"(?:bf16_|fp16_)?zero_pp_rank_([0-9]+)_mp_rank_([0-9]+)_optim_states\.pt")
_LAYER_STATES = re.compile(r"layer_[0-9]+-model_([0-9]+)-model_states\.pt")
_MODEL_PARALLEL = re.compile(r"mp_rank_([0-9]+)(?:_([0-9]+))?(?:_([0-9]+))?")
_MMENGINE_RANK = re.compile(r"rank([0-9]+)\.pth")
_TORCHTUNE_SHARD = re.compile(r"(?:ft-)?model-([0-9]{5})-of-([0-9]{5})\.(?:safetensors|bin)")


def missing_rank(names: Iterable[str], pattern: str) -> int | None:
    """The lowest rank of whom there is nothing like `pattern`, though there is something of a higher one."""
    return gap_in(rank for (rank,) in numbered(names, re.compile(pattern)))


def is_lightning(directory: DirectoryView) -> bool:
    names = directory.names
    if "meta.pt" in names and dcp.MARKER in names:
        return True
    return "checkpoint" in names and "latest" in names and _has_deepspeed(directory, "checkpoint")


def lightning(directory: DirectoryView) -> Structure:
    """A sharded strategy's: a distributed checkpoint, then `meta.pt`. With DeepSpeed: its directory `checkpoint`."""
    if "meta.pt" not in directory.names:
        with inside(directory, "checkpoint") as within:
            assert within is not None  # claimed
            found = deepspeed(within)
        return parts_of(directory).structure(found.kind, found.text) if found.state.whole else found
    fault = missing_of_distributed(directory)
    if fault is not None:
        return incomplete(kinds.LIGHTNING, fault)
    text = "distributed checkpoint and meta.pt, every shard there"
    return parts_of(directory).structure(kinds.LIGHTNING, text, marked=True)


def is_deepspeed(directory: DirectoryView) -> bool:
    return any(_MODEL_STATES.fullmatch(name) or _OPTIM_STATES.fullmatch(name) for name in directory.names)


def deepspeed(directory: DirectoryView) -> Structure:
    """Model states of each model-parallel rank, and of each of those the optimizer's of all data-parallel ranks.

    How many ranks there were is in no name: that the last are missing cannot be told, so nothing marks it complete.
    """
    names = directory.names
    models = {rank for (rank,) in [*numbered(names, _MODEL_STATES), *numbered(names, _LAYER_STATES)]}
    shards = numbered(names, _OPTIM_STATES)
    if not models:
        return incomplete(kinds.DEEPSPEED, "no model states beside the optimizer's")
    without = {column for _, column in shards} - models
    if gap_in(models) is not None or without:
        return incomplete(kinds.DEEPSPEED, f"no model states of rank {gap_in(models) if not without else min(without)}")
    for what, found in (("optimizer states", shards), ("model states", numbered(names, _ZERO_MODEL_STATES))):
        fault = _gap_in_grid(found, models, what) if found else None
        if fault:
            return incomplete(kinds.DEEPSPEED, fault)
    text = f"model states of {len(models)}, optimizer states of {len(shards)} ranks, every file intact"
    return parts_of(directory).structure(kinds.DEEPSPEED, text)


def fault_of_deepspeed_inside(directory: DirectoryView) -> str | None:
    """What is wrong with what DeepSpeed has written into a directory of another's checkpoint; None if nothing is."""
    for name in sorted(directory.names):
        if directory.is_dir(name) and _has_deepspeed(directory, name):
            with inside(directory, name) as within:
                found = deepspeed(within) if within is not None else None
            if found is not None and not found.state.whole:
                return f"{name}: {found.text}"
    return None


def _gap_in_grid(found: list[tuple[int, ...]], columns: set[int], what: str) -> str | None:
    """Which of (rank, model-parallel rank) is missing, where each model-parallel rank has as many ranks."""
    ranks = {column: {rank for rank, other in found if other == column} for column in columns}
    most = max(map(len, ranks.values()))
    for column, there in sorted(ranks.items()):
        gap = gap_in(there)
        if gap is None and len(there) < most:
            gap = len(there)
        if gap is not None:
            return f"no {what} of rank {gap} (model-parallel rank {column})"
    return None


def _has_deepspeed(directory: DirectoryView, name: str) -> bool:
    with inside(directory, name) as within:
        return within is not None and is_deepspeed(within)


def is_mmengine(directory: DirectoryView) -> bool:
    ranks = any(_MMENGINE_RANK.fullmatch(name) for name in directory.names)
    return ranks or (directory.is_dir("model") and directory.is_dir("optimizer"))


def mmengine(directory: DirectoryView) -> Structure:
    """FSDP's `rank<k>.pth`, one for each rank, or ColossalAI's directories with `meta.pth`, which comes last."""
    ranks = {rank for (rank,) in numbered(directory.names, _MMENGINE_RANK)}
    if ranks:
        if gap_in(ranks) is not None:
            text = f"no rank{gap_in(ranks)}.pth, though others are there"
            return incomplete(kinds.MMENGINE, text, unmarked=True)  # others may count from 1
        return parts_of(directory).structure(kinds.MMENGINE, f"files of {len(ranks)} ranks, every one intact")
    if "meta.pth" not in directory.names:
        return incomplete(kinds.MMENGINE, "no meta.pth, which is written last", unmarked=True)
    with inside(directory, "model") as model:
        if model is None or not parts_of(model).count:
            return incomplete(kinds.MMENGINE, "no weights in model/", unmarked=True)
    return parts_of(directory).structure(kinds.MMENGINE, "meta.pth, and every file beside it intact")


def is_megatron(directory: DirectoryView) -> bool:
    names = directory.names
    if "common.pt" in names or any(_MODEL_PARALLEL.fullmatch(name) and directory.is_dir(name) for name in names):
        return True
    said = json_of(directory, "metadata.json") if "metadata.json" in names else None
    return isinstance(said, dict) and "sharded_backend" in said


def megatron(directory: DirectoryView) -> Structure:
    """Distributed: `metadata.json` comes when all is done. Before that: a directory for each model-parallel rank."""
    names = directory.names
    ranks = numbered((name for name in names if directory.is_dir(name)), re.compile(r"mp_rank_([0-9]+)(?:_[0-9]+)*"))
    if ranks:
        return _megatron_by_rank(directory)
    said = json_of(directory, "metadata.json") if "metadata.json" in names else None
    if not isinstance(said, dict):
        return incomplete(kinds.MEGATRON, "no metadata.json, which is written last", unmarked=True)
    if said.get("sharded_backend") == "zarr":
        parts = parts_of(directory)
        if parts.fault is None:
            return Structure(
                State.UNVERIFIABLE, "metadata.json, and zarr shards, which hold no check", kind=kinds.MEGATRON
            )
        return incomplete(kinds.MEGATRON, parts.fault)
    fault = missing_of_megatron(directory)
    if fault is not None:
        return incomplete(kinds.MEGATRON, fault)
    return parts_of(directory).structure(kinds.MEGATRON, "metadata.json, every shard there", marked=True)


def missing_of_megatron(directory: DirectoryView) -> str | None:
    """What is missing of the distributed checkpoint that Megatron has written into a directory; None if nothing is."""
    if "metadata.json" not in directory.names:
        return "no metadata.json, which is written last"
    return missing_of_distributed(directory)


def _megatron_by_rank(directory: DirectoryView) -> Structure:
    found = sorted(name for name in directory.names if _MODEL_PARALLEL.fullmatch(name))
    numbers = [tuple(int(part) for part in name.split("_")[2:]) for name in found]
    sizes = [1 + max(each[axis] for each in numbers) for axis in range(min(map(len, numbers)))]
    expected = 1
    for size in sizes:
        expected *= size
    if len({len(each) for each in numbers}) > 1 or len(found) != expected:
        return incomplete(kinds.MEGATRON, f"directories of {len(found)} of {expected} model-parallel ranks")
    for name in found:
        with inside(directory, name) as rank:
            if rank is None or not rank.names & {"model_optim_rng.pt", "model_rng.pt"}:
                return incomplete(kinds.MEGATRON, f"{name}: no model_optim_rng.pt", unmarked=True)
    return parts_of(directory).structure(kinds.MEGATRON, f"files of {expected} model-parallel ranks, every one intact")


def is_nemo(directory: DirectoryView) -> bool:
    return directory.is_dir("weights") and directory.is_dir("context")


def nemo(directory: DirectoryView) -> Structure:
    """NeMo 2: Megatron's distributed checkpoint in `weights`; then, where asked for, what the run was in `context`."""
    with inside(directory, "weights") as weights:
        fault = missing_of_megatron(weights) if weights is not None else "is missing"
    if fault is not None:
        return incomplete(kinds.NEMO, f"weights: {fault}")
    return parts_of(directory).structure(kinds.NEMO, "weights, every shard there")


def is_orbax(directory: DirectoryView) -> bool:
    return "_CHECKPOINT_METADATA" in directory.names


def orbax(directory: DirectoryView) -> Structure:
    """Its final name comes by a rename once it is whole. What a deletion that was cut short has left still bears it."""
    said = json_of(directory, "_CHECKPOINT_METADATA")
    if not isinstance(said, dict):
        return incomplete(kinds.ORBAX, "_CHECKPOINT_METADATA is damaged")
    if not isinstance(said.get("commit_timestamp_nsecs"), int):
        return incomplete(kinds.ORBAX, "not marked as committed in _CHECKPOINT_METADATA")
    handlers = said.get("item_handlers")
    for item in sorted(handlers) if isinstance(handlers, dict) else [""]:
        fault = _broken_item(directory, item) if item else _broken_arrays(directory)
        if fault:
            return incomplete(kinds.ORBAX, f"{item}: {fault}" if item else fault)
    return parts_of(directory).structure(kinds.ORBAX, "committed, and every item there", marked=True)


def _broken_item(directory: DirectoryView, item: str) -> str | None:
    with inside(directory, item) as within:
        if within is None:
            return "is missing"
        return _broken_arrays(within) if within.names else "is empty"


def _broken_arrays(directory: DirectoryView) -> str | None:
    """What is missing of the arrays in a directory, if it is one of arrays: the databases that hold them."""
    names = directory.names
    said = json_of(directory, "_METADATA") if "_METADATA" in names else None
    if "_METADATA" in names and not isinstance(said, dict):
        return "_METADATA is damaged"
    if said is None and any(name.endswith(".ocdbt") or name.startswith("ocdbt.") for name in names):
        return "_METADATA is missing"
    if isinstance(said, dict) and said.get("use_ocdbt"):
        if "manifest.ocdbt" not in names:
            return "manifest.ocdbt is missing"
        for name in sorted(name for name in names if name.startswith("ocdbt.process_")):
            with inside(directory, name) as process:
                if process is None or "manifest.ocdbt" not in process.names:
                    return f"{name}/manifest.ocdbt is missing"
    return None


def is_torchtune(directory: DirectoryView) -> bool:
    names = directory.names
    if names & {"recipe_state", "recipe_state.pt"}:
        return True
    return any(map(_TORCHTUNE_SHARD.fullmatch, names)) and not any(name.endswith(INDEX_ENDING) for name in names)


def torchtune(directory: DirectoryView) -> Structure:
    """Weights in numbered shards; nothing marks the end."""
    shards = numbered(directory.names, _TORCHTUNE_SHARD)
    totals = {total for _, total in shards}
    if len(totals) > 1 or (shards and {number for number, _ in shards} != set(range(1, 1 + max(totals)))):
        return incomplete(kinds.TORCHTUNE, f"{len(shards)} of {max(totals)} shards")
    if not has_any_weights(directory):
        return incomplete(kinds.TORCHTUNE, "no weights")
    parts = parts_of(directory)
    return parts.structure(kinds.TORCHTUNE, f"{len(shards) or parts.count} shards, all there")


def is_olmo(directory: DirectoryView) -> bool:
    names = directory.names
    if directory.is_dir("model_and_optim"):
        return True
    return "config.yaml" in names and bool(names & {"model", "model.pt", "model.safetensors", "train", "train.pt"})


def olmo(directory: DirectoryView) -> Structure:
    """OLMo-core's directory of shards with its metadata; OLMo's of model, optimizer and the trainer's own state."""
    names = directory.names
    if "model_and_optim" in names:
        with inside(directory, "model_and_optim") as states:
            fault = missing_of_distributed(states) if states is not None else "is missing"
            unmarked = states is None or not dcp.is_one(states)
        if fault is not None:
            return incomplete(kinds.OLMO, f"model_and_optim: {fault}", unmarked=unmarked)
        if ".metadata.json" not in names:
            return incomplete(kinds.OLMO, "no .metadata.json", unmarked=True)
        return parts_of(directory).structure(kinds.OLMO, "model_and_optim, every shard there")
    for what in ("model", "optim", "train"):
        if not names & {what, f"{what}.pt", f"{what}.safetensors"}:
            return incomplete(kinds.OLMO, f"no {what}", unmarked=True)
    parts = parts_of(directory)
    if not parts.count:
        return incomplete(kinds.OLMO, "no weights", unmarked=True)
    return parts.structure(kinds.OLMO, "model, optim and train, every file intact")


def is_speechbrain(directory: DirectoryView) -> bool:
    return "CKPT.yaml" in directory.names


def speechbrain(directory: DirectoryView) -> Structure:
    """A file for each of what it was told to save, and `CKPT.yaml`, which comes first: nothing marks the end."""
    if not is_speechbrain(directory):
        return incomplete(kinds.SPEECHBRAIN, "no CKPT.yaml")
    parts = parts_of(directory)
    models = (name for name in directory.names if name.endswith(".ckpt") and not name.startswith("optimizer"))
    if parts.fault is None and not any(part_of(directory, name).kind in kinds.FILES for name in models):
        parts.fault = "no weights beside CKPT.yaml"
    return parts.structure(kinds.SPEECHBRAIN, "CKPT.yaml, and every file beside it intact")
