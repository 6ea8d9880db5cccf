"""How much room there is on the disk, for `--min-free`; and whether what went for it has come free.

Where snapshots hold the blocks of what is deleted, or a server counts otherwise, deleting more frees no more. So what
is to go for want of room is written down before, and nothing else goes before that has shown. What has not gone after
all, because it was refused or the process was killed, does not have to.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..core.budget import Disk, Floor
from ..core.entry import Entry
from ..disk.filesystem import frees_what_is_deleted, room_on
from ..text.human import human_bytes
from ..workdir import trash
from ..workdir.taken import NAME, Going, Taken, forget_taken, read_taken, write_taken
from ..workdir.workdir import WorkDir

CALM_S = 5.0  # a file system may free what was deleted a while after the call
_AGAIN_S, _FASTEST_BYTES_PER_S = (5.0, 60.0), 10**9


@dataclass(frozen=True)
class Room:
    """What a look has found. disk: None where nothing may go for want of room now, and `doubt` why, if a person should
    know. has_shown: that what went the last time has come free. again_s: when to look again though nothing has happened
    here: others fill the disk too."""

    disk: Disk | None
    again_s: float
    has_shown: bool = False
    doubt: str = ""


class RoomKeeper:
    """Looks at the file system of one work dir, and remembers what went for want of room there."""

    def __init__(self, work: WorkDir, floor: Floor) -> None:
        self._work, self._floor = work, floor
        self._taken: Taken | None = None
        self._was_read = False
        self._room_bytes = 0

    def look(self, now_ns: int, there: Sequence[Entry]) -> Room:
        """What there is, the trash first: what comes free between the two counts twice, and so less goes.

        there: what has a checkpoint's name now.
        """
        own_fd = self._work.open_own()
        in_trash = trash.total_bytes(own_fd)
        disk = Disk(*room_on(self._work.fd), in_trash)
        floor_bytes, (shortest, longest) = self._floor.bytes_of(disk), _AGAIN_S
        if floor_bytes >= disk.size_bytes:
            return Room(None, longest, doubt=self._too_much(floor_bytes, disk))
        spare_bytes = disk.free_bytes - floor_bytes
        again_s = min(longest, max(shortest, spare_bytes / _FASTEST_BYTES_PER_S)) if spare_bytes >= 0 else longest
        self._room_bytes = disk.free_bytes + in_trash + sum(entry.allocated_bytes for entry in there)
        taken = self._read(own_fd)
        gone_bytes = taken.gone_bytes(there) if taken is not None else 0
        if taken is None or spare_bytes >= 0 or not gone_bytes:
            return Room(disk, again_s, has_shown=True)
        waits_s = CALM_S - (now_ns - taken.at_ns) / 1e9
        if 0 < waits_s <= CALM_S:
            return Room(None, waits_s)
        expected_bytes = taken.room_bytes - gone_bytes // 2  # others write meanwhile
        if self._room_bytes < expected_bytes and not frees_what_is_deleted(self._work.fd):
            return Room(None, longest, doubt=self._doubt(gone_bytes))
        return Room(disk, again_s, has_shown=True)

    def take(self, going: Iterable[Entry], now_ns: int) -> None:
        """Write down what is about to go for want of room. Raises OSError, but for a disk that is full."""
        assert self._work.own_fd is not None  # nothing goes before the work dir is taken
        by_name = {entry.name: Going.of(entry) for entry in going}
        self._taken, self._was_read = Taken(now_ns, self._room_bytes, by_name), True
        write_taken(self._taken, self._work.own_fd)

    def forget(self) -> None:
        """What went has shown, or nothing did, or there is room."""
        if self._taken is not None and self._work.own_fd is not None:
            self._taken = None
            forget_taken(self._work.own_fd)

    def _read(self, own_fd: int | None) -> Taken | None:
        if not self._was_read and own_fd is not None:
            self._was_read = True
            self._taken = read_taken(own_fd)
        return self._taken

    def _too_much(self, floor_bytes: int, disk: Disk) -> str:
        return (
            f"{self._work.path}: --min-free {human_bytes(floor_bytes)} can never be met, for the whole file system has "
            f"{human_bytes(disk.size_bytes)}: nothing goes for it. Give less"
        )

    def _doubt(self, gone_bytes: int) -> str:
        return (
            f"{self._work.path}: {human_bytes(gone_bytes)} were deleted for --min-free, and have not come free "
            "(a snapshot may hold them, or others write as much); nothing more goes for it until there is room again, "
            f"or {self._work.own_path}/{NAME} is removed"
        )
