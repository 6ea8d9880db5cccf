"""Tree, hints and keepers, after everything that can happen to the directories that `ckptd watch` looks after.

The rules change directories, or let one thing happen in ckptd: an event is delivered or lost, a pass is made, time
passes. Whatever the order, once all that is under way has come to its end, every work dir is as if ckptd had looked at
it last, nothing is watched or looked after that should not be, and nothing is left to do.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from ckptd.core.policy import Policy

from .conftest import dcp_metadata, torch_zip
from .watched import Watched, a_tick

ONE = Policy(max_keep=1, rule="newest", trash_ttl_s=0)
SCAN_S, SETTLE_S = 61.3, 290.0  # no sum of which is a time at which anything is judged anew
SERIES = ("epoch_{}.pth", "iter_{}")
SAVES = "saves.txt"  # what was ever saved in a directory, beside it: such a name gives no hint

BELOW = ("a", "a", "b", "a/c", "b/d", "a/c/e", ".h", "epoch_9")
NAMED = ("a", "a", "a/c", "link", "nowhere/at/all")
OUTSIDE = ("x", "y", "z")
places = st.integers(0, 59)  # choose among those that matter


class Life(RuleBasedStateMachine):
    """What happens below a directory that is watched as a root, or in which work dirs were named."""

    def __init__(self) -> None:
        super().__init__()
        self.top = Path(tempfile.mkdtemp(prefix="ckptd-watched-", dir=_fast_disk()))
        self.base = self.top / "base"
        self.base.mkdir()
        self.open_before = len(os.listdir("/proc/self/fd"))
        self.watched: Watched | None = None
        self.step = 0
        self.moved = 0
        self.begun_s: dict[str, float] = {}  # when directories began to be filled, by name
        self.must_scan = False

    @initialize(recursive=st.booleans(), there=st.booleans(), held=st.lists(places, max_size=3))
    def begin(self, recursive: bool, there: bool, held: list[int]) -> None:
        self.recursive = recursive
        self.link = self.base / "link"
        for name in OUTSIDE[:2]:
            (self.top / name).mkdir()
        for place in held:
            self.make(place)
            self.save(place)
        if not there and not held:
            self.base.rmdir()
        self.names = [self.base / name for name in dict.fromkeys(NAMED)]
        more = {"roots": [self.base]} if recursive else {"named": self.names}
        self.watched = Watched(ONE, scan_interval_s=SCAN_S, **more)

    def teardown(self) -> None:
        try:
            if self.watched is not None:
                self.come_to_rest()
                self.watched.close()
                assert len(os.listdir("/proc/self/fd")) == self.open_before
        finally:
            if self.watched is not None:
                self.watched.close()
            shutil.rmtree(self.top)

    # --- what others do -------------------------------------------------------------------------------------------

    def _at(self, place: int) -> Path:
        choice = (*(BELOW if self.recursive else NAMED), *OUTSIDE)
        name = choice[place % len(choice)]
        return (self.top if name in OUTSIDE else self.base) / name

    def _changing(self) -> None:
        if self.watched is not None:
            a_tick(self.top)

    @rule(place=places)
    def make(self, place: int) -> None:
        self._changing()
        if not self._at(place).is_symlink():
            self._at(place).mkdir(parents=True, exist_ok=True)

    @rule(place=places)
    def save(self, place: int) -> None:
        at = self._at(place)
        if at.is_dir():
            self._changing()
            self.step += 1
            aside = at / ".aside.tmp"
            aside.write_bytes(torch_zip())
            aside.rename(at / f"epoch_{self.step}.pth")
            self._note(at, f"epoch_{self.step}.pth")

    @rule(place=places)
    def begin_to_fill(self, place: int) -> None:
        """As DCP does: shards first, and `.metadata` at the very end."""
        at = self._at(place)
        if at.is_dir():
            self._changing()
            self.step += 1
            half = at / f"iter_{self.step}"
            half.mkdir()
            self.begun_s[half.name] = self.watched.now_s
            (half / "__0_0.distcp").write_bytes(b"s" * 300)

    @rule(place=places)
    def finish_filling(self, place: int) -> None:
        at = self._at(place)
        halves = [each for each in at.glob("iter_*") if not (each / ".metadata").exists()] if at.is_dir() else []
        if halves:
            self._changing()
            half = max(halves, key=lambda each: int(each.name.partition("_")[2]))
            (half / ".metadata.tmp").write_bytes(dcp_metadata({"__0_0.distcp": 300}))
            (half / ".metadata.tmp").rename(half / ".metadata")
            self._note(at, half.name)

    @rule(place=places)
    def log(self, place: int) -> None:
        at = self._at(place)
        if at.is_dir():
            self._changing()
            with (at / "train.log").open("a") as log:
                log.write("loss 0.1\n")

    @rule(place=places, to=places)
    def move(self, place: int, to: int) -> None:
        old, new = self._at(place), self._at(to)
        if (
            old.is_dir()
            and not old.is_symlink()
            and new.parent.is_dir()
            and not os.path.lexists(new)
            and old not in new.parents
        ):
            self._changing()
            old.rename(new)

    @rule(place=places)
    def replace(self, place: int) -> None:
        at = self._at(place)
        if at.is_dir() and not at.is_symlink():
            self._changing()
            self.moved += 1
            at.rename(self.top / f"moved{self.moved}")
            at.mkdir()

    @rule(place=places)
    def remove(self, place: int) -> None:
        at = self._at(place)
        if at.is_dir():
            self._changing()
            at.unlink() if at.is_symlink() else shutil.rmtree(at)

    @rule()
    def replace_the_base(self) -> None:
        if self.base.is_dir():
            self._changing()
            self.moved += 1
            self.base.rename(self.top / f"moved{self.moved}")
            self.must_scan = self.must_scan or not self.recursive  # no event tells of what happens above a parent

    @rule(to=st.sampled_from(OUTSIDE[:2]))
    def link_to(self, to: str) -> None:
        if self.base.is_dir() and (self.link.is_symlink() or not self.link.exists()):
            self._changing()
            (self.base / ".new").symlink_to(self.top / to)
            (self.base / ".new").rename(self.link)

    def _note(self, at: Path, name: str) -> None:
        with (at / SAVES).open("a") as saves:
            saves.write(f"{name}\n")

    # --- what happens in ckptd ------------------------------------------------------------------------------------

    @rule(count=st.integers(1, 8))
    def deliver(self, count: int) -> None:
        self.watched.kernel.tell(count)

    @rule(index=st.integers(0, 7))
    def do(self, index: int) -> None:
        self.watched.do(index)

    @rule()
    def turn(self) -> None:
        self.watched.turn()

    @rule()
    def lose_events(self) -> None:
        self.watched.kernel.lose()
        self.must_scan = self.must_scan or self.recursive  # a storm may go on and on: everything is looked at in time

    @rule()
    def lose_events_silently(self) -> None:
        if not self._halves():  # what comes into a directory that is being filled shows nowhere else
            self.watched.kernel.lose(silently=True)
            self.must_scan = True

    @rule()
    def the_watcher_dies(self) -> None:
        self.watched.kernel.alive = False

    @rule()
    def reload(self) -> None:
        self.watched.signal(1)

    @rule(seconds=st.sampled_from([1.7, SCAN_S]))
    def wait(self, seconds: float) -> None:
        for half in self._halves():
            if self.watched.now_s + seconds - self.begun_s[half.name] > SETTLE_S:
                shutil.rmtree(half)  # it would be taken for one that nobody fills any more
        self.watched.wait(seconds)

    # --- what must be ---------------------------------------------------------------------------------------------

    @precondition(lambda self: self.watched is not None)
    @rule()
    def come_to_rest(self) -> None:
        self.watched.settle()
        if self.must_scan:
            self.must_scan = False
            self._changing()
            self.wait(SCAN_S)
            self.watched.settle()
        held = {work_dir for work_dir in self._work_dirs() if self._expected(work_dir)}
        for work_dir in sorted(held):
            self._check(work_dir)
        tended = set(self.watched.loop.crew._tended)
        if self.recursive:
            assert {str(each) for each in held} <= tended <= {str(each) for each in self._directories()}
        else:
            assert tended == set(map(str, self.names))
        assert self.watched.kernel.watched == len({os.stat(place).st_ino for place in self._to_be_watched()})
        assert self.watched.settle() == 0

    def _check(self, work_dir: Path) -> None:
        expected = self._expected(work_dir)
        left = {name for name in os.listdir(work_dir) if name in expected or name in self._saved(work_dir)}
        assert left == set(expected), work_dir
        assert Path((work_dir / "last_ckpt").read_text().strip()).name == max(expected, key=_step_of), work_dir

    def _saved(self, work_dir: Path) -> list[str]:
        saves = work_dir / SAVES
        return saves.read_text().split() if saves.exists() else []

    def _expected(self, work_dir: Path) -> list[str]:
        """The newest of each series that were ever saved there, of which nobody but ckptd removes any."""
        saved = self._saved(work_dir)
        series = [[name for name in saved if name.endswith(".pth") == files] for files in (True, False)]
        return [max(each, key=_step_of) for each in series if each]

    def _work_dirs(self) -> list[Path]:
        return self._directories() if self.recursive else [path for path in self.names if path.is_dir()]

    def _directories(self, *, filling: bool = False) -> list[Path]:
        """What is looked into below the root."""
        found = []
        for place, inside, _ in os.walk(self.base):
            inside[:] = [name for name in inside if not name.startswith(".") and not Path(place, name).is_symlink()
                         and not Path(place, name, ".metadata").exists()]  # fmt: skip
            found.append(Path(place))
        return found

    def _halves(self) -> list[Path]:
        return [half for half in self.top.rglob("iter_*") if not (half / ".metadata").exists()]

    def _to_be_watched(self) -> set[Path]:
        if self.recursive:
            return set(self._directories()) or {self.top}
        found = set()
        for path in self.names:
            if path.is_dir():
                found |= {path, path.parent, *(half for half in self._halves() if half.parent == path.resolve())}
            else:
                found.add(next(parent for parent in path.parents if parent.is_dir()))
        return found


def _step_of(name: str) -> int:
    return int(name.partition("_")[2].removesuffix(".pth"))


def _fast_disk() -> str | None:
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


@pytest.fixture(autouse=True)
def _calm(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("CRITICAL", logger="ckptd")


# Repeatable, and without a deadline, as tests/test_world.py.
settings.register_profile(
    "watched",
    max_examples=int(os.environ.get("WATCHED_EXAMPLES", "150")),
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    report_multiple_bugs=False,
)


def test_whatever_happens_every_work_dir_is_looked_after_and_nothing_else() -> None:
    run_state_machine_as_test(Life, settings=settings.get_profile("watched"))
