"""Layouts each checkpoint of which is several files: found together, whole or not as one, and never without asking."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ckptd
from ckptd import Policy
from ckptd.passes.restore import restore

from ..conftest import picture, pointed, torch_zip
from .writers import TOGETHER, Together

EACH = pytest.mark.parametrize("writer", TOGETHER, ids=str)


def save(work_dir: Path, *names: str, at: int) -> None:
    for number, name in enumerate(names):
        (work_dir / name).write_bytes(torch_zip())
        os.utime(work_dir / name, ns=(10**18 + (at * 60 + number) * 10**9,) * 2)


def found(work_dir: Path, layout: str, **policy: object) -> dict[tuple[str, ...], tuple[str, str]]:
    """The files of each checkpoint, with its state and what becomes of it."""
    survey = ckptd.plan(work_dir, Policy(max_keep=1, layouts=(layout,), settle_s=0, **policy))  # type: ignore[arg-type]
    return {
        tuple(file.name for file in each.checkpoint.entry.files): (each.checkpoint.state.value, each.decision)
        for each in survey.decisions
    }


@EACH
def test_its_files_are_one_checkpoint_where_it_is_asked_for(writer: Together, work_dir: Path) -> None:
    for step in (1, 2, 3):
        save(work_dir, *writer.names(step), at=step)
    expected = {writer.names(step): ("complete", "prune" if step < 3 else "keep") for step in (1, 2, 3)}
    assert found(work_dir, writer.layout) == expected


@EACH
def test_between_its_files_the_last_whole_one_stays(writer: Together, work_dir: Path) -> None:
    for step in (1, 2):
        save(work_dir, *writer.names(step), at=step)
    for count in range(1, len(writer.names(3))):
        save(work_dir, *writer.names(3)[:count], at=3)
        plan = found(work_dir, writer.layout)
        assert plan[writer.names(2)] == ("complete", "keep")
        assert plan[writer.names(3)[:count]][0] in ("incomplete", "in doubt")
        assert ckptd.latest(work_dir, Policy(layouts=(writer.layout,), settle_s=0)) == work_dir / writer.names(2)[0]


@EACH
def test_cut_short_in_any_of_its_files_it_is_incomplete(writer: Together, work_dir: Path) -> None:
    for step in (1, 2, 3):
        save(work_dir, *writer.names(step), at=step)
    for name in writer.names(3):
        before = (work_dir / name).read_bytes()
        (work_dir / name).write_bytes(before[:-30])
        assert found(work_dir, writer.layout)[writer.names(3)] == ("incomplete", "keep")
        assert found(work_dir, writer.layout)[writer.names(2)] == ("complete", "keep")
        (work_dir / name).write_bytes(before)


@EACH
def test_without_its_option_each_file_is_listed_and_left_alone(writer: Together, work_dir: Path) -> None:
    for step in (1, 2, 3):
        save(work_dir, *writer.names(step), at=step)
    before = picture(work_dir)
    report = ckptd.prune(work_dir, Policy(max_keep=1))
    listed = {each.name: each.reason for each in report.survey.left_alone}
    assert set(listed) == {name for step in (1, 2, 3) for name in writer.names(step)}
    assert all(reason.endswith(f"--layout {writer.layout}") for reason in listed.values())
    assert picture(work_dir) == before


def test_the_base_that_training_began_with_is_never_one(work_dir: Path) -> None:
    save(work_dir, "G_0.pth", "D_0.pth", at=0)
    save(work_dir, "pretrained_G_800.pth", "f0G40k.pth", at=0)
    for step in (800, 1600):
        save(work_dir, f"G_{step}.pth", f"D_{step}.pth", at=step)
    assert set(found(work_dir, "vits")) == {("G_800.pth", "D_800.pth"), ("G_1600.pth", "D_1600.pth")}
    assert not any("_0.pth" in each.name for each in ckptd.plan(work_dir, Policy(max_keep=1)).left_alone)


@EACH
def test_all_its_files_go_and_come_back_together(writer: Together, work_dir: Path) -> None:
    for step in (1, 2, 3):
        save(work_dir, *writer.names(step), at=step)
    before = {name: (work_dir / name).read_bytes() for name in writer.names(2)}
    policy = Policy(max_keep=1, layouts=(writer.layout,), settle_s=0, trash_ttl_s=3600)
    assert ckptd.prune(work_dir, policy).exit_code == 0
    assert {path.name for path in work_dir.iterdir()} == {*writer.names(3), ".ckptd", "last_ckpt"}
    assert pointed(work_dir) == writer.names(3)[0]
    assert restore(str(work_dir), [writer.names(2)[0]])[1] == {}
    assert {name: (work_dir / name).read_bytes() for name in writer.names(2)} == before
