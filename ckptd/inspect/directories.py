"""What a directory that is one checkpoint looks like: whose it is by what is in it, and whether all of that is there.

Structure only: nothing is unpickled, and of the files inside only the ends and headers are read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from ..core import kinds
from ..core.checkpoint import State
from . import dcp, frameworks, verl
from .files import Structure
from .parts import has_any_weights, incomplete, missing_in_index, missing_of_distributed, parts_of, trainer_state
from .scan import INDEX_ENDING, TRAINER_STATE

if TYPE_CHECKING:
    from .view import DirectoryView

_UNDER_WAY = "checkpoint-is-incomplete.txt"  # Transformers: there while it saves because of a signal
_OPTIMIZERS = ("optimizer.pt", "scheduler.pt", "optimizer.pdopt", "scheduler.pdparams")
_TRAINERS = ("rng_state", "optimizer_", "global_step")  # of every rank, of FSDP, of DeepSpeed
_RANDOM_STATE = "random_states_"

# What is half of one kind is a whole of another: the last file that makes it the first, and what it is until then.
_LAST = {kinds.LIGHTNING: (kinds.DCP, "meta.pt"), kinds.MEGATRON: (kinds.DCP, "metadata.json")}


def structure_of_directory(
    directory: DirectoryView, wanted: frozenset[str] | None = None, *, by_template: bool = False
) -> Structure:
    """Look at one directory. Raises OSError if something in it cannot be read.

    wanted: the kinds that its name stands for, None for any. No other can be complete where it is half of one of them.
    by_template: somebody has named it, so that no framework's marker is asked for; its parts must not contradict
    themselves all the same.
    """
    found = next((judge(directory) for claims, judge in _JUDGES if claims(directory)), None)
    if by_template and (found is None or found.unmarked):
        return _by_its_parts(directory)
    if found is None and wanted:
        found = _by_its_name(directory, wanted)
    if found is None:
        return Structure(State.UNVERIFIABLE, "a directory without any known marker", known=False, marked=False)
    for kind, (half, last) in _LAST.items():
        if wanted and kind in wanted and half not in wanted and found.kind == half:
            return incomplete(kind, f"{found.text}, but no {last}")
    return found


def _by_its_parts(directory: DirectoryView) -> Structure:
    """What can be said of a directory of no known framework."""
    parts = parts_of(directory)
    if parts.fault is not None:
        return Structure(State.INCOMPLETE, parts.fault, known=False, marked=False)
    if not parts.count:
        return Structure(State.UNVERIFIABLE, "a directory without any known marker", known=False, marked=False)
    text = "every file intact, and nothing marks its end"
    return Structure(State.UNVERIFIABLE, text, known=False, checksum=parts.checksum, marked=False)


def _by_its_name(directory: DirectoryView, wanted: frozenset[str]) -> Structure | None:
    """What says too little by itself, and enough where the name is one framework's own."""
    if kinds.VERL in wanted and directory.names == {"data.pt"}:
        return verl.shell()
    if kinds.NEMO in wanted and directory.is_dir("weights"):
        return frameworks.nemo(directory)
    if kinds.SPEECHBRAIN in wanted and has_any_weights(directory):
        return frameworks.speechbrain(directory)
    generic = wanted >= kinds.FILES  # such as `epoch_3/`, where an optimizer.bin may be anybody's
    if kinds.ACCELERATE in wanted and not generic and "optimizer.bin" in directory.names:
        return _by_accelerate(directory)
    return None


def is_claimed(directory: DirectoryView) -> bool:
    """Whether it is a checkpoint of any kind, whole or not."""
    return any(claims(directory) for claims, _ in _JUDGES)


def _distributed(directory: DirectoryView) -> Structure:
    fault = missing_of_distributed(directory)
    if fault is not None:
        return Structure(State.INCOMPLETE, fault, marked=dcp.MARKER in directory.names, kind=kinds.DCP)
    marked = not dcp.is_written_over(directory)
    return parts_of(directory).structure(kinds.DCP, "distributed checkpoint, every shard there", marked=marked)


def _is_trainers(directory: DirectoryView) -> bool:
    # Its arguments come after the weights, and before all else; with nothing else they are what `save_model` exports.
    states = any(name in _OPTIMIZERS or name.startswith(_TRAINERS) for name in directory.names)
    return TRAINER_STATE in directory.names or ("training_args.bin" in directory.names and states)


def _by_trainer(directory: DirectoryView) -> Structure:
    """What the Trainer of Hugging Face Transformers writes, its state last, and PaddleNLP's, which was made after it.

    Source: transformers 4.0 to 5.23; paddlenlp, trainer/trainer.py, utils/env.py.
    """
    if TRAINER_STATE not in directory.names:
        return incomplete(kinds.TRAINER, f"no {TRAINER_STATE}, which is written last", unmarked=True)
    state = trainer_state(directory)
    if state is None or not isinstance(state.get("global_step"), int):
        return incomplete(kinds.TRAINER, f"{TRAINER_STATE} is damaged")
    if _UNDER_WAY in directory.names:
        return incomplete(kinds.TRAINER, f"{_UNDER_WAY} is there: its save was never finished")
    if not has_any_weights(directory):
        return incomplete(kinds.TRAINER, f"no weights beside its {TRAINER_STATE}")
    parts = parts_of(directory)
    parts.fault = parts.fault or frameworks.fault_of_deepspeed_inside(directory)
    return parts.structure(kinds.TRAINER, f"{TRAINER_STATE}, and every file beside it intact", marked=True)


def _is_accelerates(directory: DirectoryView) -> bool:
    return any(name.startswith((_RANDOM_STATE, "pytorch_model_fsdp_")) for name in directory.names)


def _by_accelerate(directory: DirectoryView) -> Structure:
    """What `save_state` of Accelerate writes; the random state of each rank last, but nothing waits for all ranks."""
    if f"{_RANDOM_STATE}0.pkl" not in directory.names:
        return incomplete(kinds.ACCELERATE, f"no {_RANDOM_STATE}0.pkl, which is written last", unmarked=True)
    missing = frameworks.missing_rank(directory.names, rf"{_RANDOM_STATE}([0-9]+)\.pkl")
    if missing is not None:
        return incomplete(kinds.ACCELERATE, f"no {_RANDOM_STATE}{missing}.pkl, though others are there")
    if not has_any_weights(directory):
        return incomplete(kinds.ACCELERATE, "no weights beside its random states")
    parts = parts_of(directory)
    parts.fault = parts.fault or frameworks.fault_of_deepspeed_inside(directory)
    return parts.structure(kinds.ACCELERATE, "what Accelerate saves, every file intact")


def _has_index(directory: DirectoryView) -> bool:
    return any(name.endswith(INDEX_ENDING) for name in directory.names)


def _by_index(directory: DirectoryView) -> Structure:
    """Shards of weights; the index is written with them, not after all else: it marks nothing."""
    index = min(name for name in directory.names if name.endswith(INDEX_ENDING))
    fault, count = missing_in_index(directory, index)
    if fault:
        return incomplete(kinds.INDEX, fault)
    return parts_of(directory).structure(kinds.INDEX, f"{count} shards, all there")


# In this order: who comes first leaves more behind than who comes later, and the later ones' files among it.
_JUDGES: tuple[tuple[Callable[[DirectoryView], bool], Callable[[DirectoryView], Structure]], ...] = (
    (frameworks.is_orbax, frameworks.orbax),
    (frameworks.is_lightning, frameworks.lightning),
    (frameworks.is_megatron, frameworks.megatron),
    (frameworks.is_nemo, frameworks.nemo),
    (frameworks.is_speechbrain, frameworks.speechbrain),
    (frameworks.is_olmo, frameworks.olmo),
    (verl.is_one, verl.verl),
    (dcp.is_one, _distributed),
    (_is_trainers, _by_trainer),
    (frameworks.is_deepspeed, frameworks.deepspeed),
    (frameworks.is_mmengine, frameworks.mmengine),
    (_is_accelerates, _by_accelerate),
    (frameworks.is_torchtune, frameworks.torchtune),
    (_has_index, _by_index),
)
