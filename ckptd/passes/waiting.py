"""What waits in the trash of one work dir, and until when it can be taken back."""

from __future__ import annotations

from collections.abc import Iterable

from ..core.budget import Budget, over_in_trash
from ..workdir import trash
from .back_off import back_off_s

_LONGEST_S = 3600.0  # between two tries to free something


class Waiting:
    """Knows each item's time, and what it takes on the disk. Times are in ms since 1970."""

    def __init__(self) -> None:
        self._until_ms: dict[str, int] = {}
        self._bytes: dict[str, int] = {}
        self._tries: dict[str, int] = {}

    @property
    def is_retrying(self) -> bool:
        """Whether something could not be freed, and waits for another try."""
        return bool(self._tries.keys() & self._until_ms.keys())

    def put(self, item: str, until_ms: int, allocated_bytes: int = 0) -> None:
        """An item that is in the trash now."""
        self._until_ms[item], self._bytes[item] = until_ms, allocated_bytes

    def due(self, now_ms: int, budget: Budget | None) -> list[str]:
        """What has waited for long enough; with a budget also what is over that, the oldest first."""
        due = [item for item, until_ms in self._until_ms.items() if until_ms <= now_ms]
        if budget is None:
            return due
        staying = sorted(self._until_ms.keys() - due, key=trash.age)
        return due + over_in_trash(budget, [(item, self._bytes[item]) for item in staying])

    def put_off(self, items: Iterable[str], until_ms: int) -> None:
        """Free none of these before that."""
        self._until_ms |= dict.fromkeys(items, until_ms)

    def try_again(self, item: str, now_ms: int) -> None:
        """It could not be freed: wait, each time for twice as long."""
        self._tries[item] = self._tries.get(item, 0) + 1
        self._until_ms[item] = now_ms + int(1000 * back_off_s(self._tries[item], longest_s=_LONGEST_S))

    def forget(self, item: str) -> None:
        """It is no longer here, or somebody is about to free it."""
        self._until_ms.pop(item, None)
        self._bytes.pop(item, None)

    def next_ms(self) -> int | None:
        """When the first of them is due, None if nothing waits."""
        return min(self._until_ms.values(), default=None)
