"""Which series a name belongs to, among all that are looked for; and what a name says that nobody looks for.

Pure. A name is looked up by what stands before its first digit, so that a work dir of 100,000 names is read at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..errors import UsageError
from .forms import Free, Known, form_with_free_text
from .keyed import Keyed, keyed_text, names_from
from .layouts import GROUPS, KEYED, LAYOUTS, Form, Layout, takes_directories
from .naming import PIN_ENDING, SIDECAR_ENDING, Family, Names, Template

_DIGIT = re.compile("[0-9]")
_DIGITS = frozenset("0123456789")
_GROUP_ENDINGS = (".pt", ".gz", ".zst", ".lz4", ".bz2", ".xz", ".index", ".meta", ".json", *"0123456789")
_GROUP = re.compile("|".join(f"(?P<g{index}>{pattern})" for index, (_, pattern) in enumerate(GROUPS)))


class Finder:
    """Finds the series of a name: those of `templates` first, in their order, then those of `layouts`.

    templates: somebody has named these, so any bytes count. asked: whether somebody has named the layouts, too.
    remembered: series that somebody has looked for before; where the table has them, its kinds count.
    others: layouts whose checkpoints are to be listed, and left alone.
    """

    def __init__(
        self,
        templates: Iterable[Names | Family] = (),
        layouts: Iterable[Layout] = (),
        *,
        asked: bool = False,
        remembered: Iterable[Names] = (),
        others: Iterable[Layout] = (),
    ) -> None:
        self._asked = asked
        self._by_text: dict[str, Known | None] = {}
        self._by_head: dict[str, list[Known]] = {}
        self._odd: list[Known] = []
        self._families: list[Family] = []
        self._made: dict[str, Known] = {}
        self._free: list[Free] = []
        self._free_by_head: dict[str, list[Free]] = {}
        self._keyed: tuple[Form, Layout] | None = None
        self._last_keyed: Known | None = None
        self._groups = bool(others := tuple(others))
        self._endings = _GROUP_ENDINGS if self._groups else ()  # most names are told apart by their end
        for names in templates:
            if isinstance(names, Family):
                self._families.append(names)
            else:
                self._add(_asked_for(names))
        remembered = tuple(remembered)
        for names in remembered:
            if names.is_group:  # before the names that its files have by themselves
                self._add(_asked_for(names))
        for layout in layouts:
            for form in layout.forms:
                self._add_form(form, layout, "")
        for names in remembered:
            rows = [(form, layout) for layout in LAYOUTS for form in layout.forms if form.text == names.text]
            for form, layout in rows:
                self._add_form(form, layout, "")
            if not rows:
                self._add(_asked_for(names))
        for layout in others:
            alone = f"named as {layout.title} names checkpoints, which are pruned only with --layout {layout.name}"
            for form in layout.forms:
                self._add_form(form, layout, alone)

    def match(self, name: str) -> tuple[Known, int] | None:
        """The series of `name` and its step; None if it is not what anybody calls a checkpoint."""
        if name.endswith((PIN_ENDING, SIDECAR_ENDING)):
            return None  # whatever text a template takes
        digit = _DIGIT.search(name)
        head = name[: digit.start()] if digit is not None else None
        if head is not None:
            for known in self._by_head.get(head, ()):
                step = known.names.step_of(name)
                if step is not None:
                    return known, step
        for known in self._odd:
            step = known.names.step_of(name)
            if step is not None:
                return known, step
        if head is None:
            return None
        for family in self._families:
            read = family.match(name)
            if read is not None:
                return self._known_of(read[0]), read[1]
        if self._keyed and name.endswith(".ckpt") and "=" in name:
            found = self._match_keyed(name, *self._keyed)
            if found is not None:
                return found
        for free in self._free_by_head.get(head, ()):
            found = free.match(name)
            if found is not None:
                return found
        if not name.endswith(self._endings):
            return None
        for free in self._free:
            found = free.match(name)
            if found is not None:
                return found
        if self._groups:
            group = _GROUP.fullmatch(name)
            if group is not None:
                return _GROUPS_KNOWN[int(str(group.lastgroup)[1:])], 0
        return None

    def could_match(self, name: str) -> bool:
        """Whether `match` finds a series of `name`, whatever other names there are. Learns nothing."""
        digit = _DIGIT.search(name)
        near = [*(self._by_head.get(name[: digit.start()], ()) if digit else ()), *self._odd]
        if any(known.names.step_of(name) is not None for known in near):
            return True
        if digit is None:
            return False
        if any(family.match(name) for family in self._families):
            return True
        if self._keyed and name.endswith(".ckpt") and "=" in name:
            return True
        if any(free.could_match(name) for free in self._free_by_head.get(name[: digit.start()], ())):
            return True
        if not name.endswith(self._endings):
            return False
        return any(free.could_match(name) for free in self._free) or (
            self._groups and _GROUP.fullmatch(name) is not None
        )

    def series_of(self, text: str) -> Names | None:
        """The names of the series that is called `text`, where this finder would find checkpoints of it."""
        try:
            names = names_from(text)
        except UsageError:
            return None
        self.learn([names.sample])
        found = self.match(names.sample)
        return found[0].names if found and not found[0].alone and found[0].names.text == text else None

    @property
    def learns(self) -> bool:
        """Whether `learn` is to be called with all names of a work dir, before any is matched."""
        return any(free.padded for free in self._free)

    def learn(self, names: Iterable[str]) -> None:
        """See names before any is matched: where some of a series are padded with zeros, all of them are."""
        padded = [free for free in self._free if free.padded]
        for name in names if padded else ():
            for free in padded:
                free.learn(name)

    def _known_of(self, names: Names) -> Known:
        known = self._made.get(names.text)
        if known is None:
            known = self._made[names.text] = _asked_for(names)
        return known

    def _add(self, known: Known) -> None:
        """Add one series; the kinds and shapes of what one name can stand for in several layouts are united."""
        before = self._by_text.get(known.names.text)
        if before is not None:
            if before.kinds is None or known.alone:
                return  # somebody's own template, or looked for already
            united = Known(
                before.names, before.files or known.files, before.directories or known.directories,
                before.kinds | (known.kinds or frozenset()),
            )  # fmt: skip
            for place in (*self._by_head.values(), self._odd):
                place[:] = [united if each is before else each for each in place]
            self._by_text[known.names.text] = united
            return
        self._by_text[known.names.text] = known
        for head in dict.fromkeys(_heads_of(known.names)):
            if head is None:
                self._odd.append(known)
            else:
                self._by_head.setdefault(head, []).append(known)

    def _add_form(self, form: Form, layout: Layout, alone: str) -> None:
        if form.text == KEYED:
            self._keyed = self._keyed or (form, layout)
        elif (free := form_with_free_text(form, layout, alone)) is not None:
            for head in free.heads:
                self._free_by_head.setdefault(head, []).append(free)
            if not free.heads:
                self._free.append(free)
                end = form.text.rpartition("}")[2]
                self._endings = tuple({*self._endings, *((end,) if end else _DIGITS)})
        else:
            names = _NAMES.setdefault(form.text, names_from(form.text))
            self._add(Known(names, form.files, form.directories, layout.kinds, alone, form.marker))

    def _match_keyed(self, name: str, form: Form, layout: Layout) -> tuple[Known, int] | None:
        if self._last_keyed is not None:  # a run's names are mostly of one series
            step = self._last_keyed.names.step_of(name)
            if step is not None:
                return self._last_keyed, step
        text = keyed_text(name, front=self._asked)
        if text is None:
            return None
        if text not in self._by_text:
            try:
                self._by_text[text] = Known(Keyed(text), form.files, form.directories, layout.kinds)
            except UsageError:
                self._by_text[text] = None
        known = self._by_text[text]
        if known is None or not isinstance(known.names, Keyed):
            return None  # without a step, or somebody's own template
        self._last_keyed = known
        step = known.names.step_of(name)
        return (known, step) if step is not None else None


def _asked_for(names: Names) -> Known:
    """A series of which any bytes count."""
    may_be_directories = isinstance(names, Keyed) or (not names.is_group and takes_directories(names.text))
    return Known(names, files=True, directories=may_be_directories)


def _heads_of(names: Names) -> tuple[str | None, ...]:
    if not names.is_group:
        return (names.fixed_head,)
    from .groups import Group  # few runs have any

    assert isinstance(names, Group)
    return names.heads


_NAMES: dict[str, Names] = {}
_GROUPS_KNOWN = [
    Known(Template("{}"), True, False, None, f"one of several files that are one checkpoint of {title}: never pruned")
    for title, _ in GROUPS
]
