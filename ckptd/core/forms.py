"""How a form of the table reads names that no template alone stands for: with a text of the user's own in front, with
several fields, or of several files.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..errors import UsageError
from .keyed import given
from .layouts import FREE, Form, Layout
from .naming import JOINT, Family, Names, Template, joined

_NAMED = re.compile(r"\{[a-z_]+[}:]")  # a field with a name
_FIELD = re.compile(r"\{[^}]*\}")
_TEXT = "{name}"  # the only field for a text that a form of the table begins with


class Known(NamedTuple):
    """A series that names can belong to.

    files, directories: what may bear such a name. kinds: which bytes count, None for any. alone: why its checkpoints
    are left alone, "" if they are not. marker: as a form's.
    """

    names: Names
    files: bool
    directories: bool
    kinds: frozenset[str] | None = None
    alone: str = ""
    marker: str = ""


class Free(Protocol):
    """Finds the series of names that may be of many.

    padded: whether `learn` is to be called with all names first. heads: what stands before the first digit of each of
    its names; none where that differs from name to name.
    """

    padded: bool

    @property
    def heads(self) -> Sequence[str]: ...

    def learn(self, name: str) -> None: ...

    def could_match(self, name: str) -> bool: ...

    def match(self, name: str) -> tuple[Known, int] | None: ...


def form_with_free_text(form: Form, layout: Layout, alone: str) -> Free | None:
    """What reads the names of `form`, None where a template is enough."""
    if JOINT in form.text or _NAMED.search(form.text):
        return _Several(form, layout, alone)
    return _OneNumber(form, layout, alone) if FREE in form.text or form.text == "{}" else None


class _OneNumber:
    """A form whose names begin with a text of the user's own; each such text makes a series."""

    heads: Sequence[str] = ()

    def __init__(self, form: Form, layout: Layout, alone: str) -> None:
        self._form, self._kinds, self._alone = form, layout.kinds, alone
        before, self._spec, after = _split(form.text)
        self.padded = layout.name == "orbax" and not alone  # where it is left alone, one series or two is all the same
        free = "([^{}/.][^{}/]*)" if FREE in before else "()"
        self._pattern = re.compile(f"{free}{re.escape(before.replace(FREE, ''))}([0-9]+){re.escape(after)}")
        self._ends = after or tuple("0123456789")  # most names end otherwise, and cost no more than that
        self._width: dict[str, int] = {}
        self._series: dict[str, Known] = {}

    def learn(self, name: str) -> None:
        if not name.endswith(self._ends):
            return
        found = self._pattern.fullmatch(name)
        if found and found[2][0] == "0" and len(found[2]) > 1:
            self._width[found[1]] = max(len(found[2]), self._width.get(found[1], 0))

    def could_match(self, name: str) -> bool:
        return self._pattern.fullmatch(name) is not None

    def match(self, name: str) -> tuple[Known, int] | None:
        found = self._pattern.fullmatch(name)
        if found is None or not name.isprintable():
            return None
        spec = self._spec
        width = self._width.get(found[1], len(found[2]) if self._alone and found[2][0] == "0" else 0)
        if width > 1 and self._spec == "{}":
            spec = f"{{:0{width}d}}"
        text = self._form.text.replace(self._spec, spec).replace(FREE, found[1])
        known = self._series.get(text)
        if known is None:
            try:
                names = Template(text)
            except UsageError:
                return None
            form = self._form
            known = Known(names, form.files, form.directories, self._kinds, self._alone, form.marker)
            self._series[text] = known
        step = known.names.step_of(name)
        return (known, step) if step is not None else None


class _Several:
    """A form whose names have several fields, or of which several files are one checkpoint.

    Most names have not all of the text between these, and cost no more.
    """

    padded = False  # each field has its width

    def learn(self, name: str) -> None:
        """Nothing."""

    def __init__(self, form: Form, layout: Layout, alone: str) -> None:
        self._form, self._kinds, self._alone = form, layout.kinds, alone
        self._literals = [_FIELD.split(each) for each in joined(form.text)]
        self.heads: Sequence[str] = () if form.text.startswith(_TEXT) else [head for head, *_ in self._literals]
        self._given: Names | Family | None = None
        self._series: dict[str, Known] = {}

    def could_match(self, name: str) -> bool:
        return self._read(name) is not None

    def match(self, name: str) -> tuple[Known, int] | None:
        read = self._read(name)
        if read is None:
            return None
        names, step = read
        known = self._series.get(names.text)
        if known is None:
            form = self._form
            known = Known(names, form.files, form.directories, self._kinds, self._alone, form.marker)
            self._series[names.text] = known
        return known, step

    def _read(self, name: str) -> tuple[Names, int] | None:
        if not any(
            name.startswith(head) and name.endswith(tail) and all(each in name for each in between)
            for head, *between, tail in self._literals
        ):
            return None
        if self._given is None:  # here, because few have such names
            self._given = given(self._form.text)
        if isinstance(self._given, Family):
            return self._given.match(name)
        step = self._given.step_of(name)
        return None if step is None or step < self._form.least else (self._given, step)


def _split(text: str) -> tuple[str, str, str]:
    """What stands before the field of a form, the field, and what stands behind it."""
    start, end = text.index("{"), text.index("}") + 1
    return text[:start], text[start:end], text[end:]
