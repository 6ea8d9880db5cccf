"""Measurements that need a process of their own, because torch is in it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def run(module: str, *args: str | Path) -> None:
    if start(module, *args).wait():
        sys.exit(f"bench: {module} failed")


def start(module: str, *args: str | Path, **more: str) -> subprocess.Popen[bytes]:
    # mmcv imports torchvision, and does not use it.
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests/real/stubs"), "GLOO_SOCKET_IFNAME": "lo", **more}
    command = [sys.executable, "-W", "ignore", "-m", f"tests.bench.{module}", *map(str, args)]
    return subprocess.Popen(command, cwd=REPOSITORY, env=env)
