"""What a crash, or an earlier process, has left in the trash: finished, or waited for as it would have been."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from ..core.memory import Memory, Seen
from ..disk.descriptors import exists
from ..errors import RefusedError, why
from ..inspect.scan import SIDECAR_ENDING, entry_of
from ..text.voice import Voice
from ..workdir import groups, journal, trash
from ..workdir.journal import Line
from ..workdir.workdir import WorkDir
from .journal_writer import JournalWriter
from .waiting import Waiting

UNNAMED_TTL_MS = 3_600_000


def adopt(
    work: WorkDir, waiting: Waiting, journal_writer: JournalWriter, voice: Voice, *, memory: Memory | None,
    ttl_s: float | None,
) -> bool:  # fmt: skip
    """Have `waiting` know all that is in the trash of a work dir that was just taken; returns whether that is anything.

    memory: as the last pass has left it; it tells the name of what was renamed just before a crash. ttl_s: how long all
    is to be kept there, None: as was said when it went.
    """
    journal.check(work.taken_fd)  # before anything goes that could not be written down
    unnamed = 0
    with trash.opened_trash(work.taken_fd) as trash_fd:
        left = trash.items(trash_fd)
        allocated = trash.bytes_in(trash_fd)
        lines = journal.pruned(work.taken_fd) if left else {}
        seen = {s.identity[1:3]: s for s in memory.seen.values()} if memory and left else {}
        for item in left:
            line = lines.get(item.name)
            if line is None and not item.claimed:
                line = _named_again(item, seen, work.fd, trash_fd)
                if line is None:
                    unnamed += 1
                else:
                    journal_writer.write(line)
                    voice.info("found %s, pruned just before a crash", line.name)
            if line is not None and not groups.is_group(item.name) and not exists(line.name, dir_fd=work.fd):
                with leaving_scores(line.name, voice):
                    trash.put_left_beside(line.name, item.name, inode=line.scores, work_fd=work.fd, trash_fd=trash_fd)
            waiting.put(item.name, _until_ms(item, line, ttl_s), allocated.get(item.name, 0))
    found = f"found {unnamed} in {work.own_path}/trash of which nothing is written down; kept for an hour"
    voice.all_of("unnamed", {"": found} if unnamed else {})
    return bool(left)


def _named_again(item: trash.Item, known: dict[tuple[int, int], Seen], work_fd: int, trash_fd: int) -> Line | None:
    """The line for what a crash left unwritten: what was seen, by size and time, and is gone."""
    try:
        if groups.is_group(item.name):
            record = groups.record_of(item.name, trash_fd=trash_fd)
            return record.line if record else None
        entry = entry_of(item.name, dir_fd=trash_fd)
    except (OSError, RefusedError):
        return None
    seen = known.get(entry.identity[1:3])
    if seen is None or exists(seen.name, dir_fd=work_fd):
        return None
    return Line.of_pruned(seen, seen.order, "pruned just before a crash", item.name, item.at_ms)


@contextlib.contextmanager
def leaving_scores(name: str, voice: Voice) -> Iterator[None]:
    """The scores of what went go too; where the system refuses that, they are but a small file that stays."""
    try:
        yield
    except OSError as error:
        voice.warning("left %s%s alone: %s", name, SIDECAR_ENDING, why(error))


def _until_ms(item: trash.Item, line: Line | None, ttl_s: float | None) -> int:
    if item.claimed:
        return item.at_ms  # it was being removed: it may be half gone already
    if ttl_s is not None:
        return item.at_ms + int(ttl_s * 1000)
    return item.at_ms + UNNAMED_TTL_MS if line is None else line.until_ms or item.at_ms
