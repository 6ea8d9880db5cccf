"""Root runs each command on somebody's work dir with a ckptd that he cannot read: it is in root's own closed home."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from ckptd.cli.commands import cli
from tests.conftest import Builder, Somebody, Watching, environment, epochs, eventually, left, safetensors
from tests.root.strace import needs

pytestmark = [pytest.mark.root, pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")]

# What says of each module that is imported once root is given up that it is: then it might not be readable any more.
ROOTS_CKPTD = """
import os, sys

def hook(event, args):
    if event == "import" and os.geteuid() != 0:
        os.write(2, f"imported late: {args[0]}\\n".encode())

sys.addaudithook(hook)
import ckptd
assert ckptd.__file__.startswith(os.environ["CLOSED"]), ckptd.__file__
if "BUG" in os.environ:
    import ckptd.passes.surveyor
    ckptd.passes.surveyor.scan = lambda *_: 1 / 0
from ckptd.__main__ import main
main()
"""

ONE = ("--max-keep", "1", "--interval", "1")
COMMANDS = [
    ("plan", "RUN", *ONE),
    ("plan", "RUN", "-v", "--json", "--layout", "lightning"),
    ("plan", "--recursive", "ROOT", *ONE),
    ("plan", "--simulate", "epoch_{}.pth:1..300", *ONE),
    ("prune", "RUN", *ONE, "--trash-ttl", "1h"),
    ("prune", "--recursive", "ROOT", *ONE, "--keep-best", "mAP:max"),
    ("latest", "RUN"),
    ("latest", "RUN", "--json"),
    ("verify", "RUN/epoch_1.pth", "RUN/iter_1.safetensors", "RUN/iter_2"),
    ("pin", "RUN/epoch_1.pth"),
    ("unpin", "RUN/epoch_2.pth", *ONE),
    ("restore", "RUN"),
    ("restore", "RUN", "--all"),
    ("history", "RUN"),
    ("history", "RUN", "--json"),
    ("unit", "RUN", *ONE),
    ("watch", "RUN", *ONE),
    ("watch", "RUN", *ONE, "--dry-run"),
    ("watch", "--recursive", "ROOT", *ONE),
]


@pytest.fixture(scope="module")
def closed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory of root's alone with all in it that ckptd consists of."""
    place = tmp_path_factory.mktemp("closed")
    place.chmod(0o700)
    for name in ("ckptd", "click", "watchdog"):
        source = Path(import_module(name).__file__).parent
        shutil.copytree(source, place / name, ignore=shutil.ignore_patterns("__pycache__"))
    return place


@pytest.fixture
def run_(somebody: Somebody) -> Path:
    """A work dir of somebody's with a little of everything in it, below a root of his."""
    place = somebody.place / "root" / "run"
    place.mkdir(parents=True)
    build = Builder(place)
    build(*epochs(1, 2, 3))
    build("iter_1.safetensors", content=safetensors())
    build.shards("iter_2")
    (place / "epoch_2.pth.keep").touch()
    somebody.owns(somebody.place / "root")
    return place


def roots_own(*args: str | Path, run_: Path) -> list[str]:
    words = [str(arg).replace("RUN", str(run_)).replace("ROOT", str(run_.parent)) for arg in args]
    return [sys.executable, "-c", ROOTS_CKPTD, *words]


def env(closed: Path, **more: str) -> dict[str, str]:
    return environment(PYTHONPATH=str(closed), CLOSED=str(closed), NOTIFY_SOCKET="@nobody-listens", **more)


def test_every_command_is_among_those_that_are_tried() -> None:
    assert {words[0] for words in COMMANDS} == set(cli.commands)


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] != "watch"], ids=" ".join)
def test_a_command_needs_nothing_of_pythons_once_it_is_the_owner(
    words: tuple[str, ...], closed: Path, run_: Path
) -> None:
    if words[0] in ("restore", "history"):
        command = roots_own("prune", "RUN", *ONE, "--trash-ttl", "1h", run_=run_)
        subprocess.run(command, env=env(closed), capture_output=True, check=True, cwd="/")
        assert "epoch_1.pth" not in left(run_)
    command = roots_own(*words, run_=run_)
    done = subprocess.run(command, env=env(closed), capture_output=True, text=True, cwd="/")
    assert "imported late" not in done.stderr
    assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr


def test_a_shell_that_asks_what_is_in_a_trash_is_answered(closed: Path, run_: Path) -> None:
    command = roots_own("prune", "RUN", *ONE, "--trash-ttl", "1h", run_=run_)
    subprocess.run(command, env=env(closed), capture_output=True, check=True, cwd="/")
    asks = {"_CKPTD_COMPLETE": "bash_complete", "COMP_WORDS": f"ckptd restore {run_} ep", "COMP_CWORD": "3"}
    done = subprocess.run(roots_own(run_=run_), env=env(closed, **asks), capture_output=True, text=True, cwd="/")
    assert (done.returncode, done.stdout, done.stderr) == (0, "plain,epoch_1.pth\n", "")


@pytest.mark.parametrize("words", [words for words in COMMANDS if words[0] == "watch"], ids=" ".join)
@pytest.mark.parametrize("there", [True, False], ids=["there", "yet to come"])
def test_a_watch_needs_nothing_of_pythons_once_it_is_the_owner(
    words: tuple[str, ...], there: bool, closed: Path, run_: Path, somebody: Somebody
) -> None:
    later = somebody.place / "later"
    if not there:
        run_.parent.rename(later)
        if "--recursive" in words:
            pytest.skip("below a root of root's own, everybody else's is left alone")
    watch = Watching((), command=roots_own(*words, run_=run_), env=env(closed), cwd="/")
    try:
        if not there:
            watch.heard("waiting for")
            later.rename(run_.parent)
        watch.heard("would prune" if "--dry-run" in words else "pruned epoch_1.pth")
        watch.process.send_signal(signal.SIGHUP)
        watch.heard("looked again")
        assert watch.stop() == 0
        assert not watch.said("imported late"), watch.lines
    finally:
        watch.discard()


def test_a_bug_shows_its_trace_all_the_same(closed: Path, run_: Path) -> None:
    watch = Watching((), command=roots_own("watch", "RUN", run_=run_), env=env(closed, BUG="1"), cwd="/")
    try:
        assert "division by zero" in watch.heard("a bug in ckptd")
        eventually(lambda: os.stat(f"/proc/{watch.process.pid}").st_uid != 0)
        assert watch.stop() == 0
        assert not watch.said("imported late"), watch.lines
    finally:
        watch.discard()


def test_a_directory_that_a_group_shares_is_reached_through_the_owners_membership(somebody: Somebody) -> None:
    needs("unshare")
    shared, run_ = somebody.place / "shared", somebody.place / "shared" / "run"
    run_.mkdir(parents=True)
    Builder(run_)(*epochs(1, 2, 3))
    somebody.owns(run_)
    for place, mode in ((shared, 0o750), (run_, 0o2770)):
        os.chown(place, place.stat().st_uid, 54400)
        place.chmod(mode)
    member = somebody.place / "group"
    member.write_text(Path("/etc/group").read_text() + f"ckptd-test:x:54400:{pwd.getpwuid(65534).pw_name}\n")
    script = 'mount --bind "$1" /etc/group && shift && exec "$@"'
    shell = ["unshare", "-m", "--propagation", "private", "sh", "-c", script, "sh", str(member)]
    command = [sys.executable, "-m", "ckptd", "prune", str(run_), *ONE]
    done = subprocess.run([*shell, *command], env=environment(), capture_output=True, text=True)
    assert (done.returncode, left(run_)) == (0, epochs(3)), done.stderr
    made = (run_ / ".ckptd").stat()
    assert (made.st_uid, made.st_gid, made.st_mode & 0o777) == (65534, 54400, 0o770)
    # And who is no member does not get there.
    done = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert (done.returncode, "cannot be opened: Permission denied" in done.stderr) == (1, True), done.stderr
