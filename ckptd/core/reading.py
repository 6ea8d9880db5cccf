"""Finds the fields of a template in a name, in a time that grows only with the length of the name.

Pure. What can be read in two ways is not read at all.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .formats import Field, Value
from .naming import LONGEST_NAME_BYTES


class Reader:
    """Reads names that consist of `literals` with one of `fields` between each two of them.

    A field of any text parts the others into segments. Each segment is looked for from the left, one behind the other;
    a name has one reading only if none of them could stand further right.
    """

    def __init__(self, literals: Sequence[str], fields: Sequence[Field]) -> None:
        patterns = [re.escape(literals[0])]
        reads: list[list[Callable[[str], Value]]] = [[]]
        for each, literal in zip(fields, literals[1:]):
            if each.pattern is not None:
                patterns[-1] += f"({each.pattern}){re.escape(literal)}"
                reads[-1].append(each.read)
            else:
                # A minus before a number is the number's: `a--0.5` is a score below zero behind `a-`.
                patterns.append(("(?<!-)" if literal and not literal.strip("-") else "") + re.escape(literal))
                reads.append([])
        patterns[-1] += r"\Z"
        self._segments = [_Segment(re.compile(pattern), read) for pattern, read in zip(patterns, reads)]

    def read(self, name: str) -> list[str] | None:
        """The text of each field; None where `name` has no reading, or more than one."""
        if len(name) > LONGEST_NAME_BYTES:
            return None
        first, *others = self._segments
        match = first.pattern.match(name)
        if match is None or not first.reads_all(match):
            return None
        return _read_on(name, match, others) if others else list(match.groups())


class _Segment(NamedTuple):
    """What stands between two fields of any text. reads: how each of its own fields is read."""

    pattern: re.Pattern[str]
    reads: Sequence[Callable[[str], Value]]

    def reads_all(self, match: re.Match[str]) -> bool:
        return all(read(text) is not None for read, text in zip(self.reads, match.groups()))

    def search(self, name: str, since: int, until: int) -> re.Match[str] | None:
        """The first place in `name` from `since` on where it can stand, and end by `until`."""
        while since <= until:  # else an empty one would be found at the end
            match = self.pattern.search(name, since, until)
            if match is None or self.reads_all(match):
                return match
            since = match.start() + 1
        return None


def _read_on(name: str, first: re.Match[str], segments: Sequence[_Segment]) -> list[str] | None:
    if not name.isprintable():
        return None
    found = [first]
    for segment in segments:
        match = segment.search(name, found[-1].end() + 1, len(name))
        if match is None:
            return None
        found.append(match)
    until = len(name)
    for segment, match in zip(reversed(segments), reversed(found)):
        if segment.search(name, match.start() + 1, until):
            return None
        until = match.start() - 1
    texts = [*first.groups()]
    for before, match in zip(found, found[1:]):
        texts += [name[before.end() : match.start()], *match.groups()]
    return texts
