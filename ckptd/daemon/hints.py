"""What a keeper asks of whoever gives hints: the watcher of one work dir, or the lookout below a root."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol


class Hints(Protocol):
    """A source of hints that a work dir may have changed. A hint is never more than that: the disk is the truth."""

    def watch(self, path: str, inside: Iterable[str] = ()) -> bool:
        """Give hints of the work dir at `path`, and of what changes in its directories `inside`.

        Returns whether something is watched now that was not: what has changed there since the caller last looked gave
        no hint.
        """
        ...

    def heed(self, path: str, counts: Callable[[str], bool]) -> None:
        """From now on give hints of `path` only for names that count; until then for all of them."""
        ...

    def forget(self, path: str) -> None:
        """Give no hint of `path` any more."""
        ...

    def expect_gone(self, path: str, names: set[str]) -> None:
        """Give no hint for the disappearance of the checkpoints `names` and their scores: it is our own doing."""
        ...
