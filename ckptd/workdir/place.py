"""Where ckptd's own files are: `.ckptd` in the work dir; beside the work dir where its framework trips over them.

Accelerate's own `load_state` takes the entry with the highest number in its `checkpoints/`, whatever that is, and fails
over one without. So there they are in the parent: `.ckptd.checkpoints`, and the pointer.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from ..core.layouts import ASIDE
from ..disk.descriptors import OWN_DIR, exists, listed, opened_dir, opened_own_dir, path_of
from ..errors import RefusedError, why

IGNORE = ".ckptd-ignore"  # a directory in which this is has no run that ckptd looks after, whatever is in the file


def own_dir(dir_fd: int) -> str:
    """The path of ckptd's directory, relative to the work dir `dir_fd`, whether it is there yet or not.

    Once it is there it stays where it is.
    """
    if exists(OWN_DIR, dir_fd=dir_fd):
        return OWN_DIR
    try:
        path = os.readlink(f"/proc/self/fd/{dir_fd}")
    except OSError:
        return OWN_DIR
    beside = f"../{OWN_DIR}.{os.path.basename(path)}"
    if path == "/" or len(os.fsencode(os.path.basename(beside))) > 255:
        return OWN_DIR
    with contextlib.suppress(OSError):  # a parent that may not be searched
        if exists(beside, dir_fd=dir_fd):
            return beside
    return beside if _holds_what_trips(dir_fd) else OWN_DIR


def is_ignored(dir_fd: int) -> bool:
    """Whether somebody has asked ckptd to leave the directory alone."""
    return exists(IGNORE, dir_fd=dir_fd)


def left_alone_text(path: str) -> str:
    """Why a work dir that was named is left alone, and the way out."""
    return f"{path}: is left alone, since it holds {IGNORE}. Remove that file to have the directory looked after"


def is_aside(own: str) -> bool:
    """Whether the directory that `own_dir` has named is beside the work dir, and so the pointer too."""
    return own.startswith("../")


@contextlib.contextmanager
def opened_own(dir_fd: int) -> Iterator[int]:
    """A descriptor of ckptd's directory of the work dir `dir_fd`. Raises FileNotFoundError if there is none yet.

    Beside the work dir it is of the same owner, or RefusedError: others may be able to write in the parent.
    """
    own = own_dir(dir_fd)
    with opened_own_dir(own, dir_fd=dir_fd) as fd:
        if is_aside(own) and os.fstat(fd).st_uid != os.fstat(dir_fd).st_uid:
            raise RefusedError(f"{path_of_own(dir_fd)}: belongs to another user than its work dir. Remove it")
        yield fd


def make_own(dir_fd: int) -> None:
    """Make ckptd's directory if there is none, with the work dir's owner and mode.

    Raises OSError, and RefusedError where nothing could be renamed into it.
    """
    own = own_dir(dir_fd)
    if is_aside(own):
        _check_same_mount(dir_fd)
    try:
        os.mkdir(own, dir_fd=dir_fd)
    except FileExistsError:
        return
    except OSError as error:
        if is_aside(own):
            raise OSError(error.errno, f"{why(error)} (Accelerate wants nothing but its own inside)", own) from error
        raise
    info = os.fstat(dir_fd)
    with opened_own_dir(own, dir_fd=dir_fd) as fd:
        # Whoever may write checkpoints there may also run ckptd there.
        with contextlib.suppress(PermissionError):
            os.fchown(fd, info.st_uid, info.st_gid)
        try:
            os.fchmod(fd, stat.S_IMODE(info.st_mode))
        except PermissionError:
            # A sandbox forbids setgid bits; what is made there inherits it.
            os.fchmod(fd, info.st_mode & 0o777)


def path_of_own(dir_fd: int) -> str:
    """Where ckptd's directory is, for a message."""
    own = own_dir(dir_fd)
    try:
        return os.path.normpath(os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), own))
    except OSError:
        return own


def _check_same_mount(dir_fd: int) -> None:
    """Raise RefusedError if the work dir is mounted by itself: then no rename leads out of it."""
    with opened_dir("..", dir_fd=dir_fd) as parent_fd:
        same = os.fstat(parent_fd).st_dev == os.fstat(dir_fd).st_dev and _mount(parent_fd) == _mount(dir_fd)
    if not same:
        path = os.path.normpath(path_of(".", dir_fd=dir_fd))
        raise RefusedError(
            f"{path}: is a mount point, and Accelerate wants nothing but its own inside, so there is no place for what "
            f"ckptd keeps. Mount its parent instead; or make {path}/{OWN_DIR}, if the job names what it loads"
        )


def _mount(fd: int) -> str:
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            return next((line for line in info if line.startswith("mnt_id:")), "")
    except OSError:
        return ""


def _holds_what_trips(dir_fd: int) -> bool:
    with listed(dir_fd) as entries:
        return any(
            entry.is_dir(follow_symlinks=False) and any(names.step_of(entry.name) is not None for names in ASIDE)
            for entry in entries
        )
