"""The promises (docs/design.md, section 1), after everything that can happen to a work dir, in any order."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from ckptd.core.budget import Floor
from ckptd.core.policy import Policy
from ckptd.workdir import workdir

from .world import DIRECTORIES, FILES, SERIES, TRUNCATED, WHOLE, WRITING, ZEROED, Reader, World

# Repeatable, so that a failure is there again in the next run; `make soak` looks elsewhere each time.
# Without a deadline, since what a pass takes is the disk's affair.
settings.register_profile(
    "world", max_examples=250, stateful_step_count=20, deadline=None, derandomize=True, database=None
)
settings.register_profile(
    "soak",
    settings.get_profile("world"),
    max_examples=int(os.environ.get("WORLD_EXAMPLES", "5000")),
    derandomize=False,
)

policies = st.builds(
    Policy,
    max_keep=st.sampled_from([1, 1, 2, 2, 3, None]),
    interval=st.sampled_from([1, 1, 2, None]),
    rule=st.sampled_from(["auto", "newest", "stepped"]),
    trash_ttl_s=st.sampled_from([0.0, None, 60.0]),
    keep_every=st.sampled_from([None, None, 2, 3]),
    keep_within_s=st.sampled_from([None, None, 3.0]),
    max_bytes=st.sampled_from([None, None, 1, 9000, 30_000]),
    pointer=st.sampled_from(["last_ckpt", "last_ckpt", "none"]),
    min_free=st.sampled_from([None, None, None, Floor(1 << 62)]),  # of which there is never so much
)
indexes = st.integers(0, 20)
series = st.sampled_from(SERIES)
kinds = st.sampled_from([WHOLE, WHOLE, WHOLE, TRUNCATED, ZEROED])
seen = st.booleans()  # whether a pass follows at once, or the event is missed


class Life(RuleBasedStateMachine):
    """A work dir's life: the rules are what happens to it. Indexes choose among what is there."""

    reader: Reader

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="ckptd-world-"))
        self.world: World | None = None

    @initialize(policy=policies, history=st.lists(series, max_size=8), seen=seen)
    def begin(self, policy: Policy, history: list[str], seen: bool) -> None:
        self.world = World(self.root, self.reader, policy)
        for each in history:
            self.world.save(each)
        self.look(seen)

    def teardown(self) -> None:
        if self.world is not None:
            self.world.close()
        shutil.rmtree(self.root)

    def look(self, seen: bool) -> None:
        if seen:
            self.world.make_pass()

    # --- the job

    @rule(
        series=series,
        gap=st.sampled_from([1, 1, 1, 2, 3]),
        kind=kinds,
        in_place=st.booleans(),
        ahead_s=st.sampled_from([0, 0, 0, 500]),
        seen=seen,
    )
    def save(self, series: str, gap: int, kind: str, in_place: bool, ahead_s: int, seen: bool) -> None:
        self.world.save(series, gap=gap, kind=kind, in_place=in_place, ahead_s=ahead_s)
        self.look(seen)

    @rule(series=series, count=st.integers(2, 5), each_seen=st.booleans(), seen=seen)
    def save_on(self, series: str, count: int, each_seen: bool, seen: bool) -> None:
        for _ in range(count):
            self.world.save(series)
            self.look(each_seen)
        self.look(seen)

    @rule(index=indexes, kind=kinds, in_place=st.booleans(), seen=seen)
    def rewrite(self, index: int, kind: str, in_place: bool, seen: bool) -> None:
        name = self.world.choose(index, lambda _: True)
        if name:
            self.world.write(name, kind=kind, in_place=in_place)
        self.look(seen)

    @rule(index=indexes, new=st.booleans(), seen=seen)
    def begin_writing(self, index: int, new: bool, seen: bool) -> None:
        files = self.world.files
        name = self.world.choose(index, lambda name: files[name].series in FILES and files[name].kind != WRITING)
        if name and new:
            series = files[name].series
            name = series.format(self.world.last_step[series] + 1)
        if name:
            self.world.begin_writing(name)
        self.look(seen)

    @rule(dies=st.booleans(), seen=seen)
    def end_writing(self, dies: bool, seen: bool) -> None:
        if dies:
            self.world.writer_dies()
        else:
            self.world.finish_writing()
        self.look(seen)

    @rule(index=st.none() | indexes, count=st.integers(0, 4), each_seen=st.booleans(), seen=seen)
    def resume(self, index: int | None, count: int, each_seen: bool, seen: bool) -> None:
        """From what the pointer names, or from an older one."""
        name = self.world.resume_from_pointer() if index is None else self.world.choose(index, self.world.is_good)
        if name:
            self.world.resume(name)
            self.save_on(self.world.files[name].series, count, each_seen, seen)

    # --- others

    @rule(seconds=st.sampled_from([1, 6, 301, 4000, -20, -1000]), seen=seen)
    def the_clock_steps(self, seconds: int, seen: bool) -> None:
        self.world.clock_ns += seconds * 10**9
        self.look(seen)

    @rule(
        how=st.sampled_from(
            [
                "pin",
                "pin",
                "reader",
                "latest.pth",
                "best.pth",
                "epoch_1000.pth",
                "last_checkpoint",
                "LATEST",
                "best.txt",
            ]
        ),
        index=indexes,
        count=st.integers(0, 4),
        each_seen=st.booleans(),
        seen=seen,
    )
    def protect(self, how: str, index: int, count: int, each_seen: bool, seen: bool) -> None:
        """And go on saving, until the rule would have it."""
        world = self.world
        name = world.choose(index, lambda name: how != "reader" or world.files[name].series in DIRECTORIES)
        if name:
            world.protect(how, name)
            self.save_on(world.files[name].series, count, each_seen, seen)

    @rule(index=indexes, seen=seen)
    def release(self, index: int, seen: bool) -> None:
        self.world.release(index)
        self.look(seen)

    @rule(index=indexes, seen=seen)
    def drop_result(self, index: int, seen: bool) -> None:
        name = self.world.choose(index, lambda name: self.world.files[name].series in DIRECTORIES)
        if name:
            self.world.drop_result(name)
        self.look(seen)

    @rule(index=indexes, seen=seen)
    def put_back(self, index: int, seen: bool) -> None:
        gone = [each for each in self.world.copies if each[0] not in self.world.files]
        if gone:
            self.world.put_back(*gone[index % len(gone)])
        self.look(seen)

    @rule(index=indexes, seen=seen)
    def delete_by_hand(self, index: int, seen: bool) -> None:
        name = self.world.choose(index, lambda _: True)
        if name:
            self.world.delete(name)
        self.look(seen)

    @rule(name=st.sampled_from(["epoch_4.pth", "epoch_4.pth.tmp", "epoch_03.pth", "best_epoch_3.pth", "epoch_5"]))
    def put_foreign(self, name: str) -> None:
        self.world.put_foreign(name)

    @rule(index=indexes, seen=seen)
    def restore(self, index: int, seen: bool) -> None:
        pruned = sorted(name for name, each in self.world.trash.items() if each)
        if pruned:
            self.world.restore(pruned[index % len(pruned)])
        self.look(seen)

    # --- ckptd

    @rule(policy=st.none() | policies, state=st.sampled_from(["kept", "kept", "lost", "corrupt"]), seen=seen)
    def restart(self, policy: Policy | None, state: str, seen: bool) -> None:
        self.world.restart(policy, state=state)
        self.look(seen)

    @rule()
    def look_without_max_keep(self) -> None:
        self.world.look()

    @rule(series=series, count=st.integers(0, 4), at=st.integers(1, 40))
    def crash(self, series: str, count: int, at: int) -> None:
        for _ in range(count):
            self.world.save(series)
        self.world.crash(at)

    @rule()
    def second_ckptd(self) -> None:
        self.world.second_ckptd()

    @invariant()
    def the_promises_hold(self) -> None:
        if self.world is not None:
            self.world.check()


@pytest.fixture
def life(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Iterator[type[Life]]:
    """The rules, with the other process that reads."""
    monkeypatch.setattr(workdir, "_LOCK_WAIT_S", 0.0)  # nobody lets go of a lock here
    caplog.set_level(logging.CRITICAL, "ckptd")
    Life.reader = Reader()
    yield Life
    Life.reader.close()


@pytest.mark.timeout(600)  # it waits for nothing: it computes
def test_the_promises_hold_whatever_happens_to_a_work_dir(life: type[Life]) -> None:
    profile = settings.get_profile(os.environ.get("WORLD_PROFILE", "world"))
    run_state_machine_as_test(life, settings=profile)
