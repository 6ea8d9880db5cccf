"""Names with more than one number in them: Lightning's `epoch=0-step=10.ckpt`, fairseq's `checkpoint_1_500.pt`.

Pure. Several names may have one step, so such a series has no grid.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache

from ..errors import UsageError
from .naming import LONGEST_NAME_BYTES, Family, Names, Template, joined

# Values as Lightning formats them: whole numbers, padded or not, what `str` and `:.2f` make of a float.
_VALUE = r"(?:-?(?:[0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?|inf)|nan)"
_KEY = r"[^\W\d_][\w.@ ]*"
_END = r"(?:-v[1-9][0-9]*)?\.ckpt"  # a name that was taken already gets a version
_FRONT = r"(?:[^={}/]+-)?"  # the first key has no dash, so what stands before it is told from it
_NEXT = r"[-_][^\W\d_](?:-?[\w.@ ])*"  # the others may have some: `val-loss` is a metric's name

_NAME = re.compile(rf"({_FRONT}){_KEY}={_VALUE}(?:{_NEXT}={_VALUE})*{_END}")
_TEXT = re.compile(rf"{_FRONT}{_KEY}=\{{\}}(?:{_NEXT}=\{{\}})*\.ckpt")
_AT_END = re.compile(f"{_END}$")
_EACH_VALUE = re.compile(f"={_VALUE}")
_WHOLE = re.compile("[0-9]+")
_ONE_NUMBER = re.compile(r"[^{}*]*(?:\{0?(?::[^{}%]*)?\}[^{}*]*)?")  # at most one field, and that without a name


@dataclass(frozen=True)
class Keyed:
    """Lightning's names: `key=value` pairs, of which `step`, or else `epoch`, is the step. The others are metrics.

    Its text is a name with `{}` for every value: `epoch={}-val_loss={}.ckpt`. A name with a version at its end,
    `-v1`, belongs to the same series. Raises UsageError for another text.
    """

    text: str
    _keys: tuple[str, ...] = field(init=False, repr=False, compare=False)

    is_group = False

    def __post_init__(self) -> None:
        keys = _keys_of(self.text)
        if _TEXT.fullmatch(self.text) is None or not {"epoch", "step"} & set(keys) or len(set(keys)) < len(keys):
            raise UsageError(f"{self.text!r}: not a name with keys, such as 'epoch={{}}-step={{}}.ckpt'")
        object.__setattr__(self, "_keys", keys)

    @property
    def unit(self) -> str:
        return "step" if "step" in self._keys else "epoch"

    @property
    def has_grid(self) -> bool:
        return False

    def step_of(self, name: str) -> int | None:
        """The step that `name` was written for, or None if the name does not belong to this series."""
        text = self._values(name).get(self.unit, "")
        return int(text) if _WHOLE.fullmatch(text) else None

    def name_of(self, step: int) -> str:
        raise ValueError(f"{self.text!r} has no grid: a name is more than its step")

    def metrics_of(self, name: str) -> dict[str, float]:
        """The numbers in `name` but for epoch and step, by key; nan and inf are numbers too."""
        return {key: float(text) for key, text in self._values(name).items() if key not in ("epoch", "step")}

    @property
    def fixed_head(self) -> str | None:
        return None

    @property
    def sample(self) -> str:
        return self.text.replace("{}", "7")

    def _values(self, name: str) -> dict[str, str]:
        # Without a pattern of its own: a work dir can hold thousands of such series.
        if keyed_text(name, front=True) != self.text:
            return {}
        return dict(zip(self._keys, (value[1:] for value in _EACH_VALUE.findall(name))))


@dataclass(frozen=True)
class Numbers:
    """A name with several plain whole numbers, of which the last is the step: `checkpoint_{}_{}.pt`.

    Raises UsageError for a text with fewer than two fields.
    """

    text: str
    _pattern: re.Pattern[str] = field(init=False, repr=False, compare=False)

    is_group = False

    def __post_init__(self) -> None:
        literals = self.text.split("{}")
        if len(literals) < 3 or any("{" in each or "}" in each or "/" in each for each in literals):
            raise UsageError(f"{self.text!r}: not a name with several numbers")
        number = "(0|[1-9][0-9]*)"
        object.__setattr__(self, "_pattern", re.compile(number.join(map(re.escape, literals))))

    @property
    def unit(self) -> str:
        return "step"

    @property
    def has_grid(self) -> bool:
        return False

    def step_of(self, name: str) -> int | None:
        """The step that `name` was written for, or None if the name does not belong to this series."""
        match = self._pattern.fullmatch(name) if len(name) <= LONGEST_NAME_BYTES else None
        return int(match[match.re.groups]) if match else None

    def name_of(self, step: int) -> str:
        raise ValueError(f"{self.text!r} has no grid: a name is more than its step")

    def metrics_of(self, name: str) -> dict[str, float]:
        """Nothing: what the other numbers count is no score."""
        return {}

    @property
    def fixed_head(self) -> str | None:
        head = self.text.partition("{")[0]
        return None if re.search("[0-9]", head) else head

    @property
    def sample(self) -> str:
        return self.text.replace("{}", "7")


def keyed_text(name: str, *, front: bool = False) -> str | None:
    """The text of the series of Lightning's to which `name` belongs, or None.

    front: whether free text may stand before the first key, as in `sample-epoch=02-val_loss=0.32.ckpt`.
    """
    match = _NAME.fullmatch(name) if len(name) <= LONGEST_NAME_BYTES and name.isprintable() else None
    if match is None or (match[1] and not front):
        return None
    return _EACH_VALUE.sub("={}", _AT_END.sub("", name)) + ".ckpt"


@lru_cache(maxsize=256)  # every pass asks for the few that it remembers
def names_from(text: str) -> Names:
    """The names of the series that is called `text`. Raises UsageError if none can be."""
    if _is_keyed(text):
        return Keyed(text)
    pieces = joined(text)
    is_group = len(pieces) > 1 and all("{" in piece for piece in pieces)  # else a name that holds what joins them
    if text.count("{}") > 1 and not is_group:
        return Numbers(text)
    if _ONE_NUMBER.fullmatch(text):
        return Template(text)
    from . import groups  # few have several fields, or several files

    return groups.series_called(text)


@lru_cache(maxsize=256)
def given(text: str) -> Names | Family:
    """What a template stands for that somebody has given. Raises UsageError, with the reason, for none."""
    if _ONE_NUMBER.fullmatch(text) and len(joined(text)) == 1:
        return Template(text)
    if text.count("{}") > 1 and _is_keyed(text):
        return Keyed(text)
    from . import groups

    return groups.given(text)


def _is_keyed(text: str) -> bool:
    return _TEXT.fullmatch(text) is not None and bool({"epoch", "step"} & set(_keys_of(text)))


def _keys_of(text: str) -> tuple[str, ...]:
    """The keys in a text like those of `Keyed`."""
    first, *others = text[: -len(".ckpt")].split("={}")
    return (first.rpartition("-")[2], *(each[1:] for each in others[:-1]))
