"""The units under a real systemd: run as the owner, sandboxed, hung, replaced, reloaded, stopped."""

from __future__ import annotations

import json
import os
import re
import select
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import ckptd
from ckptd.systemd.unit import render, unit_name

pytestmark = pytest.mark.root

REPOSITORY = Path(__file__).parents[2]
NAMESPACE = Path(__file__).with_name("systemd-namespace.sh")
PACKAGES = {
    "systemd": ("systemctl", "systemd-analyze", "systemd-escape"),
    "util-linux": ("unshare", "nsenter", "setpriv", "findmnt"),
    "procps": ("kill",),
}
ALICE, LAB = 1001, 2001
HOME = "/home/alice"
BECOME_ALICE = ("setpriv", f"--reuid={ALICE}", f"--regid={ALICE}", "--init-groups", "--inh-caps=-all", "env")
DEADLINE_S = 30.0

# The command as an installer writes it, for an interpreter whose path may be long or have spaces.
LAUNCHER = """\
#!/bin/sh
'''exec' '{python}' -P "$0" "$@"
' '''
import sys
sys.path.insert(0, "{package}")
from ckptd.cli import main
sys.exit(main())
"""

# Nobody here has time for the pause before a new start, and a unit that has stopped is soon forgotten.
FOR_TESTS = """\
[Service]
RestartSec=100ms
ExecStopPost=/bin/sh -c 'echo "ended: $$SERVICE_RESULT, $$EXIT_CODE $$EXIT_STATUS"'
"""


# --- a systemd of our own, and units in it


@dataclass(frozen=True)
class Machine:
    """Processes and files beside our systemd; `root` is its file system, seen from here."""

    pid: int

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.pid}/root")

    def path(self, inside: str) -> Path:
        return self.root / inside.lstrip("/")

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run([NAMESPACE, "exec", str(self.pid), *command], capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"{command}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done.stdout.strip()

    def run_as_alice(self, *command: str) -> str:
        return self.run(*BECOME_ALICE, f"HOME={HOME}", f"XDG_RUNTIME_DIR=/run/user/{ALICE}", *command)

    def write(self, inside: str, text: str, *, mode: int = 0o644, owner: int = 0) -> None:
        for folder in reversed(Path(inside).parents):
            if not self.path(str(folder)).exists():
                self.make_directory(str(folder), owner=owner)
        self.path(inside).write_text(text)
        self.path(inside).chmod(mode)
        os.chown(self.path(inside), owner, owner)

    def make_directory(self, inside: str, *, mode: int = 0o755, owner: int = ALICE, group: int = ALICE) -> None:
        self.path(inside).mkdir()
        os.chown(self.path(inside), owner, group)
        self.path(inside).chmod(mode)

    def journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=cat", "--lines=60", check=False)

    def eventually(self, condition: Callable[[], object], what: str) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}\n{self.journal()}"
            time.sleep(0.02)


@dataclass(frozen=True)
class Unit:
    """One unit under test: of the system or of alice, an instance of the template or a finished one."""

    machine: Machine
    name: str
    work_dir: str
    user: bool

    def systemctl(self, *arguments: str) -> str:
        if self.user:
            return self.machine.run_as_alice("systemctl", "--user", *arguments)
        return self.machine.run("systemctl", *arguments)

    def show(self, setting: str) -> str:
        return self.systemctl("show", "--value", "--property", setting, "--", self.name)

    def install(self, suffix: str, text: str) -> None:
        folder = f"{HOME}/.config/systemd/user" if self.user else "/etc/systemd/system"
        self.machine.write(f"{folder}/{self.name}{suffix}", text, owner=ALICE if self.user else 0)
        self.systemctl("daemon-reload")

    def start(self) -> None:
        self.systemctl("start", "--", self.name)

    def main_pid(self) -> str:
        return self.show("MainPID")

    def restarts(self) -> int:
        return int(self.show("NRestarts"))

    def is_active(self) -> bool:
        return self.show("ActiveState") == "active"

    def journal(self) -> str:
        field = "_SYSTEMD_USER_UNIT" if self.user else "_SYSTEMD_UNIT"
        return self.machine.run("journalctl", "--no-pager", "--output=cat", f"{field}={self.name}") + "\n"

    def names(self) -> list[str]:
        return sorted(path.name for path in self.machine.path(self.work_dir).glob("epoch_*"))

    def save(self, *epochs: int, owner: int = ALICE) -> None:
        """Checkpoints as torch.save makes them, each under a temporary name first."""
        folder = self.machine.path(self.work_dir)
        for epoch in epochs:
            with zipfile.ZipFile(folder / "saving", "w", zipfile.ZIP_STORED) as archive:
                archive.writestr("archive/data.pkl", b"\x80\x02}q\x00.")
                archive.writestr("archive/data/0", epoch.to_bytes(4, "little") * 1024)
                archive.writestr("archive/version", b"3\n")
            os.chown(folder / "saving", owner, owner)
            (folder / "saving").rename(folder / f"epoch_{epoch}.pth")

    def prunes_to(self, *epochs: int) -> None:
        expected = sorted(f"epoch_{epoch}.pth" for epoch in epochs)
        self.machine.eventually(lambda: self.names() == expected, f"only {expected} of {self.names()}")
        pointer = self.machine.path(self.work_dir) / "last_ckpt"
        assert pointer.read_text() == f"{self.work_dir}/epoch_{max(epochs)}.pth\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    _need_what_a_systemd_needs()
    needed = {REPOSITORY, Path(ckptd.__file__).parents[1], Path(sys.prefix), Path(sys.base_prefix)}
    needed = {path for path in needed if not path.is_relative_to("/usr")}
    tops = {str(path) for path in needed if not needed.intersection(path.parents)}
    runner = subprocess.Popen(
        [NAMESPACE, "run", tmp_path_factory.mktemp("systemd"), *sorted(tops)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert runner.stdin is not None
    assert runner.stdout is not None
    try:
        assert select.select([runner.stdout], [], [], DEADLINE_S)[0], "systemd did not come up"
        pid = runner.stdout.readline()
        assert pid, "systemd did not come up"
        machine = Machine(int(pid))
        _furnish(machine)
        yield machine
    finally:
        runner.stdin.close()
        runner.wait(DEADLINE_S)
        runner.stdout.close()


def _need_what_a_systemd_needs() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for package, commands in PACKAGES.items():
        missing = [command for command in commands if shutil.which(command) is None]
        if missing:
            stop = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
            stop(f"needs the package {package}: no {', '.join(missing)}")
    if not subprocess.run(["findmnt", "--types", "cgroup2"], capture_output=True).stdout:
        pytest.skip("needs a mounted cgroup2")
    overlay = "mount -t tmpfs none /mnt && mkdir /mnt/u /mnt/w /mnt/r && "
    overlay += "mount -t overlay -o lowerdir=/,upperdir=/mnt/u,workdir=/mnt/w none /mnt/r"
    if subprocess.run(["unshare", "--mount", "sh", "-c", overlay], capture_output=True).returncode:
        pytest.skip("needs overlayfs, and the right to mount it")


def _furnish(machine: Machine) -> None:
    with machine.path("/etc/passwd").open("a") as users:
        users.write(f"alice:x:{ALICE}:{ALICE}::{HOME}:/bin/sh\n")
    with machine.path("/etc/group").open("a") as groups:
        groups.write(f"alice:x:{ALICE}:\nlab:x:{LAB}:alice\n")
    machine.make_directory(HOME, mode=0o700)
    launcher = LAUNCHER.format(python=sys.executable, package=Path(ckptd.__file__).parents[1])
    machine.write("/usr/local/bin/ckptd", launcher, mode=0o755)
    for manager, shipped in (("system", "systemd"), ("user", "systemd/user")):
        text = (REPOSITORY / shipped / "ckptd@.service").read_text()
        machine.write(f"/etc/systemd/{manager}/ckptd@.service", text)
        for every in ("ckptd@.service.d", "ckptd-.service.d"):
            machine.write(f"/etc/systemd/{manager}/{every}/test.conf", FOR_TESTS)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", f"user@{ALICE}.service")


@pytest.fixture
def work_dir(machine: Machine, request: pytest.FixtureRequest) -> str:
    """A place of its own for each test, in a home that is closed to others; not there yet."""
    return f"{HOME}/my {re.sub(r'[^a-z]+', '-', request.node.name)}-1"


@pytest.fixture(
    params=["template of the system", "template of a user", "finished for the system", "finished for a user"]
)
def unit(machine: Machine, work_dir: str, request: pytest.FixtureRequest) -> Iterator[Unit]:
    """Each kind of unit, set to keep the two newest of every epoch; not started, its work dir not made."""
    make = template_unit if "template" in request.param else finished_unit
    made = make(machine, work_dir, user="user" in request.param)
    yield made
    made.systemctl("stop", "--", made.name)


def template_unit(machine: Machine, work_dir: str, *, user: bool = False, options: str = "") -> Unit:
    name = machine.run("systemd-escape", "--template=ckptd@.service", "--path", work_dir)
    folder = f"{HOME}/.config/ckptd" if user else "/etc/ckptd"
    machine.write(
        f"{folder}{work_dir}.env",
        options or "CKPTD_MAX_KEEP=2\nCKPTD_INTERVAL=1\n",
        owner=ALICE if user else 0,
    )
    return Unit(machine, name, work_dir, user)


def finished_unit(machine: Machine, work_dir: str, *, user: bool = False) -> Unit:
    options = ["--max-keep", "2", "--interval", "1", *(["--user"] if user else [])]
    text = machine.run("/usr/local/bin/ckptd", "unit", work_dir, *options)
    made = Unit(machine, unit_name(Path(work_dir)), work_dir, user)
    made.install("", text + "\n")
    return made


# --- what every kind of unit does


def test_it_is_ready_and_prunes_as_the_owner(machine: Machine, unit: Unit) -> None:
    machine.make_directory(unit.work_dir)
    unit.save(1, 2)
    unit.start()
    assert unit.is_active()
    assert unit.show("StatusText")
    unit.save(3, 4, 5)
    unit.prunes_to(4, 5)
    lines = machine.path(f"/proc/{unit.main_pid()}/status").read_text().splitlines()
    process = dict(line.split(":\t", 1) for line in lines)
    assert process["Uid"].split() == process["Gid"].split() == [str(ALICE)] * 4
    assert int(process["CapPrm"], 16) == int(process["CapEff"], 16) == 0
    assert process["NoNewPrivs"] == "1"
    assert process["Seccomp"] == "2"
    unit.systemctl("stop", "--", unit.name)
    made = [path for path in machine.path(unit.work_dir).rglob("*") if not path.name.startswith("epoch_")]
    assert {"last_ckpt", ".ckptd"} <= {path.name for path in made}
    assert {(path.lstat().st_uid, path.lstat().st_gid) for path in made} == {(ALICE, ALICE)}


def test_a_hung_one_is_killed_by_the_watchdog_and_comes_back(machine: Machine, unit: Unit) -> None:
    machine.make_directory(unit.work_dir)
    unit.install(".d/watchdog.conf", "[Service]\nWatchdogSec=2s\n")
    unit.start()
    first = unit.main_pid()
    machine.run("kill", "-STOP", first)
    machine.eventually(lambda: unit.restarts() > 0 and unit.is_active(), "a new start after the kill")
    assert unit.main_pid() != first
    machine.eventually(lambda: "Fatal Python error: Aborted" in unit.journal(), "word of where it hung")
    unit.save(1, 2, 3)
    unit.prunes_to(2, 3)


def test_it_goes_on_in_the_new_directory_when_the_work_dir_was_replaced(machine: Machine, unit: Unit) -> None:
    machine.make_directory(unit.work_dir)
    unit.save(1, 2, 3)
    unit.install(".d/scan.conf", "[Service]\nEnvironment=CKPTD_SCAN_INTERVAL=1\n")  # which would notice in time
    unit.start()
    unit.prunes_to(2, 3)
    machine.path(unit.work_dir).rename(machine.path(f"{unit.work_dir} before"))
    machine.make_directory(unit.work_dir)
    unit.save(1, 2, 3, 4)
    unit.prunes_to(3, 4)
    assert unit.restarts() == (0 if unit.user else 1)  # a system unit may write only what was there at its start
    assert unit.show("Result") == "success"
    old = machine.path(f"{unit.work_dir} before")
    assert {"epoch_2.pth", "epoch_3.pth"} == {path.name for path in old.glob("epoch_*")}


def test_a_work_dir_that_does_not_exist_yet_is_waited_for(machine: Machine, unit: Unit) -> None:
    unit.start()
    assert unit.is_active()
    machine.make_directory(unit.work_dir)
    unit.save(1, 2, 3)
    unit.prunes_to(2, 3)
    assert unit.show("Result") == "success"


def test_it_stops_cleanly(machine: Machine, unit: Unit) -> None:
    machine.make_directory(unit.work_dir)
    unit.start()
    unit.systemctl("stop", "--", unit.name)
    assert unit.show("ActiveState") == "inactive"
    machine.eventually(lambda: "ended: success, exited 0\n" in unit.journal(), "a clean end")


def test_it_reloads_without_a_new_start(machine: Machine, unit: Unit) -> None:
    machine.make_directory(unit.work_dir)
    unit.start()
    before = unit.main_pid()
    unit.systemctl("reload", "--", unit.name)
    machine.eventually(unit.is_active, "active after the reload")
    unit.save(1, 2, 3)
    unit.prunes_to(2, 3)
    assert unit.main_pid() == before


def test_systemd_finds_nothing_wrong_with_it(machine: Machine, unit: Unit) -> None:
    verify = ["systemd-analyze", "verify", "--man=no", *(["--user"] if unit.user else []), unit.name]
    run = machine.run_as_alice if unit.user else machine.run
    # systemd-analyze prints its complaints on stderr, and fails for some of them only.
    assert run("sh", "-c", '"$@" 2>&1', "sh", *verify) == ""


# --- what the system's units do


@pytest.fixture
def system_unit(machine: Machine, work_dir: str) -> Iterator[Unit]:
    machine.make_directory(work_dir)
    made = template_unit(machine, work_dir)
    yield made
    made.systemctl("stop", "--", made.name)


@pytest.mark.parametrize("work_dir", [None, Path("/data/run")], ids=["template", "finished"])
def test_little_is_exposed(tmp_path: Path, work_dir: Path | None) -> None:
    if shutil.which("systemd-analyze") is None:
        _need_what_a_systemd_needs()
    file = tmp_path / ("ckptd@.service" if work_dir is None else unit_name(work_dir))
    file.write_text(render(work_dir))
    analyze = ["systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", str(file)]
    done = subprocess.run(analyze, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout.splitlines()[-1]


def test_a_files_options_are_stronger_than_those_for_every_work_dir(machine: Machine, work_dir: str) -> None:
    machine.write("/etc/ckptd/ckptd.env", "CKPTD_MAX_KEEP=1\nCKPTD_INTERVAL=1\n")
    try:
        machine.make_directory(work_dir)
        stronger = template_unit(machine, work_dir, options="CKPTD_MAX_KEEP=3\n")
        stronger.start()
        stronger.save(1, 2, 3, 4, 5)
        stronger.prunes_to(3, 4, 5)
        stronger.systemctl("stop", "--", stronger.name)
        machine.path(f"/etc/ckptd{work_dir}.env").unlink()
        stronger.start()
        stronger.save(6)
        stronger.prunes_to(6)
        stronger.systemctl("stop", "--", stronger.name)
    finally:
        machine.path("/etc/ckptd/ckptd.env").unlink()


def test_wrong_use_is_a_failure_and_not_a_loop(machine: Machine, work_dir: str) -> None:
    machine.make_directory(work_dir)
    wrong = template_unit(machine, work_dir, options="CKPTD_MAX_KEEP=some\n")
    machine.run("systemctl", "start", "--", wrong.name, check=False)
    machine.eventually(lambda: wrong.show("ActiveState") == "failed", "failed at once")
    assert (wrong.show("ExecMainStatus"), wrong.restarts()) == ("2", 0)


def test_a_second_one_beside_it_is_a_failure_and_not_a_loop(machine: Machine, system_unit: Unit) -> None:
    system_unit.start()
    system_unit.save(1, 2, 3)
    system_unit.prunes_to(2, 3)
    second = finished_unit(machine, system_unit.work_dir)
    machine.run("systemctl", "start", "--", second.name, check=False)
    machine.eventually(lambda: second.show("ActiveState") == "failed", "failed at once")
    assert (second.show("ExecMainStatus"), second.restarts()) == ("5", 0)
    assert system_unit.is_active()


def test_only_the_work_dir_can_be_written(machine: Machine, system_unit: Unit) -> None:
    system_unit.start()
    into = ["nsenter", "--target", system_unit.main_pid(), "--mount"]
    touch = ["sh", "-c", 'touch "$1/touched" 2>&1 || true', "sh"]
    assert machine.run(*into, *touch, system_unit.work_dir) == ""
    for place in (HOME, "/", "/etc", "/var", "/tmp", "/root", f"/run/user/{ALICE}"):
        assert "Read-only file system" in machine.run(*into, *touch, place)


def test_the_owners_open_files_can_be_seen(machine: Machine, system_unit: Unit) -> None:
    """What protects a directory that somebody reads needs /proc as the owner sees it."""
    system_unit.save(1)
    held = f"{system_unit.work_dir}/epoch_1.pth"
    hold = 'sleep 1000 <"$1" >/dev/null 2>&1 & echo $!'
    reader = machine.run_as_alice("sh", "-c", hold, "sh", held)
    try:
        system_unit.start()
        into = ["nsenter", "--target", system_unit.main_pid(), "--mount"]
        assert machine.run(*into, *BECOME_ALICE, "readlink", f"/proc/{reader}/fd/0") == held
    finally:
        machine.run("kill", reader)


@pytest.mark.parametrize(
    ("place", "mode", "owner", "group"),
    [
        pytest.param("/home/alice/shared", 0o2770, ALICE, LAB, id="shared with a group"),
        pytest.param("/tmp/scratch", 0o755, ALICE, ALICE, id="below tmp"),
        pytest.param("/dev/shm/scratch", 0o755, ALICE, ALICE, id="in memory"),
        pytest.param("/srv/run", 0o755, 0, 0, id="owned by root"),
        pytest.param("/var/lib/run", 0o755, ALICE, ALICE, id="on an overlay, as in a container"),
        pytest.param("/srv/nobody", 0o755, 4242, 4242, id="owned by a number without a name"),
    ],
)
def test_it_works_where_work_dirs_are(machine: Machine, place: str, mode: int, owner: int, group: int) -> None:
    machine.make_directory(place, mode=mode, owner=owner, group=group)
    system_unit = template_unit(machine, place)
    system_unit.start()
    system_unit.save(1, 2, 3, owner=owner)
    system_unit.prunes_to(2, 3)
    state = (machine.path(place) / ".ckptd").stat()
    assert (state.st_uid, state.st_gid) == (owner, group)
    assert state.st_mode & 0o777 == mode & 0o777  # a service may not make anything setgid
    system_unit.systemctl("stop", "--", system_unit.name)
    machine.eventually(lambda: "ended: success, exited 0\n" in system_unit.journal(), "a clean end")


RECORDER = "/usr/local/bin/what was given"
RECORDER_TEXT = """\
#!/usr/bin/python3
import json, os, sys
os.chdir(sys.argv[2])
with open("writing", "w") as record:
    json.dump(sys.argv, record)
os.rename("writing", "given")
"""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("100%f", id="a percent sign"),
        pytest.param("$HOME ${PATH}", id="variables"),
        pytest.param("""'"a"'b\\'c\\"d""", id="quotes"),
        pytest.param("back\\slash\\x41\\", id="backslashes"),
        pytest.param("größer 実験", id="letters that are not ASCII"),
        pytest.param("#;=@:!+-~*?[a]{b}", id="punctuation"),
        pytest.param(";", id="a lone semicolon"),
    ],
)
@pytest.mark.parametrize("template", [False, True], ids=["finished", "template"])
def test_every_name_arrives_as_it_is(machine: Machine, name: str, template: bool) -> None:
    """A program in ckptd's place writes down what it was given, where it may write."""
    machine.write(RECORDER, RECORDER_TEXT, mode=0o755)
    work_dir = f"/srv/{'template' if template else 'finished'} {name}"
    machine.make_directory(work_dir, owner=0, group=0)
    options = ["--pointer", name, "", ";"]
    if template:
        file, text = "given@.service", render(None, options, command=RECORDER)
        unit = machine.run("systemd-escape", "--template=given@.service", "--path", work_dir)
    else:
        file, text = unit_name(Path(work_dir)), render(Path(work_dir), options, command=RECORDER)
        unit = file
    machine.write(f"/etc/systemd/system/{file}", text.replace("Type=notify", "Type=exec"))
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "start", "--", unit)
    machine.eventually((machine.path(work_dir) / "given").exists, "a record of what was given")
    given = json.loads((machine.path(work_dir) / "given").read_text())
    assert given == [RECORDER, "watch", work_dir, *options]
    arrived = Unit(machine, unit, work_dir, user=False)
    assert arrived.show("Description") == f"ckptd for {work_dir} (keeps the newest checkpoints)"
    waited_for = arrived.show("RequiresMountsFor")  # quoted as for a shell
    assert re.sub(r"\\(.)", r"\1", waited_for).strip('"') == work_dir
