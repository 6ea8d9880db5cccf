"""How long a background save stops a job that forks the workers of a DataLoader, against the same job without forks.

Run as `python -m tests.bench.forks PLACE ROUNDS LAYERS`: writes to PLACE/forks.json what each call took, in seconds.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from torch.utils.data import DataLoader

from .paired import Seconds
from .saves import ours, trained

WORKERS = 2


def main(place: Path, rounds: int, layers: int) -> None:
    saves = ours(place / "forks", *trained(layers), background=True)
    loader = DataLoader(range(64), num_workers=WORKERS, multiprocessing_context="fork")
    taken: Seconds = {"none": [], "living": [], "ended": []}

    def save() -> float:
        saves.hook.wait()
        saves.prune()
        os.sync()
        began = time.perf_counter()
        saves()
        return time.perf_counter() - began

    for number in range(-1, rounds):
        for name in sorted(taken, reverse=bool(number % 2)):
            save()  # writes to all that it has kept, whatever the forks before have made of that
            saves.hook.wait()
            samples = iter(loader) if name != "none" else iter([])
            for _ in range(2 * WORKERS):  # from each of them: they are there, and have little to do
                next(samples, None)
            if name == "ended":
                del samples
            took_s = save()
            samples = iter([])  # ends the workers
            if number >= 0:  # the first makes the hook's memory
                taken[name].append(took_s)
    saves.hook.close()
    (place / "forks.json").write_text(json.dumps(taken))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
