"""A policy that can never be meant is refused where it is made."""

from __future__ import annotations

from typing import Any

import pytest

from ckptd.core.keyed import names_from
from ckptd.core.naming import Template
from ckptd.core.policy import Newest, Policy, Stepped
from ckptd.errors import UsageError


@pytest.mark.parametrize("wrong", [
    pytest.param({"max_keep": 0}, id="keep none"),
    pytest.param({"max_keep": -1}, id="keep less than none"),
    pytest.param({"max_keep": 2.5}, id="keep half a checkpoint"),
    pytest.param({"max_keep": True}, id="keep a truth"),
    pytest.param({"interval": 0}, id="no step between two saves"),
    pytest.param({"rule": "oldest"}, id="an unknown rule"),
    pytest.param({"settle_s": -1.0}, id="a negative time"),
    pytest.param({"trash_ttl_s": float("nan")}, id="no time"),
    pytest.param({"templates": ("ckpt.pth",)}, id="a template without a field"),
    pytest.param({"pointer": "sub/last"}, id="a pointer in another directory"),
    pytest.param({"pointer": ""}, id="a pointer without a name"),
    pytest.param({"pointer": ".ckptd"}, id="a pointer where our own files are"),
    pytest.param({"pointer": "epoch_3.pth"}, id="a pointer with a checkpoint's name"),
])  # fmt: skip
def test_a_policy_that_can_never_be_meant_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        Policy(**wrong)


@pytest.mark.parametrize(("rule", "text", "interval", "on_grid", "expected"), [
    pytest.param("auto", "epoch_{}.pth", 2, False, Stepped(3, 2), id="epochs on an inferred grid are stepped"),
    pytest.param("auto", "epoch_{}.pth", None, False, Newest(3), id="without an interval there is no grid"),
    pytest.param("auto", "model-{}.pt", 2, True, Stepped(3, 2), id="a given interval is a grid for any name"),
    pytest.param("auto", "model-{}.pt", 2, False, Newest(3), id="an inferred one is not for any name"),
    pytest.param("newest", "epoch_{}.pth", 2, True, Newest(3), id="newest is newest"),
    pytest.param("stepped", "model-{}.pt", 2, False, Stepped(3, 2), id="stepped is stepped on an inferred grid too"),
    pytest.param("stepped", "model-{}.pt", None, False, Newest(3), id="but not without any"),
])  # fmt: skip
def test_the_rule_follows_from_the_grid(
    rule: str, text: str, interval: int | None, on_grid: bool, expected: Any
) -> None:
    chosen = Policy(max_keep=3, rule=rule).rule_for(Template(text), interval, max_keep=None, on_grid=on_grid)
    assert expected == chosen


def test_a_policy_without_max_keep_prunes_nothing_unless_the_run_declares_one() -> None:
    template = Template("epoch_{}.pth")
    assert Policy().rule_for(template, 1, max_keep=None, on_grid=True) is None
    assert Policy().rule_for(template, 1, max_keep=2, on_grid=True) == Stepped(2, 1)
    assert Policy(max_keep=5).rule_for(template, 1, max_keep=2, on_grid=True) == Stepped(5, 1)


def test_one_name_stands_for_a_list_of_one_and_none_for_no_list() -> None:
    for field, name in (("templates", "net_{}.pth"), ("layouts", "verl")):
        assert getattr(Policy(**{field: name}), field) == (name,)
        assert getattr(Policy(**{field: [name]}), field) == (name,)
        assert getattr(Policy(**{field: None}), field) == ()


def test_a_pointer_may_have_any_plain_name_that_is_no_checkpoints_here() -> None:
    assert Policy(pointer="checkpoint5.pt").pointer == "checkpoint5.pt"  # fairseq's, which nobody has asked for
    with pytest.raises(UsageError):
        Policy(pointer="checkpoint5.pt", layouts=("fairseq",))
    assert Policy(pointer="p" * 200).pointer == "p" * 200
    with pytest.raises(UsageError):
        Policy(pointer="p" * 201)


def test_the_stepped_rule_walks_to_the_first_hole_and_never_to_step_0() -> None:
    assert list(Stepped(1, 1).walk(4, {0, 1, 2, 3}.__contains__)) == [3, 2, 1]
    assert list(Stepped(2, 1).walk(6, {1, 3, 4}.__contains__)) == [4, 3]
    assert list(Stepped(2, 3).walk(6, {0}.__contains__)) == []
    assert list(Stepped(3, 2).walk(4, {-2, 0}.__contains__)) == []


@pytest.mark.parametrize(("layouts", "text", "steps"), [
    ((), "epoch_{}.pth", True), (("mmcv",), "epoch_{}.pth", True), (("orbax",), "epoch_{}.pth", True),
    (("megatron",), "iter_{:07d}", False), ((), "iter_{:07d}", True), ((), "net_{}.pth", False),
])  # fmt: skip
def test_an_inferred_grid_is_stepped_on_where_the_names_are_mmcvs_and_no_framework_that_was_asked_for(
    layouts: tuple[str, ...], text: str, steps: bool
) -> None:
    rule = Policy(max_keep=2, layouts=layouts).rule_for(Template(text), 1, max_keep=None, on_grid=False)
    assert rule == (Stepped(2, 1) if steps else Newest(2))


def test_names_with_two_numbers_have_no_grid_whatever_is_asked_for() -> None:
    names = names_from("epoch={}-step={}.ckpt")
    policy = Policy(max_keep=2, rule="stepped", interval=1)
    assert policy.rule_for(names, 1, max_keep=None, on_grid=True) == Newest(2)
