"""Let torch.distributed.checkpoint write below PLACE as torchtitan does: PLACE/steps/step-<n>."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402


def main(place):
    for step in (0, 100, 200, 300):
        state = {"model": torch.nn.Linear(2, 1).state_dict(), "step": step}
        dcp.save(state, checkpoint_id=f"{place}/steps/step-{step}")


def read(checkpoint):
    """Say of which step it is, once all of it is loaded."""
    state = {"model": torch.nn.Linear(2, 1).state_dict(), "step": -1}
    dcp.load(state, checkpoint_id=str(checkpoint))
    print(state["step"])


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
