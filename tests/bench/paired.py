"""Time things side by side: every round calls each of them once, and a ratio is taken within a round.

A machine that others use is slow for a while and then fast again; within one round both are.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

Seconds = dict[str, list[float]]


def time_each(
    calls: dict[str, Callable[[], None]], rounds: int, *, before: Callable[[], None], warm_up: int
) -> Seconds:
    """How long each call took in each round, the order turned around from round to round. `before` is not timed."""
    taken: Seconds = {name: [] for name in calls}
    for number in range(rounds + warm_up):
        for name in sorted(calls, reverse=bool(number % 2)):
            before()
            began = time.perf_counter()
            calls[name]()
            if number >= warm_up:
                taken[name].append(time.perf_counter() - began)
    return taken


@dataclass(frozen=True)
class Ratio:
    """The ratios of all rounds: their median, and the quartiles."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, ours: list[float], theirs: list[float]) -> Ratio:
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        if len(ratios) == 1:
            return cls(*ratios * 3)
        low, median, high = statistics.quantiles(ratios, n=4, method="inclusive")
        return cls(median, low, high)

    def __str__(self) -> str:
        if self.low == self.high:
            return f"{self.median:.3g}x"
        return f"{self.median:.3g}x ({self.low:.3g} to {self.high:.3g})"
