"""Which series are parts of one checkpoint each, and which only have the same steps."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.guess import guesses
from ckptd.core.keyed import given as names_of
from ckptd.core.partners import joined, joint


def together(*names: str) -> list[str]:
    """The templates of files that were written in this order."""
    return sorted(guess.template for guess in joined(guesses(names), {name: at for at, name in enumerate(names)}))


@pytest.mark.parametrize(("names", "expected"), [
    (["G_1.pth", "D_1.pth", "G_2.pth", "D_2.pth"], ["G_{}.pth + D_{}.pth"]),
    (["D_1.pth", "G_1.pth", "G_2.pth", "D_2.pth"], ["G_{}.pth + D_{}.pth"]),
    (["G_1.pth", "D_1.pth", "G_2.pth", "D_2.pth", "G_3.pth"], ["G_{}.pth + D_{}.pth"]),
    (["G_1.pth", "D_1.pth", "G_2.pth", "D_2.pth", "D_3.pth"], ["G_{}.pth + D_{}.pth"]),
    (["a_1.pt", "b_1.pt", "c_1.pt", "a_2.pt", "b_2.pt", "c_2.pt"], ["a_{}.pt + b_{}.pt + c_{}.pt"]),
    (["G_1.pth", "G_2.pth", "D_1.pth", "D_2.pth"], ["D_{}.pth", "G_{}.pth"]),
    (["G_1.pth", "D_1.pth", "G_2.pth", "D_2.pth", "G_3.pth", "G_4.pth"], ["D_{}.pth", "G_{}.pth"]),
    (["G_1.pth", "D_1.pth", "G_2.pth", "D_2.pth", "D_4.pth", "G_3.pth"], ["D_{}.pth", "G_{}.pth"]),
    (["x_1.pt", "y_1.pt", "x_2.pt", "y_2.pt", "z_1.pt", "z_2.pt"], ["x_{}.pt + y_{}.pt", "z_{}.pt"]),
    (["G_1.pth", "D_1.pth", "G_2.pth", "D_3.pth", "D_2.pth", "G_3.pth"], ["D_{}.pth", "G_{}.pth"]),
], ids=lambda value: value[-1])  # fmt: skip
def test_files_of_the_same_steps_that_were_written_in_turn_are_together(names: list[str], expected: list[str]) -> None:
    assert together(*names) == expected


def test_runs_side_by_side_are_no_parts_of_one_checkpoint() -> None:
    runs = [f"{run}_epoch{step}.pt" for step in (1, 2, 3) for run in "abcdefghij"]
    assert len(together(*runs)) == 10


def test_what_no_template_can_name_together_stays_apart() -> None:
    assert joint(["epoch_{}.pth", "epoch_{}.pth"]) is None
    assert joint(["{}.pt", "{}.opt"]) == "{}.pt + {}.opt"


@given(st.lists(st.text("abGD12_.", max_size=8), max_size=14, unique=True))
def test_no_name_is_lost_or_told_twice_and_each_template_is_one(names: list[str]) -> None:
    found = guesses(names)
    made = joined(found, {name: at for at, name in enumerate(names)})
    assert sorted(name for guess in made for name in guess.names) == sorted(n for guess in found for n in guess.names)
    for guess in made:
        assert names_of(guess.template).text == guess.template
