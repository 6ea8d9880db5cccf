"""What one pass has done, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from ..core.checkpoint import State
from ..core.plan import Decision
from ..core.survey import Survey


@dataclass(frozen=True)
class Report:
    """What a pass has done.

    pruned: the decisions carried out. failed: names with the reason for which the system refused. moved: the name
    the pointer was moved to, if it was. look_again_s: when something can have changed without an event, or None.
    waits: whether contents are still being read. unsaid: whether the pointer or the state could not be written.
    """

    survey: Survey
    pruned: tuple[Decision, ...] = ()
    failed: dict[str, str] | None = None
    moved: str | None = None
    look_again_s: float | None = None
    waits: bool = False
    unsaid: bool = False

    @property
    def exit_code(self) -> int:
        """3 if the system refused a deletion, 1 if the pointer or the state is not what it should be, else 0."""
        if self.failed or self.survey.unreadable:
            return 3
        return 1 if self.unsaid else 0

    @property
    def counts(self) -> str:
        """What is kept, pruned and so on, as one line of a log."""
        states = [d.checkpoint.state for d in self.survey.plan.decisions]
        newest = self.survey.plan.newest
        # By their bytes: the survey may be one that was made after some of them had gone already.
        gone = {d.checkpoint.entry.bytes_on_disk for d in self.pruned}
        kept = sum(d.checkpoint.entry.bytes_on_disk not in gone for d in self.survey.plan.decisions)
        return (
            f"reconciled kept={kept} pruned={len(self.pruned)} "
            f"incomplete={states.count(State.INCOMPLETE)} in_flight={states.count(State.IN_FLIGHT)} "
            f"failed={len(self.failed or ()) + len(self.survey.unreadable)} newest={newest.name if newest else 'none'}"
        )
