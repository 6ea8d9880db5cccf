"""`ckptd watch --recursive` where the kernel sets the limits: a disk that does not answer, and too few watches."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.conftest import Watching, epochs, eventually, keeps, left, torch_zip
from tests.root.disks import Disk, can_mount
from tests.root.strace import needs

Watch = Callable[..., AbstractContextManager[Watching]]
OPTIONS = ("--max-keep", "1", "--interval", "1", "--trash-ttl", "0")
ALL = epochs(1, 2, 3)


def saved(work_dir: Path) -> Path:
    work_dir.mkdir(parents=True)
    for name in ALL:
        (work_dir / name).write_bytes(torch_zip())
    return work_dir


@contextmanager
def frozen(mount: Path) -> Iterator[None]:
    """Whoever writes there waits, and cannot even be killed, until the `with` ends."""
    subprocess.run(["fsfreeze", "--freeze", mount], check=True)
    try:
        yield
    finally:
        subprocess.run(["fsfreeze", "--unfreeze", mount], check=True)


@pytest.mark.parametrize("recursive", [False, True], ids=["named", "below a root"])
def test_a_disk_that_does_not_answer_holds_up_no_other(recursive: bool, tmp_path: Path, watching: Watch) -> None:
    needs("fsfreeze", "mkfs.ext4", "mount")
    problem = can_mount(tmp_path)
    if problem:
        pytest.skip(problem)
    root = tmp_path / "root"
    with Disk("ext4", "rw", root).fresh() as disk:
        slow = [saved(disk.path / f"run{number}") for number in range(20)]
        fast = [saved(root / "other" / f"run{number}") for number in range(10)]
        where = ["--recursive", root] if recursive else [*slow, *fast]
        with watching(*where, *OPTIONS) as watch:
            with frozen(disk.path):
                eventually(lambda: all(keeps(run, 3)() for run in fast), what="the other disk's passes")
                (fast[0] / "epoch_4.pth").write_bytes(torch_zip())
                eventually(lambda: left(fast[0]) == epochs(4), what="a save on the other disk")
                assert [left(work_dir) for work_dir in slow] == [ALL] * len(slow)
            eventually(lambda: all(keeps(run, 3)() for run in slow), what="the passes that had to wait")
            assert watch.stop() == 0


def test_where_the_kernel_has_no_more_watches_the_rest_is_scanned(tmp_path: Path, watching: Watch) -> None:
    needs("unshare")
    runs = [saved(tmp_path / "root" / f"run{number}") for number in range(10)]
    few = 'echo 6 > /proc/sys/user/max_inotify_watches && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*alone, few, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no limit of watches can be set here: it takes a user namespace of one's own")
    command = [sys.executable, "-m", "ckptd", "watch", "--recursive", str(tmp_path / "root"), *OPTIONS]
    more = ("--scan-interval", "0.2")
    with watching(command=[*alone, few, "sh", *command, *more]) as watch:
        eventually(lambda: all(keeps(run, 3)() for run in runs), what="the first passes")
        for run in runs:
            (run / "epoch_4.pth").write_bytes(torch_zip())
        eventually(lambda: all(left(run) == epochs(4) for run in runs), what="a save that no watch tells of")
        saved(tmp_path / "root" / "later")
        eventually(keeps(tmp_path / "root" / "later", 3), what="a work dir that no watch tells of")
        assert watch.stop() == 0
    assert watch.said("fs.inotify.max_user_watches") == 1


@pytest.mark.parametrize("recursive", [False, True], ids=["one work dir", "below a root"])
def test_where_the_kernel_has_no_inotify_instance_left_all_is_scanned(
    recursive: bool, tmp_path: Path, watching: Watch
) -> None:
    """Each user has 128 of them on many machines, and editors and their servers take them all."""
    needs("unshare")
    run = saved(tmp_path / "root" / "run")
    none = 'echo 0 > /proc/sys/user/max_inotify_instances && exec "$@"'
    alone = ["unshare", "--user", "--map-root-user", "sh", "-c"]
    if subprocess.run([*alone, none, "sh", "true"], capture_output=True).returncode:
        pytest.skip("no limit of inotify instances can be set here: it takes a user namespace of one's own")
    what = ["--recursive", str(run.parent)] if recursive else [str(run)]
    command = [sys.executable, "-m", "ckptd", "watch", *what, *OPTIONS, "--scan-interval", "0.2"]
    with watching(command=[*alone, none, "sh", *command]) as watch:
        eventually(keeps(run, 3), what="the first pass")
        (run / "epoch_4.pth").write_bytes(torch_zip())
        eventually(lambda: left(run) == epochs(4), what="a save that no event tells of")
        assert watch.stop() == 0
    assert watch.said("max_user_instances") == 1
