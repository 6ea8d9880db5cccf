"""Which events ask for a pass: those of names that can matter, heard of the kernel and counted in passes made."""

from __future__ import annotations

import contextlib
import os
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.layouts import LAYOUTS
from ckptd.core.policy import Policy
from ckptd.daemon import inotify
from ckptd.daemon.inotify import Inotify
from ckptd.daemon.keeper import Keeper
from ckptd.daemon.notable import Filter, Notable, declared_at
from ckptd.daemon.pace import Pace
from ckptd.daemon.service import Service
from ckptd.daemon.watch import Watcher
from ckptd.passes.surveyor import Surveyor
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, dcp_metadata, eventually, keeps, pointed, torch_zip

NOW_NS = 1_900_000_000 * 10**9
ONE = Policy(max_keep=1, rule="newest", trash_ttl_s=0)

LOGS = [
    "train.log", "20231127_120000.log", "20231127_120000.log.json", "nohup.out", "config.py", "results.txt", "wandb",
    "events.out.tfevents.1700000000.node17.4711.0", "sample_17.png", "core.4711", "vis_data", ".epoch_4.pth.tmp",
    ".epoch_{}.pth.ckptd-tmp", ".epoch_4.pth.ckptd-tmp", ".nfs000000000001", "metrics.json", "notes.keep",
]  # fmt: skip
MATTER = [
    "epoch_4.pth", "iter_400", "epoch=3-step=900.ckpt", "checkpoint-500", "step-7", "epoch_4.pth.keep",
    "checkpoint-500.keep", "epoch_4.pth.metrics.json", "checkpoint-500.metrics.json", "latest", "last_checkpoint",
    "latest.pth", "latest_checkpointed_iteration.txt", "trainer_state.json", "model_0000099.pth",
]  # fmt: skip


@pytest.fixture(params=["named", "found"])
def served(request: pytest.FixtureRequest, work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Passes that a service has begun over the work dir, and those that are over; hints alone can be the reason."""
    passes: Counter[str] = Counter()
    look = Keeper.look

    def counted(self: Keeper) -> None:
        passes[self.path] += 1
        look(self)
        passes["over"] += 1

    monkeypatch.setattr(Keeper, "look", counted)
    below = request.param == "found"
    save(work_dir, 0)
    place = work_dir.parent if below else work_dir
    service = Service([str(place)], ONE, recursive=below, scan_interval_s=86400.0)
    thread = threading.Thread(target=service.run)
    thread.start()
    try:
        eventually(keeps(work_dir, 0))
        yield passes
    finally:
        service.signalled(15)
        thread.join()


def save(work_dir: Path, step: int) -> None:
    (work_dir / f"epoch_{step}.pth").write_bytes(torch_zip())


def publish(work_dir: Path, step: int) -> None:
    """As many a training loop does, and our own hook, with a name of its own."""
    aside = work_dir / f".epoch_{step}.pth.tmp"
    aside.write_bytes(torch_zip())
    os.replace(aside, work_dir / f"epoch_{step}.pth")


def publish_as_the_hook(work_dir: Path, step: int) -> None:
    aside = work_dir / ".epoch_{}.pth.ckptd-tmp"
    aside.write_bytes(torch_zip())
    os.replace(aside, work_dir / f"epoch_{step}.pth")


@pytest.mark.parametrize("how", [publish, publish_as_the_hook])
def test_a_save_written_aside_and_renamed_costs_one_pass(
    how: Callable[[Path, int], None], served: Counter[str], work_dir: Path
) -> None:
    how(work_dir, 1)
    eventually(keeps(work_dir, 1))
    before = served[str(work_dir)]
    for step in range(2, 12):
        how(work_dir, step)
        eventually(keeps(work_dir, step))
    assert served[str(work_dir)] - before == 10


def test_a_save_under_its_own_name_costs_one_pass(
    served: Counter[str], work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    judge, judged = inotify.is_yet_to_be_written, threading.Semaphore(0)

    def told(path: str, name: str) -> bool:
        empty = judge(path, name)
        if name.startswith("epoch_"):
            judged.release()
        return empty

    monkeypatch.setattr(inotify, "is_yet_to_be_written", told)
    before = served[str(work_dir)]
    for step in range(1, 11):
        with (work_dir / f"epoch_{step}.pth").open("wb") as file:
            assert judged.acquire(timeout=20)  # the first of it that is heard
            file.write(torch_zip())
        eventually(keeps(work_dir, step))
    assert served[str(work_dir)] - before == 10


def test_a_save_that_is_written_as_soon_as_its_name_is_there_costs_two_passes_at_most(
    served: Counter[str], work_dir: Path
) -> None:
    for step in range(1, 11):
        save(work_dir, step)
        eventually(keeps(work_dir, step))
    assert served[str(work_dir)] <= 1 + 2 * 10


def test_a_directory_that_is_filled_aside_and_renamed_costs_one_pass(served: Counter[str], work_dir: Path) -> None:
    Builder(work_dir / "aside").work_dir.mkdir()
    before = served[str(work_dir)]
    for step in range(1, 11):
        Builder(work_dir / "aside").shards(f"iter_{step}").rename(work_dir / f"iter_{step}")
        eventually(lambda one=step: pointed(work_dir) == f"iter_{one}")
    assert served[str(work_dir)] - before == 10


def test_what_goes_with_its_scores_by_our_own_doing_costs_no_pass(served: Counter[str], work_dir: Path) -> None:
    for step in range(1, 6):
        name = f"epoch_{step}.pth.metrics.json"
        (work_dir / "scores").write_text('{"mAP": 0.5}')
        os.replace(work_dir / "scores", work_dir / name)
        publish(work_dir, step)
        eventually(holds(work_dir, f"epoch_{step}.pth", name))
    assert served[str(work_dir)] <= 1 + 2 * 5  # one for the scores, one for the checkpoint


def test_what_a_job_logs_costs_no_pass(served: Counter[str], work_dir: Path) -> None:
    publish(work_dir, 1)
    eventually(keeps(work_dir, 1))
    before = served[str(work_dir)]
    for line in range(100):
        with (work_dir / "train.log").open("a") as log:
            log.write(f"{line}\n")  # opened and closed for each line, as mmcv's hook does
        (work_dir / f"events.out.tfevents.{line}").touch()
        (work_dir / f"events.out.tfevents.{line}").unlink()
    publish(work_dir, 2)  # of which the kernel tells after all of that
    eventually(holds(work_dir, "epoch_2.pth", "train.log"))
    assert served[str(work_dir)] - before == 1


def test_hints_one_after_another_cost_passes_at_a_bounded_rate_and_the_last_one_costs_one_too(
    served: Counter[str], work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_off_s = 0.04
    monkeypatch.setattr(Pace, "due_s", lambda _, now_s: now_s + put_off_s)  # as after a long storm
    before, began_s = served[str(work_dir)], time.monotonic()
    for _ in range(50):
        for _ in range(50):
            (work_dir / "epoch_0.pth.metrics.json").write_text("{}")
        (work_dir / "aside").mkdir()
        (work_dir / "aside").rmdir()  # which the kernel tells of in between
    publish(work_dir, 1)
    eventually(holds(work_dir, "epoch_1.pth"))
    eventually(lambda: served["over"] == served[str(work_dir)])
    assert served[str(work_dir)] - before <= 2 + (time.monotonic() - began_s) / put_off_s


@pytest.mark.parametrize("how", ["scores", "pin"])
def test_what_stands_beside_a_checkpoint_is_heeded(how: str, served: Counter[str], work_dir: Path) -> None:
    before = served[str(work_dir)]
    (work_dir / ("epoch_0.pth.metrics.json" if how == "scores" else "epoch_0.pth.keep")).write_text("{}")
    eventually(lambda: served[str(work_dir)] > before)


def test_a_pin_that_is_taken_away_lets_its_checkpoint_go(served: Counter[str], work_dir: Path) -> None:
    (work_dir / "epoch_0.pth.keep").touch()
    publish(work_dir, 1)
    eventually(lambda: pointed(work_dir) == "epoch_1.pth")
    assert (work_dir / "epoch_0.pth").exists()
    (work_dir / "epoch_0.pth.keep").unlink()
    eventually(keeps(work_dir, 1))


def test_a_link_that_is_taken_away_lets_its_checkpoint_go(served: Counter[str], work_dir: Path) -> None:
    (work_dir / "good").symlink_to("epoch_0.pth")
    publish(work_dir, 1)
    eventually(lambda: pointed(work_dir) == "epoch_1.pth" and served["over"] == served[str(work_dir)])
    assert (work_dir / "epoch_0.pth").exists()
    (work_dir / "good").unlink()
    eventually(keeps(work_dir, 1))


def test_our_own_directory_taken_away_is_heeded(served: Counter[str], work_dir: Path) -> None:
    before = served[str(work_dir)]
    (work_dir / ".ckptd").rename(work_dir.parent / "taken")
    eventually(lambda: served[str(work_dir)] > before)
    publish(work_dir, 1)
    eventually(keeps(work_dir, 1))
    assert (work_dir / ".ckptd" / "state.json").exists()


def test_a_series_that_was_declared_meanwhile_is_heeded_from_its_next_save_on(
    served: Counter[str], work_dir: Path, declare: Callable[..., None]
) -> None:
    (work_dir / "net_1.pth").write_bytes(torch_zip())
    declare(work_dir, template="net_{}.pth", unit="step", interval=1, max_keep=1)
    for step in (2, 3, 4):
        (work_dir / "aside").write_bytes(torch_zip())
        os.replace(work_dir / "aside", work_dir / f"net_{step}.pth")
        eventually(lambda one=step: not list(work_dir.glob(f"net_{one - 1}.pth")))
    assert [path.name for path in work_dir.glob("net_*")] == ["net_4.pth"]


def test_a_directory_of_a_declared_series_is_heeded_until_its_last_file_comes(
    served: Counter[str], work_dir: Path, declare: Callable[..., None]
) -> None:
    Builder(work_dir).shards("net_2")
    declare(work_dir, template="net_{}", unit="step")
    publish(work_dir, 1)
    eventually(lambda: pointed(work_dir) == "epoch_1.pth" and served["over"] == served[str(work_dir)])
    before = served["over"]
    half = work_dir / "net_4"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"s" * 300)
    eventually(lambda: before < served["over"] == served[str(work_dir)])
    (half / ".metadata.tmp").write_bytes(dcp_metadata({"__0_0.distcp": 300}))
    (half / ".metadata.tmp").rename(half / ".metadata")
    eventually(lambda: pointed(work_dir) == "net_4")


def holds(work_dir: Path, *names: str) -> Callable[[], bool]:
    return lambda: {each for each in os.listdir(work_dir) if not each.startswith(".")} == {*names, "last_ckpt"}


# --- the names ----------------------------------------------------------------------------------------------------


def notable(work_dir: Path, policy: Policy = ONE) -> Notable:
    with WorkDir(str(work_dir)) as work:
        survey = Surveyor(work, policy).survey(NOW_NS)
    return Notable(str(work_dir), policy, survey, declared_at(str(work_dir)))


@pytest.mark.parametrize("name", LOGS)
def test_a_name_that_can_be_nothing_of_ours_does_not_count(name: str, with_checkpoints: Builder) -> None:
    assert not notable(with_checkpoints("epoch_1.pth"))(name)


@pytest.mark.parametrize("name", MATTER)
def test_a_name_that_can_matter_counts(name: str, with_checkpoints: Builder) -> None:
    assert notable(with_checkpoints("epoch_1.pth"))(name)


@pytest.mark.parametrize("given", [{"templates": ("net_{}.pth",)}, {"layouts": ("orbax",)}, {}])
def test_a_name_that_the_policy_asks_for_counts(given: dict[str, tuple[str, ...]], with_checkpoints: Builder) -> None:
    counts = notable(with_checkpoints("epoch_1.pth"), Policy(max_keep=1, **given))
    names = {"net_7.pth", "run_00000070", "epoch_7.pth"}
    expected = {"templates": {"net_7.pth"}, "layouts": {"run_00000070"}}.get(next(iter(given), ""), set())
    assert {name for name in names if counts(name)} >= (expected or {"epoch_7.pth"})


def test_a_link_that_is_known_counts_and_a_new_one_need_not(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    (work_dir / "good").symlink_to("epoch_1.pth")
    counts = notable(work_dir)
    assert (counts("good"), counts("better")) == (True, False)


_TEXTS = [form.text for layout in LAYOUTS for form in layout.forms]
_NAMES = st.one_of(
    st.builds(lambda text, step, word: text.replace("<name>", word).replace("<key>", word).replace("{}", step),
              st.sampled_from(_TEXTS), st.from_regex(r"0{0,3}[1-9][0-9]{0,4}", fullmatch=True),
              st.text("ab-_.=", max_size=4)),
    st.text("epochstep_-=.019 pthk", max_size=20),
)  # fmt: skip


@pytest.mark.parametrize("policy", [Policy(), Policy(layouts=tuple(layout.name for layout in LAYOUTS))])
@given(names=st.lists(_NAMES, max_size=6))
def test_whatever_a_survey_finds_can_be_found(policy: Policy, names: list[str]) -> None:
    finder = policy.finder()
    finder.learn(names)
    assert all(policy.finder().could_match(name) for name in names if finder.match(name) is not None)


# --- the filter and the watcher alone ------------------------------------------------------------------------------


def test_until_something_is_known_every_name_is_a_hint(work_dir: Path) -> None:
    hints: queue.SimpleQueue[str] = queue.SimpleQueue()
    inotify = Inotify()
    Watcher(hints.put, inotify, Filter("last_ckpt")).watch(str(work_dir))
    with contextlib.closing(inotify):
        (work_dir / "anything").touch()
        assert hints.get(timeout=20) == str(work_dir)


def test_what_a_pass_takes_away_is_our_own_doing_until_the_next_but_one() -> None:
    known = Filter("last_ckpt")
    heard = []
    for gone in ({"epoch_1.pth"}, set[str](), set[str]()):
        known.expect_gone("/run", gone)
        heard.append(known.is_hint("/run", "epoch_1.pth", gone=True))
    assert heard == [False, False, True]
