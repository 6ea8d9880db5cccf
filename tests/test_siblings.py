"""A save that lacks what every older save of its run has is in doubt: kept, not relied on, never pruned for it."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.checkpoint import State
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir.workdir import WorkDir

from .conftest import a_pass, dcp_metadata, left, pointed, safetensors, torch_zip

HOUR_NS = 3600 * 10**9
FULL = {
    "model.safetensors": safetensors(), "optimizer.pt": torch_zip(), "rng_state_0.pth": torch_zip(),
    "rng_state_1.pth": torch_zip(),
}  # fmt: skip


class Run:
    """A run that saves once an hour, and passes over it at a clock that is set by hand."""

    def __init__(self, place: Path, **policy: Any) -> None:
        self.place = place
        self.began_ns = self.now_ns = time.time_ns() - 100 * HOUR_NS
        self.policy = Policy(**{"templates": ("step_{}",), "max_keep": 2, "trash_ttl_s": 0.0} | policy)
        self.restart()

    def restart(self) -> None:
        self.work = WorkDir(self.place)
        self.background = Background()
        self.reconciler = Reconciler(self.work, self.policy, self.background, clock=lambda: self.now_ns)

    def close(self) -> None:
        self.background.close()
        self.work.close()

    def save(self, step: int, *but: str, **more: bytes) -> None:
        self.now_ns = self.began_ns + step * HOUR_NS
        place = self.place / f"step_{step}"
        for path, content in {**FULL, **more}.items():
            if path not in but:
                (place / path).parent.mkdir(parents=True, exist_ok=True)
                (place / path).write_bytes(content)
                os.utime(place / path, ns=(self.now_ns, self.now_ns))
        self.now_ns += HOUR_NS // 2

    def look(self, *, after_h: float = 0) -> list[str]:
        self.now_ns += int(after_h * HOUR_NS)
        self.reconciler.reconcile()
        self.background.wait()
        return left(self.place)

    def doubtful(self) -> list[str]:
        survey = self.reconciler.survey()
        found = [d for d in survey.decisions if d.checkpoint.state is State.DOUBTFUL]
        assert all(d.reasons[0].kind is Kind.IN_DOUBT for d in found)
        return [d.checkpoint.name for d in found]


@pytest.fixture
def run(work_dir: Path) -> Iterator[Run]:
    made = Run(work_dir)
    yield made
    made.close()


def steps(*numbers: int) -> list[str]:
    return sorted(f"step_{number}" for number in numbers)


@pytest.mark.parametrize("part", FULL)
def test_one_that_lacks_what_every_older_one_has_is_kept_and_carries_nothing(part: str, run: Run) -> None:
    for step in (1, 2):
        run.save(step)
    run.save(3, part)
    assert run.look() == steps(1, 2, 3)
    assert (run.doubtful(), pointed(run.place)) == (steps(3), "step_2")
    run.save(4)
    assert run.look() == steps(2, 3, 4)
    run.save(5)
    assert run.look() == steps(3, 4, 5)
    assert run.doubtful() == steps(3)


def test_with_a_max_keep_of_one_too_where_one_older_is_left(run: Run, work_dir: Path) -> None:
    run.policy = Policy(templates=("step_{}",), max_keep=1, trash_ttl_s=0.0)
    run.close()
    run.restart()
    for step in (1, 2, 3):
        run.save(step)
        assert run.look() == steps(step)
    run.save(4, "optimizer.pt")
    assert run.look() == steps(3, 4)
    assert pointed(work_dir) == "step_3"


@pytest.mark.parametrize("older", [0, 1])
def test_it_needs_two_older_ones(older: int, run: Run) -> None:
    for step in range(1, 1 + older):
        run.save(step)
    run.save(5, "optimizer.pt")
    run.look()
    assert (run.doubtful(), pointed(run.place)) == ([], "step_5")


def test_an_incomplete_one_is_no_older_save(run: Run) -> None:
    run.save(1)
    run.save(2, **{"model.safetensors": safetensors()[:-1]})
    run.save(3, "optimizer.pt")
    run.look()
    assert run.doubtful() == []


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_it_ends_when_k_later_ones_in_a_row_at_least_two_are_like_it(keep: int, work_dir: Path) -> None:
    run = Run(work_dir, max_keep=keep)
    for step in (1, 2):
        run.save(step)
    needed = max(2, keep)
    run.look()
    for step in range(3, 3 + needed):
        run.save(step, "rng_state_1.pth")  # fewer ranks after a resume
        run.look()
        assert run.doubtful() == steps(*range(3, step + 1))
    run.save(3 + needed, "rng_state_1.pth")
    run.look()
    assert (run.doubtful(), pointed(work_dir)) == ([], f"step_{3 + needed}")
    run.look()
    assert left(work_dir) == steps(*range(4 + needed - keep, 4 + needed))
    run.save(4 + needed, "rng_state_1.pth")
    run.look()
    assert (run.doubtful(), pointed(work_dir)) == ([], f"step_{4 + needed}")
    run.close()


def test_of_a_run_whose_last_save_omits_the_optimizer_that_is_named_in_the_end_with_a_word(
    run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        run.save(step)
    run.save(3, "optimizer.pt")
    run.look()
    for _ in range(9):
        run.look(after_h=1)
        assert (run.doubtful(), pointed(run.place)) == (steps(3), "step_2")
    assert "counts as complete" not in caplog.text
    run.look(after_h=1)
    assert (run.doubtful(), pointed(run.place)) == ([], "step_3")
    run.look(after_h=1)
    assert caplog.text.count("no optimizer.pt, as the saves before it have; it counts as complete") == 1
    assert left(run.place) == steps(2, 3)


def test_latest_names_it_in_the_end_though_nobody_has_looked_before(work_dir: Path) -> None:
    run = Run(work_dir)
    run.began_ns = time.time_ns() - 12 * HOUR_NS
    for step in (8, 9):
        run.save(step)
    run.save(10, "optimizer.pt")
    run.close()
    path, word = api.latest_or_why(work_dir, run.policy)
    assert path == work_dir / "step_9"
    assert word.startswith(f"{work_dir}/step_10 is newer, and in doubt: no optimizer.pt, as every older save has: ")
    for path in work_dir.rglob("*"):
        at_ns = path.stat().st_mtime_ns - 10 * HOUR_NS
        os.utime(path, ns=(at_ns, at_ns))
    assert api.latest(work_dir, run.policy) == work_dir / "step_10"
    assert api.plan(work_dir, run.policy).newest == "step_9"  # what would be deleted for it has more time


@pytest.mark.parametrize("restarts", [False, True])
def test_it_does_not_end_because_the_older_ones_are_gone(restarts: bool, run: Run) -> None:
    for step in (1, 2):
        run.save(step)
    run.save(3, "optimizer.pt")
    run.look()
    for step in (1, 2):
        shutil.rmtree(run.place / f"step_{step}")
    if restarts:
        run.close()
        run.restart()
    run.look()
    assert run.doubtful() == steps(3)


def test_it_ends_with_what_was_missing(run: Run) -> None:
    for step in (1, 2):
        run.save(step)
    run.save(3, "optimizer.pt")
    run.look()
    assert run.doubtful() == steps(3)
    late = run.place / "step_3" / "optimizer.pt"
    late.write_bytes(torch_zip())
    os.utime(late, ns=(run.now_ns, run.now_ns))
    run.look(after_h=1)
    assert (run.doubtful(), pointed(run.place)) == ([], "step_3")


@pytest.mark.parametrize("added", ["eval_results.bin", "predictions.pt", "metrics.json", "pytorch_model_fp32.bin"])
def test_what_evaluators_add_never_counts(added: str, run: Run) -> None:
    for step in (1, 2, 3):
        run.save(step)
        if step < 3:
            path = run.place / f"step_{step}" / added
            path.write_bytes(torch_zip())
            os.utime(path, ns=(run.now_ns, run.now_ns))
    run.look(after_h=1)
    assert (run.doubtful(), pointed(run.place)) == ([], "step_3")


def test_what_bears_its_own_step_or_a_new_name_each_time_is_not_missed(run: Run) -> None:
    for step in (1, 2, 3, 4):
        run.save(step, **{f"global_step{step}/mp_rank_00_model_states.pt": torch_zip(), f"x{step * 7}.pt": torch_zip()})
        run.look()
        assert (run.doubtful(), pointed(run.place)) == ([], f"step_{step}")
    run.save(5)
    run.look()
    assert run.doubtful() == steps(5)


def test_what_is_new_is_expected_once_all_have_it(run: Run) -> None:
    for step in (1, 2):
        run.save(step)
    for step in (3, 4, 5):
        run.save(step, **{"ema.pt": torch_zip()})
        run.look()
        assert run.doubtful() == []
    run.save(6)
    run.look()
    assert run.doubtful() == steps(6)


def test_what_is_in_doubt_is_never_pruned_for_it_also_by_the_stepped_rule(work_dir: Path) -> None:
    run = Run(work_dir, interval=1)
    for step in (1, 2):
        run.save(step)
    run.save(3, "optimizer.pt")
    run.look()
    for step in range(4, 9):
        run.save(step)
        assert "step_3" in run.look()
    assert left(work_dir) == steps(3, 7, 8)
    run.look(after_h=10)
    assert run.look() == steps(7, 8)  # an old save like any other
    run.close()


def test_a_half_synced_one_at_a_known_name_takes_no_ones_place(work_dir: Path) -> None:
    """As after `aws s3 sync` of a run: the index and the second shard have not come."""
    for step, hours in ((100, 9), (200, 8), (300, 7)):
        place = work_dir / f"checkpoint-{step}"
        place.mkdir()
        for name in ("a.safetensors", "b.safetensors", "optimizer.pt", "trainer_state.json"):
            content = safetensors() if name.endswith("s") else torch_zip()
            (place / name).write_bytes(b'{"global_step": 1}' if name.endswith("json") else content)
        if step == 300:
            (place / "b.safetensors").unlink()
        for path in place.iterdir():
            at_ns = time.time_ns() - hours * HOUR_NS
            os.utime(path, ns=(at_ns, at_ns))
    a_pass(work_dir, max_keep=1, trash_ttl_s=0.0)
    assert left(work_dir) == ["checkpoint-200", "checkpoint-300"]


def test_shards_that_their_own_metadata_lists_are_not_missed_after_a_resume_with_fewer_ranks(run: Run) -> None:
    def shards(ranks: int) -> dict[str, bytes]:
        names = {f"__{rank}_0.distcp": 40 for rank in range(ranks)}
        return {"model/.metadata": dcp_metadata(names)} | {f"model/{name}": b"s" * 40 for name in names}

    for step in (1, 2, 3):
        run.save(step, **shards(4))
    run.save(4, **shards(2))
    run.look()
    assert (run.doubtful(), pointed(run.place)) == ([], "step_4")
    run.save(5)
    run.look()
    assert run.doubtful() == steps(5)
