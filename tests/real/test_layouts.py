"""What real frameworks leave in a directory, with no line of ours in the job: recognised, judged, pruned as a unit."""

from __future__ import annotations

import json
import math
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.policy import Policy

from ..conftest import environment
from ..layouts.writers import zeroed_at
from .conftest import HERE

pytestmark = pytest.mark.real

PATIENCE_S = 110.0  # imports of gigabytes, on a machine that may be busy
VERSIONS = {
    "lightning": {"lightning": "2.6.6"},
    "transformers": {"transformers": "5.23.0", "accelerate": "1.15.0"},
    "accelerate": {"accelerate": "1.15.0"},
    "dcp": {},
    "orbax": {"orbax-checkpoint": "0.12.8"},
    "keras": {"keras": "3.15.1"},
    "baselines": {"stable-baselines3": "2.9.2"},
}


def script(name: str, *args: str, tmp: Path) -> str:
    """Run one of the scripts of this folder; returns what it said."""
    env = environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", TMPDIR=str(tmp))
    command = [sys.executable, "-W", "ignore", str(HERE / name), *args]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def written(framework, tmp_path_factory) -> Callable[[str], Path]:
    """Where a framework has written, once for all tests of this module."""
    places: dict[str, Path] = {}

    def ask(name: str) -> Path:
        for package, version in VERSIONS[name].items():
            framework(package, version)
        if name not in places:
            places[name] = tmp_path_factory.mktemp(name)
            (places[name] / "tmp").mkdir()
            script(f"write_{name}.py", str(places[name]), tmp=places[name] / "tmp")
        return places[name]

    return ask


@pytest.fixture
def run(written, tmp_path) -> Callable[[str, str], Path]:
    """A copy of a directory that a framework has written, with its times: `run("lightning", "default")`."""

    def copy(name: str, below: str) -> Path:
        return shutil.copytree(written(name) / below, tmp_path / "run", symlinks=True)

    return copy


def found(work_dir: Path, **policy: Any) -> dict[str, str]:
    survey = ckptd.plan(work_dir, Policy(settle_s=0, **policy))
    return {d.checkpoint.name: d.checkpoint.state.value for d in survey.decisions}


def pruned_to(work_dir: Path, keep: int, **policy: Any) -> list[str]:
    """What is left of the checkpoints in the order of their steps, once there are K."""
    made = Policy(max_keep=keep, settle_s=0, trash_ttl_s=0, **policy)
    assert ckptd.prune(work_dir, made).exit_code == 0
    left = [d.checkpoint.name for d in ckptd.plan(work_dir, made).decisions]
    assert all((work_dir / name).exists() for name in left)
    return left


# --- Lightning ------------------------------------------------------------------------------------------------

DEFAULT = [f"epoch={(step - 1) // 4}-step={step}.ckpt" for step in range(2, 13, 2)]


@pytest.mark.parametrize("way", ["default", "sharded"])
def test_lightnings_own_names_are_recognised_and_pruned(way: str, run) -> None:
    work_dir = run("lightning", way)
    assert found(work_dir) == dict.fromkeys(DEFAULT, "complete")
    assert pruned_to(work_dir, 2) == DEFAULT[-2:]
    assert way == "sharded" or (work_dir / "last.ckpt").is_file()  # a copy of the newest, and no save of its own


def test_what_lightnings_last_links_to_stays(run) -> None:
    work_dir = run("lightning", "link")
    (work_dir / "last.ckpt").unlink()
    (work_dir / "last.ckpt").symlink_to(DEFAULT[0])
    assert pruned_to(work_dir, 1) == [DEFAULT[0], DEFAULT[-1]]


def test_metrics_in_lightnings_names_are_read(run) -> None:
    work_dir = run("lightning", "metrics")
    (series,) = ckptd.plan(work_dir, Policy(settle_s=0)).plan.series
    names = series.grid.template
    assert names.text == "epoch={}-val_loss={}-no_score={}.ckpt"
    assert [c.checkpoint.step for c in series.decisions] == [0, 0, 1, 1, 2, 2]
    for decision in series.decisions:
        metrics = names.metrics_of(decision.checkpoint.name)
        assert 0 < metrics["val_loss"] < 0.1
        assert math.isnan(metrics["no_score"])


def test_a_second_run_of_lightnings_in_one_directory_goes_on_with_the_series(run) -> None:
    work_dir = run("lightning", "versions")
    again = [name.replace(".ckpt", "-v1.ckpt") for name in DEFAULT]
    assert set(found(work_dir)) == {*DEFAULT, *again}
    pruned_to(work_dir, 2)  # resumed: the order of writing and that of the steps disagree, so a save is waited for
    shutil.copyfile(work_dir / again[-1], work_dir / "epoch=3-step=14.ckpt")
    assert set(pruned_to(work_dir, 2)) == {DEFAULT[-1], again[-1], "epoch=3-step=14.ckpt"}  # of two steps


def test_a_name_of_lightnings_with_text_in_front_is_only_pruned_where_asked_for(run) -> None:
    work_dir = run("lightning", "front")
    assert found(work_dir) == {}
    names = [f"sample-mnist-epoch={(step - 1) // 4:02d}-step={step}.ckpt" for step in range(2, 13, 2)]
    assert pruned_to(work_dir, 2, layouts=("lightning",)) == names[-2:]


def test_lightnings_files_with_the_names_of_nemo_are_listed_and_pruned_where_asked_for(run) -> None:
    work_dir = run("lightning", "nemo")
    names = {path.name for path in work_dir.glob("gpt--*-consumed_samples=*.ckpt")}
    survey = ckptd.plan(work_dir, Policy(max_keep=1))
    assert len(names) == 6
    assert (survey.decisions, {each.name for each in survey.left_alone}) == ((), names)
    assert any("--layout nemo" in line for line in survey.advice)
    left = pruned_to(work_dir, 2, layouts=("nemo",))
    assert [int(name.partition("step=")[2].partition("-")[0]) for name in left] == [10, 12]
    assert (work_dir / "last.ckpt").is_file()


def test_a_sharded_directory_without_its_last_file_is_incomplete(run) -> None:
    work_dir = run("lightning", "sharded")
    (work_dir / DEFAULT[-1] / "meta.pt").unlink()
    assert found(work_dir)[DEFAULT[-1]] == "incomplete"
    assert pruned_to(work_dir, 2) == DEFAULT[-3:]


# --- mmengine ---------------------------------------------------------------------------------------------------


def test_mmengines_own_hook_is_pruned_beside_its_best_and_its_pointer(
    framework, trainer, work_dir, monkeypatch
) -> None:
    framework("mmengine", "0.10.7")
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # other tests resume in the same process
    config = 'default_hooks = dict(checkpoint=dict(type="CheckpointHook", interval=1, save_best="score/acc"))'
    job = trainer("train_mmengine.py")
    (said,) = job.do(config=config, work_dir=str(work_dir), until=4, resume=False, more={})
    assert said["best"] == str(work_dir / "best_score_acc_epoch_4.pth")
    names = [f"epoch_{step}.pth" for step in (1, 2, 3, 4)]
    assert found(work_dir) == dict.fromkeys(names, "complete")
    assert (work_dir / "last_checkpoint").read_text() == str(work_dir / names[-1])
    (work_dir / "last_checkpoint").write_text(str(work_dir / names[0]))
    assert pruned_to(work_dir, 2, rule="newest") == [names[0], *names[2:]]
    assert (work_dir / "best_score_acc_epoch_4.pth").exists()


# --- Transformers, Accelerate, DCP ------------------------------------------------------------------------------


def test_a_trainers_checkpoints_are_recognised_and_pruned(run) -> None:
    work_dir = run("transformers", "plain")
    assert found(work_dir) == {f"checkpoint-{step}": "complete" for step in (2, 4, 6, 8, 10)}
    assert pruned_to(work_dir, 2) == ["checkpoint-8", "checkpoint-10"]


def test_the_best_of_a_trainers_stays(run) -> None:
    work_dir = run("transformers", "best")
    assert pruned_to(work_dir, 2) == ["checkpoint-4", "checkpoint-8", "checkpoint-10"]


@pytest.mark.parametrize("file", ["optimizer.pt", "training_args.bin", "rng_state.pth"])
def test_zeros_in_a_file_of_a_trainers_are_found_before_anything_relies_on_it(file: str, run) -> None:
    work_dir = run("transformers", "plain")
    zeroed_at(work_dir / "checkpoint-10" / file)
    assert found(work_dir, verify="structure")["checkpoint-10"] == "complete"
    assert pruned_to(work_dir, 2) == ["checkpoint-6", "checkpoint-8", "checkpoint-10"]
    assert (work_dir / "last_ckpt").read_text() == f"{work_dir}/checkpoint-8\n"
    (damaged,) = [d.checkpoint for d in ckptd.plan(work_dir).decisions if d.checkpoint.name == "checkpoint-10"]
    assert damaged.evidence.startswith(f"{file}: member ")


@pytest.mark.parametrize("file", ["trainer_state.json", "optimizer.pt", "model.safetensors"])
def test_a_trainers_save_that_was_cut_short_goes_in_its_turn(file: str, run) -> None:
    work_dir = run("transformers", "plain")
    path = work_dir / "checkpoint-6" / file
    if file == "trainer_state.json":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    assert found(work_dir)["checkpoint-6"] == "incomplete"
    assert pruned_to(work_dir, 2) == ["checkpoint-8", "checkpoint-10"]


def test_what_accelerate_names_by_itself_is_recognised_and_pruned(run) -> None:
    work_dir = run("accelerate", "named/checkpoints")
    assert found(work_dir) == {f"checkpoint_{index}": "complete" for index in range(4)}
    assert pruned_to(work_dir, 2) == ["checkpoint_2", "checkpoint_3"]


def test_what_the_scripts_of_diffusers_save_is_recognised_and_pruned(run) -> None:
    work_dir = run("accelerate", "diffusers")
    assert found(work_dir) == {f"checkpoint-{step}": "complete" for step in (500, 1000, 1500, 2000)}
    assert pruned_to(work_dir, 2) == ["checkpoint-1500", "checkpoint-2000"]


def test_nothing_marks_the_end_of_accelerates_save_so_it_has_to_be_quiet(run) -> None:
    survey = ckptd.plan(run("accelerate", "named/checkpoints"))
    assert {d.checkpoint.state.value for d in survey.decisions} == {"in flight"}


def test_steps_of_torchs_own_distributed_checkpoint_are_recognised_and_pruned(run) -> None:
    work_dir = run("dcp", "steps")
    assert found(work_dir) == {f"step-{step}": "complete" for step in (0, 100, 200, 300)}
    assert pruned_to(work_dir, 2) == ["step-200", "step-300"]


# --- all the way, by command ------------------------------------------------------------------------------------

RESUMED = [  # where, the steps that a plan tells, and what the framework says that it has loaded
    pytest.param("lightning", "default", "", [2, 4, 6, 8, 10, 12], ["12"], id="Lightning"),
    pytest.param("lightning", "sharded", "", [2, 4, 6, 8, 10, 12], ["12"], id="Lightning, sharded"),
    pytest.param("transformers", "best", "", [2, 4, 6, 8, 10], ["10"], id="Transformers"),
    pytest.param("accelerate", "named", "checkpoints", [0, 1, 2, 3], ["3", "3"], id="Accelerate"),
    pytest.param("dcp", "steps", "", [0, 100, 200, 300], ["300"], id="DCP"),
]


@pytest.mark.parametrize(("name", "below", "inside", "steps", "loaded"), RESUMED)
def test_the_framework_resumes_from_what_latest_prints_after_a_prune(
    name: str, below: str, inside: str, steps: list[int], loaded: list[str], run, ckptd, tmp_path
) -> None:
    work_dir = run(name, below) / inside
    an_hour_later(work_dir)
    (series,) = json.loads(ckptd("plan", work_dir, "--json").stdout)["series"]
    assert [(row["step"], row["state"]) for row in series["checkpoints"]] == [(step, "complete") for step in steps]
    pruned = ckptd("prune", work_dir, "--max-keep", 1, "--trash-ttl", 0)
    assert pruned.returncode == 0, pruned.stderr
    latest = ckptd("latest", work_dir)
    assert latest.returncode == 0, latest.stderr
    assert script(f"write_{name}.py", "read", latest.stdout.rstrip("\n"), tmp=tmp_path).split()[: len(loaded)] == loaded


def an_hour_later(work_dir: Path) -> None:
    """Nothing marks the end of some saves, so a run has to be quiet: its files are an hour older from here on."""
    for path in [*work_dir.rglob("*"), work_dir]:
        info = path.lstat()
        times = (info.st_atime_ns, info.st_mtime_ns - 3600 * 10**9)
        os.utime(path, ns=times, follow_symlinks=False)


# --- Keras ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["keras", "hdf5", "weights"])
def test_kerass_checkpoints_are_pruned_where_asked_for_and_load(way: str, run, tmp_path) -> None:
    work_dir = run("keras", way)
    names = sorted(path.name for path in work_dir.iterdir())
    survey = ckptd.plan(work_dir, Policy(max_keep=1))
    assert (survey.decisions, [each.name for each in survey.left_alone]) == ((), names)
    assert found(work_dir, layouts=("keras",)) == dict.fromkeys(names, "complete")
    assert pruned_to(work_dir, 2, layouts=("keras",)) == names[-2:]
    latest = ckptd.latest(work_dir, Policy(layouts=("keras",)))
    assert latest is not None
    assert f"-{script('write_keras.py', 'read', str(latest), tmp=tmp_path).strip()}." in latest.name


@pytest.mark.parametrize("way", ["keras", "hdf5", "weights"])
def test_a_file_of_kerass_that_was_cut_short_is_incomplete(way: str, run) -> None:
    work_dir = run("keras", way)
    newest = max(work_dir.iterdir())
    newest.write_bytes(newest.read_bytes()[:-1000])
    assert found(work_dir, layouts=("keras",))[newest.name] == "incomplete"


# --- Stable-Baselines3 ----------------------------------------------------------------------------------------


def told(work_dir: Path) -> str:
    """The template that a plan without one tells of."""
    (line,) = ckptd.plan(work_dir, Policy(max_keep=1)).advice
    return shlex.split(line)[-1]


def test_the_models_of_stable_baselines_are_pruned_by_the_template_that_is_told(run) -> None:
    work_dir = run("baselines", "alone")
    assert told(work_dir) == "rl_model_{}_steps.zip"
    names = [f"rl_model_{step}_steps.zip" for step in (16, 32, 48, 64)]
    assert found(work_dir, templates=(told(work_dir),)) == dict.fromkeys(names, "complete")
    assert pruned_to(work_dir, 2, templates=(told(work_dir),)) == names[-2:]


def test_the_files_of_one_save_of_stable_baselines_are_one_checkpoint_and_load(run, tmp_path) -> None:
    work_dir = run("baselines", "all")
    whats = ("", "_replay_buffer", "_vecnormalize")
    assert told(work_dir) == " + ".join(f"rl_model{what}_{{}}_steps{'.pkl' if what else '.zip'}" for what in whats)
    made = Policy(max_keep=1, settle_s=0, templates=(told(work_dir),))
    survey = ckptd.plan(work_dir, made)
    assert [[file.name for file in d.checkpoint.entry.files] for d in survey.decisions] == [
        [f"rl_model{what}_{step}_steps{'.pkl' if what else '.zip'}" for what in whats] for step in (50, 100, 150, 200)
    ]
    (work_dir / "rl_model_vecnormalize_200_steps.pkl").unlink()  # killed before the last of them
    newest = ckptd.latest(work_dir, made)
    assert ckptd.prune(work_dir, replace(made, trash_ttl_s=0)).exit_code == 0
    left = {path.name for path in work_dir.glob("rl_*")}
    assert left == {f"rl_model{what}_150_steps{'.pkl' if what else '.zip'}" for what in whats} | {
        "rl_model_200_steps.zip", "rl_model_replay_buffer_200_steps.pkl",
    }  # fmt: skip
    assert newest == work_dir / "rl_model_150_steps.zip"
    assert script("write_baselines.py", "read", str(newest), tmp=tmp_path) == "150 True\n"


# --- Orbax ----------------------------------------------------------------------------------------------------


def test_orbaxs_checkpoints_are_listed_and_left_alone(run) -> None:
    for way, names in (("bare", {"0", "5", "10", "15"}), ("padded", {"ckpt_08", "ckpt_09", "ckpt_10", "ckpt_11"})):
        work_dir = run("orbax", way)
        survey = ckptd.plan(work_dir, Policy(max_keep=1))
        assert (survey.decisions, {each.name for each in survey.left_alone}) == ((), names)
        shutil.rmtree(work_dir)


def test_orbaxs_checkpoints_are_pruned_where_asked_for_and_orbax_finds_what_is_left(run, tmp_path) -> None:
    work_dir = run("orbax", "bare")
    assert found(work_dir, layouts=("orbax",)) == dict.fromkeys(("0", "5", "10", "15"), "complete")
    assert pruned_to(work_dir, 2, layouts=("orbax",)) == ["10", "15"]
    assert script("write_orbax.py", "read", str(work_dir), tmp=tmp_path) == "10 15\n"


def test_padded_steps_of_orbaxs_are_one_series(run) -> None:
    assert pruned_to(run("orbax", "padded"), 2, layouts=("orbax",)) == ["ckpt_10", "ckpt_11"]


@pytest.mark.parametrize("gone", ["manifest.ocdbt", "ocdbt.process_0/manifest.ocdbt", "_METADATA"])
def test_what_a_deletion_of_orbaxs_has_left_is_incomplete(gone: str, run) -> None:
    work_dir = run("orbax", "bare")
    (work_dir / "15/default" / gone).unlink()
    assert found(work_dir, layouts=("orbax",))["15"] == "incomplete"
