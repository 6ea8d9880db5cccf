"""The budget: which of those that nothing else keeps go, the oldest first, until the rest fits.

Pure. It comes after the rule, the keepers and the protections, and is never held against any of them. What the disk
has room for is a budget too: `--min-free` says how much of it is not ours to take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..errors import UsageError
from .checkpoint import Checkpoint
from .memory import Seen

MAX_BYTES, MIN_FREE = "--max-bytes", "--min-free"
_NO_LIMIT = 1 << 63


@dataclass(frozen=True)
class Floor:
    """How much of a file system is to stay free: so many bytes, or so many percent of its size.

    Raises UsageError for what can never be meant.
    """

    size_bytes: int = 0
    percent: float = 0.0

    def __post_init__(self) -> None:
        if not (self.size_bytes >= 1 or 0 < self.percent < 100):
            raise UsageError(f"min_free is {self}: a number of bytes, at least 1, or a percentage between 0% and 100%")

    @classmethod
    def from_text(cls, text: str) -> Floor:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)(%?)", text.strip(), re.ASCII)
        if match is None or ("." in match[1] and not match[2]):
            raise UsageError(f"min_free {text!r}: write a number of bytes, or a percentage such as 10%")
        return cls(percent=float(match[1])) if match[2] else cls(int(match[1]))

    def __str__(self) -> str:
        return f"{self.percent:g}%" if self.percent else str(self.size_bytes)

    def bytes_of(self, disk: Disk) -> int:
        return self.size_bytes or int(disk.size_bytes * self.percent / 100)


@dataclass(frozen=True)
class Disk:
    """The file system of a work dir: its size, what is free of it, and what our trash there takes."""

    size_bytes: int
    free_bytes: int
    trash_bytes: int = 0


@dataclass(frozen=True)
class Budget:
    """How a plan stands to the option that limits it: what stays takes `kept_bytes` of `limit_bytes` on the disk.

    floor_bytes: where that is what the disk has room for, how much of it is to stay free.
    """

    limit_bytes: int
    kept_bytes: int
    option: str = MAX_BYTES
    floor_bytes: int = 0

    @property
    def short_bytes(self) -> int:
        """What would have to go as well, and may not."""
        return max(0, self.kept_bytes - self.limit_bytes)


def budget_of(max_bytes: int | None, floor: Floor | None, disk: Disk | None, found: Sequence[Checkpoint]) -> Budget:
    """The tighter of the two limits, before anything of `found` goes. Where `disk` is not known the floor is none.

    All that is ours may take what it takes now, and what is free beyond the floor: so nothing goes while there is more.
    """
    taken_bytes = sum(c.allocated_bytes for c in found)
    if max_bytes is not None:
        budget = Budget(max_bytes, taken_bytes)
    else:
        budget = Budget(_NO_LIMIT, taken_bytes, MIN_FREE)
    if floor is None or disk is None:
        return budget
    floor_bytes = floor.bytes_of(disk)
    limit_bytes = taken_bytes + disk.trash_bytes + disk.free_bytes - floor_bytes
    return Budget(limit_bytes, taken_bytes, MIN_FREE, floor_bytes) if limit_bytes < budget.limit_bytes else budget


def over_budget(
    limit_bytes: int, staying: Sequence[Checkpoint], spare: Sequence[Checkpoint], seen: Mapping[str, Seen]
) -> tuple[int, frozenset[str]]:
    """The names that go so that `staying` takes no more than the limit: of `spare`, the oldest first by writing, and no
    more than it takes; and what then stays, in bytes.

    Those from which nothing can be resumed go before all others.

    The trash is not in it: emptied first, it takes nothing.
    """
    kept_bytes = sum(c.allocated_bytes for c in staying)
    gone = set()
    for c in sorted(spare, key=lambda c: (c.state.whole, seen[c.name].rank, c.name)):
        if kept_bytes <= limit_bytes:
            break
        kept_bytes -= c.allocated_bytes
        gone.add(c.name)
    return kept_bytes, frozenset(gone)


def over_in_trash(budget: Budget, trash: Sequence[tuple[str, int]]) -> list[str]:
    """What of the trash is over the budget: of its items with their bytes, the oldest first, until the rest fits."""
    total_bytes = budget.kept_bytes + sum(size_bytes for _, size_bytes in trash)
    over = []
    for item, size_bytes in trash:
        if total_bytes <= budget.limit_bytes:
            break
        total_bytes -= size_bytes
        over.append(item)
    return over
