"""Owning a work dir: its lock, its `.ckptd`, and giving up root before anything in it is touched."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import json
import os
import pwd
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from ckptd.core.policy import Policy
from ckptd.errors import CkptdError, OwnedError, RefusedError, UsageError
from ckptd.passes.background import Background
from ckptd.workdir import workdir
from ckptd.workdir.workdir import WorkDir, _owner_of, become_owner, check_library_use

from .conftest import UNTRACED, Builder, Ckptd, Somebody, environment, epochs, keeper_of, left, picture

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workdir, "_LOCK_WAIT_S", 0.1)


@contextmanager
def another_owner(work_dir: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that has taken the work dir, until the `with` ends."""
    script = "import sys; from ckptd.workdir.workdir import WorkDir; w = WorkDir(sys.argv[1]); w.take()"
    script += "; print(1, flush=True); sys.stdin.read()"
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    command = [sys.executable, "-c", script, str(work_dir)]
    with subprocess.Popen(command, text=True, env=environment(), **streams) as process:
        assert process.stdout.readline() == "1\n"
        yield process


@pytest.mark.usefixtures("impatient")
def test_a_work_dir_that_another_process_owns_is_refused_and_the_owner_named(work_dir: Path) -> None:
    with another_owner(work_dir) as other, WorkDir(work_dir) as work:
        with pytest.raises(OwnedError) as refused:
            work.take()
        assert str(refused.value).startswith(f"{work_dir}: process {other.pid} ({sys.executable} -c ")
        assert refused.value.exit_code == 5
    with WorkDir(work_dir) as work:
        assert work.take()


def test_the_lock_of_a_process_that_was_killed_is_free(work_dir: Path) -> None:
    with another_owner(work_dir) as other:
        other.kill()
        other.wait()
        with WorkDir(work_dir) as work:
            assert work.take()


@pytest.mark.usefixtures("impatient")
def test_two_owners_in_one_process_exclude_each_other_and_taking_twice_is_taking_once(work_dir: Path) -> None:
    with WorkDir(work_dir) as first:
        assert first.take()
        assert first.take()
        with WorkDir(work_dir) as second, pytest.raises(OwnedError):
            second.take()
    with WorkDir(work_dir) as third:
        assert third.take()


def test_no_child_process_inherits_the_lock(work_dir: Path) -> None:
    with WorkDir(work_dir) as work:
        work.take()
        child = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    try:
        with WorkDir(work_dir) as work:
            assert work.take()
    finally:
        child.communicate()


def test_a_file_system_without_locks_is_told_and_no_error(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(fd: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with WorkDir(work_dir) as work:
        assert work.take() is False


@pytest.mark.parametrize("mode", [0o755, 0o700, 0o2770, 0o1777])
def test_ckptds_directory_has_the_mode_of_the_work_dir(mode: int, work_dir: Path) -> None:
    work_dir.chmod(mode)
    with WorkDir(work_dir) as work:
        assert work.open_own() is None
        work.take()
        assert work.open_own() is not None
    info = (work_dir / ".ckptd").stat()
    assert (info.st_mode & 0o7777, info.st_uid, info.st_gid) == (mode, work_dir.stat().st_uid, work_dir.stat().st_gid)


def test_a_ckptd_directory_that_is_there_keeps_its_mode(work_dir: Path) -> None:
    (work_dir / ".ckptd").mkdir(mode=0o700)
    with WorkDir(work_dir) as work:
        work.take()
    assert (work_dir / ".ckptd").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(
    "make", [Path.mkdir, os.mkfifo, lambda p: p.symlink_to(p.parent / "elsewhere"), lambda p: p.symlink_to("lock")]
)
def test_a_lock_that_is_no_plain_file_is_refused_with_its_path(make, work_dir: Path) -> None:
    (work_dir / ".ckptd").mkdir()
    make(work_dir / ".ckptd/lock")
    with WorkDir(work_dir) as work, pytest.raises(RefusedError, match=f"^{work_dir}/.ckptd/lock: .*Remove it"):
        work.take()
    assert os.listdir(work_dir / ".ckptd") == ["lock"]


def test_a_disk_without_room_for_ckptds_directory_says_so(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "mkdir", full)
    with WorkDir(work_dir) as work, pytest.raises(CkptdError, match=f"^{work_dir}: No space left on device. Free"):
        work.take()


def test_what_is_no_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="not a directory"):
        WorkDir(tmp_path / "file")
    with pytest.raises(CkptdError, match="does not exist"):
        WorkDir(tmp_path / "nowhere")


@pytest.mark.parametrize("happens", ["replaced", "removed", "its .ckptd replaced"])
def test_a_work_dir_that_is_no_longer_the_one_we_hold_is_noticed(happens: str, work_dir: Path) -> None:
    with WorkDir(work_dir) as work:
        work.take()
        assert work.is_still_there()
        moved = work_dir if happens != "its .ckptd replaced" else work_dir / ".ckptd"
        moved.rename(work_dir.parent / "old")
        if happens != "removed":
            moved.mkdir()
        assert not work.is_still_there()


def test_a_closed_work_dir_holds_no_descriptor(work_dir: Path) -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with WorkDir(work_dir) as work:
            work.take()
    assert os.listdir("/proc/self/fd") == before


def fail(*_: object, **__: object) -> None:
    raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))


FAILING = {
    "a directory that went stale as it was opened": ("os.fstat", None),
    "a file system that does not answer": ("os.statvfs", None),
    "a file system that does not tell its kind": ("ckptd.passes.surveyor.is_local", None),
    "a lock that cannot be given the directory's mode": ("ckptd.workdir.workdir.open_as_its_directory", None),
    "a `.ckptd` that is a symlink": (None, lambda place: (place / ".ckptd").symlink_to("elsewhere")),
    "a `.ckptd` that is a file": (None, lambda place: (place / ".ckptd").touch()),
    "a lock that is a directory": (None, lambda place: (place / ".ckptd" / "lock").mkdir(parents=True)),
    "a lock that another process has": (None, None),
    "a state that is a symlink": (None, lambda place: linked(place / ".ckptd" / "state.json")),
    "a journal that is a symlink": (None, lambda place: linked(place / ".ckptd" / "journal.jsonl")),
    "a trash that is a file": (None, lambda place: made(place / ".ckptd").joinpath("trash").touch()),
    "a trash that cannot be read": ("ckptd.workdir.trash.items", None),
    "schedules that are a file": (None, lambda place: made(place / ".ckptd").joinpath("schedules").touch()),
    "a directory that cannot be listed": ("ckptd.passes.surveyor.scan", None),
}


def made(place: Path) -> Path:
    place.mkdir()
    return place


def linked(path: Path) -> None:
    made(path.parent)
    path.symlink_to("elsewhere")


@pytest.mark.parametrize(
    ("what", "below_a_root"),
    # Below a root nobody asks with statvfs, for its kind was asked of the root.
    [(what, below) for what in FAILING for below in (False, True) if not (below and FAILING[what][0] == "os.statvfs")],
)
@pytest.mark.usefixtures("impatient")
def test_a_look_that_fails_keeps_no_descriptor(
    what: str, below_a_root: bool, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints("epoch_1.pth", "epoch_2.pth")
    patched, plant = FAILING[what]
    if plant is not None:
        plant(work_dir)
    with contextlib.ExitStack() as stack:
        if "another process" in what:
            stack.enter_context(another_owner(work_dir))
        background = Background()
        stack.callback(background.close)
        root = work_dir.parent if below_a_root else None
        keeper = keeper_of(work_dir, Policy(max_keep=1), background, root=root)
        before = len(os.listdir("/proc/self/fd"))
        counts = []
        with monkeypatch.context() as patch:
            if patched:
                patch.setattr(patched, fail)
            for _ in range(5):
                keeper.look()
                counts.append(len(os.listdir("/proc/self/fd")))
        assert keeper.failure is not None
        assert len(set(counts)) == 1
        keeper.close()
        assert len(os.listdir("/proc/self/fd")) == before


# --- users ------------------------------------------------------------------------------------------------------

_BECOME = """
import json, os, pwd, sys
from ckptd.errors import CkptdError
from ckptd.workdir.workdir import become_owner
try:
    become_owner(sys.argv[1:])
except CkptdError as error:
    print(json.dumps([error.exit_code, str(error), os.getresuid()]))
else:
    print(json.dumps([os.getresuid(), os.getresgid(), os.getgroups()]))
"""


def becoming(*paths: Path) -> list:
    command = [sys.executable, "-c", _BECOME, *map(str, paths)]
    return json.loads(subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout)


@needs_root
@pytest.mark.parametrize("uid", [65534, 54321], ids=["an owner with a name", "an owner without a name"])
def test_root_becomes_the_owner_of_the_work_dir_for_good(uid: int, work_dir: Path) -> None:
    os.chown(work_dir, uid, uid)
    uids, gids, groups = becoming(work_dir)
    assert (uids, gids) == ([uid] * 3, [uid] * 3)
    assert 0 not in groups


@needs_root
@pytest.mark.parametrize("gid", [0, 54322], ids=["root's", "somebody else's"])
def test_root_takes_the_owners_own_groups_and_never_the_directorys(gid: int, work_dir: Path) -> None:
    owner = next(each for each in pwd.getpwall() if each.pw_uid and each.pw_gid)
    os.chown(work_dir, owner.pw_uid, gid)
    uids, gids, groups = becoming(work_dir)
    assert (uids, gids) == ([owner.pw_uid] * 3, [owner.pw_gid] * 3)
    assert set(groups) == set(os.getgrouplist(owner.pw_name, owner.pw_gid))


@needs_root
@pytest.mark.parametrize("gid", [0, 54322], ids=["root's", "somebody else's"])
def test_an_owner_without_a_name_is_in_no_group_but_one_of_his_own(gid: int, work_dir: Path) -> None:
    os.chown(work_dir, 54321, gid)
    assert becoming(work_dir) == [[54321] * 3, [54321] * 3, []]


@needs_root
def test_an_owner_without_a_name_whose_number_a_group_has_is_not_in_that_group(work_dir: Path) -> None:
    users = {each.pw_uid for each in pwd.getpwall()}
    number = next(each.gr_gid for each in grp.getgrall() if each.gr_gid not in users)
    os.chown(work_dir, number, number)
    assert becoming(work_dir) == [[number] * 3, [65534] * 3, []]


@needs_root
def test_root_stays_root_in_its_own_work_dir(work_dir: Path) -> None:
    assert becoming(work_dir)[0] == [0, 0, 0]


@needs_root
def test_a_work_dir_that_does_not_exist_yet_has_no_owner_yet(work_dir: Path, tmp_path: Path) -> None:
    os.chown(work_dir, 65534, 65534)
    assert becoming(work_dir / "later")[0] == [0, 0, 0]
    assert becoming(work_dir, tmp_path / "later")[0] == [65534] * 3


@needs_root
def test_several_owners_in_one_process_are_refused(work_dir: Path, tmp_path: Path) -> None:
    os.chown(work_dir, 65534, 65534)
    code, text, uids = becoming(work_dir, tmp_path)
    assert (code, uids) == (4, [0, 0, 0])
    assert "several owners" in text


@needs_root
def test_a_symlink_that_another_user_made_does_not_choose_whom_root_becomes(somebody: Somebody, work_dir: Path) -> None:
    os.chown(work_dir, 54321, 54321)
    (somebody.place / "link").symlink_to(work_dir)
    os.chown(somebody.place / "link", 65534, 65534, follow_symlinks=False)
    code, text, uids = becoming(somebody.place / "link")
    assert (code, uids) == (4, [0, 0, 0])
    assert f"{somebody.place}/link: a symlink of another user" in text


@needs_root
def test_what_ckptd_makes_in_somebodys_work_dir_is_his(somebody: Somebody, ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    (place / "epoch_1.pth").write_bytes(b"")
    somebody.owns(place)
    with WorkDir(place) as work:
        with pytest.raises(RefusedError, match="belongs to another user"):
            check_library_use(work)
        work.take()
    assert {path.stat().st_uid for path in [place / ".ckptd"]} == {place.stat().st_uid}


@pytest.mark.skipif(os.geteuid() == 0, reason="root becomes somebody; the others do not")
def test_an_ordinary_user_stays_who_he_is(work_dir: Path) -> None:
    become_owner([work_dir, Path("/")])
    assert os.geteuid() == work_dir.stat().st_uid


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_a_users_link_behind_roots_own_link_is_refused(tmp_path: Path) -> None:
    for name, uid in (("home", 12345), ("theirs", 12346)):
        (tmp_path / name).mkdir()
        os.chown(tmp_path / name, uid, uid)
    (tmp_path / "home/cur").symlink_to(tmp_path / "theirs")
    os.chown(tmp_path / "home/cur", 12345, 12345, follow_symlinks=False)
    (tmp_path / "link").symlink_to("home/cur")
    with pytest.raises(RefusedError, match="symlink of another user"):
        _owner_of(tmp_path / "link")
    os.chown(tmp_path / "home/cur", 12346, 12346, follow_symlinks=False)
    assert _owner_of(tmp_path / "link") == 12346


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody")
def test_root_becomes_the_owner_even_where_the_owner_cannot_read_roots_python(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    for path in (*work_dir.parents[:3], work_dir):
        path.chmod(0o755)
    for path in (work_dir, *work_dir.iterdir()):
        os.chown(path, 12345, 12345)
    for command in ("plan", "prune", "latest", "history", "restore", "plan"):
        asked = [sys.executable, "-m", "ckptd", command, str(work_dir)]
        done = subprocess.run(
            asked, capture_output=True, text=True, env=environment(CKPTD_MAX_KEEP="1", **UNTRACED), timeout=60
        )
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), (command, done.stderr)
    assert {path.stat().st_uid for path in (work_dir / ".ckptd").iterdir()} == {12345}
    assert left(work_dir) == epochs(3)


@pytest.mark.parametrize(
    ("planted", "goal"),
    [
        pytest.param(".ckptd", "directory", id="ckptd's own directory"),
        pytest.param(".ckptd/lock", "file", id="the lock"),
        pytest.param(".ckptd/state.json", "file", id="the state"),
        pytest.param(".ckptd/journal.jsonl", "file", id="the journal"),
        pytest.param(".ckptd/trash", "directory", id="the trash"),
        pytest.param(".ckptd/schedules", "directory", id="the schedules"),
    ],
)
@pytest.mark.parametrize("command", ["prune", "watch"])
def test_a_symlink_planted_where_ckptd_keeps_its_own_is_refused_before_anything_is_deleted(
    planted: str, goal: str, command: str, with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd
) -> None:
    work_dir, outside = with_checkpoints(*epochs(1, 2, 3)), tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"precious")
    (outside / "1000-0").write_bytes(b"named like something in the trash")
    path = work_dir / planted
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(outside if goal == "directory" else outside / "precious")
    before = picture(outside)
    done = ckptd(command, work_dir, "--max-keep", 1, "--trash-ttl", 0)
    assert (done.returncode, left(work_dir), picture(outside)) == (4, epochs(1, 2, 3), before), done.stderr
    assert str(path) in done.stderr.splitlines()[-1]
    assert "emove it" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
