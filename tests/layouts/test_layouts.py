"""Every layout in the table: recognised or left alone, whole or not, pruned as a unit; its pointer's target stays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.layouts import LAYOUTS
from ckptd.core.policy import Policy
from ckptd.errors import UsageError
from ckptd.passes.restore import restore

from ..conftest import picture, pointed, safetensors, torch_zip
from .writers import BY_ITSELF, TOGETHER, WRITERS, Run, Writer, dcp, number_in, put, the, torch_file

EVERY = pytest.mark.parametrize("writer", WRITERS, ids=str)
WITH_CHECKSUM = pytest.mark.parametrize("writer", [w for w in WRITERS if w.damaged], ids=str)
WITH_POINTER = pytest.mark.parametrize("writer", [w for w in WRITERS if w.pointer], ids=str)
ONLY_ASKED = pytest.mark.parametrize("writer", [w for w in WRITERS if w.layout not in BY_ITSELF], ids=str)


def policy(writer: Writer, **more: Any) -> Policy:
    return Policy(layouts=() if writer.by_itself else (writer.layout,), **{"trash_ttl_s": 0, "max_keep": 2, **more})


def there(work_dir: Path) -> set[str]:
    return {path.name for path in work_dir.iterdir()} - {".ckptd", "last_ckpt"}


def states(survey: ckptd.Survey) -> dict[str, str]:  # type: ignore[name-defined]
    return {d.checkpoint.name: d.checkpoint.state.value for d in survey.decisions}


def contents(place: Path) -> dict[str, tuple[bytes, int]]:
    """The bytes and the time of each file of a checkpoint."""
    files = [place] if place.is_file() else [path for path in sorted(place.rglob("*")) if path.is_file()]
    return {str(path.relative_to(place)): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def alone(work_dir: Path, made: Policy | None = None) -> dict[str, str]:
    return {each.name: each.reason for each in ckptd.plan(work_dir, made or Policy(max_keep=1)).left_alone}


def test_every_row_of_the_table_has_a_writer() -> None:
    assert {layout.name for layout in LAYOUTS} == {writer.layout for writer in (*WRITERS, *TOGETHER)}
    recognised = {layout.name for layout in LAYOUTS if layout.by_itself}
    assert recognised == {writer.layout for writer in WRITERS if writer.by_itself}


@EVERY
def test_whole_ones_are_complete_and_pruned_to_the_newest(writer: Writer, work_dir: Path) -> None:
    names = Run(work_dir, writer).saves(range(1, 5))
    survey = ckptd.plan(work_dir, policy(writer))
    assert states(survey) == dict.fromkeys(names, "complete")
    assert len(survey.plan.series) == 1
    report = ckptd.prune(work_dir, policy(writer))
    assert [d.checkpoint.name for d in report.pruned] == names[:2]
    assert there(work_dir) == set(names[2:])
    assert pointed(work_dir) == names[3]


@EVERY
def test_a_second_pass_finds_what_the_first_one_left(writer: Writer, work_dir: Path) -> None:
    run = Run(work_dir, writer)
    run.saves(range(1, 4))
    ckptd.prune(work_dir, policy(writer))
    before = picture(work_dir)
    assert ckptd.prune(work_dir, policy(writer)).pruned == ()
    assert picture(work_dir) == before
    run.save(4)
    assert [d.checkpoint.name for d in ckptd.prune(work_dir, policy(writer)).pruned] == [writer.name(2)]
    latest = ckptd.latest(work_dir)
    assert latest is not None
    assert latest.name == writer.name(4)


@EVERY
def test_what_was_pruned_comes_back_whole(writer: Writer, work_dir: Path) -> None:
    names = Run(work_dir, writer).saves(range(1, 4))
    before = contents(work_dir / names[0])
    ckptd.prune(work_dir, policy(writer, trash_ttl_s=3600))
    assert there(work_dir) == set(names[1:])
    assert restore(str(work_dir), [names[0]]) == ([names[0]], {})
    assert contents(work_dir / names[0]) == before
    assert ckptd.prune(work_dir, policy(writer)).pruned == ()
    assert states(ckptd.plan(work_dir, policy(writer))) == dict.fromkeys(names, "complete")


@EVERY
@pytest.mark.parametrize("young", [True, False], ids=["young", "quiet"])
def test_a_half_written_one_never_counts(writer: Writer, young: bool, work_dir: Path) -> None:
    run = Run(work_dir, writer)
    names = run.saves(range(1, 4))
    half = run.save(4, writer.half, young=young)
    report = ckptd.prune(work_dir, policy(writer))
    assert states(report.survey)[half] == ("in flight" if young else "incomplete")
    assert there(work_dir) == {names[1], names[2], half}
    assert pointed(work_dir) == names[2]


@EVERY
def test_verify_says_what_a_pass_would(writer: Writer, work_dir: Path) -> None:
    run = Run(work_dir, writer)
    whole, half = run.save(1), run.save(2, writer.half)
    assert [ckptd.verify(work_dir / name).state.value for name in (whole, half)] == ["complete", "incomplete"]
    if writer.damaged is not None:
        assert ckptd.verify(work_dir / run.save(3, writer.damaged)).state.value == "incomplete"


@EVERY
def test_a_half_written_one_goes_once_enough_whole_ones_came_after_it(writer: Writer, work_dir: Path) -> None:
    run = Run(work_dir, writer)
    run.save(1)
    run.save(2, writer.half)
    names = run.saves((3, 4))
    ckptd.prune(work_dir, policy(writer))
    assert there(work_dir) == set(names)


@WITH_CHECKSUM
def test_one_with_damaged_bytes_is_found_before_anything_relies_on_it(writer: Writer, work_dir: Path) -> None:
    run = Run(work_dir, writer)
    names = run.saves(range(1, 4))
    damaged = run.save(4, writer.damaged)
    report = ckptd.prune(work_dir, policy(writer))
    assert states(report.survey)[damaged] == "incomplete"
    assert there(work_dir) == {names[1], names[2], damaged}
    assert pointed(work_dir) == names[2]


@WITH_POINTER
def test_what_its_own_pointer_names_stays(writer: Writer, work_dir: Path) -> None:
    assert writer.pointer is not None
    names = Run(work_dir, writer).saves(range(1, 5))
    writer.pointer(work_dir, names[0], number_in(names[0]))
    decided = {d.checkpoint.name: d for d in ckptd.plan(work_dir, policy(writer)).decisions}
    assert decided[names[0]].decision == "skip"
    assert any(reason.startswith(("named by", "the best, by")) for reason in decided[names[0]].reasons)
    ckptd.prune(work_dir, policy(writer))
    assert names[0] in there(work_dir)
    assert names[1] not in there(work_dir)


@ONLY_ASKED
def test_without_its_option_it_is_listed_and_left_alone(writer: Writer, work_dir: Path) -> None:
    run = Run(work_dir, writer)
    names = run.saves(range(1, 5))
    before = picture(work_dir)
    listed = alone(work_dir)
    assert set(listed) == set(names)
    assert all(reason.endswith(f"--layout {writer.layout}") for reason in listed.values())
    assert ckptd.prune(work_dir, Policy(max_keep=1)).pruned == ()
    assert picture(work_dir) == before


@EVERY
def test_the_option_takes_the_place_of_what_is_recognised(writer: Writer, work_dir: Path) -> None:
    Run(work_dir, writer).saves(range(1, 4))
    other = "ultralytics" if writer.layout != "ultralytics" else "timm"
    assert ckptd.plan(work_dir, Policy(max_keep=1, layouts=(other,))).decisions == ()
    asked = ckptd.plan(work_dir, Policy(max_keep=1, layouts=(writer.layout,)))
    assert {d.checkpoint.name for d in asked.decisions} == there(work_dir)


@pytest.mark.parametrize("name", [
    "checkpoint-final", "step-100-backup", "best_acc_epoch_7.pth", "tmp-checkpoint-5", "epoch_7-1a2b3c4d.pth",
    "last.ckpt", "last-v1.ckpt", "hpc_ckpt_1.ckpt", "on_exception.ckpt", "checkpoint-5.tmp",
    "step-5.orbax-checkpoint-tmp", "5.orbax-checkpoint-tmp", "checkpoint-٥",
    "model_best.pth.tar", "milestone-3.pth.tar", "recovery-1-20.pth.tar",
    "checkpoint_best.pt", "checkpoint_last.pt", "best.pt", "model_final.pth", "lora.safetensors", "release",
    "checkpoint-05", "global_step", "latest-rank0.pt",
])  # fmt: skip
@pytest.mark.parametrize("layouts", [(), tuple(layout.name for layout in LAYOUTS)], ids=["by itself", "asked"])
def test_what_is_no_save_is_never_a_candidate(name: str, layouts: tuple[str, ...], work_dir: Path) -> None:
    place = work_dir / name
    for write in (lambda: place.write_bytes(torch_zip()), lambda: put(place, dcp("__0_0.distcp"))):
        write()
        assert name not in states(ckptd.plan(work_dir, Policy(max_keep=1, layouts=layouts)))
        if place.is_file():
            place.unlink()


BESIDE_REAL_ONES = {
    "transformers": ("checkpoint-final", "checkpoint-500-backup", "tmp-checkpoint-5", "checkpoint-5.tmp"),
    "torchtitan": ("step-100-backup", "step-final", "old-step-100"),
    "mmcv": ("best_acc_epoch_7.pth", "epoch_7-1a2b3c4d.pth", "epoch_7.pth.bak", "latest.pth"),
    "lightning": ("last.ckpt", "last-v1.ckpt", "hpc_ckpt_1.ckpt", "on_exception.ckpt", "best-epoch=0-step=5.ckpt"),
    "accelerate": ("checkpoint_best", "checkpoint_1_backup"),
    "deepspeed": ("global_step10_universal", "global_step", "best_model"),
    "megatron": ("release", "iter_500", "iter_0000500_copy"),
    "orbax": ("5.orbax-checkpoint-tmp", "05-old", "best"),
    "timm": ("model_best.pth.tar", "milestone-1.pth.tar", "recovery-1-20.pth.tar", "last.pth.tar"),
    "fairseq": ("checkpoint_best.pt", "checkpoint_last.pt", "checkpoint.best_loss_1.5.pt"),
}


@pytest.mark.parametrize("name", BESIDE_REAL_ONES)
def test_what_is_nearly_a_name_stays_as_it_is_beside_what_is_pruned(name: str, work_dir: Path) -> None:
    writer = next(writer for writer in WRITERS if writer.layout == name)
    near = BESIDE_REAL_ONES[name]
    run = Run(work_dir, replace(writer, name=near.__getitem__))
    run.saves(range(len(near)))  # the oldest there: they would be the first to go
    before = {each: picture(work_dir / each) for each in near}
    run.writer = writer
    names = run.saves(range(1, 5))
    report = ckptd.prune(work_dir, policy(writer, max_keep=1))
    assert set(states(report.survey)) == set(names)
    assert there(work_dir) == {*near, names[3]}
    assert {each: picture(work_dir / each) for each in near} == before


@pytest.mark.parametrize(("names", "framework"), [
    (["ep1-ba10-rank0.pt", "ep1-ba10-rank1.pt"], "Composer"),
    (["ckpt-1.index", "ckpt-1.data-00000-of-00001"], "TensorFlow"),
    (["model_000100.pt", "meta_000100.json", "optim_000100_rank0.pt"], "nanochat"),
    (["model000100.pt", "ema_0.9999_000100.pt", "opt000100.pt"], "guided-diffusion"),
    (["checkpoint1-rank-0.pt", "checkpoint_1_500-shard1.pt"], "fairseq"),
])  # fmt: skip
def test_siblings_that_are_one_checkpoint_are_listed_and_left_alone(
    names: list[str], framework: str, work_dir: Path
) -> None:
    put(work_dir, dict.fromkeys(names, torch_zip()))
    before = picture(work_dir)
    listed = alone(work_dir)
    assert set(listed) == set(names)
    assert all(framework in reason for reason in listed.values())
    assert ckptd.prune(work_dir, Policy(max_keep=1, interval=1)).pruned == ()
    assert picture(work_dir) == before


def test_a_sibling_goes_where_somebody_names_it(work_dir: Path) -> None:
    put(work_dir, dict.fromkeys(["opt000100.pt", "opt000200.pt"], torch_zip()))
    survey = ckptd.plan(work_dir, Policy(max_keep=1, templates=("opt{:06d}.pt",)))
    assert set(states(survey)) == {"opt000100.pt", "opt000200.pt"}


def test_a_name_that_is_an_iteration_and_megatrons_goes_by_its_bytes(work_dir: Path) -> None:
    megatron = the("megatron")
    megatron.whole(work_dir / "iter_1000000", 1)
    put(work_dir / "iter_2000000", dcp("__0_0.distcp"))
    assert states(ckptd.plan(work_dir)) == {"iter_2000000": "complete"}
    assert alone(work_dir) == {"iter_1000000": "a Megatron checkpoint, pruned only with --layout megatron"}
    asked = states(ckptd.plan(work_dir, Policy(layouts=("megatron",), settle_s=0)))
    assert asked == {"iter_1000000": "complete", "iter_2000000": "incomplete"}  # no metadata.json: Megatron's is half


def test_a_shell_of_verls_is_no_checkpoint_and_does_not_count(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves((1, 2, 3))
    shell = run.save(4, lambda place, step: put(place, {"data.pt": torch_zip()}))
    ckptd.prune(work_dir, policy(run.writer))
    assert there(work_dir) == {names[1], names[2], shell}
    assert shell in alone(work_dir, policy(run.writer))
    assert ckptd.latest(work_dir) == work_dir / names[2]


@pytest.mark.parametrize("files", [
    pytest.param({"model.bin": torch_zip(), "optimizer.bin": torch_zip()}, id="an optimizer of somebody's own"),
    pytest.param({"model.pt": torch_zip(), "optimizer.pt": torch_zip(), "scheduler.pt": torch_zip()}, id="torch files"),
    pytest.param({"data.pt": torch_zip()}, id="nothing but data.pt"),
])  # fmt: skip
def test_a_directory_that_may_be_anybodys_is_half_of_nothing(files: dict[str, bytes], work_dir: Path) -> None:
    for step in (1, 2, 3):
        put(work_dir / f"epoch_{step}", files)
        put(work_dir / f"step-{step}", files)
    assert set(alone(work_dir).values()) == {"a directory without any known marker"}
    named = states(ckptd.plan(work_dir, Policy(templates=("epoch_{}",), settle_s=0)))
    assert named == dict.fromkeys(("epoch_1", "epoch_2", "epoch_3"), "unverifiable")  # as its owner says


def test_what_only_an_earlier_pass_was_asked_for_is_judged_as_it_was_then(work_dir: Path) -> None:
    run = Run(work_dir, the("verl"))
    names = run.saves((1, 2))
    ckptd.prune(work_dir, policy(run.writer))
    run.save(3, lambda place, step: put(place, {"data.pt": torch_zip()}))
    assert ckptd.latest(work_dir) == work_dir / names[1]


@pytest.mark.parametrize(("layout", "files"), [
    ("deepspeed", ["mp_rank_00_model_states.pt", f"zero_pp_rank_{'9' * 200}_mp_rank_00_optim_states.pt"]),
    ("deepspeed", [f"mp_rank_{'9' * 200}_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"]),
    ("verl", [f"actor/model_world_size_{'9' * 200}_rank_0.pt", "data.pt"]),
    ("megatron", [f"mp_rank_{'9' * 200}/model_optim_rng.pt"]),
    ("torchtune", ["recipe_state.pt", "model-00001-of-99999.safetensors"]),
])  # fmt: skip
def test_a_number_of_ranks_that_nobody_has_fills_no_memory(layout: str, files: list[str], work_dir: Path) -> None:
    name = the({"torchtune": "torchtune by step"}.get(layout, layout)).name(1)
    put(work_dir / name, dict.fromkeys(files, torch_zip()))
    assert states(ckptd.plan(work_dir, Policy(layouts=(layout,), settle_s=0))) == {name: "incomplete"}


def test_a_save_by_another_framework_under_a_known_name_is_left_alone(work_dir: Path) -> None:
    deepspeed = the("deepspeed")
    deepspeed.whole(work_dir / "step-10", 10)
    assert alone(work_dir) == {"step-10": "a DeepSpeed checkpoint, not what its name says"}  # no layout has that name


def test_hard_links_free_nothing(work_dir: Path) -> None:
    run = Run(work_dir, the("timm"))
    names = run.saves((1, 2, 3))
    os.link(work_dir / names[0], work_dir / "model_best.pth.tar")
    sizes = {
        d.checkpoint.name: d.checkpoint.allocated_bytes for d in ckptd.plan(work_dir, policy(run.writer)).decisions
    }
    assert sizes[names[0]] == 0
    assert sizes[names[1]] == (work_dir / names[1]).stat().st_blocks * 512 > 0
    ckptd.prune(work_dir, policy(run.writer))
    assert there(work_dir) == {*names[1:], "model_best.pth.tar"}


def test_a_file_of_a_directory_that_has_a_name_elsewhere_is_not_freed_with_it(work_dir: Path) -> None:
    put(work_dir / "step-1", {**dcp("__0_0.distcp"), "tokenizer.bin": torch_zip()})
    (before,) = ckptd.plan(work_dir).decisions
    os.link(work_dir / "step-1/tokenizer.bin", work_dir / "tokenizer.bin")
    (after,) = ckptd.plan(work_dir).decisions
    shared = (work_dir / "tokenizer.bin").stat().st_blocks * 512
    assert before.checkpoint.allocated_bytes - after.checkpoint.allocated_bytes == shared > 0


def test_what_an_evaluator_drops_into_a_directory_makes_it_no_newer(work_dir: Path) -> None:
    run = Run(work_dir, the("accelerate"))
    names = run.saves((1, 2, 3))
    ckptd.prune(work_dir, policy(run.writer))
    put(work_dir / names[1], {"results.json": b"{}"})
    report = ckptd.prune(work_dir, policy(run.writer))
    assert (report.pruned, pointed(work_dir)) == ((), names[2])


def test_versions_of_one_step_are_one_series(work_dir: Path) -> None:
    run = Run(work_dir, Writer("lightning", "", VERSIONS.__getitem__, torch_file))
    names = run.saves(range(4))
    survey = ckptd.plan(work_dir, Policy(max_keep=2))
    assert [series.grid.template.text for series in survey.plan.series] == ["epoch={}-step={}.ckpt"]
    ckptd.prune(work_dir, Policy(max_keep=2, trash_ttl_s=0))
    assert there(work_dir) == set(names)  # of two steps
    ckptd.prune(work_dir, Policy(max_keep=1, trash_ttl_s=0))
    assert there(work_dir) == {names[3]}


VERSIONS = ["epoch=0-step=10.ckpt", "epoch=0-step=10-v1.ckpt", "epoch=0-step=10-v2.ckpt", "epoch=1-step=20.ckpt"]


def test_names_with_two_numbers_have_no_grid_and_say_so_where_one_is_asked_for(work_dir: Path) -> None:
    Run(work_dir, the("lightning")).saves(range(1, 5))
    survey = ckptd.plan(work_dir, Policy(max_keep=2, rule="stepped", interval=10))
    (series,) = survey.plan.series
    assert (series.grid.rule.name, series.grid.interval) == ("newest", None)
    assert any("no grid to step on" in advice for advice in survey.advice)
    assert not any("grid" in advice for advice in ckptd.plan(work_dir, Policy(max_keep=2)).advice)


def test_two_frameworks_in_one_work_dir_are_two_series(work_dir: Path) -> None:
    one, two = the("lightning"), the("transformers")
    names = Run(work_dir, one).saves(range(1, 4)) + Run(work_dir, two).saves(range(1, 4))
    ckptd.prune(work_dir, Policy(max_keep=1, trash_ttl_s=0))
    assert there(work_dir) == {names[2], names[5]}


@pytest.mark.parametrize("writer", [w for w in WRITERS if w.by_itself and w.layout != "lightning"], ids=str)
def test_two_frameworks_that_are_recognised_touch_none_of_each_others(writer: Writer, work_dir: Path) -> None:
    other = Run(work_dir, the("lightning"))
    others = other.saves(range(1, 3))
    names = Run(work_dir, writer).saves(range(1, 5))
    ckptd.prune(work_dir, Policy(max_keep=2, trash_ttl_s=0))
    assert there(work_dir) == {*others, *names[2:]}


@ONLY_ASKED
def test_what_is_asked_for_leaves_what_is_recognised_alone(writer: Writer, work_dir: Path) -> None:
    others = Run(work_dir, the("mmcv")).saves(range(1, 5))
    before = {name: picture(work_dir / name) for name in others}
    names = Run(work_dir, writer).saves(range(1, 5))
    ckptd.prune(work_dir, policy(writer))
    assert there(work_dir) == {*others, *names[2:]}
    assert {name: picture(work_dir / name) for name in others} == before


def test_templates_and_layouts_are_looked_for_together(work_dir: Path) -> None:
    put(work_dir, {"model-0001.ckpt": torch_zip(), "epoch_1.pth": torch_zip(), "epoch5.pt": torch_zip()})
    both = Policy(templates=("model-{:04d}.ckpt",), layouts=("ultralytics",))
    assert set(states(ckptd.plan(work_dir, both))) == {"model-0001.ckpt", "epoch5.pt"}


def test_a_layout_that_is_not_there_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(UsageError, match=r"layout 'deepsped': choose one of mmcv, .*deepspeed"):
        Policy(layouts=("deepsped",))


def test_padded_and_unpadded_steps_of_orbax_are_one_series(work_dir: Path) -> None:
    run = Run(work_dir, the("orbax padded"))
    names = run.saves((1, 2, 3, 4))
    assert names == ["ckpt_08", "ckpt_09", "ckpt_10", "ckpt_11"]
    (series,) = ckptd.plan(work_dir, policy(run.writer)).plan.series
    assert series.grid.template.text == "ckpt_{:02d}"


def test_a_folder_with_a_number_is_not_taken_for_orbaxs(work_dir: Path) -> None:
    put(work_dir / "images_12", {"a.png": b"png"})
    put(work_dir / "7", {"a.png": b"png"})
    assert alone(work_dir) == {}


def test_a_file_at_the_name_of_a_directory_is_left_alone(work_dir: Path) -> None:
    (work_dir / "checkpoint-5").write_bytes(safetensors())
    assert alone(work_dir) == {"checkpoint-5": "a file at the name of a directory (checkpoint-{})"}
