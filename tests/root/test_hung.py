"""A disk that does not answer: whoever asks it hangs in the kernel. Here a file system whose server never speaks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conftest import Builder, Ckptd, Watching, environment, epochs, left

pytestmark = pytest.mark.root

_LATEST = """
import sys
from ckptd import __main__
from ckptd.disk import apart
apart.PATIENCE_S = 1.0
sys.argv = ["ckptd", "latest", *sys.argv[1:]]
__main__.main()
"""


# Without a question to the disk: so are directories held by shells, and files by jobs, since before it died.
_HOLDER = """
import os, sys
held = [os.open(sys.argv[1], os.O_PATH), os.open(sys.argv[2], os.O_RDONLY)]
print("open", flush=True)
sys.stdin.read()
"""
ONE = ("--max-keep", "1", "--interval", "1")


@pytest.fixture
def dead(tmp_path: Path) -> Iterator[Path]:
    """A mount of which nothing can be learned."""
    path = tmp_path / "dead"
    path.mkdir()
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"no FUSE here: {error}")
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    try:
        if libc.mount(b"dead", os.fsencode(path), b"fuse", 0, options) != 0:
            pytest.skip(f"no FUSE here: {os.strerror(ctypes.get_errno())}")
        yield path
        assert libc.umount2(os.fsencode(path), 2) == 0  # MNT_DETACH
    finally:
        os.close(server)  # ends whoever hangs


@pytest.mark.parametrize("below", ["", "runs/a"])
def test_latest_gives_up_and_says_so_and_holds_up_nobody_who_waits_for_its_words(below: str, dead: Path) -> None:
    began_s = time.monotonic()
    done = subprocess.run([sys.executable, "-c", _LATEST, dead / below], capture_output=True, text=True,
                          env=environment(), timeout=60, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr == (
        f"error: ckptd latest {dead / below}: the disk has not answered for 1 s. See to it, and ask again\n"
    )
    assert time.monotonic() - began_s < 30


def test_a_link_to_a_disk_that_does_not_answer_holds_up_no_work_dir(
    dead: Path, with_checkpoints: Builder, ckptd: Ckptd, watching: Callable[..., AbstractContextManager[Watching]]
) -> None:
    """A mount is above what the link leads to, which may bear the name of a checkpoint: that is kept."""
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    (work_dir / "data").symlink_to(dead / "data")
    (work_dir / "by_another").symlink_to("data")
    (work_dir / "best").symlink_to(dead / "runs" / "epoch_2.pth")
    assert ckptd("latest", work_dir).stdout.strip() == str(work_dir / "epoch_4.pth")
    done = ckptd("prune", work_dir, *ONE, "--trash-ttl", 0)
    assert (done.returncode, done.stderr.count("error")) == (0, 0), done.stderr
    assert {name for name in left(work_dir) if name.endswith(".pth")} == {*epochs(2, 4)}
    with watching(work_dir, *ONE, "--trash-ttl", "0") as watch:
        watch.heard("watching")
        with_checkpoints(*epochs(5))
        watch.heard("pruned epoch_4.pth")
        assert watch.stop() == 0


@pytest.mark.parametrize("detached", [False, True])
def test_a_file_open_on_a_disk_that_does_not_answer_holds_up_no_deletion(
    detached: bool, dead: Path, with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    """Whether the dead mount is still there, or an operator has taken it away from under its users."""
    work_dir = with_checkpoints.work_dir
    for step in (1, 2, 3):
        with_checkpoints.shards(f"epoch_{step}")
    read = next(path for path in (work_dir / "epoch_1").iterdir() if path.is_file())
    holder = [sys.executable, "-c", _HOLDER, str(dead), str(read)]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        if detached:
            assert ctypes.CDLL(None).umount2(os.fsencode(dead), 2) == 0
        done = ckptd("prune", work_dir, *ONE, "--trash-ttl", 0)
        process.communicate("")
    if detached:  # for the fixture
        subprocess.run(["mount", "-t", "tmpfs", "none", dead], check=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in work_dir.glob("epoch_*")) == ["epoch_1", "epoch_3"], done.stderr
