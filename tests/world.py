"""A work dir to which things happen, the passes of ckptd over it, and a model that knows what must be left of it.

The model knows nothing of rules: it holds the bytes of everything that was written and in which order, looks on at
every call by which a pass changes the disk, and says which promise (docs/design.md, section 1) that call would break.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ckptd.core.memory import Memory
from ckptd.core.naming import Template
from ckptd.core.policy import Policy
from ckptd.core.survey import Survey
from ckptd.errors import OwnedError
from ckptd.passes import restore
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler, Report
from ckptd.passes.surveyor import Surveyor
from ckptd.workdir import trash
from ckptd.workdir.workdir import WorkDir

from .conftest import dcp_metadata, picture, torch_zip

FILES, DIRECTORIES = ("epoch_{}.pth", "iter_{}.pth"), ("epoch_{}",)
SERIES = FILES + DIRECTORIES
WHOLE, TRUNCATED, ZEROED, UNMARKED, WRITING, FOREIGN = "whole", "truncated", "zeroed", "unmarked", "writing", "foreign"
POINTER, SECOND = "last_ckpt", 10**9
SETTLE_S = 5  # as docs/design.md has it in section 5 for local file systems
_TRUSTED = (POINTER, "last_checkpoint", "latest.pth")  # believed where the order of writing is in doubt (section 3)

Content = dict[str, bytes]  # a file's is under ""


class Crash(BaseException):
    """The process ends here."""


@dataclass
class Saved:
    """What bears a name in the work dir.

    arrived: when these bytes came there, as a count of events; `arrived_first` is earlier where they came a second
    time and ckptd may not have seen that they were gone. lowest_ns: the earliest clock of a pass that saw it.
    trusted: a pointer has named it when ckptd knew nothing else. synced: it was seen to be durable.
    """

    series: str | None
    step: int
    kind: str
    content: Content
    mtime_ns: int
    arrived: int
    arrived_first: int
    lowest_ns: int
    trusted: bool = False
    synced: bool = False


class Now(Background):
    """Does at once what ckptd would do soon, so that a crash can come in the middle of that too."""

    def submit(self, key: str, job: Callable[[], None], *, device: int) -> None:
        job()


class Reader:
    """Another process, which keeps one file open; started once for all worlds."""

    _SCRIPT = """
import sys
for line in sys.stdin:
    path, file = line.rstrip("\\n"), None
    if path:
        file = open(path, "rb")
    print("done", flush=True)
"""

    def __init__(self) -> None:
        command = [sys.executable, "-c", self._SCRIPT]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def open(self, path: Path | None) -> None:
        """Close what is open, and keep `path` open from now on."""
        self._process.stdin.write(f"{path or ''}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@dataclass
class Calls:
    """Every call by which ckptd changes the disk goes through here: told to `before`, and none after a crash."""

    before: Callable[[str, tuple[Any, ...], dict[str, Any]], None]
    crash_at: int | None = None
    count: int = 0

    _NAMES = ("open", "write", "rename", "replace", "unlink", "remove", "rmdir", "mkdir", "fsync", "fdatasync", "link",
              "symlink", "truncate", "ftruncate", "utime", "fchmod", "fchown", "chmod", "chown")  # fmt: skip

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            for name in self._NAMES:
                stack.enter_context(mock.patch.object(os, name, self._wrapped(name, getattr(os, name))))
            renames = self._wrapped("rename_new", trash.rename_new)
            stack.enter_context(mock.patch.object(trash, "rename_new", renames))
            yield

    def _wrapped(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            if name == "open" and not args[1] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR | os.O_TRUNC):
                return real(*args, **more)
            self.count += 1
            if self.crash_at is not None and self.count >= self.crash_at:
                if name == "write" and self.count == self.crash_at:
                    real(args[0], args[1][: len(args[1]) // 2])  # a page of it was there
                raise Crash
            self.before(name, args, more)
            # Only a power cut could tell whether fsync was called, and here is none: what was flushed is noted.
            return None if name in ("fsync", "fdatasync") else real(*args, **more)

        return call


@dataclass
class World:
    """One work dir in `root`, and beside it what is none of ckptd's business."""

    root: Path
    reader: Reader
    policy: Policy
    files: dict[str, Saved] = field(default_factory=dict)
    pins: set[str] = field(default_factory=set)
    names: dict[str, str] = field(default_factory=dict)  # symlink or framework's pointer -> what it names
    copies: list[tuple[str, Saved]] = field(default_factory=list)
    trash: dict[str, list[Saved]] = field(default_factory=dict)
    last_step: dict[str, int] = field(default_factory=dict)
    read_in: str | None = None
    passes: int = 0

    def __post_init__(self) -> None:
        self.work_dir = self.root / "run"
        self.work_dir.mkdir()
        outside = self.root / "outside"
        outside.mkdir()
        (self.root / "deleted").mkdir()
        (outside / "epoch_1.pth").write_bytes(torch_zip())
        (outside / "last_ckpt").write_text("nothing of yours\n")
        self.outside = picture(outside)
        # Ahead of the inodes' own times, which nobody can set, so that what is young is so by the world's clock.
        self.clock_ns = time.time_ns() + 10 * 24 * 3600 * SECOND
        self.events = 0
        self._known: dict[str, tuple[Any, ...]] = {}
        self._writer: tuple[int, str, int, bytes] | None = None
        self._synced: set[tuple[int, int, int]] = set()
        self._listed: set[tuple[str, int]] = set()
        self._gone: list[str] = []
        self._settled: str | None = None  # what the pointer named after the last whole pass, if that was good
        self._since: list[str] = []  # what came since
        self._touched: set[str] = set()  # what was written or deleted since
        self._start()

    def close(self) -> None:
        self.stop_reading()
        self.writer_dies()
        self._work.close()

    # --- what a training job does -------------------------------------------------------------------------------

    def save(self, series: str, *, gap: int = 1, kind: str = WHOLE, in_place: bool = False, ahead_s: int = 0) -> str:
        step = self.last_step.get(series, 0) + gap
        return self.write(Template(series).name_of(step), kind=kind, in_place=in_place, ahead_s=ahead_s)

    def write(self, name: str, *, kind: str = WHOLE, in_place: bool = False, ahead_s: int = 0) -> str:
        """Write `name` anew: aside and by rename, or over what is there; a directory's old shards go first."""
        series, step = self._parse(name)
        if series in DIRECTORIES and kind != WHOLE:
            kind = UNMARKED
        content = self._bytes(series, kind)
        path = self.work_dir / name
        if self._writer and self._writer[1] == name:
            self.writer_dies()
        mtime_ns = self._next_ns() + ahead_s * SECOND
        if series in DIRECTORIES:
            if path.is_dir():
                self.stop_reading(name)
                shutil.rmtree(path)
            path.mkdir()
            for inside, data in content.items():
                (path / inside).write_bytes(data)
                os.utime(path / inside, ns=(mtime_ns, mtime_ns))
        else:
            aside = path if in_place else self.work_dir / f".{name}.tmp"
            aside.write_bytes(content[""])
            os.utime(aside, ns=(mtime_ns, mtime_ns))
            os.replace(aside, path)
        self._put(name, Saved(series, step, kind, content, mtime_ns, 0, 0, self.clock_ns))
        self.last_step[series] = step
        return name

    def begin_writing(self, name: str) -> None:
        """Open a file at its final name, and write the first half."""
        self.writer_dies()
        series, step = self._parse(name)
        content = self._bytes(series, WHOLE)[""]
        fd = os.open(self.work_dir / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        half = len(content) // 2
        os.write(fd, content[:half])
        mtime_ns = self._next_ns()
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        self._writer = fd, name, os.fstat(fd).st_ino, content[half:]
        self._put(name, Saved(series, step, WRITING, {"": content[:half]}, mtime_ns, 0, 0, self.clock_ns))
        self.last_step[series] = step

    def finish_writing(self) -> None:
        if self._writer is None:
            return
        fd, name, _, rest = self._writer
        if self._is_written(name):
            os.write(fd, rest)
            mtime_ns = self._next_ns()
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            before = self.files[name]
            content = {"": before.content[""] + rest}
            self._put(name, replace(before, kind=WHOLE, content=content, mtime_ns=mtime_ns))
        os.close(fd)
        self._writer = None

    def writer_dies(self) -> None:
        if self._writer is None:
            return
        fd, name, _, _ = self._writer
        if self._is_written(name):
            self.files[name].kind = TRUNCATED
        os.close(fd)
        self._writer = None

    def resume(self, name: str) -> None:
        saved = self.files[name]
        self.last_step[saved.series] = saved.step

    def resume_from_pointer(self) -> str | None:
        """What a job is to resume from that reads the pointer, which is whole, or was touched since the last pass."""
        name = self.pointed()
        if name is None:
            return None
        if self._settled == name and name not in self._touched:
            assert self.is_good(name), f"last_ckpt names {name}, which is {self.files[name].kind}"
            assert self._read(name) == self.files[name].content
        return name if name in self.files and self.is_good(name) else None

    # --- what people and other programs do ----------------------------------------------------------------------

    def protect(self, how: str, name: str) -> None:
        """Pin it, read in it, or name it by a symlink or by a framework's own pointer."""
        place = self.work_dir / how
        if how == "pin":
            (self.work_dir / f"{name}.keep").touch()
            self.pins.add(name)
        elif how == "reader":
            self.reader.open(self.work_dir / name / "__0_0.distcp")
            self.read_in = name
        else:
            place.unlink(missing_ok=True)
            if how == "last_checkpoint":
                place.write_text(f"{self.work_dir / name}\n")
            else:
                place.symlink_to(name if how != "best.pth" else self.work_dir / name)
            self.names[how] = name

    def release(self, index: int) -> None:
        """Take one of these protections away."""
        there = [("pin", name) for name in sorted(self.pins)] + sorted(self.names.items())
        there += [("reader", self.read_in)] if self.read_in else []
        if not there:
            return
        how, name = there[index % len(there)]
        if how == "pin":
            (self.work_dir / f"{name}.keep").unlink()
            self.pins.discard(name)
        elif how == "reader":
            self.stop_reading()
        else:
            (self.work_dir / how).unlink()
            del self.names[how]

    def stop_reading(self, name: str | None = None) -> None:
        if self.read_in is not None and name in (None, self.read_in):
            self.reader.open(None)
            self.read_in = None

    def drop_result(self, name: str) -> None:
        """An evaluator leaves its result in a directory checkpoint: no save."""
        saved = self.files[name]
        inside = f"eval_{self.events}.json"
        (self.work_dir / name / inside).write_text("{}")
        saved.content[inside] = b"{}"

    def put_back(self, name: str, copy: Saved) -> None:
        """Copy it back with its old time, as `cp -p` and rsync do."""
        path = self.work_dir / name
        if name in self.files:
            return
        if "" in copy.content:
            path.write_bytes(copy.content[""])
            os.utime(path, ns=(copy.mtime_ns, copy.mtime_ns))
        else:
            path.mkdir()
            for inside, data in copy.content.items():
                (path / inside).write_bytes(data)
                os.utime(path / inside, ns=(copy.mtime_ns, copy.mtime_ns))
        self._put_again(name, copy)

    def delete(self, name: str) -> None:
        """By hand."""
        if self._writer and self._writer[1] == name:
            self.writer_dies()
        self.stop_reading(name)
        # Moved away: an inode that is free would go to the next file, and nobody could tell that one from this.
        (self.work_dir / name).rename(self.root / "deleted" / str(len(self.copies)))
        self.copies.append((name, self.files.pop(name)))
        self._since = [each for each in self._since if each != name]
        self._touched.add(name)

    def put_foreign(self, name: str) -> None:
        """Something that only looks like a checkpoint."""
        if name in self.files:
            return
        path = self.work_dir / name
        if "." in name:
            path.write_bytes(b"notes about " + name.encode())
            content = {"": path.read_bytes()}
        else:
            path.mkdir()
            (path / "sample_0.png").write_bytes(b"\x89PNG")
            content = {"sample_0.png": b"\x89PNG"}
        self.files[name] = Saved(None, 0, FOREIGN, content, 0, 0, 0, 0)

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

    # --- ckptd --------------------------------------------------------------------------------------------------

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
        idle = replace(self.policy, max_keep=None, max_bytes=None)
        with self._calls().watched():
            self._new(self._work, idle).reconcile()
        assert self._gone == [], "a pass that nobody asked to delete has deleted something"
        self._check_pointer(settled, since)
        unread = {name for name, saved in self.files.items() if saved.kind == ZEROED}
        if before.remembered is not None and self._is_all_seen(before.remembered) and not unread:
            assert before.prune == self.plan().prune, "a look without max_keep has changed what prune does"
        self._start()

    def _is_all_seen(self, remembered: Memory) -> bool:
        """Whether no save has come since; one that has walks alone, and after a look with those before it."""
        good = {name: saved.mtime_ns for name, saved in self.files.items() if self.is_good(name)}
        return all(name in remembered.seen and remembered.seen[name].mtime_ns == at for name, at in good.items())

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
        self.policy = policy or self.policy
        place = self.work_dir / ".ckptd" / "state.json"
        self._start()
        if state != "kept" and place.exists():
            place.unlink() if state == "lost" else place.write_bytes(place.read_bytes()[:40])
            self._settled = None

    def second_ckptd(self) -> None:
        """Another one, while the first owns the work dir."""
        if self._work._lock_fd is None or not any(map(self.is_good, self.files)):
            return
        before = self._picture(everything=True)
        with WorkDir(self.work_dir) as work, pytest.raises(OwnedError):
            self._new(work, Policy(max_keep=1, rule="newest")).reconcile()
        assert self._picture(everything=True) == before

    # --- what is so ---------------------------------------------------------------------------------------------

    def is_good(self, name: str) -> bool:
        """Whether a run can be resumed from it."""
        return self.files[name].kind == WHOLE

    def pointed(self) -> str | None:
        try:
            text = (self.work_dir / POINTER).read_text()
        except FileNotFoundError:
            return None
        name = os.path.basename(text.rstrip("\n"))
        assert text == f"{self.work_dir / name}\n"
        return name

    def choose(self, index: int, which: Callable[[str], bool]) -> str | None:
        there = sorted(name for name, saved in self.files.items() if saved.series and which(name))
        return there[index % len(there)] if there else None

    def check(self) -> None:
        """What is in the work dir is what the model holds, byte by byte; outside of it nothing has changed."""
        ours = {POINTER, ".ckptd", f".{POINTER}.ckptd-tmp"}
        other = {f"{name}.keep" for name in self.pins} | set(self.names)
        there = set(os.listdir(self.work_dir)) - ours
        assert there == set(self.files) | other
        for name, saved in self.files.items():
            assert self._read(name) == saved.content, f"{name} has changed"
        for name, target in self.names.items():
            place = self.work_dir / name
            assert os.path.basename(os.readlink(place) if place.is_symlink() else place.read_text().strip()) == target
        assert picture(self.root / "outside") == self.outside
        assert sorted(os.listdir(self.root)) == ["deleted", "outside", "run"]

    # --- looking on ---------------------------------------------------------------------------------------------

    def _calls(self, crash_at: int | None = None) -> Calls:
        self._gone = []
        return Calls(self._before_call, crash_at)

    def _before_call(self, call: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        work_fd = self._work.fd
        if call == "fsync":
            self._note_sync(args[0])
        elif call in ("rename", "replace", "rename_new"):
            comes, goes = more.get("dst_dir_fd") == work_fd, more.get("src_dir_fd") == work_fd
            assert not comes or args[1] == POINTER, f"{args[1]} would be written over"
            if comes:
                self._before_pointing(args[0])
            elif goes:
                self._before_deleting(args[0])
            elif args[1].endswith(".gone"):
                self._before_freeing(args[0], more["src_dir_fd"])
        elif call in ("unlink", "remove", "rmdir", "mkdir", "link", "symlink", "truncate", "chmod", "chown", "utime"):
            here = more.get("dir_fd") == work_fd
            assert not here or args[0] in (".ckptd", f".{POINTER}.ckptd-tmp"), f"{call} of {args[0]}"

    def _before_pointing(self, aside: str) -> None:
        name = os.path.basename((self.work_dir / aside).read_text().rstrip("\n"))
        assert name in self.files, f"{name} is not there, and last_ckpt is to name it"
        assert self.is_good(name), f"{name} is {self.files[name].kind}, and last_ckpt is to name it"
        assert self._is_durable(name), f"{name} is not durable, and last_ckpt is to name it"
        assert _mark(os.stat(self.work_dir / aside)) in self._synced, "last_ckpt itself is not durable"

    def _before_deleting(self, name: str) -> None:
        saved = self.files.get(name)
        assert saved is not None, f"{name} is unknown"
        assert saved.series is not None, f"{name} is none of ours"
        self._check_unprotected(name, saved)
        pointed, keep = self.pointed(), self.policy.max_keep
        if keep is None and self.policy.max_bytes is not None:
            keep = 1  # a budget asks for deletions too, and never takes the newest
        assert keep is not None, "nobody asked for a deletion"
        milestone = self.policy.keep_every is not None and saved.step % self.policy.keep_every == 0
        assert not (milestone and self.is_good(name)), f"{name} would go, and is a milestone"
        good = [
            other
            for other, known in self.files.items()
            if other != name and known.series == saved.series and self.is_good(other)
        ]
        if self.is_good(name):
            good = [other for other in good if _is_newer(self.files[other], saved)]
            assert len(good) >= keep, f"{name} would go, and only {good} are newer and complete"
        assert good, f"{name} would go, and nothing complete stays"
        durable = [other for other in good if self._is_durable(other)]
        assert len(durable) >= min(keep, len(good)), f"{name} would go, and only {durable} of {good} are durable"
        assert pointed is not None, f"{name} would go before there is a pointer"
        stands = pointed in self.files and self.is_good(pointed) and self._is_durable(pointed)
        assert stands or self._is_in_flight(pointed), f"{name} would go, and last_ckpt names {pointed}"
        assert (POINTER, os.stat(self.work_dir / POINTER).st_ino) in self._listed, "the pointer's move is not durable"
        state = self.work_dir / ".ckptd" / "state.json"
        remembered = json.loads(state.read_text())["seen"] if state.exists() else {}
        unseen = {other for other in self.files if self.files[other].series and self.is_good(other)} - set(remembered)
        assert not unseen, f"{name} would go before it is written down that {unseen} were seen"
        self._gone.append(name)
        self.trash.setdefault(name, []).append(saved)
        self.copies.append((name, self.files.pop(name)))

    def _before_freeing(self, item: str, trash_fd: int) -> None:
        inode = os.stat(item, dir_fd=trash_fd, follow_symlinks=False).st_ino
        known_as = [name for name, listed in self._listed if listed == inode]
        assert not known_as, f"{known_as} would be freed before it is durable that it went"

    def _check_unprotected(self, name: str, saved: Saved) -> None:
        assert name != self.pointed(), f"{name} would go, and last_ckpt names it"
        assert name not in self.pins, f"{name} would go, and is pinned"
        assert name not in self.names.values(), f"{name} would go, and is named by another"
        # Of what lies ahead of a clock that has stepped back the inode's own time tells, which here is long ago.
        young = self._is_in_flight(name) and self._is_in_flight(name, self._latest_ns)
        assert not young, f"{name} would go, and is being written"
        assert name != self.read_in, f"{name} would go, and somebody reads in it"
        assert self._read(name) == saved.content

    def _check_pointer(self, settled: str | None, since: list[str]) -> None:
        good = [name for name in self.files if self.is_good(name)]
        pointed = self.pointed()
        if good:
            assert pointed in good or self._is_in_flight(pointed), f"last_ckpt names {pointed}, complete are {good}"
        newest = self.files.get(settled) if settled else None
        if newest is not None and self.is_good(settled) and since:
            older = [self.files[name] for name in since if name in self.files]
            back = [name for name in since if name not in self._gone]
            if all(_was_there_before(each, newest) for each in older):
                assert pointed == settled, f"last_ckpt went from {settled} to {pointed}, which was brought back"
                assert back == since, "what was brought back was pruned at once"
        self._settled = pointed if pointed in good else None
        self._since, self._touched = [], set()

    # --- within -------------------------------------------------------------------------------------------------

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
            pointer = place / POINTER
            pointed = os.path.basename(pointer.read_text().rstrip("\n")) if pointer.exists() else None
            return {name for name in self.files if (place / name).exists()}, pointed
        finally:
            shutil.rmtree(place)

    def _parse(self, name: str) -> tuple[str, int]:
        return next((text, step) for text in SERIES if (step := Template(text).step_of(name)) is not None)

    def _bytes(self, series: str, kind: str) -> Content:
        weights = f"weights of event {self.events} ".encode() * 24
        if series in DIRECTORIES:
            marker = {".metadata": dcp_metadata({"__0_0.distcp": len(weights)})} if kind == WHOLE else {}
            return {"__0_0.distcp": weights, **marker}
        data = torch_zip(weights)
        if kind == TRUNCATED:
            data = data[: len(data) * 2 // 3]
        elif kind == ZEROED:
            data = data.replace(weights, bytes(len(weights)))
        return {"": data}

    def _next_ns(self) -> int:
        """A time that nothing else has, a second after the clock's last."""
        self.events += 1
        self.clock_ns += SECOND
        return self.clock_ns - SECOND + self.events

    def _put(self, name: str, saved: Saved) -> None:
        self.events += 1
        saved.arrived = saved.arrived_first = self.events
        self.files[name] = saved
        self._since.append(name)
        self._touched.add(name)

    def _put_again(self, name: str, copy: Saved) -> None:
        """The same bytes under the same name: whether a pass saw that they were gone, only ckptd knows."""
        self._put(name, replace(copy, content=dict(copy.content), lowest_ns=self.clock_ns))
        self.files[name].arrived_first = copy.arrived_first

    def _is_written(self, name: str) -> bool:
        there = self.work_dir / name
        return name in self.files and there.exists() and there.stat().st_ino == self._writer[2]

    def _is_in_flight(self, name: str, now_ns: int | None = None) -> bool:
        """Whether it is open for writing, or broken and young."""
        saved = self.files.get(name)
        if saved is None or saved.kind not in (WRITING, TRUNCATED, UNMARKED):
            return False
        settle_s = 300 if saved.kind == UNMARKED else SETTLE_S
        age_ns = (now_ns or self.clock_ns) - saved.mtime_ns
        return saved.kind == WRITING or 0 <= age_ns < settle_s * SECOND

    def _read(self, name: str) -> Content:
        """Its bytes, read again only if its inode says that it has changed."""
        path = self.work_dir / name
        paths = {"": path} if path.is_file() else {each.name: each for each in path.iterdir()}
        marks = tuple(sorted((inside, each.stat().st_ctime_ns, *_mark(each.stat())) for inside, each in paths.items()))
        known = self._known.get(name)
        if known is None or known[0] != marks:
            known = self._known[name] = marks, {inside: each.read_bytes() for inside, each in paths.items()}
        return known[1]

    def _note_sync(self, fd: int) -> None:
        info = os.fstat(fd)
        self._synced.add(_mark(info))
        if os.path.samestat(info, os.fstat(self._work.fd)):
            with os.scandir(self.work_dir) as entries:
                self._listed = {(entry.name, entry.inode()) for entry in entries}

    def _is_durable(self, name: str) -> bool:
        path = self.work_dir / name
        # What an evaluator has dropped in is no part of the save.
        inside = [each for each in path.iterdir() if not each.name.startswith("eval_")] if path.is_dir() else [path]
        if (name, path.stat().st_ino) not in self._listed or any(
            _mark(each.stat()) not in self._synced for each in inside
        ):
            return False
        self.files[name].synced = True
        return True

    def _picture(self, *, everything: bool = False) -> dict[str, Any]:
        """All of the work dir; less `.ckptd`, where a look may take and drop nothing either but is not asked to."""
        marks = {}
        for path in [self.work_dir, *self.work_dir.rglob("*")]:
            info = path.lstat()
            marks[str(path)] = (*_mark(info), info.st_ctime_ns, info.st_mode)
        return marks


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


def _mark(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_ino, info.st_size, info.st_mtime_ns


def _is_newer(one: Saved, other: Saved) -> bool:
    """Whether anything says that `one` was written after `other`: its arrival, its time, or the pointer of old."""
    if one.trusted or one.arrived > other.arrived_first:
        return True
    # A time in the future counted as that of the pass that saw it.
    cap_ns = max(one.lowest_ns, other.lowest_ns)
    return min(one.mtime_ns, cap_ns) >= min(other.mtime_ns, cap_ns)


def _was_there_before(one: Saved, newest: Saved) -> bool:
    """Whether it is neither written later than the newest nor further on, so that it cannot be a save."""
    earlier = one.mtime_ns <= min(newest.mtime_ns, newest.lowest_ns) and one.step <= newest.step
    return one.kind == WHOLE and one.series == newest.series and earlier and one.arrived > newest.arrived


def _rows(survey: Survey) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(d.checkpoint.name, d.decision, d.reasons) for d in survey.decisions]
