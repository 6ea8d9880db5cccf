"""Names with several numbers: which belong to a series, what their step is, and what else they say."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.keyed import Keyed, Numbers, keyed_text, names_from
from ckptd.core.naming import Template
from ckptd.errors import UsageError


@pytest.mark.parametrize(("name", "text", "step", "metrics"), [
    ("epoch=0-step=10.ckpt", "epoch={}-step={}.ckpt", 10, {}),
    ("epoch=0-step=10-v1.ckpt", "epoch={}-step={}.ckpt", 10, {}),
    ("step=7.ckpt", "step={}.ckpt", 7, {}),
    ("epoch=02-val_loss=0.32.ckpt", "epoch={}-val_loss={}.ckpt", 2, {"val_loss": 0.32}),
    ("epoch=02-val_loss=0.32-v12.ckpt", "epoch={}-val_loss={}.ckpt", 2, {"val_loss": 0.32}),
    ("epoch=2_val_loss=0.32.ckpt", "epoch={}_val_loss={}.ckpt", 2, {"val_loss": 0.32}),
    ("val_loss=-0.32-epoch=2.ckpt", "val_loss={}-epoch={}.ckpt", 2, {"val_loss": -0.32}),
    ("epoch=2-lr=1e-05-acc=93.ckpt", "epoch={}-lr={}-acc={}.ckpt", 2, {"lr": 1e-05, "acc": 93.0}),
    ("epoch=2-AR@100=0.5.ckpt", "epoch={}-AR@100={}.ckpt", 2, {"AR@100": 0.5}),
    ("epoch=2-loss=inf.ckpt", "epoch={}-loss={}.ckpt", 2, {"loss": math.inf}),
    ("epoch=2-loss=-inf.ckpt", "epoch={}-loss={}.ckpt", 2, {"loss": -math.inf}),
])  # fmt: skip
def test_a_name_of_lightnings_has_its_series_its_step_and_its_metrics(
    name: str, text: str, step: int, metrics: dict[str, float]
) -> None:
    assert text == keyed_text(name)
    series = Keyed(text)
    assert (step, metrics) == (series.step_of(name), series.metrics_of(name))
    assert not series.has_grid


def test_a_score_that_is_no_number_is_nan() -> None:
    name = "epoch=2-loss=nan.ckpt"
    assert math.isnan(Keyed(str(keyed_text(name))).metrics_of(name)["loss"])


@pytest.mark.parametrize("name", [
    "last.ckpt", "last-v1.ckpt", "hpc_ckpt_1.ckpt", "on_exception.ckpt", "epoch.ckpt", "epoch=.ckpt",
    "epoch=1", "epoch=1.ckpt.tmp", "epoch=1.ckpt\n", "epoch=1\n-step=2.ckpt", "epoch=٣.ckpt", "epoch=1-step=²2.ckpt",
    "epoch=1--step=2.ckpt", "epoch=1-step=2-v0.ckpt", "epoch=1-step=2-v.ckpt", "epoch=1-step=2-best.ckpt",
    "epoch=1-step=2-v1-v2.ckpt", "=1.ckpt", "epoch=0x1.ckpt", "epoch=1,step=2.ckpt", "epoch=1-s{}p=2.ckpt",
    "sample-epoch=02.ckpt", "best-epoch=2.ckpt", "epoch=" + "1" * 300 + ".ckpt", "epoch=1-\udcff=2.ckpt",
])  # fmt: skip
def test_what_lightning_does_not_write_as_a_save_is_no_name_of_its(name: str) -> None:
    assert keyed_text(name) is None


@pytest.mark.parametrize("name", ["epoch=1.5-step=a.ckpt", "loss=0.3.ckpt", "epoch=1.0.ckpt", "epoch=-1.ckpt"])
def test_a_name_without_a_whole_step_has_none(name: str) -> None:
    text = keyed_text(name)
    assert text is None or not _makes_a_series(text) or Keyed(text).step_of(name) is None


def test_text_before_the_first_key_is_taken_where_it_is_asked_for() -> None:
    name = "sample-mnist-epoch=02-val_loss=0.32.ckpt"
    assert keyed_text(name) is None
    text = keyed_text(name, front=True)
    assert text == "sample-mnist-epoch={}-val_loss={}.ckpt"
    assert (Keyed(text).step_of(name), Keyed(text).metrics_of(name)) == (2, {"val_loss": 0.32})


KEYS = st.from_regex(r"[a-z][a-z_.]{0,6}", fullmatch=True).filter(lambda key: key not in ("epoch", "step"))


@given(
    epoch=st.integers(0, 10**9),
    width=st.integers(1, 6),
    scores=st.dictionaries(KEYS, st.floats(-1e30, 1e30), max_size=3),
    version=st.integers(0, 20),
)
def test_what_was_written_is_read(epoch: int, width: int, scores: dict[str, float], version: int) -> None:
    pairs = [f"epoch={epoch:0{width}d}", *(f"{key}={score}" for key, score in scores.items())]
    name = "-".join([*pairs, *([f"v{version}"] if version else [])]) + ".ckpt"
    text = keyed_text(name)
    assert text is not None
    series = names_from(text)
    assert (series.text, series.step_of(name), series.metrics_of(name)) == (text, epoch, scores)


@given(st.text(alphabet="epochst=-_v0123.ckn{}/ \n٣é", max_size=40))
def test_no_text_at_all_is_more_than_a_name_or_none(name: str) -> None:
    for candidate in (name, f"epoch=1-{name}.ckpt", f"{name}=1.ckpt"):
        text = keyed_text(candidate, front=True)
        if text is not None and _makes_a_series(text):
            assert names_from(text).text == text
            step = Keyed(text).step_of(candidate)
            assert step is None or step >= 0


@pytest.mark.parametrize(("name", "step"), [
    ("checkpoint_1_500.pt", 500), ("checkpoint_0_0.pt", 0), ("checkpoint_1_0500.pt", None),
    ("checkpoint_1_5_6.pt", None),
    ("checkpoint_1_500.pt.tmp", None), ("checkpoint_1_٣.pt", None), ("checkpoint_best.pt", None),
])  # fmt: skip
def test_the_last_of_several_numbers_is_the_step(name: str, step: int | None) -> None:
    assert step == Numbers("checkpoint_{}_{}.pt").step_of(name)


@pytest.mark.parametrize(("text", "kind"), [
    ("epoch={}-step={}.ckpt", Keyed), ("epoch={}.ckpt", Keyed), ("sample-epoch={}.ckpt", Keyed),
    ("checkpoint_{}_{}.pt", Numbers), ("epoch_{}.pth", Template), ("a={}.ckpt", Template), ("loss={}.pth", Template),
])  # fmt: skip
def test_a_series_is_known_again_by_its_text(text: str, kind: type) -> None:
    assert type(names_from(text)) is kind
    assert names_from(text).text == text


@pytest.mark.parametrize("text", ["a={}-b={:02d}.ckpt", "{}/{}.pt", "no field", "{}{", "epoch={}-epoch={}.ckpt"])
def test_a_text_that_is_no_series_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        names_from(text)


def _makes_a_series(text: str) -> bool:
    try:
        Keyed(text)
    except UsageError:
        return False
    return True
