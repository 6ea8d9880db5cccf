"""Keepers: what stays although the rule would let it go. Milestones, the best by a metric, the latest hours.

Pure. They unite with the rule in plan.py: kept by any is kept, and none of them can make another one go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Union

from ..errors import UsageError
from .checkpoint import Checkpoint
from .memory import Seen
from .reason import Kind, Reason

MODES = ("min", "max")

Reasons = Mapping[str, Reason]  # by name of a checkpoint, why the keeper keeps it


@dataclass(frozen=True)
class KeepEvery:
    """Keep the steps divisible by `n`: the milestones of a run."""

    n: int

    option = "--keep-every"

    def __post_init__(self) -> None:
        at_least_1("keep_every", self.n, "steps divisible by it are kept")

    def keeps(self, whole: Sequence[Checkpoint], broken: Sequence[Checkpoint], seen: Mapping[str, Seen]) -> Reasons:
        """As all keepers: `whole` are the complete checkpoints of a series, the oldest first by writing. `broken` are
        all others: they are kept as if they were complete, and take nobody's place."""
        reason = Reason(Kind.MILESTONE, f"a milestone of {self}")
        return {c.name: reason for c in (*whole, *broken) if c.step % self.n == 0}

    def __str__(self) -> str:
        return f"{self.option} {self.n}"


@dataclass(frozen=True)
class KeepBest:
    """Keep the `count` best by a metric; of equals the one written first, as frameworks do.

    One without the metric is kept while it is newer than the newest that has it: its score may still come. NaN is
    worse than any number. What is broken, or may yet turn out so, takes nobody's place: it is kept beside the best that
    it would beat.
    """

    metric: str
    mode: str
    count: int = 1

    option = "--keep-best"

    def __post_init__(self) -> None:
        if not self.metric or not self.metric.isprintable():
            raise UsageError(f"keep_best {self.metric!r}: name a metric, as in mAP:max or eval_loss:min")
        if self.mode not in MODES:
            raise UsageError(f"keep_best {self.metric!r}: say which is best, {self.metric}:min or {self.metric}:max")
        at_least_1("keep_best", self.count, "so many of the best are kept")

    @classmethod
    def from_text(cls, text: str) -> KeepBest:
        """`METRIC:min`, `METRIC:max`, or either with `:K` for the K best. The metric may hold colons itself."""
        metric, _, last = text.rpartition(":")
        if last in MODES:
            return cls(metric, last)
        metric, _, mode = metric.rpartition(":")
        if mode not in MODES:
            raise UsageError(f"keep_best {text!r}: write METRIC:min or METRIC:max, with :K for the K best")
        if not (last.isascii() and last.isdigit()):
            raise UsageError(f"keep_best {text!r}: {last!r} is no number of checkpoints")
        return cls(metric, mode, int(last))

    def keeps(self, whole: Sequence[Checkpoint], broken: Sequence[Checkpoint], seen: Mapping[str, Seen]) -> Reasons:
        """As all keepers."""
        every = sorted((*whole, *broken), key=lambda c: seen[c.name].rank)
        scores = {c.name: dict(c.metrics).get(self.metric) for c in every}
        newest_scored = max((seen[c.name].order for c in whole if scores[c.name] is not None), default=-1)
        waits = Reason(Kind.UNSCORED, f"newer than the last with {self.metric}: {self} waits for its score")
        reasons = {name: waits for name, score in scores.items() if score is None and seen[name].order > newest_scored}
        relied_on = 0
        for c in self._ranked(every, scores):
            text = f"{self.metric} {scores[c.name]:.6g} is among the best for {self}"
            reasons[c.name] = Reason(Kind.BEST, text)
            relied_on += c.relied_on
            if relied_on == self.count:
                break  # whoever stands above these may yet turn out broken, and the next above the last be needed
        return reasons

    def best(self, whole: Sequence[Checkpoint]) -> list[Checkpoint]:
        """The best of those that can be relied on, the best first: others go on their strength."""
        scores = {c.name: dict(c.metrics).get(self.metric) for c in whole}
        return self._ranked([c for c in whole if c.relied_on], scores)[: self.count]

    def _ranked(self, among: Sequence[Checkpoint], scores: Mapping[str, float | None]) -> list[Checkpoint]:
        def badness(c: Checkpoint) -> tuple[bool, float]:
            score = scores[c.name]
            assert score is not None  # filtered below
            return math.isnan(score), 0.0 if math.isnan(score) else score if self.mode == "min" else -score

        return sorted((c for c in among if scores[c.name] is not None), key=badness)

    def __str__(self) -> str:
        return f"{self.option} {self.metric}:{self.mode}" + (f":{self.count}" if self.count > 1 else "")


@dataclass(frozen=True)
class KeepWithin:
    """Keep what was written within `seconds` before the newest; a run that has stopped loses nothing by waiting."""

    seconds: float

    option = "--keep-within"

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"keep_within_s is {self.seconds}: it would keep but the newest, which stays anyway")

    def keeps(self, whole: Sequence[Checkpoint], broken: Sequence[Checkpoint], seen: Mapping[str, Seen]) -> Reasons:
        """As all keepers."""
        if not whole:
            return {}
        since_ns = seen[whole[-1].name].written_ns - int(self.seconds * 1e9)
        late = [c.name for c in (*whole, *broken) if seen[c.name].written_ns >= since_ns]
        return dict.fromkeys(late, Reason(Kind.WITHIN, f"within {self} of the newest"))

    def __str__(self) -> str:
        return f"{self.option} {self.seconds:g}s"


Keeper = Union[KeepEvery, KeepBest, KeepWithin]


def at_least_1(name: str, value: int | None, why: str) -> None:
    """Raise UsageError unless `value` is None or a whole number of at least 1; `why` says what it is for."""
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise UsageError(f"{name} is {value!r}: give a whole number")
    if value < 1:
        raise UsageError(f"{name} is {value}: it must be at least 1: {why}")
