"""Names with several fields over real files: what goes, what stays, what is remembered, and what is refused."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.errors import UsageError

from .conftest import Builder, a_pass, dcp_metadata, left, pointed

Run = Callable[..., subprocess.CompletedProcess[str]]
KEPT: dict[str, Any] = {"max_keep": 2, "trash_ttl_s": 0.0}

# As the frameworks and the people of the field name them: the template, and the names in the order of writing.
FIELD = {
    "Keras": ("weights.{epoch:02d}-{val_loss:.2f}.h5",
              ["weights.08-0.90.h5", "weights.09-nan.h5", "weights.10--0.40.h5"]),
    "Mask R-CNN": ("mask_rcnn.{:03d}-{val_loss:.6f}.h5",
                   ["mask_rcnn.003-0.142704.h5", "mask_rcnn.004-0.200000.h5", "mask_rcnn.005-0.300000.h5"]),
    "rl_games": ("last_{name}_ep_{epoch}_rew_{reward}.pth",
                 ["last_Ant_ep_100_rew_12.5.pth", "last_Ant_ep_200_rew_-80.1.pth", "last_Ant_ep_300_rew_75.pth"]),
    "Composer": ("ep{epoch}-ba{batch}.pt", ["ep0-ba10.pt", "ep0-ba20.pt", "ep1-ba30.pt"]),
    "GPT-SoVITS": ("{name}_e{epoch}_s{step}.pth", ["bob_e4_s104.pth", "bob_e8_s208.pth", "bob_e12_s312.pth"]),
    "text in front": ("my_model_epoch={epoch:02d}_iou={iou:.2f}.ckpt",
                      [f"my_model_epoch={epoch:02d}_iou=0.{epoch}0.ckpt" for epoch in (1, 2, 3)]),
    "NeMo": ("{name}--val_loss={val_loss:.2f}-step={step}-consumed_samples={consumed_samples:.1f}.ckpt",
             [f"gpt--val_loss=2.{step}0-step={step}-consumed_samples={8 * step}.0.ckpt" for step in (7, 8, 9)]),
    "Lightning's own": ("epoch={epoch:02d}-val_loss={val_loss:.2f}.ckpt",
                        [f"epoch={epoch:02d}-val_loss=0.50.ckpt" for epoch in (8, 9, 10)]),
    "SpeechBrain": ("CKPT+{time}", [f"CKPT+2024-05-01+1{hour}-30-45+00" for hour in (1, 2, 3)]),
    "Automodel": ("epoch_{epoch}_step_{step}", ["epoch_0_step_100", "epoch_0_step_200", "epoch_1_step_300"]),
}  # fmt: skip


@pytest.mark.parametrize(("template", "names"), FIELD.values(), ids=FIELD)
def test_the_names_of_the_field_can_be_said(with_checkpoints: Builder, template: str, names: list[str]) -> None:
    beside = [f"{names[-1]}.tmp", "best.pth", "notes_7.txt"]
    work_dir = with_checkpoints(*names, *beside)
    a_pass(work_dir, templates=template, **KEPT)
    assert sorted(left(work_dir)) == sorted([*names[1:], *beside])
    assert pointed(work_dir) == names[-1]
    # Without the option, by what is remembered.
    assert api.latest(work_dir) == work_dir / names[-1]


@pytest.mark.parametrize("template", ["ep{epoch}-ba{batch}", "{name}--val_loss={val_loss:.2f}-step={step}"])
def test_directories_bear_such_names_too(with_checkpoints: Builder, template: str) -> None:
    names = [template.format(epoch=0, batch=step, step=step, name="gpt", val_loss=2.7) for step in (10, 20, 30)]
    for name in names:
        with_checkpoints.shards(name)
    with_checkpoints.shards("gpt--val_loss=2.70-step=30-last")
    a_pass(with_checkpoints.work_dir, templates=template, **KEPT)
    assert set(left(with_checkpoints.work_dir)) == {*names[1:], "gpt--val_loss=2.70-step=30-last"}


def test_a_score_keeps_only_what_is_asked_for(with_checkpoints: Builder) -> None:
    template = "weights.{epoch:02d}-{val_loss:.2f}.h5"
    scores = ("0.90", "-1.50", "inf", "nan", "0.38", "0.40")
    names = [f"weights.{epoch:02d}-{score}.h5" for epoch, score in enumerate(scores, 1)]
    work_dir = with_checkpoints(*names)
    a_pass(work_dir, templates=template, keep_best="val_loss:min", **KEPT)
    assert left(work_dir) == sorted([names[1], *names[4:]])
    a_pass(work_dir, templates=template, max_keep=1, trash_ttl_s=0.0)
    assert left(work_dir) == names[5:]


def test_each_text_is_a_series_of_its_own(with_checkpoints: Builder) -> None:
    bob, alice = [f"bob_e{e}_s{e * 26}.pth" for e in (4, 8, 12)], [f"alice_2_e{e}_s{e * 26}.pth" for e in (4, 8, 12)]
    work_dir = with_checkpoints(*bob, *alice)
    report = a_pass(work_dir, templates="{name}_e{epoch}_s{step}.pth", **KEPT)
    assert {series.grid.template.text for series in report.survey.plan.series} == {
        "bob_e{epoch}_s{step}.pth", "alice_2_e{epoch}_s{step}.pth",
    }  # fmt: skip
    assert set(left(work_dir)) == {*bob[1:], *alice[1:]}


def test_what_is_any_text_tells_nothing_apart(with_checkpoints: Builder) -> None:
    names = ["bob_e4_s104.pth", "alice_e5_s130.pth", "bob_e8_s208.pth"]
    work_dir = with_checkpoints(*names)
    a_pass(work_dir, templates="{*}_s{step}.pth", **KEPT)
    assert left(work_dir) == sorted(names[1:], key=lambda name: name[-7:])


@pytest.mark.parametrize("names", [
    pytest.param(["e1-0.50.pt", "e2-0.40.pt", "e2-0.39.pt", "e2-0.38.pt"], id="three of one step"),
    pytest.param(["e2-0.40.pt", "e2-0.39.pt", "e1-0.50.pt", "e2-0.38.pt"], id="of a run that has resumed"),
])  # fmt: skip
def test_no_name_goes_for_another_one_of_its_step(with_checkpoints: Builder, names: list[str]) -> None:
    only: dict[str, Any] = {"templates": "e{epoch}-{loss:.2f}.pt", "max_keep": 1, "trash_ttl_s": 0.0}
    for at, name in enumerate(names, 1):  # a pass after each
        a_pass(with_checkpoints(name), **only)
        assert set(left(with_checkpoints.work_dir)) >= {each for each in names[:at] if each.startswith("e2")}
    assert sorted(left(with_checkpoints.work_dir)) == ["e2-0.38.pt", "e2-0.39.pt", "e2-0.40.pt"]
    a_pass(with_checkpoints("e3-0.30.pt"), **only)
    assert left(with_checkpoints.work_dir) == ["e3-0.30.pt"]


def test_names_of_one_step_go_together_and_k_counts_steps(with_checkpoints: Builder) -> None:
    names = [f"s{step}-{what}.pt" for step in (1, 2, 3) for what in ("a", "b", "c")]
    work_dir = with_checkpoints(*names)
    report = a_pass(work_dir, templates="s{step}-{*}.pt", **KEPT)
    assert left(work_dir) == names[3:]
    (series,) = report.survey.plan.series
    assert {c.name for c in series.relied_on} == set(names[3:])


def test_a_broken_one_stays_while_another_of_its_step_does(with_checkpoints: Builder) -> None:
    with_checkpoints("s1-a.pt", "s2-a.pt")
    with_checkpoints("s3-a.pt", content=b"PK\3\4" + b"x" * 60)
    work_dir = with_checkpoints("s3-b.pt")
    a_pass(work_dir, templates="s{step}-{*}.pt", max_keep=1, trash_ttl_s=0.0)
    assert left(work_dir) == ["s3-a.pt", "s3-b.pt"]
    a_pass(with_checkpoints("s4-a.pt"), templates="s{step}-{*}.pt", max_keep=1, trash_ttl_s=0.0)
    assert left(work_dir) == ["s4-a.pt"]


def test_names_of_one_step_of_one_time_are_saves(with_checkpoints: Builder) -> None:
    for step in (1, 2, 3):
        with_checkpoints(f"s{step}-a.pt")
        with_checkpoints.at_ns -= 10**9
        with_checkpoints(f"s{step}-b.pt")
    a_pass(with_checkpoints.work_dir, templates="s{step}-{*}.pt", max_keep=1, trash_ttl_s=0.0)
    assert left(with_checkpoints.work_dir) == ["s3-a.pt", "s3-b.pt"]


def test_a_budget_takes_no_other_name_of_the_newest_step(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("s1-a.pt", "s2-a.pt", "s2-b.pt")
    a_pass(work_dir, templates="s{step}-{*}.pt", max_bytes=1, trash_ttl_s=0.0)
    assert left(work_dir) == ["s2-a.pt", "s2-b.pt"]


def test_a_plan_says_where_every_name_is_a_series(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*(f"e{epoch}-{90 + epoch}.pt" for epoch in range(1, 6)))
    survey = api.plan(work_dir, Policy(templates=("e{epoch}-{dice}.pt",), max_keep=1))
    assert any("each of its 5 names is a series of its own" in each and "{*}" in each for each in survey.advice)
    assert not api.plan(work_dir, Policy(templates=("e{epoch}-{dice:.0f}.pt",), max_keep=1)).advice


def test_what_has_no_grid_says_so_where_one_is_asked_for(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("e1-0.50.pt", "e2-0.40.pt")
    for more in ({"rule": "stepped"}, {"interval": 1}):
        survey = api.plan(work_dir, Policy(templates=("e{epoch}-{loss:.2f}.pt",), max_keep=1, **more))
        assert any("no grid to step on" in each for each in survey.advice)


def test_dates_have_no_milestones(with_checkpoints: Builder) -> None:
    for template in ("CKPT+{time}", "{name}+{time}"):
        with pytest.raises(UsageError, match="is a time, and none is a milestone"):
            Policy(templates=(template,), keep_every=10)
    names = [f"CKPT+2024-05-01+12-30-{second}+00" for second in (10, 20, 30)]
    work_dir = with_checkpoints(*names)
    a_pass(work_dir, templates="CKPT+{time}")
    report = api.plan(work_dir, Policy(max_keep=1, keep_every=10))
    assert not report.plan.decisions  # the remembered ones are looked for by readers only
    assert [d.decision for d in api.plan(work_dir, Policy(templates=("CKPT+{time}",), max_keep=1)).decisions] == [
        "prune", "prune", "keep",
    ]  # fmt: skip


def test_a_state_of_an_earlier_version_is_read_by_the_same_series(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_001.pth", "epoch_002.pth")
    a_pass(work_dir, templates="epoch_{:03d}.pth", max_keep=2)
    state = work_dir / ".ckptd" / "state.json"
    before = json.loads(state.read_text())
    assert a_pass(work_dir, templates="epoch_{epoch:03d}.pth", max_keep=2).survey.remembered is not None
    assert json.loads(state.read_text())["series"].keys() == before["series"].keys() == {"epoch_{:03d}.pth"}


# --- as commands ------------------------------------------------------------------------------------------------------


def test_a_directory_of_shards_is_whole_or_not_under_such_a_name(with_checkpoints: Builder) -> None:
    with_checkpoints.shards("ep0-ba10")
    broken = with_checkpoints.shards("ep0-ba20")
    (broken / ".metadata").write_bytes(dcp_metadata({"__0_0.distcp": 300, "__1_0.distcp": 300}))
    with_checkpoints.tick(broken / ".metadata")
    a_pass(with_checkpoints.work_dir, templates="ep{epoch}-ba{batch}", max_keep=1, trash_ttl_s=0.0)
    assert set(left(with_checkpoints.work_dir)) == {"ep0-ba10", "ep0-ba20"}
    assert pointed(with_checkpoints.work_dir) == "ep0-ba10"


@pytest.mark.parametrize(("arguments", "said"), [
    (["--template", "{}{}"], "could each be the step"),
    (["--template", "epoch_*.pth"], "write {*} for any text"),
    (["--template", "{name}-ba{batch}-rank{rank}.pt"], "tells series apart"),
    (["--template", "CKPT+{time}", "--keep-every", "10"], "is a time"),
    (["--simulate", "e{epoch}-{loss:.2f}.pt:1..9"], "only names with one number can be simulated"),
    (["--simulate", "CKPT+{time}:1..9"], "only names with one number can be simulated"),
])  # fmt: skip
def test_what_cannot_be_meant_is_refused_with_the_reason(
    ckptd: Run, work_dir: Path, arguments: list[str], said: str
) -> None:
    refused = ckptd("plan", *([] if "--simulate" in arguments else [work_dir]), *arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr


def test_the_environment_and_a_unit_take_such_templates(ckptd: Run, with_checkpoints: Builder) -> None:
    template = "{name}_e{epoch!step}_{*}-{time:%Y%m%d}.pth"
    work_dir = with_checkpoints("bob_e4_x-20240501.pth", "bob_e5_x-20240501.pth")
    planned = json.loads(ckptd("plan", work_dir, "--json", env={"CKPTD_TEMPLATE": template}).stdout)
    (series,) = planned["series"]
    assert (series["template"], series["unit"]) == ("bob_e{epoch!step}_{*}-{time:%Y%m%d}.pth", "epoch")
    assert [each["step"] for each in series["checkpoints"]] == [4, 5]
    unit = ckptd("unit", work_dir, "--template", template)
    assert '"{name}_e{epoch!step}_{*}-{time:%%Y%%m%%d}.pth"' in unit.stdout


def test_below_a_root_such_names_make_a_work_dir(ckptd: Run, with_checkpoints: Builder, tmp_path: Path) -> None:
    with_checkpoints("bob_e4_s104.pth", "bob_e8_s208.pth")
    done = ckptd("prune", "--recursive", tmp_path, "--template", "{name}_e{epoch}_s{step}.pth", "--max-keep", 1,
                 "--trash-ttl", 0)  # fmt: skip
    assert done.returncode == 0
    assert left(with_checkpoints.work_dir) == ["bob_e8_s208.pth"]


def test_what_stands_in_a_name_reaches_no_terminal(ckptd: Run, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("a\x1b[31m_e4_s104.pth", "bob_e8_s208.pth")
    said = ckptd("plan", work_dir, "--max-keep", 1, "--template", "{name}_e{epoch}_s{step}.pth")
    assert "\x1b" not in said.stdout + said.stderr
    assert "bob_e{epoch}_s{step}.pth" in said.stdout


# --- what stands beside checkpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "template", ["weights.{epoch:02d}-{*}.h5", "weights.{epoch:02d}-{tag}", "{*}.{epoch:02d}-{x:s}"]
)
def test_pins_and_scores_are_of_no_template(template: str, work_dir: Path) -> None:
    build = Builder(work_dir)
    for step in (1, 2, 3):
        build(f"weights.{step:02d}-0.5{step}.h5")
    for beside in (".keep", ".metrics.json"):
        (work_dir / f"weights.01-0.51.h5{beside}").write_text("{}" if "json" in beside else "")
    survey = api.plan(work_dir, Policy(max_keep=1, templates=(template,)))
    assert all(d.checkpoint.name.endswith(".h5") for d in survey.decisions)
    assert {d.checkpoint.name: d.decision for d in survey.decisions}["weights.01-0.51.h5"] != "prune"


@pytest.mark.parametrize("template", [
    "weights.{epoch:02d}-{*}", "{*}_{}.{*}", "{step}.keep", "epoch_{}.pth.metrics.json",
    "{step}-{loss:.1f}.metrics.json",
])  # fmt: skip
def test_a_template_of_what_is_no_checkpoint_is_refused(template: str) -> None:
    with pytest.raises(UsageError, match=r"any text|kept beside"):
        Policy(templates=(template,))


MODEL, BUFFER, OTHER = "rl_model_{}_steps.zip", "rl_model_replay_buffer_{}_steps.pkl", "epoch-{}.pt"


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ([(MODEL, 10), (BUFFER, 10), (MODEL, 20), (BUFFER, 20)], (MODEL, 20)),
        ([(BUFFER, 10), (MODEL, 10), (MODEL, 20)], (MODEL, 20)),
        ([(MODEL, 10), (BUFFER, 10), (MODEL, 20), (BUFFER, 20), (BUFFER, 30)], (MODEL, 20)),
        ([(MODEL, 10), (BUFFER, 10)], (MODEL, 10)),
        ([(OTHER, 1), (BUFFER, 10), (OTHER, 2), (BUFFER, 20)], (BUFFER, 20)),
        ([(MODEL, 1), (MODEL, 2), (MODEL, 3), (OTHER, 3), (OTHER, 4), (OTHER, 5)], (OTHER, 5)),
        ([(BUFFER, 10)], (BUFFER, 10)),
    ],
)
def test_of_series_that_save_the_same_steps_the_first_that_was_named_is_resumed_from(
    saved: list[tuple[str, int]], expected: tuple[str, int], with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*(template.format(step) for template, step in saved))
    newest = api.latest(work_dir, Policy(templates=(MODEL, OTHER, BUFFER)))
    assert newest == work_dir / expected[0].format(expected[1])
    a_pass(work_dir, templates=(MODEL, OTHER, BUFFER), max_keep=1, trash_ttl_s=0.0)
    assert pointed(work_dir) == newest.name
