"""What a neighbour on the same disk feels while checkpoints are freed: how long its fsyncs take, beside plain `rm`."""

from __future__ import annotations

import os
import statistics
import subprocess
import threading
import time
from pathlib import Path

from .beside import CKPTD
from .lines import Line, compared, p99
from .paired import Seconds

FILES = 4
GAP_S = 0.002
LEAST_S = 3.0  # the neighbour is listened to for so long, however soon all is freed


def lines(place: Path, rounds: int, freed_gb: float) -> list[Line]:
    fsyncs: dict[str, list[list[float]]] = {"ckptd prune": [], "rm": [], "nobody": []}
    took: Seconds = {name: [] for name in fsyncs}
    for number in range(rounds):
        for name in sorted(fsyncs, reverse=bool(number % 2)):
            run = place / f"{number}_{name.replace(' ', '_')}"
            names = filled(run, 0 if name == "nobody" else round(freed_gb * 1e9))
            os.sync()
            neighbour = Neighbour(place / "neighbour")
            began = time.perf_counter()
            if names:
                free(name, run, names)
            took[name].append(time.perf_counter() - began)
            fsyncs[name].append(neighbour.ends())
            left = [each for each in names if (run / each).exists()]
            assert not left, f"{name} left {left}"
    what = f"a neighbour's fsync while {freed_gb:g} GB are freed"
    found = []
    for how, value in (("median", statistics.median), ("p99", p99)):
        of = {name: [value(each) for each in each_round] for name, each_round in fsyncs.items()}
        found.append(compared(f"{what}: {how}", "rm", of["ckptd prune"], of["rm"]))
        found.append(compared(f"{what}: {how}", "nobody freeing anything", of["ckptd prune"], of["nobody"]))
    found.append(compared(f"to free {freed_gb:g} GB, from start to end", "rm", took["ckptd prune"], took["rm"]))
    return found


def filled(run: Path, size: int) -> list[str]:
    """Files of a format that nobody reads before it goes, and one beyond them that stays."""
    run.mkdir()
    names = [f"ckpt-{number}.bin" for number in range(1, FILES + 1)] if size else []
    for name in [*names, "ckpt-9.bin"]:
        with open(run / name, "wb") as file:
            for _ in range(max(1, size // FILES >> 20) if name != "ckpt-9.bin" else 1):
                file.write(_BLOCK)
            os.fsync(file.fileno())
        aged_ns = time.time_ns() - 3600 * 10**9 + int(name[5]) * 10**9
        os.utime(run / name, ns=(aged_ns, aged_ns))
    return names


_BLOCK = os.urandom(1 << 20)


def free(name: str, run: Path, names: list[str]) -> None:
    if name == "rm":
        command = ["rm", *(str(run / each) for each in names)]
    else:
        options = ["--max-keep", "1", "--rule", "newest", "--template", "ckpt-{}.bin", "--trash-ttl", "0"]
        command = [*CKPTD, "prune", str(run), *options]
    subprocess.run(command, check=True, capture_output=True)


class Neighbour:
    """Writes 4 KiB and calls fsync, again and again; `ends` gives what each fsync took."""

    def __init__(self, path: Path) -> None:
        self._began, self._taken, self._ending = time.monotonic(), list[float](), threading.Event()
        self._thread = threading.Thread(target=self._write, args=(path,))
        self._thread.start()

    def ends(self) -> list[float]:
        self._ending.wait(max(0.0, LEAST_S - (time.monotonic() - self._began)))
        self._ending.set()
        self._thread.join()
        return self._taken

    def _write(self, path: Path) -> None:
        with open(path, "wb", buffering=0) as file:
            while not self._ending.is_set():
                file.write(b"n" * 4096)
                began = time.perf_counter()
                os.fsync(file.fileno())
                self._taken.append(time.perf_counter() - began)
                time.sleep(GAP_S)
