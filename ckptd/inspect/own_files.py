"""Which parts a directory has, and which of them were written with the save itself. Looks at inodes only.

What evaluators and converters add later is no part of the save: that the next save has not got it yet says nothing.
"""

from __future__ import annotations

import os
from collections.abc import Container

from ..core.siblings import Files
from .lateness import SLOWEST_COPY, files_in
from .parts import is_result
from .scan import DCP_MARKER, INDEX_ENDING, MARKERS, is_part

_S = 10**9


def own_files(fd: int, pause_s: float) -> Files:
    """Of the directory open as `fd`. pause_s: how long a save may rest between two of its files."""
    found = files_in(fd)
    parts = {path: info for path, info in found.items() if _counts(path, found)}
    marked = [parts[path].st_mtime_ns for path in parts if path in MARKERS or path.endswith(INDEX_ENDING)]
    own: set[str] = set()
    last_ns = 0
    for path, info in sorted(parts.items(), key=lambda each: each[1].st_mtime_ns):
        pause_ns = (pause_s + info.st_size / SLOWEST_COPY) * _S
        until_ns = max(marked) + pause_s * _S if marked else last_ns + pause_ns if own else info.st_mtime_ns
        if info.st_mtime_ns > until_ns:
            break
        own.add(path)
        last_ns = info.st_mtime_ns
    return Files(frozenset(parts), frozenset(own))


def _counts(path: str, found: Container[str]) -> bool:
    """Whether it is a part, and not one of which there are as many as ranks, all of them listed."""
    below, _, name = path.rpartition("/")
    if name.endswith(".distcp") and os.path.join(below, DCP_MARKER) in found:
        return False
    return is_part(name) and not is_result(name)
