"""One pass over a work dir: survey, make durable, point, remember, delete. The order is the promise.

Everything that deletes goes through here; what it deletes is what the plan says, and nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from . import delete, journal
from .core.checkpoint import Checkpoint, State
from .core.memory import Memory, Seen
from .core.plan import SKIP, Decision, Plan
from .core.policy import Policy
from .disk import NO_ROOM, SyncError, sync_dir, sync_file, sync_tree
from .errors import why
from .filesystem import free_bytes
from .pointer import named_by, replace_pointer
from .remover import Remover
from .state import write_state
from .survey import Survey, Surveyor, human_bytes
from .workdir import WorkDir

LARGE_PRUNE_TTL_S = 3600.0
_LOOK_AGAIN_S = 1.0
_BACK_OFF_S = (1.0, 60.0)

log = logging.getLogger("ckptd")


class Labelled(logging.LoggerAdapter[logging.Logger]):
    """A log whose lines begin with the work dir they are about, where there are several."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        label = self.extra["label"] if self.extra else ""
        return (f"{label}: {msg}" if label else msg), kwargs


@dataclass(frozen=True)
class Report:
    """What a pass has done.

    pruned: the decisions carried out. failed: names with the reason for which the system refused. moved: the name
    the pointer was moved to, if it was. look_again_s: when something can have changed without an event, or None.
    """

    survey: Survey
    pruned: tuple[Decision, ...] = ()
    failed: dict[str, str] | None = None
    moved: str | None = None
    look_again_s: float | None = None

    @property
    def exit_code(self) -> int:
        return 3 if self.failed or self.survey.unreadable else 0


class Reconciler:
    """Makes passes over one work dir, and remembers between them what need not be read from the disk again."""

    def __init__(
        self,
        work: WorkDir,
        policy: Policy,
        remover: Remover,
        *,
        clock: Callable[[], int] = time.time_ns,
        label: str = "",
    ) -> None:
        self.work, self.policy, self.remover, self._clock = work, policy, remover, clock
        self._log = Labelled(log, {"label": label})  # several work dirs share one log
        self.surveyor = Surveyor(work, policy)
        self._on_disk: Memory | None = None
        self._unwritten: list[dict[str, Any]] = []  # journal lines that found no room
        self._expires_ms: dict[str, int] = {}  # what waits in the trash, and until when
        self._taken = False
        self._failures = 0
        self._beyond: dict[str, int] = {}
        self._said_refusals: dict[str, str] = {}

    def survey(self) -> Survey:
        """Look and decide, changing nothing."""
        return self.surveyor.survey(self._clock())

    def reconcile(self) -> Report:
        """Make one pass. Raises CkptdError for what a person must mend, OSError if the disk does not answer."""
        survey = self.survey()
        if not survey.entries and self.work.own_fd is None:
            return Report(survey)  # nothing of ours in a work dir before its first checkpoint
        if not survey.plan.decisions and self.work.own_fd is None:
            return Report(survey)
        self._take()
        survey, synced = self._make_durable(survey)
        decided = survey.plan
        moved, prunes, room = self._point(survey, synced)
        memory = _with_durable(decided.memory, synced, self.surveyor.unsynced)
        self._remember(memory)
        pruned, failed = self._delete(survey, prunes)
        gone = {d.checkpoint.name for d in pruned}
        if gone:
            memory = replace(memory, seen={name: s for name, s in memory.seen.items() if name not in gone})
            self._remember(memory)
        self.surveyor.memory = memory
        self._flush_journal()
        self._expire()
        self._warn_of_growth(decided)
        self._failures = self._failures + 1 if failed or not room else 0
        return Report(survey, tuple(pruned), failed, moved, self._look_again_s(survey, bool(failed) or not room))

    # --- before anything goes -------------------------------------------------------------------------------

    def _take(self) -> None:
        if self._taken:
            return
        if not self.work.take():
            self._log.warning("no locks on this file system: make sure only one ckptd runs on %s", self.work.path)
        self._taken = True
        self._on_disk = self.surveyor.memory
        assert self.work.own_fd is not None  # take() has made it
        with delete.opened_trash(self.work.own_fd) as trash_fd:
            left = delete.items(trash_fd)
        if left:
            self._adopt(left)

    def _adopt(self, left: list[delete.Item]) -> None:
        """Finish what a crash left in the trash, and go on waiting for what is to be kept there."""
        assert self.work.own_fd is not None
        lines = {line["trash"]: line for line in journal.read(self.work.own_fd) if line.get("did") == "pruned"}
        for item in left:
            until_ms = lines.get(item.name, {}).get("until_ms")
            if self.policy.trash_ttl_s is not None:
                until_ms = item.at_ms + int(self.policy.trash_ttl_s * 1000)
            elif not isinstance(until_ms, int):
                until_ms = item.at_ms  # the crash came before the journal line
            self._expires_ms[item.name] = item.at_ms if item.claimed else until_ms

    def _make_durable(self, survey: Survey) -> tuple[Survey, set[str]]:
        """fsync what the plan relies on; plan anew without what cannot be made durable.

        Returns the plan that may be carried out, and the names that are durable. What could not even be tried now
        (no descriptors left, not readable) is in neither: nothing is deleted on its strength.
        """
        synced: set[str] = set()
        while True:
            plan, fresh, failed = survey.plan, False, False
            wanted = [*plan.relied_on, *([plan.newest] if plan.newest else [])]
            for checkpoint in {c.name: c for c in wanted}.values():
                if checkpoint.name in synced or plan.memory.seen[checkpoint.name].durable:
                    synced.add(checkpoint.name)
                    continue
                try:
                    self._sync(checkpoint, survey)
                except SyncError as error:
                    failed = True
                    self.surveyor.unsynced.add(checkpoint.identity)
                    self._log.error(
                        "fsync of %s/%s failed (%s): it is not relied on any more; check the disk, and save it anew",
                        self.work.path, checkpoint.name, why(error),
                    )  # fmt: skip
                except OSError as error:
                    self._log.warning("could not make %s durable: %s; will try again", checkpoint.name, why(error))
                else:
                    synced.add(checkpoint.name)
                    fresh = True
            if fresh:
                sync_dir(self.work.fd)
            if not failed:
                return survey, synced
            survey = self.survey()

    def _sync(self, checkpoint: Checkpoint, survey: Survey) -> None:
        if survey.entries[checkpoint.name].is_dir:
            sync_tree(checkpoint.name, dir_fd=self.work.fd)
        else:
            sync_file(checkpoint.name, dir_fd=self.work.fd)

    def _point(self, survey: Survey, synced: set[str]) -> tuple[str | None, list[Decision], bool]:
        """Move the pointer; return the name it was moved to, what may be deleted now, and whether there was room."""
        plan = survey.plan
        prunes = [d for d in plan.prune if self._stands(d, plan, synced)]
        pointed = named_by(survey.pointed) if survey.pointed else None
        newest = plan.newest
        if newest is not None and pointed is not None and self._is_rewritten(pointed, newest, plan):
            newest = None  # the pointer stays while what it names is being written over
        if newest is None or newest.name not in synced:
            return None, self._spared(prunes, pointed, plan, synced), True
        view = next((s.work_dir for s in survey.declared.values() if s.template == newest.series and s.work_dir), None)
        target = os.path.join(view or self.work.path, newest.name)
        if survey.pointed == target:
            return None, prunes, True
        try:
            replace_pointer(self.policy.pointer, target, dir_fd=self.work.fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._log.warning(
                "could not move %s to %s: %s; will try again",
                self.policy.pointer,
                newest.name,
                why(error),
            )
            return None, self._spared(prunes, pointed, plan, synced), False
        self._log.info("pointed %s at %s", self.policy.pointer, newest.name)
        return newest.name, prunes, True

    def _stands(self, decision: Decision, plan: Plan, synced: set[str]) -> bool:
        """Whether everything that this deletion relies on is durable."""
        series = next(s for s in plan.series if s.grid.template.text == decision.checkpoint.series)
        return bool(series.relied_on) and all(c.name in synced for c in series.relied_on)

    def _is_rewritten(self, pointed: str, newest: Checkpoint, plan: Plan) -> bool:
        flying = any(d.checkpoint.name == pointed and d.checkpoint.state is State.IN_FLIGHT for d in plan.decisions)
        seen = plan.memory.seen
        return flying and pointed in seen and seen[pointed].order > seen[newest.name].order

    def _spared(self, prunes: list[Decision], pointed: str | None, plan: Plan, synced: set[str]) -> list[Decision]:
        """What may go while the pointer stays where it is: nothing that it names, and nothing at all on the strength
        of a pointer whose checkpoint is not complete and durable (DESIGN section 7, disk full)."""
        if pointed is None:
            return prunes
        target = next((d.checkpoint for d in plan.decisions if d.checkpoint.name == pointed), None)
        if target is None or not target.relied_on:
            return []
        if target.name not in synced:
            try:
                sync_file(target.name, dir_fd=self.work.fd)
                sync_dir(self.work.fd)
            except OSError:
                return []
        return [d for d in prunes if d.checkpoint.name != pointed]

    def _remember(self, memory: Memory) -> None:
        if memory == self._on_disk or self.work.own_fd is None:
            return
        try:
            write_state(memory, self.work.own_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._log.warning("could not write the state: %s; will try again", why(error))
        else:
            self._on_disk = memory

    # --- deleting -------------------------------------------------------------------------------------------

    def _delete(self, survey: Survey, prunes: list[Decision]) -> tuple[list[Decision], dict[str, str]]:
        """Rename into the trash, oldest first, then hand it to the remover. One failure is not the end."""
        pruned: list[Decision] = []
        failed: dict[str, str] = {}
        if not prunes:
            return pruned, failed
        assert self.work.own_fd is not None
        now_ms = self._clock() // 1_000_000
        until_ms = now_ms + int(self._ttl_s(survey.plan, len(prunes)) * 1000)
        with delete.opened_trash(self.work.own_fd) as trash_fd:
            binned: list[tuple[Decision, str]] = []
            for decision in prunes:
                checkpoint = decision.checkpoint
                try:
                    entry = survey.entries[checkpoint.name]
                    binned.append((decision, delete.put(entry, work_fd=self.work.fd, trash_fd=trash_fd, now_ms=now_ms)))
                except FileNotFoundError:
                    pruned.append(decision)  # somebody else was faster
                except delete.ChangedError as error:
                    self._log.warning("left %s alone: %s", checkpoint.name, error)
                except OSError as error:
                    failed[checkpoint.name] = why(error)
                    self._say_refusal(checkpoint.name, why(error))
            delete.sync(work_fd=self.work.fd, trash_fd=trash_fd)
        for decision, item in binned:
            pruned.append(decision)
            self._expires_ms[item] = until_ms
            self._unwritten.append(_line(decision, item, now_ms, until_ms))
            c = decision.checkpoint
            self._log.info(
                "pruned %s series=%s size_bytes=%d reason=%r",
                c.name,
                c.series,
                c.size_bytes,
                decision.reasons[0],
            )
        if binned and until_ms > now_ms:
            freed = human_bytes(sum(d.checkpoint.allocated_bytes for d, _ in binned))
            when = datetime.fromtimestamp(until_ms / 1000).strftime("%H:%M")
            self._log.info(
                "kept %d pruned (%s) in the trash until %s: `ckptd restore --all %s` brings them back, "
                "`ckptd prune --trash-ttl 0 %s` frees the space at once",
                len(binned), freed, when, self.work.path, self.work.path,
            )  # fmt: skip
        return pruned, failed

    def _say_refusal(self, name: str, why: str) -> None:
        if self._said_refusals.get(name) != why:
            self._said_refusals[name] = why
            self._log.warning("could not prune %s/%s: %s; will try again", self.work.path, name, why)

    def _ttl_s(self, plan: Plan, count: int) -> float:
        """How long the trash is kept: as asked for, or an hour for more than the saves since the last pass account
        for (first contact, a changed policy), room permitting."""
        if self.policy.trash_ttl_s is not None:
            return self.policy.trash_ttl_s
        expected = sum(max(1, 0 if s.grid.first_contact else s.grid.saves) for s in plan.series if s.decisions)
        if count <= expected or plan.newest is None:
            return 0.0
        return LARGE_PRUNE_TTL_S if free_bytes(self.work.fd) >= 2 * plan.newest.size_bytes else 0.0

    def _flush_journal(self) -> None:
        if not self._unwritten or self.work.own_fd is None:
            return
        try:
            journal.append(self._unwritten, self.work.own_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._log.warning("could not write the journal: %s; will try again", why(error))
        else:
            self._unwritten.clear()

    def _expire(self) -> None:
        """Hand to the remover what has been in the trash long enough."""
        now_ms = self._clock() // 1_000_000
        assert self.work.own_fd is not None
        due = [item for item, until_ms in self._expires_ms.items() if until_ms <= now_ms]
        for item in due:
            del self._expires_ms[item]
            self.remover.submit(self.work.own_fd, item)

    # --- afterwards -----------------------------------------------------------------------------------------

    def _warn_of_growth(self, plan: Plan) -> None:
        """Say that more and more stays beyond K, each time it has doubled."""
        for series in plan.series:
            text, count = series.grid.template.text, len(series.beyond)
            said = self._beyond.setdefault(text, max(count, 1))
            if count >= 2 * said:
                self._beyond[text] = count
                self._log.warning(
                    "%d checkpoints of %s stay beyond --max-keep %s (%s): the stepped rule never reaches them; "
                    "`--rule newest` would", count, text, series.grid.max_keep,
                    human_bytes(sum(c.allocated_bytes for c in series.beyond)),
                )  # fmt: skip

    def _look_again_s(self, survey: Survey, troubled: bool) -> float | None:
        waits: list[float] = []
        if any(d.checkpoint.state is State.IN_FLIGHT for d in survey.plan.decisions):
            waits.append(_LOOK_AGAIN_S)
        if self._expires_ms:
            waits.append(max(0.0, min(self._expires_ms.values()) / 1000 - self._clock() / 1e9))
        if troubled or (any(d.decision == SKIP for d in survey.plan.decisions) and self._failures):
            shortest, longest = _BACK_OFF_S
            waits.append(min(longest, shortest * 2 ** min(self._failures, 10)))
        return min(waits, default=None)


def _with_durable(memory: Memory, synced: set[str], unsynced: set[tuple[str, int, int]]) -> Memory:
    def known(seen: Seen) -> Seen:
        if (seen.name, seen.size_bytes, seen.mtime_ns) in unsynced:
            return replace(seen, durable=False)
        return replace(seen, durable=True) if seen.name in synced and seen.durable is None else seen

    return replace(memory, seen={name: known(seen) for name, seen in memory.seen.items()})


def _line(decision: Decision, item: str, now_ms: int, until_ms: int) -> dict[str, Any]:
    c = decision.checkpoint
    return {
        "at": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "did": "pruned",
        "name": c.name,
        "series": c.series,
        "step": c.step,
        "size_bytes": c.size_bytes,
        "reason": "; ".join(decision.reasons),
        "trash": item,
        "until_ms": until_ms,
    }
