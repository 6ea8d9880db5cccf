"""What is mounted where, as the kernel knows it: no disk is asked, for one may not answer."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

MOUNTS = "/proc/self/mountinfo"


class Mount(NamedTuple):
    """One file system, mounted at `place`. device: the number of its disk. kind: as in mount(8)."""

    place: str
    device: int
    kind: str


def mounts() -> list[Mount]:
    """All of them, the later above the earlier where two have one place. Raises OSError."""
    with open(MOUNTS, errors="surrogateescape") as file:
        lines = [line.split() for line in file]
    return [
        Mount(unescaped(fields[4]), os.makedev(*map(int, fields[2].split(":"))), fields[fields.index("-") + 1])
        for fields in lines
    ]


def unescaped(field: str) -> str:
    """A path as fstab and the kernel write it: a space is \\040."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)
