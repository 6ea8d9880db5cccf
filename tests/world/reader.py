"""Another process, which keeps one file open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


class Reader:
    """Another process, which keeps one file open; started once for all worlds."""

    _SCRIPT = """
import sys
for line in sys.stdin:
    path, file = line.rstrip("\\n"), None
    if path:
        file = open(path, "rb")
    print("done", flush=True)
"""

    def __init__(self) -> None:
        command = [sys.executable, "-c", self._SCRIPT]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def open(self, path: Path | None) -> None:
        """Close what is open, and keep `path` open from now on."""
        self._process.stdin.write(f"{path or ''}\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "done\n"

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
