"""Writes the journal of one work dir, also on a full disk: there its lines wait, and the deletion goes on."""

from __future__ import annotations

from ..disk.descriptors import NO_ROOM
from ..errors import why
from ..text.voice import Voice
from ..workdir import journal
from ..workdir.journal import Line
from ..workdir.workdir import WorkDir


class JournalWriter:
    """A deletion that waits for room in the journal would make none: docs/design.md, section 7."""

    def __init__(self, work: WorkDir, voice: Voice) -> None:
        self._work, self._voice = work, voice
        self._unwritten: list[Line] = []
        self._unsynced = False

    @property
    def is_behind(self) -> bool:
        """Whether something is still to be written, or to be made durable."""
        return bool(self._unwritten or self._unsynced)

    def write(self, *lines: Line) -> None:
        """Add lines, and those before them that have found no room."""
        self._unwritten += lines
        if not self._unwritten:
            return
        try:
            journal.append([line.as_json() for line in self._unwritten], self._work.taken_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._voice.once("journal", f"could not write the journal: {why(error)}; will try again")
        else:
            self._voice.forget("journal")
            self._unwritten.clear()
            self._unsynced = True

    def make_durable(self) -> None:
        """Flush what was written; what finds no room for that is flushed at the next call."""
        if not self._unsynced:
            return
        try:
            journal.sync(self._work.taken_fd)
            self._unsynced = False
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
