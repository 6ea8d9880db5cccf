"""One comparison as a line of the table: what was measured, of whom, against whom, and whether a budget is kept."""

from __future__ import annotations

import statistics
from dataclasses import asdict, dataclass
from typing import Any

from .paired import Ratio

HEAD = "| what | ckptd | against | the peer | ratio (quartiles) | budget | | rounds |\n" + "|---" * 8 + "|"
_MANY = 50  # below, a p99 is only the largest


@dataclass(frozen=True)
class Line:
    """ours, theirs: what was measured, as text. ratio: ours by theirs, within each round; None where there is none."""

    what: str
    ours: str
    peer: str
    theirs: str
    ratio: Ratio | None
    budget: str
    kept: bool | None
    count: int
    at_most: float | None = None

    def __str__(self) -> str:
        verdict = {None: "", True: "kept", False: "OVER"}[self.kept]
        ratio = self.ratio or ""
        return (
            f"| {self.what} | {self.ours} | {self.peer} | {self.theirs} | {ratio} "
            f"| {self.budget} | {verdict} | {self.count} |"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, said: dict[str, Any]) -> Line:
        return cls(**{**said, "ratio": Ratio(**said["ratio"]) if said["ratio"] else None})


def compared(
    what: str, peer: str, ours: list[float], theirs: list[float], unit: str = "s", *, at_most: float | None = None
) -> Line:
    """at_most: the budget for ours as a multiple of the peer's."""
    ratio = Ratio.of(ours, theirs) if all(theirs) else None  # one that only sleeps uses nothing
    budget = "" if at_most is None else f"{at_most:.3g}x"
    kept = None if at_most is None or ratio is None else ratio.median <= at_most
    return Line(what, told(ours, unit), peer, told(theirs, unit), ratio, budget, kept, len(ours), at_most)


def within(what: str, value: float, at_most: float, unit: str, count: int, note: str = "") -> Line:
    """A budget that is a number of its own, whoever else is measured."""
    return Line(what, amount(value, unit), note, "", None, f"at most {amount(at_most, unit)}", value <= at_most, count)


def said(what: str, figure: str) -> Line:
    """A figure that has neither a peer nor a budget."""
    return Line(what, figure, "", "", None, "", None, 1)


def told(values: list[float], unit: str) -> str:
    median = amount(statistics.median(values), unit)
    if len(values) == 1:
        return median
    if len(values) >= _MANY:
        return f"{median}, p99 {amount(p99(values), unit)}"
    return f"{median} ({amount(min(values), unit)} to {amount(max(values), unit)})"


def p99(values: list[float]) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def amount(value: float, unit: str) -> str:
    if unit != "s":
        return f"{value:.3g} {unit}".rstrip()
    if value < 1e-3:
        return f"{value * 1e6:.3g} us"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"
