"""What was pruned and why, kept as `.ckptd/journal.jsonl`: one JSON object a line, only ever appended to.

It also holds where each thing in the trash came from. A line cut short by a crash is passed over.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from ..disk.descriptors import open_as_its_directory, path_of, read_small
from ..errors import CkptdError, RefusedError, why

NAME = "journal.jsonl"
_LARGEST = 1 << 30
_KINDS = {
    "at": str, "did": str, "name": str, "series": str, "reason": str, "trash": str,
    "step": int, "order": int, "size_bytes": int, "until_ms": int, "scores": int,
}  # fmt: skip
_YEAR_10000_MS = 253_402_300_800_000


def append(records: Iterable[dict[str, Any]], own_fd: int) -> None:
    """Add lines to the journal of the `.ckptd` directory `own_fd`; `sync` makes them durable. Raises OSError."""
    text = "".join(json.dumps(record) + "\n" for record in records).encode()
    if not text:
        return
    with _opened(own_fd, os.O_CREAT) as fd:
        size_bytes = os.fstat(fd).st_size
        if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
            text = b"\n" + text  # a crash cut the last line short: it must not swallow this one
        written = 0
        while written < len(text):
            written += os.write(fd, text[written:])


def sync(own_fd: int) -> None:
    """Make what was appended durable. Raises OSError."""
    with contextlib.suppress(FileNotFoundError), _opened(own_fd, 0) as fd:
        os.fsync(fd)


def check(own_fd: int) -> None:
    """Raise CkptdError if no line could be written because of what bears the journal's name; creates nothing."""
    with contextlib.suppress(FileNotFoundError), _opened(own_fd, 0):
        pass


def read(own_fd: int) -> list[dict[str, Any]]:
    """Every whole line of the journal, oldest first. Raises RefusedError if it is a symlink."""
    content = read_small(NAME, dir_fd=own_fd, at_most=_LARGEST) or b""
    records = []
    for line in content.splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(record, dict) and "name" in record and _is_sound(record):
            records.append(record)
    return records


def _is_sound(record: dict[str, Any]) -> bool:
    """Whether a line, which somebody may have edited, holds in each of its known fields what was written there."""
    if not all(isinstance(record[key], kind) for key, kind in _KINDS.items() if key in record):
        return False
    if "\0" in record["name"] or "/" in record["name"]:
        return False
    until_ms: int = record.get("until_ms", 0)
    return 0 <= until_ms < _YEAR_10000_MS


@contextlib.contextmanager
def _opened(own_fd: int, more_flags: int) -> Iterator[int]:
    flags = os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | more_flags
    where = path_of(NAME, dir_fd=own_fd)
    try:
        fd = os.open(NAME, flags, 0o666, dir_fd=own_fd)
    except PermissionError as error:
        raise CkptdError(f"{where}: cannot be written: {why(error)}. Run ckptd as its owner") from error
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR):
            raise RefusedError(f"{where}: not a file that ckptd made. Remove it") from error
        raise
    try:
        if more_flags:
            open_as_its_directory(fd, dir_fd=own_fd)
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise RefusedError(f"{where}: not a file that ckptd made. Remove it")
        yield fd
    finally:
        os.close(fd)
