"""A directory without a disk, over which passes are made one after the other."""

from __future__ import annotations

from collections.abc import Sequence

from ckptd.core.checkpoint import Checkpoint, State
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.naming import Template
from ckptd.core.plan import SKIP, Plan, plan
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind, Reason
from ckptd.core.schedule import Schedule
from tests.golden_cases import Outside

EPOCHS = Template("epoch_{}.pth")


class Directory:
    """A directory without a disk, and what passes remember of it. ended: whether passes take its runs for ended."""

    def __init__(self, names: Sequence[str] = (), *, ended: bool = True) -> None:
        self.memory = Memory()
        self.written: dict[str, int] = {}
        self.broken: set[str] = set()
        self.pinned: set[str] = set()
        self.declared: dict[str, Schedule] = {}
        self.ended = ended
        self._clock = 0
        for name in names:
            self.write(name)

    def save(self, *steps: int) -> None:
        for step in steps:
            self.write(EPOCHS.name_of(step))

    def write(self, name: str) -> None:
        self._clock += 1
        self.written[name] = self._clock

    def plan(self, policy: Policy) -> Plan:
        templates = policy.patterns if policy.templates else [EPOCHS]
        found = [
            Checkpoint(
                Entry(template.text, name, step, 1, mtime_ns),
                State.INCOMPLETE if name in self.broken else State.COMPLETE,
            )
            for template in templates
            for name, mtime_ns in self.written.items()
            if (step := template.step_of(name)) is not None
        ]
        return plan(
            found, policy, memory=self.memory, now_ns=10**9,
            protected={name: [Reason(Kind.PINNED, "pinned")] for name in self.pinned},
            declared=self.declared, patterns=templates, ended=lambda series: self.ended,
        )  # fmt: skip

    def reconcile(self, policy: Policy) -> Plan:
        decided = self.plan(policy)
        gone = {decision.checkpoint.name for decision in decided.prune}
        self.memory = decided.memory.without(gone)
        for name in gone:
            del self.written[name]
        return decided

    def change(self, outside: Outside) -> None:
        """What somebody removes and creates, with a pass on either side: between two it leaves no trace of its time."""
        self.reconcile(outside.policy)
        for name in outside.remove:
            self.written.pop(name, None)
        for name in outside.create:
            self.write(name)
        self.reconcile(outside.policy)

    def owed(self, policy: Policy) -> set[str]:
        """The names that a pass leaves although their rule has pruned them."""
        return {d.checkpoint.name for d in self.reconcile(policy).decisions if d.decision == SKIP}

    def prune(self, max_keep: int | None, interval: int | None = 1, rule: str = "auto") -> list[int]:
        """One pass; the steps that are left."""
        self.reconcile(Policy(max_keep=max_keep, interval=interval, rule=rule))
        return self.steps()

    def decision_on(self, step: int, max_keep: int) -> str:
        decisions = self.plan(Policy(max_keep=max_keep, interval=1)).decisions
        return next(d.decision for d in decisions if d.checkpoint.step == step)

    def steps(self) -> list[int]:
        return sorted(step for name in self.written if (step := EPOCHS.step_of(name)) is not None)
