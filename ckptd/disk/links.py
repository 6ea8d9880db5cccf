"""Where a path leads, asking no file system that may not answer: a symlink can lead to a dead server's."""

from __future__ import annotations

import os
from collections.abc import Collection

from .mounts import Mount, mounts, way_to

_MOST_LINKS = 40  # as the kernel's own limit


class UnknownError(Exception):
    """Where a path leads cannot be told without asking a file system that may not answer."""


def resolved(path: str, *, device: int) -> str:
    """The absolute `path` without a symlink in it, as far as it exists; as it is where its links go in a circle.

    device: of a file system that may be asked whatever it is. Raises UnknownError.
    """
    try:
        among = mounts()
    except OSError as error:
        raise UnknownError from error
    done, rest, links = "/", _last_first(path), 0
    while rest:
        part = rest.pop()
        if part == os.pardir:
            done = os.path.dirname(done)
            continue
        done = os.path.join(done, part)
        _check_answers(done, among, device)
        try:
            target = os.readlink(done)
        except OSError:
            continue  # no link, or nothing is there
        links += 1
        if links > _MOST_LINKS:
            return path
        done = "/" if target.startswith("/") else os.path.dirname(done)
        rest += _last_first(target)
    return done


def _last_first(path: str) -> list[str]:
    return [part for part in reversed(path.split("/")) if part not in ("", os.curdir)]


def _check_answers(path: str, among: Collection[Mount], device: int) -> None:
    if not all(each.answers or each.device == device for each in way_to(path, among)):
        raise UnknownError
