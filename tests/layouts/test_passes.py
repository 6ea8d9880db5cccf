"""Whole passes over what frameworks leave: halves, lost parts, copies, and a second run in the same directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import ckptd
from ckptd.core.policy import Policy

from ..conftest import a_pass, kept, left, picture, pointed
from .writers import Run, the


def trainer(work_dir: Path) -> Run:
    return Run(work_dir, the("transformers"))


@pytest.mark.parametrize("name", ["lightning", "verl", "transformers", "ultralytics", "torchtitan", "megatron"])
@pytest.mark.parametrize("young", [True, False], ids=["being written", "of a killed job"])
def test_a_limit_of_one_made_room_before_the_save(name: str, young: bool, work_dir: Path) -> None:
    run = Run(work_dir, the(name))
    policy = Policy(max_keep=1, layouts=(name,), trash_ttl_s=0)
    first, half = run.save(1), run.save(2, run.writer.half, young=young)
    ckptd.prune(work_dir, policy)
    assert left(work_dir) == [first, half]
    assert ckptd.latest(work_dir, policy) == work_dir / first
    run.writer.whole(work_dir / half, 2)
    assert kept(work_dir, max_keep=1, layouts=(name,)) == [half]


def test_the_half_written_newest_was_resumed_from(work_dir: Path) -> None:
    run = trainer(work_dir)
    run.saves([1, 2])
    run.save(3, run.writer.half)
    assert ckptd.latest(work_dir) == work_dir / "checkpoint-1000"


def test_the_parts_of_two_roles_rotated_apart_until_no_whole_checkpoint_was_left(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves([1, 2, 3])
    shutil.rmtree(work_dir / names[2] / "actor")
    kept(work_dir, layouts=("verl",), max_keep=1)
    assert names[1] in left(work_dir), "the newest with all of its parts"


def test_a_shell_with_nothing_but_its_data_took_a_place_among_the_newest(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves([1, 2, 3])
    for role in (work_dir / names[2]).iterdir():
        if role.is_dir():
            shutil.rmtree(role)
    kept(work_dir, layouts=("verl",), max_keep=2)
    assert set(names[:2]) <= set(left(work_dir))


@pytest.mark.parametrize("name", ["transformers", "accelerate", "torchtitan"])
def test_written_or_copied_in_one_moment_they_went_by_their_names_as_text(name: str, work_dir: Path) -> None:
    run = Run(work_dir, the(name))
    names = run.saves([9, 10, 11, 100])
    for path in work_dir.rglob("*"):
        os.utime(path, ns=(run.at_ns, run.at_ns))
    assert kept(work_dir, max_keep=2) == names[2:]


def test_an_evaluator_touched_an_old_directory_and_the_newest_was_deleted(work_dir: Path) -> None:
    run = trainer(work_dir)
    names = run.saves([1, 2, 3])
    (work_dir / names[0] / "results.json").write_text("{}")
    assert kept(work_dir, max_keep=1) == [names[2]]


def test_a_new_run_in_the_old_directory_lost_its_saves_to_those_of_the_old_one(work_dir: Path) -> None:
    run = trainer(work_dir)
    old = run.saves([6, 7, 8])
    kept(work_dir, max_keep=2)
    new = run.saves([1, 2])
    kept(work_dir, max_keep=2)
    assert {*new} <= set(left(work_dir))
    assert pointed(work_dir) == new[1]
    assert set(left(work_dir)) - set(new) <= set(old), "what lies ahead of the new run stays until a person decides"


def test_a_limit_of_one_left_nothing_at_the_end_of_training(work_dir: Path) -> None:
    run = trainer(work_dir)
    for step in (1, 2, 3):
        run.save(step)
        assert len(kept(work_dir, max_keep=1)) == 1


def test_a_copy_had_lost_its_marker_and_was_taken_for_a_leftover(work_dir: Path) -> None:
    run = Run(work_dir, the("torchtitan"))
    names = run.saves([1, 2, 3])
    os.unlink(work_dir / names[2] / ".metadata")
    assert names[2] in kept(work_dir, max_keep=1), "incomplete, and none that is complete is newer"


@pytest.mark.parametrize(
    ("name", "mark"),
    [("orbax", "_CHECKPOINT_METADATA"), ("torchtitan", ".metadata"), ("transformers", "trainer_state.json")],
)
def test_all_copies_had_lost_their_markers_and_all_were_deleted(name: str, mark: str, work_dir: Path) -> None:
    run = Run(work_dir, the(name))
    for copied in run.saves([1, 2, 3]):
        (work_dir / copied / mark).unlink()
    before = picture(work_dir)
    assert a_pass(work_dir, layouts=(name,), max_keep=1, settle_s=0).pruned == ()
    assert picture(work_dir) == before


def test_one_name_was_deleted_of_a_file_that_had_two_and_nothing_was_freed(work_dir: Path) -> None:
    run = Run(work_dir, the("timm"))
    names = run.saves([1, 2, 3])
    os.link(work_dir / names[0], work_dir / "model_best.pth.tar")
    survey = ckptd.plan(work_dir, Policy(layouts=("timm",), max_keep=1))
    freed = {d.checkpoint.name: d.checkpoint.allocated_bytes for d in survey.plan.prune}
    assert freed[names[0]] == 0
    assert freed[names[1]] > 0
