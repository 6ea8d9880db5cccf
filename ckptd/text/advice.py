"""What a person should know about a plan beyond its rows, with the way out where there is one."""

from __future__ import annotations

from collections.abc import Iterator

from ..core.budget import MIN_FREE, Budget
from ..core.memory import Memory
from ..core.plan import Plan, SeriesPlan
from ..core.policy import Policy
from ..core.reason import Kind
from ..core.schedule import WITNESSES
from .human import human_bytes

_MOST_ALONE = 3  # series of one checkpoint that may well be meant


def advice_on(decided: Plan, policy: Policy, first: bool, trusted: str | None) -> tuple[str, ...]:
    """What a person should know about this plan beyond its rows."""
    advice = []
    for series in decided.series:
        grid = series.grid
        if grid.waits:
            newest = f"{trusted}, which a pointer names," if trusted and first else "the last written"
            advice.append(
                f"{grid.template.text}: the order of writing and the order of steps disagree (a resumed run, or a "
                f"copied directory); {newest} counts as the newest, and nothing is pruned before a save is seen; "
                "to tell it by hand, touch them in the order they were saved"
            )
        if grid.ignored is not None:
            advice.append(ignored_text(series, decided.memory))
        if grid.rule is None:
            if series.decisions and not policy.has_budget:
                idle = "".join(f", and {keeper.option} has nothing to keep from" for keeper in policy.keepers[:1])
                advice.append(f"{grid.template.text}: no --max-keep is given or declared, so nothing is pruned{idle}")
            continue
        if grid.no_grid:
            advice.append(f"{grid.template.text}: its names have no grid to step on, so the rule `newest` applies")
        elif grid.interval is None and grid.template.has_grid:
            advice.append(
                f"{grid.template.text}: no interval is known yet, so the rule `newest` applies; --interval N gives one"
            )
        if series.beyond:
            advice.append(beyond_text(series))
        advice.extend(_unscored(series, policy))
    advice.extend(_told_apart(decided, policy))
    if decided.behind is not None:
        advice.append(decided.behind.text)
    if decided.budget is not None and decided.budget.short_bytes:
        advice.append(short_text(decided.budget))
    return tuple(advice)


def short_text(budget: Budget) -> str:
    """Why a budget cannot be met, and what to do about it."""
    if budget.option == MIN_FREE:
        return (
            f"--min-free {human_bytes(budget.floor_bytes)} cannot be met: {human_bytes(budget.short_bytes)} are missing"
            ", and nothing else may go; keep fewer (--max-keep, keepers, pins), or make room elsewhere on the disk"
        )
    return (
        f"--max-bytes {human_bytes(budget.limit_bytes)} cannot be met: what must stay takes "
        f"{human_bytes(budget.kept_bytes)}; keep fewer (--max-keep, keepers, pins), or give it more"
    )


def _unscored(series: SeriesPlan, policy: Policy) -> Iterator[str]:
    """Of each metric that a keeper goes by and no checkpoint has: with the ones there are, in case of a slip."""
    whole = [d.checkpoint for d in series.decisions if d.checkpoint.state.whole]
    known = sorted({metric for c in whole for metric, _ in c.metrics})
    for keeper in policy.keep_best:
        if whole and keeper.metric not in known:
            there = f" (there are {', '.join(known)})" if known else ""
            yield (
                f"{series.grid.template.text}: no checkpoint has the metric {keeper.metric}{there}; "
                f"{keeper.option} keeps all until one has"
            )


def _told_apart(decided: Plan, policy: Policy) -> Iterator[str]:
    """Of a template of which each name is a series: in case a field is meant that differs from save to save."""
    names = [series.decisions[0].checkpoint.name for series in decided.series if len(series.decisions) == 1]
    if len(names) < max(len(decided.series), _MOST_ALONE + 1):
        return
    for family in policy.families:
        count = sum(family.match(name) is not None for name in names)
        if count > _MOST_ALONE:
            yield (
                f"{family.text}: each of its {count} names is a series of its own, so none of them goes; "
                "write {*} for what counts nothing, or give a score its format, as in {acc:.0f}"
            )


def ignored_text(series: SeriesPlan, memory: Memory) -> str:
    """Why a declared schedule is not obeyed, and what to do about it."""
    text, ignored = series.grid.template.text, series.grid.ignored
    assert ignored is not None  # asked about nothing else
    last = ", ".join(map(str, memory.series[text].recent[-WITNESSES:]))
    return (
        f"{text}: ignored what a run has declared: the last saves ({last}) contradict its interval of "
        f"{ignored.interval}; give --max-keep and --interval, or let this run declare itself"
    )


def beyond_text(series: SeriesPlan) -> str:
    """What stays although K others would do, and for each why and the way out."""
    names = {c.name for c in series.beyond}
    kinds = [d.reasons[0].kind for d in series.decisions if d.checkpoint.name in names]
    brought, ahead, broken = (kinds.count(kind) for kind in (Kind.BROUGHT_BACK, Kind.AHEAD, Kind.BROKEN))
    others = len(kinds) - brought - ahead - broken
    parts = []
    if others:
        parts.append(f"{others} of them {_left_by_rule(series)}" if others < len(kinds) else _left_by_rule(series))
    if ahead:
        parts.append(f"{ahead} above the newest's step, until a run reaches them: delete them by hand, or wait")
    if brought:
        parts.append(f"{brought} copied or restored by hand, which no rule prunes: delete them by hand")
    if broken:
        parts.append(f"{broken} not on stable storage: see to the disk")
    freed = human_bytes(sum(c.allocated_bytes for c in series.beyond))
    head = f"{series.grid.template.text}: {len(series.beyond)} beyond --max-keep {series.grid.max_keep} ({freed})"
    return f"{head}: {'; '.join(parts)}"


def _left_by_rule(series: SeriesPlan) -> str:
    """Why the stepped rule has not pruned what another would."""
    other = "`--rule newest` goes by order of writing instead"
    if series.grid.waits_for_end:
        return f"a changed --max-keep acts at the next save, or once the run has ended; {other}"
    if series.grid.waits_for_interval:
        return (
            "a smaller --max-keep acts at the next save where the interval is only inferred; "
            f"`--interval {series.grid.interval}` has it act now, {other}"
        )
    return f"where the stepped rule does not reach; {other}"
