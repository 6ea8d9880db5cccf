"""Directories that differ by a rank alone, such as `mp_rank_00` and `mp_rank_01`: one run, of which each holds a part.

Pure. A step of such a run is whole only where each of them has it, so none is pruned apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

RANK = "of one rank of a run,"
_OF_A_RANK = re.compile("(?:^|[-_.])rank[-_.=]?[0-9]", re.IGNORECASE)
_NUMBER = re.compile("[0-9]+")


def why_with_others(name: str, beside: Iterable[str]) -> str:
    """Why a directory is left alone, for what stands `beside` it; "" if it is not.

    There is a first rank, which there is not among runs that are told apart by another number of that name.
    """
    if shape(name) == name:
        return ""
    alike = sorted(each for each in beside if each != name and shape(each) == shape(name))
    if not alike or not any(_is_first(each) for each in (name, *alike)):
        return ""
    return f"{RANK} as {alike[0]} is, and never pruned apart"


def shape(name: str) -> str:
    """The name of a directory for one rank, without the numbers that tell it; any other name as it is."""
    return _NUMBER.sub("#", name) if _OF_A_RANK.search(name) else name


def _is_first(name: str) -> bool:
    return not any(int(number) for number in _NUMBER.findall(name))
