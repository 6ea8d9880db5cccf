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
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from typing import Any

from ..core.checkpoint import Checkpoint
from ..core.memory import Seen
from ..disk.descriptors import open_as_its_directory, path_of, read_small
from ..errors import CkptdError, RefusedError, why

NAME = "journal.jsonl"
_LARGEST = 1 << 30
_YEAR_10000_MS = 253_402_300_800_000
PRUNED = "pruned"


@dataclass(frozen=True)
class Line:
    """What became of a checkpoint. Only what was pruned has it all, and lines of older versions lack some.

    at: when, in words. trash: its name there. order: as of what was seen. scores: the inode of those that went with it.
    parts: the names of its files, where they are several; the first is the checkpoint's.
    """

    at: str | None
    did: str | None
    name: str
    series: str | None = None
    step: int | None = None
    order: int | None = None
    size_bytes: int | None = None
    reason: str | None = None
    trash: str | None = None
    until_ms: int | None = None
    scores: int | None = None
    parts: tuple[str, ...] | None = None

    @classmethod
    def of_pruned(
        cls, c: Checkpoint | Seen, order: int, reason: str, item: str, until_ms: int, scores: int | None = None,
        parts: tuple[str, ...] | None = None,
    ) -> Line:  # fmt: skip
        """Of what was renamed to `item` in the trash, where it is kept until then."""
        at = instant(int(item.partition("-")[0]))
        return cls(at, PRUNED, c.name, c.series, c.step, order, c.size_bytes, reason, item, until_ms, scores, parts)

    @property
    def names(self) -> tuple[str, ...]:
        """What it is called, and each of its files."""
        return tuple(dict.fromkeys((self.name, *(self.parts or ()))))

    def as_json(self) -> dict[str, Any]:
        """As it is written: only what there is."""
        return {key: value for key, value in asdict(self).items() if value is not None}


_NUMBERS = {"step", "order", "size_bytes", "until_ms", "scores"}
_KINDS = {field.name: int if field.name in _NUMBERS else str for field in fields(Line)} | {"parts": list}


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
        if _is_sound(record):
            records.append(record)
    return records


def pruned(own_fd: int) -> dict[str, Line]:
    """The line of each checkpoint that was pruned, by its name in the trash, the oldest first."""
    lines: dict[str, Line] = {}
    for record in read(own_fd):
        if record.get("did") == PRUNED and "trash" in record:
            lines[record["trash"]] = _line(record)
    return lines


def line_from(record: Any) -> Line | None:
    """The line that `as_json` has made this of; None if it is none."""
    return _line(record) if _is_sound(record) else None


def instant(at_ms: int) -> str:
    """A time in words."""
    return datetime.fromtimestamp(at_ms / 1000, timezone.utc).isoformat(timespec="milliseconds")


def _line(record: dict[str, Any]) -> Line:
    known: dict[str, Any] = {key: record.get(key) for key in _KINDS}
    parts: list[str] | None = known.pop("parts")
    return Line(**known, parts=tuple(parts) if parts else None)


def _is_sound(record: Any) -> bool:
    """Whether a line, which somebody may have edited, holds in each of its known fields what was written there."""
    if not isinstance(record, dict) or "name" not in record:
        return False
    if not all(isinstance(record[key], kind) for key, kind in _KINDS.items() if key in record):
        return False
    if not all(map(_is_name, (record["name"], *record.get("parts", ())))):
        return False
    until_ms: int = record.get("until_ms", 0)
    return 0 <= until_ms < _YEAR_10000_MS


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and "\0" not in name and "/" not in name


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
