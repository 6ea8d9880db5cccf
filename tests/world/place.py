"""A work dir, and what the model knows to be in it: the bytes of everything that was written, and in which order."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ckptd.core.naming import Template
from ckptd.core.policy import NO_POINTER, Policy
from ckptd.workdir.pointer import HIDDEN

from ..conftest import dcp_metadata, picture, torch_zip
from .reader import Reader

FILES, DIRECTORIES = ("epoch_{}.pth", "iter_{}.pth"), ("epoch_{}",)
SERIES = FILES + DIRECTORIES
WHOLE, TRUNCATED, ZEROED, UNMARKED, WRITING, FOREIGN = "whole", "truncated", "zeroed", "unmarked", "writing", "foreign"
POINTER, SECOND = "last_ckpt", 10**9
SETTLE_S = 5  # as docs/design.md has it in section 5 for local file systems

Content = dict[str, bytes]  # a file's is under ""


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


@dataclass
class Place:
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
        self.pointer = POINTER if self.policy.pointer != NO_POINTER else f".ckptd/{HIDDEN}"  # as long as it lives
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
        self._settled: str | None = None  # what the pointer named after the last whole pass, if that was good
        self._since: list[str] = []  # what came since
        self._touched: set[str] = set()  # what was written or deleted since

    # --- what is so ---------------------------------------------------------------------------------------------

    def is_good(self, name: str) -> bool:
        """Whether a run can be resumed from it."""
        return self.files[name].kind == WHOLE

    def pointed(self) -> str | None:
        try:
            text = (self.work_dir / self.pointer).read_text()
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
        ours = {".ckptd"} | ({POINTER, f".{POINTER}.ckptd-tmp"} if self.pointer == POINTER else set())
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

    # --- within -------------------------------------------------------------------------------------------------

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
        marks = tuple(sorted((inside, each.stat().st_ctime_ns, *mark(each.stat())) for inside, each in paths.items()))
        known = self._known.get(name)
        if known is None or known[0] != marks:
            known = self._known[name] = marks, {inside: each.read_bytes() for inside, each in paths.items()}
        return known[1]

    def _picture(self, *, everything: bool = False) -> dict[str, Any]:
        """All of the work dir; less `.ckptd`, where a look may take and drop nothing either but is not asked to."""
        marks = {}
        for path in [self.work_dir, *self.work_dir.rglob("*")]:
            info = path.lstat()
            marks[str(path)] = (*mark(info), info.st_ctime_ns, info.st_mode)
        return marks


def mark(info: os.stat_result) -> tuple[int, int, int]:
    return info.st_ino, info.st_size, info.st_mtime_ns
