"""What a write in the background takes from the training beside it, against a thread of one's own.

Run as `python -m tests.bench.training PLACE ROUNDS LAYERS`: writes to PLACE/training.json how long the same steps took.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from pathlib import Path

import torch
from torch import nn

from .paired import Seconds
from .saves import TorchSave, ours, trained

STEPS_S = 1.0  # about as long as a write of 500 MB


def main(place: Path, rounds: int, layers: int) -> None:
    model, optimizer = trained(layers)
    hooked = ours(place / "hook", model, optimizer, background=True)
    plain = TorchSave(place / "torch", {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict()})
    busy = nn.Sequential(*(nn.Linear(512, 512) for _ in range(4)))
    batch = torch.randn(64, 512)

    def steps(count: int) -> float:
        began = time.perf_counter()
        for _ in range(count):
            busy.zero_grad(set_to_none=True)
            busy(batch).sum().backward()
        return time.perf_counter() - began

    steps(20)
    count = max(20, round(20 * STEPS_S / min(steps(20) for _ in range(5))))
    taken: Seconds = {"alone": [], "hook": [], "thread": []}
    for number in range(-1, rounds):
        for name in sorted(taken, reverse=bool(number % 2)):
            os.sync()
            thread = threading.Thread(target=plain) if name == "thread" else None
            if thread is not None:
                thread.start()
            if name == "hook":
                hooked()
            took_s = steps(count)
            if thread is not None:
                thread.join()
            hooked.hook.wait()
            for each in (hooked, plain):
                each.prune()
            if number >= 0:  # the first makes the hook's buffers
                taken[name].append(took_s)
    hooked.hook.close()
    (place / "training.json").write_text(json.dumps(taken))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
