"""Where nothing is found: what is told of what is there instead, and that the command it names finds it."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import shlex
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from tests.conftest import Watching, safetensors, torch_zip
from tests.layouts.writers import BY_ITSELF, WRITERS, Run, Writer, put
from tests.test_hdf5 import hdf5

Ckptd = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., contextlib.AbstractContextManager[Watching]]

_STYLES: dict[str, list[str]] = {
    "a directory below": [f"checkpoints/model_{i}.pt" for i in range(1, 7)],
    "zero-padded steps": [f"ckpt_{i * 500:06d}.pt" for i in range(1, 7)],
    "an equals sign": [f"checkpoint_epoch={i}.pth.tar" for i in range(1, 7)],
    "the run's name": [f"exp1_epoch{i}.pt" for i in range(1, 7)],
    "known names below": [f"runs/exp1/checkpoints/epoch_{i}.pt" for i in range(1, 7)],
    "model_epoch": [f"model_epoch_{i}.pth" for i in range(1, 7)],
    "pth.tar": [f"checkpoint_{i}.pth.tar" for i in range(1, 7)],
    "a hyphen": [f"checkpoint-{i * 100}.pt" for i in range(1, 7)],
    "padded, no separator": [f"epoch{i:03d}.pth" for i in range(1, 7)],
    "a bare number": [f"{i * 100}.pt" for i in range(1, 7)],
    "step": [f"step_{i}.pt" for i in range(1, 7)],
    "safetensors": [f"model_step{i}.safetensors" for i in range(1, 7)],
    "two digits": [f"weights.{i:02d}.pt" for i in range(1, 7)],
    "a directory each": [f"step_{i}/{part}.pt" for i in range(1, 7) for part in ("model", "optimizer")],
    "a pair": [f"{net}_{i * 1000}.pth" for i in range(1, 7) for net in "GD"],
    "a generator and a critic": [f"{net}_{i * 1000}.pth" for i in range(1, 7) for net in ("disc", "gen")],
    "a pair, padded": [f"{net}_{i * 5000:08d}" + ".pt" for i in range(1, 7) for net in ("g", "do")],
    "a state and another's": [f"{what}_state_{i}.th" for i in range(6) for what in ("model", "training")],
    "an optimizer beside": [f"snapshot.{i:03d}{end}.pt" for i in range(1, 7) for end in ("", ".opt")],
    "three endings": [f"{i}{end}" for i in range(6) for end in (".pdparams", ".pdopt", ".pdema")],
    "a buffer beside": [f"rl_model{what}_{i * 100}_steps{end}" for i in range(1, 7)
                        for what, end in (("", ".zip"), ("_replay_buffer", ".pkl"), ("_vecnormalize", ".pkl"))],
    "TensorFlow": [f"ckpt-{i}{end}" for i in range(1, 7) for end in (".data-00000-of-00001", ".index")],
    "ranks": [f"model_{i * 2500 - 1:07d}.rank_{rank}.pth" for i in range(1, 7) for rank in range(4)],
    "two runs": [f"{run}_epoch{i}.pt" for run in ("bob", "alice") for i in range(1, 7)],
    "a date": [f"resnet50_2026-11-20_ep{i}.pth" for i in range(1, 7)],
    "iter": [f"iter{i}.ckpt" for i in range(1, 7)],
    "padded twin of a known name": [f"epoch_{i:03d}.pth" for i in range(1, 7)],
    "a directory each, by number": [f"{i}/model.safetensors" for i in range(1, 7)],
    "a directory each, by role": [f"step_{i}/policy/weights.pt" for i in range(1, 7)],
    "a directory each, in steps of a run": [f"global_step_{i * 10}/policy/model_state.pt" for i in range(1, 7)],
    "a loss in the name": [f"ckpt-epoch-{i}-loss-0.{i * 1111}.pt" for i in range(1, 7)],
    "Keras, with a loss": [f"weights.{i:02d}-0.{90 - i}.h5" for i in range(1, 7)],
    "Keras": [f"weights.{i:02d}.h5" for i in range(1, 7)],
}  # fmt: skip


def write(place: Path, names: list[str]) -> None:
    for at, name in enumerate(names):
        path = place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        content = safetensors() if name.endswith(".safetensors") else torch_zip()
        if ".data-" in name or name.endswith(".index"):
            content = b"bytes of no known format" + bytes.fromhex("57fb808b247547db") * name.endswith(".index")
        path.write_bytes(hdf5() if name.endswith(".h5") else content)
        os.utime(path, ns=(10**18 + at * 10**9,) * 2)


def command_in(line: str) -> list[str]:
    """The words of the command that stands at the end of a line, without `ckptd` itself."""
    return shlex.split(line[line.index("ckptd plan ") :])[1:]


def advice(place: Path, **policy: object) -> list[str]:
    return list(api.plan(place, Policy(**policy)).advice)  # type: ignore[arg-type]


@pytest.mark.parametrize("style", _STYLES)
def test_the_command_that_is_told_lists_exactly_what_is_meant(style: str, work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, _STYLES[style])
    assert api.plan(work_dir).decisions == ()
    told = ckptd("plan", work_dir, "--max-keep", 3)
    lines = [line for line in told.stdout.splitlines() if line.startswith("note: ")]
    assert len(lines) == 1, told.stdout

    done = ckptd(*command_in(lines[0]), "--json")
    plan = json.loads(done.stdout)
    rows = [row for series in plan["series"] for row in series["checkpoints"]]
    found = {os.path.join(plan["work_dir"], name) for row in rows for name in row["files"]}

    meant = {str(work_dir / (name.partition("/")[0] if name.count("/") and name.split("/")[0][-1].isdigit() else name))
             for name in _STYLES[style]}  # fmt: skip
    assert found == meant


@pytest.mark.parametrize(("style", "template"), [
    ("a generator and a critic", "gen_{}.pth + disc_{}.pth"),
    ("a pair, padded", "g_{:08d}.pt + do_{:08d}.pt"),
    ("a state and another's", "model_state_{}.th + training_state_{}.th"),
    ("an optimizer beside", "snapshot.{:03d}.pt + snapshot.{:03d}.opt.pt"),
    ("three endings", "{}.pdparams + {}.pdema + {}.pdopt"),
    ("a buffer beside",
     "rl_model_{}_steps.zip + rl_model_replay_buffer_{}_steps.pkl + rl_model_vecnormalize_{}_steps.pkl"),
])  # fmt: skip
def test_files_that_are_saved_together_are_told_of_as_one_checkpoint_what_is_resumed_from_first(
    style: str, template: str, work_dir: Path
) -> None:
    write(work_dir, _STYLES[style])
    (told,) = advice(work_dir)
    assert command_in(told)[-2:] == ["--template", template]


def test_while_one_of_them_is_being_saved_they_are_still_told_of_as_one(work_dir: Path) -> None:
    write(work_dir, [*_STYLES["a generator and a critic"], "gen_7000.pth"])
    (told,) = advice(work_dir)
    assert command_in(told)[-2:] == ["--template", "gen_{}.pth + disc_{}.pth"]
    assert told.count("13 torch files") == 1


def test_it_is_in_the_json_and_on_the_way_to_pruning(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, _STYLES["step"])
    (told,) = json.loads(ckptd("plan", work_dir, "--json").stdout)["advice"]
    assert "6 torch files look like one series" in told
    assert told in ckptd("prune", work_dir, "--max-keep", 1).stderr
    assert sorted(os.listdir(work_dir)) == sorted(_STYLES["step"])


def test_a_job_that_asks_for_the_latest_is_told(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, _STYLES["step"])
    done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout) == (6, "")
    assert "--template 'step_{}.pt'" in done.stderr


def test_checkpoints_below_are_told_to_who_is_told_that_there_is_nothing(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, _STYLES["known names below"])
    done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert "6 checkpoints lie in runs/exp1/checkpoints" in done.stderr


def test_watch_says_it_once(work_dir: Path, watching: Watch) -> None:
    write(work_dir, _STYLES["step"])
    with watching(work_dir, "--max-keep", 3, "--scan-interval", "0.1") as watched:
        watched.heard("look like one series")
        (work_dir / "step_7.pt").write_bytes(torch_zip())
        watched.heard("7 torch files look like one series")
        (work_dir / "epoch_1.pth").write_bytes(torch_zip())
        watched.heard("pointed last_ckpt at epoch_1.pth")
        assert watched.said("6 torch files") == 1


def _office() -> bytes:
    """A zip as word processors and packagers write them."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("[Content_Types].xml", "<Types/>")
    return out.getvalue()


_NONE: dict[str, dict[str, bytes]] = {
    "nothing": {},
    "one file": {"model_1.pt": torch_zip()},
    "overwritten": {"checkpoint.pth": torch_zip(), "best.pth": torch_zip()},
    "images": {f"img_{i:04d}.png": b"\x89PNG" for i in range(5)},
    "logs": {f"train_{i}.log": b"text" for i in range(5)},
    "events": {f"events.out.tfevents.{i}.host": b"\x18\0" for i in range(5)},
    "office": {f"step_{i}.docx": _office() for i in range(5)},
    "archives": {f"shard-{i:05d}.tar": bytes(1024) for i in range(5)},
    "features": {f"feature_{i}.pt": torch_zip() for i in range(5)},
    "processed graphs": {f"data_{i}.pt": torch_zip() for i in range(5)},
    "shards of one model": {f"model-{i:05d}-of-00005.safetensors": safetensors() for i in range(1, 6)},
    "ranks": {f"optim_rank_{i}.pt": torch_zip() for i in range(5)},
    "folds": {f"model_fold{i}.pt": torch_zip() for i in range(5)},
    "seeds": {f"model_seed{i}.pt": torch_zip() for i in range(5)},
    "runs": {f"version_{i}/hparams.yaml": b"a: 1" for i in range(5)},
    "empty directories": {f"step_{i}/x.txt": b"" for i in range(5)},
    "text named so": {f"model_{i}.pt": b"text" for i in range(5)},
    "configs": {f"epoch_{i}.yaml": b"a: 1" for i in range(5)},
    "numpy data": {f"patient_{i}.npz": torch_zip() for i in range(5)},
    "pickles of data": {f"samples_{i}.pkl": pickle.dumps([1]) for i in range(5)},
    "hidden": {f".ckpt_{i}.pt": torch_zip() for i in range(5)},
    "code": {f"step_{i}.py": b"pass" for i in range(5)},
    "videos": {f"step_{i}.mp4": b"\0\0\0\x18ftyp" for i in range(5)},
    "scores": {f"epoch_{i}.json": b"{}" for i in range(5)},
    "wheels": {f"pkg-{i}.whl": _office() for i in range(5)},
    "embeddings below": {f"emb/embedding_{i}.pt": torch_zip() for i in range(5)},
    "two versions of a base": {"v1-5-pruned.safetensors": safetensors(), "sdxl-1-0.safetensors": safetensors()},
    "tokenizer": {"vocab.json": b"{}", "merges.txt": b""},
    "indices of others": {f"db-{i}{end}": b"x" * 64 for i in range(5) for end in (".index", ".data-00000-of-00001")},
    "data of others": {f"images-{i}.data-00000-of-00001": b"x" * 64 for i in range(5)},
    "dumps": {f"core.{i}": b"\x7fELF" for i in range(5)},
    "beginnings of zips": {f"step_{i}.docx": b"PK\x03\x04" + bytes(40) for i in range(5)},
    "a cache": {f"cache-{i}.pt": torch_zip() for i in range(5)},
    "runs by number": {f"model_{i}/logs/events.{i}": b"x" for i in range(5)},
    "data by number": {f"{i}/scans/volume.pt": torch_zip() for i in range(5)},
    "tests": {f"test_batch_{i}.pt": torch_zip() for i in range(5)},
}  # fmt: skip


@pytest.mark.parametrize("what", _NONE)
def test_what_is_no_checkpoint_gives_no_advice(what: str, work_dir: Path) -> None:
    for name, content in _NONE[what].items():
        (work_dir / name).parent.mkdir(parents=True, exist_ok=True)
        (work_dir / name).write_bytes(content)
    assert advice(work_dir) == []


def test_runs_of_their_own_are_no_checkpoints_of_one(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, [f"model_{run}/epoch_{i}.pth" for run in (1, 2) for i in (1, 2)])
    (told,) = advice(work_dir)
    assert told.startswith("checkpoints lie in 2 directories below")
    done = ckptd(*command_in(told))
    assert "all 2 runs" in done.stdout


def test_a_layout_is_advised_only_where_the_bytes_are_its(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, [f"global_step_{i}/policy/model.pt" for i in (1, 2)])
    survey = api.plan(work_dir)
    assert "--layout" not in " ".join(each.reason for each in survey.left_alone)
    assert not any("--layout" in line for line in survey.advice)
    for i in (1, 2):
        (work_dir / f"global_step_{i}/mp_rank_00_model_states.pt").write_bytes(torch_zip())
    write(work_dir, [f"global_step{i}/mp_rank_00_model_states.pt" for i in (1, 2)])
    lines = [line for line in advice(work_dir) if "--layout deepspeed" in line]
    assert len(lines) == 1
    listed = ckptd(*command_in(lines[0])).stdout
    assert "global_step1 " in listed
    assert "global_step2 " in listed


def test_a_link_to_a_run_is_told_and_followed_by_the_command(work_dir: Path, tmp_path: Path, ckptd: Ckptd) -> None:
    elsewhere = tmp_path / "scratch"
    write(elsewhere, ["epoch_1.pth", "epoch_2.pth"])
    (work_dir / "a").symlink_to(elsewhere)
    (told,) = advice(work_dir)
    assert told.startswith("a is a symlink to a directory with checkpoints")
    assert "epoch_2.pth" in ckptd(*command_in(told)).stdout


def test_a_name_with_a_blank_and_a_quote_is_quoted(tmp_path: Path, ckptd: Ckptd) -> None:
    place = tmp_path / "my run's"
    write(place, ["it's 1.pt", "it's 2.pt"])
    (told,) = advice(place)
    assert "it's 2.pt" in ckptd(*command_in(told)).stdout


def test_a_template_that_matches_nothing_is_answered_too(work_dir: Path) -> None:
    write(work_dir, _STYLES["zero-padded steps"])
    (told,) = advice(work_dir, templates=("ckpt_{}.pt",))
    assert "'ckpt_{:06d}.pt'" in told


def test_a_cut_short_zip_of_a_known_series_is_still_of_it(work_dir: Path) -> None:
    write(work_dir, _STYLES["step"])
    newest = work_dir / "step_6.pt"
    newest.write_bytes(newest.read_bytes()[:-30])
    (told,) = advice(work_dir)
    assert "6 torch files" in told
    assert not zipfile.is_zipfile(newest)


def test_very_many_directories_are_not_all_looked_into(work_dir: Path) -> None:
    for i in range(1200):
        (work_dir / f"d{i:04d}x").mkdir()
    write(work_dir / "zz" / "yy", ["epoch_1.pth"])
    before = os.times().user
    advice(work_dir)
    assert os.times().user - before < 20  # it ends: how fast is for the bench


def test_half_of_a_run_that_is_padded_is_not_passed_over_in_silence(work_dir: Path, ckptd: Ckptd) -> None:
    names = [f"epoch_{i:03d}.pt" for i in (24, 49, 74, 99, 124, 149, 174, 199)]
    write(work_dir, names)
    survey = api.plan(work_dir, Policy(max_keep=9))
    assert len(survey.decisions) == 4
    (told,) = (line for line in survey.advice if "{:03d}" in line)
    listed = ckptd(*command_in(told)).stdout
    assert all(name in listed for name in names)


def test_what_is_below_a_root_where_nothing_is_found_is_told(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, _STYLES["a directory below"])
    for command in ("plan", "prune"):
        done = ckptd(command, "--recursive", work_dir)
        assert "6 torch files in checkpoints look like checkpoints" in done.stdout + done.stderr


def test_what_stands_beside_checkpoints_and_stays_is_named(work_dir: Path, ckptd: Ckptd) -> None:
    write(work_dir, [f"epoch_{i}{end}.pth" for i in range(1, 6) for end in ("", "_optim")])
    (work_dir / "epoch_1.png").write_bytes(b"\x89PNG")
    (work_dir / "epoch_2.png").write_bytes(b"\x89PNG")
    told = ckptd("plan", work_dir, "--max-keep", 2).stdout
    (note,) = [line for line in told.splitlines() if "stand beside" in line]
    assert note.startswith("note: 5 files such as epoch_5_optim.pth stand beside epoch_{}.pth, and stay when that goes")
    (series,) = json.loads(ckptd(*command_in(note), "--json").stdout)["series"]
    assert [len(row["files"]) for row in series["checkpoints"]] == [2] * 5


@pytest.mark.parametrize("writer", [w for w in WRITERS if w.layout not in BY_ITSELF], ids=str)
def test_the_layout_that_is_told_lists_exactly_what_is_meant(writer: Writer, work_dir: Path, ckptd: Ckptd) -> None:
    names = Run(work_dir, writer).saves(range(1, 5))
    (told,) = advice(work_dir)
    assert told.endswith(f"--layout {writer.layout}")
    (series,) = json.loads(ckptd(*command_in(told), "--json").stdout)["series"]
    assert {row["name"] for row in series["checkpoints"]} == set(names)


@pytest.mark.parametrize("writer", [w for w in WRITERS if w.layout not in BY_ITSELF], ids=str)
def test_no_layout_is_told_where_the_bytes_are_nobodys(writer: Writer, work_dir: Path) -> None:
    is_file = isinstance(writer.content(1), bytes)
    for name in (writer.name(step) for step in range(1, 5)):
        (work_dir / name).parent.mkdir(exist_ok=True)
        put(work_dir / name, b"text" if is_file else {"notes.txt": b"text"})
    survey = api.plan(work_dir)
    assert not any("--layout" in line for line in survey.advice)
    assert not any("--layout" in each.reason for each in survey.left_alone)
