"""Patterns of `--exclude`: which directories below a root they leave out, each with all that lies in it.

Only names are compared; the disk is the tree's business.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from ..errors import UsageError

_ANY_DEPTH = "**"


def excluder(patterns: Iterable[str], roots: Sequence[str]) -> Callable[[str], str]:
    """Tells of an absolute path below one of the roots which pattern it is that leaves it out; "" if none does.

    A pattern without a slash is about the name of a directory at any depth; one with a slash about a path, below the
    root, from the current directory or absolute, in which `*` stays within one name and `**` stands for any number of
    them. What lies in a directory that is left out is for the caller to leave out with it.

    roots: absolute. Raises UsageError for a pattern that would leave out a root, or can be about nothing below any.
    """
    wanted = [(root, text, parts) for text in dict.fromkeys(patterns) for root, parts in _below(text, roots)]

    def pattern_of(path: str) -> str:
        for root, text, parts in wanted:
            if path.startswith(root) and _matches(path[len(root) :].split("/"), parts):
                return text
        return ""

    return pattern_of


def why(pattern: str) -> str:
    """By what a directory is left out, for a person to read."""
    return f"--exclude {pattern!r}"


def idle(patterns: Iterable[str], left_out: Mapping[str, str]) -> Iterator[str]:
    """A line for each pattern by which nothing is left out, in case of a slip."""
    for pattern in dict.fromkeys(patterns):
        if why(pattern) not in left_out.values():
            yield f"{why(pattern)} leaves nothing out"


def _below(text: str, roots: Sequence[str]) -> list[tuple[str, list[str]]]:
    """The pattern in parts, for each root that it can be about; the root with a slash at its end."""
    found = [(_with_slash(root), parts) for root in roots for parts in _readings(text, root)]
    if not found:
        raise UsageError(
            f"--exclude {text!r}: not below {', '.join(roots)}. Give a name, a path below it, or that path in full"
        )
    return found


def _readings(text: str, root: str) -> Iterator[list[str]]:
    """What the pattern can mean, as names from `root` on; nothing for a path elsewhere."""
    bare = text.rstrip("/")
    if "/" not in bare:
        # Compared with the root's own name too: `watch --recursive runs --exclude runs` means nothing good.
        if bare in ("", ".", _ANY_DEPTH) or fnmatchcase(os.path.basename(root), bare):
            raise _excludes_root(text, root)
        yield [_ANY_DEPTH, bare]
        return
    full = os.path.abspath(bare)  # a path as a shell completes it, too: what it means besides is left out as well
    if _with_slash(root).startswith(_with_slash(full)):
        raise _excludes_root(text, root)
    if full.startswith(_with_slash(root)):
        yield full[len(_with_slash(root)) :].split("/")
    parts = os.path.normpath(bare).split("/")
    if os.pardir not in parts and not bare.startswith("/"):
        if parts == [os.curdir] or _matches([], parts):
            raise _excludes_root(text, root)
        yield parts


def _excludes_root(text: str, root: str) -> UsageError:
    return UsageError(
        f"--exclude {text!r} leaves out {root} itself. Give a path below it, such as 'old/*', or '**/NAME' for a name "
        "at any depth"
    )


def _matches(names: list[str], parts: list[str]) -> bool:
    if not parts:
        return not names
    if parts[0] == _ANY_DEPTH:
        return any(_matches(names[at:], parts[1:]) for at in range(len(names) + 1))
    return bool(names) and fnmatchcase(names[0], parts[0]) and _matches(names[1:], parts[1:])


def _with_slash(path: str) -> str:
    return path.rstrip("/") + "/"
