"""One pass over a work dir: survey, make durable, point, remember, delete. The order is the promise.

Everything that deletes goes through here; what it deletes is what the plan says, and nothing else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from ..core.budget import MIN_FREE, Budget
from ..core.checkpoint import State
from ..core.memory import Memory
from ..core.permit import Permit, permit, pointer_stays
from ..core.plan import Decision, Plan
from ..core.policy import Policy
from ..core.reason import Kind
from ..core.survey import Survey
from ..disk.descriptors import NO_ROOM, exists, sync_dir
from ..errors import NoRoomError, why
from ..text.advice import short_text
from ..text.voice import Voice
from ..workdir import trash
from ..workdir.place import is_ignored
from ..workdir.pointer import replace_pointer
from ..workdir.state import write_state
from ..workdir.workdir import WorkDir
from .back_off import back_off_s
from .background import Background
from .floor import CALM_S
from .held import Held, is_open
from .last_look import Holders, reasons_to_stay
from .patience import Patience
from .pruner import Pruner
from .reading import Reader
from .reliance import Reliance
from .report import Report
from .surveyor import Surveyor

_CLOSING_NS = 500_000_000
_SETTLED_S = 0.05  # so that what has to be quiet for so long then is


class Reconciler:
    """Makes passes over one work dir, and remembers between them what need not be read from the disk again."""

    def __init__(
        self,
        work: WorkDir,
        policy: Policy,
        background: Background,
        *,
        reader: Reader | None = None,
        clock: Callable[[], int] = time.time_ns,
        stopping: Callable[[], bool] = lambda: False,
        voice: Voice | None = None,
        expecting: Callable[[set[str]], None] = lambda names: None,
        patience: Patience | None = None,
    ) -> None:
        """voice: outlives this object, if it is to be made again. expecting: told in each pass, before anything goes,
        of all checkpoints that may. patience: as of Surveyor."""
        self.work, self.policy, self._clock = work, policy, clock
        self._voice = voice = voice or Voice()
        self.surveyor = Surveyor(work, policy, patience=patience, voice=voice)
        self._on_disk: Memory | None = None
        self._taken = False
        self._failures = 0
        self._closing_due_ns: int | None = None  # when it is looked whether somebody has closed what he has written
        self._unlinked: list[Decision] = []  # to make room for `.ckptd`; no report has counted them yet
        self._expecting = expecting
        self._held = Held(work, voice)
        self._pruner = Pruner(
            work, policy.trash_ttl_s, background, clock, voice, lambda: stopping() or _is_left_alone(work),
            self.surveyor.protections.named_now,
        )  # fmt: skip
        self._reliance = Reliance(self.surveyor, reader or Reader(background, wait=True), clock, voice)

    @property
    def unfreed(self) -> dict[str, str]:
        """What is in the trash and could not be freed, with the system's reason."""
        return self._pruner.unfreed

    @property
    def can_rest(self) -> bool:
        """Whether another object, made later, would find on the disk all that this one knows."""
        written = self.surveyor.memory == self._on_disk
        waits = self._failures or self._closing_due_ns is not None or self._reliance.waits
        return written and not (waits or self._pruner.is_busy)

    def survey(self) -> Survey:
        """Look and decide, changing nothing."""
        return self.surveyor.survey(self._clock())

    def reconcile(self) -> Report:
        """Make one pass. Raises CkptdError for what a person must mend, OSError if the disk does not answer."""
        return self._pass()

    def reconcile_at_end(self, *, alone: bool) -> Report:
        """Make the last pass, once the job has ended; `alone`: and with it all that it had started on this host.

        The pointer goes at once to what its structure proves whole. A deletion stands only on what has settled, as
        others may still write: another host, or who was left behind. On a local disk without those nothing need settle.
        """
        self.surveyor.alone = alone
        self.surveyor.hasty = True
        waits = False
        try:
            waits = self._pass(prune=False).waits
        except NoRoomError:
            pass  # what could be deleted for that has settled: the other pass sees to it
        finally:
            self.surveyor.hasty = False
        report = self._pass()
        return replace(report, waits=report.waits or waits)

    def _pass(self, *, prune: bool = True) -> Report:
        self._pruner.bring_back()
        survey = self.survey()
        self._held.look(survey, self._clock())
        if not survey.decisions:
            self._say_unrecognised(survey)
        if self.work.own_fd is None and survey.plan.newest is None:
            # No checkpoint yet, and nothing of ours before there is one.
            return Report(survey, look_again_s=self._look_again_s(survey, troubled=False))
        if not self._taken:
            was_owned = self.work.is_owned
            brought_back = self._take(survey)
            if brought_back or not was_owned:
                survey = self.survey()  # what was there before the lock was somebody else's to change
            self._on_disk = survey.remembered
        reliable = self._reliance.establish(survey)
        survey, synced = reliable.survey, reliable.names
        if self._on_disk is None:
            # Whoever starts after a crash would take a pointer without a state for somebody else's, and believe it
            # against the order of writing. What is durable comes after the pointer: until then it is synced again.
            self._remember(self.surveyor.findings.without_synced().written_into(survey.plan.memory))
        moved, permitted, room = self._point(survey, synced)
        prunes = permitted.prunes if prune else ()
        self._say_unreadable(survey)
        self._say_doubtful(survey.plan)
        memory = self.surveyor.findings.written_into(survey.plan.memory)
        self._remember(memory)
        self._expecting({file.name for d in prunes for file in d.checkpoint.entry.files})
        for_room = self._note_what_room_takes(survey.plan, prunes)
        pruned, failed = self._pruner.prune(survey, prunes)
        gone = {d.checkpoint.name for d in pruned}
        if gone:
            self.surveyor.findings.forget(gone.__contains__)
            memory = memory.without(gone)
            self._remember(memory)
        given_back = self._pruner.settle(survey.plan.budget, alone=survey.plan.newest is None)
        if given_back:
            memory = replace(memory, seen={**memory.seen, **{seen.name: seen for seen in given_back}})
            self._remember(memory)
        self.surveyor.memory = memory
        self._say_short(survey.plan.budget)
        unsaid = not room or memory != self._on_disk
        troubled = bool(failed) or unsaid or reliable.troubled
        self._failures = self._failures + 1 if troubled else 0
        again_s = self._look_again_s(survey, troubled=troubled)
        if for_room and pruned:
            again_s = min(CALM_S, again_s or CALM_S)
        unlinked, self._unlinked = self._unlinked, []
        return Report(survey, (*unlinked, *pruned), failed, moved, again_s, reliable.waits, unsaid)

    # --- before anything goes -------------------------------------------------------------------------------

    def _take(self, survey: Survey) -> bool:
        """Own the work dir, then finish what a crash left there; whether something has its name again by that."""
        brought_back = False
        while not self._taken:
            try:
                if not self.work.take():
                    self._voice.once("lock", f"no locks on this file system: run only one ckptd on {self.work.path}")
                brought_back |= self._pruner.adopt(survey.remembered)
                self._taken = True
            except NoRoomError:
                if not self._make_room(survey):
                    raise
                survey = self.survey()
        self.surveyor.memory = None  # somebody else may have written it until now
        return brought_back

    def _make_room(self, survey: Survey) -> bool:
        """Delete the oldest that the plan prunes, on a disk so full that not even `.ckptd` fits."""
        if self.surveyor.hasty:
            return False
        reliable = self._reliance.establish(survey)
        survey, synced = reliable.survey, reliable.names
        prunes = permit(survey.plan, durable=synced, pointed=survey.pointed_name).prunes
        stays = reasons_to_stay(survey, prunes, self.surveyor.protections.named_now(), work_fd=self.work.fd)
        for decision in prunes:
            name = decision.checkpoint.name
            if name in stays:
                self._voice.once("left", f"left {name} alone: {stays[name]}", of=name)
                continue
            try:
                trash.unlink(decision.checkpoint.entry, work_fd=self.work.fd, who=Holders().of)
            except (OSError, trash.ChangedError) as error:
                self._voice.once("pruning", f"could not prune {name}: {error}", of=name)
                continue
            sync_dir(self.work.fd)
            self._voice.warning("pruned %s at once: the disk is too full for a trash", name)
            self._unlinked.append(decision)
            return True
        return False

    def _point(self, survey: Survey, synced: frozenset[str]) -> tuple[str | None, Permit, bool]:
        """Move the pointer; return the name it was moved to, what may be deleted now, and whether there was room."""
        plan, pointed, newest = survey.plan, survey.pointed_name, survey.plan.newest
        pointer = self.surveyor.protections.pointer
        is_there = pointed is not None and exists(pointed, dir_fd=self.work.fd)
        stays = pointer_stays(plan, pointed, is_there=is_there)
        as_it_is = partial(permit, plan, durable=synced, pointed=pointed, stays=stays)
        if stays or newest is None or newest.name not in synced:
            return None, as_it_is(), True
        views = {s.template: s.work_dir for s in survey.declared.values() if s.work_dir}
        target = os.path.join(views.get(newest.series, self.work.path), newest.name)
        if survey.pointed == target:
            return None, as_it_is(), True
        pointer.check_ours(views.values())  # what is relied on may have taken long to read
        try:
            with pointer.place() as place:
                assert place is not None  # the work dir is taken
                replace_pointer(place[0], target, dir_fd=place[1])
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            what = f"could not move {pointer.name} to {newest.name}"
            self._voice.once("pointer", f"{what}: {why(error)}; will try again")
            return None, as_it_is(), False
        self._voice.forget("pointer")
        self._voice.info("pointed %s at %s", pointer.name, newest.name)
        return newest.name, permit(plan, durable=synced, pointed=newest.name), True

    def _note_what_room_takes(self, plan: Plan, prunes: Sequence[Decision]) -> bool:
        """Write down what goes for want of room, or that what went before has come free; whether something goes."""
        keeper, room = self.surveyor.room_keeper, self.surveyor.room
        if keeper is None or room is None or plan.budget is None:
            return False
        going = [d.checkpoint.entry for d in prunes if any(r.kind is Kind.BUDGET for r in d.reasons)]
        if going and plan.budget.option == MIN_FREE and room.disk is not None:
            keeper.take(going, self._clock())
            return True
        if room.has_shown:
            keeper.forget()
        return False

    def _remember(self, memory: Memory) -> None:
        if memory == self._on_disk or self.work.own_fd is None:
            return
        try:
            write_state(memory, self.work.own_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._voice.once("state", f"could not write the state: {why(error)}; will try again")
        else:
            self._on_disk = memory
            self._voice.forget("state")

    # --- afterwards -----------------------------------------------------------------------------------------

    def _say_unreadable(self, survey: Survey) -> None:
        """Name what cannot be read: it is neither judged nor deleted."""
        unreadable = {each.entry.name: each.reason for each in survey.unreadable}
        path = self.work.path
        self._voice.all_of(
            "unreadable", {name: f"could not read {path}/{name}: {unreadable[name]}" for name in unreadable}
        )

    def _say_unrecognised(self, survey: Survey) -> None:
        """Tell what is there instead of checkpoints, and the command that would look after it."""
        from .unrecognised import explained  # here, because where all is well nobody needs it

        for line in explained(self.work, survey, self.policy, links=False).advice:
            if line not in survey.advice:
                self._voice.once("unrecognised", line, of=line)

    def _say_doubtful(self, plan: Plan) -> None:
        """Name what is in doubt, and the way out: it stays until a person decides."""
        doubtful = [c for d in plan.decisions if (c := d.checkpoint).state is State.DOUBTFUL]
        self._voice.all_of("doubt", {c.name: f"{self.work.path}/{c.name} is in doubt: {c.evidence}" for c in doubtful})

    def _say_short(self, budget: Budget | None) -> None:
        """Say that a budget cannot be met, when that begins and each time it has become twice as bad."""
        if budget is None or not budget.short_bytes:
            self._voice.forget("budget")
            return
        path = self.work.path
        self._voice.when_doubled(
            "budget", budget.short_bytes, lambda: f"{path}: {short_text(budget)}", level=logging.ERROR
        )

    def _look_again_s(self, survey: Survey, *, troubled: bool) -> float | None:
        waits = [] if survey.settles_s is None else [survey.settles_s + _SETTLED_S]
        waits.extend(self._closes_in_s(survey))
        waits.extend(self._pruner.expires_in_s())
        if self._held.due_s is not None:
            waits.append(self._held.due_s + _SETTLED_S)
        if troubled:
            waits.append(back_off_s(self._failures))
        return min(waits, default=None)

    def _closes_in_s(self, survey: Survey) -> list[float]:
        """When what is open for writing may be closed without another event: once after each pass that was due anyway.

        The kernel tells of the closing a moment before it counts the file as closed, and a pass can come in between.
        """
        now_ns, due_ns = self._clock(), self._closing_due_ns
        self._closing_due_ns = None
        if not any(map(is_open, survey.plan.decisions)) or (
            due_ns is not None and not 0 < due_ns - now_ns <= _CLOSING_NS
        ):
            return []
        self._closing_due_ns = now_ns + _CLOSING_NS
        return [_CLOSING_NS / 1e9]


def _is_left_alone(work: WorkDir) -> bool:
    try:
        return is_ignored(work.fd)
    except OSError:
        return True  # nothing more is deleted where that cannot be told
