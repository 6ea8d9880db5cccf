"""What a distributed checkpoint's `.metadata` says of its shards, read without building a single object of its own.

`.metadata` is a pickle; here every class and function that it names is replaced by a husk that only holds fields, so
nothing in it can run. Source of the layout: torch.distributed.checkpoint's FileSystemWriter, torch 2.1 to 2.13.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .view import DirectoryView

MARKER = ".metadata"
_MISSING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP})
_LARGEST = 1 << 28  # bytes; the metadata of the largest models is a tenth of it

_AT_ONCE, _MOST_BARE = 1000, 256
# A pickle's opcodes, as pickletools lists them: those without a size of their own, a thousand at once, and of the
# others how many bytes their size has. A frame only says how much comes, and a memo's index has no size.
_PLAIN = re.compile(
    rb"(?:[()012NQRabde}lo\]stu\x81\x85-\x89\x8f-\x94\x97\x98]|[Khq\x80\x82].|[M\x83]..|[Jj\x84].{4}|G.{8}"
    rb"|[FILPSVg][^\n]*\n|[ic][^\n]*\n[^\n]*\n){1,%d}" % _AT_ONCE,
    re.DOTALL,
)
_SIZED = {**dict.fromkeys(b"U\x8a\x8cC", 1), **dict.fromkeys(b"TXB\x8b", 4), **dict.fromkeys(b"\x8d\x8e\x96", 8)}
_STOP, _FRAME, _PUT, _LONG_BINPUT = b".\x95pr"


def is_one(directory: DirectoryView) -> bool:
    """Whether the directory is a distributed checkpoint, whole or not."""
    return MARKER in directory.names or any(name.endswith(".distcp") for name in directory.names)


def missing_shard(directory: DirectoryView) -> str | None:
    """What is wrong with the shards that `.metadata` in the directory lists; None if nothing is.

    Raises OSError if something cannot be read.
    """
    with directory.opened_file(MARKER) as file:
        size_bytes = file.size_bytes
        if size_bytes > _LARGEST:
            return f"{MARKER} is too large to be one"
        if file.hole() is not None:
            return f"{MARKER} is damaged"
        content = file.read(size_bytes, 0)
    ends = None if _asks_for_more(content) else _shard_ends(content)
    if ends is None:
        return f"{MARKER} is damaged"
    for path, end in sorted(ends.items()):
        if os.path.isabs(path) or ".." in path.split("/"):
            return f"{MARKER} names {path!r}, which is not inside"
        try:
            found = directory.about(path).size_bytes
        except OSError as error:
            if error.errno not in _MISSING:
                raise
            return f"shard {path if path.isprintable() else repr(path)} is missing"
        if found < end:
            return f"shard {path} has {found} of {end} bytes"
    return None


def is_written_over(directory: DirectoryView) -> bool:
    """Whether a shard is younger than `.metadata`, which comes last: of a save over an earlier one, or of a copy."""
    shards = [directory.about(name).mtime_ns for name in directory.names if name.endswith(".distcp")]
    return max(shards, default=0) > directory.about(MARKER).mtime_ns


class _Husk:
    """Stands for every class and function in the pickle: takes whatever it is given, and does nothing with it."""

    def __new__(cls, *_: Any, **__: Any) -> _Husk:
        return object.__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.__dict__.update((key, value) for key, value in state.items() if isinstance(key, str))

    def append(self, _: Any) -> None:
        """A list of the pickle's own class."""

    def extend(self, _: Any) -> None:
        """As append."""

    def __setitem__(self, _: Any, __: Any) -> None:
        """A dict of the pickle's own class."""


class _Husks(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        return _Husk

    def persistent_load(self, pid: Any) -> Any:
        return _Husk()


def _asks_for_more(content: bytes) -> bool:
    """Whether a pickle, to be read, wants more memory than its own bytes account for: it is damaged, or made to.

    The unpickler fills a table as long as the greatest index of its memo, and makes room for a text before it looks
    whether there is one.
    """
    at, end, bare = 0, len(content), 0
    while at < end:
        before, plain = at, _PLAIN.match(content, at)
        at = plain.end() if plain else at
        # Opcodes of one byte each, and nothing else: objects that hold nothing, sixty times as large as the file.
        bare = bare + 1 if at - before == _AT_ONCE else 0
        if bare == _MOST_BARE:
            return True
        opcode = content[at] if at < end else None
        if opcode == _STOP:
            return False
        if opcode in _SIZED:
            width = _SIZED[opcode]
            at += 1 + width + int.from_bytes(content[at + 1 : at + 1 + width], "little")
        elif opcode == _FRAME:
            if int.from_bytes(content[at + 1 : at + 9], "little") > end - at:
                return True
            at += 9
        elif opcode == _LONG_BINPUT:
            # Each index in an honest one is of something that came before.
            if int.from_bytes(content[at + 1 : at + 5], "little") > at:
                return True
            at += 5
        elif opcode == _PUT:
            line = content[at + 1 : at + 1 + len(str(end))].partition(b"\n")
            if not (line[1] and line[0].isdigit() and int(line[0]) <= at):
                return True
            at += 2 + len(line[0])
        elif at == before:
            return True
    return True


def _shard_ends(content: bytes) -> dict[str, int] | None:
    """By relative path of a shard, the first byte behind all that `.metadata` says is in it."""
    try:
        metadata = _Husks(io.BytesIO(content)).load()
        stored = metadata.storage_data
        ends: dict[str, int] = {}
        for info in stored.values():
            path, end = _place(info)
            ends[path] = max(end, ends.get(path, 0))
    except Exception:  # noqa: BLE001 - a pickle can fail in every way there is, and each means damaged
        return None
    return ends


def _place(info: Any) -> tuple[str, int]:
    path, offset, length = info.relative_path, info.offset, info.length
    if not (isinstance(path, str) and isinstance(offset, int) and isinstance(length, int)):
        raise TypeError("not the place of a shard")
    return path, offset + length
