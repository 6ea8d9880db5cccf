"""Which checkpoint is to be resumed from: what the pointer should name.

Pure. It is the last that was written, of all series; but not a companion of it, which alone is of no use, and no save
that its framework has not named yet, where that names its saves when all of them is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .checkpoint import Checkpoint
from .memory import Seen
from .naming import Names
from .trackers import Told, stems_of

SAVES_THAT_REFUTE = 2  # whole ones, written later than a tracker that has not moved: then nobody keeps it up


class Latest(NamedTuple):
    """What a framework's own tracker names as its latest: a step of a series; and when it was written."""

    file: str
    series: str
    step: int
    written_ns: int


class Behind(NamedTuple):
    """Why `newest` is to be resumed from, and not what was written last: the tracker `file` does not name that yet."""

    file: str
    last: str
    newest: str

    @property
    def text(self) -> str:
        """For a person to read."""
        return (
            f"{self.last} is newer, and {self.file} does not name it yet; until it does, or two later saves are whole "
            f"that it does not name, {self.newest} is to be resumed from"
        )


class Newest(NamedTuple):
    """checkpoint: the one to resume from. behind: why that is not the last one, where it is not."""

    checkpoint: Checkpoint | None
    behind: Behind | None = None


def latest_of(told: Iterable[Told], series: Sequence[Names], there: Sequence[tuple[str, int]]) -> list[Latest]:
    """What frameworks call their latest, of those `series` that are looked for. there: the names and steps known."""
    return [
        Latest(each.file, names.text, step, each.written_ns)
        for each in told
        for newest in each.said.newest
        for names in series
        if (step := _step_in(names, newest, there)) is not None
    ]


def to_resume_from(
    found: Sequence[Checkpoint],
    seen: Mapping[str, Seen],
    *,
    templates: Sequence[str] = (),
    latest: Sequence[Latest] = (),
    pointed: str | None = None,
    now_ns: int = 0,
) -> Newest:
    """Of `found` the one that the pointer should name, and names by now `pointed`.

    templates: those that somebody has given, in their order. latest: what frameworks' own trackers say.
    """
    good = [c for c in found if c.relied_on]
    held = _not_named_yet(found, latest, pointed, now_ns)
    named = [c for c in good if c.name not in held]
    newest, last = _newest(named, seen), _newest(good, seen)
    if newest is None or last is None:
        return Newest(None)
    newest = _companion_of(newest, named, seen, templates)
    return Newest(newest, Behind(held[last.name].file, last.name, newest.name) if last.name in held else None)


def _step_in(names: Names, newest: str | int, there: Sequence[tuple[str, int]]) -> int | None:
    if isinstance(newest, int):
        return newest if any(step == newest and names.step_of(name) == step for name, step in there) else None
    step = names.step_of(newest)
    if step is not None:
        return step
    return next((at for name, at in there if newest in stems_of(name) and names.step_of(name) == at), None)


def _not_named_yet(
    found: Sequence[Checkpoint], latest: Sequence[Latest], pointed: str | None, now_ns: int
) -> dict[str, Latest]:
    """By name, what lies above the step that its framework names as its latest, if anything else of it is complete.

    A tracker counts while it is newer than the pointer: than the save that this names, not than the moment at which it
    was set, for we set it just after each save. And while it is kept up: two whole saves that are written later and
    leave it as it is refute it. Its time is that of its file; one in the future tells nothing, and then steps do.
    """
    held: dict[str, Latest] = {}
    for each in latest:
        of_series = [c for c in found if c.series == each.series]

        def is_later(c: Checkpoint, than: Latest = each) -> bool:
            return c.mtime_ns > than.written_ns if than.written_ns <= now_ns else c.step > than.step

        later = [c for c in of_series if c.state.whole and is_later(c)]
        is_refuted = len(later) >= SAVES_THAT_REFUTE or any(c.name == pointed for c in later)
        if not is_refuted and any(c.relied_on and c.step <= each.step for c in of_series):
            held.update((c.name, each) for c in of_series if c.step > each.step)
    return held


def _companion_of(
    newest: Checkpoint, good: Sequence[Checkpoint], seen: Mapping[str, Seen], templates: Sequence[str]
) -> Checkpoint:
    """What is saved together with `newest`, by a template that was given before its own; else `newest` itself.

    Two series are saved together if each step of the second is one of the first, but for the one that is being saved.
    """
    if newest.series not in templates:
        return newest
    steps = {text: {c.step for c in good if c.series == text} for text in templates}
    for first in templates[: templates.index(newest.series)]:
        shared = {step for step in steps[newest.series] if step <= max(steps[first], default=-1)}
        if shared and shared <= steps[first] and len(steps[newest.series] - shared) <= 1:
            return _newest([c for c in good if c.series == first], seen) or newest
    return newest


def _newest(found: Sequence[Checkpoint], seen: Mapping[str, Seen]) -> Checkpoint | None:
    return max(found, key=lambda c: seen[c.name].rank, default=None)
