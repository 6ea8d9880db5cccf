"""Who looks on at every call by which a pass changes the disk, and says which promise that call would break.

The promises are those of docs/design.md, section 1.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from unittest import mock

from ckptd.workdir import groups, trash
from ckptd.workdir.pointer import HIDDEN
from ckptd.workdir.workdir import WorkDir

from ..conftest import Crash
from .place import POINTER, WHOLE, Place, Saved, mark


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
            for module in (trash, groups):
                stack.enter_context(mock.patch.object(module, "rename_new", renames))
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


class Onlooker(Place):
    """Knows nothing of rules: what must stay follows from what is there, and from what was written when."""

    _work: WorkDir
    _latest_ns: int  # the latest clock of its passes

    def __post_init__(self) -> None:
        super().__post_init__()
        self._synced: set[tuple[int, int, int]] = set()
        self._listed: set[tuple[str, int]] = set()
        self._own_listed: set[tuple[str, int]] = set()
        self._gone: list[str] = []

    def _calls(self, crash_at: int | None = None) -> Calls:
        self._gone = []
        return Calls(self._before_call, crash_at)

    def _before_call(self, call: str, args: tuple[Any, ...], more: dict[str, Any]) -> None:
        work_fd = self._work.fd
        if call == "fsync":
            self._note_sync(args[0])
        elif call in ("rename", "replace", "rename_new"):
            comes, goes = more.get("dst_dir_fd") == work_fd, more.get("src_dir_fd") == work_fd
            assert not comes or args[1] == self.pointer, f"{args[1]} would be written over"
            if comes or (args[1] == HIDDEN and more.get("dst_dir_fd") == self._work.own_fd):
                self._before_pointing(os.path.join(os.path.dirname(self.pointer), args[0]))
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
        assert mark(os.stat(self.work_dir / aside)) in self._synced, "last_ckpt itself is not durable"

    def _before_deleting(self, name: str) -> None:
        saved = self.files.get(name)
        assert saved is not None, f"{name} is unknown"
        assert saved.series is not None, f"{name} is none of ours"
        self._check_unprotected(name, saved)
        pointed, keep = self.pointed(), self.policy.max_keep
        if keep is None and self.policy.has_budget:
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
        place = self.work_dir / self.pointer
        assert (place.name, place.stat().st_ino) in self._listed | self._own_listed, "the pointer's move is not durable"
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

    def _note_sync(self, fd: int) -> None:
        info = os.fstat(fd)
        self._synced.add(mark(info))
        if os.path.samestat(info, os.fstat(self._work.fd)):
            with os.scandir(self.work_dir) as entries:
                self._listed = {(entry.name, entry.inode()) for entry in entries}
        elif self._work.own_fd is not None and os.path.samestat(info, os.fstat(self._work.own_fd)):
            with os.scandir(self.work_dir / ".ckptd") as entries:
                self._own_listed = {(entry.name, entry.inode()) for entry in entries}

    def _is_durable(self, name: str) -> bool:
        path = self.work_dir / name
        # What an evaluator has dropped in is no part of the save.
        inside = [each for each in path.iterdir() if not each.name.startswith("eval_")] if path.is_dir() else [path]
        if (name, path.stat().st_ino) not in self._listed or any(
            mark(each.stat()) not in self._synced for each in inside
        ):
            return False
        self.files[name].synced = True
        return True


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
