"""A disk that does not answer: whoever asks it hangs in the kernel. Here a file system whose server never speaks."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import environment

pytestmark = pytest.mark.root

_LATEST = """
import sys
from ckptd import __main__
from ckptd.disk import apart
apart.PATIENCE_S = 1.0
sys.argv = ["ckptd", "latest", *sys.argv[1:]]
__main__.main()
"""


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
