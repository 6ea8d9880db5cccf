"""Let Orbax's CheckpointManager write below PLACE: bare steps, and steps with a prefix and zeros in front."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"

import numpy as np
import orbax.checkpoint as ocp


def main(place):
    state = {"w": np.arange(100.0), "b": np.zeros(3)}
    with ocp.CheckpointManager(place / "bare") as manager:
        for step in (0, 5, 10, 15):
            manager.save(step, args=ocp.args.StandardSave(state))
            manager.wait_until_finished()
    options = ocp.CheckpointManagerOptions(step_prefix="ckpt", step_format_fixed_length=2)
    with ocp.CheckpointManager(place / "padded", options=options) as manager:
        for step in (8, 9, 10, 11):
            items = {"state": ocp.args.StandardSave(state), "meta": ocp.args.JsonSave({"step": step})}
            manager.save(step, args=ocp.args.Composite(**items))
            manager.wait_until_finished()


def read(place):
    """Say which steps Orbax still finds, having restored each."""
    with ocp.CheckpointManager(place) as manager:
        for step in manager.all_steps():
            assert manager.restore(step, args=ocp.args.StandardRestore())["w"].sum() == 4950
        print(*sorted(manager.all_steps()))


if __name__ == "__main__":
    if sys.argv[1] == "read":
        read(Path(sys.argv[2]))
    else:
        main(Path(sys.argv[1]))
