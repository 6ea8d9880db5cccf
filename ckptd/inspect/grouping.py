"""Is a checkpoint of several files complete, incomplete or in flight: judged as one. Reads, never unpickles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ..core.checkpoint import State
from ..core.entry import Entry
from ..core.groups import Group
from .verdict import Settling, Verdict, age_seconds, judge


def judge_group(entry: Entry, names: Group, *, dir_fd: int, settling: Settling, now_ns: int) -> Verdict:
    """Judge a checkpoint of several files: whole where each of them is, and none is missing. Raises as `judge`."""
    verdicts = [judge(part, dir_fd=dir_fd, settling=settling, now_ns=now_ns) for part in entry.parts]
    judged = list(zip(entry.parts, verdicts))
    known = all(verdict.known for verdict in verdicts)
    flying = [(part, verdict) for part, verdict in judged if verdict.state is State.IN_FLIGHT]
    if flying:
        # What is open for writing has no time by which it is done.
        part, last = max(flying, key=lambda each: float("inf") if each[1].settles_s is None else each[1].settles_s)
        return replace(last, structure=f"{part.name}: {last.structure}", known=known)
    doubt = next(_doubts(entry, names), "")
    if doubt:
        return Verdict(State.DOUBTFUL, doubt, known)
    broken = next((each for each in judged if each[1].state is State.INCOMPLETE), None)
    if broken:
        return replace(broken[1], structure=f"{broken[0].name}: {broken[1].structure}", known=known)
    missing = names.missing([place for part in entry.parts if (place := names.place_of(part.name))], entry.step)
    if missing:
        text, age_s, quiet_s = f"{missing[0]} is missing", age_seconds(entry, now_ns), settling.quiet_s()
        if age_s < quiet_s:  # the job may be about to write it
            return Verdict(State.IN_FLIGHT, text, known, f"changed {age_s:.0f} s ago", quiet_s - age_s)
        return Verdict(State.INCOMPLETE, text, known)
    unverifiable = any(verdict.state is State.UNVERIFIABLE for verdict in verdicts)
    return Verdict(
        State.UNVERIFIABLE if unverifiable else State.COMPLETE, _text([verdict.structure for verdict in verdicts]),
        known, checksum=any(verdict.checksum for verdict in verdicts), kind=verdicts[0].kind,
        hasty=any(verdict.hasty for verdict in verdicts),
    )  # fmt: skip


def _doubts(entry: Entry, names: Group) -> Iterator[str]:
    """Why nobody can say whether these files are one whole checkpoint."""
    if entry.linked:
        yield f"{entry.linked} is not a file of its own, so it was not checked: kept, and not relied on"
    inodes: dict[tuple[int, int], str] = {}
    places: dict[tuple[int, ...], str] = {}
    for part in entry.parts:
        other = inodes.setdefault((part.device, part.inode), part.name)
        if other != part.name:
            yield f"{other} and {part.name} are one file by two names: kept, and not relied on"
        place = names.place_of(part.name)
        other = places.setdefault(place.part, part.name) if place else part.name
        if other != part.name:
            yield f"{other} and {part.name} are both the same part of it: kept, and not relied on"


def _text(structures: Sequence[str]) -> str:
    kinds = dict.fromkeys(structures)
    each = "each " if len(kinds) == 1 else ""
    return f"{len(structures)} files, {each}{', '.join(kinds)}"
