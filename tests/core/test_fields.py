"""Templates with several fields: which names are theirs, and what each says."""

from __future__ import annotations

import math
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ckptd.core.fields import Fields
from ckptd.core.finder import Finder
from ckptd.core.keyed import Keyed, names_from
from ckptd.core.keyed import given as named
from ckptd.core.naming import Family, Template
from ckptd.errors import UsageError

STEPS = st.integers(0, 10**12)
SCORES = st.floats(-1e9, 1e9) | st.sampled_from([math.nan, math.inf, -math.inf, -0.0])
WHOLE_OR_NOT = st.floats(allow_nan=True, allow_infinity=True)  # as `str` writes it
TEXTS = st.text("abXY789_-.+ é{}", min_size=1, max_size=12)

# A template, what its fields hold, and which of them is the step.
MADE: list[tuple[str, dict[str, Any], str]] = [
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", {"epoch": STEPS, "val_loss": SCORES}, "epoch"),
    ("weights.{epoch}-{val_loss}.h5", {"epoch": STEPS, "val_loss": WHOLE_OR_NOT}, "epoch"),
    ("ep{epoch}-ba{batch}", {"epoch": STEPS, "batch": STEPS}, "batch"),
    ("bob_e{epoch}_s{step}.pth", {"epoch": STEPS, "step": STEPS}, "step"),
    ("my_model_epoch={epoch:02d}_iou={iou:.2f}.ckpt", {"epoch": STEPS, "iou": SCORES}, "epoch"),
    ("e{epoch:4d}-{loss:8.3f}-{acc:.1%}.pt", {"epoch": STEPS, "loss": SCORES, "acc": st.floats(-1, 1)}, "epoch"),
    ("{step:_}-{loss:+.3e}.pt", {"step": STEPS, "loss": SCORES}, "step"),
    ("x{step:06d}.{lr:g}.pt", {"step": STEPS, "lr": SCORES}, "step"),
    ("{acc:,.2f}_{it:x}.pt", {"acc": SCORES, "it": STEPS}, "it"),
    ("network-{kimg:06d}-{fid:.4f}.pkl", {"kimg": STEPS, "fid": SCORES}, "kimg"),
    ("{epoch!step}_of_{step}.pt", {"epoch": STEPS, "step": STEPS}, "epoch"),
    ("{{{epoch}}}_{loss:.0f}", {"epoch": STEPS, "loss": SCORES}, "epoch"),
    ("last_{name}_ep_{epoch}_rew_{reward}.pth", {"name": TEXTS, "epoch": STEPS, "reward": WHOLE_OR_NOT}, "epoch"),
    ("{name}_e{epoch}_s{step}.pth", {"name": TEXTS, "epoch": STEPS, "step": STEPS}, "step"),
    ("{name}-{loss:.2f}.{epoch:02d}.pt", {"name": TEXTS, "loss": SCORES, "epoch": STEPS}, "epoch"),
    ("{name}--val_loss={val_loss:.2f}-step={step}-consumed_samples={seen:.1f}.ckpt",
     {"name": TEXTS, "val_loss": SCORES, "step": STEPS, "seen": SCORES}, "step"),
    ("fold{fold:02d}_{epoch}_{dice}.pt", {"fold": STEPS, "epoch": STEPS, "dice": WHOLE_OR_NOT}, "epoch"),
]  # fmt: skip


def found(template: str, name: str) -> tuple[str, int, dict[str, float]] | None:
    """The series of a name, its step, and its scores."""
    match = Finder([named(template)]).match(name)
    return (match[0].names.text, match[1], match[0].names.metrics_of(name)) if match else None


@given(data=st.data(), made=st.sampled_from(MADE))
def test_what_format_has_written_is_read_again(data: st.DataObject, made: tuple[str, dict[str, Any], str]) -> None:
    template, fields, step = made
    values = {name: data.draw(among, label=name) for name, among in fields.items()}
    plain = template.replace("!step", "")
    name = plain.format(**values)
    assume(len(name) <= 255 and not str(values.get("name", "")).endswith("-"))  # a minus there is a number's
    read = found(template, name)
    if " + " in name:
        assert read is None, "it would be taken for the names of several files"
        return
    assert read is not None
    text, at, scores = read
    assert at == values[step]
    # A text tells series apart; all others are as they were given, to as many digits as were written.
    again = names_from(text)
    assert (again.text, again.step_of(name), again.has_grid) == (text, at, isinstance(again, Template))
    assert scores.keys() == {key for key, among in fields.items() if among in (SCORES, WHOLE_OR_NOT) or key == "acc"}
    assert plain.format(**{**values, **scores}) == name


@given(made=st.sampled_from(MADE[:4]), at=st.integers(0, 30), junk=st.text(max_size=3), drop=st.integers(0, 2),
       epoch=STEPS, step=STEPS, score=SCORES)  # fmt: skip
def test_a_name_that_format_would_not_write_is_none(
    made: tuple[str, dict[str, Any], str], at: int, junk: str, drop: int, epoch: int, step: int, score: float
) -> None:
    template = made[0].replace("{val_loss}", "{val_loss:.3f}")
    name = template.format(epoch=epoch, step=step, batch=step, val_loss=score)
    name = name[:at] + junk + name[at + drop :]
    names = named(template)
    assert isinstance(names, Fields)
    read = names.step_of(name)
    if read is not None and names.unit == "epoch":
        assert template.format(epoch=read, **names.metrics_of(name)) == name


@pytest.mark.parametrize(("template", "name", "expected"), [
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-0.21.h5", (5, {"val_loss": 0.21})),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.100--0.21.h5", (100, {"val_loss": -0.21})),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-inf.h5", (5, {"val_loss": math.inf})),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.5-0.21.h5", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-0.2.h5", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-00.21.h5", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-0.21.h5.tmp", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-0.2١.h5", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.٠٥-0.21.h5", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-infinity.h5", None),
    ("weights.{epoch:02d}-{val_loss:.2f}.h5", "weights.05-0.21.h5\n", None),
    ("weights.{epoch:02d}-{val_loss}.h5", "weights.05-1e-05.h5", (5, {"val_loss": 1e-05})),
    ("weights.{epoch:02d}-{val_loss}.h5", "weights.05-2.h5", (5, {"val_loss": 2.0})),
    ("mask.{:03d}-{:.6f}.h5", "mask.003-0.142704.h5", (3, {})),
    ("ep{epoch}-ba{batch}", "ep0-ba10", (10, {})),
    ("bob_e{*}_s{}.pth", "bob_e8_s208.pth", (208, {})),
    ("{*}_s{step}_{*}.pth", "a_b_s20_c.pth", (20, {})),
    ("{*}_s{step}_{*}.pth", "_s20_.pth", None),
    ("s{step}_{*}.x", "s20_x.x", (20, {})),
    ("s{step}_{*}.x", "s20_.x", None),
    ("{*}_s{step}", "_s20", None),
    ("{self.global_step}-{loss.item():.3f}.pt", "12-0.500.pt", (12, {"loss": 0.5})),
    ("{epoch + 1:03d}.pt", "012.pt", (12, {})),
    ("e{epoch}-{val/loss:.2f}.pt", "e3-0.50.pt", (3, {"val/loss": 0.5})),
    ("step={step}.0-x={x}.ckpt", "step=70999.0-x=0.5.ckpt", (70999, {"x": 0.5})),
    ("e={epoch:.2f}-s={step}.pt", "e=0.53-s=20.pt", (20, {"epoch": 0.53})),
])  # fmt: skip
def test_a_name_says_its_step_and_its_scores(
    template: str, name: str, expected: tuple[int, dict[str, float]] | None
) -> None:
    read = found(template, name)
    assert expected == (read[1:] if read else None)


def test_a_field_for_a_text_makes_a_series_of_each() -> None:
    template = "{name}_e{epoch}_s{step}.pth"
    for text in ("bob", "bob_2", "a {lice}"):
        read = found(template, template.format(name=text, epoch=8, step=208))
        assert read == (template.replace("{name}", text.replace("{", "{{").replace("}", "}}")), 208, {})
    for text in ("", "a\n", "\udcff"):
        assert found(template, template.format(name=text, epoch=8, step=208)) is None


@pytest.mark.parametrize(("name", "text"), [
    ("3-0.25.pt", "{epoch}-{dice}.pt"),
    ("3-nan.pt", "{epoch}-{dice}.pt"),
    ("3-None.pt", "{}-None.pt"),
    ("3-25.pt", "{}-25.pt"),
    ("3-0.2.5.pt", "{}-0.2.5.pt"),
])  # fmt: skip
def test_a_field_of_which_nothing_is_known_is_a_score_only_with_a_point(name: str, text: str | None) -> None:
    read = found("{epoch}-{dice}.pt", name)
    assert text == (read[0] if read else None) or text is None


@pytest.mark.parametrize("name", ["a_5_7_b.pt", "a_5_b_7_c.pt"])
def test_a_name_with_two_readings_is_none(name: str) -> None:
    assert found("{name}_{epoch}_{*}.pt", name) is None
    assert found("{name}_{epoch}_{*}.pt", "a_5_b.pt") is not None


@pytest.mark.parametrize(("template", "unit"), [
    ("e{epoch}_s{step}", "step"), ("e{epoch}_i{iter}", "iter"), ("b{batch}_i{iteration}", "iteration"),
    ("e{epoch}_b{batch}", "batch"), ("s{global_step}_e{num_epochs}", "step"), ("{time}-x{epoch}", "epoch"),
    ("{epoch!step}_{step}", "epoch"), ("{n!step}_{epoch}", "n"), ("e{epoch}_{}", "step"),
    ("{kimg:d}_{fid:.2f}", "kimg"), ("{*}_{kimg}", "kimg"), ("{loss:.2f}_{date}", "time"),
    ("{name}_{kimg}_{loss}", "kimg"), ("{curEpoch}_{*}x{iou:f}", "epoch"),
])  # fmt: skip
def test_which_field_is_the_step(template: str, unit: str) -> None:
    assert named(template).unit == unit


@pytest.mark.parametrize(("template", "why"), [
    ("{}{}", "could each be the step"),
    ("last_{}_ep_{}.pt", "could each be the step"),
    ("{epoch}_of_{epochs}.pt", "could each be the step"),
    ("{a}_{step}_{a}.pt", "twice"),
    ("{step}{loss:.2f}.pt", "nothing stands between"),
    ("{step}{*}.pt", "nothing stands between"),
    ("epoch_*.pth", r"write \{\*\} for any text"),
    ("epoch_*_{}.pth", r"write \{\*\} for any text"),
    ("{name}_{foo}_{epoch}.pt", "can both be any text"),
    ("{name}_{*}_{epoch}.pt", "can both be any text"),
    ("{*:3}_{epoch}.pt", "takes no format"),
    ("{time}_{epoch}.pt", "could both be parts of a date"),
    ("{a:g}.{b:g}_{step}.pt", "the point between"),
    ("{name}-ba{batch}-rank{rank}.pt", "tells series apart"),
    ("{loss:.2f}-{name}.pt", "none of its fields counts"),
    ("{name}.pt", "none of its fields counts"),
    ("{loss!step:.2f}-{name}.pt", "read back"),
    ("{step}-{loss:.2q}.pt", "read back"),
    ("{step}-{loss:9999.2f}.pt", "read back"),
    ("{step:0400d}-{loss:.2f}.pt", "longer than"),
    ("{step}-{loss!r}.pt", "must be plain"),
    ("{step}-{loss:{width}f}.pt", "must be plain"),
    ("e{epoch}1-{loss:.2f}.pt", "stands against other digits"),
    ("e{epoch}-1{loss:.2f}.pt", "stands against other digits"),
    ("{epoch}/{loss:.2f}.pt", "holds a '/'"),
    ("{epoch}\n{loss:.2f}.pt", "cannot be printed"),
    ("{epoch}\x01{loss:.2f}.pt", "cannot be printed"),
    ("{epoch}-{loss", "expected '}'"),
    ("{t:%b %d}-{loss:.2f}", "no order"),
    ("{t:%m-%d}-{loss:.2f}", "no year"),
    ("{epoch}" + "x" * 255 + "{loss:.2f}", "longer than"),
])  # fmt: skip
def test_a_template_is_refused_with_the_reason(template: str, why: str) -> None:
    with pytest.raises(UsageError, match=why):
        named(template)


@pytest.mark.parametrize("field", ["{epoch}", "{epoch!step}", "{self.epoch}", "{e + 1}"])
def test_a_single_number_is_the_same_series_whatever_it_is_called(field: str) -> None:
    assert named(f"epoch_{field}.pth") == Template("epoch_{}.pth") == names_from(f"epoch_{field}.pth")


def test_the_text_of_keys_is_what_it_is_in_a_plan() -> None:
    assert named("epoch={}-val_loss={}.ckpt") == Keyed("epoch={}-val_loss={}.ckpt")


def test_what_is_one_of_several_files_can_be_asked() -> None:
    names = Fields("ep{epoch}-ba{batch}-rank{rank}.pt")
    assert (names.step_of("ep0-ba10-rank3.pt"), names.part_of("ep0-ba10-rank3.pt")) == (10, ((3,), None))
    assert names.part_of("ep0-ba10.pt") == ((), None)


SLOW = ["{*}_{a:.2f}_{*}_{step}_{*}.pt", "{name}_{step}_{x}.pt", "{a}-{step}.{b}-{c:g}x{*}z", "{time}x{*}-{step}"]


@pytest.mark.parametrize("name", [
    "a" * 254, "_" * 254, "1" * 254, "1_" * 127, "_1" * 127, "_1.00" * 50, "-1" * 120 + ".pt", "_1.00_1_" * 30 + ".pt",
    "1." * 127, "1-" * 127, "1e-05-" * 42, "nan_" * 60 + ".pt", "2024-" * 50, "0" * 250 + ".pt", "__1_" * 60,
    "9" * 5000,
])  # fmt: skip
def test_no_name_takes_long_to_read(name: str) -> None:
    finders = [Finder([named(template)]) for template in (*SLOW, *(each[0] for each in MADE))]
    began = time.process_time()
    for _ in range(10):
        for finder in finders:
            finder.match(name)
    assert time.process_time() - began < 0.5


@given(st.text(max_size=40) | st.from_regex(r"[a-z0-9_.{}:!*%=-]{0,30}", fullmatch=True))
def test_any_text_is_a_template_or_refused(text: str) -> None:
    try:
        names = named(text)
    except UsageError:
        return
    if not isinstance(names, Family):
        assert names.step_of(names.sample) is not None
        assert named(names.text) == names == names_from(names.text) or isinstance(names_from(names.text), Keyed)
