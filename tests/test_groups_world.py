"""Checkpoints of two files, after everything that can happen to them, in any order: half of one is never our doing."""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import tempfile
import time
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from ckptd.core.policy import Policy
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.restore import restore
from ckptd.workdir.workdir import WorkDir

from .conftest import Crash, torch_zip
from .grouped import Now
from .world.onlooker import Calls

settings.register_profile(
    "pairs", max_examples=100, stateful_step_count=20, deadline=None, derandomize=True, database=None
)
PARTS = ("G_{}.pth", "D_{}.pth")
indexes = st.integers(0, 20)
parts = st.sampled_from(PARTS)


class Pairs(RuleBasedStateMachine):
    """The files that a job and people have put there are known to the byte; whatever lacks then is ckptd's doing."""

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ckptd-pairs-"))
        self.work_dir = self.root / "run"
        self.work_dir.mkdir()
        self.files: dict[str, bytes] = {}
        self.written: dict[str, int] = {}  # when each was written, as a count
        self.closed: dict[str, int] = {}  # and closed
        self.rewritten: set[int] = set()  # steps of which a file came since a crash
        self.halfway: set[bytes] = set()  # what was neither there nor in the trash at a crash
        self.went: set[int] = set()  # steps that went, or were about to, at a crash
        self.pins: set[str] = set()
        self.last, self.count = 0, itertools.count(1)
        self.clock_ns = time.time_ns() + 10 * 24 * 3600 * 10**9
        self.writer: tuple[int, str] | None = None
        self.crashed = False

    @initialize(keep=st.sampled_from([1, 2]), ttl_s=st.sampled_from([0.0, 60.0]))
    def begin(self, keep: int, ttl_s: float) -> None:
        self.policy = Policy(
            templates=(" + ".join(PARTS),), max_keep=keep, rule="newest", trash_ttl_s=ttl_s, settle_s=0.0,
            verify="structure",
        )  # fmt: skip
        self.start()

    def start(self) -> None:
        self.work = WorkDir(self.work_dir)
        self.ckptd = Reconciler(self.work, self.policy, Now(), clock=lambda: self.clock_ns)

    def teardown(self) -> None:
        self.release()
        self.work.close()
        shutil.rmtree(self.root)

    # --- the job

    @rule(which=st.sampled_from([PARTS, PARTS, PARTS, PARTS[:1], PARTS[1:]]), cut=st.sampled_from([False, False, True]))
    def save(self, which: tuple[str, ...], cut: bool) -> None:
        self.last += 1
        for part in which:
            self.write(part, self.last, cut=cut and part == which[-1])

    @rule(index=indexes, which=st.sampled_from([PARTS, PARTS[:1], PARTS[1:]]), in_place=st.booleans())
    def save_again(self, index: int, which: tuple[str, ...], in_place: bool) -> None:
        """Also the file that half of one lacks, or what is gone; the job may have resumed from there."""
        step = 1 + index % (self.last + 1)
        self.last = max(self.last, step)
        for part in which:
            self.write(part, step, in_place=in_place)

    @rule(index=indexes, part=parts)
    def open_for_writing(self, index: int, part: str) -> None:
        self.release()
        name = part.format(1 + index % (self.last + 1))
        if name in self.files and (self.work_dir / name).exists():
            self.writer = os.open(self.work_dir / name, os.O_RDWR), name

    @rule()
    def release(self) -> None:
        if self.writer is not None:
            fd, name = self.writer
            os.close(fd)
            self.closed[name] = next(self.count)  # until then it was being saved
            self.writer = None

    # --- people

    @rule(index=indexes, part=parts)
    def pin(self, index: int, part: str) -> None:
        name = part.format(1 + index % (self.last + 1))
        self.pins ^= {name}
        place = self.work_dir / f"{name}.keep"
        place.touch() if name in self.pins else place.unlink()

    @rule(index=indexes, part=parts)
    def delete(self, index: int, part: str) -> None:
        name = part.format(1 + index % (self.last + 1))
        if self.files.pop(name, None) is not None:
            # Moved away, so that no other file gets its inode.
            with contextlib.suppress(FileNotFoundError):
                (self.work_dir / name).rename(self.root / str(next(self.count)))

    @rule(index=indexes, part=parts)
    def bring_back(self, index: int, part: str) -> None:
        step = 1 + index % (self.last + 1)
        before = {name: (self.work_dir / name).exists() for name in names(step)}
        back, _ = restore(str(self.work_dir), [part.format(step)])
        if back:
            there = [name for name in names(step) if not before[name] and (self.work_dir / name).exists()]
            assert there
            for name in there:
                self.files[name] = (self.work_dir / name).read_bytes()
            self.pins.add(names(step)[0])
        self.pins = {name for name in self.pins if (self.work_dir / f"{name}.keep").exists()}

    # --- ckptd

    @rule()
    def make_pass(self) -> None:
        held = self.held()
        self.ckptd.reconcile()
        self.check(held)

    @rule(at=st.integers(1, 70))
    def crash(self, at: int) -> None:
        held = self.held()
        try:
            with Calls(lambda *_: None, at).watched():
                self.ckptd.reconcile()
        except Crash:
            self.crashed = True
            there = self.there()
            for step in {step_of(name) for name in self.files.keys() - there} - self.went:
                self.check_that_may_go(step, there)
                self.went.add(step)
            self.halfway |= set(self.held("*.going"))
        else:
            self.check(held)
        self.restart()

    @rule(hours=st.sampled_from([0, 1]))
    def restart(self, hours: int = 0) -> None:
        self.clock_ns += hours * 3600 * 10**9
        self.work.close()
        self.start()

    # --- what must be so

    def check(self, held: list[bytes]) -> None:
        """What lacks after a pass lacks with all that was saved with it, and K newer whole ones are there."""
        there = self.there()
        for name in there:
            assert (self.work_dir / name).read_bytes() == self.files[name], f"{name} has changed"
        for step in sorted({step_of(name) for name in self.files.keys() - there}):
            mine = [name for name in names(step) if name in self.files]
            if there & set(mine):
                # A job has written one again since a crash: what had gone of it cannot go back beside that.
                assert self.crashed, f"of {mine} only {sorted(there & set(mine))} are there"
                assert step in self.rewritten
                lost = {self.files[name] for name in mine if name not in there}
                assert lost & self.halfway <= set(self.held()), f"{mine} is neither there nor in the trash"
            elif step not in self.went:
                self.check_that_may_go(step, there)
            for name in mine:
                if name not in there:
                    del self.files[name]
        assert self.crashed or self.held() == held
        assert not [name for name in self.in_trash() if name.endswith((".going", ".back"))]
        self.crashed, self.rewritten, self.went, self.halfway = False, set(), set(), set()

    # --- within

    def write(self, part: str, step: int, *, cut: bool = False, in_place: bool = False) -> None:
        name, number = part.format(step), next(self.count)
        content = torch_zip(f"{name} {number} ".encode() * 20)
        content = content[: len(content) // 2] if cut else content
        self.clock_ns += 10**9
        place = self.work_dir / (name if in_place else "aside")
        place.write_bytes(content)
        os.utime(place, ns=(self.clock_ns, self.clock_ns))
        place.rename(self.work_dir / name)
        self.files[name] = content
        self.written[name] = self.closed[name] = number
        self.rewritten.add(step)

    def check_that_may_go(self, step: int, there: set[str]) -> None:
        mine = [name for name in names(step) if name in self.files]
        assert not self.pins & set(mine), f"{mine} is pinned"
        since = min(self.written[name] for name in mine)
        newer = [one for one in self.whole(there) if max(self.closed[name] for name in names(one)) > since]
        assert len(newer) >= self.policy.max_keep, f"{mine} went, and only {newer} are newer and whole"

    def there(self) -> set[str]:
        return {name for name in self.files if (self.work_dir / name).exists()}

    def whole(self, there: set[str]) -> list[int]:
        good = {name for name in there if b"PK\x05\x06" in self.files[name]}
        return [step for step in {step_of(name) for name in good} if set(names(step)) <= good]

    def in_trash(self) -> list[str]:
        place = self.work_dir / ".ckptd/trash"
        return os.listdir(place) if place.exists() else []

    def held(self, which: str = "held-*") -> list[bytes]:
        place = self.work_dir / ".ckptd/trash"
        return [path.read_bytes() for item in sorted(place.glob(which)) for path in sorted(item.glob("[0-9]"))]


def names(step: int) -> list[str]:
    return [part.format(step) for part in PARTS]


def step_of(name: str) -> int:
    return int(name.partition("_")[2].partition(".")[0])


def test_half_of_a_pair_is_never_our_doing() -> None:
    run_state_machine_as_test(Pairs, settings=settings.get_profile("pairs"))
