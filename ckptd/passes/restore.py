"""Bring what was pruned back from the trash, under its name and pinned. Needs no lock: a rename decides any race.

A running `ckptd watch` claims what it frees by a rename of its own, and finds the pin before it could prune again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from ..disk.descriptors import opened_own_dir
from ..errors import CkptdError, why
from ..inspect.scan import PIN_ENDING
from ..workdir import groups, journal, trash
from ..workdir.pins import make_pin
from ..workdir.workdir import WorkDir


def restorable(work_dir: str) -> list[dict[str, Any]]:
    """What is in the trash: name, size_bytes, at (when it was pruned), until (when it goes), oldest first."""
    with WorkDir(work_dir) as work:
        return [
            {
                "name": line.name,
                "size_bytes": line.size_bytes,
                "at": line.at,
                "until": _iso(line),
            }
            for _, line in _in_trash(work)
        ]


def restore(work_dir: str, names: Sequence[str], *, everything: bool = False) -> tuple[list[str], dict[str, str]]:
    """Restore `names`, or all there is; of several of one name, the last pruned.

    Returns the names that are back, and why the others are not. Raises CkptdError if the trash cannot be read.
    """
    restored: list[str] = []
    failed: dict[str, str] = {}
    with WorkDir(work_dir) as work:
        in_trash = _in_trash(work)
        there = {name: (item, line.name) for item, line in in_trash for name in line.names}
        wanted = dict.fromkeys(line.name for _, line in in_trash) if everything else dict.fromkeys(names)
        own_fd = work.open_own()
        for each in wanted:
            if each not in there or own_fd is None:
                failed[each] = f"not in the trash; `ckptd restore {work_dir}` lists what is"
                continue
            item, name = there[each]
            if name in restored:
                continue  # another of its files was named, too
            with opened_own_dir(trash.NAME, dir_fd=own_fd) as trash_fd:
                made = False
                try:
                    made = _pin(work, name)
                    if groups.is_group(item):
                        groups.restore(item, work_fd=work.fd, trash_fd=trash_fd)
                    else:
                        trash.restore(item, name, work_fd=work.fd, trash_fd=trash_fd)
                except OSError as error:
                    failed[name] = why(error)
                    if made:
                        os.unlink(name + PIN_ENDING, dir_fd=work.fd)
                    continue
            restored.append(name)
            now = journal.instant(time.time_ns() // 1_000_000)
            journal.append([journal.Line(now, "restored", name, trash=item).as_json()], own_fd)
    return restored, failed


def _in_trash(work: WorkDir) -> list[tuple[str, journal.Line]]:
    own_fd = work.open_own()
    if own_fd is None:
        return []
    lines = journal.pruned(own_fd)
    try:
        with opened_own_dir(trash.NAME, dir_fd=own_fd) as trash_fd:
            items = [item for item in trash.items(trash_fd) if not item.claimed]
    except FileNotFoundError:
        return []
    return [(item.name, lines[item.name]) for item in items if item.name in lines]


def _pin(work: WorkDir, name: str) -> bool:
    """Create the pin beside `name`, before it is back; False if it was there already."""
    if "/" in name or name in (os.curdir, os.pardir):
        raise CkptdError(f"{name}: no name of a checkpoint in {work.path}")
    return make_pin(name, work_fd=work.fd)


def _iso(line: journal.Line) -> str | None:
    until_ms = line.until_ms
    return None if until_ms is None else datetime.fromtimestamp(until_ms / 1000, UTC).isoformat(timespec="seconds")
