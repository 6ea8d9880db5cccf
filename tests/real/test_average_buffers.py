"""`average_buffers` gives floats what the real mmcv gives them, bit by bit (which raises where there are integers)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ..shim.conftest import TwoRanks, two_ranks  # noqa: F401

pytestmark = pytest.mark.real
SCENARIOS = ("averaged_by_mmcv",)


@pytest.fixture(autouse=True, scope="module")
def mmcv(framework: Callable[[str, str], None]) -> None:
    framework("mmcv", "1.7.2")


def test_floats_are_averaged_as_by_mmcv(two_ranks: TwoRanks) -> None:  # noqa: F811
    assert two_ranks("averaged_by_mmcv") == [[6, True], [6, True]]
