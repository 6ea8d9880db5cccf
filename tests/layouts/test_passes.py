"""Whole passes over what frameworks leave: halves, lost parts, copies, and a second run in the same directory."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

import ckptd

from ..conftest import a_pass, kept, left, picture, pointed, torch_zip
from .writers import Run, keras_hdf5, keras_zip, the


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


BASES = {
    "icefall": ("best-train-loss.pt", "best-valid-loss.pt", "pretrained.pt", "epoch-99-avg-5.pt"),
    "yolov7": ("last.pt", "best.pt", "init.pt", "best_012.pt", "yolov7.pt"),
    "yolox": ("latest_ckpt.pth", "best_ckpt.pth", "last_epoch_ckpt.pth", "yolox_s.pth"),
    "ultralytics": ("last.pt", "best.pt", "yolov5s.pt", "epoch_5.pt"),
    "keras": ("best.keras", "model.keras", "mask_rcnn_coco.h5", "resnet50_weights.h5"),
    "nemo": ("gpt--val_loss=2.10-step=100-consumed_samples=800.0-last.ckpt", "gpt.nemo"),
    "speechbrain": ("CKPT+best.ckpt", "embedding_model.ckpt"),
}


@pytest.mark.parametrize("layout", BASES)
def test_what_a_run_began_with_and_copies_stay_beside_its_saves(layout: str, work_dir: Path) -> None:
    for name in BASES[layout]:
        (work_dir / name).write_bytes(torch_zip())
        os.utime(work_dir / name, (1, 1))  # the oldest there
    names = Run(work_dir, the(f"{layout} by epoch" if layout == "icefall" else layout)).saves(range(1, 5))
    a_pass(work_dir, layouts=(layout,), max_keep=1, settle_s=0, trash_ttl_s=0)
    assert {path.name for path in work_dir.iterdir()} == {*BASES[layout], names[3], ".ckptd", "last_ckpt"}


def test_the_same_step_in_two_formats_is_two_series(work_dir: Path) -> None:
    for at, (end, content) in enumerate([(".keras", keras_zip(1)), (".weights.h5", keras_hdf5(1))] * 2):
        place = work_dir / f"{at // 2 + 1:02d}-0.50{end}"
        place.write_bytes(content)
        os.utime(place, ns=(10**18 + at * 10**9,) * 2)
    assert kept(work_dir, layouts=("keras",), max_keep=1, settle_s=0) == ["02-0.50.keras", "02-0.50.weights.h5"]


@pytest.mark.parametrize(("template", "names"), [
    ("epoch-{}.pt", ("epoch-1.pt", "epoch-2.pt")),
    ("{:02d}.h5", ("01.h5", "02.h5")),
    ("{epoch:02d}-{val_loss:.2f}.keras", ("01-0.50.keras", "02-0.40.keras")),
    ("ep{epoch}-ba{batch}", ("ep0-ba1/w.pkl", "ep0-ba2/w.pkl")),
    ("CKPT+{time}", ("CKPT+2024-05-01+12-30-45+00/w.pkl", "CKPT+2024-05-02+12-30-45+00/w.pkl")),
])  # fmt: skip
def test_what_a_template_has_named_is_found_again_though_a_layout_has_that_name_now(
    template: str, names: tuple[str, str], work_dir: Path
) -> None:
    for at, name in enumerate(names):
        path = work_dir / name
        path.parent.mkdir(exist_ok=True)
        # A file that calls itself Keras' is a zip; this one is torch's, which the layout does not take.
        path.write_bytes(torch_zip() if name.endswith(".keras") else b"bytes of no known format")
        os.utime(path, ns=(10**18 + at * 10**9,) * 2)
    a_pass(work_dir, templates=(template,), max_keep=2, settle_s=0)
    assert ckptd.latest(work_dir) == work_dir / names[1].partition("/")[0]
