"""Carry out what a plan prunes: into the trash, into the journal, and after its time to the remover.

Decides nothing: which checkpoints go, and that they may, is settled before it is called.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ..core.budget import Budget, over_in_trash
from ..core.checkpoint import Checkpoint
from ..core.entry import Entry
from ..core.memory import BROUGHT_BACK, Memory, Seen
from ..core.permit import trash_ttl_s
from ..core.plan import Decision
from ..core.reason import Reason
from ..core.survey import Survey
from ..disk.descriptors import NO_ROOM, SyncError, exists
from ..disk.filesystem import free_bytes
from ..errors import RefusedError, why
from ..inspect.scan import SIDECAR_ENDING, entry_of
from ..text.human import human_bytes
from ..text.voice import Voice
from ..workdir import journal, trash
from ..workdir.workdir import WorkDir
from .back_off import back_off_s
from .background import Background
from .last_look import Holders, is_still, reasons_to_stay
from .remover import Remover

_UNNAMED_TTL_MS = 3_600_000
_LONGEST_S = 3600.0  # between two tries to free something
_GAVE_BACK = "gave back"


class Pruner:
    """Deletes from one work dir, and knows what waits in its trash and until when.

    trash_ttl_s: how long, or None: at once, an hour for a large prune. stopping: asked before each rename. named_now:
    tells what is pinned, or named by a pointer or a link, by now, and why.
    """

    def __init__(
        self,
        work: WorkDir,
        trash_ttl_s: float | None,
        background: Background,
        clock: Callable[[], int],
        voice: Voice,
        stopping: Callable[[], bool],
        named_now: Callable[[], Mapping[str, Sequence[Reason]]],
    ) -> None:
        self._stopping = stopping
        self._named_now = named_now
        self._work, self._trash_ttl_s, self._clock, self._voice = work, trash_ttl_s, clock, voice
        self._remover = Remover(background, voice)
        self._tries: dict[str, int] = {}
        self._unwritten: list[dict[str, Any]] = []  # journal lines that found no room
        self._expires_ms: dict[str, int] = {}
        self._bytes: dict[str, int] = {}  # what each of these takes on the disk
        self._unsynced = False
        self._looked_at: set[str] = set()  # what came into the trash in this pass, and nobody named then
        self._maybe_undone = False  # whether a power cut could undo renames of what is in the trash

    def adopt(self, memory: Memory | None) -> None:
        """Finish what a crash left in the trash, and go on waiting for what is to be kept there.

        `memory`: as the last pass has left it; it tells the name of what was renamed just before a crash.
        """
        unnamed = 0
        journal.check(self._own_fd)  # before anything goes that could not be written down
        with trash.opened_trash(self._own_fd) as trash_fd:
            left = trash.items(trash_fd)
            self._bytes = trash.bytes_in(trash_fd)
            self._maybe_undone = bool(left)  # a kill can have come between their renames and the fsync
            lines = self._lines() if left else {}
            seen = {(s.size_bytes, s.mtime_ns): s for s in memory.seen.values()} if memory and left else {}
            for item in left:
                line = lines.get(item.name)
                if line is None and not item.claimed:
                    line = self._name_again(item, seen, trash_fd)
                    unnamed += line is None
                if line is not None and not exists(line["name"], dir_fd=self._work.fd):
                    with self._leaving_scores(line["name"]):
                        trash.put_left_beside(
                            line["name"], item.name, inode=line.get("scores"), work_fd=self._work.fd, trash_fd=trash_fd
                        )
                until_ms = line.get("until_ms") if line else item.at_ms + _UNNAMED_TTL_MS
                if self._trash_ttl_s is not None:
                    until_ms = item.at_ms + int(self._trash_ttl_s * 1000)
                # A claimed one was being removed: it may be half gone already.
                self._expires_ms[item.name] = item.at_ms if item.claimed else until_ms or item.at_ms
        if unnamed:
            found = f"found {unnamed} in {self._work.own_path}/trash"
            self._voice.once("unnamed", f"{found} of which nothing is written down; kept for an hour")

    def prune(self, survey: Survey, prunes: Sequence[Decision]) -> tuple[list[Decision], dict[str, str]]:
        """Rename into the trash, oldest first, and make that durable. One failure is not the end.

        Returns what is gone, and for what is not the reason that the system gave.
        """
        pruned: list[Decision] = []
        failed: dict[str, str] = {}
        left: dict[str, str] = {}
        self._looked_at.clear()
        if not prunes:
            self._voice.all_of("left", left)
            return pruned, failed
        now_ms = self._clock() // 1_000_000
        ttl_s = trash_ttl_s(survey.plan, prunes, asked_s=self._trash_ttl_s, free_bytes=free_bytes(self._work.fd))
        until_ms = now_ms + int(ttl_s * 1000)
        stays = reasons_to_stay(survey, prunes, self._named_now(), work_fd=self._work.fd)
        holders = Holders()
        binned: list[tuple[Decision, str]] = []
        with trash.opened_trash(self._own_fd) as trash_fd:
            for decision in prunes:
                if self._stopping():
                    break  # what is left is owed, and goes after the next start
                name = decision.checkpoint.name
                try:
                    if name in stays:
                        raise trash.ChangedError(stays[name])
                    scores = trash.scores_of(name, dir_fd=self._work.fd)
                    item = trash.put(
                        survey.entries[name], work_fd=self._work.fd, trash_fd=trash_fd, now_ms=now_ms,
                        first=len(binned), who=holders.of,
                    )  # fmt: skip
                except FileNotFoundError:
                    pruned.append(decision)  # somebody else was faster
                except trash.ChangedError as error:
                    left[name] = f"left {name} alone: {error}"
                except OSError as error:
                    failed[name] = why(error)
                    self._refused(name, why(error))
                else:
                    self._voice.forget("pruning", of=name)
                    with self._leaving_scores(name):
                        trash.put_beside(name, item, scores=scores, work_fd=self._work.fd, trash_fd=trash_fd)
                    binned.append((decision, item))
                    self._write_down(
                        _line(decision.checkpoint, decision.order, "; ".join(decision.reasons), item, until_ms, scores)
                    )
            self._voice.all_of("left", left)
            if not binned:
                return pruned, failed
            try:
                binned = self._still_unwanted(survey, binned, trash_fd)
                trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
            except OSError as error:
                # A rename that a power cut may undo, or somebody may want what could not be seen: what was moved stays
                # whole in the trash, until the next start or for an hour.
                failed |= {decision.checkpoint.name: why(error) for decision, _ in binned}
                if isinstance(error, SyncError):
                    what = "fsync of"
                else:
                    what, self._maybe_undone = "a look into", True
                    self._expires_ms |= {item: now_ms + _UNNAMED_TTL_MS for _, item in binned}
                self._voice.error(
                    "%s %s failed (%s): nothing is freed; check the disk", what, self._work.path, why(error)
                )
                return pruned + [decision for decision, _ in binned], failed
        for decision, _ in binned:
            pruned.append(decision)
            self._say_pruned(decision)
        self._expires_ms |= {item: until_ms for _, item in binned}
        self._looked_at.update(item for _, item in binned)
        self._bytes |= {item: decision.checkpoint.allocated_bytes for decision, item in binned}
        self._make_journal_durable()  # before the state forgets their names
        if binned and until_ms > now_ms:
            self._say_kept(binned, (until_ms - now_ms) / 60_000)
        return pruned, failed

    def settle(self, budget: Budget | None = None, *, alone: bool = False) -> list[Seen]:
        """Hand to the remover what has been in the trash long enough, once the journal tells where it came from.

        With a budget the trash goes first, the oldest before the others, until all that is left fits. What somebody is
        at by now, or names, is not freed, but goes back under its name; returns what is to be remembered of that, as
        owed. alone: whether the work dir holds no complete checkpoint any more; then nothing is freed.
        """
        now_ms = self._clock() // 1_000_000
        while self._remover.failed:
            self._retry(self._remover.failed.popleft()[0], now_ms)
        due = [item for item, until_ms in self._expires_ms.items() if until_ms <= now_ms]
        if budget is not None:
            due += self._over(budget, set(due))
        if self._unwritten:
            self._write_down()
        self._make_journal_durable()
        if not (due and self._are_renames_durable(due, now_ms)):
            return []
        if alone:
            self._keep_all(due, now_ms)
            return []
        self._voice.forget("alone")
        due, back = self._without_held(due, now_ms)
        for item in due:
            self._forget(item)
        if due:
            self._remover.submit(self._work.path, self._own_fd, due)
        return back

    @property
    def unfreed(self) -> dict[str, str]:
        """What is in the trash and could not be freed, with the system's reason."""
        return {f".ckptd/trash/{item}": str(error) for item, error in self._remover.failed}

    @property
    def is_busy(self) -> bool:
        """Whether something is to be tried again, or is still being freed."""
        again = self._tries.keys() & self._expires_ms.keys()
        return bool(again or self._unwritten or self._unsynced or self._remover.is_busy)

    def expires_in_s(self) -> list[float]:
        """Seconds until the first thing in the trash is to be freed; none if nothing waits there."""
        return [max(0.0, min(self._expires_ms.values()) / 1000 - self._clock() / 1e9)] if self._expires_ms else []

    @property
    def _own_fd(self) -> int:
        assert self._work.own_fd is not None  # nobody prunes before the work dir is taken
        return self._work.own_fd

    def _over(self, budget: Budget, due: set[str]) -> list[str]:
        """What the trash holds beyond the budget, and is not due anyway."""
        staying = [item for item in sorted(self._expires_ms, key=trash.age) if item not in due]
        return over_in_trash(budget, [(item, self._bytes.get(item, 0)) for item in staying])

    def _write_down(self, *lines: dict[str, Any]) -> None:
        """Add lines to the journal; on a full disk they wait, and the deletion goes on (docs/design.md, section 7)."""
        self._unwritten += lines
        try:
            journal.append(self._unwritten, self._own_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._voice.once("journal", f"could not write the journal: {why(error)}; will try again")
        else:
            self._voice.forget("journal")
            self._unwritten.clear()
            self._unsynced = True

    def _make_journal_durable(self) -> None:
        if not self._unsynced:
            return
        try:
            journal.sync(self._own_fd)
            self._unsynced = False
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise

    def _are_renames_durable(self, due: list[str], now_ms: int) -> bool:
        """Whether what is `due` cannot come back under its name while it is being freed; where fsync fails, later."""
        if self._maybe_undone:
            try:
                with trash.opened_trash(self._own_fd) as trash_fd:
                    trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
            except SyncError as error:
                self._refused(".ckptd/trash", why(error))
                for item in due:
                    self._retry(item, now_ms)
                return False
            self._maybe_undone = False
            self._voice.forget("pruning", of=".ckptd/trash")
        return True

    # --- giving back ------------------------------------------------------------------------------------------------

    def _still_unwanted(
        self, survey: Survey, binned: list[tuple[Decision, str]], trash_fd: int
    ) -> list[tuple[Decision, str]]:
        """What of `binned` nobody has named, opened or written to since the last look, and may go by what it was judged
        by; the others go back. Raises OSError if that cannot be told, or one cannot go back."""
        holders = Holders()
        decisions = [decision for decision, _ in binned]
        stays = reasons_to_stay(survey, decisions, self._named_now(), work_fd=self._work.fd)
        unwanted, lines = [], []
        try:
            for decision, item in binned:
                name = decision.checkpoint.name
                reason = stays.get(name, "")
                with contextlib.suppress(OSError, RefusedError):  # then it is asked again before it is freed
                    reason = reason or holders.of(item, dir_fd=trash_fd)
                    if not (reason or is_still(survey.entries[name], item, dir_fd=trash_fd)):
                        reason = "written to while it was renamed"
                if reason:
                    lines.append(self._give_back(item, name, reason, trash_fd))
                else:
                    unwanted.append((decision, item))
        finally:
            self._write_down(*lines)
        return unwanted

    def _without_held(self, due: list[str], now_ms: int) -> tuple[list[str], list[Seen]]:
        """What of `due` may be freed, and what went back because somebody is at it, or names it."""
        free: list[str] = []
        back: list[Seen] = []
        lines: list[dict[str, Any]] = []
        holders, known = Holders(), functools.cache(self._lines)
        named = self._named_in_trash(due, known)
        with trash.opened_trash(self._own_fd) as trash_fd:
            for item in due:
                try:
                    reason = named.get(item) or _holder_of(item, holders, trash_fd)
                    if reason:
                        pruned, entry = known().get(item, {}), entry_of(item, dir_fd=trash_fd)
                        lines.append(self._give_back(item, pruned.get("name"), reason, trash_fd))
                        back += _seen_again(pruned, entry) if lines[-1]["did"] == _GAVE_BACK else ()
                        self._forget(item)
                    else:
                        free.append(item)
                except FileNotFoundError:
                    self._forget(item)  # restored, or freed by hand
                except (OSError, RefusedError) as error:
                    self._refused(f".ckptd/trash/{item}", why(error) if isinstance(error, OSError) else str(error))
                    self._retry(item, now_ms)
            if lines:
                with contextlib.suppress(SyncError):  # a power cut may have it pruned all the same, as it was to be
                    trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
        self._write_down(*lines)
        self._make_journal_durable()
        return free, back

    def _named_in_trash(self, due: list[str], lines: Callable[[], dict[str, dict[str, Any]]]) -> dict[str, str]:
        """What of `due` was pinned or named since it came into the trash, with the reason; only the last of a name, and
        where nothing bears that by now."""
        if self._looked_at.issuperset(due):
            return {}
        named = {name: why[0] for name, why in self._named_now().items() if not exists(name, dir_fd=self._work.fd)}
        if not named:
            return {}
        names = {lines()[item]["name"]: item for item in sorted(due, key=trash.age) if item in lines()}
        return {item: named[name] for name, item in names.items() if name in named}

    def _keep_all(self, due: list[str], now_ms: int) -> None:
        """Free nothing of `due` for now: it is all that there is."""
        self._expires_ms |= dict.fromkeys(due, now_ms + _UNNAMED_TTL_MS)
        at, trash_at = self._work.path, f"{self._work.own_path}/trash"
        self._voice.once(
            "alone",
            f"no complete checkpoint is left in {at}, so its trash is not freed: `ckptd restore --all {at}` brings "
            f"back what is there, `rm -r {trash_at}/*` frees it",
        )

    def _give_back(self, item: str, name: str | None, reason: str, trash_fd: int) -> dict[str, Any]:
        """Let a checkpoint have its name again, if that is free; returns the line for the journal. Raises OSError if it
        is where it was."""
        kept = trash.give_back(item, name, work_fd=self._work.fd, trash_fd=trash_fd)
        at, called = _iso(self._clock() // 1_000_000), name or item
        if kept is None:
            self._voice.warning("gave %s back: %s", called, reason)
            return {"at": at, "did": _GAVE_BACK, "name": called, "reason": reason, "trash": item}
        self._voice.warning(
            "%s is %s, and its name is %s: kept as %s/trash/%s, which nothing frees",
            called, reason, "taken" if name else "not known", self._work.own_path, kept,
        )  # fmt: skip
        return {"at": at, "did": "kept in the trash", "name": called, "reason": reason, "trash": kept}

    def _forget(self, item: str) -> None:
        self._expires_ms.pop(item, None)
        self._bytes.pop(item, None)
        self._voice.forget("pruning", of=f".ckptd/trash/{item}")

    def _lines(self) -> dict[str, dict[str, Any]]:
        return {str(line.get("trash")): line for line in journal.read(self._own_fd) if line.get("did") == "pruned"}

    def _name_again(self, item: trash.Item, known: dict[tuple[int, int], Seen], trash_fd: int) -> dict[str, Any] | None:
        """The line for what a crash left unwritten: what was seen, by size and time, and is gone."""
        try:
            entry = entry_of(item.name, dir_fd=trash_fd)
        except OSError:
            return None
        bytes_of_identity = entry.size_bytes if entry.marker_bytes is None else entry.marker_bytes
        seen = known.get((bytes_of_identity, entry.mtime_ns))
        if seen is None or exists(seen.name, dir_fd=self._work.fd):
            return None
        line = _line(seen, seen.order, "pruned just before a crash", item.name, item.at_ms)
        self._write_down(line)
        self._voice.info("found %s, pruned just before a crash", seen.name)
        return line

    @contextlib.contextmanager
    def _leaving_scores(self, name: str) -> Iterator[None]:
        """The scores of what went go too; where the system refuses that, they are but a small file that stays."""
        try:
            yield
        except OSError as error:
            self._voice.warning("left %s%s alone: %s", name, SIDECAR_ENDING, why(error))

    def _say_pruned(self, decision: Decision) -> None:
        c = decision.checkpoint
        self._voice.info("pruned %s size_bytes=%d reason=%r", c.name, c.size_bytes, decision.reasons[0])

    def _say_kept(self, binned: list[tuple[Decision, str]], minutes: float) -> None:
        self._voice.info(
            "kept %d pruned (%s) in the trash for %.0f min: `ckptd restore --all %s` brings them back, "
            "`rm -r %s/trash/*` frees the space at once",
            len(binned),
            human_bytes(sum(d.checkpoint.allocated_bytes for d, _ in binned)),
            minutes,
            self._work.path,
            self._work.own_path,
        )

    def _retry(self, item: str, now_ms: int) -> None:
        """Try again to free it, each time after twice as long."""
        self._tries[item] = self._tries.get(item, 0) + 1
        self._expires_ms[item] = now_ms + int(1000 * back_off_s(self._tries[item], longest_s=_LONGEST_S))

    def _refused(self, name: str, reason: str) -> None:
        text = f"could not prune {self._work.path}/{name}: {reason}; will try again"
        self._voice.once("pruning", text, of=name)


def _holder_of(item: str, holders: Holders, trash_fd: int) -> str:
    """Who is at an item of the trash. One that was claimed was asked about before that, and may be half gone."""
    try:
        return "" if trash.is_claimed(item) else holders.of(item, dir_fd=trash_fd)
    except PermissionError:
        return ""  # closed since it came here, even to its owner


def _line(
    c: Checkpoint | Seen, order: int, reason: str, item: str, until_ms: int, scores: tuple[int, int] | None = None
) -> dict[str, Any]:
    at_ms, _ = trash.age(item)
    return {
        "at": _iso(at_ms),
        "did": "pruned",
        "name": c.name,
        "series": c.series,
        "step": c.step,
        "order": order,
        "size_bytes": c.size_bytes,
        "reason": reason,
        "trash": item,
        "until_ms": until_ms,
        **({"scores": scores[0]} if scores else {}),  # which file went with it
    }


def _seen_again(line: dict[str, Any], entry: Entry) -> list[Seen]:
    """What is remembered of a checkpoint that has its name again: no new save, and owed as it was. Nothing where a
    journal does not tell enough: then it counts as brought back."""
    if not {"series", "name", "step"} <= line.keys():
        return []
    order = line.get("order", BROUGHT_BACK)  # lines of older versions have none
    size_bytes = entry.size_bytes if entry.marker_bytes is None else entry.marker_bytes
    return [
        Seen(
            line["series"], line["name"], line["step"], size_bytes, entry.mtime_ns, entry.mtime_ns, order,
            owed=True, inode=entry.inode,
        )
    ]  # fmt: skip


def _iso(at_ms: int) -> str:
    return datetime.fromtimestamp(at_ms / 1000, UTC).isoformat(timespec="milliseconds")
