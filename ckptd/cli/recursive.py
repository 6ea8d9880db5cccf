"""`plan --recursive` and `prune --recursive`: every work dir below the roots, one by one, and what they add up to.

One failure is not the end: it is said, the others go on, and the exit code is the worst.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import click

from .. import api
from ..core.plan import PRUNE
from ..core.policy import Policy, name_test
from ..core.survey import Survey
from ..daemon.exclude import excluder, idle
from ..daemon.tree import Tree
from ..errors import CkptdError, RefusedError, why
from ..text import render
from ..text.human import human_bytes
from ..text.voice import Voice
from ..workdir.place import is_ignored, left_alone_text
from ..workdir.workdir import WorkDir, other_owner, others_text
from .log import say

_MOST_ROWS = 20
_REFUSED = 3
_SHOWN_EVERY_S = 0.1

log = logging.getLogger("ckptd")


class _Row(NamedTuple):
    """What one run adds to the table."""

    holds: int
    path: str
    checkpoints: int
    frees: int


def plan(
    roots: Sequence[str], policy: Policy, excludes: Sequence[str] = (), *, json_: bool, width: int | None = None
) -> int:
    """Print the plan of every work dir, then the table of those that hold most; returns the exit code."""
    found = _Found(roots, policy, excludes)
    rows: list[_Row] = []
    for root, work_dir in found.each("planned"):
        try:
            survey = api.plan(work_dir, policy, below=root)
        except CkptdError as error:
            found.failed(error)
            continue
        if not survey.plan.decisions:
            continue
        rows.append(_row(survey, work_dir))
        found.progress.clear()
        if json_:
            click.echo(json.dumps(render.as_json(survey, work_dir)))
        else:
            for line in render.as_table(survey, work_dir, time.time(), width=width):
                say(line)
            say()
    if json_:
        for path, why_out in found.left_out.items():
            click.echo(json.dumps({"left_out": path, "reason": why_out}))
    else:
        for line in (*_table(rows, roots), *found.left_out_lines()):
            say(line)
    if not rows:
        _say_what_is_there(roots, policy)
    return found.code


def prune(roots: Sequence[str], policy: Policy, excludes: Sequence[str] = ()) -> int:
    """Make one pass over every work dir; returns the exit code."""
    found = _Found(roots, policy, excludes)
    for line in found.left_out_lines():
        log.info("%s", line)
    pruned = freed = 0
    for root, work_dir in found.each("looked after", to_change=True):
        try:
            report = api.prune(work_dir, policy, below=root)
        except CkptdError as error:
            found.failed(error)
            continue
        found.code = max(found.code, report.exit_code)
        if not report.survey.plan.decisions:
            continue
        pruned += len(report.pruned)
        freed += sum(d.checkpoint.allocated_bytes for d in report.pruned)
        found.progress.clear()
        for advice in report.survey.advice:
            log.warning("%s: %s", work_dir, advice)
        log.info("%s: %s", work_dir, report.counts)
    for root, work_dir in found.left_behind():
        try:
            api.empty_trash(work_dir, policy, below=root)
        except CkptdError as error:
            found.failed(error)
    found.progress.clear()
    if not found.done:
        _say_what_is_there(roots, policy)
    log.info("looked after %d work dirs, pruned %d checkpoints (%s)", found.done, pruned, human_bytes(freed))
    return found.code


class _Found:
    """The work dirs below the roots; knows the worst that happened with them."""

    def __init__(self, roots: Sequence[str], policy: Policy, excludes: Sequence[str]) -> None:
        self.code, self.done, self.progress = 0, 0, _Progress()
        self._voice = Voice()
        self.left_out: dict[str, str] = {}
        self._places: dict[str, str] = {}  # the work dir, and the root that it was found below
        self._left_behind: dict[str, str] = {}
        self._excludes, paths = excludes, list(dict.fromkeys(os.path.abspath(root) for root in roots))
        exclude = excluder(excludes, paths)
        for root in paths:
            with WorkDir(root) as work:  # says what is wrong with it
                if is_ignored(work.fd):
                    raise RefusedError(left_alone_text(root))
            tree = Tree(root, name_test(policy), exclude=exclude, on_trouble=self._unreadable)
            for _ in tree.look(root):
                self.progress.show(lambda tree=tree: f"looked into {tree.listed} directories")
            for work_dir in tree.work_dirs:
                self._places.setdefault(work_dir, root)
            self._left_behind.update(dict.fromkeys(tree.left_behind, root))
            self.left_out.update(tree.left_out)

    def each(self, verb: str, *, to_change: bool = False) -> Iterator[tuple[str, str]]:
        """Each root and work dir below it that is ours to look at, with progress on a terminal."""
        for work_dir, root in sorted(self._places.items()):
            self.progress.show(lambda: f"{verb} {self.done} of {len(self._places)} work dirs")
            if not self._is_others(work_dir, root, to_change=to_change):
                self.done += 1
                yield root, work_dir
        self.progress.clear()

    def left_behind(self) -> Iterator[tuple[str, str]]:
        """Each root and directory below it that is left out, and holds a trash that is ours to empty."""
        for place, root in sorted(self._left_behind.items()):
            with contextlib.suppress(OSError):  # gone again
                if place not in self._places and other_owner(place) is None:
                    yield root, place

    def left_out_lines(self) -> Iterator[str]:
        """What is left out, and by what; and the patterns that leave out nothing."""
        lines = [f"left out: {path} ({why_out})" for path, why_out in self.left_out.items()]
        yield from lines[:_MOST_ROWS]
        if lines[_MOST_ROWS:]:
            yield f"left out: {len(lines) - _MOST_ROWS} more"
        yield from (f"note: {line}" for line in idle(self._excludes, self.left_out))

    def failed(self, error: CkptdError) -> None:
        """Say it, and end with its code if nothing was worse."""
        self.progress.clear()
        log.error("%s", error)
        self.code = max(self.code, error.exit_code)

    def _is_others(self, work_dir: str, root: str, *, to_change: bool) -> bool:
        if not to_change and os.geteuid() != 0:
            return False  # who may read them may see a plan
        try:
            owner = other_owner(work_dir)
        except OSError:
            return True  # gone again
        if owner is not None:
            self.progress.clear()
            self._voice.once("others", others_text(work_dir, owner, root), of=owner, news=owner)
        return owner is not None

    def _unreadable(self, path: str, error: OSError) -> None:
        self.progress.clear()
        log.warning("could not look into %s: %s; left out", path, why(error))
        self.code = max(self.code, _REFUSED)


class _Progress:
    """One line on a terminal that is written over again and again; nothing elsewhere."""

    def __init__(self) -> None:
        self._next_s = 0.0 if sys.stderr.isatty() else float("inf")
        self._shown = False

    def show(self, text: object) -> None:
        """`text()` now, unless something was shown just before."""
        now_s = time.monotonic()
        if now_s >= self._next_s and callable(text):
            self._next_s = now_s + _SHOWN_EVERY_S
            self._shown = True
            sys.stderr.write(f"\r\033[K{text()}")
            sys.stderr.flush()

    def clear(self) -> None:
        """Before anything else is written."""
        if self._shown:
            self._shown = False
            sys.stderr.write("\r\033[K")
            sys.stderr.flush()


def _row(survey: Survey, work_dir: str) -> _Row:
    decisions = survey.plan.decisions
    frees = sum(d.checkpoint.allocated_bytes for d in decisions if d.decision == PRUNE)
    return _Row(sum(d.checkpoint.allocated_bytes for d in decisions), work_dir, len(decisions), frees)


def _say_what_is_there(roots: Sequence[str], policy: Policy) -> None:
    """Tell what there is below the roots, where no checkpoint by a known name is."""
    from ..passes.unrecognised import told_of  # here, because it is seldom so

    for root in roots:
        for line in told_of(root, policy):
            log.warning("%s", line)


def _table(rows: list[_Row], roots: Sequence[str]) -> Iterator[str]:
    """The runs that hold most, the largest first, and the sum over all."""
    if not rows:
        yield f"no checkpoint below {', '.join(roots)}"
        return
    rows.sort(key=lambda row: (-row.holds, row.path))
    lines = [("HOLDS", "CHECKPOINTS", "WOULD FREE", "RUN")]
    lines += [(human_bytes(r.holds), str(r.checkpoints), human_bytes(r.frees), r.path) for r in rows[:_MOST_ROWS]]
    holds, frees = sum(row.holds for row in rows), sum(row.frees for row in rows)
    count = sum(row.checkpoints for row in rows)
    more = len(rows) - _MOST_ROWS
    all_ = f"all {len(rows)} runs" + (f", {more} of them not shown" if more > 0 else "")
    lines.append((human_bytes(holds), str(count), human_bytes(frees), all_))
    yield from render.columns(lines, right=(0, 1, 2))
