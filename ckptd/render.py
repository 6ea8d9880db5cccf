"""What people and programs read of a survey: the summary line, the table, the JSON of DESIGN section 10.

Only text; nothing is decided here.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from .core.checkpoint import Checkpoint
from .core.plan import KEEP, PRUNE, SKIP, Decision, SeriesPlan
from .survey import Survey
from .units import human_age, human_bytes


def summary(survey: Survey, work_dir: str) -> str:
    """One line: what is there, what is kept of it, and what will be freed."""
    parts = [_series_summary(series) for series in survey.plan.series if series.decisions]
    if not parts:
        return f"watching {work_dir}: no checkpoint yet"
    return f"watching {work_dir}: " + "; ".join(parts)


def will_happen(survey: Survey) -> Iterator[str]:
    """A line for each checkpoint that a pass would prune."""
    for decision in survey.plan.prune:
        yield f"would prune {decision.checkpoint.name}: {decision.reasons[0]}"


def as_json(survey: Survey, work_dir: str) -> dict[str, Any]:
    """The plan as DESIGN section 10 gives it. Sizes in bytes, `written` in ISO 8601 (UTC)."""
    return {
        "work_dir": work_dir,
        "pointer": survey.pointed,
        "series": [_series_json(series) for series in survey.plan.series],
        "unread": sorted(survey.unread),
        "left_alone": [{"name": each.name, "reason": each.reason} for each in survey.left_alone],
        "advice": list(survey.advice),
    }


def as_table(survey: Survey, work_dir: str, now_s: float) -> Iterator[str]:
    """The plan for a person: a row for each checkpoint, then what it adds up to."""
    for series in survey.plan.series:
        if not series.decisions:
            continue
        yield f"{work_dir}  {_rule_text(series)}"
        rows = [("CHECKPOINT", "STATE", "SIZE", "AGE", "DECISION", "REASON")]
        for d in series.decisions:
            c = d.checkpoint
            age = human_age(now_s - c.mtime_ns / 1e9)
            rows.append((c.name, c.state.value, human_bytes(c.size_bytes), age, d.decision, "; ".join(d.reasons)))
        yield from columns(rows, right=(2, 3))
        yield "  " + _totals(series.decisions)
        yield ""
    for each in survey.left_alone:
        yield f"left alone: {each.name} ({each.reason})"
    lagging = sorted({c.name for c in survey.plan.relied_on} & survey.unread) if survey.remembered else []
    if lagging:
        yield f"note: still to be read, before anything goes on their strength: {', '.join(lagging)}"
    for text in survey.advice:
        yield f"note: {text}"
    if not survey.plan.decisions and not survey.left_alone:
        yield f"{work_dir}: no checkpoint there"
    newest = survey.plan.newest
    if newest is not None:
        yield f"pointer: {survey.pointed or 'none yet'}" + (
            "" if _names(survey, newest) else f" (would move to {newest.name})"
        )


def one_line(text: str) -> str:
    """`text` as one line that moves no cursor: names and pointers are data, and may hold whatever a file name may."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    """Rows as aligned columns; those in `right` stand flush right. No trailing blanks."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join(cells).rstrip()


def _series_summary(series: SeriesPlan) -> str:
    kept = [d.checkpoint for d in series.decisions if d.decision != PRUNE]
    gone = [d.checkpoint for d in series.decisions if d.decision == PRUNE]
    grid = series.grid
    known = f", interval {grid.interval}" if grid.interval is not None else ""
    if grid.interval_from and grid.interval_from.startswith("inferred"):
        known += f", {grid.interval_from}"
    text = f"{_plural(len(series.decisions), 'checkpoint')} of {grid.template.text}{known}; keeping {_steps(kept)}"
    if grid.max_keep is None:
        return f"{text}: no --max-keep, so nothing is pruned"
    if not gone:
        return f"{text}, pruning none"
    return f"{text}, pruning {len(gone)}, freeing {human_bytes(sum(c.allocated_bytes for c in gone))}"


def _steps(checkpoints: Sequence[Checkpoint]) -> str:
    """The steps, a regular run of three or more as `first..last`."""
    steps = [c.step for c in checkpoints]
    gaps = {after - before for before, after in itertools.pairwise(steps)}
    if len(steps) > 2 and len(gaps) == 1:
        return f"{steps[0]}..{steps[-1]}"
    shown = steps if len(steps) <= 8 else [*steps[:3], "...", *steps[-3:]]
    return ", ".join(map(str, shown)) or "none"


def _rule_text(series: SeriesPlan) -> str:
    grid = series.grid
    if grid.rule is None:
        return f"{grid.template.text}: no --max-keep, so nothing is pruned"
    text = f"{grid.template.text}: rule {grid.rule.name}, max-keep {grid.rule.max_keep}"
    return f"{text}, interval {grid.interval}, {grid.interval_from}" if grid.interval is not None else text


def _totals(decisions: Sequence[Decision]) -> str:
    parts = []
    for word, name in ((KEEP, "keep"), (PRUNE, "prune"), (SKIP, "skip")):
        chosen = [d.checkpoint for d in decisions if d.decision == word]
        if chosen or word != SKIP:
            parts.append(f"{name} {len(chosen)} ({human_bytes(sum(c.allocated_bytes for c in chosen))})")
    return ", ".join(parts)


def _series_json(series: SeriesPlan) -> dict[str, Any]:
    grid = series.grid
    return {
        "template": grid.template.text,
        "unit": grid.template.unit,
        "rule": grid.rule.name if grid.rule else None,
        "max_keep": grid.max_keep,
        "interval": grid.interval,
        "interval_from": grid.interval_from,
        "beyond": len(series.beyond),
        "beyond_bytes": sum(c.allocated_bytes for c in series.beyond),
        "checkpoints": [
            {
                "name": d.checkpoint.name,
                "step": d.checkpoint.step,
                "state": d.checkpoint.state.value,
                "evidence": d.checkpoint.evidence,
                "decision": d.decision,
                "reasons": list(d.reasons),
                "size_bytes": d.checkpoint.size_bytes,
                "written": _iso(d.checkpoint.mtime_ns),
            }
            for d in series.decisions
        ],
    }


def _iso(mtime_ns: int) -> str | None:
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None  # a time beyond the calendar


def _names(survey: Survey, newest: Checkpoint) -> bool:
    return (
        bool(survey.pointed) and survey.pointed.rstrip("/").rpartition("/")[2] == newest.name
        if survey.pointed
        else False
    )


def _plural(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
