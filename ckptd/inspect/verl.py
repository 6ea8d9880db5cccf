"""What directories look like that verl writes: by its PPO and SFT trainers, with FSDP and with Megatron.

Structure only, nothing is unpickled. Source: verl, utils/checkpoint/{fsdp,megatron}_checkpoint_manager.py and
checkpoint_handler.py, trainer/ppo/ray_trainer.py.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from ..core import kinds
from ..core.checkpoint import State
from .files import Structure
from .frameworks import missing_of_megatron
from .parts import gap_in, incomplete, inside, json_of, numbered, parts_of

if TYPE_CHECKING:
    from .view import DirectoryView

_SHARD = re.compile(r"(model|optim|extra_state)_world_size_([0-9]+)_rank_([0-9]+)\.pt")
_SFT_DATA = re.compile(r"data_([0-9]+)\.pt")
_CONTENTS = "ckpt_contents.json"  # Megatron: written when all is done
_DISTRIBUTED = "dist_ckpt"
_BY_MEGATRON = ("model", "optimizer", "extra")  # each with a distributed checkpoint in it


class _Role(NamedTuple):
    """What there is of a role, such as the actor. fault: what is wrong with it, None if nothing is."""

    what: str
    fault: str | None


def is_one(directory: DirectoryView) -> bool:
    return _role_in(directory) is not None or bool(_roles(directory))


def verl(directory: DirectoryView) -> Structure:
    """For each role the files of all ranks, of which each names how many there are, or Megatron's distributed
    checkpoints with their contents; then `data.pt`. SFT has one model and no role, and data of each rank."""
    alone = _role_in(directory)
    roles = {"": alone} if alone is not None else _roles(directory)
    for name, role in roles.items():
        if role.fault:
            return incomplete(kinds.VERL, f"{name}: {role.fault}" if name else role.fault)
    if alone is None and "actor" not in roles:
        return incomplete(kinds.VERL, f"no actor beside {', '.join(roles)}", unmarked=True)
    data = {rank for (rank,) in numbered(directory.names, _SFT_DATA)}
    if alone is None and not directory.names & {"data.pt", "dataloader.pt"}:  # the other is EasyR1's
        return incomplete(kinds.VERL, "no data.pt, which is written last", unmarked=True)
    if alone is not None and (not data or gap_in(data) is not None):
        return incomplete(kinds.VERL, f"no data_{gap_in(data) or 0}.pt")
    found = parts_of(directory)
    if alone is None:
        return found.structure(kinds.VERL, f"data.pt, and {_said(roles)}", marked=True)
    marked = _CONTENTS in directory.names
    return found.structure(kinds.VERL, f"{alone.what}, and data of {len(data)}", marked=marked)


def shell() -> Structure:
    """What verl's own pruning leaves, which empties the roles: no checkpoint, and not half of one."""
    return Structure(State.INCOMPLETE, "nothing but data.pt: its roles were deleted", known=False, marked=False)


def _said(roles: dict[str, _Role]) -> str:
    return "; ".join(f"{role.what} of {name}" for name, role in roles.items())


def _roles(directory: DirectoryView) -> dict[str, _Role]:
    roles: dict[str, _Role] = {}
    for name in sorted(name for name in directory.names if directory.is_dir(name)):
        with inside(directory, name) as within:
            role = _role_in(within) if within is not None else None
        if role is not None:
            roles[name] = role
    return roles


def _role_in(directory: DirectoryView) -> _Role | None:
    """What of one role lies in a directory, by either backend; None if nothing does."""
    matches = [_SHARD.fullmatch(name) for name in directory.names]
    shards = [(each[1], int(each[2]), int(each[3])) for each in matches if each]
    if shards:
        return _Role("the files of all ranks", _missing_rank(shards))
    if _CONTENTS in directory.names or _has_distributed(directory):
        return _Role("Megatron's distributed checkpoints", _missing_of_megatron(directory))
    return None


def _missing_rank(shards: list[tuple[str, int, int]]) -> str | None:
    for what in sorted({what for what, _, _ in shards} | {"model"}):
        worlds = {world for kind, world, _ in shards if kind == what}
        ranks = {rank for kind, _, rank in shards if kind == what}
        if worlds != {len(ranks)} or gap_in(ranks) is not None:
            return f"{what} of {len(ranks)} of {max(worlds, default=0)} ranks"
    return None


def _has_distributed(directory: DirectoryView) -> bool:
    """Whether Megatron's checkpoints lie where verl has them: split by what they hold, or as one, as it had before."""
    if directory.is_dir(_DISTRIBUTED):
        return True
    for name in _BY_MEGATRON:
        with inside(directory, name) as within:
            if within is not None and within.is_dir(_DISTRIBUTED):
                return True
    return False


def _missing_of_megatron(directory: DirectoryView) -> str | None:
    if directory.is_dir(_DISTRIBUTED):
        return _missing_at(directory, _DISTRIBUTED)
    if _CONTENTS not in directory.names:
        return f"no {_CONTENTS}, which is written last"
    said = json_of(directory, _CONTENTS)
    contents = said.get("contents") if isinstance(said, dict) else None
    if not isinstance(contents, dict) or not contents:
        return f"{_CONTENTS} is damaged"
    places = [each.get("path") if isinstance(each, dict) else None for each in contents.values()]
    if not all(isinstance(place, str) for place in places):
        return f"{_CONTENTS} is damaged"
    faults = (_missing_at(directory, place) for place in sorted({str(place) for place in places}))
    return next((fault for fault in faults if fault), None)


def _missing_at(directory: DirectoryView, place: str) -> str | None:
    """What is missing of what should be at a path below a directory; None if nothing is."""
    first, _, rest = place.partition("/")
    if first not in directory.names:
        return f"{place} is missing"
    if not directory.is_dir(first):
        return None if not rest else f"{place} is missing"
    with inside(directory, first) as within:
        if within is None:
            return f"{place} is missing"
        if rest:
            return _missing_at(within, rest)
        fault = missing_of_megatron(within) if first == _DISTRIBUTED else None
        return f"{place}: {fault}" if fault else None
