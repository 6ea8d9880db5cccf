"""Gives back from the trash what somebody wants: it has its name again, or stays there for good where that is taken.

Asked just after a checkpoint was renamed, and again before it is freed.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from ..core.entry import Entry, entry_of_parts
from ..core.memory import BROUGHT_BACK, Seen
from ..core.plan import Decision
from ..core.reason import Reason
from ..core.survey import Survey
from ..disk.descriptors import SyncError, exists
from ..errors import RefusedError, why
from ..inspect.scan import entry_of
from ..text.voice import Voice
from ..workdir import groups, journal, trash
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
        unwanted, lines = [], list[Line]()
        try:
            for decision, item in binned:
                name = decision.checkpoint.name
                reason = stays.get(name, "")
                with contextlib.suppress(OSError, RefusedError):  # then it is asked again before it is freed
                    reason = reason or _why_wanted(decision.checkpoint.entry, item, holders, trash_fd)
                if reason:
                    lines += self._give_back(item, name, reason, trash_fd, told=not groups.is_group(item))
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
                    pruned, entry = known().get(item), _entry_of(item, trash_fd)
                    lines += self._give_back(item, pruned.name if pruned else None, reason, trash_fd)
                    if pruned and entry and lines[-1].did == _GAVE_BACK:
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
        known = [(item, lines()[item]) for item in sorted(due, key=trash.age) if item in lines()]
        last = {name: item for item, line in known for name in line.names}
        return {item: named[name] for name, item in last.items() if name in named}

    def undo(self, items: Iterable[str], trash_fd: int, reason: str) -> bool:
        """Bring back groups that are neither in the trash nor out of it; whether each could be. Says what becomes of
        them, where it is not told elsewhere."""
        lines, done = list[Line](), True
        for item in items:
            try:
                with groups.opened_parts(item, trash_fd=trash_fd) as (_, parts):
                    names = list(parts.values())
                kept = groups.bring_back(item, work_fd=self._work.fd, trash_fd=trash_fd)
            except FileNotFoundError:
                continue  # none of it ever came there
            except (OSError, RefusedError) as error:
                done = False
                text = f"could not bring {self._work.own_path}/trash/{item} back: {why(error)}; will try again"
                self._voice.once("half", text, of=item)
            else:
                self._voice.forget("half", of=item)
                if kept is not None:
                    lines.append(self._kept(kept, names[0] if names else None, reason))
                elif names:
                    self._voice.info("brought %s back: %s", " and ".join(names), reason)
        self._journal.write(*lines)
        return done

    def _give_back(self, item: str, name: str | None, reason: str, trash_fd: int, *, told: bool = True) -> list[Line]:
        """Returns the lines for the journal. told: whether that has one of how it went. Raises OSError if the item is
        where it was."""
        if groups.is_group(item):
            kept = groups.bring_back(item, work_fd=self._work.fd, trash_fd=trash_fd)
        else:
            kept = trash.give_back(item, name, work_fd=self._work.fd, trash_fd=trash_fd)
        if kept is not None:
            return [self._kept(kept, name, reason, of=item)]
        called = name or item
        self._voice.warning("gave %s back: %s", called, reason)
        at = journal.instant(self._clock() // 1_000_000)
        return [Line(at, _GAVE_BACK, called, reason=reason, trash=item)] if told else []

    def _kept(self, kept: str, name: str | None, reason: str, *, of: str = "") -> Line:
        """Say what stays in the trash for good; returns the line for the journal."""
        called = name or of or kept
        self._voice.warning(
            "%s cannot go back (%s), as its name is %s: kept as %s/trash/%s, which nothing frees",
            called, reason, "taken" if name else "not known", self._work.own_path, kept,
        )  # fmt: skip
        at = journal.instant(self._clock() // 1_000_000)
        return Line(at, "kept in the trash", called, reason=reason, trash=kept)


@contextlib.contextmanager
def _opened(item: str, trash_fd: int) -> Iterator[tuple[int, dict[str, str]]]:
    """Where the files of an item are, and how they are called there and outside; the latter only of several."""
    if groups.is_group(item):
        with groups.opened_parts(item, trash_fd=trash_fd) as opened:
            yield opened
    else:
        yield trash_fd, {item: ""}


def _why_wanted(entry: Entry, item: str, holders: Holders, trash_fd: int) -> str:
    """Who is at what was renamed to an item, or was meanwhile; "" if nobody. Raises OSError or RefusedError."""
    files = {file.name: file for file in entry.parts}
    with _opened(item, trash_fd) as (fd, names):
        for inside, name in names.items():
            reason = holders.of(inside, dir_fd=fd)
            if not (reason or is_still(files.get(name, entry), inside, dir_fd=fd)):
                reason = "written to while it was renamed"
            if reason:
                return _of_part(name, reason)
    return "taken out of the trash" if len(names) < len(files) else ""


def _of_part(name: str, reason: str) -> str:
    return f"{name}: {reason}" if name and reason else reason


def _entry_of(item: str, trash_fd: int) -> Entry | None:
    """What is remembered of an item if it goes back."""
    if not groups.is_group(item):
        return entry_of(item, dir_fd=trash_fd)
    parts = groups.entries_of(item, trash_fd=trash_fd)
    return entry_of_parts("", item, 0, parts) if parts else None


def _holder_of(item: str, holders: Holders, trash_fd: int) -> str:
    """Who is at an item of the trash. One that was claimed was asked about before that, and may be half gone."""
    if trash.is_claimed(item):
        return ""
    with _opened(item, trash_fd) as (fd, names):
        for inside, name in names.items():
            with contextlib.suppress(PermissionError):  # closed since it came here, even to its owner
                reason = holders.of(inside, dir_fd=fd)
                if reason:
                    return _of_part(name, reason)
    return ""


def _seen_again(line: Line, entry: Entry) -> list[Seen]:
    """What is remembered of a checkpoint that has its name again: no new save, and owed as it was. Nothing where a
    journal does not tell enough: then it counts as brought back."""
    if line.series is None or line.step is None:
        return []
    order = BROUGHT_BACK if line.order is None else line.order  # lines of older versions have none
    _, size_bytes, mtime_ns, parts = entry.identity
    return [
        Seen(
            line.series, line.name, line.step, size_bytes, mtime_ns, mtime_ns, order,
            owed=True, inode=entry.inode, parts=parts,
        )
    ]  # fmt: skip
