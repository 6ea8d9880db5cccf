"""Tell a ckptd beside the job what the job does: one small file for each template, in the work dir."""

from __future__ import annotations

import contextlib
import logging
import os

from ..core.naming import Template
from ..core.schedule import DIRECTORY, LARGEST_BYTES, Schedule
from ..disk.descriptors import (
    OWN_DIR,
    listed,
    open_as_its_directory,
    opened_dir,
    opened_own_dir,
    read_small,
    replace_file,
)
from ..errors import CkptdError, why
from ..workdir.place import make_own, opened_own
from .ranks import rank_of

_log = logging.getLogger("ckptd.shim")
_warned: set[tuple[str, str]] = set()


def declare(
    work_dir: str | os.PathLike[str],
    *,
    template: str,
    unit: str,
    interval: int | None = None,
    max_keep: int | None = None,
) -> None:
    """Tell ckptd which checkpoints this run writes into `work_dir`; for those who save by themselves.

    template: their names, such as "step_{}.pt". unit: what the number counts, such as "epoch" or "iter". interval:
    numbers between two saves, at least 1, or None. max_keep: how many to keep, at least 1, or None for all.

    Call it after each save: nothing is written before the first checkpoint is there (some frameworks refuse an
    output directory that is not empty), nor what already stands there. Only rank 0 writes. What cannot be written
    is one warning and no error, since training does not depend on it; UsageError is raised for what means nothing.
    """
    place = os.path.abspath(work_dir)
    # A path that is no line of text cannot be told; the daemon has its own.
    schedule = Schedule(template, unit, interval, max_keep, place if place.isprintable() else None)
    if rank_of() != 0:
        return
    try:
        with opened_dir(place) as fd:
            if has_checkpoint(Template(schedule.template), dir_fd=fd):
                _write(schedule, fd)
    except (OSError, CkptdError) as error:
        if (place, schedule.template) not in _warned:
            _warned.add((place, schedule.template))
            _log.warning("could not declare %s in %s/%s: %s; give ckptd --max-keep and --interval instead",
                         schedule.template, place, OWN_DIR, why(error))  # fmt: skip


def has_checkpoint(template: Template, *, dir_fd: int) -> bool:
    """Whether anything in the directory bears a name of `template`."""
    with listed(dir_fd) as entries:
        return any(template.step_of(entry.name) is not None for entry in entries)


def file_name(template: str) -> str:
    """Where the schedule of `template` is kept. A name with a dot in front is nobody's schedule."""
    return f"%2E{template[1:]}.json" if template.startswith(".") else f"{template}.json"


def _write(schedule: Schedule, dir_fd: int) -> None:
    name, content = file_name(schedule.template), schedule.to_text().encode()
    make_own(dir_fd)
    with opened_own(dir_fd) as own_fd:
        with contextlib.suppress(FileExistsError):
            os.mkdir(DIRECTORY, dir_fd=own_fd)
        with opened_own_dir(DIRECTORY, dir_fd=own_fd) as fd:
            open_as_its_directory(fd, dir_fd=own_fd)
            with contextlib.suppress(CkptdError):  # what is no schedule is replaced, or that fails below
                if read_small(name, dir_fd=fd, at_most=LARGEST_BYTES) == content:
                    return
            replace_file(name, content, dir_fd=fd)
