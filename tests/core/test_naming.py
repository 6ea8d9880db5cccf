"""A template reads exactly the names it writes."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptd.core.layouts import DEFAULT_TEMPLATES
from ckptd.core.naming import Template
from ckptd.errors import UsageError

ODD_TEMPLATES = [
    "model-{:04d}.ckpt", "iter_{:08d}.pth", "{:x}.pt", "of_{:,}_steps.pt", "a{:_}.pt", "{:>6}.pt", "{:*<9d}.pt",
    "{:0>5}.pt", "x{:+d}.pt", "x{: d}.pt", "x{:#x}.pt", "x{:X}.pt", "x{:o}.pt", "x{:b}.pt", "x{:#b}.pt", "{{}}{}.pth",
    "{0}.pth", "x{:1>}.pt", "шаг_{}.pth", "step {} of many.pt",
]  # fmt: skip
TEMPLATES = [*(template.text for template in DEFAULT_TEMPLATES), *ODD_TEMPLATES]


@pytest.mark.parametrize("text", TEMPLATES)
@given(step=st.integers(0, 10**18) | st.integers(0, 300))
def test_a_name_written_and_read_again_is_the_same_step(text: str, step: int) -> None:
    template = Template(text)
    assert step == template.step_of(template.name_of(step))


@given(text=st.sampled_from(TEMPLATES), name=st.text(max_size=30))
def test_a_name_that_is_read_is_the_name_that_would_be_written(text: str, name: str) -> None:
    template = Template(text)
    step = template.step_of(name)
    assert step is None or template.name_of(step) == name


@given(text=st.sampled_from(TEMPLATES), step=st.integers(0, 10**6), junk=st.text(max_size=3), at=st.integers(0, 20))
def test_a_name_with_something_put_in_is_read_as_written_or_not_at_all(
    text: str, step: int, junk: str, at: int
) -> None:
    template = Template(text)
    name = template.name_of(step)
    name = name[:at] + junk + name[at:]
    read = template.step_of(name)
    assert read is None or template.name_of(read) == name


@pytest.mark.parametrize("name", [
    pytest.param("epoch_03.pth", id="a leading zero"),
    pytest.param("epoch_٣.pth", id="a digit that is not ASCII"),
    pytest.param("epoch_³.pth", id="a superscript"),
    pytest.param("best_epoch_3.pth", id="something before it"),
    pytest.param("epoch_3.pth.tmp", id="something after it"),
    pytest.param("epoch_3.pth\n", id="a newline after it"),
    pytest.param("epoch_3\n.pth", id="a newline in it"),
    pytest.param("epoch_-3.pth", id="a negative step"),
    pytest.param("epoch_+3.pth", id="a sign"),
    pytest.param("epoch_ 3.pth", id="a blank"),
    pytest.param("epoch_1_000.pth", id="digits grouped as in source code"),
    pytest.param("epoch_.pth", id="no step"),
    pytest.param("epoch_3", id="no ending"),
    pytest.param("Epoch_3.pth", id="another case"),
    pytest.param("epoch_" + "9" * 5000 + ".pth", id="5,000 digits"),
    pytest.param("epoch_\udcff.pth", id="bytes that are no text"),
])  # fmt: skip
def test_a_name_that_is_not_exactly_the_template_is_no_checkpoint(name: str) -> None:
    assert Template("epoch_{}.pth").step_of(name) is None


@pytest.mark.parametrize("text", [
    pytest.param("ckpt.pth", id="no field: the hook deletes the file it has just written"),
    pytest.param("{}_{}.pth", id="two fields"),
    pytest.param("epoch_1{}.pth", id="a digit before the field"),
    pytest.param("epoch_{}0.pth", id="a digit after the field"),
    pytest.param("face{:x}.pth", id="a hexadecimal digit before a hexadecimal field"),
    pytest.param("epoch_{:1>5}.pth", id="filled up with a digit"),
    pytest.param("epoch_{:0<5}.pth", id="filled up with zeros behind"),
    pytest.param("epoch_{:c}.pth", id="a character"),
    pytest.param("epoch_{:.2f}.pth", id="a fraction"),
    pytest.param("epoch_{:n}.pth", id="what depends on the locale"),
    pytest.param("epoch_{:.3d}.pth", id="a precision"),
    pytest.param("epoch_{0.real}.pth", id="an attribute"),
    pytest.param("epoch_{!r}.pth", id="a conversion"),
    pytest.param("epoch_{:{}}.pth", id="a field in a field"),
    pytest.param("epoch_{.pth", id="an open brace"),
    pytest.param("epoch_}.pth", id="a closing brace"),
    pytest.param("sub/epoch_{}.pth", id="another directory"),
    pytest.param("epoch_{}.pth\n", id="a newline"),
    pytest.param("epoch_{}\0.pth", id="a NUL"),
    pytest.param("epoch_{:0300d}.pth", id="longer than a file system takes"),
    pytest.param("", id="nothing"),
])  # fmt: skip
def test_a_template_with_more_than_one_reading_or_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="template"):
        Template(text)


@pytest.mark.parametrize("text", ["epoch_<>.pth", "epoch_<n>.pth", "epoch_{epoch}.pth", "epoch_{}.pth"])
def test_the_ways_people_write_a_number_are_one_template(text: str) -> None:
    assert Template("epoch_{}.pth") == Template(text)


@pytest.mark.parametrize(
    ("text", "unit"), [("epoch_{}.pth", "epoch"), ("iter_{}", "iter"), ("model-{:04d}.ckpt", "step")]
)
def test_the_unit_is_what_the_name_says(text: str, unit: str) -> None:
    assert unit == Template(text).unit


def test_the_longest_names_that_a_file_system_takes_are_read_and_no_longer_ones() -> None:
    longest = Template("é" * 126 + "_{}")  # with one digit 254 bytes
    assert longest.step_of(longest.name_of(9)) == 9
    assert Template("e" * 254 + "{}").step_of("e" * 254 + "9") == 9
    with pytest.raises(UsageError, match="longer than 255 bytes"):
        Template("e" * 255 + "{}")
    with pytest.raises(UsageError, match="longer than 255 bytes"):
        Template("é" * 127 + "_{}")
    epochs = Template("epoch_{}.pth")
    assert epochs.step_of("epoch_" + "9" * 245 + ".pth") == int("9" * 245)
    assert epochs.step_of("epoch_" + "9" * 246 + ".pth") is None


@pytest.mark.parametrize(("text", "head"), [
    ("epoch_{}.pth", "epoch_"), ("iter_{:08d}.pth", "iter_"), ("{}.pt", ""), ("run 2 of {}.pt", None),
    ("x{:x}.pt", None), ("{:>6}.pt", None), ("x{:+d}.pt", None), ("{{}}{}.pth", "{}"),
])  # fmt: skip
def test_what_stands_before_the_first_digit_of_every_name_is_known(text: str, head: str | None) -> None:
    assert Template(text).fixed_head == head
    for step in (0, 7, 12345) if head is not None else ():
        name = Template(text).name_of(step)
        assert name[len(head) :][:1].isdigit()
