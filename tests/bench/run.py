"""Run the measurements, and write them into results/: a Markdown table and a plot, each line beside a named peer.

Run as `python -m tests.bench.run [PART...] [--rounds N] [--short] [--large]`, in an environment with mmcv. Files are
written to TMPDIR's disk. What was not measured this time stays in the table as it was.
"""

from __future__ import annotations

import argparse
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptd.disk.descriptors import opened_dir
from ckptd.disk.filesystem import is_local

from . import buffers_lines, idle, latency, many, neighbour, saves_lines, scaling, startup, storm_lines
from .lines import HEAD, Line
from .plot import svg

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("torch", "mmcv", "mmengine", "lightning", "transformers", "watchdog", "watchfiles", "click")


@dataclass(frozen=True)
class Part:
    """rounds: how many, unless the command line says; title: its heading in the table."""

    title: str
    rounds: int
    lines: Callable[[Path, int], list[Line]]


def parts(*, short: bool, large: bool) -> dict[str, Part]:
    return {
        "latency": Part("From a save to the pruned name gone", 20 if short else 100, latency.lines),
        "idle": Part(
            "Asleep, and beside a writer",
            2 if short else 3,
            lambda place, rounds: idle.lines(place, 0.1 if short else 1.0, rounds, 4.0 if large else 1.0),
        ),
        "storm": Part("In a storm of files that are no checkpoints", 2 if short else 5, storm_lines.lines),
        "startup": Part("From start to end of a command", 5 if short else 40, startup.lines),
        "scaling": Part(
            "With many checkpoints",
            3 if short else 7,
            lambda place, rounds: scaling.lines(place, rounds, 10**5 if short else 10**6),
        ),
        "many": Part(
            "With many work dirs",
            1,
            lambda place, _: many.lines(place, 100 if short else 10_000, 6.0 if short else 60.0),
        ),
        "neighbour": Part(
            "A neighbour on the same disk",
            2 if short else 5,
            lambda place, rounds: neighbour.lines(place, rounds, 8.0 if large else 2.0),
        ),
        "saves": Part(
            "What a save takes from the job",
            5 if short else 15,
            lambda place, rounds: saves_lines.lines(place, rounds, large=large),
        ),
        "forks": Part("Saves beside forked workers", 5 if short else 15, saves_lines.of_forks),
        "buffers": Part("Buffers over ranks", 50 if short else 300, buffers_lines.lines),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("part", nargs="*", help="which parts; default: all")
    parser.add_argument("--rounds", type=int, help="instead of each part's own number")
    parser.add_argument("--short", action="store_true", help="few rounds, short waits")
    parser.add_argument("--large", action="store_true", help="also what needs many GB and minutes")
    asked = parser.parse_args()
    known = parts(short=asked.short, large=asked.large)
    for name in asked.part:
        if name not in known:
            parser.error(f"{name} is none of {', '.join(known)}")
    for name in asked.part or known:
        part = known[name]
        with tempfile.TemporaryDirectory(prefix="ckptd-bench-") as place:
            print(f"\n{part.title}: {machine(Path(place))}\n\n{HEAD}", flush=True)
            lines = part.lines(Path(place), asked.rounds or part.rounds)
            print(*lines, sep="\n", flush=True)
            keep(name, part.title, machine(Path(place)), lines)


def machine(place: Path) -> str:
    with opened_dir(str(place)) as fd:
        local = "local" if is_local(fd) else "network"
    named = subprocess.run(["df", "--output=fstype", place], capture_output=True, text=True, check=True).stdout
    kind = named.split()[-1]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in PACKAGES)
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    load = os.getloadavg()[0]
    return (
        f"{today}, {os.cpu_count()} cores (load {load:.1f}), Linux {platform.release()}, {kind} ({local}), "
        f"Python {platform.python_version()}, {versions}"
    )


def keep(name: str, title: str, where: str, lines: list[Line]) -> None:
    """Put this part into the results, in the place of what it said before."""
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "results.json"
    known: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    known[name] = {"title": title, "machine": where, "lines": [line.as_json() for line in lines]}
    known = {key: known[key] for key in parts(short=False, large=False) if key in known}
    file.write_text(json.dumps(known, indent=1) + "\n")
    said = {key: [Line.from_json(line) for line in part["lines"]] for key, part in known.items()}
    text = ["# Measured", "", "By `make bench`. A ratio is ckptd's by the peer's, taken within each round.", ""]
    for key, part in known.items():
        text += [f"## {part['title']}", "", f"{part['machine']}.", "", HEAD, *map(str, said[key]), ""]
    (RESULTS / "results.md").write_text("\n".join(text))
    # Of growth the table says more than a bar for each size.
    (RESULTS / "plot.svg").write_text(svg([line for key, lines in said.items() if key != "scaling" for line in lines]))


if __name__ == "__main__":
    main()
