"""Series that have the same steps and are written in turn may be one; two runs side by side are not."""

from __future__ import annotations

import pytest

from ckptd.core.in_turn import are_in_turn


@pytest.mark.parametrize(("one", "other", "expected"), [
    pytest.param({1: 10, 2: 20}, {1: 11, 2: 21}, True, id="each step of both before the next"),
    pytest.param({1: 10, 2: 20}, {1: 9, 2: 19}, True, id="whichever comes first"),
    pytest.param({1: 10, 2: 20, 3: 30}, {1: 11, 2: 21}, True, id="the newest may be being written"),
    pytest.param({1: 10, 2: 20, 3: 30}, {1: 11, 3: 31}, False, id="no other may lack"),
    pytest.param({1: 10}, {1: 11}, False, id="one step tells nothing"),
    pytest.param({1: 10, 2: 20}, {1: 110, 2: 120}, False, id="two runs, one after the other"),
    pytest.param({1: 10, 2: 20, 3: 30}, {1: 15, 2: 30, 3: 45}, False, id="two runs side by side"),
    pytest.param({1: 10, 2: 20}, {3: 11, 4: 21}, False, id="other steps"),
    pytest.param({2: 10, 1: 20}, {2: 11, 1: 21}, False, id="a resumed run tells nothing"),
])  # fmt: skip
def test_series_may_be_one_where_they_are_saved_in_turn(
    one: dict[int, int], other: dict[int, int], expected: bool
) -> None:
    assert are_in_turn(one, other) is expected
    assert are_in_turn(other, one) is expected
