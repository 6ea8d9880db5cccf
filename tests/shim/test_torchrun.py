"""Jobs as torchrun starts them, on 2 and 4 ranks: replicated with the hook, sharded with DCP beside a `ckptd watch`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp

from tests.conftest import Watching, environment, eventually, left, pointed, readme

from .conftest import PATIENCE_S, REPOSITORY


@dataclass(frozen=True)
class Job:
    """A job that has ended: where it was, and what each of its ranks saw."""

    place: Path
    seen: list[dict[str, Any]]
    watch: Watching

    def of(self, part: str) -> list[dict[str, Any]]:
        return [rank[part] for rank in self.seen]


@pytest.fixture(scope="module", params=[2, 4], ids="{} ranks".format)
def job(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Job]:
    """One launch for all tests, since torch starts slowly; the sharded part has a `ckptd watch` without options."""
    place = tmp_path_factory.mktemp("torchrun")
    (place / "tmp").mkdir()
    (place / "recipe.py").write_text(readme("torchrun").replace("max_iters=1000", "max_iters=9").replace("100", "2"))
    watch = Watching((place / "work_dir",))
    try:
        torchrun(place, request.param)
        yield Job(place, [json.loads((place / f"{rank}.json").read_text()) for rank in range(request.param)], watch)
    finally:
        watch.discard()


def torchrun(place: Path, ranks: int) -> None:
    # A standalone launch takes a free port by itself; what it logs is below its TMPDIR.
    env = environment(OMP_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", TMPDIR=str(place / "tmp"))
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        env.pop(name, None)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--local-addr=127.0.0.1"]
    command = [*launcher, f"--nproc-per-node={ranks}", "-m", "tests.shim.torchrun_job", str(place)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=REPOSITORY, env=env, start_new_session=True, **streams) as process:
        try:
            said, _ = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)  # torchrun ends its ranks, which have sessions of their own
            said, _ = process.communicate()
            pytest.fail(f"the job hangs:\n{said}")
    assert process.returncode == 0, said


def test_only_rank_0_publishes_and_every_rank_learns_the_path(job: Job) -> None:
    names = [f"epoch_{epoch}.pth" for epoch in (1, 2, 3, 4)]
    first, *others = job.of("replicated")
    assert first["published"] == names
    assert [rank["published"] for rank in others] == [[]] * len(others)
    assert left(job.place / "replicated") == names
    for rank in (first, *others):
        assert rank["paths"] == [str(job.place / "replicated" / name) for name in names]


def test_what_is_published_is_averaged_over_the_ranks(job: Job) -> None:
    state = torch.load(job.place / "replicated/epoch_3.pth", weights_only=True)["state_dict"]
    for rank in job.of("replicated"):
        assert rank["drifted"], "buffers that were the same before show nothing"
        torch.testing.assert_close(state["1.running_mean"], torch.tensor(rank["mean"]))


def test_every_rank_resumes_from_the_same_checkpoint(job: Job) -> None:
    first, *others = job.of("replicated")
    assert first["epoch"] == 3
    assert first["second"] == first["first"]
    for rank in others:
        assert (rank["epoch"], rank["second"]) == (3, first["second"])


def test_a_sharded_model_is_refused_on_every_rank_and_nobody_hangs(job: Job) -> None:
    for number, rank in enumerate(job.of("sharded")):
        assert rank["refused"].startswith(f"state_dict.weight: a DTensor, of which rank {number} holds a part only")


def test_ckptd_without_options_prunes_what_dcp_has_saved_as_the_job_declares(job: Job, ckptd: Any) -> None:
    work_dir = job.place / "work_dir"
    # The last save, by `max_iters`, is off the grid: from there the walk comes by no other.
    left_then = ["step-4", "step-6", "step-8", "step-9"]
    eventually(lambda: left(work_dir) == left_then, what="the declared three, and the last")
    assert job.watch.stop() == 0
    assert left(work_dir) == left_then
    assert pointed(work_dir) == "step-9"

    newest = ckptd("latest", work_dir)
    assert (newest.returncode, newest.stdout) == (0, f"{work_dir}/step-9\n"), newest.stderr
    state = {"model": {"weight": torch.zeros(8, 4)}}
    dcp.load(state, checkpoint_id=newest.stdout.rstrip("\n"), no_dist=True)
    assert state["model"]["weight"].tolist() == job.seen[0]["sharded"]["weight"]
