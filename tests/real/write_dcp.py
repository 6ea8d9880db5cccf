"""Let torch.distributed.checkpoint write below PLACE as torchtitan does: PLACE/step-<n>."""

from __future__ import annotations

import sys
import warnings

warnings.filterwarnings("ignore")

import torch  # noqa: E402
import torch.distributed.checkpoint as dcp  # noqa: E402


def main(place):
    for step in (0, 100, 200, 300):
        dcp.save({"model": torch.nn.Linear(2, 1).state_dict(), "step": step}, checkpoint_id=f"{place}/step-{step}")


if __name__ == "__main__":
    main(sys.argv[1])
