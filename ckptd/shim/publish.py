"""Put a checkpoint under its name: written aside, durable, renamed. The final name is never that of a part.

Knows nothing of what is written; deletes nothing but its own temporary file.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from typing import IO

from ..core.naming import Template
from ..disk.descriptors import sync_dir, temporary_name
from ..errors import CkptdError

_CREATE = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC

LATEST = "latest.pth"


_being_written: set[int] = set()  # descriptors
# Held while one of them is opened or closed: a child that is forked in that moment would have a file that is not noted,
# or would give up one that is another's by now. Reentrant, for a signal's handler that forks.
_noting = threading.RLock()


def publish(
    name: str, template: Template, write: Callable[[IO[bytes]], None], *, dir_fd: int, outdated: str | None = None
) -> None:
    """Let `write` fill a file and put it under `name`, replacing what bears that name, mode as the umask says.

    outdated: a file that is about what bears the name now, and is removed just before that is replaced. One
    temporary name for each template, so that a killed save leaves one stray at most. Raises what `write` raises,
    OSError, and CkptdError while another process saves the series there; then the name is as it was before, and the
    temporary file is gone.
    """
    aside = temporary_name(template.text)
    sweep(template, dir_fd=dir_fd)
    with _noting:
        fd = os.open(aside, _CREATE, 0o666, dir_fd=dir_fd)
        _being_written.add(fd)
    try:
        with _closed_at_the_end(fd) as file:
            with contextlib.suppress(OSError):  # where there are no locks, two runs in one directory are not told
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            write(file)
            file.flush()
            os.fsync(fd)
        if outdated is not None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(outdated, dir_fd=dir_fd)
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except BaseException:
        with contextlib.suppress(OSError):  # what went wrong first is what is told
            os.unlink(aside, dir_fd=dir_fd)
        raise
    sync_dir(dir_fd)


@contextlib.contextmanager
def _closed_at_the_end(fd: int) -> Iterator[IO[bytes]]:
    file = open(fd, "wb")  # noqa: SIM115 - closed below, in the moment it is no longer noted
    try:
        yield file
    finally:
        with _noting:
            _being_written.discard(fd)
            file.close()


def _let_go() -> None:
    """In a forked child, such as a DataLoader's worker: to have the file open there, it would seem unfinished here.

    The number stays taken, by a file that takes everything: whoever closes it later closes nothing of another's.
    """
    for fd in _being_written:
        with contextlib.suppress(OSError):
            nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
            os.dup2(nothing, fd, inheritable=False)
            os.close(nothing)
    _being_written.clear()
    _noting.release()


os.register_at_fork(before=_noting.acquire, after_in_parent=_noting.release, after_in_child=_let_go)


def sweep(template: Template, *, dir_fd: int) -> bool:
    """Remove the temporary file that a killed save has left; returns whether there was one.

    Raises CkptdError if a save is being written into it, by another process or another hook.
    """
    aside = temporary_name(template.text)
    try:
        fd = os.open(aside, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=dir_fd)
    except FileNotFoundError:
        return False
    except OSError:  # what cannot be opened is nobody's unfinished save
        fd = -1
    try:
        if fd >= 0:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise CkptdError(
            f"{template.text}: another run is saving this series in this directory right now. "
            "Give each run its own directory, or wait until that one has ended"
        ) from None
    except OSError:
        pass  # a file system without locks
    finally:
        if fd >= 0:
            os.close(fd)
    os.unlink(aside, dir_fd=dir_fd)
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
