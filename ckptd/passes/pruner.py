"""Carry out what a plan prunes: into the trash, into the journal, and after its time to the remover.

Decides nothing: which checkpoints go, and that they may, is settled before it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ..core.budget import Budget
from ..core.memory import Memory, Seen
from ..core.permit import trash_ttl_s
from ..core.plan import Decision
from ..core.reason import Reason
from ..core.survey import Survey
from ..disk.descriptors import SyncError
from ..disk.filesystem import free_bytes
from ..errors import why
from ..text.human import human_bytes
from ..text.voice import Voice
from ..workdir import trash
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

    @property
    def unfreed(self) -> dict[str, str]:
        """What is in the trash and could not be freed, with the system's reason."""
        return {f".ckptd/trash/{item}": str(error) for item, error in self._remover.failed}

    @property
    def is_busy(self) -> bool:
        """Whether something is to be tried again, or is still being freed."""
        return self._waiting.is_retrying or self._journal.is_behind or self._remover.is_busy

    def expires_in_s(self) -> list[float]:
        """Seconds until the first thing in the trash is to be freed; none if nothing waits there."""
        next_ms = self._waiting.next_ms()
        return [] if next_ms is None else [max(0.0, next_ms / 1000 - self._clock() / 1e9)]

    def adopt(self, memory: Memory | None) -> None:
        """Finish what a crash left in the trash, and go on waiting for what is to be kept there."""
        self._maybe_undone = adopt(  # a kill can have come between their renames and the fsync
            self._work, self._waiting, self._journal, self._voice, memory=memory, ttl_s=self._trash_ttl_s
        )

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
        with trash.opened_trash(self._work.taken_fd) as trash_fd:
            pruned, failed, binned = self._rename(survey, prunes, now_ms, until_ms, trash_fd)
            if not binned:
                return pruned, failed
            try:
                binned = self._returner.still_unwanted(survey, binned, trash_fd)
                trash.sync(work_fd=self._work.fd, trash_fd=trash_fd)
            except OSError as error:
                self._keep_what_is_unsure(binned, error, now_ms)
                failed |= {decision.checkpoint.name: why(error) for decision, _ in binned}
                return pruned + [decision for decision, _ in binned], failed
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
                scores = trash.scores_of(c.name, dir_fd=self._work.fd)
                item = trash.put(
                    c.entry, work_fd=self._work.fd, trash_fd=trash_fd, now_ms=now_ms,
                    first=len(binned), who=holders.of,
                )  # fmt: skip
            except FileNotFoundError:
                gone.append(decision)  # somebody else was faster
            except trash.ChangedError as error:
                left[c.name] = f"left {c.name} alone: {error}"
            except OSError as error:
                failed[c.name] = why(error)
                self._say_refused(c.name, why(error))
            else:
                self._voice.forget("pruning", of=c.name)
                with leaving_scores(c.name, self._voice):
                    trash.put_beside(c.name, item, scores=scores, work_fd=self._work.fd, trash_fd=trash_fd)
                binned.append((decision, item))
                reason, inode = "; ".join(decision.reasons), scores[0] if scores else None
                self._journal.write(Line.of_pruned(c, decision.order, reason, item, until_ms, inode))
        self._voice.all_of("left", left)
        return gone, failed, binned

    def _keep_what_is_unsure(self, binned: Sequence[Binned], error: OSError, now_ms: int) -> None:
        """A rename that a power cut may undo, or somebody may want what could not be seen: what was moved stays whole
        in the trash, until the next start or for an hour."""
        what = "fsync of"
        if not isinstance(error, SyncError):
            what, self._maybe_undone = "a look into", True
            for _, item in binned:
                self._waiting.put(item, now_ms + UNNAMED_TTL_MS)
        self._voice.error("%s %s failed (%s): nothing is freed; check the disk", what, self._work.path, why(error))

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
