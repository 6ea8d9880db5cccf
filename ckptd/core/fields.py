"""Templates with several fields, as they stand in people's code: `weights.{epoch:02d}-{val_loss:.2f}.h5`.

Pure. One field is the step. Such a series has no grid: a name says more than its step, and several can say the same.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from dataclasses import field as attribute

from ..errors import UsageError
from . import times
from .formats import COUNTERS, Field, Role, among_parts, as_step, behind, field_of
from .naming import LONGEST_NAME_BYTES, TIME, Family, Names, Template, escaped, joined, pieces_of, refuse, refuse_unfit
from .reading import Reader

_OF = re.compile("[-_.]of[-_.]0*([1-9][0-9]*)(?![0-9])")


@dataclass(frozen=True)
class Fields:
    """The names of one series, in which several fields differ from save to save.

    Raises UsageError, with the reason, for a template from whose names no step can be read back.
    """

    text: str
    _literals: Sequence[str] = attribute(init=False, repr=False, compare=False)
    _fields: Sequence[Field] = attribute(init=False, repr=False, compare=False)
    _step: int = attribute(init=False, repr=False, compare=False)
    _reader: Reader = attribute(init=False, repr=False, compare=False)

    is_group = False

    def __post_init__(self) -> None:
        literals, fields, step = parsed(self.text)
        if any(each.role is Role.TELLS for each in fields):
            refuse(self.text, "it is about several series")
        object.__setattr__(self, "_literals", literals)
        object.__setattr__(self, "_fields", fields)
        object.__setattr__(self, "_step", step)
        object.__setattr__(self, "_reader", Reader(literals, fields))
        if len(self.sample.encode("utf-8", "surrogateescape")) > LONGEST_NAME_BYTES:
            refuse(self.text, f"its names are longer than {LONGEST_NAME_BYTES} bytes")

    @property
    def unit(self) -> str:
        return _unit(self._fields[self._step])

    @property
    def has_grid(self) -> bool:
        return False

    def step_of(self, name: str) -> int | None:
        """The step that `name` was written for, or None if the name does not belong to this series."""
        texts = self._reader.read(name)
        return None if texts is None else int(self._fields[self._step].read(texts[self._step]) or 0)

    def name_of(self, step: int) -> str:
        raise ValueError(f"{self.text!r} has no grid: a name is more than its step")

    def metrics_of(self, name: str) -> dict[str, float]:
        """The scores in `name`, by field; nan and inf are numbers too."""
        scores = {each.key: each.read(text) for each, text in self._texts(name) if each.role in (Role.SCORE, Role.OPEN)}
        return {key: float(score) for key, score in scores.items() if key and score is not None}

    def part_of(self, name: str) -> tuple[tuple[int, ...], int | None]:
        """What tells the files of one checkpoint apart in `name`, the numbers of its fields for ranks, shards, parts;
        and how many files that checkpoint is, where the name says so."""
        texts = self._texts(name)
        numbers = tuple(int(each.read(text) or 0) for each, text in texts if each.role is Role.PART)
        told = next((int(each.read(text) or 0) for each, text in texts if each.role is Role.OF), None)
        return numbers, told if told is not None else self._of

    def said_in(self, name: str) -> dict[str, str]:
        """What `name` says in the fields that `agreeing` names."""
        said = [(each.key, each.read(text)) for each, text in self._texts(name)]
        return {key: str(value) for key, value in said if key in self.agreeing}

    @property
    def agreeing(self) -> Sequence[str]:
        """The fields beside the step that say the same of all files of one checkpoint."""
        others = [each for at, each in enumerate(self._fields) if at != self._step]
        return [each.key for each in others if each.key and each.role not in (Role.PART, Role.ANY)]

    @property
    def tells_parts(self) -> bool:
        """Whether several names can be of one checkpoint."""
        return any(each.role is Role.PART for each in self._fields)

    @property
    def tells_how_many(self) -> bool:
        """Whether each name says how many files its checkpoint is."""
        return self._of is not None or any(each.role is Role.OF for each in self._fields)

    @property
    def _of(self) -> int | None:
        """How many parts there are by what stands behind a part's number: `-of-00004`."""
        behind = zip(self._fields, self._literals[1:])
        found = [_OF.match(literal) for each, literal in behind if each.role is Role.PART]
        return next((int(match[1]) for match in found if match), None)

    @property
    def fixed_head(self) -> str | None:
        head, first = self._literals[0], self._fields[0].pattern
        is_digit = first is not None and first.startswith(("0|", "[0-9]"))
        return head if is_digit and not re.search("[0-9]", head) else None

    @property
    def sample(self) -> str:
        return self._literals[0] + "".join(f.sample + literal for f, literal in zip(self._fields, self._literals[1:]))

    def _texts(self, name: str) -> list[tuple[Field, str]]:
        return list(zip(self._fields, self._reader.read(name) or ()))


def given(text: str) -> Names | Family:
    """What a template stands for that somebody has given. Raises UsageError, with the reason, for none."""
    literals, fields, step = parsed(text)
    if any(each.tells_apart for each in fields):
        return Family(text, _unit(fields[step]), _Telling(literals, fields, step).match)
    return series_called(text)


def series_called(text: str) -> Template | Fields:
    """The names of the series that is called `text`. Raises UsageError if none can be."""
    literals, fields, _ = parsed(text)
    if len(fields) > 1 or fields[0].role is not Role.COUNTER:
        return Fields(text)
    before, behind = map(escaped, literals)
    return Template(f"{before}{{:{fields[0].spec}}}{behind}" if fields[0].spec else f"{before}{{}}{behind}")


def _unit(step: Field) -> str:
    return TIME if step.role is Role.TIME else step.counts or step.key or "step"


class _Telling:
    """Reads the names of a template of which some fields tell series apart.

    A field of which nothing is known is a score where it holds a number with a point; any other text of it makes a
    series, as a field for a text does.
    """

    def __init__(self, literals: Sequence[str], fields: Sequence[Field], step: int) -> None:
        self._literals, self._fields, self._step = literals, fields, step
        self._readers = [Reader(literals, fields)]
        if any(each.role is Role.OPEN for each in fields):
            self._readers.append(Reader(literals, [_as_text(each) for each in fields]))
        self._telling = [at for at, each in enumerate(fields) if each.tells_apart]
        self._known: dict[tuple[str, ...], Names | None] = {}

    def match(self, name: str) -> tuple[Names, int] | None:
        """The series of `name` and its step; None if it is none of these."""
        texts = next((texts for reader in self._readers if (texts := reader.read(name)) is not None), None)
        if texts is None:
            return None
        told = {at: texts[at] for at in self._telling if _is_told_by(self._fields[at], texts[at])}
        key = tuple(told.get(at, "") for at in self._telling)  # no text is empty
        if key not in self._known:
            self._known[key] = self._series_of(told)
        names = self._known[key]
        step = self._fields[self._step].read(texts[self._step])
        return (names, int(step)) if names and step is not None else None

    def _series_of(self, told: Mapping[int, str]) -> Names | None:
        called = escaped(self._literals[0])
        for at, (each, literal) in enumerate(zip(self._fields, self._literals[1:])):
            called += (escaped(told[at]) if at in told else each.source) + escaped(literal)
        if len(joined(called)) > 1:
            return None  # it would be read again as the names of several files
        try:
            return series_called(called)
        except UsageError:  # such a text is too long, or the name has more than one reading with it
            return None


def _as_text(each: Field) -> Field:
    return each._replace(pattern=None, read=len) if each.role is Role.OPEN else each


def _is_told_by(each: Field, text: str) -> bool:
    is_score = each.role is Role.OPEN and each.pattern is not None and re.fullmatch(each.pattern, text)
    return each.tells_apart and not is_score


def are_digits(field: Field) -> bool:
    """Whether all that can stand for the field is of its alphabet."""
    return field.role in (Role.COUNTER, Role.PART, Role.OF)


def parsed(text: str) -> tuple[Sequence[str], Sequence[Field], int]:
    """The literals of a template, the fields between them, and which of these is the step."""
    try:
        pieces = pieces_of(text)
        fields = [field_of(each.name, each.spec, each.conversion) for each in pieces if each.name is not None]
    except ValueError as error:
        refuse(text, str(error))
    literals = [""]
    for piece in pieces:
        literals[-1] += piece.literal
        if piece.name is not None:
            literals.append("")
    refuse_unfit(text, *literals)
    if fields and not literals[-1] and fields[-1].role is Role.ANY:
        refuse(text, "it ends in any text, so what is half written, as in 'NAME.tmp', is of it too: give its end, "
                     "such as '{*}.pt'")  # fmt: skip
    fields = among_parts(literals, [behind(literal, each) for literal, each in zip(literals, fields)])
    at = _step_among(text, fields)
    try:
        fields[at] = as_step(fields[at])
    except ValueError as error:
        refuse(text, str(error))
    for before, after, literal in zip(fields, fields[1:], literals[1:]):
        _refuse_touching(text, before, after, literal)
    for each, head, tail in zip(fields, literals, literals[1:]):
        if (head and head[-1] in each.alphabet) or (tail and tail[0] in each.alphabet):
            refuse(text, f"its field {each.source} stands against other digits, so a name has more than one reading")
    return literals, fields, at


def _step_among(text: str, fields: Sequence[Field]) -> int:
    """The step: what is marked, or has no name; else the finest counter, else a date, else the only number."""
    if not fields:
        refuse(text, "it has no field: write {} for the step, as in 'epoch_{}.pth'")
    keys = [each.key for each in fields if each.key]
    twice = next((key for key in keys if keys.count(key) > 1), None)
    if twice:
        refuse(text, f"it has the field {twice} twice, where {{*}} would do for one of them")
    numbers = [each.role is Role.TELLS and each.pattern is not None for each in fields]
    ways = [
        [each.is_marked for each in fields],
        [each.role is Role.COUNTER and not each.key for each in fields],
        *([each.role is Role.COUNTER and each.counts == what for each in fields] for what in COUNTERS),
        [each.role is Role.TIME for each in fields],
        numbers,
        [each.role is Role.OPEN for each in fields],
    ]
    could_be = next((way for way in ways if any(way)), None)
    if could_be is None:
        refuse(
            text, "none of its fields counts the saves: call one step, iter, batch or epoch, or mark it, as in {n!step}"
        )
    if sum(could_be) > 1:
        sources = [each.source for each, could in zip(fields, could_be) if could]
        first = fields[could_be.index(True)]
        marked = f"{{{first.key or 'epoch'}!step{':' * bool(first.spec)}{first.spec}}}"
        refuse(text, f"{' and '.join(sources)} could each be the step: mark the one that is, as in {marked}")
    return could_be.index(True)


def refuse_bare_star(text: str) -> None:
    """Raise UsageError where a template holds a `*` that somebody has meant for any text."""
    try:
        bare = any("*" in piece.literal for piece in pieces_of(text))
    except ValueError as error:
        refuse(text, str(error))
    if bare:
        refuse(text, "a bare * in it is a plain character: write {*} for any text, and {} for the step")


def _refuse_touching(text: str, before: Field, after: Field, literal: str) -> None:
    """Raise UsageError where nobody could tell where one field ends and the next one begins."""
    both = f"its fields {before.source} and {after.source}"
    if not literal:
        refuse(text, f"nothing stands between {both}, so a name has more than one reading")
    if all(each.pattern is None or each.role is Role.OPEN for each in (before, after)):
        refuse(text, f"{both} can both be any text, so a name has more than one reading: give a number its format, "
                     "such as {loss:.2f}, or let one field stand for both")  # fmt: skip
    if before.pattern == times.PATTERN and not literal.strip(times.BETWEEN):
        refuse(text, f"{both} could both be parts of a date: say its form, as in {{time:%Y-%m-%d_%H-%M-%S}}")
    if literal == "." and before.role in (Role.SCORE, Role.OPEN) and not re.search(r"\.\d+[fF]$", before.spec):
        refuse(text, f"the point between {both} could belong to either: give the first a format such as ':.2f'")
