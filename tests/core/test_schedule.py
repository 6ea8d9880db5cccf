"""When saves contradict what a run has declared, and what a plan then goes by."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from ckptd.core.checkpoint import Checkpoint
from ckptd.core.entry import Entry
from ckptd.core.memory import Memory
from ckptd.core.plan import SeriesPlan, plan
from ckptd.core.policy import Policy
from ckptd.core.schedule import LARGEST_BYTES, Schedule
from ckptd.errors import CkptdError, UsageError

NOW = 10**9


@pytest.mark.parametrize(("contradicted", "interval", "saves"), [
    pytest.param(False, 1000, [1000, 2000, 3000], id="all on the grid"),
    pytest.param(False, 1000, [1000, 2000, 2300], id="the last save of a run that ended"),
    pytest.param(False, 1000, [2000, 2300, 3000], id="resumed from a last save"),
    pytest.param(False, 1000, [5000, 5300, 4000], id="resumed from an older one"),
    pytest.param(False, 1000, [1000, 4000, 9000], id="saves that nobody saw"),
    pytest.param(False, 100, [1, 101, 201], id="a grid that begins at 1"),
    pytest.param(False, 7, [3, 3, 3], id="the same save again and again"),
    pytest.param(False, 1, [3, 500, 777], id="an interval of 1 explains everything"),
    pytest.param(False, None, [3, 500, 777], id="no interval is declared"),
    pytest.param(False, 1000, [7, 8], id="two saves are too few"),
    pytest.param(True, 1000, [7, 8, 9], id="a run that saves far more often"),
    pytest.param(True, 5, [4, 5, 6], id="one of them on the grid by chance"),
    pytest.param(True, 1000, [1000, 2000, 2007, 2014], id="only the last three count"),
])  # fmt: skip
def test_three_saves_of_which_no_two_fit_contradict(
    contradicted: bool, interval: int | None, saves: Sequence[int]
) -> None:
    assert contradicted == Schedule("iter_{}.pth", "iter", interval).is_contradicted_by(saves)


def planned(
    *steps: int, interval: int, policy: Policy | None = None, declared_ns: int | None = None
) -> tuple[SeriesPlan, list[int]]:
    """The plan of a series written in this order, one nanosecond apart, and the steps that go."""
    text = "epoch_{}.pth"
    found = [Checkpoint(Entry(text, text.format(step), step, 1, at)) for at, step in enumerate(steps, 1)]
    declared = {text: Schedule(text, "epoch", interval, 1, declared_ns=declared_ns)}
    policy = policy or Policy()
    decided = plan(found, policy, memory=Memory(), now_ns=NOW, protected={}, declared=declared)
    return decided.series[0], [d.checkpoint.step for d in decided.prune]


def test_what_is_contradicted_is_ignored_whole_and_nothing_goes_on_its_word() -> None:
    series, gone = planned(1, 2, 3, 4, 5, 6, interval=4)
    assert (series.grid.ignored is not None, series.grid.rule, gone) == (True, None, [])
    assert (series.grid.interval, series.grid.interval_from) == (1, "inferred from 5 of 5 gaps")


def test_what_is_not_contradicted_is_obeyed() -> None:
    series, gone = planned(1, 2, 3, 4, 5, 6, interval=1)
    assert (series.grid.ignored, series.grid.interval_from, gone) == (None, "declared", [1, 2, 3, 4, 5])


def test_a_given_max_keep_prunes_on_by_the_interval_that_is_inferred() -> None:
    series, gone = planned(1, 2, 3, 4, 5, 6, interval=4, policy=Policy(max_keep=2))
    assert (series.grid.interval, gone) == (1, [1, 2, 3, 4])


def test_saves_from_before_the_declaration_contradict_nothing() -> None:
    assert planned(1, 2, 3, 8, interval=4, declared_ns=4)[0].grid.ignored is None
    assert planned(1, 2, 3, 5, interval=4, declared_ns=2)[0].grid.ignored is not None


def test_a_schedule_that_is_written_is_read_again() -> None:
    schedule = Schedule("net_{}.pth", "step", 1000, 3, "/runs/a")
    assert Schedule.from_text(schedule.to_text()) == schedule
    assert Schedule.from_text(Schedule("net_<n>.pth", "step").to_text()) == Schedule("net_{}.pth", "step")
    assert schedule.to_text().endswith("}\n")


@pytest.mark.parametrize("text", [
    pytest.param("", id="nothing"),
    pytest.param("{", id="half of it"),
    pytest.param("[" * 100_000, id="brackets without an end"),
    pytest.param("[1]", id="a list"),
    pytest.param('{"version": 2, "template": "epoch_{}.pth", "unit": "epoch"}', id="a later version"),
    pytest.param('{"template": "epoch_{}.pth", "unit": "epoch"}', id="no version"),
    pytest.param('{"version": 1, "template": "epoch_{}.pth"}', id="no unit"),
    pytest.param('{"version": 1, "unit": "epoch"}', id="no template"),
    pytest.param('{"version": 1, "template": "epoch.pth", "unit": "epoch"}', id="a template that is none"),
    pytest.param('{"version": 1, "template": "epoch_{}.pth", "unit": "epoch", "interval": 0}', id="an interval of 0"),
    pytest.param('{"version": 1, "template": "epoch_{}.pth", "unit": "epoch", "max_keep": true}', id="a truth to keep"),
    pytest.param('{"version": 1, "template": "epoch_{}.pth", "unit": "epoch", "interval": "1"}', id="a text of digits"),
    pytest.param('{"version": 1, "template": "epoch_{}.pth", "unit": "epoch", "work_dir": 3}', id="a directory of 3"),
    pytest.param('{"version": 1, "template": "epoch_{}.pth", "unit": "e\\npoch"}', id="a unit of two lines"),
])  # fmt: skip
def test_what_is_no_schedule_of_this_version_is_refused(text: str) -> None:
    with pytest.raises(CkptdError):
        Schedule.from_text(text)


def test_a_line_of_text_is_no_longer_than_a_schedule_may_be() -> None:
    assert Schedule("epoch_{}.pth", "e" * LARGEST_BYTES).unit == "e" * LARGEST_BYTES
    with pytest.raises(UsageError, match="unit is not a line of text"):
        Schedule("epoch_{}.pth", "e" * (LARGEST_BYTES + 1))
