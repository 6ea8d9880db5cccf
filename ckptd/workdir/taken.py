"""What went for want of room the last time, kept as `.ckptd/min-free.json` until that has shown on the disk.

A lost or broken file is as if nothing had gone.
"""

from __future__ import annotations

import contextlib
import json
import os
from dataclasses import dataclass

from ..disk.descriptors import NO_ROOM, read_small, replace_file
from ..errors import CkptdError

NAME = "min-free.json"


@dataclass(frozen=True)
class Taken:
    """How much went, when (ns since 1970), and how much was free before."""

    at_ns: int
    free_bytes: int
    taken_bytes: int


def read_taken(own_fd: int) -> Taken | None:
    """What is written down in the `.ckptd` directory open as `own_fd`. Raises OSError if it cannot be read."""
    with contextlib.suppress(CkptdError, ValueError, TypeError, AttributeError):
        raw = json.loads(read_small(NAME, dir_fd=own_fd, at_most=1000) or b"null")
        return Taken(**{key: int(value) for key, value in raw.items()})
    return None


def write_taken(taken: Taken, own_fd: int) -> None:
    """Write it down, durably, unless the disk is full. Raises OSError."""
    try:
        replace_file(NAME, json.dumps(vars(taken)).encode(), dir_fd=own_fd)
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise


def forget_taken(own_fd: int) -> None:
    """It has shown. Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        os.unlink(NAME, dir_fd=own_fd)
