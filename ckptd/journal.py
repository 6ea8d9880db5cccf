"""What was pruned and why, kept as `.ckptd/journal.jsonl`: one JSON object a line, only ever appended to.

It also holds where each thing in the trash came from. A line cut short by a crash is passed over.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from typing import Any

from .disk import read_small
from .errors import RefusedError

NAME = "journal.jsonl"
_LARGEST = 1 << 30


def append(records: Iterable[dict[str, Any]], own_fd: int) -> None:
    """Add lines to the journal in the `.ckptd` directory open as `own_fd`, durably. Raises OSError."""
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if not text:
        return
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(NAME, flags, 0o666, dir_fd=own_fd)
    try:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            raise RefusedError(f"{NAME}: not a regular file. Remove it")
        if info.st_size and os.pread(fd, 1, info.st_size - 1) != b"\n":
            text = b"\n" + text  # a crash cut the last line short: it must not swallow this one
        os.write(fd, text)
        os.fsync(fd)
    finally:
        os.close(fd)


def read(own_fd: int) -> list[dict[str, Any]]:
    """Every whole line of the journal, oldest first. Raises RefusedError if it is a symlink."""
    content = read_small(NAME, dir_fd=own_fd, at_most=_LARGEST) or b""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("name"), str):
            records.append(record)
    return records
