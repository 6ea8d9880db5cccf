"""What lies in a work dir in which nothing was found: told with the command that would find it.

Reads, never writes. Nothing is told that is not borne out by bytes, and no command that would not list what is meant.
"""

from __future__ import annotations

import os
import shlex
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import replace

from ..core.entry import LeftAlone
from ..core.guess import companions, twins
from ..core.layouts import LAYOUTS, Layout, takes_directories
from ..core.naming import JOINT, Template
from ..core.partners import joint
from ..core.plan import Plan
from ..core.policy import NameTest, Policy, name_test
from ..core.survey import Survey
from ..disk.descriptors import listed, opened_dir
from ..disk.mounts import mounts
from ..disk.opened import OpenedDirectory
from ..inspect.unnamed import Series, files_of, is_of, series_in
from ..text.human import plural
from ..workdir.workdir import WorkDir

_MOST_SERIES = 6
_MOST_DIRECTORIES, _DEEPEST = 300, 4


def explained(work: WorkDir, survey: Survey, policy: Policy, *, links: bool = True) -> Survey:
    """The survey with what a person should know of what was left alone, and of what is there where nothing was found.

    links: whether directories that symlinks lead to are looked into, on a disk that may not answer.
    """
    here = OpenedDirectory(work.fd)
    left_alone = tuple(_told(each, here) for each in survey.left_alone)
    survey = replace(survey, left_alone=left_alone)
    lines: list[str] = []
    with suppress(OSError):  # advice is no reason to fail
        lines += (
            _beside(work, survey, policy, here)
            if survey.decisions
            else _advice(work, survey, policy, here, links=links)
        )
    return replace(survey, advice=(*survey.advice, *lines))


def _told(each: LeftAlone, here: OpenedDirectory) -> LeftAlone:
    """Why it was left alone, without a way out that would be none."""
    layout = _layout_of(each)
    if layout is None or is_of(layout, each.name, here):
        return each
    return LeftAlone(each.name, f"named as {layout.title} names checkpoints, and none by its bytes; "
                                "--template names it")  # fmt: skip


def _advice(work: WorkDir, survey: Survey, policy: Policy, directory: OpenedDirectory, *, links: bool) -> Iterator[str]:
    said = set[str]()
    for layout, names in _left_alone(survey).items():
        what = "file" if any(JOINT in form.text for form in layout.forms) else "checkpoint"
        yield _line(f"{plural(len(names), what)} of {layout.title}", work.path, "--layout", layout.name)
        said.update(names)
    here = list(series_here(work.path, directory, but=said))
    yield from here
    if not (said or here):
        yield from series_below(work.path, policy, links=links)


def told_of(root: str, policy: Policy) -> list[str]:
    """A line for what looks like checkpoints in the directory `root`, or else below it."""
    lines: list[str] = []
    with suppress(OSError), opened_dir(root) as fd:  # advice is no reason to fail
        lines += series_here(root, OpenedDirectory(fd))
        if not lines:
            lines += series_below(root, policy)
    return lines


def _beside(work: WorkDir, survey: Survey, policy: Policy, here: OpenedDirectory) -> Iterator[str]:
    """Of each series that was found, what is named much as it is, and not of it."""
    others = here.names - survey.plan.memory.seen.keys()  # of 100,000 names, few
    for series in survey.plan.series:
        template = series.grid.template
        if not isinstance(template, Template) or not series.decisions:
            continue
        # Half of a run, often, by `{:03d}`.
        for twin in twins(others, template):
            text = f"{plural(len(twin.names), 'name')} such as {twin.names[-1]} are not of {template.text}"
            yield _line(text, work.path, "--template", twin.template)
        for guess in companions(others, template):
            if files_of(guess, here):
                count = plural(len(guess.names), "file")
                text = f"{count} such as {guess.names[-1]} stand beside {template.text}, and stay when that goes"
                together = None if takes_directories(template.text) else joint([template.text, guess.template])
                yield _line(f"{text}, unless named together", work.path, "--template", together) if together else text
    yield from _together(work.path, survey.plan, policy)


def _together(path: str, plan: Plan, policy: Policy) -> Iterator[str]:
    """A question about series that are saved together: only a person knows whether they are one."""
    if len(plan.series) < 2:
        return
    from ..core.in_turn import saved_together  # few runs have several series

    given_as = {text: at for at, text in enumerate(policy.templates)}
    series = sorted(plan.series, key=lambda each: (given_as.get(text := each.grid.template.text, len(given_as)), text))
    for those in saved_together(series):
        texts = [series.grid.template.text for series in those]
        together = joint(texts)
        if together:
            are = f"{', '.join(texts[:-1])} and {texts[-1]} have the same steps"
            yield _line(f"{are}; if the files of a step are one checkpoint", path, "--template", together)


def series_here(path: str, directory: OpenedDirectory, *, but: AbstractSet[str] = frozenset()) -> Iterator[str]:
    """A line for what has a checkpoint's bytes in a directory, and a name that nobody has given. Raises OSError."""
    here = [each for each in series_in(directory) if but.isdisjoint(each.guess.names)]
    if here:
        series = "one series" if len(here) == 1 else f"{len(here)} series"
        text = f"no checkpoint by a known name, but {_what(here)} look like {series}"
        yield _line(text, path, *_templates(here))


def series_below(root: str, policy: Policy, *, links: bool = True) -> Iterator[str]:
    """A line for checkpoints in directories below. links: as for `explained`."""
    is_checkpoint = name_test(policy)
    known: dict[str, int] = {}
    unnamed: dict[str, list[Series]] = {}
    for path, is_link in _directories_below(root, links=links):
        with suppress(OSError), opened_dir(path) as fd:
            count = _known_in(fd, is_checkpoint)
            series = series_in(OpenedDirectory(fd)) if not count else []
            if is_link and (count or series):
                text = (
                    f"{os.path.relpath(path, root)} is a symlink to a directory with checkpoints, and is not followed"
                )
                yield _line(text, path, *_templates(series))
            elif count:
                known[path] = count
            elif series:
                unnamed[path] = series
    from ..core.rank_dirs import why_with_others  # few have any

    names = {path: os.path.basename(path) for path in known}
    ranks = {path for path, name in names.items() if why_with_others(name, names.values())}
    if ranks:
        first = os.path.relpath(min(ranks), root)
        yield f"{len(ranks)} directories such as {first} hold a rank of one run each, so none is pruned below a root"
        known = {path: count for path, count in known.items() if path not in ranks}
    if len(known) > 1:
        text = f"checkpoints lie in {len(known)} directories below, such as {os.path.relpath(min(known), root)}"
        yield _line(text, root, "--recursive")
    elif known:
        ((path, count),) = known.items()
        lie = f"{count} checkpoints lie" if count > 1 else "a checkpoint lies"
        yield _line(f"{lie} in {os.path.relpath(path, root)}", path)
    elif unnamed:
        path, series = next(iter(unnamed.items()))
        yield _line(
            f"{_what(series)} in {os.path.relpath(path, root)} look like checkpoints", path, *_templates(series)
        )


def _directories_below(root: str, *, links: bool) -> Iterator[tuple[str, bool]]:
    """Directories a few levels down, those near the root first, and whether a symlink leads there.

    What is mounted somewhere is passed over: whoever looks into it may wait for a server that is gone.
    """
    mounted = _mount_points()
    ahead, looked = deque([(root, 0)]), 0
    while ahead and looked < _MOST_DIRECTORIES:
        path, depth = ahead.popleft()
        looked += 1
        below: list[str] = []
        with suppress(OSError), os.scandir(path) as entries:
            for entry in entries:
                if entry.name.startswith(".") or entry.path in mounted:
                    continue
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                elif links and depth == 0 and entry.is_symlink() and os.path.isdir(entry.path):
                    yield entry.path, True
        for each in sorted(below):
            yield each, False
            if depth + 1 < _DEEPEST:
                ahead.append((each, depth + 1))


def _mount_points() -> frozenset[str]:
    try:
        return frozenset(mount.place for mount in mounts())
    except OSError:
        return frozenset()


def _known_in(fd: int, is_checkpoint: NameTest) -> int:
    """How many checkpoints a directory holds, by their names."""
    with listed(fd) as entries:
        return sum(
            is_checkpoint(entry.name, is_dir)
            for entry in entries
            if (is_dir := entry.is_dir(follow_symlinks=False)) or entry.is_file(follow_symlinks=False)
        )


# --- layouts that are only listed -----------------------------------------------------------------------------------


def _left_alone(survey: Survey) -> dict[Layout, list[str]]:
    """What is listed for each layout that nobody has asked for, by its names."""
    found: dict[Layout, list[str]] = {}
    for each in survey.left_alone:
        layout = _layout_of(each)
        if layout is not None:
            found.setdefault(layout, []).append(each.name)
    return found


def _layout_of(each: LeftAlone) -> Layout | None:
    return next((layout for layout in LAYOUTS if each.reason.endswith(f"--layout {layout.name}")), None)


# --- words ------------------------------------------------------------------------------------------------------


def _what(series: Sequence[Series]) -> str:
    kinds_of_files = {each.what for each in series}
    what = kinds_of_files.pop() if len(kinds_of_files) == 1 else "files"
    return f"{sum(len(each.guess.names) for each in series)} {what}"


def _templates(series: Sequence[Series]) -> list[str]:
    return [word for each in series[:_MOST_SERIES] for word in ("--template", each.guess.template)]


def _line(text: str, path: str, *options: str) -> str:
    return f"{text}: {shlex.join(['ckptd', 'plan', path, *options])}"
