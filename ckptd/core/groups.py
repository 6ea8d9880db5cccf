"""Several files that are one checkpoint: `G_{}.pth + D_{}.pth`, and names with a field for ranks.

Pure. The files of one checkpoint agree on the step, and on every other field that all their templates have.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Union

from ..errors import UsageError
from . import fields
from .entry import Entry, entry_of_parts
from .fields import Fields, are_digits, parsed
from .naming import JOINT, Family, Names, Template, joined, refuse

Part = Union[Template, Fields]
_MOST_NAMED = 3


class Place(NamedTuple):
    """Where the file of one name belongs.

    step, agreed: which checkpoint it is of; agreed: what else all names of that say. part: which of the templates it is
    of, and in that the numbers of its fields for ranks. of: how many of these there are, where the name says so.
    """

    step: int
    agreed: tuple[str, ...]
    part: tuple[int, ...]
    of: int | None


def given(text: str) -> Names | Family:
    """What a template stands for that somebody has given. Raises UsageError, with the reason, for none."""
    fields.refuse_bare_star(text)
    try:
        return Group(text) if _is_group(text) else fields.given(text)
    except UsageError as error:
        if "}" in text.partition("+")[0] and JOINT not in text:
            raise UsageError(f"{error}; several files that are one checkpoint are joined with {JOINT!r}") from None
        raise


def series_called(text: str) -> Names:
    """The names of the series that is called `text`. Raises UsageError if none can be."""
    return Group(text) if _is_group(text) else fields.series_called(text)


@dataclass(frozen=True)
class Group:
    """The names of a series each checkpoint of which is several files. It is called as its first one.

    Raises UsageError, with the reason, for templates whose files cannot be told apart or be put together.
    """

    text: str
    parts: tuple[Part, ...] = field(init=False, repr=False, compare=False)
    _agreed: tuple[str, ...] = field(init=False, repr=False, compare=False)

    is_group = True

    def __post_init__(self) -> None:
        pieces = joined(self.text)
        parts = tuple(_part(self.text, piece) for piece in pieces)
        keys = [set(part.agreeing) if isinstance(part, Fields) else set() for part in parts]
        object.__setattr__(self, "parts", parts)
        object.__setattr__(self, "_agreed", tuple(sorted(set.intersection(*keys))))
        object.__setattr__(self, "text", JOINT.join(part.text for part in parts))
        _refuse_unlike(self.text, pieces)
        for at, part in enumerate(parts):
            for other in parts[:at]:
                if part.text == other.text:
                    refuse(self.text, f"it names {part.text} twice")
                if _share_a_name(part, other):
                    refuse(self.text, f"a name can be of {other.text} and of {part.text} too, so nobody could tell "
                                      "which part of a checkpoint it is")  # fmt: skip

    @property
    def unit(self) -> str:
        return self.parts[0].unit

    @property
    def has_grid(self) -> bool:
        return all(part.has_grid for part in self.parts)

    def step_of(self, name: str) -> int | None:
        """The step that `name`, a part's, was written for; None if it is no part's."""
        for part in self.parts:
            step = part.step_of(name)
            if step is not None:
                return step
        return None

    def name_of(self, step: int) -> str:
        """The name of the first part, which is the checkpoint's; only where there is a grid."""
        return self.parts[0].name_of(step)

    def metrics_of(self, name: str) -> dict[str, float]:
        """What `name`, a part's, says in numbers."""
        return next((part.metrics_of(name) for part in self.parts if part.step_of(name) is not None), {})

    @property
    def fixed_head(self) -> str | None:
        return self.parts[0].fixed_head

    @property
    def heads(self) -> tuple[str | None, ...]:
        """What stands before the first digit of the names of each part, as `fixed_head`."""
        return tuple(part.fixed_head for part in self.parts)

    @property
    def sample(self) -> str:
        return self.parts[0].sample

    def place_of(self, name: str) -> Place | None:
        """Where the file called `name` belongs, None if to none of these."""
        for at, part in enumerate(self.parts):
            step = part.step_of(name)
            if step is not None:
                if isinstance(part, Template):
                    return Place(step, (), (at,), None)
                said, (numbers, of) = part.said_in(name), part.part_of(name)
                return Place(step, tuple(said[key] for key in self._agreed), (at, *numbers), of)
        return None

    @property
    def tells_ranks(self) -> bool:
        """Whether there are parts of which no name says how many there are."""
        return any(part.tells_parts and not part.tells_how_many for part in self._with_ranks)

    def missing(self, places: Iterable[Place], step: int) -> list[str]:
        """What is certainly missing of a checkpoint, for a person to read, where the parts of `places` are there."""
        missing = []
        places = list(places)
        for at, part in enumerate(self.parts):
            here = [place for place in places if place.part[0] == at]
            if not here:
                missing.append(part.name_of(step) if isinstance(part, Template) else f"{part.text} of {step}")
            elif here[0].of is not None:
                missing += _lacking([place.part[1:] for place in here], here[0].of, part.text)
        return missing

    @property
    def _with_ranks(self) -> Sequence[Fields]:
        return [part for part in self.parts if isinstance(part, Fields)]


def put_together(parts: Iterable[Entry], odd: Iterable[str], groups: Mapping[str, Group]) -> list[Entry]:
    """The checkpoints of `groups`, by text, to which the files `parts` belong.

    odd: names that no file bears, but a symlink or a directory. Where one is a part's that is noted on its checkpoint,
    as nobody can say then whether that is whole.
    """
    beside = {_key_of(name, group): name for name in odd for group in groups.values()}
    placed: dict[_Key, list[tuple[tuple[int, ...], str, Entry]]] = {}
    for entry in parts:
        place = groups[entry.series].place_of(entry.name)
        if place is not None:
            key = (entry.series, place.step, place.agreed)
            placed.setdefault(key, []).append((place.part, entry.name, entry))
    made = []
    for key, those in placed.items():
        there = [entry for _, _, entry in sorted(those, key=lambda each: each[:2])]
        group, step = groups[there[0].series], there[0].step
        name = group.name_of(step) if group.has_grid else there[0].name
        made.append(replace(entry_of_parts(group.text, name, step, there), linked=beside.get(key, "")))
    return made


_Key = tuple[str, int, tuple[str, ...]]  # which checkpoint of which series


def _key_of(name: str, group: Group) -> _Key | None:
    place = group.place_of(name)
    return (group.text, place.step, place.agreed) if place is not None else None


def _is_group(text: str) -> bool:
    return len(joined(text)) > 1 or any(each.tells_parts for each in parsed(text)[1])


def _part(text: str, piece: str) -> Part:
    """One of the templates of a group."""
    if "{" not in piece and "<" not in piece:
        refuse(text, f"its part {piece!r} has no field: each file of a checkpoint has the step in its name")
    own = parsed(piece)[1] if "<" not in piece else []
    told = next((each.source for each in own if each.tells_apart), None)
    if told:
        refuse(text, f"its field {told} tells series apart, and the files of one checkpoint are of one series: give a "
                     "number its format, as in {acc:.2f}, or write {*}")  # fmt: skip
    if any(each.tells_parts for each in own):
        return Fields(piece)
    return fields.series_called(piece) if "<" not in piece else Template(piece)


def _refuse_unlike(text: str, pieces: Sequence[str]) -> None:
    """Raise UsageError where the steps of the parts are not numbers of one kind."""
    counts = {}
    for piece in pieces:
        if "<" not in piece:
            _, own, at = parsed(piece)
            what = own[at].counts or ("a date" if own[at].is_time else "")
            counts[what] = piece
    counts.pop("", None)
    if len(counts) > 1:
        (one, first), (other, second), *_ = counts.items()
        refuse(text, f"{first} counts {one} and {second} counts {other}: the files of one checkpoint have one step")


def _lacking(numbers: Sequence[tuple[int, ...]], of: int, template: str) -> list[str]:
    """What is missing of `of` parts, counted from 0 or from 1."""
    if len(numbers[0]) > 1:
        count = of - len(set(numbers))
        return [f"{count} of {of} parts ({template})"] if count > 0 else []
    there = {number for (number,) in numbers}
    first = 1 if of in there and 0 not in there else 0
    count = of - sum(first <= number < first + of for number in there)
    lacking = itertools.islice((n for n in itertools.count(first) if n not in there), min(count, _MOST_NAMED))
    more = f" and {count - _MOST_NAMED} more" if count > _MOST_NAMED else ""
    return [f"part {', '.join(map(str, lacking))}{more} of {of} ({template})"] if count else []


def _share_a_name(one: Names, other: Names) -> bool:
    """Whether some name may be of both: fields are taken for any text of their characters, so rather too often."""
    first, second = _pattern_of(one.text), _pattern_of(other.text)
    ahead, met = [(0, 0)], {(0, 0)}
    while ahead:
        i, j = ahead.pop()
        if i == len(first) and j == len(second):
            return True
        ways = []
        if i < len(first) and first[i].repeats:
            ways.append((i + 1, j))
        if j < len(second) and second[j].repeats:
            ways.append((i, j + 1))
        if i < len(first) and j < len(second) and first[i].overlaps(second[j]):
            ways.append((i + (not first[i].repeats), j + (not second[j].repeats)))
        for way in ways:
            if way not in met:
                met.add(way)
                ahead.append(way)
    return False


class _Sign(NamedTuple):
    """One character of a name, or any number of them. which: those that it can be, None for any."""

    which: frozenset[str] | None
    repeats: bool = False

    def overlaps(self, other: _Sign) -> bool:
        return self.which is None or other.which is None or not self.which.isdisjoint(other.which)


def _pattern_of(text: str) -> list[_Sign]:
    literals, own, _ = parsed(text)
    signs = [_Sign(frozenset(each)) for each in literals[0]]
    for each, literal in zip(own, literals[1:]):
        which = frozenset(each.alphabet) if are_digits(each) else None
        signs += [_Sign(which), _Sign(which, repeats=True)]
        signs += [_Sign(frozenset(character)) for character in literal]
    return signs
