"""A job that fills its work dir with files that are no checkpoints, and logs to several others all the time.

Run as `python -m tests.bench.storm RUN closed|held`, until its standard input ends. It may be stopped and continued.
"""

from __future__ import annotations

import os
import select
import sys
import time

CREATES, APPENDS = 1_000, 10_000  # a second
_LOGS = 8  # the kernel itself merges what happens to one name twice running
_TICK_S = 0.001


def main(run: str, how: str) -> None:
    logs = [os.path.join(run, f"rank{rank}.log") for rank in range(_LOGS)]
    held = [_open(path) for path in logs] if how == "held" else []
    made = appended = 0
    passed_s, before_s = 0.0, time.perf_counter()
    while not select.select([sys.stdin], [], [], _TICK_S)[0]:
        now_s = time.perf_counter()
        passed_s, before_s = passed_s + min(now_s - before_s, 0.02), now_s  # what was missed is not made up for
        while made < passed_s * CREATES:
            _append(os.path.join(run, f"pred_{made:06}_{made % 7}.png"))
            made += 1
        while appended < passed_s * APPENDS:
            if held:
                os.write(held[appended % _LOGS], b"loss 0.25\n")
            else:
                _append(logs[appended % _LOGS])
            appended += 1


def _append(path: str) -> None:
    fd = _open(path)
    os.write(fd, b"loss 0.25\n")
    os.close(fd)


def _open(path: str) -> int:
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)


if __name__ == "__main__":
    main(*sys.argv[1:])
