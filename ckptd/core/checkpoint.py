"""One checkpoint, as a value: what a scan found, and what its bytes say.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .entry import Entry


class State(str, Enum):
    """What the bytes of a checkpoint say (docs/design.md, section 5)."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # broken and quiet
    IN_FLIGHT = "in flight"  # open for writing, or broken and young
    UNVERIFIABLE = "unverifiable"  # a format without any check, quiet: counts as complete
    DOUBTFUL = "in doubt"  # not all of it is of one save, or can be looked at: kept, and nothing relies on it

    def __init__(self, text: str) -> None:
        """whole: a training run may be resumed from it, as far as its bytes tell. settled: it is known what it is."""
        # Answered once, not by a property: a plan asks this many times of each of a million checkpoints.
        self.whole = text in ("complete", "unverifiable")
        self.settled = text not in ("in flight", "in doubt")


class Durability(Enum):
    """Whether the bytes of a checkpoint are on stable storage, as far as anybody has tried; the values are those that
    the state file has."""

    UNKNOWN = None
    SYNCED = True  # an fsync has succeeded
    FAILED = False  # one has failed, and a later one tells nothing: not relied on until it was read back

    def __init__(self, value: bool | None) -> None:
        self.failed = value is False  # as `whole`, answered once


class Content(Enum):
    """What there is to be read of a checkpoint beyond its structure: whatever its format holds a checksum of."""

    UNCHECKED = "no checksum"
    CHECKED = "checksums"  # read, or nobody has asked for that
    AWAITED = "awaited"  # still to be read, and taken for good until then
    UNREAD = "unread"  # still to be read, and not relied on before

    def __init__(self, text: str) -> None:
        self.has_checksum = text != "no checksum"  # as `whole`, answered once
        self.is_to_be_read = text in ("awaited", "unread")


@dataclass(frozen=True)
class Checkpoint:
    """One saved training state, a file or a directory of shards: what a scan found, and what its bytes say.

    `metrics` are its scores, where somebody has asked for them. lacks: of one in doubt, which files of the older saves
    it has not, as far as that is all the doubt; lacks_until_ns: until when that is a doubt (ns since 1970).
    """

    entry: Entry
    state: State = State.COMPLETE
    evidence: str = ""
    durability: Durability = Durability.UNKNOWN
    content: Content = Content.UNCHECKED
    metrics: tuple[tuple[str, float], ...] = ()
    lacks: tuple[str, ...] = ()
    lacks_until_ns: int = 0

    @property
    def series(self) -> str:
        return self.entry.series

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def step(self) -> int:
        return self.entry.step

    @property
    def size_bytes(self) -> int:
        return self.entry.size_bytes

    @property
    def allocated_bytes(self) -> int:
        return self.entry.allocated_bytes

    @property
    def mtime_ns(self) -> int:
        return self.entry.mtime_ns

    @property
    def is_save(self) -> bool:
        """Whether it has its place among the saves of the run, whether or not anything may stand on it."""
        return self.state.whole or bool(self.lacks)

    @property
    def fit(self) -> bool:
        """Whether a deletion may stand on it, as far as is known: its content may still be to be read."""
        return self.state.whole and not self.durability.failed

    @property
    def relied_on(self) -> bool:
        """Whether a deletion may stand on it."""
        return self.fit and self.content is not Content.UNREAD

    @property
    def spoiled(self) -> bool:
        """Whether it will never be relied on as it is: broken and quiet, or its fsync has failed."""
        return self.state is State.INCOMPLETE or (self.state.whole and self.durability.failed)
