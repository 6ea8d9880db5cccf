"""Which series a name belongs to: by the policy's own templates, by a layout, or to be left alone."""

from __future__ import annotations

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.finder import Finder
from ckptd.core.layouts import LAYOUTS, layouts_called
from ckptd.core.naming import Template
from ckptd.core.policy import Policy

EVERYTHING = Policy(layouts=tuple(layout.name for layout in LAYOUTS)).finder()


def found(name: str, policy: Policy = Policy()) -> tuple[str, int] | None:  # noqa: B008
    match = policy.finder().match(name)
    return (match[0].names.text, match[1]) if match and not match[0].alone else None


@pytest.mark.parametrize(("layout", "name", "text", "step"), [
    ("mmcv", "epoch_3.pth", "epoch_{}.pth", 3),
    ("lightning", "best-epoch=02.ckpt", "best-epoch={}.ckpt", 2),
    ("transformers", "checkpoint-500", "checkpoint-{}", 500),
    ("deepspeed", "global_step500", "global_step{}", 500),
    ("megatron", "iter_0000500", "iter_{:07d}", 500),
    ("megatron", "iter_12345678", "iter_{:07d}", 12345678),
    ("orbax", "0", "{}", 0),
    ("orbax", "my_run_12", "my_run_{}", 12),
    ("verl", "global_step_5", "global_step_{}", 5),
    ("ultralytics", "epoch5.pt", "epoch{}.pt", 5),
    ("detectron2", "model_0004999.pth", "model_{:07d}.pth", 4999),
    ("timm", "checkpoint-5.pth.tar", "checkpoint-{}.pth.tar", 5),
    ("fairseq", "checkpoint5.pt", "checkpoint{}.pt", 5),
    ("fairseq", "checkpoint_5_1000.pt", "checkpoint_{}_{}.pt", 1000),
    ("olmo", "step1000-unsharded", "step{}-unsharded", 1000),
    ("kohya", "lora-000010.safetensors", "lora-{:06d}.safetensors", 10),
    ("kohya", "lora-step00000010.safetensors", "lora-step{:08d}.safetensors", 10),
    ("kohya", "a b-000010-state", "a b-{:06d}-state", 10),
])  # fmt: skip
def test_a_name_belongs_to_the_series_of_its_layout(layout: str, name: str, text: str, step: int) -> None:
    assert (text, step) == found(name, Policy(layouts=(layout,)))


@pytest.mark.parametrize(("layout", "name"), [
    ("transformers", "checkpoint-٥"), ("transformers", "checkpoint-05"), ("transformers", "checkpoint-5\n"),
    ("transformers", "checkpoint-" + "9" * 300), ("deepspeed", "global_step_5"), ("verl", "global_step5"),
    ("megatron", "iter_500"), ("megatron", "iter_00000500"), ("detectron2", "model_499.pth"), ("orbax", "00"),
    ("orbax", "-5"), ("orbax", ".ckptd_5"), ("orbax", "5.orbax-checkpoint-tmp"), ("orbax", "a/b_5"), ("orbax", "a\n_5"),
    ("kohya", "lora-00010.safetensors"), ("kohya", "lora-{}-000010.safetensors"), ("kohya", "-000010.safetensors"),
    ("kohya", "model-00001-of-00003.safetensors"), ("ultralytics", "epoch.pt"), ("timm", "checkpoint-5.pth"),
    ("fairseq", "checkpoint_5.pt"), ("fairseq", "checkpoint1-rank-0.pt"), ("olmo", "step-5"), ("torchtitan", "step5"),
])  # fmt: skip
def test_what_is_only_like_a_name_belongs_to_none(layout: str, name: str) -> None:
    finder = Policy(layouts=(layout,)).finder()
    finder.learn([name] if name != "00" else [])
    assert finder.match(name) is None


def test_somebodys_own_template_goes_before_every_layout() -> None:
    both = Policy(templates=("checkpoint-{:04d}", "checkpoint-{}"), layouts=("transformers",)).finder()
    first, second = both.match("checkpoint-0005"), both.match("checkpoint-5")
    assert first is not None
    assert second is not None
    assert (first[0].names.text, second[0].names.text) == ("checkpoint-{:04d}", "checkpoint-{}")
    assert (first[0].kinds, second[0].kinds) == (None, None)


def test_one_name_of_two_layouts_is_one_series_of_what_either_writes() -> None:
    match = Policy(layouts=("mmcv", "mmengine")).finder().match("epoch_3.pth")
    assert match is not None
    assert (match[0].files, match[0].directories) == (True, True)
    mmcv, mmengine = layouts_called(["mmcv", "mmengine"])
    assert match[0].kinds == mmcv.kinds | mmengine.kinds


@pytest.mark.parametrize("text", [
    "epoch_{}.pth", "epoch={}-step={}.ckpt", "epoch={}-val_loss={}.ckpt", "checkpoint-{}", "checkpoint_{}", "step-{}",
])  # fmt: skip
def test_what_is_recognised_is_known_again_by_its_text(text: str) -> None:
    names = Policy().finder().series_of(text)
    assert names is not None
    assert names.text == text


@pytest.mark.parametrize(
    "text", ["global_step{}", "iter_{:07d}", "{}", "lora-{:06d}.safetensors", "sample-epoch={}.ckpt"]
)
def test_what_only_an_option_looks_for_is_known_again_with_it_alone(text: str) -> None:
    assert Policy().finder().series_of(text) is None
    names = EVERYTHING.series_of(text)
    assert names is not None
    assert names.text == text


def test_what_is_remembered_of_padded_names_is_known_again() -> None:
    names = Policy(layouts=("orbax",)).finder().series_of("ckpt_{:04d}")
    assert names is not None
    assert names.text == "ckpt_{:04d}"


def test_zeros_tell_the_width_of_orbaxs_names_alone() -> None:
    finder = Policy(layouts=("kohya", "orbax")).finder()
    names = ["dog-0003.safetensors", "cat-000003.safetensors", "ckpt_08", "ckpt_10"]
    finder.learn(names)
    found = [match[0].names.text if (match := finder.match(name)) else None for name in names]
    assert found == [None, "cat-{:06d}.safetensors", "ckpt_{:02d}", "ckpt_{:02d}"]


def test_series_of_keys_are_told_apart_in_any_order() -> None:
    names = ["epoch=1-step=2.ckpt", "epoch=1.ckpt", "epoch=1-a=2.ckpt", "epoch=1-step=2-v1.ckpt", "epoch=3-step=4.ckpt"]
    texts = ["epoch={}-step={}.ckpt", "epoch={}.ckpt", "epoch={}-a={}.ckpt", *["epoch={}-step={}.ckpt"] * 2]
    for order in itertools.permutations(range(5)):
        finder = Policy().finder()
        found = {at: match[0].names.text if (match := finder.match(names[at])) else None for at in order}
        assert texts == [found[at] for at in range(5)]


@given(st.text(max_size=30) | st.from_regex(r"[a-z_=-]{0,12}[0-9]{1,9}[a-z_.=-]{0,14}", fullmatch=True))
def test_a_name_that_is_found_is_one_that_its_series_reads(name: str) -> None:
    match = EVERYTHING.match(name)
    if match is not None:
        known, step = match
        assert known.names.step_of(name) == step >= 0
        if known.names.has_grid:
            assert known.names.name_of(step) == name


@pytest.mark.parametrize("name", [
    "a" * 254, "_" * 254, "a_" * 127, "a=" * 127, "epoch=1-" * 31, "epoch=1" * 36, "1" * 254, "1-" * 127,
    "a-" * 127 + "1",
    "-" * 249 + ".ckpt", "a=1_" * 62 + ".ckpt", "epoch=1-" + "a" * 240 + ".ckpt", "0" * 242 + ".safetensors",
])  # fmt: skip
def test_no_name_takes_long_to_look_up(name: str) -> None:
    everything = Finder((Template("x{}"),), LAYOUTS, asked=True, others=LAYOUTS)
    began = time.process_time()
    for _ in range(100):
        everything.match(name)
    assert time.process_time() - began < 0.5


POLICIES = [
    pytest.param(Policy(), id="by itself"),
    pytest.param(Policy(templates=("net_{}.pth", "{:04d}.pt")), id="templates"),
    pytest.param(Policy(layouts=tuple(layout.name for layout in LAYOUTS)), id="all layouts, by name"),
    *(pytest.param(Policy(layouts=(layout.name,)), id=layout.name) for layout in LAYOUTS),
]
NAMES = [
    "epoch_3.pth", "checkpoint-5", "net_7.pth", "0007.pt", "epoch=1-step=2.ckpt", "best-epoch=1.ckpt", "global_step5",
    "7", "my_run_12", "lora-000010.safetensors", "iter_0000500", "ep1-ba10-rank0.pt", "ckpt-1.index", "model_000100.pt",
    "checkpoint1-rank-0.pt", "opt000100.pt", "epoch5.pt", "train.log", "epoch_.pth", "x", "1x", "last-v1.ckpt",
    "ckpt-1.data-00000-of-00001", "step-5.tmp",
]  # fmt: skip


@pytest.mark.parametrize("policy", POLICIES)
def test_a_name_that_could_be_found_is_one_that_is_found_among_some_others(policy: Policy) -> None:
    for name in NAMES:
        finder = policy.finder()
        if finder.match(name) is None:
            finder.learn([name])
        if finder.match(name) is not None:
            assert finder.could_match(name), name
        elif "=" not in name:  # which keys make a series, the names themselves tell
            assert not finder.could_match(name), name


def test_where_a_policy_names_what_it_is_about_nothing_else_is_even_listed() -> None:
    assert Policy().finder().could_match("ep1-ba10-rank0.pt")
    assert not Policy(layouts=("mmcv",)).finder().could_match("ep1-ba10-rank0.pt")


def test_a_word_before_the_keys_is_a_series_only_where_somebody_asks_for_the_layout() -> None:
    assert found("sample-epoch=3.ckpt") is None
    assert found("sample-epoch=3.ckpt", Policy(layouts=("lightning",))) == ("sample-epoch={}.ckpt", 3)


def test_a_template_that_begins_with_a_digit_or_has_none_before_its_step_is_found_too() -> None:
    policy = Policy(templates=("2d_{}.pth", "x{:x}.pt"))
    assert found("2d_7.pth", policy) == ("2d_{}.pth", 7)
    assert found("xff.pt", policy) == ("x{:x}.pt", 255)
    assert found("3d_7.pth", policy) is None


def test_what_is_remembered_is_found_by_its_own_name_or_as_the_layout_that_it_is_of() -> None:
    finder = Policy().finder(remembered=[Template("net_{}.pth"), Template("global_step{}")])
    own, deepspeed = finder.match("net_3.pth"), finder.match("global_step5")
    assert own is not None
    assert deepspeed is not None
    assert (own[0].kinds, own[1], own[0].alone) == (None, 3, "")
    (layout,) = layouts_called(["deepspeed"])
    assert (deepspeed[0].kinds, deepspeed[1], deepspeed[0].alone) == (layout.kinds, 5, "")


@pytest.mark.parametrize("layout", [layout.name for layout in LAYOUTS])
def test_only_the_names_of_orbax_are_to_be_learnt(layout: str) -> None:
    assert Policy(layouts=(layout,)).finder().learns is (layout == "orbax")


@pytest.mark.parametrize(("text", "name", "directories"), [
    ("net_{}.pth", "net_1.pth", False), ("net_{}", "net_1", True), ("net_{}.safetensors", "net_1.safetensors", False),
])  # fmt: skip
def test_a_template_stands_for_files_and_without_an_ending_for_directories_too(
    text: str, name: str, directories: bool
) -> None:
    match = Policy(templates=(text,)).finder().match(name)
    assert match is not None
    assert (match[0].files, match[0].directories) == (True, directories)
