"""One checkpoint, as a value: what a scan found and what its bytes say.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class State(str, Enum):
    """What the bytes of a checkpoint say (docs/design.md, section 5)."""

    COMPLETE = "complete"
    INCOMPLETE = "incomplete"  # broken and quiet
    IN_FLIGHT = "in flight"  # open for writing, or broken and young
    UNVERIFIABLE = "unverifiable"  # a format without any check, quiet: counts as complete
    DOUBTFUL = "in doubt"  # not all of it is of one save, or can be looked at: kept, and nothing relies on it

    @property
    def whole(self) -> bool:
        """Whether a training run may be resumed from it, as far as its bytes tell."""
        return self is State.COMPLETE or self is State.UNVERIFIABLE

    @property
    def settled(self) -> bool:
        """Whether it is known what it is."""
        return self is not State.IN_FLIGHT and self is not State.DOUBTFUL


@dataclass(frozen=True)
class Checkpoint:
    """One saved training state: a file, or a folder of shards, with a checkpoint name.

    `mtime_ns` is the time of writing as the disk has it (nanoseconds since 1970; a directory's is that of its
    marker), `size_bytes` the apparent size of all its files, `allocated_bytes` what deleting it would free. `metrics`
    are its scores, where somebody has asked for them.
    """

    series: str
    name: str
    step: int
    size_bytes: int
    mtime_ns: int
    state: State = State.COMPLETE
    evidence: str = ""
    durable: bool = True  # False once an fsync of it has failed: not relied on until it was read back
    pending: bool = False  # its content is still to be read: not relied on before
    allocated_bytes: int = 0
    inode: int = 0
    marker_bytes: int | None = None  # of a directory's marker, which tells one writing of it from another
    metrics: tuple[tuple[str, float], ...] = ()
    changes: int = 0  # another number after any change to its inode, or to one of its parts
    older: int = 0  # how many parts of a directory are no younger than its marker
    younger: int = 0  # and how many are

    @property
    def relied_on(self) -> bool:
        """Whether a deletion may stand on it."""
        return self.state.whole and self.durable and not self.pending

    @property
    def spoiled(self) -> bool:
        """Whether it will never be relied on as it is: broken and quiet, or not durable."""
        return self.state is State.INCOMPLETE or (self.state.whole and not self.durable)

    @property
    def identity(self) -> tuple[str, int, int]:
        """What tells a rewritten checkpoint from the one that was there before.

        Of a directory the size of its marker: evaluators drop files beside it.
        """
        return self.name, self.size_bytes if self.marker_bytes is None else self.marker_bytes, self.mtime_ns

    @property
    def bytes_on_disk(self) -> tuple[str, int, int, int, int]:
        """The identity with the inode and its changes: a copy put in its place, or what was written over it with the
        old time, is the same save, but nobody has flushed or read it."""
        return (*self.identity, self.inode, self.changes)
