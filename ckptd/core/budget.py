"""The budget: which of those that nothing else keeps go, the oldest first, until the rest fits.

Pure. It comes after the rule, the keepers and the protections, and is never held against any of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .checkpoint import Checkpoint
from .memory import Seen


@dataclass(frozen=True)
class Budget:
    """How a plan stands to `--max-bytes`: what stays takes `kept_bytes` of `limit_bytes` on the disk."""

    limit_bytes: int
    kept_bytes: int

    @property
    def short_bytes(self) -> int:
        """What would have to go as well, and may not."""
        return max(0, self.kept_bytes - self.limit_bytes)


def over_budget(
    limit_bytes: int, staying: Sequence[Checkpoint], spare: Sequence[Checkpoint], seen: Mapping[str, Seen]
) -> tuple[Budget, frozenset[str]]:
    """The names that go so that `staying` takes no more than the limit: of `spare`, the oldest first by writing.

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
    return Budget(limit_bytes, kept_bytes), frozenset(gone)


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
