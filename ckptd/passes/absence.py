"""Is there certainly nothing to resume from: asked where no complete checkpoint was found. Reads, never writes.

A run that is told so starts anew, and writes over what it could have gone on from. So all else is a doubt.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

from ..core.checkpoint import State
from ..core.guess import is_nearly
from ..core.keyed import given
from ..core.layouts import FIRST_CONTACT_POINTERS
from ..core.naming import Family, named_by
from ..core.policy import Policy, name_test
from ..core.survey import Survey
from ..core.trackers import NOTHING
from ..disk.descriptors import listed
from ..disk.mounts import mounts, unescaped
from ..disk.opened import OpenedDirectory
from ..errors import DoubtError
from ..inspect.trackers import told_by_frameworks
from ..inspect.unnamed import looks_like_one
from ..workdir.pointer import PointerFile, link_target
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
    here = OpenedDirectory(work.fd)
    yield from series_here(work.path, here)
    asked = bool(policy.templates or policy.layouts)
    names = "the names that were asked for" if asked else "the known names"
    for name in sorted(here.names):
        if (not asked or _may_be_meant(name, policy, here)) and looks_like_one(name, here):
            yield f"{name} looks like a checkpoint, by none of {names}; --template gives one"


def _pointed(work: WorkDir, survey: Survey, policy: Policy) -> Iterator[tuple[str, str]]:
    """What says that there is a checkpoint: ours, a framework's, and what a symlink stands for."""
    pointer = PointerFile(work, policy.pointer)
    if survey.pointed:
        yield pointer.name, named_by(survey.pointed)
    elif pointer.exists():
        yield pointer.name, "nothing that can be read"
    with listed(work.fd) as entries:
        files = sorted(entry.name for entry in entries if entry.is_file(follow_symlinks=False))
    for told in told_by_frameworks(files, OpenedDirectory(work.fd)):
        if told.trouble:
            yield told.file, f"nothing that can be read ({told.trouble})"
        elif told.said != NOTHING:
            yield told.file, min(told.said.names, default="something")
    for link in FIRST_CONTACT_POINTERS:
        target = link_target(link, dir_fd=work.fd)
        if target:
            yield link, target


def _may_be_meant(name: str, policy: Policy, here: OpenedDirectory) -> bool:
    """Whether a run that was asked for by other names may have saved it all the same: a known name, or nearly one that
    was asked for. A `pretrained.pth` beside is no reason to stop."""
    if name_test(Policy())(name, here.is_dir(name)):
        return True
    asked = (names for names in map(given, policy.templates) if not isinstance(names, Family))
    return any(is_nearly(name, names.sample) for names in asked)


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
