"""Finds the fields of a template in a name, in a time that grows only with the length of the name.

Pure. What can be read in two ways is not read at all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from .formats import Field
from .naming import LONGEST_NAME_BYTES


class Reader:
    """Reads names that consist of `literals` with one of `fields` between each two of them.

    A field of any text parts the others into segments. Each segment is looked for from the left, one behind the other;
    a name has one reading only if none of them could stand further right.
    """

    def __init__(self, literals: Sequence[str], fields: Sequence[Field]) -> None:
        self._are_any = [each.pattern is None for each in fields]
        self._reads = [(at, each.read) for at, each in enumerate(fields) if each.pattern is not None]
        segments = [re.escape(literals[0])]
        for each, literal in zip(fields, literals[1:]):
            if each.pattern is not None:
                segments[-1] += f"({each.pattern}){re.escape(literal)}"
            else:
                # A minus before a number is the number's: `a--0.5` is a score below zero behind `a-`.
                segments.append(("(?<!-)" if literal and not literal.strip("-") else "") + re.escape(literal))
        segments[-1] += r"\Z"
        self._segments = [re.compile(each) for each in segments]

    def read(self, name: str) -> list[str] | None:
        """The text of each field; None where `name` has no reading, or more than one."""
        if len(name) > LONGEST_NAME_BYTES:
            return None
        first = self._segments[0].match(name)
        if first is None:
            return None
        texts = list(first.groups()) if len(self._segments) == 1 else self._read_on(name, first)
        if texts is None or any(read(texts[at]) is None for at, read in self._reads):
            return None
        return texts

    def _read_on(self, name: str, first: re.Match[str]) -> list[str] | None:
        if not name.isprintable():
            return None
        found = [first]
        for segment in self._segments[1:]:
            match = segment.search(name, found[-1].end() + 1)
            if match is None:
                return None
            found.append(match)
        until = len(name)
        for segment, match in zip(reversed(self._segments), reversed(found[1:])):
            if segment.search(name, match.start() + 1, until):
                return None
            until = match.start() - 1
        texts = [*first.groups()]
        for before, match in zip(found, found[1:]):
            texts += [name[before.end() : match.start()], *match.groups()]
        return texts
