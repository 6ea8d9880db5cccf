"""Checkpoints that stay open for writing although the job has gone on: said once, with the processes that hold them.

They are in flight for as long as they are open, so nothing is pruned on their strength, and no pointer names them.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace

from ..core.entry import Entry
from ..core.plan import Decision
from ..core.survey import Survey
from ..disk.in_use import process_text, writers_of
from ..inspect.verdict import OPEN_FOR_WRITING, age_seconds
from ..text.voice import Voice
from ..workdir.workdir import WorkDir

_LATER_SAVES = 2  # the newest may be being written, and beside it one that a background writes
_QUIET_S, _LONG_S = 5.0, 600.0
_MOST_NAMED = 3


class Held:
    """due_s: when there may be something to say if nothing else happens, or None."""

    def __init__(self, work: WorkDir, voice: Voice) -> None:
        self._work, self._voice = work, voice
        self.due_s: float | None = None

    def look(self, survey: Survey, now_ns: int) -> None:
        """Say it, if it is so: unchanged for a while, and either the job has saved on or that while was a long one."""
        self.due_s = None
        if self._voice.has_said("held"):
            return
        waits = []
        for series in survey.plan.series:
            quiet_s = {d: _quiet_s(d.checkpoint.entry, now_ns) for d in series.decisions if is_open(d)}
            for decision in quiet_s:
                later = sum(_order(each) > _order(decision) for each in series.decisions)
                left_s = (_QUIET_S if later >= _LATER_SAVES else _LONG_S) - quiet_s[decision]
                if left_s <= 0:
                    self._say(
                        [file.name for d in quiet_s if quiet_s[d] >= _QUIET_S for file in d.checkpoint.entry.files]
                    )
                    return
                waits.append(left_s)
        self.due_s = min(waits, default=None)

    def _say(self, names: list[str]) -> None:
        pids: list[int] = []
        with contextlib.suppress(OSError):  # gone since
            pids = writers_of(names, dir_fd=self._work.fd)
        who = _listed([process_text(pid) for pid in pids])
        self._voice.once(
            "held",
            f"{_listed(names)}: still open for writing in {who or 'a process that cannot be seen from here'}, though "
            "nothing has been written for a while. What is open counts as being saved: it is kept, and not relied on. "
            "Close each file once it is written; a worker that was forked before that has it open too, until it ends",
        )


def is_open(decision: Decision) -> bool:
    """Whether somebody has the checkpoint open for writing."""
    return decision.checkpoint.evidence.endswith(OPEN_FOR_WRITING) or OPEN_FOR_WRITING in decision.reasons


def _quiet_s(entry: Entry, now_ns: int) -> float:
    """Seconds since anything in it was written."""
    return age_seconds(replace(entry, mtime_ns=max(entry.mtime_ns, entry.touched_ns)), now_ns)


def _order(decision: Decision) -> tuple[int, int]:
    return decision.checkpoint.mtime_ns, decision.checkpoint.step


def _listed(what: list[str]) -> str:
    """A few of them, and how many more there are."""
    more = len(what) - _MOST_NAMED
    return ", ".join(what[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")
