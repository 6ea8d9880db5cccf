"""Ten thousand work dirs and one `ckptd watch --recursive`: found, pruned, asleep, and a save in one of them.

`python -m tests.bench.many [WORK_DIRS [CHECKPOINTS [PLACE]]]` makes them in a temporary directory, and prints a table.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from ckptd.core.policy import Policy
from ckptd.tree import Tree, name_test
from tests.conftest import environment, torch_zip

_IDLE_S = 60
_SAVES = 40


def main() -> None:
    """Measure, and print each figure as soon as it is known."""
    words = sys.argv[1:]
    count, each = (int(word) for word in (*words[:2], "10000", "20")[:2]) if len(words) != 1 else (int(words[0]), 20)
    with tempfile.TemporaryDirectory(prefix="ckptd-many-", dir=words[2] if len(words) > 2 else None) as place:
        root = Path(place)
        row(f"made {count} work dirs of {each} checkpoints", f"{timed(lambda: make(root, count, each)):.1f} s")
        tree = Tree(str(root), name_test(Policy()))
        row("find them", f"{timed(lambda: list(tree.look(str(root)))):.2f} s")
        later = Tree(str(root), name_test(Policy()), clock=lambda: time.time_ns() + 10**10)
        list(later.look(str(root)))
        row("ask each for its time of change", f"{1000 * timed(lambda: list(later.look_again())):.0f} ms")
        with (root / "log").open("w") as log:
            watch = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "ckptd",
                    "watch",
                    "--recursive",
                    str(root),
                    "--max-keep",
                    "3",
                    "--interval",
                    "1",
                ],
                stderr=log,
                env=environment(),
            )
            try:
                watched(watch, root, count)
            finally:
                watch.terminate()
                row("end by SIGTERM", f"{timed(watch.wait):.1f} s")


def watched(watch: subprocess.Popen[bytes], root: Path, count: int) -> None:
    """What the daemon takes for all of them, at work and at rest."""
    began_s = time.monotonic()
    last = root / "group0" / "run0"
    while (root / "log").read_text().count(": pointed last_ckpt") < count:
        time.sleep(1.0)
        if watch.poll() is not None:
            sys.exit((root / "log").read_text()[-2000:])
    wall_s = time.monotonic() - began_s
    row("first passes, until every pointer is there", f"{wall_s:.1f} s ({1000 * wall_s / count:.1f} ms each)")
    settle(watch)
    row("memory after them", memory(watch))
    before_s = cpu_s(watch)
    time.sleep(_IDLE_S)
    row(f"processor in the {_IDLE_S} s after", f"{1000 * (cpu_s(watch) - before_s):.0f} ms")
    settle(watch)
    before_s = cpu_s(watch)
    time.sleep(_IDLE_S)
    row(f"processor in {_IDLE_S} s at rest", f"{1000 * (cpu_s(watch) - before_s):.0f} ms")
    row("memory at rest", memory(watch))
    row("open files, threads", f"{len(os.listdir(f'/proc/{watch.pid}/fd'))}, {status(watch, 'Threads')}")
    for what, place in (("asleep", None), ("awake", last)):
        took_ms = []
        for number in range(_SAVES):
            work_dir = place or root / f"group{number % 100}" / f"run{number % 100 + 100 * (1 + number)}"
            took_ms.append(1000 * saved(work_dir if work_dir.exists() else last, 1000 + number))
        p50, p99 = statistics.median(took_ms), sorted(took_ms)[-1]
        row(
            f"a save in one that was {what}, until its pointer is there",
            f"p50 {p50:.1f} ms, worst of {_SAVES} {p99:.1f} ms",
        )


def make(root: Path, count: int, each: int) -> None:
    content = torch_zip()
    for number in range(count):
        place = root / f"group{number % 100}" / f"run{number}"
        place.mkdir(parents=True)
        for step in range(1, each + 1):
            (place / f"epoch_{step}.pth").write_bytes(content)
            at_ns = 1_700_000_000_000_000_000 + step * 10**9
            os.utime(place / f"epoch_{step}.pth", ns=(at_ns, at_ns))


def saved(work_dir: Path, step: int) -> float:
    """Seconds from a save by rename to the pointer that names it."""
    aside = work_dir / ".aside"
    aside.write_bytes(torch_zip())
    final, pointer = work_dir / f"epoch_{step}.pth", work_dir / "last_ckpt"
    began_s = time.perf_counter()
    aside.rename(final)
    while pointer.read_text() != f"{final}\n":
        time.sleep(0.0002)
    took_s = time.perf_counter() - began_s
    time.sleep(0.1)
    return took_s


def settle(watch: subprocess.Popen[bytes]) -> None:
    """Wait until it has used next to no processor for three seconds."""
    quiet = 0
    while quiet < 3:
        before_s = cpu_s(watch)
        time.sleep(1)
        quiet = quiet + 1 if cpu_s(watch) - before_s < 0.02 else 0


def timed(call: object) -> float:
    began_s = time.perf_counter()
    call()  # type: ignore[operator]
    return time.perf_counter() - began_s


def cpu_s(watch: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{watch.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def status(watch: subprocess.Popen[bytes], name: str) -> str:
    lines = Path(f"/proc/{watch.pid}/status").read_text().splitlines()
    return next(line.split(None, 1)[1] for line in lines if line.startswith(f"{name}:"))


def memory(watch: subprocess.Popen[bytes]) -> str:
    now, most = (int(status(watch, name).split()[0]) / 1000 for name in ("VmRSS", "VmHWM"))
    return f"{now:.0f} MB (at most {most:.0f} MB)"


def row(what: str, figure: str) -> None:
    print(f"| {what} | {figure} |", flush=True)


if __name__ == "__main__":
    main()
