"""The lines of docs/frameworks.md for Lightning and Transformers, in real jobs beside a plain `ckptd watch`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from ..conftest import environment, readme
from .conftest import HERE

pytestmark = pytest.mark.real

PATIENCE_S = 120.0  # imports and two ranks, on a machine that may be busy
INTERVAL = 2  # instead of the hundred that the page has


@dataclass(frozen=True)
class Recipe:
    """A framework with its release, where docs/frameworks.md has its lines, and what its checkpoints are called."""

    framework: str
    version: str
    heading: str
    name: str
    weights: str  # the file with the network, below the checkpoint

    def checkpoints(self, *steps: int) -> list[str]:
        return sorted(self.name.format(step) for step in steps)


RECIPES = [
    Recipe("lightning", "2.6.6", "Lightning", "step_{}.ckpt", ""),
    Recipe("transformers", "5.23.0", "Transformers", "checkpoint-{}", "model.safetensors"),
]


@pytest.fixture(params=RECIPES, ids=lambda recipe: recipe.framework)
def recipe(request, framework) -> Recipe:
    framework(request.param.framework, request.param.version)
    if request.param.framework == "transformers":
        framework("accelerate", "1.15.0")
    return request.param


@pytest.fixture
def train(recipe, tmp_path) -> Callable[..., int]:
    """Train in `tmp_path` until a step, from a checkpoint or from the start; returns where it began."""
    lines = tmp_path / "recipe.py"
    lines.write_text(readme(recipe.heading).replace("100", str(INTERVAL)))
    (tmp_path / "tmp").mkdir()

    def run(until: int, checkpoint: str | None = None, *, ranks: int = 1) -> int:
        env = environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", TMPDIR=str(tmp_path / "tmp"))
        launcher = [sys.executable, "-W", "ignore"]
        if ranks > 1:
            launcher += ["-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
            launcher += [f"--nproc-per-node={ranks}"]
        script = HERE / f"train_{recipe.framework}.py"
        command = [*launcher, str(script), str(lines), str(until), *([checkpoint] if checkpoint else [])]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, cwd=tmp_path, env=env, start_new_session=True, **streams) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE_S)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its ranks
                pytest.fail(f"the job hangs:\n{process.communicate()}")
        assert process.returncode == 0, err
        return json.loads(out.splitlines()[-1])["began"]

    return run


def test_ckptd_prunes_as_the_job_declares_and_the_framework_resumes(recipe, train, watch, ckptd, tmp_path):
    work_dir = tmp_path / "work_dir"
    watching = watch(work_dir)
    assert train(10) == 0
    watching.until(lambda: left(work_dir), recipe.checkpoints(6, 8, 10))
    newest = ckptd("latest", work_dir)
    assert newest.stdout == f"{work_dir / recipe.name.format(10)}\n", newest.stderr
    assert train(14, newest.stdout.rstrip("\n")) == 10
    watching.until(lambda: left(work_dir), recipe.checkpoints(10, 12, 14))
    watching.stop_well()
    assert (work_dir / "last_ckpt").read_text() == f"{work_dir / recipe.name.format(14)}\n"


@pytest.mark.parametrize("recipe", RECIPES[:1], ids=["lightning"], indirect=True)  # others have one name for a step
def test_a_step_that_a_resumed_run_comes_by_again_has_the_name_it_had(recipe, train, tmp_path):
    work_dir = tmp_path / "work_dir"
    train(4)
    assert train(4, str(work_dir / recipe.name.format(2))) == 2
    assert left(work_dir) == recipe.checkpoints(2, 4)


def test_on_two_ranks_what_is_saved_is_averaged(recipe, train, tmp_path):
    torch = pytest.importorskip("torch")
    train(INTERVAL, ranks=2)
    saved = tmp_path / "work_dir" / recipe.name.format(INTERVAL) / recipe.weights
    if recipe.weights:
        from safetensors.torch import load_file

        state = load_file(saved)
    else:
        state = torch.load(saved, weights_only=True)["state_dict"]
    # DDP gives all ranks the buffers of rank 0, which sees zeros; then rank 1 sees a one, of which the momentum takes
    # a tenth, and half of that is the average.
    assert state["norm.running_mean"].tolist() == pytest.approx([0.05, 0.05])


def left(work_dir: Path) -> list[str]:
    return sorted(path.name for path in work_dir.glob("*[0-9]*"))
