"""Inside the real frameworks on two ranks: buffers are averaged, and a save that fails on one rank raises on both."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from ..shim.conftest import TwoRanks, two_ranks  # noqa: F401

pytestmark = pytest.mark.real
SCENARIOS = ("averaged_by_mmcv", "hook_in_mmcv", "hook_in_mmengine")


@pytest.fixture(autouse=True, scope="module")
def frameworks(framework: Callable[[str, str], None]) -> None:
    framework("mmcv", "1.7.2")
    framework("mmengine", "0.10.7")


def test_floats_are_averaged_bit_by_bit_as_by_mmcv_which_raises_on_integers(two_ranks: TwoRanks) -> None:  # noqa: F811
    assert two_ranks("averaged_by_mmcv") == [[6, True], [6, True]]


@pytest.mark.parametrize("name", ["mmcv", "mmengine"])
def test_the_hook_averages_before_each_save_and_lets_nobody_wait(name: str, two_ranks: TwoRanks) -> None:  # noqa: F811
    first, second = two_ranks(f"hook_in_{name}")
    assert first["means"] == pytest.approx(first["expected"])
    assert first["told"] == "[Errno 28] No space left on device"
    assert second["told"] == "rank 0: [Errno 28] No space left on device"
    for rank in (first, second):
        assert rank["there"] == ["epoch_1.pth"]
        assert rank["remote"].startswith("checkpoints go to store://runs/run by ")
        same, other = rank["twins"]
        assert same.startswith(f"{rank['out_dir']}: another hook of this run saves epoch_{{}}.pth there. Take one")
        assert other == ""


def test_in_mmcv_the_runner_says_what_the_names_count(two_ranks: TwoRanks) -> None:  # noqa: F811
    declared = ".ckptd/schedules/epoch_{}.pth.json"
    for rank in two_ranks("hook_in_mmcv"):
        assert rank["other"] == [declared, "epoch_2.pth", "epoch_4.pth"]
    schedule = json.loads((two_ranks.place / "hook_in_mmcv/other" / declared).read_text())
    assert (schedule["unit"], schedule["interval"], schedule["max_keep"]) == ("epoch", None, 1)
