"""The Python interface: what the commands do, for those who would rather call than spawn. No torch."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from .core.checkpoint import State
from .core.copied import highest_of_a_copy
from .core.entry import Entry
from .core.finder import Finder
from .core.layouts import LAYOUTS
from .core.memory import Seen
from .core.policy import Policy
from .core.survey import Survey
from .disk.descriptors import opened_dir
from .disk.filesystem import is_local
from .errors import CkptdError, DoubtError, RefusedError, why
from .inspect.scan import entry_of
from .inspect.verdict import Settling, Verdict, judge
from .passes.surveyor import Surveyor
from .workdir.place import is_ignored, left_alone_text
from .workdir.workdir import WorkDir, check_library_use

if TYPE_CHECKING:
    from .passes.report import Report

StrPath = str | os.PathLike[str]


def plan(work_dir: StrPath, policy: Policy | None = None, *, below: str | None = None) -> Survey:
    """What `prune` would do with `work_dir`, and why; changes nothing.

    below: the root below which it was found; between the two no symlink is followed.
    Raises CkptdError for what the caller can mend, and where the disk does not answer; RefusedError where a
    `.ckptd-ignore` has the work dir left alone.
    """
    from .passes.unrecognised import explained  # here, because `latest` seldom needs it
    from .workdir.trash import total_bytes

    with WorkDir(work_dir, below=below) as work, _named(work):
        if is_ignored(work.fd):
            raise RefusedError(left_alone_text(os.fspath(work_dir)))
        survey = Surveyor(work, policy := policy or Policy()).survey(time.time_ns())
        survey = explained(work, survey, policy)
        return replace(survey, trash_bytes=total_bytes(work.open_own()))


def prune(work_dir: StrPath, policy: Policy | None = None, *, below: str | None = None) -> Report:
    """Make one pass over `work_dir`: make the newest durable, move the pointer, delete what the policy prunes.

    What it deleted is freed when it returns. below: as for `plan`. Raises as `plan` does, and OwnedError while another
    ckptd, such as a `ckptd watch`, owns the work dir. Of one that is left alone it frees the trash when that is due.
    """
    # Here, because those who only read should not wait for what deletes.
    from .passes.background import Background
    from .passes.left_behind import LeftBehind
    from .passes.reconcile import Reconciler

    background = Background()
    with WorkDir(work_dir, below=below) as work, _named(work):
        check_library_use(work)
        try:
            if is_ignored(work.fd):
                LeftBehind(work, policy or Policy(), background).empty_trash()
                background.close()
                raise RefusedError(left_alone_text(os.fspath(work_dir)))
            reconciler = Reconciler(work, policy or Policy(), background)
            report = reconciler.reconcile()
            if report.unsaid and report.pruned:
                background.wait()  # what was deleted has made the room that was missing
                again = reconciler.reconcile()
                report = replace(again, pruned=report.pruned + again.pruned)
        except BaseException:
            background.close(0.0)  # ^C: what is half read or half freed is taken up by the next pass
            raise
        background.close()
        return replace(report, failed={**(report.failed or {}), **reconciler.unfreed})


def empty_trash(work_dir: StrPath, policy: Policy | None = None, *, below: str | None = None) -> None:
    """Free what the trash of `work_dir` has held long enough, and do nothing else. Raises as `prune` does."""
    from .passes.background import Background
    from .passes.left_behind import LeftBehind

    background = Background()
    with WorkDir(work_dir, below=below) as work, _named(work):
        check_library_use(work)
        LeftBehind(work, policy or Policy(), background).empty_trash()
        background.close()


def latest(work_dir: StrPath, policy: Policy | None = None) -> Path | None:
    """The newest complete checkpoint of `work_dir`, None if none is complete; changes nothing."""
    with WorkDir(work_dir) as work, _named(work):
        return _newest(work, _survey_for_reading(work, policy or Policy()))


def latest_or_why(work_dir: StrPath, policy: Policy) -> tuple[Path | None, str]:
    """As `latest`, and what a person should know of it; with None, why there is certainly nothing to resume from.

    Raises DoubtError where there is something, or may be: what cannot be read, is broken or still being written.
    """
    try:
        work = WorkDir(work_dir)
    except CkptdError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        from .passes.absence import why_missing

        return None, why_missing(os.fspath(work_dir))
    with work, _named(work):
        survey = _survey_for_reading(work, policy)
        newest = _newest(work, survey)
        if newest is None:
            from .passes.absence import why_empty

            return None, why_empty(work, survey, policy)
        for each in survey.unreadable:
            if _is_newer(each.entry, newest.name, survey.plan.memory.seen, dir_fd=work.fd):
                raise DoubtError(f"{work.path}/{each.entry.name}: cannot be read: {each.reason}. It is newer than "
                                 f"{newest.name}, which is complete")  # fmt: skip
        return newest, _doubt_of(survey, newest)


def _survey_for_reading(work: WorkDir, policy: Policy) -> Survey:
    return Surveyor(work, policy, as_remembered=True).survey(time.time_ns())


def _doubt_of(survey: Survey, path: Path) -> str:
    """What speaks against the checkpoint that `latest` names, in words; "" if nothing does."""
    if survey.plan.newest is None or survey.plan.newest.name == path.name:
        behind = survey.plan.behind
        if behind is not None:
            return f"{path}: {behind.text}"
        last = max(survey.decisions, key=lambda d: (d.order, d.checkpoint.step), default=None)
        if last is None or last.checkpoint.state is not State.DOUBTFUL:
            return ""
        return f"{path.parent}/{last.checkpoint.name} is newer, and in doubt: {last.checkpoint.evidence}"
    return (
        f"{path}: the times of these checkpoints are those of a copy, in the order of their names as text, so this is "
        f"the highest step. If a run was resumed from an older one and {survey.plan.newest.name} is the last that it "
        "saved, resume from that"
    )


def _newest(work: WorkDir, survey: Survey) -> Path | None:
    if survey.plan.newest is not None:
        # What a pointer named when the work dir was met for the first time is better advice than the numbers.
        named = survey.remembered is None and survey.pointed_name == survey.plan.newest.name
        highest = None if named or survey.plan.behind is not None else highest_of_a_copy(survey.plan)
        return Path(work.path, (highest or survey.plan.newest).name)
    # A pointer may name what no template knows; it is believed if the bytes bear it out.
    name = survey.pointed_name
    if name is None or any(d.checkpoint.name == name and d.checkpoint.entry.parts for d in survey.decisions):
        return None
    try:
        verdict = verify(Path(work.path, name))
    except CkptdError:
        return None
    return Path(work.path, name) if verdict.state.whole and verdict.known else None


def _is_newer(entry: Entry, than: str, seen: Mapping[str, Seen], *, dir_fd: int) -> bool:
    """Whether it was written after `than`, as far as is known."""
    if entry.name in seen and than in seen:
        return seen[entry.name].rank > seen[than].rank
    return entry.mtime_ns >= entry_of(than, dir_fd=dir_fd).mtime_ns


def verify(
    path: StrPath,
    *,
    settle_s: float | None = None,
    content: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Verdict:
    """Whether the checkpoint at `path` is complete, and the evidence; reads only.

    content: read it to its end too, where its format holds a checksum; `progress` is told how many bytes were read
    since it was last told. Of a checkpoint of several files all of it is looked at, where passes over its work dir were
    told of such. Raises CkptdError if there is none to read.
    """
    from .inspect.content import ChangedError, check_content
    from .passes.around import group_around

    place = Path(os.path.abspath(path))
    try:
        with opened_dir(str(place.parent)) as fd:
            entry, verdict = group_around(place, settle_s) or _judged(place.name, fd, settle_s)
            if not (content and verdict.checksum):
                return verdict
            fault = check_content(entry, dir_fd=fd, progress=progress)
    except ChangedError:
        return Verdict(State.IN_FLIGHT, "changed while it was read")
    except OSError as error:
        raise CkptdError(f"{path}: cannot be read: {why(error)}") from error
    if fault:
        return replace(verdict, state=State.INCOMPLETE, structure=fault)
    return replace(verdict, structure=f"{verdict.structure}, content read")


def _judged(name: str, dir_fd: int, settle_s: float | None) -> tuple[Entry, Verdict]:
    entry = entry_of(name, dir_fd=dir_fd)
    known = Finder((), LAYOUTS, asked=True).match(name)
    wanted = known[0].kinds if known else None
    settling = Settling(is_local(dir_fd), settle_s)
    judge_it = partial(judge, entry, dir_fd=dir_fd, settling=settling, now_ns=time.time_ns())
    verdict = judge_it(wanted=wanted, by_template=known is None)
    if not verdict.known:
        verdict = judge_it(by_template=True)  # what its name stands for it is not
    return entry, verdict


@contextlib.contextmanager
def _named(work: WorkDir) -> Iterator[None]:
    """What the system refused, said with the work dir it was about."""
    try:
        yield
    except OSError as error:
        name = error.filename if isinstance(error.filename, str) else ""
        raise CkptdError(f"{os.path.join(work.path, name)}: {why(error)}") from error
