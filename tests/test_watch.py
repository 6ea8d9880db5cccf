"""`ckptd watch` as a process: work dirs that come and go, signals, a command beside it, and a second ckptd."""

from __future__ import annotations

import contextlib
import errno
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from watchdog.observers.inotify_c import InotifyFD

from ckptd.core.policy import Policy
from ckptd.daemon.inotify import Inotify
from ckptd.daemon.notable import Filter
from ckptd.daemon.service import Service
from ckptd.daemon.watch import Watcher
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler

from .conftest import (
    Builder,
    Watching,
    dcp_metadata,
    environment,
    epochs,
    eventually,
    keeper_of,
    left,
    picture,
    pointed,
    torch_zip,
    truncated,
)

Watch = Callable[..., contextlib.AbstractContextManager[Watching]]
ONE = ("--max-keep", "1", "--interval", "1", "--trash-ttl", "0")
NEVER = ("--scan-interval", "1d")  # so that only a hint can have been the reason


def save(work_dir: Path, step: int) -> None:
    """Save as a training job does: with open and close, under the final name."""
    (work_dir / f"epoch_{step}.pth").write_bytes(torch_zip())


def publish(work_dir: Path, step: int) -> None:
    """Save as a careful training job does: aside, then by rename."""
    (work_dir / f".epoch_{step}.tmp").write_bytes(torch_zip())
    (work_dir / f".epoch_{step}.tmp").rename(work_dir / f"epoch_{step}.pth")


def keeps(work_dir: Path, *steps: int) -> Callable[[], bool]:
    return lambda: (
        left(work_dir) == epochs(*steps)
        and (work_dir / "last_ckpt").exists()
        and pointed(work_dir) == f"epoch_{steps[-1]}.pth"
    )


# --- work dirs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", [save, publish])
def test_a_save_moves_the_pointer_and_prunes_without_waiting_for_a_scan(
    how: Callable[[Path, int], None], with_checkpoints: Builder, watching: Watch
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with watching(work_dir, *ONE, *NEVER) as watch:
        first = watch.heard("watching")
        for step in (2, 3, 4):
            how(work_dir, step)
            eventually(keeps(work_dir, step), what=f"the prune after {step}")
        assert watch.stop() == 0
    assert (watch.lines[0], "1 checkpoint of epoch_{}.pth" in first) == (first, True)
    assert [line.split()[1] for line in watch.lines if line.startswith("pruned")] == epochs(1, 2, 3)


@pytest.mark.parametrize("how", ["made", "moved there", "made with its parents"])
def test_a_work_dir_that_does_not_exist_yet_is_waited_for(how: str, tmp_path: Path, watching: Watch) -> None:
    work_dir = tmp_path / "runs" / "a" if how == "made with its parents" else tmp_path / "a"
    with watching(work_dir, *ONE, *NEVER) as watch:
        watch.heard(f"waiting for {work_dir}, which does not exist yet")
        assert not work_dir.exists()
        if how == "moved there":
            (tmp_path / "prepared").mkdir()
            save(tmp_path / "prepared", 1)
            (tmp_path / "prepared").rename(work_dir)
        else:
            work_dir.mkdir(parents=True)
            watch.heard("no checkpoint yet")
            save(work_dir, 1)
        eventually(keeps(work_dir, 1))
        save(work_dir, 2)
        eventually(keeps(work_dir, 2))
        assert watch.stop() == 0
    assert watch.said("waiting for") == 1


def test_several_work_dirs_are_looked_after_side_by_side(tmp_path: Path, watching: Watch) -> None:
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
        save(place, 1)
    with watching(*places, *ONE, *NEVER) as watch:
        for place in places:
            watch.heard(f"{place}: pointed last_ckpt at epoch_1.pth")
        save(places[1], 2)
        eventually(keeps(places[1], 2))
        assert left(places[0]) == epochs(1)
        save(places[0], 2)
        eventually(keeps(places[0], 2))
        assert watch.stop() == 0


def test_several_work_dirs_that_do_not_exist_yet_are_each_found_as_they_come(tmp_path: Path, watching: Watch) -> None:
    places = [tmp_path / name for name in ("a", "b", "c")]
    with watching(*places, *ONE, *NEVER) as watch:
        for place in places:
            watch.heard(f"waiting for {place}")
        for place in places:
            place.mkdir()
            save(place, 1)
            eventually(keeps(place, 1), what=f"the pointer in {place.name}")
        assert watch.stop() == 0


def test_one_work_dir_that_is_refused_does_not_keep_the_others_waiting(tmp_path: Path, watching: Watch) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, 1)
    (tmp_path / "a" / ".ckptd").symlink_to(tmp_path)
    with watching(tmp_path / "a", tmp_path / "b", *ONE, *NEVER) as watch:
        watch.heard(f"{tmp_path}/a/.ckptd: a symlink")
        save(tmp_path / "b", 2)
        eventually(keeps(tmp_path / "b", 2))
        assert watch.stop() == 0
    assert left(tmp_path / "a") == epochs(1)


@pytest.mark.parametrize("how", ["moved away", "removed"])
def test_a_work_dir_that_is_replaced_is_met_anew(
    how: str, with_checkpoints: Builder, tmp_path: Path, watching: Watch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    state = work_dir / ".ckptd" / "state.json"
    with watching(work_dir, *ONE, *NEVER) as watch:
        eventually(keeps(work_dir, 2))
        if how == "removed":
            (work_dir / "epoch_2.pth").unlink()
            eventually(lambda: "epoch_2.pth" not in state.read_text())  # then it writes nothing more of its own
            shutil.rmtree(work_dir)
        else:
            work_dir.rename(tmp_path / "old")
        watch.heard(f"lost {work_dir}")
        work_dir.mkdir()
        save(work_dir, 7)
        eventually(keeps(work_dir, 7))
        assert watch.stop() == 0
    if how == "moved away":
        assert left(tmp_path / "old") == epochs(2)


def test_a_dry_run_says_what_would_go_and_changes_nothing(with_checkpoints: Builder, watching: Watch) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    before = picture(work_dir)
    with watching(work_dir, *ONE, "--dry-run") as watch:
        for name in epochs(1, 2):
            watch.heard(f"would prune {name}")
        assert (watch.stop(), picture(work_dir)) == (0, before)


def test_a_dry_run_of_several_work_dirs_says_which_it_would_prune_in(tmp_path: Path, watching: Watch) -> None:
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
        save(place, 1), save(place, 2)
    with watching(*places, *ONE, *NEVER, "--dry-run") as watch:
        for place in places:
            watch.heard(f"{place}: would prune epoch_1.pth")
        assert watch.stop() == 0


def test_an_incomplete_checkpoint_is_judged_again_when_it_has_settled(
    with_checkpoints: Builder, watching: Watch
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    (work_dir / "epoch_2.pth").write_bytes(truncated())  # just now: it may still become whole
    state = work_dir / ".ckptd" / "state.json"
    with watching(work_dir, "--max-keep", "1", "--rule", "newest", "--settle", "0.5", *ONE[4:], *NEVER) as watch:
        eventually((work_dir / "last_ckpt").exists)
        assert pointed(work_dir) == "epoch_1.pth"
        eventually(lambda: state.exists() and "epoch_2.pth" in state.read_text(), what="the second look")
        assert left(work_dir) == epochs(1, 2)
        save(work_dir, 3)
        eventually(keeps(work_dir, 3))
        assert watch.stop() == 0


def test_a_directory_that_was_seen_half_filled_is_judged_when_its_last_file_comes(
    work_dir: Path, watching: Watch
) -> None:
    """As DCP writes one: shards, and .metadata at the very end, of which nothing outside the directory tells."""
    with_checkpoints = Builder(work_dir)
    with_checkpoints.shards("iter_2")
    with watching(work_dir, "--max-keep", "1", *NEVER) as watch:
        eventually((work_dir / "last_ckpt").exists)
        half = work_dir / "iter_4"
        half.mkdir()
        (half / "__0_0.distcp").write_bytes(b"s" * 300)
        watch.process.send_signal(signal.SIGHUP)
        watch.heard("looked again, as SIGHUP asked")
        (half / ".metadata.tmp").write_bytes(dcp_metadata({"__0_0.distcp": 300}))
        (half / ".metadata.tmp").rename(half / ".metadata")
        watch.heard("pointed last_ckpt at iter_4")
        assert watch.stop() == 0


# --- signals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_end_ends_it_well(number: signal.Signals, with_checkpoints: Builder, watching: Watch) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with watching(work_dir, *ONE) as watch:
        eventually(keeps(work_dir, 2))
        assert watch.stop(number) == 0
    assert watch.lines[-1] == f"stopped by {number.name}"
    assert os.listdir(work_dir / ".ckptd" / "trash") == []


_SIGNALLED = """
import os, signal, sys, threading, time
from ckptd.core.policy import Policy
from ckptd.daemon.service import Service

def take_the_signal_once_the_main_thread_sleeps():
    asleep = 0
    while asleep < 20:
        with open(f"/proc/self/task/{os.getpid()}/stat") as stat:
            state = stat.read().rpartition(")")[2].split()[0]
        asleep = asleep + 1 if state == "S" and os.path.exists(os.path.join(sys.argv[1], "last_ckpt")) else 0
        time.sleep(0.005)
    signal.pthread_kill(threading.get_ident(), signal.SIGTERM)

threading.Thread(target=take_the_signal_once_the_main_thread_sleeps, daemon=True).start()
sys.exit(Service([sys.argv[1]], Policy(), scan_interval_s=86400.0).run())
"""


def test_a_signal_that_does_not_wake_the_main_thread_ends_it_all_the_same(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    done = subprocess.run([sys.executable, "-c", _SIGNALLED, work_dir], env=environment(), timeout=20, check=False)
    assert done.returncode == 0


def test_sighup_looks_again_at_once(with_checkpoints: Builder, watching: Watch) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with watching(work_dir, *ONE, *NEVER) as watch:
        eventually(keeps(work_dir, 1))
        (work_dir / "last_ckpt").unlink()  # the pointer is ckptd's own, so this is no hint
        watch.process.send_signal(signal.SIGHUP)
        watch.heard("looked again, as SIGHUP asked")
        assert keeps(work_dir, 1)()
        assert watch.stop() == 0


# --- a command beside it ----------------------------------------------------------------------------------------

_JOB = """
import os, pathlib, signal, sys
work_dir, what = pathlib.Path(sys.argv[1]), sys.argv[2]
work_dir.mkdir(exist_ok=True)
if what == "save":
    for step in (1, 2, 3):
        (work_dir / f"epoch_{step}.pth").write_bytes(pathlib.Path(sys.argv[3]).read_bytes())
    sys.exit(7)
if what == "handle":
    signal.signal(signal.SIGUSR1, lambda *_: os._exit(9))
(work_dir / "ready").touch()
while True:
    signal.pause()
"""


def test_a_command_runs_beside_it_and_its_last_save_is_kept_and_its_exit_code_is_ours(
    tmp_path: Path, watching: Watch
) -> None:
    (tmp_path / "bytes").write_bytes(torch_zip())
    work_dir = tmp_path / "run"
    command = ("--", sys.executable, "-c", _JOB, work_dir, "save", tmp_path / "bytes")
    with watching(work_dir, *ONE, *NEVER, *command) as watch:
        assert watch.ends() == 7
    assert keeps(work_dir, 3)()


@pytest.mark.parametrize(
    ("what", "number", "expected"),
    [("handle", signal.SIGUSR1, 9), ("die", signal.SIGTERM, 143), ("die", signal.SIGUSR1, 138)],
)
def test_a_signal_is_for_the_command_and_its_end_is_ours(
    what: str, number: signal.Signals, expected: int, tmp_path: Path, watching: Watch
) -> None:
    work_dir = tmp_path / "run"
    with watching(work_dir, *ONE, "--", sys.executable, "-c", _JOB, work_dir, what) as watch:
        eventually((work_dir / "ready").exists)
        assert watch.stop(number) == expected


def test_a_command_that_does_not_exist_is_named(with_checkpoints: Builder, watching: Watch) -> None:
    with watching(with_checkpoints("epoch_1.pth"), *ONE, "--", "/nowhere/train.sh", "--max-keep", "7") as watch:
        assert watch.ends() == 127
    assert "/nowhere/train.sh: cannot be started: No such file or directory" in watch.lines[-1]


# --- others -----------------------------------------------------------------------------------------------------


def test_a_second_ckptd_is_told_who_is_there_and_the_first_goes_on(with_checkpoints: Builder, watching: Watch) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with watching(work_dir, *ONE) as first:
        eventually(keeps(work_dir, 2))
        with watching(work_dir, *ONE) as second:
            assert second.ends() == 5
        assert f"{work_dir}: process {first.process.pid} (" in second.lines[-1]
        save(work_dir, 3)
        eventually(keeps(work_dir, 3))
        assert first.stop() == 0


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EMFILE])
def test_without_watches_left_it_scans_and_says_so_once(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def none_left(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(InotifyFD, "add_callback" if number == errno.ENOSPC else "_create_inotify_fd", none_left)
    places = [tmp_path / "a", tmp_path / "b"]
    for place in places:
        place.mkdir()
        save(place, 1)
    open_before = len(os.listdir("/proc/self/fd"))
    policy = Policy(max_keep=1, interval=1, trash_ttl_s=0)
    codes: list[int] = []
    service = Service([str(place) for place in places], policy, scan_interval_s=0.05)
    thread = threading.Thread(target=lambda: codes.append(service.run()))
    thread.start()
    try:
        for step in (1, 2, 3):
            for place in places:
                save(place, step)
                eventually(keeps(place, step))
    finally:
        service.signalled(signal.SIGTERM)
        thread.join()
    assert codes == [0]
    assert caplog.text.count("scanning instead") == 1
    assert len(os.listdir("/proc/self/fd")) <= open_before  # not one more at every try


def test_an_event_of_our_own_files_is_no_hint_and_one_of_a_checkpoint_is(work_dir: Path) -> None:
    hints: queue.SimpleQueue[str] = queue.SimpleQueue()
    inotify = Inotify()
    Watcher(hints.put, inotify, Filter("last_ckpt")).watch(str(work_dir))
    try:
        (work_dir / ".ckptd").mkdir()
        (work_dir / ".last_ckpt.ckptd-tmp").write_text("x")
        (work_dir / ".last_ckpt.ckptd-tmp").rename(work_dir / "last_ckpt")
        save(work_dir, 1)
        assert hints.get(timeout=20) == str(work_dir)
        heard = 1
        with contextlib.suppress(queue.Empty):
            while True:
                hints.get(timeout=0.2)
                heard += 1
    finally:
        inotify.close()
    assert heard in (1, 2)  # it was closed after writing; and created, if it was not empty when that was heard


def test_a_bug_about_one_work_dir_is_not_the_end_of_the_watch(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    background = Background()
    keeper = keeper_of(work_dir, Policy(), background)

    def fail(self: Reconciler) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(Reconciler, "survey", fail)
        keeper.look()
        keeper.look()
    assert caplog.text.count("a bug in ckptd") == 1
    assert isinstance(keeper.failure, MemoryError)
    keeper.look()
    assert keeper.failure is None
    keeper.close()
    background.close()
