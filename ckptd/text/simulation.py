"""What a policy would leave of a run to come, as lines and as JSON."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ..core.simulate import Simulation
from .human import plural
from .render import reason_json, rule_text, steps
from .timeline import timeline


def as_lines(done: Simulation, *, width: int | None = None) -> Iterator[str]:
    """What a policy would leave of a run, for a person."""
    left = done.series.decisions
    yield f"{plural(done.saves, 'save')} of {rule_text(done.series)}"
    yield f"  leaves {len(left)}: {steps([d.checkpoint for d in left])}"
    name = done.series.grid.template.name_of(done.peak_step)
    yield f"  at most {plural(done.peak, 'file')} at once: when {name} is saved"
    if width is not None:
        yield from (f"  {line}" for line in timeline(done.series, width=width - 2))


def as_json(done: Simulation) -> dict[str, Any]:
    """The same for a program."""
    rows = [
        {
            "name": d.checkpoint.name,
            "step": d.checkpoint.step,
            "reasons": list(d.reasons),
            "why": [reason_json(reason) for reason in d.reasons],
        }
        for d in done.series.decisions
    ]
    return {"template": done.series.grid.template.text, "saves": done.saves, "left": rows, "peak_files": done.peak,
            "peak_step": done.peak_step}  # fmt: skip
