"""What a symlink in a work dir names there.

It is read; what it leads to is asked only where an answer is sure to come.
"""

from __future__ import annotations

import os

from ..disk.links import UnknownError, resolved

_MOST_LINKS = 40  # as the kernel's own limit


def names_behind(link: str, work_dir: str, *, dir_fd: int) -> set[str]:
    """The names in the work dir that the symlink `link` is about: the one it holds, and the one it ends at.

    One that leads nowhere here may well lead somewhere in a container, on another host, or before the run was moved:
    there it names what bears a name of its path here. So does one that leads to a file system that may not answer. One
    that leads to another file elsewhere names that one.
    """
    try:
        target = os.readlink(link, dir_fd=dir_fd)
    except OSError:
        return set()
    names = _by_plain_names(target, dir_fd) or _by_paths(link, target, work_dir, dir_fd)
    return names - {os.curdir, os.pardir, link}


def _by_plain_names(target: str, dir_fd: int) -> set[str]:
    """What a chain of links in the work dir is about; nothing if one of them holds more than a name."""
    names: set[str] = set()
    for _ in range(_MOST_LINKS):
        if "/" in target or target in ("", os.curdir, os.pardir):
            return set()
        names.add(target)
        try:
            target = os.readlink(target, dir_fd=dir_fd)
        except OSError:
            return names  # no link, or nothing is there
    return names


def _by_paths(link: str, target: str, work_dir: str, dir_fd: int) -> set[str]:
    here, device = os.path.realpath(work_dir), os.fstat(dir_fd).st_dev
    said = os.path.normpath(os.path.join(here, target))
    try:
        end = resolved(os.path.join(here, link), device=device)
    except UnknownError:
        return set(_from(here, said))
    try:
        there = os.stat(end, follow_symlinks=False)
    except OSError:
        return {*_from(here, said), *_from(here, end)}
    names = {_from(here, path)[0] for path in (said, end)}
    if _is_the_same(there, os.path.basename(end), dir_fd):
        names.add(os.path.basename(end))  # by another way, such as a bind mount
    return names


def _from(here: str, path: str) -> list[str]:
    return os.path.relpath(path, here).split(os.sep)


def _is_the_same(there: os.stat_result, name: str, dir_fd: int) -> bool:
    try:
        return os.path.samestat(there, os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
    except OSError:
        return False
