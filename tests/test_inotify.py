"""What the kernel tells through watchdog's reader of inotify, of which no version promises anything to the next."""

from __future__ import annotations

import configparser
import functools
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from watchdog import version
from watchdog.observers.inotify_c import InotifyFD

from ckptd.daemon.inotify import PROVEN, DirectoryWatch, Inotify

from .conftest import environment, eventually

Told = tuple[str, str, bool, bool]
REPOSITORY = Path(__file__).parents[1]
WAIT_S = 20


class Listener:
    """What a DirectoryWatch has told."""

    def __init__(self, inotify: Inotify) -> None:
        self.told: queue.SimpleQueue[Told] = queue.SimpleQueue()
        self.losses = 0
        self.watch = DirectoryWatch(inotify, lambda *told: self.told.put(told), self.lost)

    def lost(self) -> None:
        self.losses += 1

    def heard(self, count: int) -> list[Told]:
        """The next of what is told, and nothing more for a moment."""
        heard = [self.told.get(timeout=WAIT_S) for _ in range(count)]
        with pytest.raises(queue.Empty):
            heard.append(self.told.get(timeout=0.05))
        return heard


@pytest.fixture
def inotify() -> Iterator[Inotify]:
    inotify = Inotify()
    yield inotify
    inotify.close()


@pytest.fixture
def listener(inotify: Inotify) -> Listener:
    return Listener(inotify)


def test_what_comes_and_goes_in_a_directory_is_told(listener: Listener, tmp_path: Path) -> None:
    place = str(tmp_path)
    assert listener.watch.add(place)
    with (tmp_path / "a").open("w"):
        assert listener.heard(0) == []
    assert listener.heard(1) == [(place, "a", False, False)]
    (tmp_path / "a").rename(tmp_path / "b")
    assert listener.heard(2) == [(place, "a", False, True), (place, "b", False, False)]
    (tmp_path / "b").unlink()
    (tmp_path / "d").mkdir()
    assert listener.heard(2) == [(place, "b", False, True), (place, "d", True, False)]
    (tmp_path / "d").rename(tmp_path / "e")
    (tmp_path / "e").rmdir()
    assert [told[1:] for told in listener.heard(3)] == [("d", True, True), ("e", True, False), ("e", True, True)]


def test_a_name_in_no_encoding_is_told_as_the_system_tells_it(listener: Listener, tmp_path: Path) -> None:
    listener.watch.add(str(tmp_path))
    name = os.fsdecode(b"\xff\xfe.pth")
    (tmp_path / name).mkdir()
    assert listener.heard(1)[0][1] == name


def test_writes_reads_and_what_is_further_down_wake_nobody(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    listener.watch.add(str(tmp_path))
    with (tmp_path / "big").open("w+b") as big:
        assert listener.heard(0) == []
        for _ in range(100):
            big.write(b"x" * 4096)
            big.flush()
        big.seek(0)
        big.read()
        os.fchmod(big.fileno(), 0o600)
        (tmp_path / "inside" / "a").touch()
        (tmp_path / "big").read_bytes()
        assert listener.heard(0) == []


def test_what_comes_without_being_closed_is_told_as_it_comes(listener: Listener, tmp_path: Path) -> None:
    aside = tmp_path / "aside"
    aside.mkdir()
    (aside / "whole").write_text("x")
    listener.watch.add(str(tmp_path))
    os.symlink("aside/whole", tmp_path / "symlink")
    os.link(aside / "whole", tmp_path / "link")
    os.mkfifo(tmp_path / "pipe")
    with (aside / "filled").open("w") as filled:
        filled.write("x")
        filled.flush()
        os.link(aside / "filled", tmp_path / "moved")
        (aside / "filled").unlink()
    assert [told[1] for told in listener.heard(4)] == ["symlink", "link", "pipe", "moved"]


def test_a_symlink_and_its_target_are_told_of_both_and_one_goes_on_without_the_other(
    listener: Listener, tmp_path: Path
) -> None:
    (tmp_path / "target").mkdir()
    (tmp_path / "link").symlink_to("target")
    target, link = str(tmp_path / "target"), str(tmp_path / "link")
    assert (listener.watch.add(target), listener.watch.add(link, follow=True)) == (True, True)
    (tmp_path / "target" / "d").mkdir()
    assert {told[0] for told in listener.heard(2)} == {target, link}
    listener.watch.remove(target)
    (tmp_path / "target" / "e").mkdir()
    assert [told[:2] for told in listener.heard(1)] == [(link, "e")]
    assert (target in listener.watch, link in listener.watch) == (False, True)


def test_a_symlink_is_not_followed_unless_that_is_asked_for(listener: Listener, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path)
    (tmp_path / "file").touch()
    for name in ("link", "file", "missing"):
        assert not listener.watch.add(str(tmp_path / name))
        assert str(tmp_path / name) not in listener.watch


def test_two_who_listen_are_both_told_and_what_one_asks_for_the_other_does_not_take_away(
    inotify: Inotify, listener: Listener, tmp_path: Path
) -> None:
    other, place = Listener(inotify), tmp_path / "place"
    place.mkdir()
    listener.watch.add(str(place), fate=True)
    other.watch.add(str(place))
    (place / "d").mkdir()
    assert listener.heard(1) == other.heard(1)
    other.watch.remove(str(place))
    (place / "e").mkdir()
    assert (len(listener.heard(1)), other.heard(0)) == (1, [])
    place.rename(tmp_path / "away")
    assert listener.heard(1) == [(str(place), "", True, True)]


def test_a_directory_that_was_moved_is_told_of_under_its_new_path(listener: Listener, tmp_path: Path) -> None:
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    assert listener.watch.add(str(old))
    old.rename(new)
    assert listener.watch.add(str(new))
    listener.watch.remove(str(old))
    (new / "d").mkdir()
    assert [told[:2] for told in listener.heard(1)] == [(str(new), "d")]


def test_another_directory_in_its_place_is_watched_once_that_is_asked_for_again(
    listener: Listener, tmp_path: Path
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    assert (listener.watch.add(str(place)), listener.watch.add(str(place))) == (True, False)
    place.rename(tmp_path / "away")
    place.mkdir()
    assert listener.watch.add(str(place))
    (tmp_path / "away" / "d").mkdir()
    (place / "e").mkdir()
    assert [told[:2] for told in listener.heard(1)] == [(str(place), "e")]


def test_what_happens_while_it_is_asked_for_again_is_told(
    inotify: Inotify, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = str(tmp_path)
    listener.watch.add(place)
    steps = [getattr(InotifyFD, name) for name in ("add_callback", "remove_callbacks")]

    def with_an_event_after(step: Callable[..., object]) -> Callable[..., object]:
        def both(*args: object) -> object:
            done = step(*args)
            (tmp_path / step.__name__).mkdir()
            assert listener.told.get(timeout=WAIT_S) == (place, step.__name__, True, False)
            return done

        return both

    for step in steps:
        monkeypatch.setattr(InotifyFD, step.__name__, with_an_event_after(step))
    assert not listener.watch.add(place)
    assert len(list(tmp_path.iterdir())) == len(steps)
    monkeypatch.undo()


def test_a_directory_that_is_gone_is_told_of_and_watched_no_more(listener: Listener, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    listener.watch.add(str(place))
    place.rmdir()
    assert listener.heard(1) == [(str(place), "", True, False)]
    assert str(place) not in listener.watch
    place.mkdir()
    assert listener.watch.add(str(place))


def test_lost_events_are_told_once(inotify: Inotify, listener: Listener, tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    go_on = threading.Event()
    slow = DirectoryWatch(inotify, lambda *_: go_on.wait(WAIT_S) and None, listener.lost)
    (tmp_path / "slow").mkdir()
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        listener.watch.add(str(tmp_path / name))
    slow.add(str(tmp_path / "slow"))
    (tmp_path / "slow" / "x").mkdir()  # from here on nobody reads
    for _ in range(limit // 2 + 2100):
        (tmp_path / "a" / "d").mkdir()
        (tmp_path / "a" / "d").rmdir()
    go_on.set()
    eventually(lambda: listener.losses)
    assert listener.losses == 2  # for each who listens, not for each directory


def test_in_a_storm_what_happens_to_one_name_again_and_again_is_told_a_few_times(
    listener: Listener, tmp_path: Path
) -> None:
    listener.watch.add(str(tmp_path))
    logs = [tmp_path / f"rank{rank}.log" for rank in range(4)]
    began_s = time.monotonic()
    for _ in range(2000):
        for log in logs:  # the kernel itself merges only what happens to the same name twice running
            log.open("a").close()
    took_s = time.monotonic() - began_s
    (tmp_path / "epoch_1.pth").mkdir()
    told = list(iter(functools.partial(listener.told.get, timeout=WAIT_S), (str(tmp_path), "epoch_1.pth", True, False)))
    assert {name for _, name, _, _ in told} == {log.name for log in logs}
    assert len(told) <= 4 * (100 + took_s / 0.005)


def test_what_is_told_last_of_a_name_is_what_happened_last(
    inotify: Inotify, listener: Listener, tmp_path: Path
) -> None:
    held_up, go_on = threading.Event(), threading.Event()

    def hold_up(*_: object) -> None:
        held_up.set()
        go_on.wait(WAIT_S)

    slow = DirectoryWatch(inotify, hold_up, listener.lost)
    for place, watch in (("slow", slow), ("busy", listener.watch)):
        (tmp_path / place).mkdir()
        watch.add(str(tmp_path / place))
    (tmp_path / "slow" / "x").mkdir()
    assert held_up.wait(WAIT_S)  # from here on nobody reads
    for _ in range(10):
        (tmp_path / "busy" / "d").mkdir()
        (tmp_path / "busy" / "d").rmdir()
        (tmp_path / "busy" / "f").open("a").close()
    (tmp_path / "busy" / "d").mkdir()
    go_on.set()
    assert [told[1:] for told in listener.heard(3)] == [("d", True, True), ("f", False, False), ("d", True, False)]


def test_begun_anew_it_has_no_descriptor_and_no_thread_until_something_is_watched(
    inotify: Inotify, listener: Listener, tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd"), threading.active_count()
    assert not inotify.is_open
    assert listener.watch.add(str(tmp_path))
    inotify.begin_anew()
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before
    assert (inotify.is_open, inotify.is_alive(), str(tmp_path) in listener.watch) == (False, True, False)
    assert listener.watch.add(str(tmp_path))
    (tmp_path / "d").mkdir()
    assert len(listener.heard(1)) == 1
    inotify.close()
    assert not listener.watch.add(str(tmp_path))
    assert (os.listdir("/proc/self/fd"), threading.active_count()) == before


def test_a_thread_that_died_is_noticed(inotify: Inotify, listener: Listener, monkeypatch: pytest.MonkeyPatch) -> None:
    def die(_: InotifyFD) -> None:
        pass

    monkeypatch.setattr(InotifyFD, "run", die)
    listener.watch.add("/")
    eventually(lambda: not inotify.is_alive())


def test_a_disk_that_does_not_answer_keeps_nobody_else_waiting(
    listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat, asked, answer = os.stat, threading.Event(), threading.Event()

    def hangs(path: str, **more: bool) -> os.stat_result:
        if path == "/dead":
            asked.set()
            answer.wait(WAIT_S)
        return stat(path, **more)

    monkeypatch.setattr(os, "stat", hangs)
    waiting = threading.Thread(target=lambda: listener.watch.add("/dead"))
    waiting.start()
    assert asked.wait(WAIT_S)
    assert listener.watch.add(str(tmp_path))
    (tmp_path / "d").mkdir()
    assert len(listener.heard(1)) == 1
    answer.set()
    waiting.join()


# --- the version --------------------------------------------------------------------------------------------------

FIRST, BEFORE = (".".join(map(str, each)) for each in PROVEN)
RANGE = f"watchdog>={FIRST},<{BEFORE}"


def test_the_version_that_is_tested_here_is_one_that_is_taken() -> None:
    assert PROVEN[0] <= version.VERSION_INFO[:2] < PROVEN[1]


def test_an_install_asks_for_the_versions_that_a_start_takes() -> None:
    setup = configparser.ConfigParser()
    setup.read(REPOSITORY / "setup.cfg")
    assert f'{RANGE}; python_version >= "3.11"' in setup["options"]["install_requires"].splitlines()


@pytest.mark.parametrize("number", ["7.0.0", "7.2.0", "8.0.1", "0.10.7"])
def test_another_version_is_refused_at_the_start_in_one_line(number: str, tmp_path: Path) -> None:
    info = tuple(map(int, number.split(".")))
    code = (
        f"import sys, watchdog.version as v; v.VERSION_INFO, v.VERSION_STRING = {info}, {number!r}\n"
        f"sys.argv = ['ckptd', 'watch', {os.fspath(tmp_path)!r}]\nfrom ckptd.__main__ import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(PYTHONPATH=str(REPOSITORY)), text=True, capture_output=True,
        timeout=60, check=False,
    )  # fmt: skip
    said = f"error: the command ckptd needs {RANGE}, and this is {number}: `{{}} -m pip install '{RANGE}'`\n"
    assert (done.returncode, done.stderr) == (2, said.format(sys.executable))
