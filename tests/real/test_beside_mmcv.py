"""`ckptd watch` beside the real mmcv leaves what mmcv's own CheckpointHook would have left.

Every case is trained twice by mmcv's runners. Once the hook prunes (`max_keep_ckpts=3`), and what is there
after each of its saves is expected. Once the hook keeps everything (-1), or ckptd's own hook takes its place, and ckptd
prunes. No rule is written down here.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ..conftest import readme

pytestmark = pytest.mark.real

KEEP = 3
# Beside the checkpoints: mmcv's own link, and what is ckptd's.
NOT_CHECKPOINTS = {"latest.pth", "last_ckpt", ".ckptd"}


@pytest.fixture(scope="module", autouse=True)
def trainer_mmcv(framework, trainer):
    framework("mmcv", "1.7.2")
    return trainer("train_mmcv.py")


@dataclass(frozen=True)
class Run:
    """One training job: until which epoch or iteration, and from which checkpoint it resumes."""

    until: int
    resume_from: str | None = None


@dataclass(frozen=True)
class Case:
    """One work dir and the jobs that trained in it, one after the other."""

    unit: str
    interval: int
    runs: tuple[Run, ...]
    symlink: bool = True

    def job(self, run: Run, work_dir: Path, max_keep: int, config: str | None = None) -> dict[str, Any]:
        return {
            "work_dir": str(work_dir),
            "unit": self.unit,
            "until": run.until,
            "interval": self.interval,
            "max_keep": max_keep,
            "symlink": self.symlink,
            "resume_from": run.resume_from and str(work_dir / run.resume_from),
            "config": config,
        }


REGULAR = {
    "every epoch": Case("epoch", 1, (Run(8),)),
    "every 2nd epoch": Case("epoch", 2, (Run(14),)),
    "every 3rd epoch, the last off the grid": Case("epoch", 3, (Run(17),)),
    "every 5th epoch, the last off the grid": Case("epoch", 5, (Run(32),)),
    "every iteration": Case("iter", 1, (Run(8),)),
    "every 2nd iteration, the last off the grid": Case("iter", 2, (Run(15),)),
    "every 3rd iteration": Case("iter", 3, (Run(18),)),
    "every 5th iteration": Case("iter", 5, (Run(35),)),
    "no latest.pth": Case("epoch", 2, (Run(12),), symlink=False),
}
RESUMED = {
    "epochs, resumed from the newest": Case("epoch", 1, (Run(6), Run(12, "epoch_6.pth"))),
    # The saved iteration is one behind the name: the resumed job does iteration 12 again, and saves it again.
    "iterations, resumed from the newest": Case("iter", 2, (Run(12), Run(21, "iter_12.pth"))),
    # No walk ever comes by epoch 10 again: it stays.
    "resumed from a last epoch off the grid": Case("epoch", 3, (Run(10), Run(20, "epoch_10.pth"))),
    # 10 is written after 12, which waits until the run comes by.
    "resumed from an older one, and stopped early": Case(
        "epoch", 2, (Run(12), Run(10, "epoch_8.pth"), Run(17, "epoch_10.pth"))
    ),
    # Whoever was away sees 8, 12 and then 10 for the first time: the newest is 10.
    "resumed, and then from an older one, up to a lower number": Case(
        "epoch", 2, (Run(6), Run(12, "epoch_6.pth"), Run(10, "epoch_8.pth"))
    ),
    "iterations, resumed from an older one": Case("iter", 5, (Run(30), Run(40, "iter_20.pth"))),
}
LONG = {"sixty epochs": Case("epoch", 1, (Run(60),))}
CASES = REGULAR | RESUMED | LONG


@dataclass(frozen=True)
class Save:
    """What the hook saved, and the checkpoints that were there when it had pruned."""

    name: str
    left: list[str]


@dataclass(frozen=True)
class Expected:
    """What mmcv alone did in a case: `runs[i]` are the saves of the case's i-th run."""

    runs: list[list[Save]]
    loaded: dict[str, Any]
    latest: str | None

    @property
    def saves(self) -> list[Save]:
        return [save for run in self.runs for save in run]

    @property
    def newest(self) -> str:
        return self.saves[-1].name

    @property
    def left(self) -> list[str]:
        return self.saves[-1].left

    @property
    def pruned(self) -> list[str]:
        gone, before = [], set[str]()
        for save in self.saves:
            gone += sorted((before | {save.name}) - set(save.left))
            before = set(save.left)
        return sorted(gone)


@pytest.fixture(scope="module")
def expected(trainer_mmcv, tmp_path_factory, loads) -> Callable[[str], Expected]:
    """What mmcv's own hook does in each case, tried when it is first asked for."""
    root = tmp_path_factory.mktemp("mmcv")

    @functools.cache
    def of(what: str) -> Expected:
        case, work_dir = CASES[what], root / str(list(CASES).index(what))
        said = trainer_mmcv.do(train=[case.job(run, work_dir, KEEP) for run in case.runs])
        runs = [
            [Save(line["saved"], checkpoints_of(line["files"])) for line in said if line["job"] == number]
            for number in range(len(case.runs))
        ]
        loaded = {name: loads(case.unit, work_dir / name) for name in runs[-1][-1].left}
        found = Expected(runs, loaded, latest(work_dir))
        assert found.pruned, "a case in which nothing goes shows nothing"
        return found

    return of


@pytest.fixture(scope="module")
def loads(trainer_mmcv) -> Callable[[str, Path], Any]:
    """Where a run would go on: load a checkpoint with `runner.resume`."""

    def load(unit: str, path: Path) -> Any:
        (where,) = trainer_mmcv.do(load=[unit, str(path)])
        return where

    return load


@pytest.fixture
def train(trainer_mmcv, work_dir) -> Callable[..., list[str]]:
    """Train runs of a case in the work dir, with mmcv keeping everything. `after_save(name)` holds the job up.

    config: a file of mmcv's, for its hook instead of mmcv's own. Returns what ckptd's shim has warned of.
    """

    def run(
        case: Case, *runs: Run, after_save: Callable[[str], None] | None = None, config: str | None = None
    ) -> list[str]:
        jobs, warned = [case.job(run, work_dir, max_keep=-1, config=config) for run in runs], []
        with trainer_mmcv.begin(train=jobs, lockstep=bool(after_save)) as said:
            for line in said:
                if "warned" in line:
                    warned.append(line["warned"])
                elif after_save:
                    after_save(line["saved"])
                    trainer_mmcv.tell()
        return warned

    return run


@pytest.fixture
def ends_like(work_dir, loads, ckptd):
    """The work dir is, and stays, as mmcv alone would have left it."""

    def check(what: str, mmcv: Expected, watching, *options: str) -> None:
        watching.until(lambda: state(work_dir), (mmcv.left, mmcv.newest))
        # What is expected may have been passed on the way to fewer: what ckptd still wants, it does now.
        watching.make_a_pass()
        assert checkpoints(work_dir) == mmcv.left
        watching.stop_well()
        assert checkpoints(work_dir) == mmcv.left

        pruned = ckptd("prune", work_dir, *options)
        assert pruned.returncode == 0, pruned.stderr
        assert state(work_dir) == (mmcv.left, mmcv.newest)
        assert (work_dir / "last_ckpt").read_text() == f"{work_dir / mmcv.newest}\n"
        assert latest(work_dir) == mmcv.latest
        assert {name: loads(CASES[what].unit, work_dir / name) for name in mmcv.left} == mmcv.loaded
        assert pruned_by_the_journal(ckptd("history", work_dir, "--json").stdout) == mmcv.pruned

    return check


@pytest.mark.parametrize("what", REGULAR)
def test_after_every_save_the_same_files_are_left(what, expected, watch, train, ends_like, work_dir):
    case, mmcv = CASES[what], expected(what)
    watching = watch(work_dir, *policy(case))
    saves = iter(mmcv.saves)

    def compare(saved: str) -> None:
        save = next(saves)
        assert saved == save.name
        watching.until(lambda: state(work_dir), (save.left, save.name))

    train(case, *case.runs, after_save=compare)
    ends_like(what, mmcv, watching, *policy(case))


@pytest.mark.parametrize("what", ["sixty epochs", "every 2nd iteration, the last off the grid"])
def test_a_job_that_never_waits_ends_with_the_same_files(what, expected, watch, train, ends_like, work_dir):
    case = CASES[what]
    work_dir.rmdir()  # mmcv makes it when it starts; ckptd is there before
    watching = watch(work_dir, *policy(case))
    train(case, *case.runs)
    ends_like(what, expected(what), watching, *policy(case))


# Off the grid, mmcv leaves one more than the newest three: only who knows the interval does the same.
@pytest.mark.parametrize("what", ["every 2nd epoch", "every 3rd epoch, the last off the grid"])
def test_an_interval_that_nobody_gave_is_inferred(what, expected, watch, train, ends_like, work_dir):
    watching = watch(work_dir, "--max-keep", str(KEEP))
    train(CASES[what], *CASES[what].runs)
    ends_like(what, expected(what), watching, "--max-keep", str(KEEP))


def test_a_ckptd_that_is_first_started_after_the_job_prunes_the_same(expected, watch, train, ends_like, work_dir):
    what = "every 3rd epoch, the last off the grid"
    case = CASES[what]
    train(case, *case.runs)
    ends_like(what, expected(what), watch(work_dir, *policy(case)), *policy(case))


@pytest.mark.parametrize("restarted", [False, True], ids=["runs on", "is restarted between them"])
@pytest.mark.parametrize("what", RESUMED)
def test_resumed_jobs_end_with_the_same_files_while_ckptd(restarted, what, expected, watch, train, ends_like, work_dir):
    case, mmcv = CASES[what], expected(what)
    watching = watch(work_dir, *policy(case))
    for run, saves in zip(case.runs, mmcv.runs, strict=True):
        if restarted and run is not case.runs[0]:
            watching.stop_well()
            watching = watch(work_dir, *policy(case))
        train(case, run)
        # Not waited for: what the pass deletes after it has moved the pointer.
        watching.until(lambda saves=saves: pointed_at(work_dir), saves[-1].name)
    ends_like(what, mmcv, watching, *policy(case))


@pytest.mark.parametrize("what", RESUMED)
def test_a_ckptd_that_was_away_while_jobs_were_resumed_catches_up(what, expected, watch, train, ends_like, work_dir):
    case, mmcv = CASES[what], expected(what)
    watching = watch(work_dir, *policy(case))
    train(case, case.runs[0])
    watching.until(lambda: pointed_at(work_dir), mmcv.runs[0][-1].name)
    watching.stop_well()
    train(case, *case.runs[1:])
    ends_like(what, mmcv, watch(work_dir, *policy(case)), *policy(case))


@pytest.mark.parametrize("what", ["every 5th epoch, the last off the grid", "every iteration", "sixty epochs"])
def test_a_ckptd_that_is_frozen_during_saves_catches_up(what, expected, watch, train, ends_like, work_dir):
    case, mmcv = CASES[what], expected(what)
    watching = watch(work_dir, *policy(case))
    numbers = itertools.count()

    def freeze(_: str) -> None:
        """Right after a save, so in the middle of its pass: for three saves in six, and for the last ones."""
        number = next(numbers)
        if number % 6 == 1 or number == len(mmcv.saves) - 2:
            watching.pause()
        elif number % 6 == 4:
            watching.unpause()

    train(case, *case.runs, after_save=freeze)
    assert checkpoints(work_dir) != mmcv.left
    watching.unpause()
    ends_like(what, mmcv, watching, *policy(case))


def test_a_ckptd_that_is_frozen_while_a_job_goes_back_catches_up(expected, watch, train, ends_like, work_dir):
    what = "resumed from an older one, and stopped early"
    case, mmcv = CASES[what], expected(what)
    watching = watch(work_dir, *policy(case))
    train(case, case.runs[0])
    watching.until(lambda: pointed_at(work_dir), mmcv.runs[0][-1].name)
    watching.pause()
    train(case, *case.runs[1:])
    watching.unpause()
    ends_like(what, mmcv, watching, *policy(case))


# --- ckptd's own hook, as docs/frameworks.md has it in a config -------------------------------------------------------


OFF_THE_GRID = ("every 3rd epoch, the last off the grid", "every 2nd iteration, the last off the grid")


@pytest.mark.parametrize("what", [*OFF_THE_GRID, "no latest.pth", *RESUMED])
def test_with_the_hook_ckptd_needs_no_options(what, expected, watch, train, ends_like, work_dir):
    watching = watch(work_dir)
    watching.heard("watching")  # a job that is faster would say that nobody prunes
    assert train(CASES[what], *CASES[what].runs, config=readme("mmcv 1.x")) == []
    ends_like(what, expected(what), watching)


def test_with_the_hook_a_job_that_ckptd_was_not_beside_keeps_all_and_says_so_once(train, ckptd, work_dir):
    case = REGULAR["every epoch"]
    (warned,) = train(case, *case.runs, config=readme("mmcv 1.x"))
    assert warned.endswith(f"run `ckptd watch {work_dir}` beside the job")
    assert checkpoints(work_dir) == sorted(f"epoch_{epoch}.pth" for epoch in range(1, 9))
    assert ckptd("prune", work_dir).returncode == 0
    assert checkpoints(work_dir) == ["epoch_6.pth", "epoch_7.pth", "epoch_8.pth"]


@pytest.mark.parametrize(("unit", "background"), [("epoch", False), ("iter", True)])
def test_mmcvs_own_resume_reads_what_the_hook_for_plain_loops_has_saved(unit, background, loads, work_dir):
    torch = pytest.importorskip("torch")
    from ckptd.shim import CheckpointHook

    model = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 1)})  # as the network of train_mmcv.py is
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model["layer"](torch.ones(2)).sum().backward()
    optimizer.step()
    with CheckpointHook(work_dir, interval=1, by_epoch=unit == "epoch", background=background) as hook:
        hook.before_run(model=torch.nn.DataParallel(model), optimizer=optimizer)
        paths = [hook.after_train_iter(41), hook.after_train_epoch(2)]
    (path,) = filter(None, paths)
    assert loads(unit, path) == {"epoch": 3 if unit == "epoch" else 0, "iter": 42}


def policy(case: Case) -> tuple[str, ...]:
    return ("--max-keep", str(KEEP), "--interval", str(case.interval))


def checkpoints_of(names: list[str]) -> list[str]:
    return sorted(set(names) - NOT_CHECKPOINTS)


def checkpoints(work_dir: Path) -> list[str]:
    return checkpoints_of(os.listdir(work_dir))


def pointed_at(work_dir: Path) -> str | None:
    try:
        return Path((work_dir / "last_ckpt").read_text().rstrip("\n")).name
    except FileNotFoundError:
        return None


def state(work_dir: Path) -> tuple[list[str], str | None]:
    return checkpoints(work_dir), pointed_at(work_dir)


def latest(work_dir: Path) -> str | None:
    link = work_dir / "latest.pth"
    return os.readlink(link) if link.is_symlink() else None


def pruned_by_the_journal(history: str) -> list[str]:
    """What is pruned for good: what went while the job wrote over something that stays came back, and went again."""
    lines = json.loads(history)
    back = {line["trash"] for line in lines if line["did"] == "gave back"}
    return sorted(line["name"] for line in lines if line["did"] == "pruned" and line["trash"] not in back)
