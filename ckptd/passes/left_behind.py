"""What is still done for a work dir that was left out: its trash is freed when that is due.

Nothing is pruned there, and no pointer moves.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from ..core.memory import Memory
from ..core.policy import Policy
from ..disk.descriptors import NO_ROOM, exists
from ..disk.filesystem import is_read_only
from ..errors import OwnedError
from ..text.voice import Voice
from ..workdir import groups, trash
from ..workdir.state import write_state
from ..workdir.workdir import WorkDir
from .background import Background
from .pruner import Pruner
from .surveyor import Surveyor


class LeftBehind:
    """The trash of one work dir, from when that was none that is left out."""

    def __init__(
        self,
        work: WorkDir,
        policy: Policy,
        background: Background,
        *,
        clock: Callable[[], int] = time.time_ns,
        voice: Voice | None = None,
    ) -> None:
        self._work, self._clock = work, clock
        voice = voice or Voice()
        self._surveyor = Surveyor(work, policy, voice=voice)
        named_now = self._surveyor.protections.named_now
        self._pruner = Pruner(work, policy.trash_ttl_s, background, clock, voice, lambda: True, named_now)
        self._taken = False

    def empty_trash(self) -> float | None:
        """Free what has been in the trash long enough.

        Returns after how many seconds there is more to free, None if nothing is left that is ours to free: not in a
        copy, nor where another ckptd owns the work dir.
        """
        own_fd = self._work.open_own()
        if own_fd is None or not exists(trash.NAME, dir_fd=own_fd) or is_read_only(self._work.fd):
            return None
        with trash.opened_trash(own_fd) as trash_fd:
            if not (trash.items(trash_fd) or groups.half_done(trash_fd)) or trash.is_a_copy(trash_fd):
                return None
        survey = self._surveyor.survey(self._clock())
        if not self._taken:
            try:
                self._work.take()
            except OwnedError:
                return None
            self._pruner.adopt(survey.remembered)
            self._taken = True
        back = self._pruner.settle(alone=survey.plan.newest is None)
        if back:
            memory = survey.remembered or Memory()
            self._remember(replace(memory, seen={**memory.seen, **{seen.name: seen for seen in back}}))
        return min(self._pruner.expires_in_s(), default=None)

    def _remember(self, memory: Memory) -> None:
        """What went back under its name is owed, and no new save."""
        self._surveyor.memory = memory
        try:
            write_state(memory, self._work.taken_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
