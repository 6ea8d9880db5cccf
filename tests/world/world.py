"""The passes of ckptd over a work dir to which all of that happens, and what must be so after each."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from ckptd.core.memory import Memory
from ckptd.core.policy import Policy
from ckptd.core.survey import Survey
from ckptd.errors import OwnedError
from ckptd.passes import restore
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.report import Report
from ckptd.passes.surveyor import Surveyor
from ckptd.workdir.workdir import WorkDir

from ..conftest import Crash
from .job import Job
from .onlooker import Onlooker
from .people import People
from .place import POINTER, ZEROED

_TRUSTED = (POINTER, "last_checkpoint", "latest.pth")  # believed where the order of writing is in doubt (section 3)


class Now(Background):
    """Does at once what ckptd would do soon, so that a crash can come in the middle of that too."""

    def submit(self, key: str, job: Callable[[], None], *, device: int) -> None:
        job()


class World(Job, People, Onlooker):
    """A run, those around it, and ckptd."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._start()

    def close(self) -> None:
        self.stop_reading()
        self.writer_dies()
        self._work.close()

    def plan(self) -> Survey:
        with WorkDir(self.work_dir) as work:
            return Surveyor(work, self.policy).survey(self.clock_ns)

    def make_pass(self) -> Report:
        """One pass, and what must be so after it."""
        self._meet()
        unread = {name for name, saved in self.files.items() if saved.kind == ZEROED}
        before = self._picture()
        planned = self.plan()
        assert self._picture() == before, "plan has changed something"
        settled, since = self._settled, list(self._since)
        with self._calls().watched():
            report = self._reconciler.reconcile()
        assert [d.checkpoint.name for d in report.pruned] == self._gone
        assert not report.failed
        assert not report.unsaid
        # What is wrong with a content that nobody has read yet is not known to a plan: it only looks.
        # What a process once saw quiet stays so for it, though the clock steps back and another finds it young.
        if not unread & planned.unread and self.clock_ns >= self._latest_ns:
            assert list(planned.prune) == self._gone, "prune did not do what plan had printed"
            different = set(_rows(planned)) ^ set(_rows(report.survey))
            assert not different, f"prune had other reasons than plan: {different}"
        self._check_pointer(settled, since)
        assert self._reconciler.survey().prune == (), "a second pass would prune what the first has kept"
        return report

    def look(self) -> None:
        """A pass without max_keep: what the policy would prune then is what it would have pruned before."""
        self._meet()
        settled, since, before = self._settled, list(self._since), self.plan()
        idle = replace(self.policy, max_keep=None, max_bytes=None, min_free=None)
        with self._calls().watched():
            self._new(self._work, idle).reconcile()
        assert self._gone == [], "a pass that nobody asked to delete has deleted something"
        self._check_pointer(settled, since)
        unread = {name for name, saved in self.files.items() if saved.kind == ZEROED}
        if before.remembered is not None and self._is_all_seen(before.remembered) and not unread:
            assert before.prune == self.plan().prune, "a look without max_keep has changed what prune does"
        self._start()

    def crash(self, at: int) -> None:
        """A pass that ends at its `at`-th change of the disk, then another: all is as if one had been whole."""
        self._meet()
        expected = self._uninterrupted()
        try:
            with self._calls(at).watched():
                self._reconciler.reconcile()
        except Crash:
            self._start()
        self.check()
        self._meet()
        with self._calls().watched():
            self._reconciler.reconcile()
        if expected is not None:
            assert (set(self.files), self.pointed()) == expected, "a crash has changed how it ends"
        self._check_pointer(None, [])

    def restart(self, policy: Policy | None = None, *, state: str = "kept") -> None:
        """End and start anew, under another policy, without the state, or with a broken one."""
        self.policy = replace(policy or self.policy, pointer=self.policy.pointer)
        place = self.work_dir / ".ckptd" / "state.json"
        self._start()
        if state != "kept" and place.exists():
            place.unlink() if state == "lost" else place.write_bytes(place.read_bytes()[:40])
            self._settled = None

    def restore(self, name: str) -> None:
        with self._calls().watched():
            restored, _ = restore.restore(str(self.work_dir), [name])
        if restored:
            content = self._read(name)
            back = next((each for each in self.trash[name][::-1] if each.content == content), None)
            assert back is not None, f"{name} came back with other bytes than it went with"
            self._put_again(name, back)
            self.pins.add(name)
        else:
            # As it is if nothing of that name is in the trash, or the name is taken.
            self.pins = {each for each in self.pins if (self.work_dir / f"{each}.keep").exists()}

    def second_ckptd(self) -> None:
        """Another one, while the first owns the work dir."""
        if self._work._lock_fd is None or not any(map(self.is_good, self.files)):
            return
        before = self._picture(everything=True)
        with WorkDir(self.work_dir) as work, pytest.raises(OwnedError):
            self._new(work, Policy(max_keep=1, rule="newest", pointer=self.policy.pointer)).reconcile()
        assert self._picture(everything=True) == before

    def _is_all_seen(self, remembered: Memory) -> bool:
        """Whether no save has come since; one that has walks alone, and after a look with those before it."""
        good = {name: saved.mtime_ns for name, saved in self.files.items() if self.is_good(name)}
        return all(name in remembered.seen and remembered.seen[name].mtime_ns == at for name, at in good.items())

    def _start(self) -> None:
        if hasattr(self, "_work"):
            self._work.close()
        self._work = WorkDir(self.work_dir)
        self._latest_ns = 0  # the latest clock of its passes
        self._reconciler = self._new(self._work, self.policy)

    def _new(self, work: WorkDir, policy: Policy) -> Reconciler:
        return Reconciler(work, policy, Now(), clock=lambda: self.clock_ns)

    def _meet(self) -> None:
        """Note what a pass that begins now may learn."""
        self.passes += 1
        self._latest_ns = max(self._latest_ns, self.clock_ns)
        for saved in self.files.values():
            saved.lowest_ns = min(saved.lowest_ns, self.clock_ns)
        place = self.work_dir / ".ckptd" / "state.json"
        try:
            json.loads(place.read_text())
        except (FileNotFoundError, ValueError):
            self._settled = None
            named = {self.pointed(), *(self.names.get(how) for how in _TRUSTED)}
            for name in named & set(self.files):
                self.files[name].trusted = True

    def _uninterrupted(self) -> tuple[set[str], str | None] | None:
        """The names and the pointer that a whole pass leaves in a copy; None if others are at the original."""
        if self._writer is not None or self.read_in is not None:
            return None
        place = self.root / "copy"
        shutil.copytree(self.work_dir, place, symlinks=True)
        for link in (each for each in place.iterdir() if each.is_symlink()):
            target = os.path.basename(os.readlink(link))
            link.unlink()
            link.symlink_to(target)
        _renumber(place, self.work_dir)
        try:
            with WorkDir(place) as work, mock.patch.object(os, "fsync"):
                self._new(work, self.policy).reconcile()
            pointer = place / self.pointer
            pointed = os.path.basename(pointer.read_text().rstrip("\n")) if pointer.exists() else None
            return {name for name in self.files if (place / name).exists()}, pointed
        finally:
            shutil.rmtree(place)


def _renumber(copy: Path, original: Path) -> None:
    """Let what is remembered of the inodes of `original` be about those of its copy."""
    state = copy / ".ckptd" / "state.json"
    try:
        raw = json.loads(state.read_text())
    except (FileNotFoundError, ValueError):
        return  # gone, or spoiled
    for name, known in raw["seen"].items():
        with contextlib.suppress(FileNotFoundError):
            if known.get("inode") == os.lstat(original / name).st_ino:
                known["inode"] = os.lstat(copy / name).st_ino
    state.write_text(json.dumps(raw))


def _rows(survey: Survey) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(d.checkpoint.name, d.decision, d.reasons) for d in survey.decisions]
