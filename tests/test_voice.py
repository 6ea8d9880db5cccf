"""What is said of a work dir: once, again when it comes back, and with the work dir's name once in a line."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.policy import Policy
from ckptd.passes.back_off import back_off_s
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.text.voice import Voice
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, epochs, holding_open, keeper_of, truncated

Log = pytest.LogCaptureFixture


@pytest.fixture(autouse=True)
def everything_is_heard(caplog: Log) -> None:
    caplog.set_level(logging.INFO, "ckptd")


# --- the words ----------------------------------------------------------------------------------------------------


def test_what_is_so_is_said_once_and_again_when_it_comes_back(caplog: Log) -> None:
    voice = Voice()
    for reason in ("full", "full", "broken", "full"):
        voice.once("state", f"could not write: {reason}")
    voice.forget("state")
    voice.once("state", "could not write: full")
    assert [text.removeprefix("could not write: ") for text in caplog.messages] == ["full", "broken", "full", "full"]


def test_of_many_only_the_new_ones_are_said_and_those_that_came_back(caplog: Log) -> None:
    voice = Voice()
    for names in ("a", "ab", "b", "ab", ""):
        voice.all_of("doubt", {name: f"{name} is in doubt" for name in names})
    assert [text[0] for text in caplog.messages] == ["a", "b", "a"]


def test_what_grows_is_said_each_time_it_has_doubled(caplog: Log) -> None:
    voice = Voice()
    for n in (0, 1, 2, 3, 2, 4, 7, 8):
        voice.when_doubled("beyond", n, f"{n} beyond".format)
    assert [text[0] for text in caplog.messages] == ["2", "4", "8"]


def test_what_a_person_has_from_elsewhere_is_not_said(caplog: Log) -> None:
    voice = Voice()
    for aloud in (False, True):
        voice.once("ignored", "a schedule", aloud=aloud)
        voice.when_doubled("beyond", 5, "5 beyond".format, aloud=aloud)
    assert not caplog.messages


def test_a_line_begins_with_its_work_dir_unless_it_names_it(caplog: Log) -> None:
    voice = Voice("/runs/a")
    voice.info("pruned %s", "epoch_1.pth")
    voice.warning("could not read %s/epoch_1.pth", "/runs/a")
    voice.once("trash", "100% full: `rm -r /runs/a/.ckptd/trash/*`")
    Voice().info("pruned %s", "epoch_1.pth")
    assert caplog.messages == [
        "/runs/a: pruned epoch_1.pth",
        "could not read /runs/a/epoch_1.pth",
        "100% full: `rm -r /runs/a/.ckptd/trash/*`",
        "pruned epoch_1.pth",
    ]


def test_what_fails_is_tried_again_after_twice_as_long_each_time() -> None:
    assert [back_off_s(failures) for failures in (1, 2, 3, 7, 10_000)] == [1, 2, 4, 60, 60]
    assert back_off_s(10_000, longest_s=3600) == 3600


# --- over the rest of a work dir ------------------------------------------------------------------------------------


@contextmanager
def resting(work_dir: Path, voice: Voice, **policy: Any) -> Iterator[Any]:
    """Passes over one work dir, which rests after each: all is new but what was said."""
    background = Background()
    with WorkDir(work_dir) as work:

        def a_pass() -> None:
            work.wake()
            process = Reconciler(work, Policy(**{"max_keep": 1, "interval": 1, **policy}), background, voice=voice)
            again_s = process.reconcile().look_again_s
            if again_s == 0.5:  # what is open is looked at once more first, for it may just have been closed
                time.sleep(again_s)
                process.reconcile()
            background.wait()
            assert process.can_rest
            work.rest()

        yield a_pass
        work.wake()
    background.close()


def test_of_a_work_dir_in_order_nothing_is_kept(with_checkpoints: Builder) -> None:
    voice = Voice()
    with resting(with_checkpoints(*epochs(1, 2, 3)), voice, max_bytes=1 << 30) as a_pass:
        a_pass()
        with_checkpoints("epoch_4.pth")
        a_pass()
    assert not any(voice.has_said(topic) for topic in list(voice._said))


def test_a_work_dir_with_a_trouble_rests_and_says_it_once(with_checkpoints: Builder, caplog: Log) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / "epoch_3.pth.metrics.json").write_text("[]")
    schedule = work_dir / ".ckptd/schedules/a"
    schedule.parent.mkdir(parents=True)
    schedule.write_text("{")
    (work_dir / "epoch_1.pth.keep").touch()
    with resting(work_dir, Voice(), keep_best=("mAP:max",), max_bytes=1) as a_pass:
        for _ in range(3):
            a_pass()
        texts = ("no JSON object of scores", f"ignored {schedule}", "cannot be met")
        assert [sum(text in line for line in caplog.messages) for text in texts] == [1, 1, 1]
        schedule.unlink()
        a_pass()
        schedule.write_text("{")
        a_pass()
    assert sum(f"ignored {schedule}" in line for line in caplog.messages) == 2


def test_what_somebody_holds_open_is_said_once_however_often_its_work_dir_rests(
    with_checkpoints: Builder, caplog: Log
) -> None:
    work_dir = with_checkpoints.shards("iter_1").parent
    for step in (2, 3):
        with_checkpoints.shards(f"iter_{step}")
    with holding_open(work_dir / "iter_1/__0_0.distcp", "r+b"), resting(work_dir, Voice()) as a_pass:
        for _ in range(3):
            a_pass()
    assert sum("still open for writing" in line for line in caplog.messages) == 1


# --- over the life of a run -----------------------------------------------------------------------------------------


def test_more_and_more_beyond_k_is_said_each_time_it_has_doubled(with_checkpoints: Builder, caplog: Log) -> None:
    work_dir = with_checkpoints("iter_100.pth", "iter_200.pth")
    background = Background()
    keeper = keeper_of(work_dir, Policy(max_keep=1, interval=100), background, root=work_dir.parent)
    keeper.look()
    for step in range(201, 209):
        with_checkpoints(f"iter_{step}.pth")
        keeper.look()
    keeper.close()
    background.close()
    lines = [text for text in caplog.messages if "beyond --max-keep 1" in text]
    assert [text.removeprefix(f"{work_dir}: iter_{{}}.pth: ")[0] for text in lines] == ["2", "4", "8"]


def test_no_line_names_its_work_dir_twice(with_checkpoints: Builder, caplog: Log) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    with_checkpoints("epoch_4.pth", content=truncated())
    (work_dir / ".ckptd").mkdir()
    (work_dir / ".ckptd/state.json").write_text("{")
    with resting(work_dir, Voice(str(work_dir)), max_bytes=1, trash_ttl_s=0.0) as a_pass:
        a_pass()
    assert len(caplog.messages) > 3
    assert [text for text in caplog.messages if text.count(str(work_dir)) != 1] == []
