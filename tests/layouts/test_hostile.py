"""Directories as nobody's framework writes them, and saves over earlier ones: nothing ends a pass, nothing is lost."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

import ckptd
from ckptd import Policy

from ..conftest import PACE, Builder, a_pass, dcp_metadata, left, safetensors, torch_zip
from .test_layouts import states

NO_NAMES = [
    pytest.param("a\0b", id="with a NUL"),
    pytest.param("x" * 300, id="too long"),
    pytest.param("__0_0.distcp/x", id="below a file"),
    pytest.param("\ud800", id="half of a character"),
    pytest.param("loop/x", id="through a link to itself"),
]


def lists(what: str) -> Callable[[str], dict[str, bytes]]:
    """What names the parts of a directory, and names one that no file can be."""
    return {
        "step-1": lambda name: {".metadata": dcp_metadata({name: 1}), "__0_0.distcp": b"s"},
        "epoch_1": lambda name: {
            "a.safetensors.index.json": json.dumps({"weight_map": {"w": name}}).encode(), "config.json": b"{}",
        },
        "1": lambda name: {
            "_CHECKPOINT_METADATA": json.dumps({"commit_timestamp_nsecs": 1, "item_handlers": {name: ""}}).encode()
        },
    }[what]  # fmt: skip


def put(builder: Builder, name: str, files: Mapping[str, bytes]) -> Path:
    place = builder.work_dir / name
    for file, content in files.items():
        (place / file).parent.mkdir(parents=True, exist_ok=True)
        (place / file).write_bytes(content)
        builder.tick(place / file)
    return place


@pytest.mark.parametrize("name", NO_NAMES)
@pytest.mark.parametrize("what", ["step-1", "epoch_1", "1"])
def test_a_part_with_a_name_that_no_file_can_have_is_missing(what: str, name: str, with_checkpoints: Builder) -> None:
    place = put(with_checkpoints, what, lists(what)(name))
    (place / "loop").symlink_to("loop")
    layouts = ("orbax",) if what == "1" else ()
    survey = ckptd.plan(with_checkpoints.work_dir, Policy(max_keep=1, layouts=layouts))
    assert states(survey) == {what: "incomplete"}


@pytest.mark.parametrize(("name", "layout", "files"), [
    pytest.param("global_step1", "deepspeed", ["mp_rank_00_model_states.pt",
                 "zero_pp_rank_99999999999_mp_rank_00_optim_states.pt"], id="a rank without end"),
    pytest.param("global_step_1", "verl", ["actor/model_world_size_99999999999_rank_0.pt", "data.pt"],
                 id="a world without end"),
])  # fmt: skip
def test_a_number_without_end_in_a_name_costs_neither_time_nor_memory(
    name: str, layout: str, files: list[str], with_checkpoints: Builder
) -> None:
    put(with_checkpoints, name, {file: torch_zip() for file in files})
    began_s = time.process_time()
    assert states(ckptd.plan(with_checkpoints.work_dir, Policy(layouts=(layout,)))) == {name: "incomplete"}
    assert time.process_time() - began_s < 2 * PACE


@pytest.mark.parametrize("marker", [".metadata", "trainer_state.json", "model.safetensors.index.json", "rank0.pth",
                                    "_CHECKPOINT_METADATA", "metadata.json"])  # fmt: skip
def test_a_socket_at_a_markers_name_marks_nothing(
    marker: str, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("epoch_1", "checkpoint-1", "step-1", "iter_0000001")
    for name in names:
        (with_checkpoints.work_dir / name).mkdir()
        monkeypatch.chdir(with_checkpoints.work_dir / name)  # a socket's path is a short one
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(marker)
    with_checkpoints("epoch_1.pth", "epoch_2.pth")
    a_pass(with_checkpoints.work_dir, max_keep=1, interval=1)
    assert left(with_checkpoints.work_dir) == sorted(("epoch_2.pth", *names), key=lambda name: ("2" in name, name))


def saved_over(builder: Builder, content: bytes) -> None:
    """Three saves that a pass has seen; then a resumed run is in the middle of the second, between two shards."""
    for step in (100, 200, 300):
        builder.shards(f"step-{step}")
    a_pass(builder.work_dir, max_keep=3)
    (builder.work_dir / "step-200/__0_0.distcp").write_bytes(content)


@pytest.mark.parametrize("content", [pytest.param(b"s" * 10, id="shorter yet"), pytest.param(b"s" * 400, id="longer")])
def test_what_is_written_over_in_place_is_in_flight_though_nobody_has_it_open_and_its_old_marker_is_there(
    content: bytes, with_checkpoints: Builder
) -> None:
    saved_over(with_checkpoints, content)
    survey = ckptd.plan(with_checkpoints.work_dir, Policy(max_keep=1))
    assert states(survey) == {"step-100": "complete", "step-200": "in flight", "step-300": "complete"}
    assert survey.prune == ("step-100",)


def test_what_was_written_over_and_left_goes_once_it_is_quiet(with_checkpoints: Builder) -> None:
    saved_over(with_checkpoints, b"s" * 10)
    with_checkpoints.tick(with_checkpoints.work_dir / "step-200/__0_0.distcp")
    assert ckptd.plan(with_checkpoints.work_dir, Policy(max_keep=1)).prune == ("step-100", "step-200")


def test_a_shard_written_over_between_the_look_and_the_rename_stays(with_checkpoints: Builder) -> None:
    from ckptd.disk.descriptors import opened_dir
    from ckptd.inspect.scan import entry_of
    from ckptd.workdir import trash

    place = with_checkpoints.shards("step-1")
    with opened_dir(str(with_checkpoints.work_dir)) as fd:
        entry = entry_of("step-1", dir_fd=fd)
        (place / "__0_0.distcp").write_bytes(b"t" * 300)
        (with_checkpoints.work_dir / "trash").mkdir()
        with (
            opened_dir("trash", dir_fd=fd) as trash_fd,
            pytest.raises(trash.ChangedError, match="changed"),
        ):
            trash.put(entry, work_fd=fd, trash_fd=trash_fd, now_ms=1)


def test_thousands_of_series_are_looked_at_in_linear_time(with_checkpoints: Builder) -> None:
    content, work_dir = torch_zip(), with_checkpoints.work_dir
    for number in range(1500):
        (work_dir / f"epoch=1-step=1-m{number}=1.ckpt").write_bytes(content)
    a_pass(work_dir)
    began_s = time.process_time()
    assert len(ckptd.plan(work_dir, Policy(max_keep=1)).plan.series) == 1500
    assert time.process_time() - began_s < 0.8 * PACE


def test_a_declared_template_that_a_layout_reads_as_keys_is_obeyed(
    with_checkpoints: Builder, declare: Callable[..., None]
) -> None:
    work_dir = with_checkpoints(*(f"epoch={number}.ckpt" for number in range(4)))
    declare(work_dir, template="epoch={}.ckpt", unit="epoch", interval=1, max_keep=2)
    (schedule,) = (work_dir / ".ckptd/schedules").iterdir()
    os.utime(schedule, ns=(0, 0))
    survey = ckptd.plan(work_dir, Policy(layouts=("lightning",)))
    assert survey.prune == ("epoch=0.ckpt", "epoch=1.ckpt")


def test_a_name_too_long_for_a_pin_or_scores_is_pruned_and_says_why_it_cannot_be_restored(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    from ckptd.passes.restore import restore

    template = "a" * 245 + "_{}.pth"
    work_dir = with_checkpoints(*(template.format(number) for number in (1, 2)))
    a_pass(work_dir, max_keep=1, templates=(template,), trash_ttl_s=100.0)
    assert left(work_dir) == [template.format(2)]
    assert not caplog.records or "alone" not in caplog.text
    assert restore(str(work_dir), [template.format(1)]) == ([], {template.format(1): "File name too long"})


def test_a_name_of_kohyas_with_more_zeros_takes_no_other_out_of_its_series(with_checkpoints: Builder) -> None:
    names = [f"lora-{number:06d}.safetensors" for number in (1, 2, 3)]
    work_dir = with_checkpoints(*names, "lora-00000004.safetensors", content=safetensors())
    assert ckptd.plan(work_dir, Policy(max_keep=1, layouts=("kohya", "orbax"))).prune == tuple(names[:2])


@pytest.mark.parametrize("path", [
    "../../../etc/passwd", "/etc/passwd", "model/../../x", "", ".", "a\0b", "x" * 300, "loop/x", 7, None, ["model"],
])  # fmt: skip
def test_a_list_of_contents_that_leads_out_of_its_checkpoint_is_not_followed(
    path: object, with_checkpoints: Builder
) -> None:
    manifest = json.dumps({"contents": {"model": {"path": path}}}).encode()
    files = {
        "actor/ckpt_contents.json": manifest,
        "actor/model/dist_ckpt/common.pt": torch_zip(),
        "data.pt": torch_zip(),
    }
    place = put(with_checkpoints, "global_step_1", files)
    (place / "actor/loop").symlink_to("loop")
    survey = ckptd.plan(with_checkpoints.work_dir, Policy(max_keep=1, layouts=("verl",)))
    assert states(survey) == {"global_step_1": "incomplete"}


@pytest.mark.parametrize("manifest", [b"", b"{", b"[]", b'{"contents": []}', b'{"contents": {}}', b"[" * 100_000])
def test_a_list_of_contents_that_is_none_is_damaged(manifest: bytes, with_checkpoints: Builder) -> None:
    put(with_checkpoints, "global_step_1", {"actor/ckpt_contents.json": manifest, "data.pt": torch_zip()})
    survey = ckptd.plan(with_checkpoints.work_dir, Policy(max_keep=1, layouts=("verl",)))
    assert states(survey) == {"global_step_1": "incomplete"}


@pytest.mark.parametrize(("layout", "name", "inside"), [
    ("nemo", "val_loss=0.50-step=1-consumed_samples=8.0", "weights"),
    ("speechbrain", "CKPT+2024-05-01+12-30-45+00", "CKPT.yaml"),
    ("verl", "global_step_1", "actor"),
])  # fmt: skip
def test_something_else_at_the_name_of_a_part_is_none(
    layout: str, name: str, inside: str, with_checkpoints: Builder
) -> None:
    place = put(with_checkpoints, name, {"model.ckpt": b"x", "data.pt": torch_zip()})
    (place / inside).symlink_to(inside)
    survey = ckptd.plan(with_checkpoints.work_dir, Policy(max_keep=1, layouts=(layout,)))
    assert "complete" not in states(survey).values()
