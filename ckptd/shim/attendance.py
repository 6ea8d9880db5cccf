"""Notice a run that wants its checkpoints pruned while no ckptd is there to do it. Reads, never writes; no torch."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shlex

from ..core.naming import Template
from ..disk.descriptors import LOCK, listed, opened_dir, opened_file
from ..errors import CkptdError
from ..workdir.place import opened_own

_SPARE = 2  # one that was just saved, and one that a ckptd may be about to prune

_log = logging.getLogger("ckptd.shim")
_warned: set[str] = set()


def warn_if_unattended(work_dir: str | os.PathLike[str], template: Template, max_keep: int) -> None:
    """Say once for each work dir that nobody prunes there: more than `max_keep` checkpoints by two, and no ckptd.

    For after a save, on one rank. max_keep: how many are to be kept; below 1 for all, and then nothing is said. Nor
    is it where nobody can tell, as on a file system without locks. Never raises for what it finds on the disk.
    """
    place = os.path.abspath(work_dir)
    if max_keep < 1 or place in _warned:
        return
    try:
        with opened_dir(place) as fd:
            count = _count(template, fd)
            unattended = count >= max_keep + _SPARE and not _has_owner(fd)
    except (OSError, CkptdError):
        return
    if unattended:
        _warned.add(place)
        _log.warning("%d checkpoints of %s are in %s, %d are to be kept, and no ckptd is there to prune them; run "
                     "`ckptd watch %s` beside the job", count, template.text, place, max_keep,
                     shlex.quote(place))  # fmt: skip


def _count(template: Template, dir_fd: int) -> int:
    with listed(dir_fd) as entries:
        return sum(template.step_of(entry.name) is not None for entry in entries)


def _has_owner(dir_fd: int) -> bool:
    """Whether a ckptd owns the work dir. Raises OSError where that cannot be told.

    Asked of the lock itself: /proc/locks lists no lock of another container or host. It is asked for shared, so that
    the jobs that ask at one moment are no owners to each other, never waited for, and given back at once. A ckptd that
    starts in that moment finds it taken, and tries again after 50 ms, for a second. Unlocked before it is closed: a
    worker forked meanwhile by another thread has the descriptor too, and would hold on to the lock.
    """
    try:
        with opened_own(dir_fd) as own_fd, opened_file(LOCK, dir_fd=own_fd) as fd:
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno in (errno.EAGAIN, errno.EACCES):
                    return True
                raise
            fcntl.flock(fd, fcntl.LOCK_UN)
            return False
    except FileNotFoundError:
        return False
