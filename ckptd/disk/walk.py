"""The walk over a directory and all below it: under descriptors, no symlink followed, no deeper than any checkpoint."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import NamedTuple

from .descriptors import check_depth, opened_again, opened_dir, sync_dir, sync_file


class Directory(NamedTuple):
    """One directory on the walk, and what is in it.

    fd: a descriptor of it, open until all below it was walked. below: its path from the first, "" or ending in "/".
    directories: those that are gone into next; whoever takes one out of the list leaves it out of the walk.
    others: files, symlinks and all else. An entry can be asked for its inode as long as `fd` is open.
    """

    fd: int
    below: str
    directories: list[os.DirEntry[str]]
    others: list[os.DirEntry[str]]


def walk(name: str, *, dir_fd: int) -> Iterator[Directory]:
    """The directory `name` and each below it, a directory before those that are in it.

    One descriptor is open for each level, and none once the walk is over or given up. Raises OSError for what cannot be
    read or is gone when its turn comes, and (ELOOP) for what is nested too deeply.
    """
    return _walk(opened_dir(name, dir_fd=dir_fd), name, forgiving=False)


def walk_opened(dir_fd: int, *, forgiving: bool = False) -> Iterator[Directory]:
    """The same from the directory open as `dir_fd`. forgiving: leave out what below it would raise OSError."""
    return _walk(opened_again(dir_fd), ".", forgiving=forgiving)


def sync_tree(name: str, *, dir_fd: int) -> None:
    """Make a directory and all the regular files below it durable."""
    for fd, _, _, others in walk(name, dir_fd=dir_fd):
        for entry in others:
            if entry.is_file(follow_symlinks=False):
                sync_file(entry.name, dir_fd=fd)
        sync_dir(fd)


def _walk(
    opened: AbstractContextManager[int], name: str, *, forgiving: bool, below: str = "", depth: int = 0
) -> Iterator[Directory]:
    check_depth(depth, name)
    with opened as fd:
        directories: list[os.DirEntry[str]] = []
        others: list[os.DirEntry[str]] = []
        with os.scandir(fd) as entries:
            for entry in entries:
                (directories if entry.is_dir(follow_symlinks=False) else others).append(entry)
        yield Directory(fd, below, directories, others)
        for entry in directories:
            inside = opened_dir(entry.name, dir_fd=fd)
            path = f"{below}{entry.name}/"
            with contextlib.suppress(*((OSError,) if forgiving else ())):
                yield from _walk(inside, entry.name, forgiving=forgiving, below=path, depth=depth + 1)
