"""What a policy would leave of a run that has not been made yet: every save, and a pass after it.

Pure: the saves are values, and the passes are plans; nothing is written anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from ..errors import UsageError
from .checkpoint import Checkpoint
from .entry import Entry
from .keyed import given
from .memory import Memory
from .naming import Template
from .plan import Plan, SeriesPlan, plan
from .policy import Policy

_MOST_SAVES = 1_000_000
_MOST_DECISIONS = 500_000  # some seconds
_RUN = re.compile(
    r"(?P<template>.+):(?P<first>[0-9]{1,15})\.\.(?P<last>[0-9]{1,15})(?::(?P<gap>[0-9]{1,15}))?", re.ASCII
)


@dataclass(frozen=True)
class Run:
    """Saves from step `first` to step `last`, `gap` apart; the last one also where it is off the grid."""

    template: Template
    first: int
    last: int
    gap: int = 1

    def __post_init__(self) -> None:
        if self.gap < 1 or self.first < 0 or self.last < self.first:
            raise UsageError(f"a run from {self.first} to {self.last} by {self.gap} saves nothing")
        if (self.last - self.first) // self.gap >= _MOST_SAVES:
            raise UsageError(
                f"a run of more than {_MOST_SAVES} saves is not simulated: make the steps between them larger"
            )

    @classmethod
    def from_text(cls, text: str) -> Run:
        """`TEMPLATE:FIRST..LAST` or `TEMPLATE:FIRST..LAST:GAP`, such as `iter_{}.pth:1000..90000:1000`."""
        match = _RUN.fullmatch(text)
        if match is None:
            raise UsageError(
                f"{text!r}: write TEMPLATE:FIRST..LAST, as in 'epoch_{{}}.pth:1..300', with :GAP for the steps between"
            )
        names = given(match["template"])
        if not isinstance(names, Template):
            raise UsageError(
                f"{names.text!r}: only names with one number can be simulated: what else stands in a name is not known "
                "before the run. Give the number alone, as in 'epoch_{}.pth:1..300'"
            )
        return cls(names, int(match["first"]), int(match["last"]), int(match["gap"] or 1))

    @property
    def steps(self) -> Iterator[int]:
        yield from range(self.first, self.last, self.gap)
        yield self.last


@dataclass(frozen=True)
class Simulation:
    """What is left at the end, and the most files there at once: after the save of `peak_step`, before its pass."""

    series: SeriesPlan
    saves: int
    peak: int
    peak_step: int


def simulate(run: Run, policy: Policy) -> Simulation:
    """Save step by step, with a pass after each save. Raises UsageError for what cannot be known of a run to come."""
    for option, asked in (("--keep-best", policy.keep_best), ("--keep-within", policy.keep_within_s),
                          ("--max-bytes", policy.max_bytes), ("--min-free", policy.min_free)):  # fmt: skip
        if asked:
            raise UsageError(f"{option} cannot be simulated: scores, times and sizes are not known before the run")
    found: list[Checkpoint] = []
    memory, decided = Memory(), None
    peak = peak_step = saves = decisions = 0
    for saves, step in enumerate(run.steps, 1):
        found.append(Checkpoint(Entry(run.template.text, run.template.name_of(step), step, 1, saves)))
        if len(found) > peak:
            peak, peak_step = len(found), step
        decisions += len(found)
        if decisions > _MOST_DECISIONS:
            raise UsageError(
                f"after {saves} saves this policy leaves {len(found)} files, too many to simulate further: "
                "make the steps between the saves larger, or keep fewer"
            )
        decided = _pass(found, policy, memory, run.template, saves)
        gone = {d.checkpoint.name for d in decided.prune}
        found = [c for c in found if c.name not in gone]
        memory = decided.memory
        memory = Memory({c.name: memory.seen[c.name] for c in found}, memory.series, memory.next_order)
    last = _pass(found, policy, memory, run.template, saves)
    return Simulation(last.series[0], saves, peak, peak_step)


def _pass(found: list[Checkpoint], policy: Policy, memory: Memory, template: Template, now_ns: int) -> Plan:
    return plan(found, policy, memory=memory, now_ns=now_ns, protected={}, declared={}, patterns=[template])
