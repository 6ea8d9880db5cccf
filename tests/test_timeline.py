"""The line of a run: one mark for each checkpoint, and of those that share a cell the one that matters."""

from __future__ import annotations

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.text.timeline import timeline

from .conftest import Builder, epochs


def drawn(with_checkpoints: Builder, width: int, **policy: object) -> list[str]:
    survey = api.plan(with_checkpoints.work_dir, Policy(**policy))  # type: ignore[arg-type]
    (series,) = survey.plan.series
    return list(timeline(series, width=width))


def test_each_checkpoint_has_the_mark_of_what_becomes_of_it(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5, 6, 7, 8, 9))
    (work_dir / "epoch_2.pth.keep").touch()
    (work_dir / "epoch_3.pth.metrics.json").write_text('{"mAP": 1}')
    (work_dir / "epoch_5.pth.metrics.json").write_text('{"mAP": 0}')
    (work_dir / "epoch_9.pth").write_bytes(b"")
    bar, legend = drawn(with_checkpoints, 21, max_keep=2, rule="newest", keep_every=4, keep_best=("mAP:max",))
    assert bar == "1 x.!.*.#.x.=.=.#.? 9"
    assert legend == "* best  # milestone  = kept  ! skipped  x to be pruned  ? not whole"


def test_in_a_narrow_terminal_what_stays_hides_what_goes(with_checkpoints: Builder) -> None:
    with_checkpoints(*epochs(*range(1, 101)))
    bar, _ = drawn(with_checkpoints, 16, max_keep=1, rule="newest", keep_every=50)
    assert bar == "1 xxxx#xxxx# 100"


def test_one_checkpoint_is_no_line(with_checkpoints: Builder) -> None:
    with_checkpoints(*epochs(1))
    assert drawn(with_checkpoints, 80, max_keep=1) == []
