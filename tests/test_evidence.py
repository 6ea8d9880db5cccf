"""What the bytes of a directory say counts, whatever it is called and however it was named."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.checkpoint import State
from ckptd.core.policy import Policy

from .conftest import a_pass, dcp_metadata, left, safetensors, torch_zip
from .test_hdf5 import hdf5

ONE = {"max_keep": 1, "trash_ttl_s": 0.0}
HOUR_NS = 3600 * 10**9


def directory(place: Path, files: dict[str, bytes], *, hours_ago: float) -> None:
    for path, content in files.items():
        (place / path).parent.mkdir(parents=True, exist_ok=True)
        (place / path).write_bytes(content)
    aged(place, hours_ago)


def aged(place: Path, hours_ago: float) -> None:
    at_ns = 1_795_000_000 * 10**9 - int(hours_ago * HOUR_NS)
    for path in (place, *place.rglob("*")):
        os.utime(path, ns=(at_ns, at_ns))


def plain_zip() -> bytes:
    return torch_zip().replace(b"data.pkl", b"data.xml")


NAMED = ("{}", "step-{:08d}", "global_step_{}", "checkpoint-{}", "epoch={}-val")
PARTS = {
    "model.safetensors": safetensors(640),
    "lit_model.pth": torch_zip(),
    "policy/model_state.pt": torch_zip(),
    "deep/er/pytorch_model.bin": torch_zip(),
    "loss=0.45.ckpt": torch_zip(),
    "model.weights.h5": hdf5(),
    "params.npz": plain_zip(),
    "model.keras": plain_zip(),
    "vecs.zip": plain_zip(),
}


@pytest.mark.parametrize("template", NAMED)
@pytest.mark.parametrize("part", PARTS)
def test_a_part_that_contradicts_its_bytes_makes_none_of_it_also_under_a_template(
    part: str, template: str, work_dir: Path
) -> None:
    steps = [template.format(step) for step in (1, 2, 3)]
    for hours, name in zip((9, 8, 7), steps, strict=True):
        directory(work_dir / name, {part: PARTS[part], "config.yaml": b"x: 1"}, hours_ago=hours)
    newest = work_dir / steps[2] / part
    os.truncate(newest, newest.stat().st_size // 2)
    aged(work_dir / steps[2], 7)
    assert api.latest(work_dir, Policy(templates=(template,))) == work_dir / steps[1]
    assert [d.checkpoint.name for d in a_pass(work_dir, templates=(template,), **ONE).pruned] == [steps[0]]
    assert api.verify(work_dir / steps[2]).state is State.INCOMPLETE


@pytest.mark.parametrize("missing", [".metadata", "__1_0.distcp", "short"])
def test_a_distributed_checkpoint_one_level_down_is_held_against_its_metadata(missing: str, work_dir: Path) -> None:
    shards = {"__0_0.distcp": 100, "__1_0.distcp": 100}
    for hours, step in zip((9, 8, 7), (10, 20, 30), strict=True):
        files = {f"actor/{name}": b"s" * size for name, size in shards.items()}
        files |= {"actor/.metadata": dcp_metadata(shards), "data/data.pt": torch_zip()}
        directory(work_dir / f"step_{step}", files, hours_ago=hours)
    actor = work_dir / "step_30" / "actor"
    if missing == "short":
        os.truncate(actor / "__0_0.distcp", 50)
    else:
        (actor / missing).unlink()
    aged(work_dir / "step_30", 7)
    a_pass(work_dir, templates=("step_{}",), **ONE)
    assert left(work_dir) == ["step_20", "step_30"]


def test_a_shard_one_level_down_that_is_younger_than_its_metadata_is_a_doubt(work_dir: Path) -> None:
    shards = {"__0_0.distcp": 100, "__1_0.distcp": 100}
    for hours, step in zip((9, 8, 7), (10, 20, 30), strict=True):
        files = {f"actor/{name}": b"s" * size for name, size in shards.items()}
        directory(work_dir / f"step_{step}", files | {"actor/.metadata": dcp_metadata(shards)}, hours_ago=hours)
    late = work_dir / "step_30" / "actor" / "__1_0.distcp"
    late.write_bytes(b"s" * 100)
    a_pass(work_dir, templates=("step_{}",), settle_s=0, **ONE)
    assert left(work_dir) == ["step_20", "step_30"]
    third = api.plan(work_dir, Policy(templates=("step_{}",), settle_s=0)).decisions[-1].checkpoint
    assert third.state is State.DOUBTFUL
    assert third.evidence.startswith("actor/__1_0.distcp is ")
    assert "younger than actor/.metadata" in third.evidence


@pytest.mark.parametrize(
    "files",
    [
        {"model/w.safetensors": safetensors(), "optimizer/o.pt": torch_zip(), "random/r.pt": torch_zip()},  # nanotron
        {"actor/model_world_size_1_rank_0.pt": torch_zip(), "dataloader.pt": torch_zip()},  # EasyR1
        {"policy/model_world_size_1_rank_0.pt": torch_zip(), "data.pt": torch_zip()},
        {"config.yaml": b"x", "model.safetensors": safetensors(), "optimizer.pt": torch_zip()},
        {"common.pt": torch_zip(), "model.pt": torch_zip()},
        {"rank1.pth": torch_zip(), "rank2.pth": torch_zip()},
        {"mp_rank_00/model.ckpt": torch_zip()},
        {"model_and_optim/state.pt": torch_zip()},
        {"training_args.bin": torch_zip(), "optimizer.pt": torch_zip(), "mm_projector.bin": torch_zip()},
        {"pytorch_model_fsdp_0/__0_0.distcp": b"", "model.pt": torch_zip()},
    ],
    ids=lambda files: next(iter(files)),
)
def test_no_frameworks_marker_is_asked_for_of_what_somebody_has_named(files: dict[str, bytes], work_dir: Path) -> None:
    files = {path: content for path, content in files.items() if content}
    for hours, step in zip((9, 8, 7), (1, 2, 3), strict=True):
        directory(work_dir / str(step), files, hours_ago=hours)
    assert [d.checkpoint.name for d in a_pass(work_dir, templates=("{}",), **ONE).pruned] == ["1", "2"]
    part = next(path for path in files if not path.endswith(".yaml"))
    directory(work_dir / "4", {**files, part: files[part][:-30]}, hours_ago=6)
    assert a_pass(work_dir, templates=("{}",), **ONE).pruned == ()
    assert api.latest(work_dir, Policy(templates=("{}",))) == work_dir / "3"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("model-{}.safetensors", b"\0\0\0"),
        ("model-{}.safetensors", struct.pack("<Q", 2**40) + b'{"a"'),
        ("model-{}.safetensors", struct.pack("<Q", 5000) + b'{"a": 1}'),
        ("model-{}.safetensors", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        ("weights-{}.npz", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"),
        ("weights-{}.h5", b"/annex/objects/SHA256E-s9--00.h5\n"),
        ("weights-{}.npz", plain_zip()[:-1]),
        ("weights-{}.npz", b"P"),
        ("weights-{}.npz", b"not one"),
        ("model-{}.keras", plain_zip()[: len(plain_zip()) // 2]),
        ("weights-{}.h5", hdf5()[:-1]),
        ("weights-{}.h5", hdf5(says=2**62)),
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_bytes_that_belie_their_name_or_themselves_take_no_ones_place(
    inside: bool, name: str, content: bytes, work_dir: Path
) -> None:
    whole = {"safetensors": safetensors(), "npz": plain_zip(), "keras": plain_zip(), "h5": hdf5()}[name.split(".")[-1]]
    template = "{}" if inside else name
    for hours, step in zip((9, 8, 7), (1, 2, 3), strict=True):
        place = work_dir / str(step) / "a" if inside else work_dir
        place.mkdir(parents=True, exist_ok=True)
        path = place / name.format(step)
        path.write_bytes(content if step == 3 else whole)
        if inside:
            (place / "model.pt").write_bytes(torch_zip())
        aged(work_dir / str(step) if inside else path, hours)
    a_pass(work_dir, templates=(template,), **ONE)
    assert left(work_dir) == [template.format(2), template.format(3)]
