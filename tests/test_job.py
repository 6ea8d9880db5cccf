"""The command behind `--`: its last save is pointed at once it has ended, and ckptd is the parent of whom it leaves."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.passes import surveyor
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir.workdir import WorkDir

from .conftest import Watching, environment, eventually, pointed, torch_zip
from .layouts.writers import WRITERS, Run, Writer, the

Watch = Callable[..., contextlib.AbstractContextManager[Watching]]
Ckptd = Callable[..., subprocess.CompletedProcess[str]]
REPOSITORY = Path(__file__).parents[1]
NEVER = ("--scan-interval", "1d")
ACCELERATE = the("accelerate")

# Saves as a framework does, perhaps leaves somebody behind who may still have something open, and ends as it is told.
_SAVES = """
import os, pathlib, signal, sys
from tests.layouts.writers import the
how, stays, holds, ends, step, *runs = sys.argv[1:]
for place, name in zip(runs[::2], runs[1::2]):
    work_dir, writer, step = pathlib.Path(place), the(name), int(step)
    work_dir.mkdir(parents=True, exist_ok=True)
    getattr(writer, how)(work_dir / writer.name(step), step)
if stays != "nobody":
    gate, (told, tell) = os.open(stays, os.O_RDONLY | os.O_NONBLOCK), os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            held = open(work_dir / writer.name(step) / holds, "r+b") if holds else None
            for fd in (0, 1, 2, told, tell):
                os.close(fd)
            os.set_blocking(gate, True)
            os.read(gate, 1)  # until the test lets go of the other end
        os._exit(0)
    os.close(tell)
    os.read(told, 1)
os.kill(os.getpid(), signal.SIGKILL) if ends == "killed" else sys.exit(int(ends))
"""


@pytest.fixture
def gate(tmp_path: Path) -> Iterator[Path]:
    """Who reads from it stays until the end of the test."""
    path = tmp_path / "gate"
    os.mkfifo(path)
    fd = os.open(path, os.O_RDWR)
    yield path
    os.close(fd)


def job(
    runs: dict[Path, Writer],
    step: int,
    *,
    how: str = "whole",
    stays: Path | None = None,
    holds: str = "",
    ends: str = "0",
) -> tuple[str | Path, ...]:
    """The command that saves `step` in each of the runs."""
    where = [word for place, writer in runs.items() for word in (place, str(writer))]
    return ("--", sys.executable, "-c", _SAVES, how, stays or "nobody", holds, ends, str(step), *where)


def beside(watching: Watch, *args: str | Path, **variables: str) -> tuple[int, list[str]]:
    """Run `ckptd watch` with a command until it ends; its exit code and what it said."""
    with watching(*args, env=environment(PYTHONPATH=str(REPOSITORY), **variables)) as watch:
        return watch.ends(), watch.lines


# --- what the job has saved last --------------------------------------------------------------------------------


@pytest.mark.parametrize("stays", ["nobody", "somebody"])
def test_once_the_job_has_ended_latest_names_its_last_save_at_once_whatever_the_framework(
    stays: str, tmp_path: Path, gate: Path, watching: Watch
) -> None:
    runs = {tmp_path / f"project {number}" / "run": writer for number, writer in enumerate(WRITERS)}
    for place, writer in runs.items():
        place.mkdir(parents=True)
        Run(place, writer).save(1)
    named = [word for layout in dict.fromkeys(writer.layout for writer in WRITERS) for word in ("--layout", layout)]
    command = job(runs, 2, stays=gate if stays == "somebody" else None)
    code, said = beside(watching, *runs, *named, *NEVER, *command)
    assert code == 0, said
    for place, writer in runs.items():
        assert api.latest(place, Policy(layouts=(writer.layout,))) == place / writer.name(2), (str(writer), said)


@pytest.mark.parametrize("layout", ["accelerate", "mmcv"])
def test_what_latest_prints_after_the_end_is_the_last_save(
    layout: str, tmp_path: Path, gate: Path, watching: Watch, ckptd: Ckptd
) -> None:
    work_dir, writer = tmp_path / "project" / "run", the(layout)  # which the job makes
    code, said = beside(watching, work_dir, *NEVER, *job({work_dir: writer}, 2, stays=gate))
    done = ckptd("latest", work_dir)
    assert (code, done.returncode, done.stdout) == (0, 0, f"{work_dir / writer.name(2)}\n"), said


@pytest.mark.parametrize("writer", [ACCELERATE, the("torchtitan"), the("mmcv")], ids=str)
@pytest.mark.parametrize("stays", ["nobody", "somebody"])
def test_a_save_that_the_job_did_not_finish_is_not_named(
    writer: Writer, stays: str, tmp_path: Path, gate: Path, watching: Watch, ckptd: Ckptd
) -> None:
    work_dir = tmp_path / "project" / "run"
    work_dir.mkdir(parents=True)
    first = Run(work_dir, writer).save(1)
    who = gate if stays == "somebody" else None
    code, said = beside(watching, work_dir, *NEVER, *job({work_dir: writer}, 2, how="half", stays=who, ends="killed"))
    assert code == 137, said
    assert ckptd("latest", work_dir).stdout == f"{work_dir / first}\n"


@pytest.mark.parametrize("stays", ["nobody", "somebody", "steps of Slurm's"])
def test_what_is_young_is_deleted_for_only_where_the_job_has_left_nobody(
    stays: str, tmp_path: Path, gate: Path, watching: Watch, ckptd: Ckptd
) -> None:
    work_dir = tmp_path / "project" / "run"
    work_dir.mkdir(parents=True)
    before = Run(work_dir, ACCELERATE).saves([1, 2])
    last = ACCELERATE.name(3)
    command = job({work_dir: ACCELERATE}, 3, stays=gate if stays == "somebody" else None, ends="7")
    more = {"SLURM_JOB_ID": "17"} if stays == "steps of Slurm's" else {}  # whose parent is not the job
    code, _ = beside(watching, work_dir, "--max-keep", "1", *NEVER, *command, **more)
    assert code == 7
    kept = {path.name for path in work_dir.iterdir()}
    assert kept == ({last} if stays == "nobody" else {before[1], last})
    assert pointed(work_dir) == last
    assert ckptd("latest", work_dir).stdout == f"{work_dir / last}\n"


def test_what_somebody_who_was_left_behind_writes_is_not_named(
    tmp_path: Path, gate: Path, watching: Watch, ckptd: Ckptd
) -> None:
    work_dir = tmp_path / "project" / "run"
    work_dir.mkdir(parents=True)
    first = Run(work_dir, ACCELERATE).save(1)
    command = job({work_dir: ACCELERATE}, 2, stays=gate, holds="model.safetensors")
    code, said = beside(watching, work_dir, *NEVER, *command)
    assert code == 0, said
    assert ckptd("latest", work_dir).stdout == f"{work_dir / first}\n"


def test_below_a_root_every_run_of_the_job_is_pointed_at(
    tmp_path: Path, gate: Path, watching: Watch, ckptd: Ckptd
) -> None:
    runs = {tmp_path / "root" / name / "run": ACCELERATE for name in ("a", "b")}
    code, said = beside(watching, tmp_path / "root", "--recursive", *NEVER, *job(runs, 2, stays=gate))
    assert code == 0, said
    for place in runs:
        assert ckptd("latest", place).stdout == f"{place / ACCELERATE.name(2)}\n"


# --- what may be relied on --------------------------------------------------------------------------------------


def last_pass(work_dir: Path, *, alone: bool, **policy: object) -> None:
    background = Background()
    with WorkDir(work_dir) as work:
        Reconciler(work, Policy(**policy), background).reconcile_at_end(alone=alone)
        background.close()


@pytest.mark.parametrize("rule", [{"rule": "newest"}, {"rule": "stepped", "interval": 1}], ids=["newest", "stepped"])
@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize("writer", [ACCELERATE, the("mmcv")], ids=str)
def test_where_other_hosts_may_write_the_pointer_goes_at_once_and_nothing_goes_for_it(
    writer: Writer, alone: bool, rule: dict[str, object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(surveyor, "is_local", lambda _: False)
    work_dir = tmp_path / "project" / "run"
    work_dir.mkdir(parents=True)
    run = Run(work_dir, writer)
    run.saves([2, 3])
    last = run.save(4, young=True)
    last_pass(work_dir, alone=alone, max_keep=1, trash_ttl_s=0.0, **rule)
    assert api.latest(work_dir) == work_dir / last
    assert {path.name for path in work_dir.iterdir()} - {".ckptd", "last_ckpt"} == {writer.name(3), last}


def test_what_proves_nothing_by_its_structure_is_not_pointed_at_where_others_may_write(work_dir: Path) -> None:
    """Legacy pickles and bytes of no known format: whole only once they are quiet."""
    (work_dir / "run_1.pt").write_bytes(b"a format of their own")
    os.utime(work_dir / "run_1.pt", (1, 1))
    (work_dir / "run_2.pt").write_bytes(b"a format of their own")
    last_pass(work_dir, alone=False, templates=("run_{}.pt",))
    assert pointed(work_dir) == "run_1.pt"
    last_pass(work_dir, alone=True, templates=("run_{}.pt",))
    assert pointed(work_dir) == "run_2.pt"


@pytest.mark.parametrize("alone", [True, False])
def test_a_directory_that_was_written_over_is_not_named_for_what_is_left_of_the_one_before(
    alone: bool, tmp_path: Path
) -> None:
    work_dir = tmp_path / "project" / "run"
    work_dir.mkdir(parents=True)
    run = Run(work_dir, ACCELERATE)
    first, second = run.saves([1, 2])
    api.prune(work_dir, Policy())
    weights = work_dir / second / "model.safetensors"
    weights.write_bytes(weights.read_bytes())  # and the optimizer is still the old one
    last_pass(work_dir, alone=alone)
    assert api.latest(work_dir) == work_dir / first


def test_what_is_written_after_the_last_pass_takes_back_that_it_is_whole(tmp_path: Path) -> None:
    work_dir = tmp_path / "project" / "run"
    work_dir.mkdir(parents=True)
    run = Run(work_dir, ACCELERATE)
    first, last = run.save(1), run.save(2, young=True)
    last_pass(work_dir, alone=False)
    assert api.latest(work_dir) == work_dir / last
    (work_dir / last / "scheduler.bin").write_bytes(torch_zip())  # another host's
    assert api.latest(work_dir) == work_dir / first


# --- the command itself -----------------------------------------------------------------------------------------


@pytest.fixture
def commands(tmp_path: Path) -> Path:
    """A directory with things that cannot be started."""
    place = tmp_path / "commands"
    place.mkdir()
    (place / "plain").write_text("#!/bin/sh\n")
    for name, text in {"bytes": "echo hello\n", "lost": "#!/nowhere/python\n"}.items():
        (place / name).write_text(text)
        (place / name).chmod(0o755)
    (place / "link").symlink_to("/nowhere/train.sh")
    (place / "directory").mkdir()
    return place


@pytest.mark.parametrize(("name", "code", "why"), [
    ("missing", 127, "No such file or directory"),
    ("plain/missing", 126, "Not a directory"),
    ("plain", 126, "Permission denied"),
    ("directory", 126, "Permission denied"),
    ("bytes", 126, "not a program, and no script that begins with #!"),
    ("lost", 126, "what its first line names as its interpreter, or it links to, does not exist"),
    ("link", 126, "what its first line names as its interpreter, or it links to, does not exist"),
])  # fmt: skip
@pytest.mark.parametrize("recursive", [(), ("--recursive",)])
def test_a_command_that_cannot_be_started_is_said_in_one_line_with_a_shells_code(
    name: str, code: int, why: str, recursive: tuple[str, ...], commands: Path, work_dir: Path, ckptd: Ckptd
) -> None:
    done = ckptd("watch", work_dir, *recursive, "--", commands / name)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == f"error: {commands / name}: cannot be started: {why}\n"
    assert os.listdir(work_dir) == []


def test_a_command_that_is_on_no_path_is_127(work_dir: Path, ckptd: Ckptd) -> None:
    assert ckptd("watch", work_dir, "--", "no-such-command-anywhere").returncode == 127


def test_the_exit_code_is_the_jobs_though_who_started_us_ignores_its_children(work_dir: Path, watching: Watch) -> None:
    ignore = (
        "import os, signal, sys; signal.signal(signal.SIGCHLD, signal.SIG_IGN); os.execv(sys.executable, sys.argv[1:])"
    )
    words = [sys.executable, "-m", "ckptd", "watch", str(work_dir), "--", "sh", "-c", "exit 9"]
    with watching(command=[sys.executable, "-c", ignore, *words]) as watch:
        assert watch.ends() == 9


_ORPHANS = """
import os, sys, time
for number in range(5):
    if os.fork() == 0:
        if os.fork() == 0:
            os._exit(number)  # nobody waits for it
        os._exit(0)
    os.wait()
open(sys.argv[1], "w").close()
sys.stdin.read()
sys.exit(7)
"""


def test_those_whose_parent_has_ended_are_reaped_while_the_job_runs(
    work_dir: Path, tmp_path: Path, watching: Watch
) -> None:
    reader, writer = os.pipe()
    command = ("--", sys.executable, "-c", _ORPHANS, tmp_path / "made")
    with watching(work_dir, *command, stdin=reader) as watch:
        os.close(reader)
        eventually((tmp_path / "made").exists)
        eventually(lambda: len(children_of(watch.process.pid)) == 1, what="the end of the orphans")
        os.close(writer)
        assert watch.ends() == 7


def children_of(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return [int(child) for task in tasks for child in (task / "children").read_text().split()]


_ENDED = """
import os, queue, signal
from ckptd.daemon.job import Job
codes = queue.Queue()
job = Job(["sh", "-c", "sleep 60 >/dev/null 2>&1 & echo $!; exit 3"], codes.put)
print(codes.get(timeout=20), job.has_left_nobody(0.0))
job.send_signal(signal.SIGKILL)
"""


def test_a_signal_after_the_end_of_the_job_goes_to_nobody() -> None:
    done = subprocess.run([sys.executable, "-c", _ENDED], capture_output=True, text=True, env=environment(), check=True)
    left_behind, said = done.stdout.splitlines()
    assert said == "3 False"
    os.kill(int(left_behind), signal.SIGKILL)  # it is still there


def test_what_was_ignored_at_the_start_stays_ignored_for_the_job(tmp_path: Path) -> None:
    """`nohup ckptd watch DIR -- python train.py`: the hang-up must not reach the training."""
    job = "import signal; print(signal.getsignal(signal.SIGHUP) == signal.SIG_IGN)"
    command = [sys.executable, "-m", "ckptd", "watch", str(tmp_path), "--", sys.executable, "-c", job]
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment(), timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("True\n", 0)
