"""What a file says, by its name and its bytes: names, paths, steps, or nothing."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.keyed import given as names_given
from ckptd.core.layouts import TRACKERS
from ckptd.core.newest import latest_of
from ckptd.core.reason import Kind
from ckptd.core.trackers import LARGEST, NOTHING, Told, meant, reasons_by, rows_of, said_in

EPOCHS = [names_given("epoch_{}.pth")]
SHARDS = [names_given("ckpt-{}.index"), names_given("ckpt-{}.data-00000-of-00001")]
STATE = b"""model_checkpoint_path: "ckpt-5"
all_model_checkpoint_paths: "ckpt-4"
all_model_checkpoint_paths: "/runs/a/ckpt-5"
"""
EASY_R1 = json.dumps({
    "best_global_step": 10, "best_val_reward_score": 0.5, "last_global_step": 20,
    "last_actor_path": "/runs/a/global_step_20/actor",
}).encode()  # fmt: skip


def named(file: str, content: bytes, series: list = EPOCHS, steps: range = range(1, 9)) -> list[str]:
    """Which checkpoints of these series a file protects, of those that are there."""
    there = [(each.name_of(step), step) for each in series for step in steps]
    told = Told(file, said_in(content, rows_of(file, TRACKERS)), bool(rows_of(file, TRACKERS)))
    return sorted(reasons_by([told], series, there).keys() & {name for name, _ in there})


@pytest.mark.parametrize(("content", "expected"), [
    (b"epoch_3.pth", ["epoch_3.pth"]),
    (b"  epoch_3.pth\r\n\n", ["epoch_3.pth"]),
    (b"/on/another/host/epoch_3.pth\n", ["epoch_3.pth"]),
    (b"s3://bucket/run/epoch_3.pth", ["epoch_3.pth"]),
    (b"./epoch_3.pth/", ["epoch_3.pth"]),
    (b"epoch_3.pth/model", ["epoch_3.pth"]),
    (b'"epoch_3.pth"', ["epoch_3.pth"]),
    (b'{"best": "runs/a/epoch_3.pth", "all": ["epoch_5.pth", 7, null], "score": 8}', ["epoch_3.pth", "epoch_5.pth"]),
    (STATE.replace(b"ckpt-5", b"epoch_5.pth"), ["epoch_5.pth"]),
    (b"epoch_3.pth\nepoch_4.pth\n", []),
    (b"saved epoch_3.pth", []),
    (b"resume: epoch_3.pth", []),
    (b"best_epoch_3.pth", []),
    (b"/data/we\nird/epoch_3.pth", []),
    (b"epoch_3\0.pth", []),
    (b"\xff\xfe/epoch_3.pth", ["epoch_3.pth"]),
    (b"\xff\xfee\0p\0o\0", []),
    (b'{"best": "epoch_3.pth"', []),
    (b"[" * LARGEST, []),
    (b"", []),
    (b"\n", []),
    (b"3", []),
    (b'{"epoch": 3, "last_global_step": 3, "step": "3"}', []),
])  # fmt: skip
def test_a_file_that_nobody_knows_names_one_thing_or_has_names_among_its_values(
    content: bytes, expected: list[str]
) -> None:
    assert named("notes.txt", content) == expected


@pytest.mark.parametrize("file", ["seed", "version", "world_size", "num_gpus", "epoch", "step.txt", "latest.json"])
@pytest.mark.parametrize("content", [b"8", b"8\n", b"8.0", b"+8", b'"8"', b"[8]"])
def test_a_number_alone_names_nothing_in_a_file_that_nobody_knows(file: str, content: bytes) -> None:
    assert named(file, content) == []
    assert named(file, content, [names_given("{}")]) == []


@pytest.mark.parametrize(("file", "content", "template", "expected"), [
    ("LATEST", b"8", "epoch_{}.pth", ["epoch_8.pth"]),
    ("LATEST", b"epoch_0_step_3\n", "epoch_0_step_{}", ["epoch_0_step_3"]),
    ("LATEST", b"epoch_3", "epoch_{}.pth", ["epoch_3.pth"]),
    ("LOWEST_VAL", b"epoch_0_step_1", "epoch_0_step_{}", ["epoch_0_step_1"]),
    ("latest_ckpt_global_step.txt", b"2", "global_step_{}", ["global_step_2"]),
    ("latest_checkpointed_iteration.txt", b"2\n", "iter_{:07d}", ["iter_0000002"]),
    ("latest.txt", b"2", "{}", ["2"]),
    ("last_checkpoint.rank_7", b"model_0000002.rank_7.pth", "model_{:07d}.rank_7.pth", ["model_0000002.rank_7.pth"]),
    ("checkpoint_tracker.json", EASY_R1.replace(b"10", b"1").replace(b"20", b"2"), "global_step_{}",
     ["global_step_1", "global_step_2"]),
    ("latest", b"global_step1\nglobal_step2\n", "global_step{}", ["global_step1", "global_step2"]),
    ("LATEST", "٨".encode(), "epoch_{}.pth", []),
    ("LATEST", b"-8", "epoch_{}.pth", []),
    ("LATEST", b"8" * 400, "epoch_{}.pth", []),
    ("latest_checkpointed_iteration.txt", b"release", "iter_{:07d}", []),
])  # fmt: skip
def test_a_file_that_a_framework_knows_may_hold_a_number_and_several_lines(
    file: str, content: bytes, template: str, expected: list[str]
) -> None:
    assert named(file, content, [names_given(template)]) == expected


@pytest.mark.parametrize(("text", "expected"), [
    (b"500\n", {"iter_0000500", "global_step_500"}),
    (b"release", set()), (b"-1", set()), ("٥٠٠".encode(), set()), (b"1" * 400, set()), (b"5.0", set()), (b"", set()),
])  # fmt: skip
def test_a_tracker_that_two_frameworks_have_names_the_checkpoint_of_each(text: bytes, expected: set[str]) -> None:
    assert said_in(text, rows_of("latest_checkpointed_iteration.txt", TRACKERS)).names == expected


def test_tensorflows_names_stand_for_every_file_of_a_save() -> None:
    steps = {step: [f"ckpt-{step}.data-00000-of-00001", f"ckpt-{step}.index"] for step in (4, 5)}
    assert named("checkpoint", STATE, SHARDS) == sorted(steps[4] + steps[5])
    told = Told("checkpoint", said_in(STATE, rows_of("checkpoint", TRACKERS)), known=True, written_ns=7)
    there = [(name, 5) for name in steps[5]]
    assert latest_of([told], SHARDS, there) == [("checkpoint", each.text, 5, 7) for each in SHARDS]
    (group,) = [names_given(" + ".join(each.text for each in SHARDS))]
    assert latest_of([told], [group], there) == [("checkpoint", group.text, 5, 7)]
    assert meant(told.said, [group], []) >= {*steps[4], *steps[5]}


def test_a_step_is_one_of_each_series_that_has_it() -> None:
    told = [Told("LATEST", said_in(b"5", rows_of("LATEST", TRACKERS)), known=True)]
    there = [("epoch_5.pth", 5), ("ckpt-4.index", 4)]
    assert [each.series for each in latest_of(told, [*EPOCHS, *SHARDS], there)] == ["epoch_{}.pth"]


def test_a_number_is_the_latest_only_of_what_its_framework_calls_so() -> None:
    told = [Told("latest_checkpointed_iteration.txt", said_in(b"5", TRACKERS["latest_checkpointed_iteration.txt"]))]
    series = [*EPOCHS, names_given("iter_{:07d}")]
    assert latest_of(told, series, [("epoch_5.pth", 5)]) == [("latest_checkpointed_iteration.txt", "iter_{:07d}", 5, 0)]


@pytest.mark.parametrize(("file", "content", "newest"), [
    ("checkpoint", STATE, ["ckpt-5"]),
    ("checkpoint_tracker.json", EASY_R1, ["global_step_20"]),
    ("latest", b"global_step500", ["global_step500"]),
    ("LATEST", b"/runs/a/epoch_0_step_3", ["epoch_0_step_3"]),
    ("LATEST", b"3", [3]),
    ("latest_checkpointed_iteration.txt", b"500", ["iter_0000500", "global_step_500"]),
    ("last_checkpoint.rank_0", b"model_0000002.rank_0.pth", ["model_0000002.rank_0.pth"]),
    ("latest", b"global_step500\nglobal_step600", []),
    ("LOWEST_VAL", b"epoch_0_step_3", []),
    ("best_dev_checkpoint", STATE, []),
    ("last_ckpt", b"epoch_3.pth", []),
    ("latest_universal", b"global_step500_universal", []),
    ("last.txt", b"epoch_3.pth", []),
    ("my_latest.json", EASY_R1, []),
])  # fmt: skip
def test_only_a_frameworks_latest_says_which_is_the_newest(file: str, content: bytes, newest: list[str | int]) -> None:
    assert list(said_in(content, rows_of(file, TRACKERS)).newest) == newest


def test_what_cannot_be_read_may_name_any_and_the_reason_says_what_to_do() -> None:
    told = [Told("LATEST", known=True, trouble="Permission denied")]
    reasons = reasons_by(told, EPOCHS, [("epoch_1.pth", 1), ("epoch_2.pth", 2)])
    text = "LATEST cannot be read (Permission denied), and may name any: make it readable, or remove it"
    assert reasons == {"epoch_1.pth": [text], "epoch_2.pth": [text]}


def test_a_reason_tells_a_framework_from_a_person() -> None:
    told = [Told(name, said_in(b"epoch_1.pth"), known=name == "latest") for name in ("latest", "notes")]
    (reasons,) = reasons_by(told, EPOCHS, []).values()
    assert [(reason.kind, reason) for reason in reasons] == [
        (Kind.POINTER, "named by latest"), (Kind.TRACKER, "named by notes"),
    ]  # fmt: skip


def test_a_name_that_is_not_there_is_meant_all_the_same() -> None:
    assert meant(said_in(b"5", rows_of("LATEST", TRACKERS)), EPOCHS, []) == {"epoch_5.pth"}
    assert meant(said_in(STATE), SHARDS, []) >= {"ckpt-4.index", "ckpt-5.index"}


@given(st.binary(max_size=200) | st.sampled_from([b"epoch_1.pth", b"1", STATE, EASY_R1]))
def test_whatever_a_file_holds_it_is_no_error_and_who_knows_it_hears_no_less(content: bytes) -> None:
    known, unknown = said_in(content, rows_of("LATEST", TRACKERS)), said_in(content)
    assert unknown.names <= known.names
    assert (unknown.steps, unknown.newest) == (frozenset(), ())
    assert unknown == NOTHING or unknown.names
