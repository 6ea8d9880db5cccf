"""Several files are one checkpoint, on a disk: whole where each is, protected where one is, and told as one."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.plan import KEEP, PRUNE, SKIP
from ckptd.core.policy import Policy
from ckptd.core.survey import Survey

from .conftest import Builder, Ckptd, Watching, a_pass, eventually, left, passes, pointed, torch_zip, truncated

Watch = Callable[..., AbstractContextManager[Watching]]

PAIR = "G_{}.pth + D_{}.pth"
ONE = Policy(templates=PAIR, max_keep=1, settle_s=0.0)


def pairs(*steps: int) -> list[str]:
    return [f"{part}_{step}.pth" for step in steps for part in "GD"]


def decisions(survey: Survey) -> dict[str, str]:
    return {d.checkpoint.name: d.decision for d in survey.decisions}


def states(work_dir: Path, **policy: object) -> dict[str, tuple[str, str]]:
    made = Policy(**{"templates": PAIR, "settle_s": 0.0, **policy})  # type: ignore[arg-type]
    return {
        d.checkpoint.name: (d.checkpoint.state.value, d.checkpoint.evidence) for d in api.plan(work_dir, made).decisions
    }


# --- what counts


def test_between_the_saves_of_two_parts_the_last_whole_pair_stays(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1))
    with passes(work_dir, templates=PAIR, max_keep=1, trash_ttl_s=0.0) as process:
        process.reconcile()
        for step in (2, 3):
            with_checkpoints(f"G_{step}.pth")
            report = process.reconcile()
            assert decisions(report.survey)[f"G_{step - 1}.pth"] == KEEP
            assert pointed(work_dir) == f"G_{step - 1}.pth"
            with_checkpoints(f"D_{step}.pth")
            report = process.reconcile()
            assert decisions(report.survey)[f"G_{step - 1}.pth"] == PRUNE
            assert pointed(work_dir) == f"G_{step}.pth"


@pytest.mark.parametrize(("content", "name", "evidence"), [
    (None, "D_3.pth", "D_3.pth is missing"),
    (None, "G_3.pth", "G_3.pth is missing"),
    (truncated(), "D_3.pth", "D_3.pth: no end record: cut short"),
    (truncated(), "G_3.pth", "G_3.pth: no end record: cut short"),
    (b"", "D_3.pth", "D_3.pth: empty"),
])  # fmt: skip
def test_half_a_group_never_counts(with_checkpoints: Builder, content: bytes | None, name: str, evidence: str) -> None:
    work_dir = with_checkpoints(*pairs(1, 2, 3))
    if content is None:
        (work_dir / name).unlink()
    else:
        with_checkpoints(name, content=content)
    survey = api.plan(work_dir, ONE)
    assert decisions(survey) == {"G_1.pth": PRUNE, "G_2.pth": KEEP, "G_3.pth": KEEP}
    assert survey.newest == "G_2.pth"
    state, said = states(work_dir)["G_3.pth"]
    assert state == "incomplete"
    assert said.startswith(evidence)
    assert str(api.latest(work_dir, ONE)) == str(work_dir / "G_2.pth")


def test_half_of_all_that_there_is_is_nothing_to_resume_from(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("G_1.pth")
    (work_dir / "last_ckpt").write_text(f"{work_dir}/G_1.pth\n")
    done = ckptd("latest", str(work_dir), "--template", PAIR)
    assert (done.returncode, done.stdout) == (6, "")
    assert "D_1.pth is missing" in done.stderr


def test_what_is_young_may_yet_get_its_other_half(work_dir: Path) -> None:
    (work_dir / "G_1.pth").write_bytes(torch_zip())
    survey = api.plan(work_dir, Policy(templates=PAIR))
    assert [d.checkpoint.state.value for d in survey.decisions] == ["in flight"]
    assert survey.settles_s is not None


def test_a_part_that_is_open_for_writing_has_all_of_it_in_flight(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    with open(work_dir / "D_2.pth", "r+b"):
        assert states(work_dir)["G_2.pth"][0] == "in flight"
        assert decisions(api.plan(work_dir, ONE)) == {"G_1.pth": KEEP, "G_2.pth": KEEP}


def test_a_part_with_a_hole_in_its_content_is_found_before_anything_relies_on_it(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    content = bytearray((work_dir / "D_2.pth").read_bytes())
    at = content.index(b"w" * 100) + 50
    content[at : at + 9] = bytes(9)
    with_checkpoints("D_2.pth", content=bytes(content))
    report = a_pass(work_dir, templates=PAIR, max_keep=1)
    assert decisions(report.survey)["G_1.pth"] == KEEP
    assert pointed(work_dir) == "G_1.pth"
    assert states(work_dir)["G_2.pth"] == ("incomplete", "D_2.pth: member archive/data/0 is damaged (CRC)")


def test_an_unverifiable_part_makes_all_of_it_that(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("G_1.pth")
    with_checkpoints("D_1.pth", content=b"some format of theirs" * 20)
    assert states(work_dir)["G_1.pth"][0] == "unverifiable"


def test_parts_may_be_many(with_checkpoints: Builder) -> None:
    text = "model_{:06d}.pt + meta_{:06d}.json + optim_{:06d}.pt"
    work_dir = with_checkpoints("model_000100.pt", "optim_000100.pt", "model_000200.pt", "optim_000200.pt")
    with_checkpoints("meta_000100.json", content=b"{}" * 9)
    found = states(work_dir, templates=text)
    assert found["model_000100.pt"][0] == "unverifiable"
    assert found["model_000200.pt"] == ("incomplete", "meta_000200.json is missing")


def test_variants_of_one_step_are_told_apart_by_what_their_parts_agree_on(with_checkpoints: Builder) -> None:
    text = "G_{epoch}_{loss:.2f}.pt + D_{epoch}_{loss:.2f}.pt"
    work_dir = with_checkpoints("G_1_0.50.pt", "D_1_0.50.pt", "G_1_0.40.pt")
    assert {name: state for name, (state, _) in states(work_dir, templates=text).items()} == {
        "G_1_0.50.pt": "complete", "G_1_0.40.pt": "incomplete",
    }  # fmt: skip


# --- what is odd


def test_two_names_of_one_part_are_in_doubt(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("G_1_0.50.pt", "G_1_0.40.pt", "D_1.pt")
    ((name, (state, said)),) = states(work_dir, templates="G_{epoch}_{loss:.2f}.pt + D_{epoch}.pt").items()
    assert (name, state) == ("G_1_0.40.pt", "in doubt")
    assert "G_1_0.40.pt and G_1_0.50.pt are both the same part" in said


def test_a_part_that_is_a_link_is_not_followed(with_checkpoints: Builder, tmp_path: Path) -> None:
    work_dir = with_checkpoints(*pairs(1, 2, 3))
    (work_dir / "D_2.pth").rename(tmp_path / "D_2.pth")
    (work_dir / "D_2.pth").symlink_to(tmp_path / "D_2.pth")
    assert states(work_dir)["G_2.pth"][0] == "in doubt"
    survey = api.plan(work_dir, ONE)
    assert decisions(survey) == {"G_1.pth": PRUNE, "G_2.pth": KEEP, "G_3.pth": KEEP}
    assert [each.name for each in survey.left_alone] == ["D_2.pth"]


def test_a_part_that_is_a_directory_is_left_alone_and_so_is_what_it_is_of(with_checkpoints: Builder) -> None:
    for template in (PAIR, "G_{} + D_{}"):
        end = ".pth" if template == PAIR else ""
        work_dir = with_checkpoints(f"G_1{end}", f"G_2{end}", f"D_2{end}")
        (work_dir / f"D_1{end}").mkdir()
        survey = api.plan(work_dir, Policy(templates=template, max_keep=1, settle_s=0.0))
        assert decisions(survey) == {f"G_1{end}": KEEP, f"G_2{end}": KEEP}
        assert [(each.name, "a directory" in each.reason) for each in survey.left_alone] == [(f"D_1{end}", True)]


def test_two_parts_that_are_one_file_are_in_doubt(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("G_1.pth")
    os.link(work_dir / "G_1.pth", work_dir / "D_1.pth")
    state, said = states(work_dir)["G_1.pth"]
    assert (state, "G_1.pth and D_1.pth are one file" in said) == ("in doubt", True)


def test_a_part_that_may_not_be_read_keeps_all_of_it(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptd.inspect import verdict

    work_dir = with_checkpoints(*pairs(1, 2))
    opened = verdict.opened_file

    def refused(name: str, *, dir_fd: int) -> object:
        if name == "D_1.pth":
            raise PermissionError(13, "Permission denied", name)
        return opened(name, dir_fd=dir_fd)

    monkeypatch.setattr(verdict, "opened_file", refused)
    survey = api.plan(work_dir, ONE)
    assert [each.entry.name for each in survey.unreadable] == ["G_1.pth"]
    assert PRUNE not in decisions(survey).values()


# --- who protects


def by_pin(work_dir: Path, name: str) -> None:
    (work_dir / f"{name}.keep").touch()


def by_link(work_dir: Path, name: str) -> None:
    (work_dir / "best.pth").symlink_to(name)


def by_pointer(work_dir: Path, name: str) -> None:
    (work_dir / "last_checkpoint").write_text(f"/elsewhere/{name}")


@pytest.mark.parametrize("of", ["G", "D"])
@pytest.mark.parametrize("protect", [by_pin, by_link, by_pointer])
def test_what_protects_one_part_protects_all(
    with_checkpoints: Builder, protect: Callable[[Path, str], None], of: str
) -> None:
    work_dir = with_checkpoints(*pairs(1, 2, 3))
    protect(work_dir, f"{of}_1.pth")
    assert decisions(api.plan(work_dir, ONE)) == {"G_1.pth": SKIP, "G_2.pth": PRUNE, "G_3.pth": KEEP}


def test_a_pointer_to_a_second_part_names_its_checkpoint(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    (work_dir / "last_ckpt").write_text(f"{work_dir}/D_2.pth\n")
    assert api.plan(work_dir, ONE).pointed_name == "G_2.pth"
    # Met for the first time in doubtful order, it is what the pointer names that counts.
    for name in pairs(2):
        os.utime(work_dir / name, (1, 1))
    assert api.plan(work_dir, ONE).newest == "G_2.pth"


def test_unpin_tells_what_becomes_of_all_of_it(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    for name in ("G_1.pth", "D_1.pth"):
        ckptd("pin", f"{work_dir}/{name}")
    said = [ckptd("unpin", f"{work_dir}/{name}", "--template", PAIR, "--max-keep", "1").stdout for name in pairs(1)]
    assert "it stays (pinned (D_1.pth))" in said[0]
    assert "the next pass prunes it" in said[1]


# --- over time


def test_a_rewrite_of_one_part_alone_is_the_middle_of_a_save(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=2, settle_s=0.0)
    with_checkpoints("G_2.pth", content=torch_zip(b"v" * 700))
    with passes(work_dir, templates=PAIR, max_keep=1, settle_s=0.0) as process:
        for _ in range(2):
            survey = process.reconcile().survey
            assert {d.checkpoint.state.value for d in survey.decisions if d.checkpoint.step == 2} == {"in doubt"}
            assert decisions(survey) == {"G_1.pth": KEEP, "G_2.pth": KEEP}
        with_checkpoints("D_2.pth", content=torch_zip(b"v" * 700))
        survey = process.reconcile().survey
        assert decisions(survey) == {"G_1.pth": PRUNE, "G_2.pth": KEEP}
        assert survey.plan.memory.seen["G_2.pth"].order == 4


def test_another_process_remembers_that_only_one_part_was_rewritten(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=1, settle_s=0.0)
    with_checkpoints("D_2.pth", content=torch_zip(b"v" * 700))
    a_pass(work_dir, templates=PAIR, max_keep=1, settle_s=0.0)
    assert states(work_dir)["G_2.pth"][0] == "in doubt"


def test_all_parts_are_durable_before_anything_relies_on_them(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ckptd.passes import reliance

    synced: list[str] = []
    monkeypatch.setattr(reliance, "sync_file", lambda name, dir_fd: synced.append(name))
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=1)
    assert synced == pairs(2)


@pytest.mark.parametrize(("before", "after", "there", "named"), [
    pytest.param(PAIR, ("G_{}.pth", "D_{}.pth"), ["G_2.pth"], "G_2.pth", id="a pair, then two series"),
    pytest.param(("G_{}.pth", "D_{}.pth"), PAIR, ["G_2.pth"], "G_1.pth", id="two series, then a pair"),
    pytest.param(PAIR, PAIR + " + O_{}.pth", ["G_2.pth", "D_2.pth"], "G_1.pth", id="a pair, then three"),
    pytest.param(PAIR + " + O_{}.pth", PAIR, ["G_2.pth", "D_2.pth"], "G_2.pth", id="three, then a pair"),
])  # fmt: skip
def test_after_a_changed_template_latest_goes_by_the_last(
    before: str | tuple[str, ...], after: str | tuple[str, ...], there: list[str], named: str, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints("G_1.pth", "D_1.pth", "O_1.pth")
    for templates in (before, after):
        a_pass(work_dir, templates=templates, max_keep=2)
        with_checkpoints(*there)
    a_pass(work_dir, templates=after, max_keep=2)
    assert pointed(work_dir) == named
    latest = api.latest(work_dir)
    assert latest is not None
    assert latest.name == named


def test_a_later_process_finds_them_by_what_is_remembered(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=2)
    (work_dir / "D_2.pth").unlink()
    assert str(api.latest(work_dir)) == str(work_dir / "G_1.pth")


def test_a_pass_that_is_told_no_template_takes_no_half_of_a_pair(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth", "epoch_1_optim.pth")
    a_pass(work_dir, templates="epoch_{}.pth + epoch_{}_optim.pth", max_keep=1)
    with_checkpoints("epoch_2.pth")
    a_pass(work_dir, max_keep=1, trash_ttl_s=0.0)
    assert left(work_dir) == ["epoch_1.pth", "epoch_1_optim.pth", "epoch_2.pth"]
    assert pointed(work_dir) == "epoch_1.pth"
    a_pass(work_dir, templates="epoch_{}.pth", max_keep=1, trash_ttl_s=0.0)
    assert left(work_dir) == ["epoch_1_optim.pth", "epoch_2.pth"]


def test_all_files_of_one_go_together(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2, 3), "G_4.pth")
    done = ckptd("prune", str(work_dir), "--template", PAIR, "--max-keep", "1", "--trash-ttl", "1h", "--settle", "0")
    assert (done.returncode, left(work_dir)) == (0, ["D_3.pth", "G_3.pth", "G_4.pth"]), done.stderr
    history = ckptd("history", str(work_dir)).stdout.splitlines()
    assert [line.split()[2] for line in history[1:]] == ["G_1.pth", "G_2.pth"], history
    assert ckptd("restore", str(work_dir), "D_2.pth").returncode == 0
    assert left(work_dir) == ["D_2.pth", "G_2.pth", "G_2.pth.keep", "D_3.pth", "G_3.pth", "G_4.pth"]


# --- what is said


def test_the_table_names_the_files(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1), "G_2.pth")
    with_checkpoints("D_3.pth")
    lines = ckptd("plan", str(work_dir), "--template", PAIR, "--settle", "0").stdout.splitlines()
    assert [line.split("  ")[1] for line in lines[2:5]] == ["G_1.pth + D_1.pth", "G_2.pth", "G_3.pth and 1 more file"]


def test_json_has_the_files(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1), "epoch_1.pth")
    done = ckptd("plan", str(work_dir), "--template", PAIR, "--template", "epoch_{}.pth", "--json")
    series = json.loads(done.stdout)["series"]
    assert {each["template"]: each["checkpoints"][0]["files"] for each in series} == {
        PAIR: ["G_1.pth", "D_1.pth"], "epoch_{}.pth": ["epoch_1.pth"],
    }  # fmt: skip


def test_the_variable_takes_a_group_among_others(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2), "epoch_1.pth")
    done = ckptd("plan", str(work_dir), "--json", env={"CKPTD_TEMPLATE": f"epoch_{{}}.pth {PAIR} x_{{}}"})
    assert [each["template"] for each in json.loads(done.stdout)["series"]] == ["epoch_{}.pth", PAIR]


def test_the_policy_gives_its_options_again(ckptd: Ckptd, work_dir: Path) -> None:
    assert f"--template '{PAIR}'" in ckptd("unit", str(work_dir), "--template", PAIR).stdout.replace('"', "'")


# --- ranks

RANKS = "model_{step:07d}.rank_{rank}.pth"


def ranks(step: int, *numbers: int) -> list[str]:
    return [f"model_{step:07d}.rank_{rank}.pth" for rank in numbers]


def test_the_ranks_of_a_run_are_one_checkpoint_from_its_second_save_on(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints.work_dir
    with passes(work_dir, templates=RANKS, max_keep=1, settle_s=0.0) as process:
        with_checkpoints(*ranks(1, 0, 1, 2, 3))
        survey = process.reconcile().survey
        assert (survey.newest, survey.decisions[0].checkpoint.state.value) == (None, "in doubt")
        with_checkpoints(*ranks(2, 0, 1, 2, 3))
        assert decisions(process.reconcile().survey) == {ranks(1, 0)[0]: PRUNE, ranks(2, 0)[0]: KEEP}
        for rank in range(3):
            with_checkpoints(*ranks(3, rank))
            survey = process.reconcile().survey
            assert survey.newest == ranks(2, 0)[0]
            assert decisions(survey)[ranks(2, 0)[0]] == KEEP
        with_checkpoints(*ranks(3, 3))
        assert process.reconcile().survey.newest == ranks(3, 0)[0]
    for name in ranks(1, 0, 1, 2, 3) + ranks(2, 0, 1, 2, 3):
        (work_dir / name).unlink(missing_ok=True)
    assert str(api.latest(work_dir, Policy(templates=RANKS, settle_s=0.0))).endswith("model_0000003.rank_0.pth")


def test_a_smaller_world_is_in_doubt(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*ranks(1, 0, 1, 2), *ranks(2, 0, 1, 2), *ranks(3, 0, 1))
    found = states(work_dir, templates=RANKS)
    assert [state for state, _ in found.values()] == ["complete", "complete", "in doubt"]
    assert "it has 2 files, and saves before had 3" in found[ranks(3, 0)[0]][1]


def test_ranks_0_to_6_of_8_are_incomplete(with_checkpoints: Builder) -> None:
    text = "m_{step}_world_size_{world_size}_rank_{rank}.pt"
    work_dir = with_checkpoints(
        *(f"m_{step}_world_size_8_rank_{rank}.pt" for step in (1, 2) for rank in range(8 - step // 2))
    )
    found = states(work_dir, templates=text)
    assert [state for state, _ in found.values()] == ["complete", "incomplete"]
    assert found["m_2_world_size_8_rank_0.pt"][1] == f"part 7 of 8 ({text}) is missing"


def test_composers_ranks_are_one_checkpoint_by_batch(with_checkpoints: Builder) -> None:
    names = [f"ep0-ba{batch}-rank{rank}.pt" for batch in (10, 20, 30) for rank in (0, 1)]
    work_dir = with_checkpoints(*names[:-1])
    found = states(work_dir, templates="ep{epoch}-ba{batch}-rank{rank}.pt")
    assert {name: state for name, (state, _) in found.items()} == {
        "ep0-ba10-rank0.pt": "complete", "ep0-ba20-rank0.pt": "complete", "ep0-ba30-rank0.pt": "in doubt",
    }  # fmt: skip


# --- whether they are one is asked


def together(work_dir: Path, *templates: str) -> list[str]:
    advice = api.plan(work_dir, Policy(templates=templates, max_keep=1, settle_s=0.0)).advice
    return [line for line in advice if "the same steps" in line]


def test_series_that_are_saved_together_are_asked_about_with_the_command(
    ckptd: Ckptd, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*pairs(1, 2, 3), "G_4.pth")
    (line,) = together(work_dir, "G_{}.pth", "D_{}.pth")
    assert line.startswith(
        "G_{}.pth and D_{}.pth have the same steps; if the files of a step are one checkpoint: ckptd plan"
    )
    done = ckptd(*shlex.split(line.partition(": ckptd ")[2]), "--json")
    (series,) = json.loads(done.stdout)["series"]
    assert [each["files"] for each in series["checkpoints"]] == [pairs(1), pairs(2), pairs(3), ["G_4.pth"]]
    assert together(work_dir, PAIR) == []


def test_three_series_are_one_question(with_checkpoints: Builder) -> None:
    names = [f"{part}_{step}.pt" for step in (1, 2) for part in "abc"]
    (line,) = together(with_checkpoints(*names), "a_{}.pt", "b_{}.pt", "c_{}.pt")
    assert line.startswith("a_{}.pt, b_{}.pt and c_{}.pt have the same steps")


def test_runs_side_by_side_are_not_asked_about(with_checkpoints: Builder) -> None:
    names = [f"{part}_{step}.pth" for part in "GD" for step in (1, 2, 3)]
    assert together(with_checkpoints(*names), "G_{}.pth", "D_{}.pth") == []


# --- the commands


def test_verify_tells_of_all_files_once_passes_know_them_for_one(ckptd: Ckptd, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=1)
    for name in pairs(2):
        assert "complete (2 files, each torch zip" in ckptd("verify", f"{work_dir}/{name}").stdout
    content = bytearray((work_dir / "D_2.pth").read_bytes())
    content[content.index(b"w" * 100) + 50] = 0
    with_checkpoints("G_2.pth", "D_2.pth")
    with_checkpoints("D_2.pth", content=bytes(content))
    done = ckptd("verify", f"{work_dir}/G_2.pth")
    assert (done.returncode, "incomplete (D_2.pth: member" in done.stdout) == (1, True)
    (work_dir / "D_2.pth").unlink()
    assert "incomplete (D_2.pth is missing)" in ckptd("verify", f"{work_dir}/G_2.pth").stdout


def test_what_passes_know_for_a_part_is_none_by_a_known_name(with_checkpoints: Builder) -> None:
    text = "epoch_{}.pth + epoch_{}_optim.pth"
    work_dir = with_checkpoints("epoch_1.pth", "epoch_1_optim.pth", "epoch_2.pth", "epoch_2_optim.pth")
    a_pass(work_dir, templates=text, max_keep=2)
    (work_dir / "epoch_2_optim.pth").unlink()
    assert str(api.latest(work_dir)).endswith("epoch_1.pth")


def test_the_best_pairs_stay(with_checkpoints: Builder) -> None:
    text = "G_{epoch}_{loss:.2f}.pt + D_{epoch}_{loss:.2f}.pt"
    work_dir = with_checkpoints(
        *(f"{part}_{at}_{loss}.pt" for at, loss in enumerate(("0.50", "0.20", "0.90")) for part in "GD")
    )
    survey = api.plan(work_dir, Policy(templates=text, max_keep=1, keep_best="loss:min"))
    assert list(decisions(survey).values()) == [PRUNE, KEEP, KEEP]


def test_pairs_below_a_root_are_found(ckptd: Ckptd, tmp_path: Path) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
        Builder(tmp_path / run)(*pairs(1, 2))
    done = ckptd("plan", "--recursive", str(tmp_path), "--template", PAIR, "--max-keep", "1", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [[each["decision"] for each in row["series"][0]["checkpoints"]] for row in rows] == [["prune", "keep"]] * 2


def test_watch_points_at_the_last_whole_pair(work_dir: Path, watching: Watch) -> None:
    Builder(work_dir)(*pairs(1))
    with watching(work_dir, "--template", PAIR, "--max-keep", "1", "--settle", "0"):
        eventually(lambda: (work_dir / "last_ckpt").exists() and pointed(work_dir) == "G_1.pth")
        for name in pairs(2):
            assert pointed(work_dir) == "G_1.pth"
            (work_dir / f".{name}").write_bytes(torch_zip())
            (work_dir / f".{name}").rename(work_dir / name)
        eventually(lambda: pointed(work_dir) == "G_2.pth")


# --- of two saves


@pytest.mark.parametrize("then", [PAIR, "D_{}.pth + G_{}.pth"], ids=["as before", "said in another order"])
@pytest.mark.parametrize("removed", [True, False], ids=["removed first", "written over"])
def test_a_half_that_was_saved_again_makes_no_whole_pair_go(
    removed: bool, then: str, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*pairs(1, 2, 3))
    policy: dict[str, object] = {"settle_s": 0.0, "trash_ttl_s": 0.0}
    a_pass(work_dir, templates=PAIR, max_keep=2, **policy)
    if removed:
        (work_dir / "G_3.pth").unlink()
        a_pass(work_dir, templates=PAIR, max_keep=1, **policy)
    with_checkpoints("G_3.pth")
    for _ in range(3):
        survey = a_pass(work_dir, templates=then, max_keep=1, **policy).survey
        (mixed,) = [d.checkpoint for d in survey.decisions if d.checkpoint.step == 3]
        assert (mixed.state.value, "G_3.pth was written over" in mixed.evidence) == ("in doubt", True)
        assert set(pairs(2, 3)) <= set(left(work_dir))
        assert pointed(work_dir) == f"{then[0]}_2.pth", "the pointer goes back once nobody saves any more"
    with_checkpoints("D_3.pth")
    a_pass(work_dir, templates=then, max_keep=1, **policy)
    assert pointed(work_dir) == f"{then[0]}_3.pth"
    assert set(pairs(3)) <= set(left(work_dir))
    assert not set(pairs(2)) & set(left(work_dir))


def test_while_a_pair_is_being_saved_again_it_is_in_flight(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=2)
    (work_dir / "G_2.pth").write_bytes(torch_zip())
    survey = a_pass(work_dir, templates=PAIR, max_keep=1).survey
    assert [d.checkpoint.state.value for d in survey.decisions] == ["complete", "in flight"]
    assert survey.settles_s is not None
    assert set(pairs(1, 2)) <= set(left(work_dir))


def test_what_lacks_a_file_by_now_is_not_said_to_have_been_read(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*pairs(1, 2))
    a_pass(work_dir, templates=PAIR, max_keep=2, settle_s=0.0)
    assert states(work_dir)["G_2.pth"][1].endswith("content read")
    a_pass(work_dir, templates=f"{PAIR} + O_{{}}.pth", max_keep=2, settle_s=0.0)
    assert states(work_dir, templates=f"{PAIR} + O_{{}}.pth")["G_2.pth"][1] == "O_2.pth is missing"
