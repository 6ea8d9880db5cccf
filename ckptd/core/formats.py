"""What one field of a template stands for, by its name and its format.

Pure. docs/names.md has the words that are known: what a template means is remembered with its series, so none of them
may come to mean something else.
"""

from __future__ import annotations

import math
import re
import string
from collections.abc import Callable, Sequence
from enum import Enum
from typing import NamedTuple, Union

from . import times
from .naming import STEP_MARK, Whole

# What counts the saves, the finest first: of several in a name the first of these is the step.
COUNTERS = ("step", "iter", "iteration", "batch", "epoch")
_SHORT = {"it": "iter", "ba": "batch", "ep": "epoch"}
PARTS = frozenset({"rank", "shard", "part", "tp", "pp", "dp", "mp"})
_SCORES = frozenset({"loss", "acc", "accuracy", "reward", "rew", "score", "error"})
_TIMES = frozenset({"time", "date", "datetime", "timestamp", "now"})
_TEXTS = frozenset({"name", "model", "run", "exp", "experiment", "tag"})
_EMPTY_WORDS = frozenset({"num", "number", "no", "idx", "index", "id", "count", "n", "item"})

# What `str` makes of a float, and what a fraction's format can.
_FRACTION = r"-?(?:[0-9]+\.[0-9]+(?:e[-+][0-9]+)?|[0-9]+e[-+][0-9]+|inf)|nan"
_NUMBER = rf"{_FRACTION}|-?[0-9]+"
_LOOSE = r" *[-+]?(?:[0-9][0-9,_]*(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|inf|nan|INF|NAN)%?"
_DECIMAL_SPEC = re.compile(r"(?:0?[=>])?[-+ ]?0?(?P<width>[1-9][0-9]*)?[,_]?(?:\.(?P<digits>[0-9]+))?[eEfFgG%]?")
_ZEROS_SPEC = re.compile("0([1-9][0-9]?)d?")
_DIRECTIVE = re.compile("%[A-Za-z]")
_WORLD = re.compile("(?:world(?:_?size)?|num_(?:ranks|shards|parts))[-_.=]?$")

Value = Union[int, float, None]


class Role(Enum):
    """What a field says of a checkpoint."""

    COUNTER = "counts the saves"
    TIME = "when it was saved"
    SCORE = "how good it is"
    PART = "which of the files of one checkpoint it is"
    OF = "how many files one checkpoint is"
    TELLS = "which series it belongs to"
    OPEN = "a score where it is a number with a point, or else which series"
    ANY = "nothing that matters"


class Field(NamedTuple):
    """A field of a template.

    key: its name, "" for none. source: as it stands in the template. sample: a text of it. pattern: what can be one,
    None for any text. read: what one says; None where the pattern fits it and it is none. counts: of a counter, what.
    alphabet: the characters that must not touch it, or its end could not be told. spec: its format.
    """

    key: str
    source: str
    spec: str
    role: Role
    sample: str
    pattern: str | None = None
    read: Callable[[str], Value] = len
    counts: str = ""
    alphabet: str = ""
    is_marked: bool = False

    @property
    def tells_apart(self) -> bool:
        """Whether some of its texts make a series of their own."""
        return self.role is Role.TELLS or self.role is Role.OPEN

    @property
    def tells_parts(self) -> bool:
        """Whether it tells the files of one checkpoint apart."""
        return self.role is Role.PART

    @property
    def is_time(self) -> bool:
        return self.role is Role.TIME


def field_of(name: str, spec: str, conversion: str) -> Field:
    """The field `{name!conversion:spec}`. Raises ValueError, with the reason, for one that cannot be read back."""
    source = f"{{{name}{'!' * bool(conversion)}{conversion}{':' * bool(spec)}{spec}}}"
    if name == "*":
        if spec or conversion:
            raise ValueError("{*} is any text, and takes no format")
        return Field("", source, spec, Role.ANY, "x")
    if "{" in spec or not spec.isprintable() or conversion not in ("", "s", STEP_MARK):
        raise ValueError(f"its field {source} must be plain: a name, and a format such as ':03d' or ':.2f'")
    key, word = _key_and_word(name)
    made = Field(key, source, spec, Role.TELLS, "x", is_marked=conversion == STEP_MARK)
    if _DIRECTIVE.search(spec) or (word in _TIMES and not spec.endswith("s")):
        return _time(made)
    if spec.endswith("s") or conversion == "s":
        return made
    if _DECIMAL_SPEC.fullmatch(spec) and (spec[-1:] in "eEfFgG%" or "." in spec) and spec:
        return _decimal(made)
    if word in _SCORES and spec:
        return _whole(made)._replace(role=Role.SCORE, pattern="-?[0-9]+", read=float)
    if word in _SCORES:
        return made._replace(role=Role.SCORE, sample="1", pattern=_NUMBER, read=float, alphabet=string.digits)
    if word in PARTS:
        return _whole(made)._replace(role=Role.PART)
    if word in COUNTERS or not key or made.is_marked:
        return as_step(made)._replace(counts=word)
    if spec:
        return _whole(made)._replace(pattern="-?[0-9]+", read=int)
    if word in _TEXTS:
        return made
    return made._replace(role=Role.OPEN, sample="0.5", pattern=_FRACTION, read=float, alphabet=string.digits)


def as_step(field: Field) -> Field:
    """The same field where it counts the saves. Raises ValueError, with the reason, where it cannot."""
    return field if field.role is Role.TIME else _whole(field)._replace(role=Role.COUNTER)


def behind(literal: str, field: Field) -> Field:
    """The same field as it is behind this literal text: what stands behind a `rank` tells parts, whatever its name."""
    is_free = field.role in (Role.ANY, Role.TELLS, Role.OPEN) and not field.is_marked
    if not is_free or not PARTS & set(re.findall("[a-z]+", literal.lower())[-1:]):
        return field
    return field._replace(role=Role.PART, sample="0", pattern="[0-9]+", read=int, alphabet=string.digits)


def among_parts(literals: Sequence[str], fields: Sequence[Field]) -> list[Field]:
    """The same fields, where one that says how many parts there are is known as that: `{shard}-of-{n}`, and what stands
    behind a `world_size` where others tell ranks."""
    if not any(each.tells_parts for each in fields):
        return list(fields)
    told = list(fields)
    for at, (literal, each) in enumerate(zip(literals, fields)):
        behind_of = at > 0 and told[at - 1].tells_parts and literal.strip("-_. ") == "of"
        if behind_of or (not each.is_marked and each.role is not Role.COUNTER and _WORLD.search(literal.lower())):
            whole = _whole(each) if each.spec else each._replace(pattern="[0-9]+", read=int, alphabet=string.digits)
            told[at] = whole._replace(role=Role.OF, sample=whole.sample if each.spec else "8")
    return told


def _whole(field: Field) -> Field:
    """A field of whole numbers that are not below zero."""
    whole, zeros = Whole.of(field.spec), _ZEROS_SPEC.fullmatch(field.spec)
    made = field._replace(sample=format(7, field.spec), read=whole.read, alphabet=string.digits)
    if field.spec in ("", "d"):
        return made._replace(pattern="0|[1-9][0-9]*", read=int)
    if zeros:
        return made._replace(pattern=f"[0-9]{{{zeros[1]}}}|[1-9][0-9]{{{zeros[1]},}}", read=int)
    odd = {*string.digits, *format(7, field.spec), *format(1234567, field.spec)}
    alphabet = "".join(sorted(odd | set(string.hexdigits if whole.base == 16 else "")))
    return made._replace(pattern=f"[{re.escape(alphabet)}]+", alphabet=alphabet)


def _decimal(field: Field) -> Field:
    spec = field.spec
    fields = _DECIMAL_SPEC.fullmatch(spec)
    if fields is None or len(fields["width"] or "") > 3 or len(fields["digits"] or "") > 2:
        raise ValueError(f"its field has the format {spec!r}, which no name can be read back from")

    def read(text: str) -> float | None:
        number = text.strip().replace(",", "").replace("_", "")
        value = float(number.rstrip("%")) / (100 if spec.endswith("%") else 1)
        # What was a percentage is not always the nearest fraction to it.
        near = (value, math.nextafter(value, math.inf), math.nextafter(value, -math.inf))
        return next((each for each in near if format(each, spec) == text), None)

    made = field._replace(role=Role.SCORE, sample=format(0.5, spec), pattern=_LOOSE, read=read, alphabet=string.digits)
    if re.fullmatch(r"\.[1-9][0-9]?f", spec):
        return made._replace(pattern=rf"-?(?:0|[1-9][0-9]*)\.[0-9]{{{spec[1:-1]}}}|-?inf|nan", read=float)
    return made


def _time(field: Field) -> Field:
    made = field._replace(role=Role.TIME, alphabet=string.digits)
    if not _DIRECTIVE.search(field.spec):
        return made._replace(pattern=times.PATTERN, read=times.read_time, sample="2024-05-01_12-30-45")
    pattern, read, sample = times.form_of(field.spec)
    return made._replace(pattern=pattern, read=read, sample=sample)


def _key_and_word(name: str) -> tuple[str, str]:
    """What a field is called, and the word that tells what it is: of `self.global_step` the `step`."""
    named = [each for each in re.findall(r"[^\W\d][\w/@-]*", name) if each != "item"]
    key = named[-1] if named else ""
    words = [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+", key)]
    while len(words) > 1 and words[-1] in _EMPTY_WORDS:
        words.pop()
    last = words[-1] if words else ""
    for word in (last, last.removesuffix("s"), last.removesuffix("es")):
        if word in _WORDS:
            return key, _SHORT.get(word, word)
    return key, ""


_WORDS = frozenset({*COUNTERS, *_SHORT, *PARTS, *_SCORES, *_TIMES, *_TEXTS})
