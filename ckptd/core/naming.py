"""A template turns a step into a name and a name back into its step.

Pure. A name belongs to a template only if parsing it and formatting the number give the same name again.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple, NoReturn, Protocol

from ..errors import UsageError

# What ckptd itself keeps beside a checkpoint, after its name: a pin, and the scores, which go where it goes.
PIN_ENDING, SIDECAR_ENDING = ".keep", ".metrics.json"
LONGEST_NAME_BYTES = 255  # NAME_MAX of every file system that holds checkpoints

# Format types of integers whose text can be read back; `c` and the float types cannot, `n` depends on the locale.
_BASES = {"": 10, "d": 10, "x": 16, "X": 16, "o": 8, "b": 2}
_SPEC = re.compile(r"(?:(?P<fill>.)?(?P<align>[<>=^]))?(?P<sign>[-+ ]?)(?P<alt>#?)(?P<zero>0?)"
                   r"(?P<width>[1-9][0-9]*)?(?P<group>[,_]?)(?P<type>.?)", re.DOTALL)  # fmt: skip
_ALIASES = ("<>", "<n>")  # how help texts and papers write the number
_CODE = re.compile(r"[^\W\d][\w.]*")  # a variable, or an attribute of one, as it stands in somebody's code
JOINT = " + "  # between the templates of several files that are one checkpoint
_JOINT = re.compile(r" \+ (?![^{}]*\})")  # and not in a field, where it is somebody's code
STEP_MARK = "step"  # `{kimg!step}`: what is no conversion of Python's says which field is the step
TIME = "time"  # the unit of a step that is a date: seconds since 1970
_MARK = "\x01"  # stands for it


class Names(Protocol):
    """What the names of one series have in common. Its text is what the series is called."""

    @property
    def text(self) -> str: ...

    @property
    def unit(self) -> str:
        """What the step counts."""

    @property
    def has_grid(self) -> bool:
        """Whether each step has one name, so that a rule can step from one to the next."""

    @property
    def is_group(self) -> bool:
        """Whether each of its checkpoints is several files; it is a Group then."""

    def step_of(self, name: str) -> int | None:
        """The step that `name` was written for, or None if the name is none of these."""

    def name_of(self, step: int) -> str:
        """The name of the checkpoint of `step`; only where there is a grid."""

    def metrics_of(self, name: str) -> dict[str, float]:
        """What else `name` says in numbers, by key."""

    @property
    def fixed_head(self) -> str | None:
        """What stands before the first digit of each of its names; None where that differs from name to name."""

    @property
    def sample(self) -> str:
        """One of its names."""


@dataclass(frozen=True)
class Family:
    """Names of which a part tells series apart, such as the `bob` of `bob_e8_s208.pth`.

    unit: what the step of each counts. match: the series of a name and its step, or None if it is none of these.
    """

    text: str
    unit: str
    match: Callable[[str], tuple[Names, int] | None] = field(repr=False, compare=False)


class Whole(NamedTuple):
    """How a format writes whole numbers, and how they are read back."""

    spec: str
    base: int
    fill: str  # what stands before or behind the digits; a digit where nothing does

    @classmethod
    def of(cls, spec: str) -> Whole:
        """Raises ValueError, with the reason, for a format that no whole number can be read back from."""
        fields = _SPEC.fullmatch(spec)
        if fields is None or fields["type"] not in _BASES:
            raise ValueError(
                f"its field has the format {spec!r}, which no name can be read back from as a whole number"
            )
        if len(fields["width"] or "") > 3:  # before anything is formatted with it: it could fill the memory
            raise ValueError(f"its names are longer than {LONGEST_NAME_BYTES} bytes")
        fill, align = fields["fill"] or " ", fields["align"]
        padded = bool(fields["width"]) and align is not None
        if padded and fill in string.hexdigits and (fill != "0" or align not in ">="):
            raise ValueError(f"its field is filled up with {fill!r}, so a name has more than one reading")
        return cls(spec, _BASES[fields["type"]], fill if padded else "0")

    def read(self, text: str) -> int | None:
        """The number that is written as `text`, or None if none is."""
        candidate = text.strip(self.fill) if self.fill not in string.digits else text
        candidate = candidate.replace(",", "").replace("_", "").replace(" ", "").lower()
        if not candidate.isascii():
            return None
        try:
            number = int(candidate, self.base)
        except ValueError:
            return None
        return number if number >= 0 and format(number, self.spec) == text else None


@dataclass(frozen=True)
class Template:
    """A checkpoint name with one integer field in `str.format` syntax, such as `epoch_{}.pth`.

    `epoch_<>.pth`, `epoch_<n>.pth` and `epoch_{epoch}.pth` are read as `epoch_{}.pth`. Raises UsageError, with the
    reason, for what is not one name with exactly one field, or whose field touches other digits: mmcv 1.x deletes its
    own newest file with a template without a field.
    """

    text: str
    _head: str = field(init=False, repr=False, compare=False)
    _tail: str = field(init=False, repr=False, compare=False)
    _whole: Whole = field(init=False, repr=False, compare=False)
    _plain: bool = field(init=False, repr=False, compare=False)

    is_group = False

    def __post_init__(self) -> None:
        text = self.text
        if "{" not in text and "}" not in text:
            for alias in _ALIASES:
                text = text.replace(alias, "{}")
            object.__setattr__(self, "text", text)
        head, spec, tail = self._parts()
        try:
            whole = Whole.of(spec)
        except ValueError as error:
            self._refuse(str(error))
        digits = string.hexdigits if whole.base == 16 else string.digits
        if (head and head[-1] in digits) or (tail and tail[0] in digits):
            self._refuse("its field stands against other digits, so a name has more than one reading")
        object.__setattr__(self, "_head", head)
        object.__setattr__(self, "_tail", tail)
        object.__setattr__(self, "_whole", whole)
        object.__setattr__(self, "_plain", spec in ("", "d"))
        try:
            if len(self.name_of(0).encode("utf-8", "surrogateescape")) > LONGEST_NAME_BYTES:
                self._refuse(f"its names are longer than {LONGEST_NAME_BYTES} bytes")
            # A probe, not a promise: {:c} and the like raise or lose the number here.
            if self.step_of(self.name_of(7)) != 7:
                self._refuse("a number written with it cannot be read back")
        except (ValueError, OverflowError) as error:
            self._refuse(str(error))

    def name_of(self, step: int) -> str:
        """The name of the checkpoint of `step`."""
        return self.text.format(step)

    def step_of(self, name: str) -> int | None:
        """The step that `name` was written for, or None if the name does not belong to this template."""
        head, tail = self._head, self._tail
        if len(name) > LONGEST_NAME_BYTES or len(name) <= len(head) + len(tail):
            return None
        if not (name.startswith(head) and name.endswith(tail)):
            return None
        text = name[len(head) : len(name) - len(tail)]
        if self._plain:
            # The common case, checked without formatting: ASCII digits and no leading zero.
            if not (text.isascii() and text.isdigit()) or (text[0] == "0" and len(text) > 1):
                return None
            return int(text)
        return self._whole.read(text)

    def metrics_of(self, name: str) -> dict[str, float]:
        """Nothing: the one number is the step."""
        return {}

    @property
    def unit(self) -> str:
        """`epoch`, `iter`, or `step` where the name does not say what is counted."""
        return next((unit for unit in ("epoch", "iter") if self.text.startswith(unit + "_")), "step")

    @property
    def has_grid(self) -> bool:
        return True

    @property
    def fixed_head(self) -> str | None:
        first = re.search("[0-9]", self.sample)
        return self._head if self._whole.base == 10 and first and first.start() == len(self._head) else None

    @property
    def sample(self) -> str:
        return self.name_of(7)

    def _parts(self) -> tuple[str, str, str]:
        try:
            pieces = pieces_of(self.text)
        except ValueError as error:
            self._refuse(str(error))
        fields = [piece for piece in pieces if piece.name is not None]
        if len(fields) != 1:
            self._refuse(f"it has {len(fields) or 'no'} fields; a template has exactly one, such as 'epoch_{{}}.pth'")
        _, name, spec, conversion = fields[0]
        plain = name in ("", "0") or (name is not None and _CODE.fullmatch(name))
        if not plain or conversion not in ("", STEP_MARK) or "{" in spec:
            self._refuse("its field must be plain: '{}' or a width such as '{:04d}'")
        at = pieces.index(fields[0])
        head = "".join(piece.literal for piece in pieces[: at + 1])
        tail = "".join(piece.literal for piece in pieces[at + 1 :])
        refuse_unfit(self.text, head, tail)
        if name not in ("", "0") or conversion:
            # One series, whatever the variable is called.
            field_text = f"{{:{spec}}}" if spec else "{}"
            object.__setattr__(self, "text", f"{escaped(head)}{field_text}{escaped(tail)}")
        return head, spec, tail

    def _refuse(self, why: str) -> NoReturn:
        refuse(self.text, why)


class Piece(NamedTuple):
    """Literal text of a template, and the field behind it; name: None where there is none."""

    literal: str
    name: str | None
    spec: str
    conversion: str


def pieces_of(text: str) -> list[Piece]:
    """The pieces of a template. Raises ValueError for what `str.format` does not take, but for the mark of the step."""
    if _MARK in text:
        raise ValueError("it holds a character that cannot be printed")
    # No conversion of Python's has more than one letter; this one stands for the word.
    marked = text.replace(f"!{STEP_MARK}}}", f"!{_MARK}}}").replace(f"!{STEP_MARK}:", f"!{_MARK}:")
    return [
        Piece(literal.replace(_MARK, STEP_MARK), name, (spec or "").replace(_MARK, STEP_MARK),
              (conversion or "").replace(_MARK, STEP_MARK))
        for literal, name, spec, conversion in string.Formatter().parse(marked)
    ]  # fmt: skip


def named_by(text: str) -> str:
    """The checkpoint that a pointer's line names: the last part of its path, so that a moved run finds it too."""
    return text.rstrip("/").rpartition("/")[2]


def joined(text: str) -> list[str]:
    """The templates of the several files that are one checkpoint; of one file that one."""
    return [piece.strip() for piece in _JOINT.split(text)] if JOINT in text else [text]


def escaped(literal: str) -> str:
    """Text as a template writes it."""
    return literal.replace("{", "{{").replace("}", "}}")


def refuse_unfit(text: str, *literals: str) -> None:
    """Raise UsageError if a template's literal text can be in no checkpoint's name."""
    if any("/" in literal for literal in literals) or "\0" in text:
        refuse(text, "it holds a '/': a series lives in one work dir, so name the directory as the work dir")
    if any(not character.isprintable() for literal in literals for character in literal):
        refuse(text, "it holds a character that cannot be printed")
    if literals and literals[-1].endswith((PIN_ENDING, SIDECAR_ENDING)):
        refuse(text, f"what ends in {PIN_ENDING} or {SIDECAR_ENDING} is kept beside a checkpoint, and is none")


def refuse(text: str, why: str) -> NoReturn:
    raise UsageError(f"template {text!r}: {why}")
