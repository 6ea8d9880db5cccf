"""Which names are taken for one series, and how it would be named."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.guess import companions, guesses, twins
from ckptd.core.keyed import given as names_of
from ckptd.core.naming import Template

_TEXT = st.text("abcxyz_-.=+ ", max_size=8)


def templates(*names: str) -> list[str]:
    return [guess.template for guess in guesses(names)]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["model_1.pt", "model_2.pt", "model_10.pt"], ["model_{}.pt"]),
        (["ckpt_000500.pt", "ckpt_001000.pt"], ["ckpt_{:06d}.pt"]),
        (["epoch_008.pt", "epoch_099.pt", "epoch_100.pt", "epoch_1000.pt"], ["epoch_{:03d}.pt"]),
        (["net50_2026-11-20_ep1.pth", "net50_2026-11-20_ep2.pth"], ["net50_2026-11-20_ep{}.pth"]),
        (["G_1.pth", "G_2.pth", "D_1.pth", "D_2.pth"], ["D_{}.pth", "G_{}.pth"]),
        (["x_5.pt", "x_7.pt", "x_06.pt", "x_08.pt"], ["x_{:02d}.pt", "x_{}.pt"]),
        (["a{b}_1.pt", "a{b}_2.pt"], ["a{{b}}_{}.pt"]),
        (["1", "2"], ["{}"]),
        (["e-1-loss-0.51.pt", "e-2-loss-0.48.pt"], ["e-{epoch}-loss-{loss:.2f}.pt"]),
        (["w.01-0.90.h5", "w.02-0.55.h5"], ["w.{:02d}-{score:.2f}.h5"]),
        (["bob_e1_s10.pth", "bob_e2_s20.pth"], ["bob_e{epoch}_s{step}.pth"]),
        (["A_ep_1_rew_12.5_.pth", "A_ep_2_rew_3.25_.pth"], ["A_ep_{epoch}_rew_{rew}_.pth"]),
        (["ep0-ba10", "ep1-ba20"], ["ep{epoch}-ba{batch}"]),
    ],
    ids=lambda value: value[0],
)
def test_names_that_differ_in_one_number_are_a_series(names: list[str], expected: list[str]) -> None:
    assert templates(*names) == expected


@pytest.mark.parametrize(
    "names",
    [
        ["model_1.pt"],
        ["model.pt", "best.pt"],
        ["x_1_2.pt", "x_2_3.pt"],  # which of the two counts the saves?
        ["a-1.25.pt", "a-2.5.pt"],  # a score alone
        ["v1.0.pt", "v1.1.pt"],
        ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"],
        ["rng_state_rank_0.pth", "rng_state_rank_1.pth"],
        ["model_fold1.pt", "model_fold2.pt"],  # each of them is wanted
        ["model_seed_1.pt", "model_seed_2.pt"],
        ["features_1.pt", "features_2.pt"],
        ["data_1.pt", "data_2.pt"],
        ["mp_rank_00_model_states.pt", "mp_rank_01_model_states.pt"],
    ],
    ids=lambda names: names[-1],
)
def test_names_that_are_no_series_of_saves_are_none(names: list[str]) -> None:
    assert templates(*names) == []


@pytest.mark.parametrize(("names", "template"), [
    (["model_0002499.rank_{}.pth", "model_0004999.rank_{}.pth"], "model_{:07d}.rank_{rank}.pth"),
    (["ep0-ba10-rank{}.pt", "ep1-ba20-rank{}.pt"], "ep{epoch}-ba{batch}-rank{rank}.pt"),
])  # fmt: skip
def test_the_ranks_of_saves_are_one_series(names: list[str], template: str) -> None:
    assert templates(*(name.format(rank) for name in names for rank in (0, 1))) == [template]


def test_what_would_be_read_as_several_templates_is_not_guessed_at() -> None:
    assert templates("a + epoch_1.pt", "a + epoch_2.pt") == []


@given(head=_TEXT, tail=_TEXT, width=st.integers(0, 6), steps=st.sets(st.integers(0, 10**7), min_size=2, max_size=9))
def test_a_guess_names_exactly_what_it_was_made_of(head: str, tail: str, width: int, steps: set[int]) -> None:
    names = {step: f"{head}{step:0{width}d}{tail}" for step in steps}
    for guess in guesses(names.values()):
        template = names_of(guess.template)
        assert isinstance(template, Template)
        assert [template.step_of(name) for name in guess.names] == sorted(
            step for step, name in names.items() if name in guess.names
        )


@given(st.lists(st.text("ab01_-.{}", max_size=12), max_size=12, unique=True))
def test_any_names_at_all_are_guessed_at_without_an_error(names: list[str]) -> None:
    found = guesses(names)
    named = [name for guess in found for name in guess.names]
    assert len(named) == len(set(named))
    assert set(named) <= set(names)


def test_a_twin_is_the_same_name_with_zeros_in_front_of_its_number() -> None:
    names = [f"epoch_{i:03d}.pt" for i in (24, 99, 124, 199)] + ["epoch_007_ema.pt", "epoch_008_ema.pt"]
    (twin,) = twins(names, Template("epoch_{}.pt"))
    assert twin.template == "epoch_{:03d}.pt"
    assert twin.names == ("epoch_024.pt", "epoch_099.pt")
    assert twins(names, Template("epoch_{:03d}.pt")) == []


@pytest.mark.parametrize(("text", "names", "beside"), [
    ("epoch_{}.pth", ["epoch_1_optim.pth", "epoch_2_optim.pth"], ["epoch_{}_optim.pth"]),
    ("epoch.{:03d}.pt", ["epoch.001.opt.pt", "epoch.002.opt.pt"], ["epoch.{:03d}.opt.pt"]),
    ("epoch_{}", ["epoch_1.ema", "epoch_2.ema"], ["epoch_{}.ema"]),
    ("epoch_{}.pth", ["epoch_1.pth.tmp", "epoch_2.pth.tmp"], []),
    ("epoch_{}.pth", ["epoch_1.pth.metrics.json", "epoch_2.pth.metrics.json"], []),
    ("epoch_{}.pth", ["epoch_10.pth", "epoch_11.pth"], []),
    ("epoch_{}.pth", ["best_epoch_1_optim.pth", "best_epoch_2_optim.pth"], []),
])  # fmt: skip
def test_what_stands_beside_a_series_is_named_by_its_own_number(text: str, names: list[str], beside: list[str]) -> None:
    assert [guess.template for guess in companions(names, Template(text))] == beside
