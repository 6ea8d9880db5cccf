"""Gives back from the trash what somebody wants: it has its name again, or stays there for good where that is taken.

Asked just after a checkpoint was renamed, and again before it is freed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.entry import Entry
from ..core.memory import BROUGHT_BACK, Seen
from ..core.plan import Decision
from ..core.reason import Reason
from ..core.survey import Survey
from ..disk.descriptors import SyncError, exists
from ..errors import RefusedError, why
from ..inspect.scan import entry_of
from ..text.voice import Voice
from ..workdir import journal, trash
from ..workdir.journal import Line
from ..workdir.workdir import WorkDir
from .journal_writer import JournalWriter
from .last_look import Holders, is_still, reasons_to_stay

_GAVE_BACK = "gave back"

Binned = tuple[Decision, str]  # what was renamed, and its name in the trash


@dataclass
class Answer:
    """Of what was to be freed: what may be, what is to be remembered of what went back, and what could not be told."""

    free: list[str] = field(default_factory=list)
    back: list[Seen] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)


class Returner:
    """named_now: tells what is pinned, or named by a pointer or a link, by now, and why."""

    def __init__(
        self,
        work: WorkDir,
        journal_writer: JournalWriter,
        clock: Callable[[], int],
        voice: Voice,
        named_now: Callable[[], Mapping[str, Sequence[Reason]]],
    ) -> None:
        self._work, self._journal, self._clock, self._voice = work, journal_writer, clock, voice
        self._named_now = named_now

    def still_unwanted(self, survey: Survey, binned: Iterable[Binned], trash_fd: int) -> list[Binned]:
        """What of `binned` nobody has named, opened or written to since the last look, and may go by what it was judged
        by; the others go back. Raises OSError if that cannot be told, or one cannot go back."""
        holders = Holders()
        stays = reasons_to_stay(survey, [decision for decision, _ in binned], self._named_now(), work_fd=self._work.fd)
        unwanted, lines = [], []
        try:
            for decision, item in binned:
                name = decision.checkpoint.name
                reason = stays.get(name, "")
                with contextlib.suppress(OSError, RefusedError):  # then it is asked again before it is freed
                    reason = reason or holders.of(item, dir_fd=trash_fd)
                    if not (reason or is_still(decision.checkpoint.entry, item, dir_fd=trash_fd)):
                        reason = "written to while it was renamed"
                if reason:
                    lines.append(self._give_back(item, name, reason, trash_fd))
                else:
                    unwanted.append((decision, item))
        finally:
            self._journal.write(*lines)
        return unwanted

    def may_go(self, due: Sequence[str], *, named: bool) -> Answer:
        """What of `due` nobody is at by now; what somebody is at goes back. named: whether it is to be asked also who
        names it, as that was not done in this pass."""
        answer, lines = Answer(), list[Line]()
        holders, known = Holders(), functools.cache(lambda: journal.pruned(self._work.taken_fd))
        wanted = self._named_in_trash(due, known) if named else {}
        with trash.opened_trash(self._work.taken_fd) as trash_fd:
            for item in due:
                try:
                    reason = wanted.get(item) or _holder_of(item, holders, trash_fd)
                    if not reason:
                        answer.free.append(item)
                        continue
                    pruned, entry = known().get(item), entry_of(item, dir_fd=trash_fd)
                    lines.append(self._give_back(item, pruned.name if pruned else None, reason, trash_fd))
                    if pruned and lines[-1].did == _GAVE_BACK:
                        answer.back += _seen_again(pruned, entry)
                except FileNotFoundError:
                    pass  # restored, or freed by hand
                except (OSError, RefusedError) as error:
                    answer.refused[item] = why(error)
            if lines:
                with contextlib.suppress(SyncError):  # a power cut may have it pruned all the same, as it was to be
                    trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
        self._journal.write(*lines)
        self._journal.make_durable()
        return answer

    def _named_in_trash(self, due: Sequence[str], lines: Callable[[], dict[str, Line]]) -> dict[str, str]:
        """What of `due` was pinned or named since it came into the trash, with the reason; only the last of a name, and
        where nothing bears that by now."""
        named = {name: each[0] for name, each in self._named_now().items() if not exists(name, dir_fd=self._work.fd)}
        if not named:
            return {}
        last = {lines()[item].name: item for item in sorted(due, key=trash.age) if item in lines()}
        return {item: named[name] for name, item in last.items() if name in named}

    def _give_back(self, item: str, name: str | None, reason: str, trash_fd: int) -> Line:
        """Returns the line for the journal. Raises OSError if the item is where it was."""
        kept = trash.give_back(item, name, work_fd=self._work.fd, trash_fd=trash_fd)
        at, called = journal.instant(self._clock() // 1_000_000), name or item
        if kept is None:
            self._voice.warning("gave %s back: %s", called, reason)
            return Line(at, _GAVE_BACK, called, reason=reason, trash=item)
        self._voice.warning(
            "%s is %s, and its name is %s: kept as %s/trash/%s, which nothing frees",
            called, reason, "taken" if name else "not known", self._work.own_path, kept,
        )  # fmt: skip
        return Line(at, "kept in the trash", called, reason=reason, trash=kept)


def _holder_of(item: str, holders: Holders, trash_fd: int) -> str:
    """Who is at an item of the trash. One that was claimed was asked about before that, and may be half gone."""
    try:
        return "" if trash.is_claimed(item) else holders.of(item, dir_fd=trash_fd)
    except PermissionError:
        return ""  # closed since it came here, even to its owner


def _seen_again(line: Line, entry: Entry) -> list[Seen]:
    """What is remembered of a checkpoint that has its name again: no new save, and owed as it was. Nothing where a
    journal does not tell enough: then it counts as brought back."""
    if line.series is None or line.step is None:
        return []
    order = BROUGHT_BACK if line.order is None else line.order  # lines of older versions have none
    _, size_bytes, mtime_ns, _ = entry.identity
    return [
        Seen(
            line.series, line.name, line.step, size_bytes, mtime_ns, mtime_ns, order,
            owed=True, inode=entry.inode,
        )
    ]  # fmt: skip
