"""Directories as each framework leaves them: whole with all that makes them so, and not without it."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

import ckptd
from ckptd.core import kinds
from ckptd.core.checkpoint import State
from ckptd.core.finder import Finder
from ckptd.core.layouts import LAYOUTS
from ckptd.core.policy import Policy
from ckptd.disk.opened import OpenedDirectory, OpenedFile
from ckptd.inspect.content import fault_of_directory, fault_of_file
from ckptd.inspect.directories import structure_of_directory
from ckptd.inspect.files import Structure, structure_of_file
from ckptd.inspect.view import DirectoryView, FileView

from .conftest import a_pass, pointed, safetensors, torch_zip
from .in_memory import Bytes, Files
from .layouts.writers import (
    WRITERS,
    Content,
    Run,
    Writer,
    damaged,
    dcp,
    deepspeed,
    half,
    index,
    indexed,
    put,
    the,
    trainer,
    without,
)

LAYOUT = {layout.name: layout for layout in LAYOUTS}
EVERY = pytest.mark.parametrize("writer", WRITERS, ids=str)
DIRECTORIES = pytest.mark.parametrize("writer", [w for w in WRITERS if isinstance(w.content(1), dict)], ids=str)


def seen(content: Content) -> Bytes | Files:
    return Bytes(content) if isinstance(content, bytes) else Files(content)


def judged(writer: Writer, what: DirectoryView | FileView) -> tuple[Structure, str]:
    """What it looks like under a name of the writer's, and what is wrong with its content."""
    if isinstance(what, (Bytes, OpenedFile)):
        return structure_of_file(what), fault_of_file(what, lambda _: None)
    finder = Finder((), (LAYOUT[writer.layout],))
    finder.learn([writer.name(step) for step in (1, 2, 3)])
    known = finder.match(writer.name(1))
    assert known is not None
    return structure_of_directory(what, known[0].kinds), fault_of_directory(what, lambda _: None)


def structure_of(writer: Writer, content: Content) -> Structure:
    return judged(writer, seen(content))[0]


def is_whole(found: Structure) -> bool:
    return found.state.whole and found.known


@EVERY
def test_what_a_framework_leaves_is_whole_and_of_its_kind(writer: Writer) -> None:
    content = writer.content(1)
    found, fault = judged(writer, seen(content))
    assert (found.state, found.known, found.marked, fault) == (State.COMPLETE, True, writer.marked, "")
    inside = [content] if isinstance(content, bytes) else content.values()
    assert found.checksum == any(each.startswith(b"PK") for each in inside)
    assert found.kind in LAYOUT[writer.layout].kinds


@EVERY
def test_half_of_it_is_never_whole_and_a_damaged_tensor_is_found(writer: Writer) -> None:
    assert not is_whole(structure_of(writer, half(writer.content(1))))
    broken = damaged(writer.content(1))
    if broken is not None:
        found, fault = judged(writer, seen(broken))
        assert fault or not is_whole(found)


@DIRECTORIES
def test_without_what_it_needs_it_is_never_whole(writer: Writer) -> None:
    assert writer.needed
    for name in writer.needed:
        assert not is_whole(structure_of(writer, without(writer.content(1), name))), name


@DIRECTORIES
def test_a_file_of_states_that_is_cut_or_empty_is_found_in_all_of_them(writer: Writer) -> None:
    content = writer.content(1)
    for name in [name for name, inside in content.items() if inside in (torch_zip(), safetensors())]:
        for cut in (content[name][:-1], b""):
            found = structure_of(writer, {**content, name: cut})
            assert found.state is State.INCOMPLETE, name
            assert os.path.basename(name) in found.text


@DIRECTORIES
@pytest.mark.parametrize("where", ["", "more/", "more/below/", "beside its shards"])
def test_whatever_else_is_in_it_must_not_be_cut_short(where: str, writer: Writer) -> None:
    content = writer.content(1)
    if where == "beside its shards":
        where = next((name.rpartition("/")[0] + "/" for name in content if name.endswith(".distcp")), "").lstrip("/")
    for name, inside in {"extra.safetensors": safetensors(), "extra.pt": torch_zip(), "extra.npz": torch_zip()}.items():
        assert is_whole(structure_of(writer, {**content, where + name: inside})), name
        assert not is_whole(structure_of(writer, {**content, where + name: inside[:-1]})), name


@DIRECTORIES
def test_no_moment_of_a_save_looks_whole_and_marked_before_the_last(writer: Writer) -> None:
    files = list(writer.content(1).items())
    for count in range(len(files)):
        found = structure_of(writer, dict(files[:count]))
        assert not (is_whole(found) and found.marked), files[count]


@EVERY
def test_on_a_disk_it_is_the_same(writer: Writer, tmp_path: Path) -> None:
    content = writer.content(1)
    ways = [content, half(content), damaged(content), *(without(content, name) for name in writer.needed)]
    for number, each in enumerate(way for way in ways if way is not None):
        place = tmp_path / str(number)
        put(place, each)
        for path in [*place.rglob("*"), place]:
            os.utime(path, (0, 0))
        fd = os.open(place, os.O_RDONLY)
        try:
            opened = OpenedFile(fd) if isinstance(each, bytes) else OpenedDirectory(fd)
            assert judged(writer, opened) == judged(writer, seen(each)), number
        finally:
            os.close(fd)


@pytest.mark.parametrize(("what", "expected"), [("transformers", "complete"), ("accelerate", "in flight")])
def test_what_nobody_marks_as_done_is_in_flight_for_a_while(what: str, expected: str, work_dir: Path) -> None:
    name = Run(work_dir, the(what)).save(1, young=True)
    assert ckptd.verify(work_dir / name).state.value == expected


def test_a_trainers_directory_that_was_killed_before_its_last_file_is_incomplete() -> None:
    writer = the("transformers")
    assert structure_of(writer, half(trainer(1))).state is State.INCOMPLETE
    # What `save_model` exports has no states beside it, and is nobody's save that went wrong.
    exported = {"model.safetensors": safetensors(), "training_args.bin": torch_zip()}
    assert not structure_of(writer, exported).known


def test_megatrons_directory_at_a_name_of_mmcv_is_pruned_once_it_is_asked_for(work_dir: Path) -> None:
    for step in (1_000_000, 2_000_000, 3_000_000):
        the("megatron").whole(work_dir / f"iter_{step}", step)
    report = a_pass(work_dir, max_keep=1, interval=1_000_000)
    assert (report.survey.decisions, len(report.survey.left_alone)) == ((), 3)
    assert "--layout megatron" in report.survey.left_alone[0].reason
    a_pass(work_dir, max_keep=1, rule="newest", layouts=("megatron",))
    assert [path.name for path in work_dir.glob("iter_*")] == ["iter_3000000"]


def test_no_moment_of_a_trainers_save_of_shards_looks_whole_before_the_last() -> None:
    weights, rest = indexed(1), without(trainer(1), "model.safetensors")
    files = list({**{name: weights[name] for name in reversed(weights)}, **rest}.items())
    for count in range(1 + len(files)):
        found = structure_of(the("transformers"), dict(files[:count]))
        assert (is_whole(found) and found.marked) == (count == len(files)), count


# --- weights ----------------------------------------------------------------------------------------------------

TRAINERS = without(trainer(1), "model.safetensors")
FSDP = {f"pytorch_model_fsdp_0/{name}": content for name, content in dcp("__0_0.distcp").items()}
OPTIMIZER_OF_FSDP = {f"optimizer_0/{name}": content for name, content in dcp("__0_0.distcp").items()}
PICKLED = pickle.dumps({"w": b"w" * 300}, protocol=4)


def files_of(*names: str) -> dict[str, bytes]:
    return {name: safetensors() if name.endswith(".safetensors") else torch_zip() for name in names}


@pytest.mark.parametrize("weights", [
    files_of("model.safetensors"), files_of("pytorch_model.bin"), files_of("adapter_model.safetensors"),
    files_of("adapter_model.bin"), files_of("default/adapter_model.safetensors"), files_of("mm_projector.bin"),
    files_of("pytorch_model_fsdp.bin"), files_of("unet/diffusion_pytorch_model.safetensors"), FSDP,
    {f"global_step1/{name}": content for name, content in deepspeed(1).items()},
    files_of("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"),
    files_of("w-00001-of-00003.safetensors", "w-00001-of-00002.safetensors", "w-00002-of-00002.safetensors"),
    {"model_state.pdparams": PICKLED}, {"lora_model_state.pdparams": PICKLED}, {"tf_model.h5": b"\x89HDF" + bytes(99)},
    {"model_state-00001-of-00002.pdparams": PICKLED, "model_state-00002-of-00002.pdparams": PICKLED},
    {"flax_model.msgpack": b"\x81" * 9},
], ids=lambda files: min(files))  # fmt: skip
def test_weights_of_any_kind_make_a_checkpoint_of_a_trainer(weights: dict[str, bytes]) -> None:
    found = structure_of(the("transformers"), {**TRAINERS, **weights})
    assert (found.state, found.kind) == (State.COMPLETE, kinds.TRAINER)


@pytest.mark.parametrize("beside", [
    {}, OPTIMIZER_OF_FSDP, files_of("rng_state_0.pth", "rng_state_1.pth"), files_of("scaler.pt"),
    files_of("eval_predictions.pt", "eval/logits.bin"), {"model.safetensors.6eF3b2A1": b"x"},
    {"optimizer.pdopt": PICKLED, "scheduler.pdparams": PICKLED}, files_of("optimizer.safetensors"),
    {"global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt": torch_zip()},
    {"global_step1/x.txt": b""}, files_of("optimizer-00001-of-00001.safetensors"),
], ids=lambda files: min(files, default="nothing"))  # fmt: skip
def test_without_weights_it_is_none(beside: dict[str, bytes]) -> None:
    found = structure_of(the("transformers"), {**TRAINERS, **beside})
    assert found.state is State.INCOMPLETE
    assert "weights" in found.text or "model states" in found.text


def test_what_has_no_weights_carries_no_deletion(work_dir: Path) -> None:
    run = Run(work_dir, the("transformers"))
    names = run.saves((1, 2))
    (work_dir / names[1] / "model.safetensors").unlink()
    a_pass(work_dir, max_keep=1, trash_ttl_s=0)
    assert {path.name for path in work_dir.glob("checkpoint-*")} == set(names)
    assert pointed(work_dir) == names[0]


@pytest.mark.parametrize(("what", "name"), [
    ("transformers", "model-00001-of-00002.safetensors"), ("transformers", "pytorch_model-00002-of-00003.bin"),
    ("transformers", "model_state-00001-of-00002.pdparams"), ("transformers", "optimizer-00001-of-00002.safetensors"),
    ("accelerate", "model-00001-of-00002.safetensors"), ("deepspeed", "extra-00001-of-00002.pt"),
    ("mmengine with ColossalAI", "model/base-00001-of-00002.bin"), ("verl", "actor/huggingface/m-00001-of-00002.bin"),
])  # fmt: skip
def test_a_part_that_says_how_many_there_are_is_whole_with_all_of_them(what: str, name: str) -> None:
    writer = the(what)
    found = structure_of(writer, {**writer.content(1), **files_of(name)})
    assert found.state is State.INCOMPLETE
    assert "are there" in found.text


def test_what_an_evaluator_counts_by_its_own_ranks_is_no_part() -> None:
    weights = files_of("model.safetensors", "predictions-00001-of-00008.pt")
    assert structure_of(the("transformers"), {**TRAINERS, **weights}).state is State.COMPLETE


def test_an_index_knows_better_than_numbers_in_names() -> None:
    weights = files_of("model-00001-of-00002.safetensors")
    listed = {"model.safetensors.index.json": index("model-00001-of-00002.safetensors")}
    assert structure_of(the("transformers"), {**TRAINERS, **weights, **listed}).state is State.COMPLETE


def test_a_directory_in_which_nothing_is_yet_is_watched_inside(work_dir: Path) -> None:
    """It is left alone, for it may become anything; but only events inside it tell when it has become a checkpoint."""
    put(work_dir / "checkpoint-1", {"model.safetensors": safetensors(), "trainer_state.json": b"{}"})
    (work_dir / "checkpoint-2").mkdir()
    survey = ckptd.plan(work_dir, Policy(max_keep=1))
    assert [each.name for each in survey.left_alone] == ["checkpoint-2"]
    assert "checkpoint-2" in survey.filling
