"""Carry out what a plan prunes: into the trash, into the journal, and after its time to the remover.

Decides nothing: which checkpoints go, and that they may, is settled before it is called.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence

from ..core.budget import Budget
from ..core.memory import Memory, Seen
from ..core.permit import trash_ttl_s
from ..core.plan import Decision
from ..core.reason import Reason
from ..core.survey import Survey
from ..disk.descriptors import SyncError, sync_dir
from ..disk.filesystem import free_bytes
from ..errors import CkptdError, why
from ..text.human import human_bytes
from ..text.voice import Voice
from ..workdir import groups, trash
from ..workdir.journal import Line
from ..workdir.workdir import WorkDir
from .background import Background
from .journal_writer import JournalWriter
from .last_look import Holders, reasons_to_stay
from .leftovers import UNNAMED_TTL_MS, adopt, leaving_scores
from .remover import Remover
from .returner import Binned, Returner
from .waiting import Waiting


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
        self._work, self._trash_ttl_s, self._clock, self._voice = work, trash_ttl_s, clock, voice
        self._stopping, self._named_now = stopping, named_now
        self._journal = JournalWriter(work, voice)
        self._waiting = Waiting()
        self._returner = Returner(work, self._journal, clock, voice, named_now)
        self._remover = Remover(background, voice)
        self._looked_at: set[str] = set()  # what came into the trash in this pass, and nobody named then
        self._maybe_undone = False  # whether a power cut could undo renames of what is in the trash
        self._maybe_half = False  # whether a group may be neither in the trash nor out of it

    @property
    def unfreed(self) -> dict[str, str]:
        """What is in the trash and could not be freed, with the system's reason."""
        return {f".ckptd/trash/{item}": str(error) for item, error in self._remover.failed}

    @property
    def is_busy(self) -> bool:
        """Whether something is to be tried again, or is still being freed."""
        return self._waiting.is_retrying or self._journal.is_behind or self._remover.is_busy or self._maybe_half

    def expires_in_s(self) -> list[float]:
        """Seconds until the first thing in the trash is to be freed; none if nothing waits there."""
        next_ms = self._waiting.next_ms()
        return [] if next_ms is None else [max(0.0, next_ms / 1000 - self._clock() / 1e9)]

    def adopt(self, memory: Memory | None) -> bool:
        """Finish what a crash left in the trash, and go on waiting for what is to be kept there.

        Returns whether something has its name again: what was planned without it is to be planned anew.
        """
        brought_back = self._bring_back_halves()
        self._maybe_undone = adopt(  # a kill can have come between their renames and the fsync
            self._work, self._waiting, self._journal, self._voice, memory=memory, ttl_s=self._trash_ttl_s
        )
        return brought_back

    def bring_back(self) -> None:
        """Try again to bring back what could not come back before: no plan is to be made without it."""
        if self._maybe_half:
            self._bring_back_halves()

    def prune(self, survey: Survey, prunes: Sequence[Decision]) -> tuple[list[Decision], dict[str, str]]:
        """Rename into the trash, oldest first, and make that durable. One failure is not the end.

        Returns what is gone, and for what is not the reason that the system gave.
        """
        self._looked_at.clear()
        if not prunes:
            self._voice.all_of("left", {})
            return [], {}
        now_ms = self._clock() // 1_000_000
        ttl_s = trash_ttl_s(survey.plan, prunes, asked_s=self._trash_ttl_s, free_bytes=free_bytes(self._work.fd))
        until_ms = now_ms + int(ttl_s * 1000)
        with trash.opened_trash(self._work.taken_fd) as trash_fd, self._marking_halves():
            pruned, failed, binned = self._rename(survey, prunes, now_ms, until_ms, trash_fd)
            if not binned:
                return pruned, failed
            try:
                binned = self._returner.still_unwanted(survey, binned, trash_fd)
                self._make_durable(binned, trash_fd)
            except OSError as error:
                failed |= {decision.checkpoint.name: why(error) for decision, _ in binned}
                binned = self._keep_what_is_unsure(binned, error, now_ms, trash_fd)
                return pruned + [decision for decision, _ in binned], failed
        self._journal.write(*(_line(d, item, until_ms) for d, item in binned if groups.is_group(item)))
        for decision, item in binned:
            c = decision.checkpoint
            self._voice.info("pruned %s size_bytes=%d reason=%r", c.name, c.size_bytes, decision.reasons[0])
            self._waiting.put(item, until_ms, c.allocated_bytes)
            self._looked_at.add(item)
        self._journal.make_durable()  # before the state forgets their names
        if binned and until_ms > now_ms:
            self._say_kept(binned, (until_ms - now_ms) / 60_000)
        return pruned + [decision for decision, _ in binned], failed

    def settle(self, budget: Budget | None = None, *, alone: bool = False) -> list[Seen]:
        """Hand to the remover what has been in the trash long enough, once the journal tells where it came from.

        With a budget the trash goes first, the oldest before the others, until all that is left fits. What somebody is
        at by now, or names, is not freed, but goes back under its name; returns what is to be remembered of that, as
        owed. alone: whether the work dir holds no complete checkpoint any more; then nothing is freed.
        """
        now_ms = self._clock() // 1_000_000
        while self._remover.failed:
            self._waiting.try_again(self._remover.failed.popleft()[0], now_ms)
        due = self._waiting.due(now_ms, budget)
        self._journal.write()
        self._journal.make_durable()
        if not (due and self._are_renames_durable(due, now_ms)):
            return []
        if alone:
            self._keep_all(due, now_ms)
            return []
        self._voice.forget("alone")
        answer = self._returner.may_go(due, named=not self._looked_at.issuperset(due))
        for item in due:
            if item in answer.refused:
                self._say_refused(f".ckptd/trash/{item}", answer.refused[item])
                self._waiting.try_again(item, now_ms)
            else:
                self._voice.forget("pruning", of=f".ckptd/trash/{item}")
                self._waiting.forget(item)
        if answer.free:
            self._remover.submit(self._work.path, self._work.taken_fd, answer.free)
        return answer.back

    def _rename(
        self, survey: Survey, prunes: Sequence[Decision], now_ms: int, until_ms: int, trash_fd: int
    ) -> tuple[list[Decision], dict[str, str], list[Binned]]:
        """Rename each, with a line in the journal. Returns what was gone already, why others are still there, and what
        is in the trash now."""
        gone: list[Decision] = []
        left: dict[str, str] = {}
        failed: dict[str, str] = {}
        binned: list[Binned] = []
        stays = reasons_to_stay(survey, prunes, self._named_now(), work_fd=self._work.fd)
        holders = Holders()
        for decision in prunes:
            if self._stopping():
                break  # what is left is owed, and goes after the next start
            c = decision.checkpoint
            try:
                if c.name in stays:
                    raise trash.ChangedError(stays[c.name])
                put = self._put_group if c.entry.parts else self._put
                item, lines = put(decision, holders, trash_fd, now_ms, until_ms, len(binned))
            except FileNotFoundError:
                gone.append(decision)  # somebody else was faster
            except trash.ChangedError as error:
                left[c.name] = f"left {c.name} alone: {error}"
            except OSError as error:
                failed[c.name] = why(error)
                self._say_refused(c.name, why(error))
            else:
                self._voice.forget("pruning", of=c.name)
                binned.append((decision, item))
                self._journal.write(*lines)
        self._voice.all_of("left", left)
        return gone, failed, binned

    def _put(
        self, decision: Decision, holders: Holders, trash_fd: int, now_ms: int, until_ms: int, first: int
    ) -> tuple[str, list[Line]]:
        """Rename a file or a directory; returns what it is called in the trash, and the lines for the journal."""
        entry, dirs = decision.checkpoint.entry, {"work_fd": self._work.fd, "trash_fd": trash_fd}
        scores = trash.scores_of(entry.name, dir_fd=self._work.fd)
        item = trash.put(entry, now_ms=now_ms, first=first, who=holders.of, **dirs)
        with leaving_scores(entry.name, self._voice):
            trash.put_beside(entry.name, item, scores=scores, **dirs)
        return item, [_line(decision, item, until_ms, scores[0] if scores else None)]

    def _put_group(
        self, decision: Decision, holders: Holders, trash_fd: int, now_ms: int, until_ms: int, first: int
    ) -> tuple[str, list[Line]]:
        """As `_put`, of several files all or none. Until they are in the trash for sure the journal has none of it."""
        item = groups.new_item(trash_fd=trash_fd, now_ms=now_ms, first=first)
        line = _line(decision, item, until_ms)
        try:
            groups.put(decision.checkpoint.entry, line, work_fd=self._work.fd, trash_fd=trash_fd, who=holders.of)
        except (OSError, CkptdError, trash.ChangedError) as error:
            self._maybe_half |= not self._returner.undo([item], trash_fd, str(error))
            raise
        return item, []

    def _make_durable(self, binned: Sequence[Binned], trash_fd: int) -> None:
        """Make the renames so; then the groups, which are all in, become what may be freed. Raises OSError."""
        together = [item for _, item in binned if groups.is_group(item)]
        for item in together:
            groups.sync(item, trash_fd=trash_fd)
        trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
        for item in together:
            groups.commit(item, trash_fd=trash_fd)
        if together:
            sync_dir(trash_fd)

    @contextlib.contextmanager
    def _marking_halves(self) -> Iterator[None]:
        """Whatever ends a pass before its time may leave a group half in the trash."""
        try:
            yield
        except BaseException:
            self._maybe_half = True
            raise

    def _bring_back_halves(self) -> bool:
        """Bring back each group that is half in the trash; whether there was any."""
        with trash.opened_trash(self._work.taken_fd) as trash_fd:
            left = groups.half_done(trash_fd)
            self._maybe_half = not self._returner.undo(left, trash_fd, "left half in the trash by a crash")
        return bool(left)

    def _keep_what_is_unsure(self, binned: list[Binned], error: OSError, now_ms: int, trash_fd: int) -> list[Binned]:
        """A rename that a power cut may undo, or somebody may want what could not be seen: what was moved stays whole
        in the trash, until the next start or for an hour; a group comes back. Returns what stays."""
        what = "fsync of"
        together = [item for _, item in binned if groups.is_group(item)]
        self._maybe_half |= not self._returner.undo(together, trash_fd, why(error))
        binned = [each for each in binned if each[1] not in together]
        if not isinstance(error, SyncError):
            what, self._maybe_undone = "a look into", True
            for _, item in binned:
                self._waiting.put(item, now_ms + UNNAMED_TTL_MS)
        self._voice.error("%s %s failed (%s): nothing is freed; check the disk", what, self._work.path, why(error))
        return binned

    def _are_renames_durable(self, due: Sequence[str], now_ms: int) -> bool:
        """Whether what is `due` cannot come back under its name while it is being freed; where fsync fails, later."""
        if self._maybe_undone:
            try:
                with trash.opened_trash(self._work.taken_fd) as trash_fd:
                    trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
            except SyncError as error:
                self._say_refused(".ckptd/trash", why(error))
                for item in due:
                    self._waiting.try_again(item, now_ms)
                return False
            self._maybe_undone = False
            self._voice.forget("pruning", of=".ckptd/trash")
        return True

    def _keep_all(self, due: Sequence[str], now_ms: int) -> None:
        """Free nothing of `due` for now: it is all that there is."""
        self._waiting.put_off(due, now_ms + UNNAMED_TTL_MS)
        at, trash_at = self._work.path, f"{self._work.own_path}/trash"
        self._voice.once(
            "alone",
            f"no complete checkpoint is left in {at}, so its trash is not freed: `ckptd restore --all {at}` brings "
            f"back what is there, `rm -r {trash_at}/*` frees it",
        )

    def _say_kept(self, binned: Sequence[Binned], minutes: float) -> None:
        taken = human_bytes(sum(decision.checkpoint.allocated_bytes for decision, _ in binned))
        self._voice.info(
            "kept %d pruned (%s) in the trash for %.0f min: `ckptd restore --all %s` brings them back, "
            "`rm -r %s/trash/*` frees the space at once",
            len(binned), taken, minutes, self._work.path, self._work.own_path,
        )  # fmt: skip

    def _say_refused(self, name: str, reason: str) -> None:
        text = f"could not prune {self._work.path}/{name}: {reason}; will try again"
        self._voice.once("pruning", text, of=name)


def _line(decision: Decision, item: str, until_ms: int, scores: int | None = None) -> Line:
    c = decision.checkpoint
    parts = tuple(part.name for part in c.entry.parts) or None
    return Line.of_pruned(c, decision.order, "; ".join(decision.reasons), item, until_ms, scores, parts)
