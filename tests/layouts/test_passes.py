"""Whole passes over what frameworks leave: halves, lost parts, copies, and a second run in the same directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from ..conftest import a_pass, kept, left, picture, pointed, torch_zip
from .writers import Run, the


def test_a_checkpoint_that_lacks_one_of_its_roles_takes_nobodys_place(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves([1, 2, 3])
    shutil.rmtree(work_dir / names[2] / "actor")
    assert names[1] in kept(work_dir, layouts=("verl",), max_keep=1), "the newest with all of its parts"


@pytest.mark.parametrize("name", ["transformers", "accelerate", "torchtitan"])
def test_of_those_written_or_copied_in_one_moment_the_highest_steps_stay(name: str, work_dir: Path) -> None:
    run = Run(work_dir, the(name))
    names = run.saves([9, 10, 11, 100])
    for path in work_dir.rglob("*"):
        os.utime(path, ns=(run.at_ns, run.at_ns))
    assert kept(work_dir, max_keep=2) == names[2:]


def test_a_new_run_in_an_old_directory_loses_nothing_to_the_old_one(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    old = run.saves([6, 7, 8])
    kept(work_dir, max_keep=2)
    new = run.saves([1, 2])
    kept(work_dir, max_keep=2)
    assert {*new} <= set(left(work_dir))
    assert pointed(work_dir) == new[1]
    assert set(left(work_dir)) - set(new) <= set(old), "what lies ahead of the new run stays until a person decides"


@pytest.mark.parametrize(
    ("name", "mark"),
    [("orbax", "_CHECKPOINT_METADATA"), ("torchtitan", ".metadata"), ("transformers", "trainer_state.json")],
)
def test_copies_that_have_all_lost_their_markers_stay(name: str, mark: str, work_dir: Path) -> None:
    run = Run(work_dir, the(name))
    for copied in run.saves([1, 2, 3]):
        (work_dir / copied / mark).unlink()
    before = picture(work_dir)
    assert a_pass(work_dir, layouts=(name,), max_keep=1, settle_s=0).pruned == ()
    assert picture(work_dir) == before


def test_a_version_of_the_newest_that_somebody_puts_there_with_an_older_time_is_no_save(work_dir: Path) -> None:
    names = ["epoch=0-step=10.ckpt", "epoch=1-step=20.ckpt"]
    for at, name in enumerate(names, 1):
        (work_dir / name).write_bytes(torch_zip())
        os.utime(work_dir / name, ns=(at * 10**18, at * 10**18))
    a_pass(work_dir, max_keep=1, settle_s=0)
    version = work_dir / "epoch=1-step=20-v1.ckpt"
    version.write_bytes(torch_zip())
    os.utime(version, ns=(15 * 10**17, 15 * 10**17))
    assert set(kept(work_dir, max_keep=1)) == {names[1], version.name}
    assert pointed(work_dir) == names[1]
