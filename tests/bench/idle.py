"""What watching costs while nothing happens, and while one big file is being written: wake-ups, CPU, memory."""

from __future__ import annotations

import contextlib
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from .beside import (
    CKPTD,
    PATIENCE_S,
    WATCHFILES,
    WATCHMEDO,
    cpu_s,
    has_inotifywait,
    resident_mb,
    running,
    switches,
    until,
)
from .latency import torch_zip
from .lines import Line, compared, within

MANY = 100
LIBRARIES = "click and watchdog alone, loaded and watching"
_ALONE = (
    "import click, sys, time; from watchdog.events import *; from watchdog.observers import Observer; "
    "o = Observer(); o.schedule(FileSystemEventHandler(), sys.argv[1]); o.start(); time.sleep(1e6)"
)


def lines(place: Path, minutes: float, rounds: int, written_gb: float) -> list[Line]:
    found = asleep(place / "asleep", minutes * 60)
    found += writing(place / "writing", rounds, round(written_gb * 1e9))
    return found


def peers(run: Path) -> dict[str, list[str | Path]]:
    """Commands that watch `run`; each of them once."""
    inotifywait: dict[str, list[str | Path]] = {
        "inotifywait -m -e close_write": ["inotifywait", "-m", "-q", "-e", "close_write", run]
    }
    return {
        "ckptd": [*CKPTD, "watch", run, "--max-keep", "3"],
        **(inotifywait if has_inotifywait() else {}),
        "watchmedo": [*WATCHMEDO, "shell-command", "-p", "**/*.done", "-c", ":", run],  # of these writes none
        "watchfiles": [*WATCHFILES, "--verbosity", "warning", "true", run],  # it runs at each change, and at the start
        LIBRARIES: [sys.executable, "-c", _ALONE, run],
    }


def asleep(place: Path, seconds: float) -> list[Line]:
    """All of them at once, in the same minute, each with a work dir of its own."""
    with contextlib.ExitStack() as stack:
        pids: dict[str, int] = {}
        for number, name in enumerate(peers(place)):
            run = with_checkpoints(place / f"run{number}")
            pids[name] = stack.enter_context(running(peers(run)[name], watches=2 if name == "ckptd" else 1))
        many = [with_checkpoints(place / f"many{number}") for number in range(MANY)]
        crowd = stack.enter_context(running([*CKPTD, "watch", *many, "--max-keep", "3"], watches=MANY + 1))
        for pid in (pids["ckptd"], crowd):
            settled(pid)
        # After the scan that is due a minute after the first: what is left is what nobody asked for.
        before = {name: (switches(pid), cpu_s(pid)) for name, pid in pids.items()}
        time.sleep(seconds)
        after = {name: (switches(pid), cpu_s(pid)) for name, pid in pids.items()}
        memory = {name: resident_mb(pid) for name, pid in pids.items()}
        crowd_mb = resident_mb(crowd)
    woken = {name: after[name][0] - before[name][0] for name in pids}
    used = {name: (after[name][1] - before[name][1]) * 1e3 for name in pids}
    # A scan each minute is the timer's, and wakes it once.
    scans = int(seconds // 60)
    found = [within(f"wake-ups in {seconds:g} s idle, the timer's {scans} aside", woken["ckptd"] - scans, 0, "", 1)]
    for name in pids:
        if name != "ckptd":
            theirs = f"{woken[name]} wake-ups, {used[name]:.3g} ms of CPU, {memory[name]:.3g} MB"
            ours = f"{woken['ckptd']}, {used['ckptd']:.3g} ms, {memory['ckptd']:.3g} MB"
            found.append(Line(f"{seconds:g} s idle", ours, name, theirs, None, "", None, 1))
    found.append(within("resident, one work dir", memory["ckptd"], 24, "MB", 1, LIBRARIES))
    found.append(within(f"resident, {MANY} work dirs", crowd_mb, 100, "MB", 1))
    return found


def settled(pid: int, *, patience_s: float = PATIENCE_S) -> None:
    """Wait until it has slept for two seconds on end."""
    last = [0.0, time.monotonic()]

    def is_so() -> bool:
        now = cpu_s(pid)
        if now != last[0]:
            last[:] = now, time.monotonic()
        return time.monotonic() - last[1] > 2

    until(is_so, "the first pass's end", patience_s=patience_s)


def with_checkpoints(run: Path) -> Path:
    run.mkdir(parents=True)
    for epoch in range(1, 4):
        (run / f"epoch_{epoch}.pth").write_bytes(torch_zip())
    return run


def writing(place: Path, rounds: int, size: int) -> list[Line]:
    """One after another: a watch beside a writer slows that down, whoever's it is."""
    shares: dict[str, list[float]] = {}
    for number in range(rounds):
        for index, name in enumerate(peers(place)):
            run = with_checkpoints(place / f"run{number}_{index}")
            with running(peers(run)[name], watches=2 if name == "ckptd" else 1) as pid:
                if name == "ckptd":  # the others do nothing on start, and watchmedo wakes up each second
                    settled(pid)
                before = cpu_s(pid)
                spent_s = write(run / "epoch_4.pth", size)
                shares.setdefault(name, []).append(100 * (cpu_s(pid) - before) / spent_s)
            (run / "epoch_4.pth").unlink()
    what = f"CPU while {size / 1e9:g} GB come in pieces of 4 KiB, of the writer's"
    found = [within(what, statistics.median(shares["ckptd"]), 1, "%", rounds)]
    return found + [
        compared(what, name, shares["ckptd"], theirs, "%") for name, theirs in shares.items() if name != "ckptd"
    ]


def write(path: Path, size: int) -> float:
    """Another process writes; the CPU that this took it."""
    command = ["dd", "if=/dev/zero", f"of={path}", "bs=4k", f"count={size // 4096}", "status=none"]
    writer = subprocess.Popen(command)
    _, status, used = os.wait4(writer.pid, 0)
    writer.returncode = status
    assert status == 0, command
    return used.ru_utime + used.ru_stime
