"""The pointer: one line in the work dir that names the checkpoint to resume from. Advice that a reader checks.

Reads and replaces; what it should name is decided in passes/. Also reads the frameworks' own pointers.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable

from ..core.layouts import Pointer
from ..disk.descriptors import open_file, opened_dir, path_of, replace_file
from ..disk.opened import OpenedDirectory
from ..errors import CkptdError, RefusedError

_LONGEST = 8192  # bytes; two paths of PATH_MAX


def read_pointer(name: str, *, dir_fd: int) -> str | None:
    """The line that the pointer file `name` holds, without its newline; None if it is missing or no line of text."""
    try:
        fd = open_file(name, dir_fd=dir_fd)
    except (OSError, RefusedError):
        return None  # as nearly always of a framework's own, several times in each pass
    try:
        content = os.pread(fd, _LONGEST + 1, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    text = os.fsdecode(content).strip()
    return text if text and len(content) <= _LONGEST and "\n" not in text and "\0" not in text else None


def named_by(text: str) -> str:
    """The checkpoint that a pointer's line names: the last part of its path, so that a moved run finds it too."""
    return os.path.basename(text.rstrip("/"))


def replace_pointer(name: str, target: str, *, dir_fd: int) -> None:
    """Make the pointer name the path `target`: durable, and whole at every moment. Raises OSError.

    A directory in the pointer's place is refused; a symlink is replaced, never followed.
    """
    try:
        replace_file(name, os.fsencode(target) + b"\n", dir_fd=dir_fd)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise RefusedError(
            f"{path_of(name, dir_fd=dir_fd)}: a directory where the pointer goes. "
            "Move it away, or name another --pointer"
        ) from error


def framework_pointers(pointers: Iterable[Pointer], *, dir_fd: int) -> dict[str, set[str]]:
    """Which checkpoints each of the pointer files names, where they do: two frameworks may have one file."""
    found: dict[str, set[str]] = {}
    lines: dict[str, str | None] = {}
    for pointer in pointers:
        if pointer.file not in lines:
            lines[pointer.file] = read_pointer(pointer.file, dir_fd=dir_fd)
        text = lines[pointer.file]
        name = pointer.names(text) if text else None
        if name:
            found.setdefault(pointer.file, set()).add(name)
    return found


def best_of_trainer(name: str, *, dir_fd: int) -> str | None:
    """The checkpoint that the state of a Trainer in the directory `name` calls the best, as a plain name."""
    from ..inspect.parts import trainer_state  # here, because only a Trainer's checkpoints need it

    try:
        with opened_dir(name, dir_fd=dir_fd) as fd:
            best = (trainer_state(OpenedDirectory(fd)) or {}).get("best_model_checkpoint")
    except (OSError, CkptdError):
        return None
    return named_by(best) if isinstance(best, str) else None


def link_target(name: str, *, dir_fd: int) -> str | None:
    """What the symlink `name` names, as a plain name; None if it is no symlink."""
    try:
        if not stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return None
        return named_by(os.readlink(name, dir_fd=dir_fd))
    except OSError:
        return None
