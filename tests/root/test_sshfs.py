"""ckptd on sshfs, which lists a directory once for each descriptor, and shows no event and no writer of other hosts."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import Builder, epochs, left, pointed, safetensors, torch_zip
from tests.root.strace import needs

pytestmark = [pytest.mark.root]

SERVERS = ("/usr/lib/openssh/sftp-server", "/usr/libexec/openssh/sftp-server", "/usr/lib/ssh/sftp-server")
Ckptd = Callable[..., subprocess.CompletedProcess[str]]
DAY_NS = 86400 * 10**9


@contextlib.contextmanager
def mounted(source: Path, at: Path) -> Iterator[Path]:
    """`source` as sshfs shows it, served by a process beside us: no network, no keys."""
    needs("sshfs", "fusermount3")
    server = next((path for path in SERVERS if os.path.exists(path)), None)
    if server is None or not os.access("/dev/fuse", os.W_OK):
        pytest.skip("needs an sftp-server and /dev/fuse")
    at.mkdir()
    ssh = at.parent / "ssh"
    ssh.write_text(f"#!/bin/sh\nexec {server}\n")
    ssh.chmod(0o755)
    subprocess.run(["sshfs", "-o", f"ssh_command={ssh},dir_cache=no", f"here:{source}", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["fusermount3", "-u", "-z", at], check=True)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with a run of files, one of a Trainer's directories, and one of DeepSpeed's; a day old."""
    build = Builder(tmp_path / "files", at_ns=(tmp_path.stat().st_mtime_ns - DAY_NS))
    for name in ("files", "trainer", "accelerate"):
        (tmp_path / "source" / name).mkdir(parents=True)
    build.work_dir = tmp_path / "source" / "files"
    build(*epochs(1, 2, 3, 4, 5))
    for step in (1, 2, 3):
        for name in (f"trainer/checkpoint-{step}00", f"accelerate/checkpoint_{step}"):
            place = tmp_path / "source" / name
            place.mkdir()
            files = {"model.safetensors": safetensors(), "optimizer.bin": torch_zip(), "random_states_0.pkl": b"x"}
            if name.startswith("trainer"):
                state = json.dumps({"global_step": step * 100, "log_history": []}).encode()
                files = {"model.safetensors": safetensors(), "optimizer.pt": torch_zip(), "trainer_state.json": state}
            for file, content in files.items():
                (place / file).write_bytes(content)
                build.tick(place / file)
    return tmp_path / "source"


def judged(plan: subprocess.CompletedProcess[str]) -> list[tuple[str, str, str]]:
    """What a plan says of each checkpoint."""
    (series,) = json.loads(plan.stdout)["series"]
    return [(each["name"], each["state"], each["decision"]) for each in series["checkpoints"]]


@pytest.mark.parametrize("what", ["files", "trainer", "accelerate"])
def test_what_is_on_sshfs_is_judged_as_where_it_lies(what: str, source: Path, tmp_path: Path, ckptd: Ckptd) -> None:
    expected = judged(ckptd("plan", source / what, "--max-keep", "1", "--rule", "newest", "--json"))
    assert {decision for _, _, decision in expected} == {"keep", "prune"}
    with mounted(source, tmp_path / "mount") as mount:
        there = judged(ckptd("plan", mount / what, "--max-keep", "1", "--rule", "newest", "--json"))
        latest = ckptd("latest", mount / what).stdout
    assert (there, latest) == (expected, f"{mount / what / expected[-1][0]}\n")


def test_a_pass_over_sshfs_prunes_and_restores(source: Path, tmp_path: Path, ckptd: Ckptd) -> None:
    with mounted(source, tmp_path / "mount") as mount:
        run = mount / "files"
        done = ckptd("prune", run, "--max-keep", "2", "--interval", "1", "--trash-ttl", "1h")
        assert (done.returncode, left(run), pointed(run)) == (0, epochs(4, 5), "epoch_5.pth"), done.stderr
        assert "kept=2 pruned=3" in done.stderr
        done = ckptd("restore", run, "--all")
        assert (done.returncode, [n for n in left(run) if n in epochs(1, 2, 3, 4, 5)]) == (0, epochs(1, 2, 3, 4, 5))
        done = ckptd("prune", run, "--max-keep", "1", "--interval", "1", "--trash-ttl", "0")
        assert done.returncode == 0, done.stderr


def test_a_watch_on_sshfs_sees_each_save(source: Path, tmp_path: Path, watching) -> None:
    with mounted(source, tmp_path / "mount") as mount:
        run = mount / "files"
        options = ("--max-keep", "2", "--interval", "1", "--settle", "0.1", "--scan-interval", "0.2")
        with watching(run, *options) as watch:
            watch.heard("pointed last_ckpt at epoch_5.pth")
            for step in (6, 7, 8):  # as from another host: where the files lie
                (source / "files" / f"epoch_{step}.pth").write_bytes(torch_zip())
                watch.heard(f"pointed last_ckpt at epoch_{step}.pth")
                watch.heard(f"pruned epoch_{step - 2}.pth")
            assert watch.stop() == 0
