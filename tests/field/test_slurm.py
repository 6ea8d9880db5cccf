"""The recipe of docs/running.md for Slurm, on a Slurm of our own: one node, this one.

What is run is what that page shows; only its times and the number of iterations are other ones.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.conftest import environment, pointed, section
from tests.layouts.writers import the

from .conftest import Page

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

TITLE, ROWS = "The recipe of docs/running.md, on a real Slurm", 5
REPOSITORY = Path(__file__).parents[2]
SECTION = section("Slurm")
(BATCH,) = re.findall(r"^```sh\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
(TRAIN,) = re.findall(r"^```python\n(.*?)^```", SECTION, re.DOTALL | re.MULTILINE)
TO_THE_TASKS = re.search(r"With `(--signal=TERM@\d+)`, without `B:`", SECTION)[1]

CONF = """
ClusterName=field
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={top}/munge.sock
CryptoType=crypto/munge
SlurmctldPort={controller}
SlurmdPort={node}
SlurmdParameters=config_overrides
StateSaveLocation={top}/state
SlurmdSpoolDir={top}/spool
SlurmctldPidFile={top}/slurmctld.pid
SlurmdPidFile={top}/slurmd.pid
SlurmctldLogFile={top}/slurmctld.log
SlurmdLogFile={top}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
DefMemPerCPU=50
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=500 State=UNKNOWN
PartitionName=low Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2 PreemptMode=OFF
"""


@dataclass
class Slurm:
    """A controller, a node and their key, all of our own, below a directory that is gone after the tests."""

    top: Path
    services: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        return environment(SLURM_CONF=str(self.top / "slurm.conf"), PATH=path, PYTHONPATH=str(REPOSITORY))

    def start(self) -> None:
        for name in ("state", "spool"):
            (self.top / name).mkdir()
        (self.top / "key").write_bytes(os.urandom(128))
        (self.top / "key").chmod(0o400)
        host = socket.gethostname().partition(".")[0]
        conf = CONF.format(host=host, top=self.top, controller=_free_port(), node=_free_port())
        (self.top / "slurm.conf").write_text(conf)
        places = [f"--{what}={self.top}/munge.{end}" for what, end in
                  (("socket", "sock"), ("log-file", "log"), ("pid-file", "pid"), ("seed-file", "seed"))]  # fmt: skip
        self._serve("munged", "--foreground", "--force", f"--key-file={self.top}/key", *places)
        self.until(lambda: (self.top / "munge.sock").exists(), "munged")
        self._serve("slurmctld", "-D")
        self._serve("slurmd", "-D", "-N", host)
        self.until(lambda: set(self.run("sinfo", "-h", "-o", "%T", check=False).split()) == {"idle"}, "an idle node")

    def close(self) -> None:
        """End every job, then the services; nothing that they have started is left."""
        with contextlib.suppress(OSError, subprocess.SubprocessError):
            self.run("scancel", "--full", "--signal=KILL", "--state=RUNNING", "--user=root", check=False)
            self.run("scancel", "--user=root", check=False)
            self.until(lambda: not self.run("squeue", "-h", check=False), "the end of the jobs")
        for service in reversed(self.services):
            service.terminate()
        for service in self.services:
            try:
                service.wait(20)
            except subprocess.TimeoutExpired:
                service.kill()
                service.wait()

    def left(self) -> list[str]:
        """Processes with our configuration in their environment, but the services."""
        ours, found = f"SLURM_CONF={self.top}".encode(), []
        for pid in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                if ours in Path(f"/proc/{pid}/environ").read_bytes():
                    found.append(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def run(self, *command: str, check: bool = True) -> str:
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0 or not check, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def submit(self, place: Path, *options: str) -> str:
        """Submit `place`'s job.sh, to be run there; the number of the job."""
        out = ("--chdir", str(place), "--output", f"{place}/out", "--error", f"{place}/err", "--open-mode=append")
        return self.run("sbatch", "--parsable", *out, *options, f"{place}/job.sh")

    def state(self, job: str) -> str:
        """Its state and exit code, such as "COMPLETED 0:0"."""
        shown = self.run("scontrol", "show", "job", job)
        return f"{re.search('JobState=([A-Z]+)', shown)[1]} {re.search('ExitCode=([0-9:]+)', shown)[1]}"

    def has_ended(self, job: str) -> bool:
        return self.state(job).split()[0] in ("COMPLETED", "FAILED", "TIMEOUT", "CANCELLED", "NODE_FAIL")

    def until(self, is_so: Callable[[], bool], what: str, within_s: float = 30.0) -> None:
        deadline = time.monotonic() + within_s
        while not is_so():
            assert time.monotonic() < deadline, f"{what} did not come within {within_s} s\n{self.logs()}"
            time.sleep(0.1)

    def logs(self) -> str:
        return "\n".join(f"{path}:\n{path.read_text()[-2000:]}" for path in sorted(self.top.glob("*.log")))

    def _serve(self, *command: str) -> None:
        path = self.env | {"PATH": f"{self.env['PATH']}:/usr/sbin:/sbin"}
        where = shutil.which(command[0], path=path["PATH"])
        assert where, f"{command[0]} is missing: `make field` installs it"
        self.services.append(subprocess.Popen([where, *command[1:]], env=self.env, stdin=subprocess.DEVNULL,
                                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))  # fmt: skip


def _free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory, page: Page) -> Iterator[Slurm]:
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        slurm.start()
        page.versions.append(slurm.run("sinfo", "--version"))
        yield slurm
    finally:
        slurm.close()
    assert slurm.left() == []


def prepared(place: Path, *, batch: str = BATCH, train: str = TRAIN) -> Path:
    """A directory with the page's two scripts in it; the training goes on until it is asked to end."""
    place.mkdir(exist_ok=True)
    (place / "job.sh").write_text(batch)
    endless = train.replace("100_000", "10**9")
    assert train != endless or train != TRAIN
    (place / "train.py").write_text(f"{endless}\nprint('ended at', iteration + 1, flush=True)\n")
    return place


def latest(work_dir: Path) -> str:
    command = [sys.executable, "-m", "ckptd", "latest", str(work_dir)]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, check=True).stdout.rstrip("\n")


def assert_saved_and_pointed(place: Path) -> int:
    """The last save that the training tells of is what `last_ckpt` and `ckptd latest` name; its iteration."""
    told = re.findall(r"ended at (\d+)", _text(place / "out"))
    assert told, _text(place / "err")[-2000:]
    ended = int(told[-1])
    assert latest(place / "work_dir") == f"{place}/work_dir/iter_{ended}.pth", _text(place / "err")[-2000:]
    assert pointed(place / "work_dir") == f"iter_{ended}.pth"
    return ended


def test_at_the_time_limit_the_last_save_is_made_and_pointed_at(slurm: Slurm, page: Page, tmp_path: Path) -> None:
    """Both ways side by side: they wait for Slurm's clock, which is up to a minute early."""
    signals = re.search(r"--signal=B:USR1@\d+", BATCH)[0], TO_THE_TASKS
    jobs = {}
    for number, asked in enumerate(signals):
        soon = re.sub(r"@\d+", "@45", asked)
        place = prepared(tmp_path / str(number), batch=BATCH.replace(signals[0], soon))
        jobs[asked] = place, slurm.submit(place, "--time=2")
    for asked, (place, job) in jobs.items():
        slurm.until(lambda at=job: slurm.has_ended(at), asked, 200)
        ended = assert_saved_and_pointed(place)
        assert slurm.state(job) == "COMPLETED 0:0", _text(place / "err")[-2000:]
        assert ended % 1000, "the last save is one that the signal asked for"
        assert len(list((place / "work_dir").glob("iter_*.pth"))) <= 4, "all on the grid but the last; K is 3"
        page.rows.append((f"`{asked}`", "saved when the signal came, last pass made, COMPLETED 0:0"))


def test_a_job_that_is_preempted_is_requeued_and_goes_on_from_its_last_save(
    slurm: Slurm, page: Page, tmp_path: Path
) -> None:
    place = prepared(tmp_path / "run")
    job = slurm.submit(place, "--exclusive")
    slurm.until(lambda: any((place / "work_dir").glob("iter_*.pth")), "a save", 60)
    other = tmp_path / "other"
    prepared(other, batch="#!/bin/sh\nsleep 1\n")
    slurm.submit(other, "--partition=high", "--exclusive")
    slurm.until(lambda: "ended at" in _text(place / "out"), "the last save before it is preempted", 60)
    slurm.until(lambda: slurm.state(job).startswith("PENDING"), "the requeue", 60)
    ended = assert_saved_and_pointed(place)
    slurm.run("scontrol", "update", f"JobId={job}", "StartTime=now")
    slurm.until(lambda: slurm.state(job).startswith("RUNNING"), "its second start", 180)
    slurm.until(lambda: _newest(place / "work_dir") > ended, "a save after that", 60)
    slurm.run("scancel", job)
    slurm.until(lambda: slurm.has_ended(job), "its end", 60)
    slurm.until(lambda: _text(place / "out").count("ended at") == 2, "its last save", 60)
    page.rows.append(("preempted, with `--requeue`", "saved, requeued, gone on from what `ckptd latest` printed"))
    slurm.until(lambda: _newest(place / "work_dir") == _number(pointed(place / "work_dir")), "the pointer", 30)
    assert_saved_and_pointed(place)
    page.rows.append(("`scancel`", "saved, pointed at"))


def test_what_nothing_marks_as_whole_is_named_right_after_the_end(slurm: Slurm, page: Page, tmp_path: Path) -> None:
    accelerate = the("accelerate")
    save = (
        "import pathlib\nfrom tests.layouts.writers import the\n"
        "work_dir, writer = pathlib.Path('work_dir'), the('accelerate')\nwork_dir.mkdir(exist_ok=True)\n"
        "for step in (1, 2):\n    writer.whole(work_dir / writer.name(step), step)\niteration = 0"
    )
    place = prepared(tmp_path / "run", train=save)
    job = slurm.submit(place)
    slurm.until(lambda: slurm.has_ended(job), "its end", 60)
    assert latest(place / "work_dir") == f"{place}/work_dir/{accelerate.name(2)}", _text(place / "err")[-2000:]
    assert slurm.state(job) == "COMPLETED 0:0"
    page.rows.append(("directories without a marker, as Accelerate's", "`ckptd latest` names the last right after it"))


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def _number(name: str) -> int:
    return int(name.removeprefix("iter_").removesuffix(".pth"))


def _newest(work_dir: Path) -> int:
    return max((_number(path.name) for path in work_dir.glob("iter_*.pth")), default=0)
