"""`--min-free` on a small disk that somebody else fills: watch notices without an event, and takes what is missing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.root.strace import needs

pytestmark = pytest.mark.root

SCRIPT = r"""
import json, os, signal, subprocess, sys, time
from pathlib import Path
from tests.conftest import Builder, epochs, eventually, left, torch_zip

disk, work_dir = Path(sys.argv[1]), Path(sys.argv[1], "run")
work_dir.mkdir()
Builder(work_dir)(*epochs(1, 2, 3, 4, 5), content=torch_zip(os.urandom(10**6)))

def free():
    room = os.statvfs(disk)
    return room.f_bavail * room.f_frsize

command = [sys.executable, "-m", "ckptd", "watch", str(work_dir), "--min-free", "8MB", "--scan-interval", "1000s"]
watch = subprocess.Popen(command)
eventually(lambda: (work_dir / "last_ckpt").exists())
time.sleep(1)
before = left(work_dir)
(disk / "other").write_bytes(bytes(free() - 6_500_000))
eventually(lambda: free() >= 8_000_000)
time.sleep(6)
after = left(work_dir)
watch.send_signal(signal.SIGTERM)
watch.wait()
print(json.dumps({"before": before, "after": after}))
"""


def test_a_disk_that_others_fill_is_given_what_is_missing_and_no_more(tmp_path: Path) -> None:
    needs("unshare")
    script = 'mount -t tmpfs -o size=20m tmpfs "$1" && exec "$0" -c "$2" "$1"'
    shell = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, sys.executable, str(tmp_path), SCRIPT]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment(), timeout=100, cwd=Path.cwd())
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["before"] == [f"epoch_{step}.pth" for step in (1, 2, 3, 4, 5)]
    assert said["after"] == [f"epoch_{step}.pth" for step in (3, 4, 5)], done.stderr
