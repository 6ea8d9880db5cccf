"""What people and programs read of a survey: the summary line, the table, the JSON (docs/design.md, section 10).

Only text; nothing is decided here.
"""

from __future__ import annotations

import itertools
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

from ..core.budget import Budget, Floor
from ..core.checkpoint import Checkpoint
from ..core.memory import BROUGHT_BACK
from ..core.naming import TIME
from ..core.plan import KEEP, PRUNE, SKIP, Decision, SeriesPlan
from ..core.policy import Policy, Stepped
from ..core.reason import Reason
from ..core.replay import Source
from ..core.survey import Survey
from .human import human_age, human_bytes, plural
from .timeline import timeline

_MOST_NAMES = 3


def summary(survey: Survey, work_dir: str, policy: Policy) -> str:
    """One line: what is there, what is kept of it, what will be freed, and how more could be."""
    parts = [_series_summary(series, has_budget=policy.has_budget) for series in survey.plan.series if series.decisions]
    if not parts:
        return f"watching {work_dir}: no checkpoint yet"
    text = f"watching {work_dir}: " + "; ".join(parts)
    if any(_has_more_to_free(series) for series in survey.plan.series):
        command = ["ckptd", "prune", work_dir, *options_of(replace(policy, rule="newest"))]
        text += f". To free what is beyond, stop this and run `{shlex.join(command)}`"
    return text


def will_happen(survey: Survey) -> Iterator[str]:
    """A line for each checkpoint that a pass would prune."""
    for decision in survey.plan.prune:
        yield f"would prune {decision.checkpoint.name}: {decision.reasons[0]}"


def as_json(survey: Survey, work_dir: str) -> dict[str, Any]:
    """The plan as docs/design.md gives it in section 10. Sizes in bytes, `written` in ISO 8601 (UTC)."""
    held = survey.held_back
    return {
        "work_dir": work_dir,
        "pointer": survey.pointed,
        "series": [_series_json(series, held) for series in survey.plan.series],
        "unread": sorted(survey.unread),
        "left_alone": [{"name": each.name, "reason": each.reason} for each in survey.left_alone],
        "advice": list(survey.advice),
        "bytes": _bytes(survey),
    }


def as_table(survey: Survey, work_dir: str, now_s: float, *, width: int | None = None) -> Iterator[str]:
    """The plan for a person: a row for each checkpoint, then what it adds up to.

    width: of the terminal, in characters, for a timeline; None for none.
    """
    for series in survey.plan.series:
        if not series.decisions:
            continue
        yield f"{work_dir}  {rule_text(series, budget=survey.plan.budget)}"
        rows = [("CHECKPOINT", "STATE", "SIZE", "AGE", "DECISION", "REASON")]
        for d in series.decisions:
            c = d.checkpoint
            age = human_age(now_s - c.mtime_ns / 1e9)
            rows.append((_named(c), c.state.value, human_bytes(c.size_bytes), age, d.decision, "; ".join(d.reasons)))
        yield from columns(rows, right=(2, 3))
        if width is not None:
            yield ""
            yield from (f"  {line}" for line in timeline(series, width=width - 2))
            yield ""
        yield "  " + _totals(series)
        yield ""
    if survey.trash_bytes:
        yield f"in the trash: {human_bytes(survey.trash_bytes)}"
    for each in survey.left_alone:
        yield f"left alone: {each.name} ({each.reason})"
    yield from _held_back(survey.held_back)
    if not survey.plan.decisions and not survey.left_alone:
        yield f"{work_dir}: no checkpoint there"
    for text in survey.advice:
        yield f"note: {text}"
    newest = survey.plan.newest
    if newest is not None:
        yield f"pointer: {survey.pointed or 'none yet'}" + (
            "" if survey.pointed_name == newest.name else f" (would move to {newest.name})"
        )


def _named(checkpoint: Checkpoint) -> str:
    """What a row is called: of several files the first two, or the first and how many more there are."""
    names = [file.name for file in checkpoint.entry.files]
    if len(names) < 3 and names[0] == checkpoint.name:
        return " + ".join(names)
    return f"{checkpoint.name} and {plural(len(set(names) - {checkpoint.name}), 'more file')}"


def columns(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> Iterator[str]:
    """Rows as aligned columns; those in `right` stand flush right. No trailing blanks."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        cells = (
            cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )
        yield "  " + "  ".join(cells).rstrip()


def _series_summary(series: SeriesPlan, *, has_budget: bool) -> str:
    kept = [d.checkpoint for d in series.decisions if d.decision != PRUNE]
    gone = [d.checkpoint for d in series.decisions if d.decision == PRUNE]
    grid = series.grid
    known = f", interval {grid.interval}" if grid.interval is not None else ""
    if grid.source is Source.INFERRED:
        known += f", {grid.interval_from}"
    text = f"{plural(len(series.decisions), 'checkpoint')} of {grid.template.text}{known}"
    text += f"; keeping {_steps_of(kept, grid.template.unit)}"
    if series.beyond:
        beyond = human_bytes(sum(c.allocated_bytes for c in series.beyond))
        text += f", {len(series.beyond)} of them beyond --max-keep {grid.max_keep} ({beyond})"
    if grid.max_keep is None and not has_budget:
        return f"{text}: no --max-keep, so nothing is pruned"
    text += f", pruning {len(gone)}" if gone else ", pruning none"
    if grid.waits_for_end:
        text += " before the next save, or before the run has ended"
    return f"{text}, freeing {human_bytes(sum(c.allocated_bytes for c in gone))}" if gone else text


def _has_more_to_free(series: SeriesPlan) -> bool:
    """Whether the rule `newest` would free some of what the stepped one leaves beyond K."""
    newest = max((d for d in series.decisions if d.checkpoint.state.whole), key=lambda d: d.order, default=None)
    beyond = {c.name for c in series.beyond} if isinstance(series.grid.rule, Stepped) else set()
    return newest is not None and any(
        d.order != BROUGHT_BACK and d.checkpoint.step <= newest.checkpoint.step
        for d in series.decisions
        if d.checkpoint.name in beyond
    )


def _steps_of(checkpoints: Sequence[Checkpoint], unit: str) -> str:
    return ", ".join(c.name for c in checkpoints[-_MOST_NAMES:]) or "none" if unit == TIME else steps(checkpoints)


def steps(checkpoints: Sequence[Checkpoint]) -> str:
    """The steps, a regular run of three or more as `first..last`."""
    numbers = [c.step for c in checkpoints]
    gaps = {after - before for before, after in itertools.pairwise(numbers)}
    if len(numbers) > 2 and len(gaps) == 1:
        return f"{numbers[0]}..{numbers[-1]}"
    shown = numbers if len(numbers) <= 8 else [*numbers[:3], "...", *numbers[-3:]]
    return ", ".join(map(str, shown)) or "none"


def rule_text(series: SeriesPlan, *, budget: Budget | None = None) -> str:
    grid = series.grid
    if grid.rule is None:
        rule = f"no --max-keep, only {budget.option}" if budget else "no --max-keep, so nothing is pruned"
        return f"{grid.template.text}: {rule}"
    text = f"{grid.template.text}: rule {grid.rule.name}, max-keep {grid.rule.max_keep}"
    return f"{text}, interval {grid.interval}, {grid.interval_from}" if grid.interval is not None else text


def policy_text(policy: Policy) -> str:
    """The policy in force, what was not asked for included, as one line."""
    none = "as many as fit" if policy.has_budget else "as many as a run declares"
    keeps = [f"the {policy.max_keep} newest of each series"] if policy.max_keep else [none]
    keeps += [str(keeper) for keeper in policy.keepers]
    budget = f"at most {human_bytes(policy.max_bytes)}" if policy.max_bytes else ""
    floor = _floor_text(policy.min_free) if policy.min_free else ""
    interval = f"interval {policy.interval}" if policy.interval else "interval as declared or inferred"
    names = f"names {' '.join(policy.templates)}" if policy.templates else ""
    layouts = f"layouts {' '.join(policy.layouts)}" if policy.layouts else ""
    settle = f"settle {policy.settle_s:g}s" if policy.settle_s is not None else ""
    trash = "trash freed at once, an hour after a large prune"
    if policy.trash_ttl_s is not None:
        trash = f"trash kept {policy.trash_ttl_s:g}s"
    parts = [f"keep {', '.join(keeps)}", budget, floor, f"rule {policy.rule}", interval, names, layouts, settle,
             f"verify {policy.verify}", trash, f"pointer {policy.pointer}"]  # fmt: skip
    return "policy: " + "; ".join(part for part in parts if part)


def _floor_text(floor: Floor) -> str:
    return f"at least {floor if floor.percent else human_bytes(floor.size_bytes)} of the disk free"


def options_of(policy: Policy) -> list[str]:
    """The options that give this policy again."""
    options: list[str] = []
    default = Policy()
    for name, option in (
        ("max_keep", "--max-keep"), ("interval", "--interval"), ("rule", "--rule"), ("settle_s", "--settle"),
        ("verify", "--verify"), ("trash_ttl_s", "--trash-ttl"), ("pointer", "--pointer"),
        ("keep_every", "--keep-every"), ("keep_within_s", "--keep-within"), ("max_bytes", "--max-bytes"),
        ("min_free", "--min-free"),
    ):  # fmt: skip
        value = getattr(policy, name)
        if value != getattr(default, name):
            options += [option, f"{value:.12g}" if isinstance(value, float) else str(value)]
    for keeper in policy.keep_best:
        options += str(keeper).split(" ", 1)
    for template in policy.templates:
        options += ["--template", template]
    for layout in policy.layouts:
        options += ["--layout", layout]
    return options


def _totals(series: SeriesPlan) -> str:
    parts = []
    for word, name in ((KEEP, "keep"), (PRUNE, "prune"), (SKIP, "skip")):
        chosen = [d.checkpoint for d in series.decisions if d.decision == word]
        if not chosen and word == SKIP:
            continue
        text = f"{name} {len(chosen)} ({human_bytes(sum(c.allocated_bytes for c in chosen))})"
        if word == KEEP and series.beyond:
            beyond = human_bytes(sum(c.allocated_bytes for c in series.beyond))
            text += f", {len(series.beyond)} of them beyond --max-keep ({beyond})"
        parts.append(text)
    return ", ".join(parts)


def _held_back(held: Mapping[str, Reason]) -> Iterator[str]:
    """A line for each thing that is waited for."""
    waiting: dict[Reason, list[str]] = {}
    for name, reason in held.items():
        waiting.setdefault(reason, []).append(name)
    for reason, names in waiting.items():
        yield f"held back: {', '.join(names) if len(names) <= _MOST_NAMES else f'{len(names)} to prune'} ({reason})"


def _bytes(survey: Survey) -> dict[str, int]:
    """What the plan adds up to on the disk."""

    def of(decisions: Sequence[Decision]) -> int:
        return sum(d.checkpoint.allocated_bytes for d in decisions)

    return {
        "kept": of([d for d in survey.decisions if d.decision != PRUNE]),
        "to_free": of(survey.plan.prune),
        "trash": survey.trash_bytes,
        "beyond": sum(c.allocated_bytes for series in survey.plan.series for c in series.beyond),
    }


def _series_json(series: SeriesPlan, held: Mapping[str, Reason]) -> dict[str, Any]:
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
                "files": [file.name for file in d.checkpoint.entry.files],
                "step": d.checkpoint.step,
                "state": d.checkpoint.state.value,
                "evidence": d.checkpoint.evidence,
                "metrics": {name: _finite(score) for name, score in d.checkpoint.metrics},
                "decision": d.decision,
                "reasons": list(d.reasons),
                "why": [reason_json(reason) for reason in d.reasons],
                "held_back": reason_json(held[d.checkpoint.name]) if d.checkpoint.name in held else None,
                "size_bytes": d.checkpoint.size_bytes,
                "written": _iso(d.checkpoint.mtime_ns),
            }
            for d in series.decisions
        ],
    }


def reason_json(reason: Reason) -> dict[str, str]:
    return {"kind": reason.kind.value, "text": reason}


def _finite(score: float) -> float | str:
    """JSON has no NaN and no infinity: there they are text."""
    return score if math.isfinite(score) else str(score)


def _iso(mtime_ns: int) -> str | None:
    try:
        return datetime.fromtimestamp(mtime_ns / 1e9, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return None  # a time beyond the calendar
