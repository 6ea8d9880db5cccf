"""What the tests of the shim share: a small model, and two real processes that talk over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("torch")

from tests.conftest import environment

REPOSITORY = Path(__file__).parents[2]
PATIENCE_S = 90.0  # two processes import torch, on a machine that may be busy


@dataclass(frozen=True)
class TwoRanks:
    """What two ranks answered to each scenario, and where they were."""

    place: Path

    def __call__(self, scenario: str) -> list[Any]:
        """What the scenario returned on rank 0 and on rank 1."""
        return [json.loads((self.place / f"{scenario}-{rank}.json").read_text()) for rank in range(2)]


@pytest.fixture(scope="module")
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """Run what the test module lists as SCENARIOS in two processes: one pair for all, since torch starts slowly."""
    place = tmp_path_factory.mktemp("ranks")
    ranks = []
    try:
        for rank in range(2):
            # The ranks find each other by a file, so that no port has to be free; gloo then talks over loopback.
            env = environment(RANK=str(rank), WORLD_SIZE="2", GLOO_SOCKET_IFNAME="lo", OMP_NUM_THREADS="1")
            command = [sys.executable, "-m", "tests.shim.scenarios", str(place), *request.module.SCENARIOS]
            streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            ranks.append(subprocess.Popen(command, cwd=REPOSITORY, env=env, **streams))
        said = [rank.communicate(timeout=PATIENCE_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.communicate()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    return TwoRanks(place)
