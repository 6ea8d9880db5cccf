"""A policy that can never be meant is refused where it is made."""

from __future__ import annotations

from typing import Any

import pytest

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
