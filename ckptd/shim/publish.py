"""Put a checkpoint under its name: written aside, durable, renamed. The final name is never that of a part.

Knows nothing of what is written; deletes nothing but its own temporary file.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import IO

from ..core.naming import Template
from ..disk import sync_dir, temporary_name

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

LATEST = "latest.pth"


def publish(name: str, template: Template, write: Callable[[IO[bytes]], None], *, dir_fd: int) -> None:
    """Let `write` fill a file and put it under `name`, replacing what bears that name, mode as the umask says.

    One temporary name for each template, so that a killed save leaves one stray at most. Raises what `write`
    raises, and OSError; then the name is as it was before, and the temporary file is gone.
    """
    aside = temporary_name(template.text)
    sweep(template, dir_fd=dir_fd)
    try:
        with open(os.open(aside, _CREATE, 0o666, dir_fd=dir_fd), "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            os.unlink(aside, dir_fd=dir_fd)
        raise
    sync_dir(dir_fd)


def sweep(template: Template, *, dir_fd: int) -> bool:
    """Remove the temporary file that a killed save has left; returns whether there was one."""
    try:
        os.unlink(temporary_name(template.text), dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    return True


def check_writable(template: Template, *, dir_fd: int) -> None:
    """Raise OSError unless a save could make its temporary file; leaves nothing behind."""
    sweep(template, dir_fd=dir_fd)
    os.close(os.open(temporary_name(template.text), _CREATE, 0o666, dir_fd=dir_fd))
    sweep(template, dir_fd=dir_fd)


def link_latest(name: str, *, dir_fd: int) -> None:
    """Make `latest.pth` a symlink to `name`, whole at every moment. Raises OSError, as where there are no symlinks."""
    aside = temporary_name(LATEST)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside, dir_fd=dir_fd)
    os.symlink(name, aside, dir_fd=dir_fd)
    try:
        os.rename(aside, LATEST, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=dir_fd)
        raise
    sync_dir(dir_fd)
