"""One pass over a work dir: survey, make durable, point, remember, delete. The order is the promise.

Everything that deletes goes through here; what it deletes is what the plan says, and nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from . import delete
from .core.checkpoint import Checkpoint, State
from .core.memory import Memory, Seen
from .core.plan import Decision, Plan
from .core.policy import Policy
from .disk import NO_ROOM, SyncError, exists, sync_dir, sync_file, sync_tree
from .errors import NoRoomError, why
from .pointer import named_by, replace_pointer
from .pruner import Labelled, Pruner
from .remover import Remover
from .state import write_state
from .survey import Survey, Surveyor, beyond_text
from .workdir import WorkDir

_SETTLED_S = 0.05  # so that what has to be quiet for so long then is
_BACK_OFF_S = (1.0, 60.0)

log = logging.getLogger("ckptd")


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
        """3 if the system refused something, else 0 (DESIGN section 10)."""
        return 3 if self.failed or self.survey.unreadable else 0

    @property
    def counts(self) -> str:
        """What is kept, pruned and so on, as one line of a log."""
        states = [d.checkpoint.state for d in self.survey.plan.decisions]
        newest = self.survey.plan.newest
        return (
            f"reconciled kept={len(states) - len(self.pruned)} pruned={len(self.pruned)} "
            f"incomplete={states.count(State.INCOMPLETE)} in_flight={states.count(State.IN_FLIGHT)} "
            f"failed={len(self.failed or ()) + len(self.survey.unreadable)} newest={newest.name if newest else 'none'}"
        )


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
        self.work, self.policy, self._clock = work, policy, clock
        self._log = Labelled(log, {"label": label})  # several work dirs share one log
        self.surveyor = Surveyor(work, policy)
        self._on_disk: Memory | None = None
        self._taken = False
        self._failures = 0
        self._said_full = ""
        self._beyond: dict[str, int] = {}
        self._pruner = Pruner(work, policy.trash_ttl_s, remover, clock, self._log)

    def survey(self) -> Survey:
        """Look and decide, changing nothing."""
        return self.surveyor.survey(self._clock())

    def reconcile(self) -> Report:
        """Make one pass. Raises CkptdError for what a person must mend, OSError if the disk does not answer."""
        survey = self.survey()
        if self.work.own_fd is None and survey.plan.newest is None:
            # No checkpoint yet, and nothing of ours before there is one.
            return Report(survey, look_again_s=self._look_again_s(survey, troubled=False))
        if not self._taken:
            self._take(survey)
            survey = self.survey()  # what was there before the lock was somebody else's to change
            self._on_disk = survey.remembered
        survey, synced = self._make_durable(survey)
        moved, prunes, room = self._point(survey, synced)
        memory = _with_durable(survey.plan.memory, synced, self.surveyor.unsynced)
        self._remember(memory)
        pruned, failed = self._pruner.prune(survey, prunes)
        gone = {d.checkpoint.name for d in pruned}
        if gone:
            memory = replace(memory, seen={name: s for name, s in memory.seen.items() if name not in gone})
            self._remember(memory)
        self.surveyor.memory = memory
        self._pruner.settle()
        self._warn_of_growth(survey.plan)
        troubled = bool(failed) or not room or memory != self._on_disk
        self._failures = self._failures + 1 if troubled else 0
        return Report(survey, tuple(pruned), failed, moved, self._look_again_s(survey, troubled=troubled))

    # --- before anything goes -------------------------------------------------------------------------------

    def _take(self, survey: Survey) -> None:
        """Own the work dir, then finish what a crash left there."""
        while not self._taken:
            try:
                if not self.work.take():
                    self._log.warning("no locks on this file system: run only one ckptd on %s", self.work.path)
                self._pruner.adopt()
                self._taken = True
            except NoRoomError:
                if not self._make_room(survey):
                    raise
                survey = self.survey()
        self.surveyor.memory = None  # somebody else may have written it until now

    def _make_room(self, survey: Survey) -> bool:
        """Delete the oldest that the plan prunes, on a disk so full that not even `.ckptd` fits (DESIGN section 7)."""
        survey, synced = self._make_durable(survey)
        pointed = named_by(survey.pointed) if survey.pointed else None
        for decision in self._spared(self._standing(survey.plan, synced), pointed, survey, synced):
            name = decision.checkpoint.name
            try:
                delete.unlink(survey.entries[name], work_fd=self.work.fd)
            except (OSError, delete.ChangedError) as error:
                self._log.warning("could not prune %s: %s", name, error)
                continue
            sync_dir(self.work.fd)
            self._log.warning("pruned %s at once: the disk is too full for a trash", name)
            return True
        return False

    def _make_durable(self, survey: Survey) -> tuple[Survey, set[str]]:
        """fsync what the plan relies on; plan anew without what cannot be made durable.

        Returns the plan that may be carried out, and the names that are durable. What could not even be tried now
        (no descriptors left, not readable) is in neither: nothing is deleted on its strength.
        """
        synced: set[str] = set()
        while True:
            plan, fresh, failed = survey.plan, set[str](), False
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
                    fresh.add(checkpoint.name)
            if fresh:
                try:
                    sync_dir(self.work.fd)
                except SyncError as error:
                    failed = True
                    self.surveyor.unsynced |= {c.identity for c in wanted if c.name in fresh}
                    self._log.error("fsync of %s failed (%s): check the disk", self.work.path, error.strerror)
                else:
                    synced |= fresh
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
        prunes = self._standing(plan, synced)
        pointed = named_by(survey.pointed) if survey.pointed else None
        newest = plan.newest
        if newest is not None and pointed is not None and self._stays(pointed, newest, plan):
            return None, prunes, True
        if newest is None or newest.name not in synced:
            return None, self._spared(prunes, pointed, survey, synced), True
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
            return None, self._spared(prunes, pointed, survey, synced), False
        self._log.info("pointed %s at %s", self.policy.pointer, newest.name)
        return newest.name, prunes, True

    def _standing(self, plan: Plan, synced: set[str]) -> list[Decision]:
        """What may be pruned because everything that it relies on is durable."""
        sound = {
            series.grid.template.text
            for series in plan.series
            if series.relied_on and all(c.name in synced for c in series.relied_on)
        }
        return [d for d in plan.prune if d.checkpoint.series in sound]

    def _stays(self, pointed: str, newest: Checkpoint, plan: Plan) -> bool:
        """Whether the pointer stays on something newer than this plan's newest: on what is being written over, or on a
        checkpoint of a series that this policy does not look at."""
        seen = plan.memory.seen
        if pointed not in seen or seen[pointed].order <= seen[newest.name].order:
            return False
        states = [d.checkpoint.state for d in plan.decisions if d.checkpoint.name == pointed]
        return State.IN_FLIGHT in states or (not states and exists(pointed, dir_fd=self.work.fd))

    def _spared(self, prunes: list[Decision], pointed: str | None, survey: Survey, synced: set[str]) -> list[Decision]:
        """What may go while the pointer stays where it is: nothing that it names, and nothing at all on the strength
        of a pointer whose checkpoint is not complete and durable (DESIGN section 7, disk full)."""
        if pointed is None:
            return prunes
        target = next((d.checkpoint for d in survey.plan.decisions if d.checkpoint.name == pointed), None)
        if target is None or not target.relied_on:
            return []
        if target.name not in synced:
            try:
                self._sync(target, survey)
                sync_dir(self.work.fd)
            except SyncError:
                self.surveyor.unsynced.add(target.identity)
                return []
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
            if self._said_full != why(error):
                self._said_full = why(error)
                self._log.warning("could not write the state: %s; will try again", why(error))
        else:
            self._on_disk, self._said_full = memory, ""

    # --- afterwards -----------------------------------------------------------------------------------------

    def _warn_of_growth(self, plan: Plan) -> None:
        """Say that more and more stays beyond K, each time it has doubled."""
        for series in plan.series:
            text, count = series.grid.template.text, len(series.beyond)
            said = self._beyond.setdefault(text, max(count, 1))
            if count >= 2 * said:
                self._beyond[text] = count
                self._log.warning("%s", beyond_text(series))

    def _look_again_s(self, survey: Survey, *, troubled: bool) -> float | None:
        waits = [] if survey.settles_s is None else [survey.settles_s + _SETTLED_S]
        waits.extend(self._pruner.expires_in_s())
        if troubled:
            shortest, longest = _BACK_OFF_S
            waits.append(min(longest, shortest * 2 ** min(self._failures, 10)))
        return min(waits, default=None)


def _with_durable(memory: Memory, synced: set[str], unsynced: set[tuple[str, int, int]]) -> Memory:
    def known(seen: Seen) -> Seen:
        if (seen.name, seen.size_bytes, seen.mtime_ns) in unsynced:
            return replace(seen, durable=False)
        return replace(seen, durable=True) if seen.name in synced and seen.durable is None else seen

    return replace(memory, seen={name: known(seen) for name, seen in memory.seen.items()})
