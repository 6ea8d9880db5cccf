"""The schedules that runs have declared: one small file for each template in `.ckptd/schedules/`.

Reads, never writes.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import replace

from ..core.schedule import DIRECTORY, LARGEST_BYTES, Schedule
from ..disk.descriptors import opened_own_dir, read_small
from ..errors import CkptdError, why


def read_schedules(own_fd: int | None, now_ns: int) -> tuple[dict[str, Schedule], dict[str, str]]:
    """By template, what is declared below the `.ckptd` directory `own_fd`; and by file, why others were ignored."""
    declared: dict[str, Schedule] = {}
    ignored: dict[str, str] = {}
    if own_fd is None:
        return declared, ignored
    with contextlib.suppress(FileNotFoundError), opened_own_dir(DIRECTORY, dir_fd=own_fd) as fd:
        for name in sorted(os.listdir(fd)):
            if name.startswith("."):
                continue
            try:
                declared_ns = os.stat(name, dir_fd=fd, follow_symlinks=False).st_mtime_ns
                schedule = Schedule.from_text((read_small(name, dir_fd=fd, at_most=LARGEST_BYTES) or b"").decode())
            except (CkptdError, OSError, UnicodeDecodeError) as error:
                ignored[name] = why(error)
            else:
                # A time in the future tells nothing: every save is then taken for one that came after.
                known_ns = declared_ns if declared_ns <= now_ns else None
                declared[schedule.template] = replace(schedule, declared_ns=known_ns)
    return declared, ignored
