"""The hook on disks that take nothing: what was there stays, it is said, and once there is room a save succeeds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import environment
from tests.root.strace import needs

pytestmark = pytest.mark.root

JOB = r"""
import json, os, sys
import torch
from ckptd.errors import CkptdError
from ckptd.shim import CheckpointHook

def there():
    names = set(os.listdir(disk)) - {"ballast"}
    return {name: os.readlink(f"{disk}/{name}") if name == "latest.pth" else None for name in sorted(names)}

disk, background = sys.argv[1], sys.argv[2] == "background"
hook = CheckpointHook(disk, interval=1, create_symlink=True, background=background)
hook.before_run(model=torch.nn.Linear(200, 200))
hook.after_train_epoch(0)
hook.wait()
before, told = there(), ""
with open(f"{disk}/ballast", "wb") as ballast:
    free = os.statvfs(disk)
    ballast.write(bytes(free.f_bavail * free.f_frsize - 65536))  # less than a checkpoint
try:
    hook.after_train_epoch(1)
    hook.wait()
except CkptdError as error:
    told = str(error)
after = there()
os.unlink(f"{disk}/ballast")
hook.after_train_epoch(2)
hook.close()
torch.load(f"{disk}/latest.pth", weights_only=True)
print(json.dumps({"before": before, "after": after, "told": told, "then": there()}))
"""


@pytest.mark.parametrize("how", ["at once", "background"])
def test_a_save_on_a_full_disk_leaves_what_was_there(how: str, tmp_path: Path) -> None:
    needs("unshare")
    disk = tmp_path / "disk"
    disk.mkdir()
    script = 'mount -t tmpfs -o size=1m tmpfs "$1" && exec "$0" -c "$3" "$1" "$2"'
    shell = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, sys.executable, str(disk), how, JOB]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment(), timeout=100)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["before"] == said["after"] == {".ckptd": None, "epoch_1.pth": None, "latest.pth": "epoch_1.pth"}
    assert said["told"] == f"{disk}/epoch_2.pth: could not be saved: No space left on device. Free space on that disk"
    assert said["then"] == {**said["before"], "epoch_3.pth": None, "latest.pth": "epoch_3.pth"}
    assert os.listdir(disk) == []  # the mount was the job's own


@pytest.mark.parametrize("below", ["", "/a/run"])
def test_a_disk_that_may_not_be_written_is_told_before_training(below: str, tmp_path: Path) -> None:
    needs("unshare")
    job = (
        "import sys, torch\n"
        "from ckptd.errors import CkptdError\n"
        "from ckptd.shim import CheckpointHook\n"
        "try: CheckpointHook(sys.argv[1]).before_run(model=torch.nn.Linear(1, 1))\n"
        "except CkptdError as error: print(error)\n"
    )
    script = 'mount -t tmpfs -o ro tmpfs "$1" && exec "$0" -c "$3" "$1$2"'
    shell = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, sys.executable, str(tmp_path), below, job]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment(), timeout=100)
    told = f"{tmp_path}{below}: no checkpoint can be written there: Read-only file system\n"
    assert (done.returncode, done.stdout) == (0, told), done.stderr
