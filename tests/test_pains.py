"""What people have lost or complained of with the retention of their frameworks, replayed: here it does not happen.

Each name is one such complaint. Those about the speed of a job, or races between ranks, have no trace on a disk.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.policy import Policy
from ckptd.errors import UsageError

from .conftest import Builder, a_pass, epochs, left, picture, pointed, truncated
from .layouts.writers import Run, the

NOW = {"trash_ttl_s": 0.0, "settle_s": 0.0}


def trainer(work_dir: Path) -> Run:
    return Run(work_dir, the("transformers"))


def kept(work_dir: Path, **policy: Any) -> list[str]:
    a_pass(work_dir, **{**NOW, **policy})
    return left(work_dir)


# --- the old one went before the new one was whole ------------------------------------------------------------


def test_killed_in_the_middle_of_the_save_with_a_limit_of_one(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1))
    with_checkpoints("epoch_2.pth", content=truncated())
    assert kept(work_dir, max_keep=1, interval=1) == epochs(1, 2)
    assert pointed(work_dir) == "epoch_1.pth"


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


def test_the_disk_was_full_and_only_the_cut_short_file_was_left(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with_checkpoints("epoch_3.pth", "epoch_4.pth", content=b"")
    assert kept(work_dir, max_keep=1, rule="newest") == epochs(2, 3, 4)


def test_the_half_written_newest_was_resumed_from(work_dir: Path) -> None:
    run = trainer(work_dir)
    run.saves([1, 2])
    run.save(3, run.writer.half)
    assert ckptd.latest(work_dir) == work_dir / "checkpoint-1000"


def test_the_parts_of_two_roles_rotated_apart_until_no_whole_checkpoint_was_left(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves([1, 2, 3])
    shutil.rmtree(work_dir / names[2] / "actor")
    a_pass(work_dir, layouts=("verl",), max_keep=1, **NOW)
    assert names[1] in left(work_dir), "the newest with all of its parts"


def test_a_shell_with_nothing_but_its_data_took_a_place_among_the_newest(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves([1, 2, 3])
    for role in (work_dir / names[2]).iterdir():
        if role.is_dir():
            shutil.rmtree(role)
    a_pass(work_dir, layouts=("verl",), max_keep=2, **NOW)
    assert set(names[:2]) <= set(left(work_dir))


# --- the wrong one went ---------------------------------------------------------------------------------------


def test_ten_came_before_nine(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(8, 9, 10, 11))
    assert kept(work_dir, max_keep=2, rule="newest") == epochs(10, 11)


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
    a_pass(work_dir, max_keep=2, **NOW)
    new = run.saves([1, 2])
    a_pass(work_dir, max_keep=2, **NOW)
    assert {*new} <= set(left(work_dir))
    assert pointed(work_dir) == new[1]
    assert set(left(work_dir)) - set(new) <= set(old), "what lies ahead of the new run stays until a person decides"


def test_a_limit_of_one_left_nothing_at_the_end_of_training(work_dir: Path) -> None:
    run = trainer(work_dir)
    for step in (1, 2, 3):
        run.save(step)
        assert len(kept(work_dir, max_keep=1)) == 1


def test_a_limit_of_none_deleted_all() -> None:
    with pytest.raises(UsageError, match="at least 1"):
        Policy(max_keep=0)


def test_when_the_oldest_was_the_best_the_newest_went(work_dir: Path) -> None:
    run = trainer(work_dir)
    names = run.saves([1, 2, 3, 4])
    for name, loss in zip(names, (0.1, 0.4, 0.3, 0.2), strict=True):
        (work_dir / f"{name}.metrics.json").write_text(json.dumps({"eval_loss": loss}))
    a_pass(work_dir, max_keep=1, keep_best=("eval_loss:min",), **NOW)
    assert [name for name in left(work_dir) if not name.endswith(".json")] == [names[0], names[3]]


@pytest.mark.parametrize(
    "name", ["checkpoint-final", "checkpoint-1000-backup", "tmp-checkpoint-500", "checkpoint-best"]
)
def test_a_folder_with_nearly_a_checkpoints_name_went_with_them(work_dir: Path, name: str) -> None:
    run = trainer(work_dir)
    run.writer.whole(work_dir / name, 1)
    run.saves([1, 2, 3])
    assert name in kept(work_dir, max_keep=1)


def test_the_user_feared_for_all_other_files_in_the_directory(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    others = ["train.log", "config.py", "model.pth", "best_epoch_1.pth", "epoch_1.pth.bak", "iter_a.pth", ".hidden"]
    for name in others:
        (work_dir / name).write_bytes(b"mine")
    a_pass(work_dir, max_keep=1, interval=1, **NOW)
    assert all((work_dir / name).read_bytes() == b"mine" for name in others)


def test_the_checkpoint_that_was_resumed_from_was_deleted(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / "resume.pth").symlink_to("epoch_1.pth")
    assert "epoch_1.pth" in kept(work_dir, max_keep=1, interval=1)


@pytest.mark.parametrize("links", [
    pytest.param({"last.ckpt": "last.ckpt"}, id="to itself"),
    pytest.param({"last.ckpt": "last-v1.ckpt", "last-v1.ckpt": "last.ckpt"}, id="in a circle"),
    pytest.param({"last.ckpt": "/nowhere/epoch=9-step=90.ckpt"}, id="to what is gone"),
    pytest.param({"last.ckpt": ".."}, id="to the parent"),
])  # fmt: skip
def test_the_link_to_the_last_one_was_a_loop_or_led_nowhere(links: dict[str, str], work_dir: Path) -> None:
    run = Run(work_dir, the("lightning"))
    names = run.saves([1, 2, 3])
    for link, target in links.items():
        (work_dir / link).symlink_to(target)
    assert set(kept(work_dir, max_keep=1)) == {names[2], *links}
    assert links == {link: os.readlink(work_dir / link) for link in links}
    assert ckptd.latest(work_dir) == work_dir / names[2]


def test_the_link_was_made_from_another_directory_than_its_own_and_what_it_named_was_deleted(work_dir: Path) -> None:
    names = Run(work_dir, the("lightning")).saves([1, 2, 3])
    (work_dir / "best.ckpt").symlink_to(f"run/{names[0]}")
    assert set(kept(work_dir, max_keep=1)) == {"best.ckpt", names[0], names[2]}


def test_the_checkpoint_that_was_resumed_from_was_deleted_in_its_own_run(work_dir: Path) -> None:
    other = work_dir.parent / "other"
    other.mkdir()
    elsewhere = Run(other, the("lightning")).saves([1, 2, 3])
    (work_dir / elsewhere[0]).symlink_to(other / elsewhere[0])
    (work_dir / "last.ckpt").symlink_to(other / elsewhere[1])
    names = Run(work_dir, the("lightning")).saves([2, 3, 4])
    before = picture(other)
    assert set(kept(work_dir, max_keep=1)) == {elsewhere[0], "last.ckpt", names[2]}
    assert picture(other) == before


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
    assert a_pass(work_dir, layouts=(name,), max_keep=1, **NOW).pruned == ()
    assert picture(work_dir) == before


def test_what_was_saved_again_while_it_was_evaluated_was_taken_for_the_old_one(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir, max_keep=2, interval=1, **NOW)
    with_checkpoints("epoch_1.pth")
    assert kept(work_dir, max_keep=1, rule="newest") == epochs(1, 2)
    assert pointed(work_dir) == "epoch_1.pth"


# --- it stopped, or filled the disk ---------------------------------------------------------------------------


def test_after_a_restart_the_old_ones_were_never_deleted(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3, interval=1, **NOW)
    shutil.rmtree(work_dir / ".ckptd")
    with_checkpoints(*epochs(4, 5))
    assert kept(work_dir, max_keep=3, interval=1) == epochs(3, 4, 5)


def test_somebody_had_deleted_or_renamed_one_by_hand_and_the_cleanup_crashed(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    a_pass(work_dir, max_keep=4, interval=1, **NOW)
    (work_dir / "epoch_2.pth").unlink()
    (work_dir / "epoch_1.pth").rename(work_dir / "mine.pth")
    assert kept(work_dir, max_keep=1, rule="newest") == ["mine.pth", "epoch_4.pth"]


def test_only_a_number_of_gigabytes_was_asked_for(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    each = (work_dir / "epoch_1.pth").stat().st_blocks * 512
    assert kept(work_dir, max_bytes=3 * each) == epochs(3, 4, 5)


def test_best_and_last_could_not_be_kept_together(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5, 6))
    (work_dir / "epoch_2.pth.metrics.json").write_text('{"acc": 0.9}')
    (work_dir / "epoch_5.pth.metrics.json").write_text('{"acc": 0.5}')
    names = kept(work_dir, max_keep=1, rule="newest", keep_best=("acc:max",), keep_every=3)
    assert [name for name in names if name.endswith(".pth")] == epochs(2, 3, 6)


def test_one_name_was_deleted_of_a_file_that_had_two_and_nothing_was_freed(work_dir: Path) -> None:
    run = Run(work_dir, the("timm"))
    names = run.saves([1, 2, 3])
    os.link(work_dir / names[0], work_dir / "model_best.pth.tar")
    survey = ckptd.plan(work_dir, Policy(layouts=("timm",), max_keep=1))
    freed = {d.checkpoint.name: d.checkpoint.allocated_bytes for d in survey.plan.prune}
    assert freed[names[0]] == 0
    assert freed[names[1]] > 0


def test_an_option_that_did_nothing_was_never_said_to(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    advice = ckptd.plan(work_dir, Policy(keep_every=2)).advice
    assert any("no --max-keep" in text and "--keep-every has nothing to keep from" in text for text in advice)
