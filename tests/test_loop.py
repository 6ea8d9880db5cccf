"""The loop of `ckptd watch`, driven by hand: which hint leads to which pass, and what it does when something hangs."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd.core.policy import Policy
from ckptd.daemon import loop as loops
from ckptd.daemon.keeper import Keeper
from ckptd.errors import RefusedError
from ckptd.systemd import notify

from .conftest import epochs, keeps, left, torch_zip
from .watched import Watched

ONE = Policy(max_keep=1, rule="newest", trash_ttl_s=0)


def save(work_dir: Path, step: int) -> None:
    aside = work_dir / f".epoch_{step}.pth.tmp"
    aside.write_bytes(torch_zip())
    aside.rename(work_dir / f"epoch_{step}.pth")


@pytest.fixture
def started() -> Iterator[Callable[..., Watched]]:
    """Begins to watch, and ends it with the test."""
    all_: list[Watched] = []

    def start(**more: object) -> Watched:
        all_.append(Watched(ONE, **more))
        return all_[-1]

    yield start
    for each in all_:
        each.close()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What a service manager hears, but for the status."""
    heard: list[str] = []
    for word in ("ready", "reloading", "ping"):
        monkeypatch.setattr(notify, word, lambda *_, word=word: heard.append(word))
    return heard


@pytest.fixture
def two(tmp_path: Path) -> list[Path]:
    """Two work dirs with a checkpoint each."""
    places = [tmp_path / name for name in ("a", "b")]
    for place in places:
        place.mkdir()
        save(place, 1)
    return places


# --- hints --------------------------------------------------------------------------------------------------------


def test_a_save_is_one_pass_over_its_work_dir_and_then_nothing_happens(
    two: list[Path], started: Callable[..., Watched]
) -> None:
    watched = started(named=two)
    assert watched.settle() == 2
    save(two[0], 2)
    assert watched.settle() == 1
    assert watched.diary[-2:].count("turn") >= 1
    assert "pass a" in watched.diary[-10:]
    assert keeps(two[0], 2)()
    assert watched.settle() == 0


def test_the_same_hints_lead_to_the_same_calls(tmp_path: Path, started: Callable[..., Watched]) -> None:
    diaries = []
    for run in ("1", "2"):
        root = tmp_path / run / "root"
        for name in ("a", "b/c", "b/d"):
            (root / name).mkdir(parents=True)
            save(root / name, 1)
        watched = started(roots=[root])
        watched.settle()
        save(root / "b" / "c", 2)
        (root / "a").rename(root / "b" / "e")
        shutil.rmtree(root / "b" / "d")
        watched.kernel.tell(3)
        watched.do(1)
        save(root / "b" / "e", 2)
        watched.settle()
        watched.wait(60.0)
        watched.settle()
        diaries.append(watched.diary)
    assert diaries[0] == diaries[1]
    assert len(diaries[0]) > 20


def test_a_hint_that_comes_while_a_pass_waits_asks_for_no_other_and_one_that_comes_during_it_does(
    two: list[Path], started: Callable[..., Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = started(named=two)
    watched.settle()
    for step in (2, 3, 4):
        save(two[0], step)
    watched.kernel.tell(100)
    watched.turn()
    assert len(watched.pool.asked[str(two[0])]) == 1
    look = Keeper.look

    def meanwhile(self: Keeper) -> None:
        look(self)
        monkeypatch.undo()
        save(two[0], 5)
        watched.kernel.tell(100)
        watched.turn()

    monkeypatch.setattr(Keeper, "look", meanwhile)
    assert watched.settle() == 2
    assert keeps(two[0], 5)()


def test_hints_that_never_came_are_made_up_for_at_the_next_scan(
    two: list[Path], started: Callable[..., Watched]
) -> None:
    watched = started(named=two)
    watched.settle()
    save(two[0], 2)
    watched.kernel.lose(silently=True)
    assert watched.settle() == 0
    watched.wait(59.0)
    assert watched.settle() == 0
    watched.wait(1.0)
    assert watched.settle() == 2
    assert keeps(two[0], 2)()


@pytest.mark.parametrize("how", ["lost", "dead"])
def test_lost_hints_and_a_dead_watcher_are_made_up_for_at_once(
    how: str, two: list[Path], started: Callable[..., Watched]
) -> None:
    watched = started(named=two)
    watched.settle()
    save(two[1], 2)
    if how == "lost":
        watched.kernel.lose()
    else:
        watched.kernel.alive = False
    assert watched.settle() == 2
    assert keeps(two[1], 2)()
    save(two[0], 2)
    assert watched.settle() == 1


def test_a_work_dir_that_comes_in_a_directory_that_was_replaced_is_met(
    two: list[Path], started: Callable[..., Watched]
) -> None:
    """Both are watched by one watch of the first, which goes with the directory that was there before."""
    outer, inner = two[0], two[0] / "c"
    watched = started(named=[outer, inner])
    watched.settle()
    outer.rename(outer.parent / "away")
    outer.mkdir()
    two[1].rename(inner)
    watched.settle()
    assert keeps(inner, 1)()


def test_a_root_that_came_unnoticed_is_watched_like_any_other(
    tmp_path: Path, two: list[Path], started: Callable[..., Watched]
) -> None:
    root = tmp_path / "root"
    watched = started(roots=[root])
    watched.settle()
    root.mkdir()
    two[0].rename(root / "a")
    watched.kernel.lose(silently=True)
    watched.wait(60.0)
    watched.settle()
    assert keeps(root / "a", 1)()
    assert watched.kernel.watched == 2  # the root and the work dir, its parent no more


def test_the_disk_of_a_named_work_dir_is_known_without_asking_it(
    tmp_path: Path, started: Callable[..., Watched]
) -> None:
    inside, work_dir = Path("/proc/self/none"), tmp_path / "none"
    watched = started(named=[inside, work_dir])
    assert watched.named.device_of(str(inside)) == os.stat("/proc").st_dev
    assert watched.named.device_of(str(work_dir)) != os.stat("/proc").st_dev


# --- what hangs ---------------------------------------------------------------------------------------------------


def test_a_disk_that_does_not_answer_holds_up_no_other_work_dir(
    two: list[Path], started: Callable[..., Watched], said: list[str]
) -> None:
    watched = started(named=two)
    watched.pool.hung.add(str(two[0]))
    watched.settle()
    assert (keeps(two[1], 1)(), said) == (True, [])
    watched.wait(loops._FIRST_LOOKS_S)
    watched.settle()
    assert said == ["ready"]
    save(two[1], 2)
    watched.settle()
    assert keeps(two[1], 2)()
    assert not watched.loop._hangs(1.0)
    watched.pool.hung.clear()
    watched.settle()
    assert (keeps(two[0], 1)(), said) == (True, ["ready"])


def test_where_everything_that_was_named_hangs_the_manager_hears_neither_ready_nor_ping(
    two: list[Path], started: Callable[..., Watched], said: list[str]
) -> None:
    watched = started(named=two)
    watched.pool.hung.update(map(str, two))
    watched.wait(1000.0)
    watched.settle()
    assert (said, watched.loop._hangs(10.0)) == ([], True)
    watched.pool.hung.clear()
    watched.settle()
    assert (said, watched.loop._hangs(10.0)) == (["ready"], False)


def test_below_a_root_a_disk_that_hangs_is_not_what_a_new_start_would_mend(
    tmp_path: Path, two: list[Path], started: Callable[..., Watched], said: list[str]
) -> None:
    watched = started(roots=[tmp_path])
    watched.pool.hung.update(map(str, two))
    watched.settle()
    watched.wait(1000.0)
    assert (said, watched.loop._hangs(10.0)) == (["ready"], False)


def test_a_reload_is_over_once_everything_was_looked_at_again(
    two: list[Path], started: Callable[..., Watched], said: list[str]
) -> None:
    watched = started(named=two)
    watched.settle()
    watched.signal(1)
    watched.turn()
    watched.do(0)
    watched.turn()
    assert said == ["ready", "reloading"]
    watched.do(0)
    watched.turn()
    assert said == ["ready", "reloading", "ready"]


def test_a_pass_that_was_under_way_when_a_reload_was_asked_for_is_not_the_one_it_asks_for(
    two: list[Path], started: Callable[..., Watched], said: list[str]
) -> None:
    watched = started(named=two[:1])
    watched.settle()
    save(two[0], 2)
    watched.kernel.tell(100)
    watched.turn()
    job = watched.pool.asked[str(two[0])]
    del watched.pool.asked[str(two[0])]
    watched.loop.crew._waiting.clear()  # it has begun
    watched.signal(1)
    watched.turn()
    job.popleft()()
    watched.turn()
    assert said == ["ready", "reloading"]
    watched.settle()
    assert said == ["ready", "reloading", "ready"]


# --- the start, and the end ---------------------------------------------------------------------------------------


def test_what_can_do_nothing_at_all_ends_and_has_said_once_what_is_to_be_mended(
    two: list[Path], started: Callable[..., Watched], said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    for place in two:
        (place / ".ckptd").symlink_to(place.parent)
    watched = started(named=two)
    watched.settle()
    assert (watched.code, said) == (RefusedError.exit_code, [])
    for place in two:
        assert caplog.text.count(f"{place}/.ckptd: a symlink") == 1


def test_what_can_do_something_goes_on(two: list[Path], started: Callable[..., Watched], said: list[str]) -> None:
    (two[0] / ".ckptd").symlink_to(two[0].parent)
    watched = started(named=two)
    watched.settle()
    assert (said, watched.loop.status()) == (["ready"], "watching 2 work dirs, 1 failing")


def test_a_signal_to_end_ends_it_before_the_passes_that_are_to_come(
    two: list[Path], started: Callable[..., Watched]
) -> None:
    watched = started(named=two)
    watched.settle()
    save(two[0], 2)
    watched.kernel.tell(100)
    watched.signal(15)
    watched.turn()
    assert (watched.code, left(two[0])) == (0, epochs(1, 2))


def test_nothing_is_left_open_at_the_end(tmp_path: Path, two: list[Path]) -> None:
    before = os.listdir("/proc/self/fd")
    for more in ({"named": two}, {"roots": [tmp_path]}):
        watched = Watched(ONE, **more)
        watched.settle()
        watched.close()
        assert os.listdir("/proc/self/fd") == before
