"""What is in doubt is kept and carries nothing: parts of two saves under one marker, and parts that are symlinks."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.policy import Policy
from ckptd.inspect.lateness import _were_written_together

from .conftest import Builder, a_pass, pointed, torch_zip
from .layouts.writers import Run, Writer, the
from .test_content import written_over

# What a resumed run writes first over an earlier save, and what comes last.
WRITTEN_OVER = [
    ("transformers", "model.safetensors", "trainer_state.json"),
    ("transformers", "optimizer.pt", "trainer_state.json"),
    ("transformers", "rng_state.pth", "trainer_state.json"),
    ("transformers", "training_args.bin", "trainer_state.json"),
    ("transformers with DeepSpeed", "global_step2/mp_rank_00_model_states.pt", "trainer_state.json"),
    ("lightning sharded", "__0_0.distcp", "meta.pt"),
    ("lightning sharded", ".metadata", "meta.pt"),
    ("megatron", "__1_0.distcp", "metadata.json"),
    ("megatron", "common.pt", "metadata.json"),
    ("verl", "actor/model_world_size_2_rank_0.pt", "data.pt"),
    ("verl", "critic/optim_world_size_3_rank_1.pt", "data.pt"),
    ("torchtitan", "__0_0.distcp", ".metadata"),
    ("olmo", "model_and_optim/__0_0.distcp", ".metadata.json"),
    ("mmengine with ColossalAI", "model/a.bin", "meta.pth"),
]
EVERY = pytest.mark.parametrize(("what", "part", "marker"), WRITTEN_OVER)


def policy(writer: Writer, **more: Any) -> dict[str, Any]:
    return {"layouts": () if writer.by_itself else (writer.layout,), "max_keep": 1, "settle_s": 0, **more}


def states(report: Any) -> dict[str, str]:
    survey = getattr(report, "survey", report)
    return {d.checkpoint.name: d.checkpoint.state.value for d in survey.decisions}


def again(path: Path) -> None:
    """Write the same bytes into the same inode, now."""
    content = path.read_bytes()
    with path.open("r+b") as file:
        file.write(content)


def checkpoints(work_dir: Path) -> set[str]:
    return {path.name for path in work_dir.iterdir()} - {".ckptd", "last_ckpt"}


@EVERY
def test_a_part_younger_than_its_marker_puts_the_whole_in_doubt(
    what: str, part: str, marker: str, work_dir: Path
) -> None:
    run = Run(work_dir, the(what))
    names = run.saves((1, 2))
    a_pass(work_dir, **policy(run.writer, max_keep=2))
    again(work_dir / names[1] / part)
    report = a_pass(work_dir, **policy(run.writer))
    assert states(report) == {names[0]: "complete", names[1]: "in doubt"}
    assert (checkpoints(work_dir), pointed(work_dir)) == (set(names), names[0])
    reason = next(d.reasons[0] for d in report.survey.decisions if d.checkpoint.name == names[1])
    assert reason.startswith(f"{part} is ")
    assert f"younger than {marker}, which is written last" in reason
    assert f"`touch -r {part} {marker}`" in reason


@EVERY
@pytest.mark.parametrize("how", ["chmod", "link"])
def test_what_changed_without_its_bytes_stays_in_doubt(
    how: str, what: str, part: str, marker: str, work_dir: Path, tmp_path: Path
) -> None:
    run = Run(work_dir, the(what))
    names = run.saves((1, 2))
    again(work_dir / names[1] / part)
    assert states(a_pass(work_dir, **policy(run.writer))) == {names[0]: "complete", names[1]: "in doubt"}
    for path in (work_dir / names[1]).rglob("*"):
        if path.is_dir() or how == "chmod":
            path.chmod(0o750)
        else:
            os.link(path, tmp_path / f"{len(os.listdir(tmp_path))}.bak")
    report = a_pass(work_dir, **policy(run.writer))
    assert states(report) == {names[0]: "complete", names[1]: "in doubt"}
    assert (checkpoints(work_dir), pointed(work_dir)) == (set(names), names[0])


@EVERY
def test_the_doubt_ends_with_the_next_save_of_it(what: str, part: str, marker: str, work_dir: Path) -> None:
    run = Run(work_dir, the(what))
    names = run.saves((1, 2))
    again(work_dir / names[1] / part)
    assert states(a_pass(work_dir, **policy(run.writer)))[names[1]] == "in doubt"
    again(work_dir / names[1] / marker)
    report = a_pass(work_dir, **policy(run.writer, trash_ttl_s=0))
    assert states(report)[names[1]] == "complete"
    assert (checkpoints(work_dir), pointed(work_dir)) == ({names[1]}, names[1])


@EVERY
def test_whoever_knows_better_ends_the_doubt_as_it_says(what: str, part: str, marker: str, work_dir: Path) -> None:
    run = Run(work_dir, the(what))
    names = run.saves((1, 2))
    again(work_dir / names[1] / part)
    assert states(a_pass(work_dir, **policy(run.writer)))[names[1]] == "in doubt"
    subprocess.run(["touch", "-r", part, marker], cwd=work_dir / names[1], check=True)
    a_pass(work_dir, **policy(run.writer))
    assert pointed(work_dir) == names[1]


def test_while_it_is_young_it_is_in_flight(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    names = run.saves((1, 2))
    again(work_dir / names[1] / "model.safetensors")
    survey = ckptd.plan(work_dir, Policy(max_keep=1))
    assert (states(survey), survey.newest) == ({names[0]: "complete", names[1]: "in flight"}, names[0])


def test_a_part_written_over_right_after_it_was_read_is_doubt_however_soon(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    run.save(1)
    name = run.save(2, young=True)
    a_pass(work_dir, max_keep=2)
    assert pointed(work_dir) == name
    again(work_dir / name / "model.safetensors")
    assert states(a_pass(work_dir, max_keep=1))[name] == "in doubt"
    assert len(checkpoints(work_dir)) == 2
    for path in (work_dir / name).iterdir():
        path.chmod(0o640)
    report = a_pass(work_dir, max_keep=1)
    assert (states(report)[name], pointed(work_dir)) == ("in doubt", run.writer.name(1))


def test_the_part_of_a_rank_that_comes_a_moment_after_the_marker_is_no_doubt(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    run.save(1)
    name = run.save(2, young=True)
    a_pass(work_dir, max_keep=2)
    (work_dir / name / "rng_state_1.pth").write_bytes(torch_zip())
    a_pass(work_dir, max_keep=1)
    assert pointed(work_dir) == name
    for path in (work_dir / name).iterdir():
        path.chmod(0o640)
        os.link(path, work_dir.parent / path.name)
    report = a_pass(work_dir, max_keep=1)
    assert (states(report), pointed(work_dir)) == ({name: "complete"}, name)


@pytest.mark.parametrize("what", sorted({what for what, _, _ in WRITTEN_OVER}))
@pytest.mark.parametrize(
    "file",
    [
        "eval_results.json",
        "predictions.pt",
        "results.pkl",
        "events.out.tfevents.1.host",
        "eval/logits.bin",
        "model_outputs.pt",
        "merged/model.safetensors",
    ],
)
def test_what_an_evaluator_drops_is_no_part(what: str, file: str, work_dir: Path) -> None:
    run = Run(work_dir, the(what))
    (name,) = run.saves((1,))
    a_pass(work_dir, **policy(run.writer))
    for _ in range(2):
        (work_dir / name / file).parent.mkdir(exist_ok=True)
        (work_dir / name / file).write_bytes(torch_zip())
        assert states(a_pass(work_dir, **policy(run.writer, settle_s=None)))[name] in ("complete", "in flight")
        assert states(a_pass(work_dir, **policy(run.writer)))[name] == "complete"


def test_weights_that_were_gathered_beside_deepspeeds_own_are_no_part(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers with DeepSpeed"))
    (name,) = run.saves((1,))
    (work_dir / name / "pytorch_model.bin").write_bytes(torch_zip())
    assert states(a_pass(work_dir, **policy(run.writer))) == {name: "complete"}


@EVERY
def test_a_copy_that_keeps_the_times_is_judged_by_its_content(
    what: str, part: str, marker: str, work_dir: Path
) -> None:
    run = Run(work_dir, the(what))
    names = run.saves((1, 2))
    info = (work_dir / names[1] / part).stat()
    os.utime(work_dir / names[1] / part, ns=(info.st_atime_ns, info.st_mtime_ns + 1800 * 10**9))
    copied = work_dir.parent / "copied"
    subprocess.run(["cp", "-a", work_dir, copied], check=True)
    assert states(a_pass(copied, **policy(run.writer, settle_s=1)))[names[1]] == "complete"
    assert pointed(copied) == names[1]


@dataclass
class File:
    st_mtime_ns: int
    st_ctime_ns: int
    st_size: int


@pytest.mark.parametrize(("files", "expected"), [
    pytest.param([(0, 0, 9), (4, 4, 9), (9, 9, 9)], True, id="one small file after the other"),
    pytest.param([(0, 0, 9), (600, 600, 6 * 10**10)], True, id="a large one takes its time"),
    pytest.param([(0, 0, 9), (600, 600, 9)], False, id="a pause that no file explains"),
    pytest.param([(0, 0, 9), (3600, 3600, 6 * 10**10)], False, id="a pause too long even for a large one"),
    pytest.param([(0, 7200, 9), (3600, 7201, 9)], True, id="a copy that has kept the times"),
    pytest.param([(0, 3500, 9), (3600, 3600, 9)], False, id="only the one is new"),
])  # fmt: skip
def test_what_was_written_in_one_go_is_a_copy(files: list[tuple[int, int, int]], expected: bool) -> None:
    made = [File(mtime * 10**9, ctime * 10**9, size) for mtime, ctime, size in files]
    assert _were_written_together(made, 5.0) is expected  # type: ignore[arg-type]


def test_what_is_in_doubt_is_never_pruned_and_said_once(work_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = Run(work_dir, the("transformers"))
    names = run.saves((1, 2))
    a_pass(work_dir, max_keep=2)
    again(work_dir / names[1] / "model.safetensors")
    caplog.set_level(logging.WARNING)
    a_pass(work_dir, max_keep=1, settle_s=0)
    assert caplog.text.count(f"{names[1]} is in doubt: model.safetensors is ") == 1
    later = [run.save(step, young=True) for step in (3, 4, 5)]
    a_pass(work_dir, max_keep=1, settle_s=0, trash_ttl_s=0, max_bytes=1)
    assert (checkpoints(work_dir), pointed(work_dir)) == ({names[1], later[-1]}, later[-1])


def test_watch_says_a_doubt_once_and_sees_it_end(work_dir: Path, watching: Any) -> None:
    run = Run(work_dir, the("transformers"))
    names = run.saves((1, 2))
    with watching(work_dir, "--max-keep", "2", "--settle", "0.2", "--scan-interval", "1") as watch:
        watch.heard(f"pointed last_ckpt at {names[1]}")
        again(work_dir / names[1] / "model.safetensors")
        watch.heard(f"pointed last_ckpt at {names[0]}")
        again(work_dir / names[1] / "optimizer.pt")
        again(work_dir / names[1] / "trainer_state.json")
        watch.heard(f"pointed last_ckpt at {names[1]}", times=2)
        assert watch.said("is in doubt: ") == 1
        assert watch.stop() == 0


# --- links -------------------------------------------------------------------------------------------------------


LINKED = [
    ("transformers", "model.safetensors"),
    ("transformers", "optimizer.pt"),
    ("transformers", "trainer_state.json"),
    ("transformers with DeepSpeed", "global_step2"),
    ("lightning sharded", "__0_0.distcp"),
    ("lightning sharded", ".metadata"),
    ("megatron", "common.pt"),
    ("verl", "critic/optim_world_size_3_rank_1.pt"),
    ("torchtitan", "__0_0.distcp"),
    ("accelerate", "model.safetensors"),
    ("deepspeed", "mp_rank_00_model_states.pt"),
    ("torchtune by epoch", "model-00001-of-00002.safetensors"),
    ("olmo", "model_and_optim/__0_0.distcp"),
    ("orbax", "default"),
    ("mmengine with ColossalAI", "model/a.bin"),
]


def moved(path: Path, to: Path) -> None:
    """Move what is at `path` to a slower disk, with a symlink in its place."""
    to.mkdir(exist_ok=True)
    shutil.move(path, to / path.name)
    path.symlink_to(to / path.name)


@pytest.mark.parametrize(("what", "part"), LINKED)
def test_a_part_that_is_a_link_is_not_checked_and_carries_nothing(what: str, part: str, work_dir: Path) -> None:
    run = Run(work_dir, the(what))
    names = run.saves((1, 2))
    moved(work_dir / names[1] / part, work_dir.parent / "cold")
    report = a_pass(work_dir, **policy(run.writer))
    assert states(report) == {names[0]: "complete", names[1]: "in doubt"}
    assert (checkpoints(work_dir), pointed(work_dir)) == (set(names), names[0])
    reason = next(d.reasons[0] for d in report.survey.decisions if d.checkpoint.name == names[1])
    assert reason.startswith(f"{part} is a symlink, which is not followed: not checked")
    assert ckptd.verify(work_dir / names[1], settle_s=0).state.value == "in doubt"


@pytest.mark.parametrize("link", ["tokenizer.json", "README.md", "wandb", "notes"])
def test_a_link_to_what_is_no_part_is_no_doubt(link: str, work_dir: Path) -> None:
    (name,) = Run(work_dir, the("transformers")).saves((1,))
    (work_dir / name / link).symlink_to(work_dir.parent / "elsewhere")
    assert states(a_pass(work_dir, max_keep=1)) == {name: "complete"}


def test_a_milestone_stays_whatever_became_of_it(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    names = run.saves(range(1, 7))
    moved(work_dir / names[1] / "model.safetensors", work_dir.parent / "cold")
    os.truncate(work_dir / names[3] / "optimizer.pt", 100)
    a_pass(work_dir, max_keep=1, keep_every=1000, settle_s=0, trash_ttl_s=0)
    assert checkpoints(work_dir) == {names[1], names[3], names[5]}


def test_what_was_damaged_with_its_times_kept_is_doubt_no_more_than_it_was(with_checkpoints: Builder) -> None:
    """Bytes that are read and found broken are broken, whatever times they bear."""
    work_dir = with_checkpoints.work_dir
    run = Run(work_dir, the("transformers"))
    names = run.saves((1, 2))
    a_pass(work_dir, max_keep=2)
    content = (work_dir / names[1] / "optimizer.pt").read_bytes()
    written_over(work_dir / names[1] / "optimizer.pt", content[:-9] + bytes(9))
    assert states(a_pass(work_dir, max_keep=1))[names[1]] == "incomplete"
