"""What lies beside the files of one checkpoint in the trash: what each of them was, and what the journal is to have."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from ..core.entry import Written
from ..disk.descriptors import read_small, replace_file
from ..errors import CkptdError
from .journal import Line, line_from

RECORD = "record.json"
_LARGEST = 1 << 26  # bytes: a quarter of a million files
_VERSION = 1


@dataclass(frozen=True)
class Record:
    """line: of its pruning. parts: the identity of each file, in the order of its number in the trash."""

    line: Line
    parts: tuple[Written, ...]

    @property
    def names(self) -> list[str]:
        """What the files are called outside of the trash."""
        return [part[0] for part in self.parts]


def write_record(record: Record, fd: int) -> None:
    """Put it into the directory open as `fd`, durably. Raises OSError."""
    raw = {"version": _VERSION, "line": record.line.as_json(), "parts": record.parts}
    replace_file(RECORD, json.dumps(raw).encode(), dir_fd=fd)


def read_record(fd: int) -> Record | None:
    """What `write_record` put there; None if that is nothing, or names what cannot be in a work dir. Raises OSError."""
    try:
        raw = json.loads(read_small(RECORD, dir_fd=fd, at_most=_LARGEST) or b"")
        line = line_from(raw["line"])
        parts = tuple((_name(name), int(size_bytes), int(mtime_ns)) for name, size_bytes, mtime_ns in raw["parts"])
    except (CkptdError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return Record(line, parts) if line is not None and parts else None


def _name(name: Any) -> str:
    if not isinstance(name, str) or name in ("", os.curdir, os.pardir) or "/" in name or "\0" in name:
        raise ValueError("not a name")
    return name
