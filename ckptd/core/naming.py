"""A template turns a step into a name and a name back into its step.

Pure. A name belongs to a template only if parsing it and formatting the number give the same name again.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from ..errors import UsageError

LONGEST_NAME_BYTES = 255  # NAME_MAX of every file system that holds checkpoints

# Format types of integers whose text can be read back; `c` and the float types cannot, `n` depends on the locale.
_BASES = {"": 10, "d": 10, "x": 16, "X": 16, "o": 8, "b": 2}
_SPEC = re.compile(r"(?:(?P<fill>.)?(?P<align>[<>=^]))?(?P<sign>[-+ ]?)(?P<alt>#?)(?P<zero>0?)"
                   r"(?P<width>[1-9][0-9]*)?(?P<group>[,_]?)(?P<type>.?)", re.DOTALL)  # fmt: skip
_ALIASES = ("<>", "<n>")  # how help texts and papers write the number


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

    def step_of(self, name: str) -> int | None:
        """The step that `name` was written for, or None if the name is none of these."""

    def name_of(self, step: int) -> str:
        """The name of the checkpoint of `step`; only where there is a grid."""

    def metrics_of(self, name: str) -> dict[str, float]:
        """What else `name` says in numbers, by key."""


@dataclass(frozen=True)
class Template:
    """A checkpoint name with one integer field in `str.format` syntax, such as `epoch_{}.pth`.

    `epoch_<>.pth` and `epoch_<n>.pth` are read as `epoch_{}.pth`. Raises UsageError, with the reason, for what
    is not one name with exactly one field, or whose field touches other digits: mmcv 1.x deletes its own newest
    file with a template without a field.
    """

    text: str
    _head: str = field(init=False, repr=False, compare=False)
    _tail: str = field(init=False, repr=False, compare=False)
    _base: int = field(init=False, repr=False, compare=False)
    _fill: str = field(init=False, repr=False, compare=False)
    _plain: bool = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        text = self.text
        if "{" not in text and "}" not in text:
            for alias in _ALIASES:
                text = text.replace(alias, "{}")
            object.__setattr__(self, "text", text)
        head, spec, tail = self._parts()
        fields = _SPEC.fullmatch(spec)
        if fields is None or fields["type"] not in _BASES:
            self._refuse(f"its field has the format {spec!r}, which no name can be read back from as a whole number")
        if len(fields["width"] or "") > 3:  # before anything is formatted with it: it could fill the memory
            self._refuse(f"its names are longer than {LONGEST_NAME_BYTES} bytes")
        base = _BASES[fields["type"]]
        digits = string.hexdigits if base == 16 else string.digits
        if (head and head[-1] in digits) or (tail and tail[0] in digits):
            self._refuse("its field stands against other digits, so a name has more than one reading")
        fill, align = fields["fill"] or " ", fields["align"]
        padded = bool(fields["width"]) and align is not None
        if padded and fill in string.hexdigits and (fill != "0" or align not in ">="):
            self._refuse(f"its field is filled up with {fill!r}, so a name has more than one reading")
        object.__setattr__(self, "_head", head)
        object.__setattr__(self, "_tail", tail)
        object.__setattr__(self, "_base", base)
        object.__setattr__(self, "_fill", fill if padded else "0")
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
        candidate = text.strip(self._fill) if self._fill not in string.digits else text
        candidate = candidate.replace(",", "").replace("_", "").replace(" ", "").lower()
        if not candidate.isascii():
            return None
        try:
            step = int(candidate, self._base)
        except ValueError:
            return None
        return step if step >= 0 and self.name_of(step) == name else None

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
        """What stands before the first digit of each of its names; None where that differs from name to name."""
        first = re.search("[0-9]", self.name_of(7))
        return self._head if self._base == 10 and first and first.start() == len(self._head) else None

    def _parts(self) -> tuple[str, str, str]:
        try:
            pieces = list(string.Formatter().parse(self.text))
        except ValueError as error:
            self._refuse(str(error))
        fields = [(name, spec, conversion) for _, name, spec, conversion in pieces if name is not None]
        if len(fields) != 1:
            self._refuse(f"it has {len(fields) or 'no'} fields; a template has exactly one, such as 'epoch_{{}}.pth'")
        name, spec, conversion = fields[0]
        if name not in ("", "0") or conversion or "{" in (spec or ""):
            self._refuse("its field must be plain: '{}' or a width such as '{:04d}'")
        at = next(i for i, piece in enumerate(pieces) if piece[1] is not None)
        head = "".join(piece[0] for piece in pieces[: at + 1])
        tail = "".join(piece[0] for piece in pieces[at + 1 :])
        if "/" in self.text or "\0" in self.text:
            self._refuse("it holds a '/': a series lives in one work dir, so name the directory as the work dir")
        if any(not character.isprintable() for character in head + tail):
            self._refuse("it holds a character that cannot be printed")
        return head, spec or "", tail

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(f"template {self.text!r}: {why}")
