"""What the tests of the shim share: a small model, and two real processes that talk over gloo."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
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
        return [self.of(rank, scenario) for rank in range(2)]

    def of(self, rank: int, scenario: str) -> Any:
        return json.loads((self.place / f"{scenario}-{rank}.json").read_text())


@pytest.fixture(scope="module")
def two_ranks(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TwoRanks:
    """Run what the test module lists as SCENARIOS in two processes: one pair for all, since torch starts slowly."""
    place = tmp_path_factory.mktemp("ranks")
    codes, said = run_ranks(place, request.module.SCENARIOS)
    assert codes == [0, 0], said
    return TwoRanks(place)


def run_ranks(place: Path, scenarios: Sequence[str], *, count: int = 2, **more: str) -> tuple[list[int], str]:
    """Run scenarios in as many processes; how each rank ended, and what all of them said. more: their environment."""
    ranks: list[subprocess.Popen[str]] = []
    try:
        for rank in range(count):
            # The ranks find each other by a file, so that no port has to be free; gloo then talks over loopback.
            of_rank = {"RANK": str(rank), "WORLD_SIZE": str(count), "GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
            env = environment(**of_rank, **more)
            command = [sys.executable, "-m", "tests.shim.scenarios", str(place), *scenarios]
            streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
            ranks.append(subprocess.Popen(command, cwd=REPOSITORY, env=env, **streams))
        said = [rank.communicate(timeout=PATIENCE_S)[0] for rank in ranks]
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.kill()
                rank.communicate()
    return [rank.returncode for rank in ranks], "\n".join(said)
