"""Is there certainly nothing to resume from: asked where no complete checkpoint was found. Reads, never writes.

A run that is told so starts anew, and writes over what it could have gone on from. So all else is a doubt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..core.checkpoint import State
from ..core.layouts import FIRST_CONTACT_POINTERS, FRAMEWORK_POINTERS
from ..core.policy import Policy
from ..core.survey import Survey
from ..disk.descriptors import listed, opened_dir, opened_file
from ..disk.mounts import mounts, unescaped
from ..disk.opened import OpenedDirectory, OpenedFile
from ..errors import DoubtError, RefusedError
from ..inspect.directories import is_claimed
from ..inspect.files import structure_of_file
from ..inspect.scan import PARTS
from ..workdir.pointer import PointerFile, framework_pointers, link_target, named_by
from ..workdir.workdir import WorkDir
from .unrecognised import series_below, series_here

_FSTAB = "/etc/fstab"


def why_missing(work_dir: str) -> str:
    """Why there is nothing in a work dir that does not exist. Raises DoubtError or OSError where that may be."""
    path = os.path.abspath(work_dir)
    here = next(place for place in (path, *_parents(path)) if _is_there(place))
    if here == path or not os.path.exists(here):
        raise DoubtError(f"{work_dir}: {here} leads nowhere, or did so a moment ago. Mend it, and ask again")
    _check_mounts(work_dir, here)
    return f"{work_dir}: does not exist. Nothing to resume from, unless that name is wrong"


def why_empty(work: WorkDir, survey: Survey, policy: Policy) -> str:
    """Why there is nothing in a work dir without a complete checkpoint. Raises as `why_missing` does."""
    doubt = next(_doubts(work, survey, policy), None)
    if doubt is not None:
        raise DoubtError(f"{work.path}: {doubt}. See `ckptd plan {work.path}`; a run that is to start anew needs a "
                         "work dir without it")  # fmt: skip
    _check_mounts(work.path, work.path)
    below = "".join(f". {line}" for line in series_below(work.path, policy))
    return (
        f"{work.path}: no complete checkpoint, nor what could be one. Nothing to resume from, unless that name is wrong"
        f"{below}"
    )


def _doubts(work: WorkDir, survey: Survey, policy: Policy) -> Iterator[str]:
    """What could be a checkpoint, or knows of one; what is nearest to one first."""
    there = sorted((d.checkpoint for d in survey.decisions), key=lambda c: (c.mtime_ns, c.step), reverse=True)
    for checkpoint in there:
        failed = checkpoint.state.whole and not checkpoint.fit
        why = "an fsync of it has failed" if failed else checkpoint.evidence
        again = survey.settles_s if checkpoint.state is State.IN_FLIGHT else None
        yield (
            f"{checkpoint.name} is {checkpoint.state.value} ({why})"
            + (f", and none of {len(there)} is complete" if len(there) > 1 else "")
            + (f"; ask again in {again:.0f} s" if again is not None else "")
        )
    for alone in survey.left_alone:
        yield f"{alone.name} has a checkpoint's name, and is left alone ({alone.reason})"
    for pointer, name in _pointed(work, survey, policy):
        yield f"{pointer} names {name}, and no complete checkpoint is there"
    if not (policy.templates or policy.layouts):
        yield from series_here(work.path, OpenedDirectory(work.fd))
        for name in _nameless(work.fd):
            yield f"{name} looks like a checkpoint, by none of the known names; --template gives one"


def _pointed(work: WorkDir, survey: Survey, policy: Policy) -> Iterator[tuple[str, str]]:
    """What says that there is a checkpoint: ours, a framework's, and what a symlink stands for."""
    pointer = PointerFile(work, policy.pointer)
    if survey.pointed:
        yield pointer.name, named_by(survey.pointed)
    elif pointer.exists():
        yield pointer.name, "nothing that can be read"
    for file, names in framework_pointers(FRAMEWORK_POINTERS, dir_fd=work.fd).items():
        yield file, min(names)
    for link in FIRST_CONTACT_POINTERS:
        target = link_target(link, dir_fd=work.fd)
        if target:
            yield link, target


def _nameless(fd: int) -> Iterator[str]:
    """What has a checkpoint's bytes, whatever its name."""
    with listed(fd) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            try:
                if entry.is_dir(follow_symlinks=False):
                    with opened_dir(entry.name, dir_fd=fd) as inside:
                        looks_like_one = is_claimed(OpenedDirectory(inside))
                elif entry.name.endswith((*PARTS, ".tar")):
                    with opened_file(entry.name, dir_fd=fd) as inside:
                        looks_like_one = structure_of_file(OpenedFile(inside)).known
                else:
                    continue
            except (FileNotFoundError, RefusedError):
                continue
            if looks_like_one:
                yield entry.name


def _check_mounts(work_dir: str, here: str) -> None:
    """Raise DoubtError where `here` is to be on a file system that is not mounted now."""
    here = os.path.realpath(here)
    try:
        kinds = {mount.place: mount.kind for mount in mounts()}
        with open(_FSTAB) as fstab:
            wanted = {unescaped(line.split()[1]) for line in fstab if len(line.split()) > 1}
    except OSError:
        return  # nothing is known of what is to be mounted
    above = [here, *_parents(here)]
    missing = next((place for place in above if place in wanted and place not in kinds), None)
    if missing is not None:
        raise DoubtError(f"{work_dir}: {missing} is not mounted, though {_FSTAB} has it. Mount it, and ask again")
    mounted = next((place for place in above if place in kinds), "/")
    if kinds.get(mounted) == "autofs":
        raise DoubtError(f"{work_dir}: {mounted} is mounted on demand, and was not. Look there, and ask again")


def _is_there(path: str) -> bool:
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def _parents(path: str) -> Iterator[str]:
    while path != (path := os.path.dirname(path)):
        yield path
