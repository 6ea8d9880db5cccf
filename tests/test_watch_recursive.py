"""`ckptd watch --recursive` as a process: work dirs that appear, move and vanish below a root, and bad manners."""

from __future__ import annotations

import contextlib
import fcntl
import os
import resource
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd.core.policy import Policy
from ckptd.daemon.inotify import Inotify
from ckptd.daemon.lookout import Lookout
from ckptd.daemon.notable import Filter
from ckptd.daemon.process import Process
from ckptd.passes.background import Background
from ckptd.passes.reading import Reader

from .conftest import (
    Somebody,
    Watching,
    dcp_metadata,
    environment,
    epochs,
    eventually,
    keeps,
    left,
    pointed,
    torch_zip,
)

Watch = Callable[..., contextlib.AbstractContextManager[Watching]]
ONE = ("--recursive", "--max-keep", "1", "--interval", "1", "--trash-ttl", "0")
NEVER = ("--scan-interval", "1d")  # so that only a hint can have been the reason


def save(work_dir: Path, step: int) -> None:
    """Save as a training job does: with open and close, under the final name."""
    work_dir.mkdir(parents=True, exist_ok=True)
    (work_dir / f"epoch_{step}.pth").write_bytes(torch_zip())


def is_owned(work_dir: Path) -> bool:
    """Whether a ckptd owns the work dir, asked as a job asks."""
    with (work_dir / ".ckptd" / "lock").open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def is_removed(path: Path) -> bool:
    """Remove it, as far as that goes while a pass that is not over yet still writes there."""
    shutil.rmtree(path, ignore_errors=True)
    return not path.exists()


# --- work dirs that come and go -----------------------------------------------------------------------------------


def test_what_is_there_and_what_comes_is_looked_after(tmp_path: Path, watching: Watch) -> None:
    save(tmp_path / "a", 1)
    save(tmp_path / "a" / "inside", 1)
    with watching(tmp_path, *ONE, *NEVER) as watch:
        watch.heard(f"found 2 work dirs in 3 directories below {tmp_path}")
        for place in (tmp_path / "a", tmp_path / "a" / "inside", tmp_path / "new" / "deep" / "er", tmp_path):
            for step in (1, 2, 3):
                save(place, step)
                eventually(lambda p=place, s=step: (p / f"epoch_{s}.pth").exists() and pointed_at(p, s))
        for place in (tmp_path / "a" / "inside", tmp_path / "new" / "deep" / "er"):
            eventually(keeps(place, 3))
        assert watch.stop() == 0
    assert watch.lines[0] == f"watching all work dirs below {tmp_path}"


def pointed_at(work_dir: Path, step: int) -> bool:
    return (work_dir / "last_ckpt").exists() and pointed(work_dir) == f"epoch_{step}.pth"


def test_a_directory_moved_in_with_checkpoints_inside_is_found_and_followed(tmp_path: Path, watching: Watch) -> None:
    root = tmp_path / "root"
    root.mkdir()
    save(tmp_path / "prepared" / "deep" / "run", 1)
    with watching(root, *ONE, *NEVER) as watch:
        watch.heard("found 0 work dirs")
        (tmp_path / "prepared").rename(root / "moved")
        run = root / "moved" / "deep" / "run"
        eventually(keeps(run, 1))
        save(run, 2)
        eventually(keeps(run, 2))
        (root / "moved").rename(root / "again")  # within the root: the same inodes under other names
        run = root / "again" / "deep" / "run"
        watch.heard(f"{root}/moved/deep/run is gone; let go of it")
        save(run, 3)
        eventually(keeps(run, 3))
        assert watch.stop() == 0


def test_a_work_dir_that_vanishes_is_let_go_with_its_lock(tmp_path: Path, watching: Watch) -> None:
    root = tmp_path / "root"
    save(root / "a", 1)
    save(root / "b", 1)
    with watching(root, *ONE, *NEVER) as watch:
        for name in ("a", "b"):
            eventually(keeps(root / name, 1))
        (root / "a").rename(tmp_path / "away")
        watch.heard(f"{root}/a is gone; let go of it")
        eventually(lambda: not is_owned(tmp_path / "away"))
        assert is_owned(root / "b")
        eventually(lambda: is_removed(root / "b"))
        watch.heard(f"{root}/b is gone; let go of it")
        save(root / "b", 7)
        eventually(keeps(root / "b", 7))
        assert watch.stop() == 0


def test_a_root_that_does_not_exist_yet_is_waited_for_and_so_is_one_that_is_replaced(
    tmp_path: Path, watching: Watch
) -> None:
    root = tmp_path / "group" / "root"
    with watching(root, *ONE, *NEVER) as watch:
        watch.heard(f"waiting for {root}, which does not exist yet")
        save(root / "a", 1)
        eventually(keeps(root / "a", 1))
        root.rename(tmp_path / "old")
        watch.heard(f"{root}/a is gone")
        save(root / "b", 1)
        eventually(keeps(root / "b", 1))
        assert watch.stop() == 0


def test_a_directory_of_shards_is_judged_when_its_last_file_comes(tmp_path: Path, watching: Watch) -> None:
    with watching(tmp_path, "--recursive", "--max-keep", "1", *NEVER) as watch:
        watch.heard("found 0 work dirs")
        half = tmp_path / "run" / "iter_4"
        half.mkdir(parents=True)
        (half / "__0_0.distcp").write_bytes(b"s" * 300)
        watch.process.send_signal(signal.SIGHUP)
        watch.heard("looked again, as SIGHUP asked")
        (half / ".metadata.tmp").write_bytes(dcp_metadata({"__0_0.distcp": 300}))
        (half / ".metadata.tmp").rename(half / ".metadata")
        watch.heard("pointed last_ckpt at iter_4")
        assert watch.stop() == 0


def test_directories_that_come_and_go_in_a_storm_leave_the_others_alone(tmp_path: Path, watching: Watch) -> None:
    root = tmp_path / "root"
    save(root / "steady", 1)
    with watching(root, *ONE, *NEVER) as watch:
        eventually(keeps(root / "steady", 1))
        for number in range(150):
            place = root / f"storm{number % 5}"
            save(place / "x" / "y", 1)
            if number % 3:
                shutil.rmtree(place, ignore_errors=True)  # ckptd may be at it
                while place.exists():
                    shutil.rmtree(place, ignore_errors=True)
            else:
                place.rename(tmp_path / f"away{number}")
        save(root / "steady", 2)
        eventually(keeps(root / "steady", 2))
        save(root / "storm1" / "x" / "y", 5)
        eventually(keeps(root / "storm1" / "x" / "y", 5))
        assert watch.stop() == 0
    assert [line for line in watch.lines if "bug" in line or "Traceback" in line] == []


# --- bad manners ------------------------------------------------------------------------------------------------


class Looking:
    """A lookout below `root`, with what it told."""

    def __init__(self, root: Path) -> None:
        self.looks: list[str] = []
        self.gone: list[str] = []
        self.walked = threading.Event()
        background = Background()
        reader = Reader(background, wait=False)
        self.process = Process(Policy(), background, reader, Inotify(), Filter("last_ckpt"))
        self.lookout = Lookout(
            str(root), self.process, look=self.looks.append, gone=self.gone.append, walked=self.walked.set
        )
        self.lookout.start()
        assert self.walked.wait(20)

    def close(self) -> None:
        self.lookout.close()
        self.process.inotify.close()

    def settle(self) -> None:
        """Wait until all that was told to the lookout so far was looked at."""
        done = threading.Event()
        self.lookout.then(done.set)
        assert done.wait(20)


@pytest.fixture
def looking(tmp_path: Path) -> Iterator[Looking]:
    save(tmp_path / "run", 1)
    (tmp_path / "samples").mkdir()
    looking = Looking(tmp_path)
    yield looking
    looking.close()


def test_files_that_are_no_checkpoints_cost_no_listing(looking: Looking, tmp_path: Path) -> None:
    before = looking.lookout.listed
    for number in range(3000):
        (tmp_path / "samples" / f"sample_{number}.png").touch()
    save(tmp_path / "samples", 1)  # heard of after all of these
    eventually(lambda: str(tmp_path / "samples") in looking.looks)
    looking.settle()
    assert looking.lookout.listed - before <= 2  # it was created, and closed after writing


def test_an_event_in_a_work_dir_lists_nothing_and_concerns_that_one_only(looking: Looking, tmp_path: Path) -> None:
    before = looking.lookout.listed
    del looking.looks[:]
    save(tmp_path / "run", 2)
    eventually(lambda: looking.looks)
    looking.settle()
    assert (set(looking.looks), looking.lookout.listed) == ({str(tmp_path / "run")}, before)


def test_what_we_remove_ourselves_gives_no_hint_and_what_somebody_else_removes_does(
    looking: Looking, tmp_path: Path
) -> None:
    run, other = tmp_path / "run", tmp_path / "other"
    save(run, 2)
    save(other, 1)  # heard of after all of the former
    eventually(lambda: str(other) in looking.looks)
    del looking.looks[:]
    looking.process.filter.expect_gone(str(run), {"epoch_1.pth"})
    (run / "epoch_1.pth").rename(tmp_path / "samples" / "away")
    (run / "epoch_2.pth").unlink()
    (other / "epoch_1.pth").unlink()
    eventually(lambda: looking.looks[-1:] == [str(other)] and str(run) in looking.looks)
    assert looking.looks.count(str(run)) == 1


def test_loops_of_symlinks_end_and_what_they_lead_to_is_not_looked_after(tmp_path: Path, watching: Watch) -> None:
    root = tmp_path / "root"
    save(root / "a", 1)
    for step in (1, 2):
        save(tmp_path / "outside", step)
    (root / "b").mkdir()
    (root / "b" / "up").symlink_to(root)
    with watching(root, *ONE, *NEVER) as watch:
        watch.heard("found 1 work dirs in 3 directories")
        (root / "elsewhere").symlink_to(tmp_path / "outside")
        save(root / "a", 2)
        eventually(keeps(root / "a", 2))
        assert watch.stop() == 0
    assert left(tmp_path / "outside") == epochs(1, 2)


def test_an_unreadable_subtree_is_said_once_and_the_rest_goes_on(somebody: Somebody, watching: Watch) -> None:
    root = somebody.place / "root"
    for name in ("a", "b"):
        save(root / name, 1)
    somebody.owns(root)
    (root / "b").chmod(0)
    command = somebody.command("watch", root, *ONE, "--scan-interval", "0.1")
    with watching(root, command=command) as watch:
        watch.heard(f"could not look into {root}/b: Permission denied")
        eventually(keeps(root / "a", 1))
        for _ in range(3):
            watch.process.send_signal(signal.SIGHUP)
        watch.heard("looked again, as SIGHUP asked", times=1)
        (root / "b").chmod(0o755)
        eventually(keeps(root / "b", 1))
        assert watch.stop() == 0
    assert watch.said("could not look into") == 1


def test_where_watches_run_out_the_rest_is_scanned_and_that_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from watchdog.observers.inotify_c import InotifyFD

    add, left_over = InotifyFD.add_callback, [2]

    def few(*args: object) -> int:
        left_over[0] -= 1
        if left_over[0] < 0:
            raise OSError(28, "inotify watch limit reached")
        return add(*args)

    monkeypatch.setattr(InotifyFD, "add_callback", few)
    for name in "abcd":
        save(tmp_path / name, 1)
    looking = Looking(tmp_path)
    try:
        del looking.looks[:]
        for name in "abcd":
            save(tmp_path / name, 2)
        looking.lookout.look_again()
        eventually(lambda: set(looking.looks) == {str(tmp_path / name) for name in "abcd"})
    finally:
        looking.close()
    assert caplog.text.count("fs.inotify.max_user_watches") == 1


def test_lost_events_make_it_look_at_everything(looking: Looking, tmp_path: Path) -> None:
    del looking.looks[:]
    looking.lookout.look_everywhere()
    eventually(lambda: str(tmp_path / "run") in looking.looks)


# --- many -------------------------------------------------------------------------------------------------------


def test_one_that_is_refused_does_not_keep_the_others_waiting(tmp_path: Path, watching: Watch) -> None:
    for name in "abc":
        save(tmp_path / name, 1)
    (tmp_path / "a" / ".ckptd").symlink_to(tmp_path)
    with watching(tmp_path, *ONE, *NEVER) as watch:
        watch.heard(f"{tmp_path}/a/.ckptd: a symlink")
        for name in "bc":
            save(tmp_path / name, 2)
            eventually(keeps(tmp_path / name, 2))
        assert watch.stop() == 0
    assert left(tmp_path / "a") == epochs(1)


def test_at_rest_a_work_dir_is_still_owned_and_holds_one_descriptor(tmp_path: Path, watching: Watch) -> None:
    places = [tmp_path / f"run{number}" for number in range(100)]  # more than stay awake
    for place in places:
        save(place, 1)
    with watching(tmp_path, *ONE, *NEVER) as watch:
        for place in places:
            eventually(keeps(place, 1))
        descriptors = Path(f"/proc/{watch.process.pid}/fd")
        eventually(lambda: len(list(descriptors.iterdir())) < 100 + 2 * 64 + 30, what="rest")
        assert all(is_owned(place) for place in places)
        for place in places:
            save(place, 2)
        for place in places:
            eventually(keeps(place, 2))
        assert watch.stop() == 0
    announced = [line for line in watch.lines if line.startswith("watching /") or "checkpoint of" in line]
    assert len(announced) == 100  # each is met once, however often it rests


def test_with_few_descriptors_it_goes_on_without_the_locks_of_those_at_rest(tmp_path: Path, watching: Watch) -> None:
    places = [tmp_path / f"run{number}" for number in range(100)]
    for place in places:
        save(place, 1)
    limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (530, 530))  # noqa: E731
    with watching(tmp_path, *ONE, *NEVER, preexec_fn=limit) as watch:
        watch.heard("more work dirs than files may be open")
        for place in places:
            eventually(keeps(place, 1))
        eventually(lambda: not all(is_owned(place) for place in places))
        for place in places:
            save(place, 2)
        for place in places:
            eventually(keeps(place, 2))
        assert watch.stop() == 0
    assert watch.said("more work dirs than files may be open") == 1


def test_a_dry_run_changes_nothing_and_says_where_it_would(tmp_path: Path, watching: Watch) -> None:
    for name in ("a", "b"):
        for step in (1, 2, 3):
            save(tmp_path / name, step)
    with watching(tmp_path, *ONE, *NEVER, "--dry-run") as watch:
        for name in ("a", "b"):
            for step in (1, 2):
                watch.heard(f"{tmp_path}/{name}: would prune epoch_{step}.pth")
        assert watch.stop() == 0
    assert sorted(os.listdir(tmp_path / "a")) == sorted(os.listdir(tmp_path / "b")) == epochs(1, 2, 3)


def test_advice_says_what_work_dir_it_is_about(tmp_path: Path, watching: Watch) -> None:
    for name in ("a", "b"):
        save(tmp_path / name, 1)
    with watching(tmp_path, "--recursive", *NEVER) as watch:
        for name in ("a", "b"):
            watch.heard(f"warning: {tmp_path}/{name}: epoch_{{}}.pth: no --max-keep")
        assert watch.stop() == 0


def test_roots_that_overlap_are_one(tmp_path: Path, watching: Watch) -> None:
    save(tmp_path / "root" / "a", 1)
    (tmp_path / "other").symlink_to(tmp_path / "root" / "a")
    with watching(tmp_path / "root" / "a", tmp_path / "root", tmp_path / "other", *ONE, *NEVER) as watch:
        eventually(keeps(tmp_path / "root" / "a", 1))
        save(tmp_path / "root" / "a", 2)
        eventually(keeps(tmp_path / "root" / "a", 2))
        assert watch.stop() == 0
    assert watch.said("owns this work dir") == 0


def test_a_hidden_directory_is_left_alone_also_if_it_comes_later_unless_it_is_named(
    tmp_path: Path, watching: Watch
) -> None:
    hidden, named, shown = (tmp_path / "root" / name for name in (".snapshots/1", ".named/run", "shown"))
    for step in (1, 2):
        save(hidden, step)
        save(named, step)
    with watching(tmp_path / "root", tmp_path / "root" / ".named", *ONE, *NEVER) as watch:
        eventually(keeps(named, 2))
        for step in (1, 2):
            save(tmp_path / "root" / ".later", step)
            save(hidden, step + 2)
        for step in (1, 2):
            save(shown, step)
        eventually(keeps(shown, 2))  # heard of after all of these
        assert watch.stop() == 0
    assert (left(hidden), left(tmp_path / "root" / ".later")) == (epochs(1, 2, 3, 4), epochs(1, 2))


def test_a_work_dir_that_another_ckptd_owns_is_left_to_it(tmp_path: Path, watching: Watch) -> None:
    for name in "ab":
        save(tmp_path / name, 1)
    with watching(tmp_path / "a", "--max-keep", "5") as first:
        eventually(keeps(tmp_path / "a", 1))
        with watching(tmp_path, *ONE, *NEVER) as second:
            second.heard(f"{tmp_path}/a: process {first.process.pid} (")
            save(tmp_path / "b", 2)
            eventually(keeps(tmp_path / "b", 2))
            assert second.stop() == 0
        assert first.stop() == 0


_JOB = """
import pathlib, sys
place = pathlib.Path(sys.argv[1], "made", "by", "job")
place.mkdir(parents=True)
for step in (1, 2, 3):
    (place / f"epoch_{step}.pth").write_bytes(pathlib.Path(sys.argv[2]).read_bytes())
sys.exit(7)
"""


def test_a_command_runs_beside_it_and_its_last_save_is_kept_and_its_exit_code_is_ours(
    tmp_path: Path, watching: Watch
) -> None:
    (tmp_path / "bytes").write_bytes(torch_zip())
    command = ("--", sys.executable, "-c", _JOB, tmp_path / "root", tmp_path / "bytes")
    with watching(tmp_path / "root", *ONE, *NEVER, *command) as watch:
        assert watch.ends() == 7
    assert keeps(tmp_path / "root" / "made" / "by" / "job", 3)()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories of several owners")
def test_as_root_the_work_dirs_of_others_are_left_alone_and_said_once(tmp_path: Path, watching: Watch) -> None:
    for name in ("ours", "theirs/a", "theirs/b"):
        for step in (1, 2):
            save(tmp_path / name, step)
    for place in (tmp_path / "theirs").rglob("*"):
        os.chown(place, 65534, 65534)
    with watching(tmp_path, *ONE, *NEVER) as watch:
        watch.heard("and what else nobody owns")
        eventually(keeps(tmp_path / "ours", 2))
        watch.process.send_signal(signal.SIGHUP)
        watch.heard("looked again, as SIGHUP asked")
        assert watch.stop() == 0
    assert watch.said("and what else nobody owns") == 1
    assert [len(left(tmp_path / "theirs" / name)) for name in "ab"] == [2, 2]


def test_the_environment_can_ask_for_it(tmp_path: Path, watching: Watch) -> None:
    save(tmp_path / "a", 1)
    with watching(tmp_path, env=environment(CKPTD_RECURSIVE="1")) as watch:
        watch.heard("found 1 work dirs")
        assert watch.stop() == 0
