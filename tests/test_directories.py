"""Directories as each framework leaves them: whole with all that makes them so, and not without it."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.checkpoint import State
from ckptd.core.layouts import LAYOUTS
from ckptd.core.policy import Policy
from ckptd.disk.descriptors import opened_dir
from ckptd.inspect.scan import scan
from ckptd.inspect.verdict import Settling, Verdict, judge

from .conftest import a_pass, dcp_metadata, left, pointed, safetensors, torch_zip
from .layouts.writers import Run, dcp, deepspeed, index, put, the

ZIP, TENSORS = torch_zip(), safetensors()
DCP = {"__0_0.distcp": b"s" * 10, "__1_0.distcp": b"s" * 10,
       ".metadata": dcp_metadata({"__0_0.distcp": 10, "__1_0.distcp": 10})}  # fmt: skip
INDEX = json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode()
SHARDED = {"model.safetensors.index.json": INDEX, "model-1.safetensors": TENSORS, "model-2.safetensors": TENSORS}
ZERO = {f"bf16_zero_pp_rank_{d}_mp_rank_0{m}_optim_states.pt": ZIP for d in (0, 1, 2) for m in (0, 1)}
ZERO |= {f"mp_rank_0{m}_model_states.pt": ZIP for m in (0, 1)}
ORBAX = json.dumps({"item_handlers": {"state": "handler", "metadata": "handler"}, "commit_timestamp_nsecs": 1}).encode()


def world(role: str, size: int = 2) -> dict[str, bytes]:
    kinds = ("model", "optim", "extra_state")
    return {f"{role}/{kind}_world_size_{size}_rank_{rank}.pt": ZIP for kind in kinds for rank in range(size)}


# By layout and kind: a name, what is in the directory, and what it is no checkpoint without. The last rank of some
# cannot be missed: nothing says how many there were.
WHOLE: dict[tuple[str, str], tuple[str, dict[str, bytes], set[str]]] = {
    ("torchtitan", "dcp"): ("step-10", DCP, set(DCP)),
    ("torchtitan", "index"): ("step-10", SHARDED, {"model-1.safetensors", "model-2.safetensors"}),
    ("lightning", "lightning"): ("epoch=0-step=10.ckpt", {**DCP, "meta.pt": ZIP}, {*DCP, "meta.pt"}),
    ("lightning", "deepspeed"): ("epoch=0-step=10.ckpt", {
        **{f"checkpoint/{name}": content for name, content in ZERO.items()},
        "latest": b"checkpoint", "zero_to_fp32.py": b""}, {f"checkpoint/{name}" for name in ZERO}),
    ("mmengine", "ranks"): ("epoch_3.pth", {f"rank{n}.pth": ZIP for n in range(12)},
                            {f"rank{n}.pth" for n in range(11)}),
    ("mmengine", "deepspeed"): ("iter_30.pth", ZERO, set(ZERO)),
    ("mmengine", "colossalai"): ("epoch_3.pth", {
        **{f"model/{name}": content for name, content in SHARDED.items()},
        "optimizer/optimizer.bin": ZIP, "scheduler/scheduler_0.pth": ZIP, "meta.pth": ZIP},
        {"model/model-1.safetensors", "model/model-2.safetensors"}),
    ("transformers", "trainer"): ("checkpoint-5", {
        "model.safetensors": TENSORS, "optimizer.pt": ZIP, "scheduler.pt": ZIP, "rng_state.pth": ZIP,
        "training_args.bin": ZIP, "trainer_state.json": b'{"global_step": 5}'}, {"trainer_state.json"}),
    ("transformers", "accelerate"): ("checkpoint-5", {
        "unet/diffusion_pytorch_model.safetensors": TENSORS, "optimizer.bin": ZIP, "random_states_0.pkl": ZIP},
        {"unet/diffusion_pytorch_model.safetensors", "random_states_0.pkl"}),
    ("accelerate", "accelerate"): ("checkpoint_5", {
        "model.safetensors": TENSORS, "optimizer.bin": ZIP, "random_states_0.pkl": ZIP, "random_states_1.pkl": ZIP},
        {"model.safetensors", "random_states_0.pkl"}),
    ("deepspeed", "deepspeed"): ("global_step10", ZERO, set(ZERO)),
    ("megatron", "megatron"): ("iter_0000010", {
        **DCP, "common.pt": ZIP, "metadata.json": b'{"sharded_backend": "torch_dist"}'}, {*DCP, "metadata.json"}),
    ("orbax", "orbax"): ("10", {
        "_CHECKPOINT_METADATA": ORBAX, "state/manifest.ocdbt": b"m", "state/_METADATA": b'{"use_ocdbt": true}',
        "state/ocdbt.process_0/manifest.ocdbt": b"m", "metadata/metadata": b"{}"},
        {"state/manifest.ocdbt", "state/_METADATA", "state/ocdbt.process_0/manifest.ocdbt", "metadata/metadata"}),
    ("torchtune", "index"): ("epoch_0", SHARDED, {"model-1.safetensors", "model-2.safetensors"}),
    ("torchtune", "weights"): ("step_10", {"model.safetensors": TENSORS, "recipe_state.pt": ZIP}, set()),
    ("verl", "verl"): ("global_step_10", {**world("actor"), **world("critic", 3), "data.pt": ZIP},
                       {*world("actor"), *world("critic", 3), "data.pt"}),
    ("olmo", "weights"): ("step10-unsharded", {
        "config.yaml": b"", "model.pt": ZIP, "optim.pt": ZIP, "train.pt": ZIP}, {"model.pt", "optim.pt", "train.pt"}),
    ("olmo", "weights in parts"): ("step10", {
        **{f"model_and_optim/{name}": content for name, content in DCP.items()},
        "train/rank0.pt": ZIP, ".metadata.json": b"{}"}, {f"model_and_optim/{name}" for name in DCP}),
    ("kohya", "accelerate"): ("cat-000001-state", {
        "model.safetensors": TENSORS, "optimizer.bin": ZIP, "random_states_0.pkl": ZIP, "train_state.json": b"{}"},
        {"model.safetensors", "random_states_0.pkl"}),
    ("megatron", "megatron by ranks"): ("iter_0000010", {
        f"mp_rank_0{tp}_00{pp}/model_optim_rng.pt": ZIP for tp in (0, 1) for pp in (0, 1)},
        {"mp_rank_00_000/model_optim_rng.pt", "mp_rank_01_001/model_optim_rng.pt"}),
}  # fmt: skip
ROWS = [pytest.param(*key, *row, id=" ".join(key)) for key, row in WHOLE.items()]


BY_NAME = {row.name: row for row in LAYOUTS}


def write(path: Path, files: dict[str, bytes], *, without: str | None = None) -> Path:
    """The directory with its files; their directories stay where a file is left out, as after a crash."""
    for name, content in files.items():
        place = path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if name != without:
            place.write_bytes(content)
            os.utime(place, (1_700_000_000, 1_700_000_000))
    return path


def judged(path: Path, layout: str, *, age_s: float = 3600.0) -> Verdict:
    """The verdict on a directory that bears a name of `layout`, when it has not changed for `age_s`."""
    with opened_dir(str(path.parent)) as fd:
        found = scan(str(path.parent), fd, Policy(layouts=(layout,)).finder())
        (entry,) = (each for each in found.entries if each.name == path.name)
        now_ns, wanted = entry.mtime_ns + int(age_s * 1e9), found.known[entry.series].kinds
        return judge(entry, dir_fd=fd, settling=Settling(local=True), now_ns=now_ns, wanted=wanted)


def test_every_layout_of_directories_is_tried_here() -> None:
    assert {layout for layout, _ in WHOLE} == {
        row.name for row in LAYOUTS if any(form.directories for form in row.forms)
    } - {"mmcv"}


@pytest.mark.parametrize(("layout", "kind", "name", "files", "needed"), ROWS)
def test_what_a_framework_leaves_is_whole_and_of_its_kind(
    layout: str, kind: str, name: str, files: dict[str, bytes], needed: set[str], work_dir: Path
) -> None:
    verdict = judged(write(work_dir / name, files), layout)
    assert (verdict.state, verdict.known) == (State.COMPLETE, True)
    assert verdict.checksum == any(content == ZIP for content in files.values())
    assert verdict.kind in BY_NAME[layout].kinds


@pytest.mark.parametrize(("layout", "kind", "name", "files", "needed"), ROWS)
def test_without_what_it_needs_it_is_never_whole(
    layout: str, kind: str, name: str, files: dict[str, bytes], needed: set[str], tmp_path: Path
) -> None:
    for number, missing in enumerate(sorted(needed)):
        path = write(tmp_path / str(number) / name, files, without=missing)
        assert not (judged(path, layout).state.whole and judged(path, layout).known), missing


@pytest.mark.parametrize(("layout", "kind", "name", "files", "needed"), ROWS)
def test_a_file_of_states_that_is_cut_or_empty_is_found_in_all_of_them(
    layout: str, kind: str, name: str, files: dict[str, bytes], needed: set[str], tmp_path: Path
) -> None:
    states = [each for each, content in files.items() if content in (ZIP, TENSORS)]
    for number, each in enumerate(states):
        for way, content in (("cut", files[each][:-1]), ("empty", b"")):
            path = write(tmp_path / f"{number} {way}" / name, {**files, each: content})
            verdict = judged(path, layout)
            assert verdict.state is State.INCOMPLETE, (each, way)
            assert os.path.basename(each) in verdict.structure


@pytest.mark.parametrize(("layout", "kind", "name", "files", "needed"), ROWS)
def test_what_nobody_marks_as_done_is_in_flight_for_a_while(
    layout: str, kind: str, name: str, files: dict[str, bytes], needed: set[str], work_dir: Path
) -> None:
    unmarked = {"ranks", "deepspeed", "colossalai", "accelerate", "index", "weights", "megatron by ranks",
                "weights in parts"}  # fmt: skip
    verdict = judged(write(work_dir / name, files), layout, age_s=10)
    assert verdict.state is (State.IN_FLIGHT if kind in unmarked else State.COMPLETE)


def test_what_verl_leaves_of_a_checkpoint_never_counts_among_the_newest(work_dir: Path) -> None:
    for step in (10, 20, 30, 40):
        files = {**world("actor"), "data.pt": ZIP} if step < 30 else {"data.pt": ZIP}
        write(work_dir / f"global_step_{step}", files)
        for each in (work_dir / f"global_step_{step}").rglob("*.pt"):
            os.utime(each, (1_700_000_000 + step, 1_700_000_000 + step))
    report = a_pass(work_dir, max_keep=2, layouts=("verl",), trash_ttl_s=0)
    assert (len(report.pruned), pointed(work_dir)) == (0, "global_step_20")
    assert len(left(work_dir)) == 4
    assert {each.name for each in report.survey.left_alone} == {"global_step_30", "global_step_40"}


def test_a_trainers_directory_that_was_killed_before_its_last_file_is_incomplete(work_dir: Path) -> None:
    _, files, _ = WHOLE["transformers", "trainer"]
    path = write(work_dir / "checkpoint-5", files, without="trainer_state.json")
    assert judged(path, "transformers").state is State.INCOMPLETE
    # What `save_model` exports has no states beside it, and is nobody's save that went wrong.
    exported = write(work_dir / "checkpoint-6", {"model.safetensors": TENSORS, "training_args.bin": ZIP})
    assert not judged(exported, "transformers").known


def test_megatrons_directory_at_a_name_of_mmcv_is_left_alone_until_it_is_asked_for(work_dir: Path) -> None:
    _, files, _ = WHOLE["megatron", "megatron"]
    for step in (1_000_000, 2_000_000, 3_000_000):
        write(work_dir / f"iter_{step}", files)
    report = a_pass(work_dir, max_keep=1, interval=1_000_000)
    assert (report.survey.decisions, len(report.survey.left_alone)) == ((), 3)
    assert "--layout megatron" in report.survey.left_alone[0].reason
    report = a_pass(work_dir, max_keep=1, rule="newest", layouts=("megatron",))
    assert left(work_dir) == ["iter_3000000"]


@pytest.mark.parametrize(("layout", "kind"), list(WHOLE))
def test_each_is_pruned_pointed_at_and_restored_as_one(layout: str, kind: str, work_dir: Path) -> None:
    from ckptd.passes.restore import restore

    name, files, _ = WHOLE[layout, kind]
    number = "".join(c for c in name.split("=")[-1] if c in "0123456789").lstrip("0") or "0"
    at = name.rindex(number)
    names = [name[:at] + str(int(number) + n) + name[at + len(number) :] for n in (0, 1, 2)]
    for when, each in enumerate(names):
        for path in write(work_dir / each, files).rglob("*"):
            os.utime(path, (1_700_000_000 + when, 1_700_000_000 + when))
    report = a_pass(work_dir, max_keep=2, rule="newest", layouts=(layout,), trash_ttl_s=60)
    assert (len(report.pruned), pointed(work_dir), left(work_dir)) == (1, names[2], names[1:])
    assert restore(str(work_dir), [names[0]]) == ([names[0]], {})
    again: Any = {str(p.relative_to(work_dir / names[0])) for p in (work_dir / names[0]).rglob("*") if p.is_file()}
    assert again == set(files)
    if not BY_NAME[layout].by_itself:
        untouched = a_pass(work_dir, max_keep=1, rule="newest")
        assert not untouched.pruned or layout == "torchtune"


def test_no_moment_of_a_trainers_save_of_shards_looks_whole_before_the_last(tmp_path: Path) -> None:
    files = {"config.json": b"{}", **{name: SHARDED[name] for name in reversed(SHARDED)}, "training_args.bin": ZIP,
             "optimizer.pt": ZIP, "scheduler.pt": ZIP, "rng_state.pth": ZIP,
             "trainer_state.json": b'{"global_step": 5}'}  # fmt: skip
    for count in range(1, 1 + len(files)):
        work_dir = tmp_path / str(count)
        write(work_dir / "checkpoint-5", dict(list(files.items())[:count]))
        whole = [d.checkpoint.name for d in ckptd.plan(work_dir).decisions if d.checkpoint.state.whole]
        assert whole == (["checkpoint-5"] if count == len(files) else []), list(files)[count - 1]


# --- weights ----------------------------------------------------------------------------------------------------

TRAINERS = {"trainer_state.json": b'{"global_step": 1}', "optimizer.pt": torch_zip(), "scheduler.pt": torch_zip(),
            "rng_state.pth": torch_zip(), "training_args.bin": torch_zip(), "config.json": b"{}"}  # fmt: skip
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
def test_weights_of_any_kind_make_a_checkpoint_of_a_trainer(weights: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1", {**TRAINERS, **weights})
    verdict = ckptd.verify(tmp_path / "checkpoint-1", settle_s=0)
    assert (verdict.state.value, verdict.kind) == ("complete", "Trainer")


@pytest.mark.parametrize("beside", [
    {}, OPTIMIZER_OF_FSDP, files_of("rng_state_0.pth", "rng_state_1.pth"), files_of("scaler.pt"),
    files_of("eval_predictions.pt", "eval/logits.bin"), {"model.safetensors.6eF3b2A1": b"x"},
    {"optimizer.pdopt": PICKLED, "scheduler.pdparams": PICKLED}, files_of("optimizer.safetensors"),
    {"global_step1/zero_pp_rank_0_mp_rank_00_optim_states.pt": torch_zip()},
    {"global_step1/x.txt": b""}, files_of("optimizer-00001-of-00001.safetensors"),
], ids=lambda files: min(files, default="nothing"))  # fmt: skip
def test_without_weights_it_is_none(beside: dict[str, bytes], tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1", {**TRAINERS, **beside})
    verdict = ckptd.verify(tmp_path / "checkpoint-1", settle_s=0)
    assert (verdict.state.value, "weights" in verdict.evidence or "model states" in verdict.evidence) == (
        "incomplete", True,
    )  # fmt: skip


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
def test_a_part_that_says_how_many_there_are_is_whole_with_all_of_them(what: str, name: str, tmp_path: Path) -> None:
    writer = the(what)
    path = tmp_path / writer.name(1)
    writer.whole(path, 1)
    put(path, files_of(name))
    verdict = ckptd.verify(path, settle_s=0)
    assert verdict.state.value == "incomplete"
    assert "are there" in verdict.evidence


def test_what_an_evaluator_counts_by_its_own_ranks_is_no_part(tmp_path: Path) -> None:
    put(tmp_path / "checkpoint-1", {**TRAINERS, **files_of("model.safetensors", "predictions-00001-of-00008.pt")})
    assert ckptd.verify(tmp_path / "checkpoint-1", settle_s=0).state.value == "complete"


def test_an_index_knows_better_than_numbers_in_names(tmp_path: Path) -> None:
    weights = files_of("model-00001-of-00002.safetensors")
    listed = {"model.safetensors.index.json": index("model-00001-of-00002.safetensors")}
    put(tmp_path / "checkpoint-1", {**TRAINERS, **weights, **listed})
    assert ckptd.verify(tmp_path / "checkpoint-1", settle_s=0).state.value == "complete"


def test_a_directory_in_which_nothing_is_yet_is_watched_inside(work_dir: Path) -> None:
    """It is left alone, for it may become anything; but only events inside it tell when it has become a checkpoint."""
    put(work_dir / "checkpoint-1", {"model.safetensors": safetensors(), "trainer_state.json": b"{}"})
    (work_dir / "checkpoint-2").mkdir()
    survey = ckptd.plan(work_dir, Policy(max_keep=1))
    assert [each.name for each in survey.left_alone] == ["checkpoint-2"]
    assert "checkpoint-2" in survey.filling
