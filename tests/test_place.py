"""Where a framework trips over files of others, ckptd's own are beside the work dir, and all else is as ever."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.errors import CkptdError, RefusedError
from ckptd.passes.restore import restore
from ckptd.workdir.place import own_dir

from .conftest import Builder, Somebody, a_pass, epochs
from .layouts.writers import accelerate

Ckptd = Callable[..., subprocess.CompletedProcess[str]]
KEEP_TWO = {"max_keep": 2, "settle_s": 0.0, "trash_ttl_s": 3600.0}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project directory of Accelerate's with five checkpoints in it."""
    project = tmp_path / "project"
    save(project, *range(5))
    return project


def save(project: Path, *numbers: int) -> None:
    builder = Builder(project / "checkpoints")
    for number in numbers:
        path = builder.work_dir / f"checkpoint_{number}"
        path.mkdir(parents=True)
        builder.at_ns += number * 10**9
        for name, content in accelerate(number).items():
            (path / name).write_bytes(content)
            builder.tick(path / name)


def names(path: Path) -> list[str]:
    return sorted(each.name for each in path.iterdir())


def loaded_by_accelerate(place: Path) -> str:
    """What Accelerate's own load_state would take: the entry whose name ends with the highest number."""
    return max(names(place), key=lambda name: int(re.findall("[0-9]+", name)[-1]))


def test_inside_accelerates_directory_there_is_nothing_but_its_own(project: Path) -> None:
    a_pass(project / "checkpoints", **KEEP_TWO)
    assert names(project / "checkpoints") == ["checkpoint_3", "checkpoint_4"]
    assert loaded_by_accelerate(project / "checkpoints") == "checkpoint_4"
    assert names(project) == [".ckptd.checkpoints", "checkpoints", "last_ckpt"]
    assert (project / "last_ckpt").read_text() == f"{project}/checkpoints/checkpoint_4\n"


def test_beside_the_work_dir_what_was_pruned_is_restored_what_was_seen_is_remembered_and_nothing_flaps(
    project: Path,
) -> None:
    place = project / "checkpoints"
    a_pass(place, **KEEP_TWO)
    before = [(path, path.lstat().st_mtime_ns) for path in sorted(project.rglob("*"))]
    assert not a_pass(place, **KEEP_TWO).pruned
    assert before == [(path, path.lstat().st_mtime_ns) for path in sorted(project.rglob("*"))]
    assert restore(str(place), ["checkpoint_0"]) == (["checkpoint_0"], {})
    assert api.latest(place) == place / "checkpoint_4"
    assert api.plan(place, Policy(max_keep=2)).pointed == f"{place}/checkpoint_4"


def test_what_a_pass_has_called_complete_stays_so_for_those_who_would_wait_longer(project: Path) -> None:
    place = project / "checkpoints"
    for path in place.rglob("*"):
        os.utime(path)  # written just now; nothing marks an end, and the default is to wait for five minutes
    assert api.latest(place) is None
    a_pass(place, **KEEP_TWO)
    newest = (project / "last_ckpt").read_text().rstrip("\n")
    assert str(api.latest(place)) == newest
    (Path(newest) / "model.safetensors").write_bytes(b"being written again")
    assert str(api.latest(place)) != newest


def test_it_stays_beside_when_the_checkpoints_have_gone_and_inside_where_it_was_before(
    project: Path, with_checkpoints: Builder
) -> None:
    place = project / "checkpoints"
    a_pass(place, **KEEP_TWO)
    for each in place.iterdir():
        each.rename(project.parent / each.name)
    fd = os.open(place, os.O_RDONLY)
    try:
        assert own_dir(fd) == "../.ckptd.checkpoints"
    finally:
        os.close(fd)
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir, max_keep=1)
    (project.parent / "checkpoint_4").rename(work_dir / "checkpoint_4")
    a_pass(work_dir, max_keep=1)
    assert not (work_dir.parent / ".ckptd.run").exists()


def test_a_job_declares_where_the_daemon_looks(project: Path, declare: Callable[..., None]) -> None:
    place = project / "checkpoints"
    declare(place, template="checkpoint_{}", unit="save", interval=1, max_keep=2)
    assert names(project) == [".ckptd.checkpoints", "checkpoints"]
    (series,) = api.plan(place, Policy(settle_s=0.0)).plan.series
    assert (series.grid.max_keep, series.grid.interval_from) == (2, "declared")


def test_a_parent_that_may_not_be_written_is_an_error_and_nothing_is_deleted(somebody: Somebody, ckptd: Ckptd) -> None:
    project = somebody.place / "project"
    save(project, 0, 1, 2)
    somebody.owns(project)
    project.chmod(0o555)
    done = ckptd("prune", project / "checkpoints", "--max-keep", 1, "--settle", 0, user=somebody)
    assert done.returncode == 1
    assert "Accelerate wants nothing but its own inside" in done.stderr
    assert names(project / "checkpoints") == [f"checkpoint_{number}" for number in range(3)]
    project.chmod(0o755)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_what_another_user_has_put_beside_the_work_dir_is_refused(project: Path) -> None:
    planted = project / ".ckptd.checkpoints"
    planted.mkdir()
    os.chown(planted, 65534, 65534)
    with pytest.raises(RefusedError, match="another user"):
        a_pass(project / "checkpoints", **KEEP_TWO)
    planted.rmdir()
    planted.symlink_to(project.parent)
    with pytest.raises(CkptdError, match="a symlink"):
        a_pass(project / "checkpoints", **KEEP_TWO)
    assert len(names(project / "checkpoints")) == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to mount")
@pytest.mark.parametrize("how", ["tmpfs", "bind"])
def test_a_work_dir_that_is_a_mount_point_is_refused_with_a_way_out_and_nothing_is_made(
    project: Path, how: str, ckptd: Ckptd
) -> None:
    place = project / "checkpoints"
    arguments = ["-t", "tmpfs", "tmpfs"] if how == "tmpfs" else ["--bind", place]
    if subprocess.run(["mount", *arguments, place], capture_output=True).returncode != 0:
        pytest.skip("may not mount")
    try:
        if how == "tmpfs":
            save(project, *range(3))
        there = names(place)
        done = ckptd("prune", place, "--max-keep", 1, "--settle", 0)
        assert (done.returncode, names(place), names(project)) == (4, there, ["checkpoints"])
        (place / ".ckptd").mkdir()
        assert f"make {place}/.ckptd" in done.stderr
        assert ckptd("prune", place, "--max-keep", 1, "--settle", 0).returncode == 0
        assert [name for name in names(place) if name.startswith("checkpoint_")] == [there[-1]]
    finally:
        subprocess.run(["umount", place], check=True)
