"""A long time of everything: the world of tests/test_world.py many times over, then a job that saves as fast as it can.

`python -m tests.soak.soak [EXAMPLES] [SAVES] [SEED]`, which is what `make soak` runs. The second part is a simulated
job over several work dirs with `ckptd watch` beside it, killed at random moments of the first half; in the second
half one process lives on, and has to be as small at the end as at the beginning. Ends with 1 if a promise was broken.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ckptd import api
from ckptd.core.policy import Policy
from tests.conftest import environment, torch_zip

ROOT = Path(__file__).parent.parent.parent
SERIES = ("epoch_{}.pth", "iter_{}.pth")
KEEP = 3
PATIENCE_S = 60.0
_OPTIONS = ("--max-keep", str(KEEP), "--interval", "1", "--settle", "0.2", "--trash-ttl", "0", "--scan-interval", "5")
_POLICY = Policy(max_keep=KEEP, interval=1, settle_s=0.2, trash_ttl_s=0)
_MOST_GROWTH_KB, _MOST_MORE_FDS = 2048, 4
_LONGEST_BURST = 40


class BrokenPromise(AssertionError):
    """What ckptd must never do, and did."""


@dataclass
class Result:
    """What happened, for a person to read."""

    saves: int = 0
    broken_saves: int = 0
    resumes: int = 0
    checks: int = 0
    pruned: int = 0
    kills: int = 0
    worst_lag_saves: int = 0
    took_s: float = 0.0
    rss_first_kb: float = 0.0
    rss_last_kb: float = 0.0
    fds_first: float = 0.0
    fds_last: float = 0.0


@dataclass
class Run:
    """One work dir of the job: what was saved there, in order."""

    place: Path
    saved: dict[str, tuple[int, bytes | None]] = field(default_factory=dict)  # the bytes of whole ones only
    step: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SERIES, 0))
    spoiled: set[str] = field(default_factory=set)  # whole once, then written over by the job with less than all
    excused: set[str] = field(default_factory=set)  # rightly pruned for what the job has spoiled after that
    pointed_once: bool = False

    def whole(self, series: str) -> list[str]:
        """The names of the whole ones, in order of writing."""
        prefix = series.partition("{")[0]
        names = [name for name, (_, content) in self.saved.items() if content is not None and name.startswith(prefix)]
        return sorted(names, key=lambda name: self.saved[name][0])


class Job:
    """Saves, resumes, and looks whether what it was promised is so."""

    def __init__(self, places: list[Path], seed: int) -> None:
        self.random = random.Random(seed)
        self.runs = [Run(place) for place in places]
        self.result = Result()
        self._last_ns = 0

    def save(self, run: Run) -> None:
        """The next one of a series: aside and by rename, in place, or cut short."""
        series = self.random.choice(SERIES)
        run.step[series] += 1
        name = series.format(run.step[series])
        content = torch_zip(f"{name} save {self.result.saves} ".encode() * self.random.randint(5, 60))
        how = self.random.random()
        whole = how > 0.05
        path, aside = run.place / name, run.place / f".{name}.tmp"
        in_place = how > 0.8 and not path.exists()
        with open(path if in_place else aside, "wb") as file:
            file.write(content if whole else content[: len(content) // 2])
            file.flush()
            os.utime(file.fileno(), ns=(self._now_ns(),) * 2)
        if not in_place:
            os.replace(aside, path)
        self.result.saves += 1
        self.result.broken_saves += not whole
        if name in run.whole(series) and not whole:
            # ckptd may have gone by the old one until now: in its pointer, and in what it pruned.
            run.spoiled.add(name)
            run.excused.update(run.whole(series)[:-KEEP])
        elif whole:
            run.spoiled.discard(name)
            run.excused.discard(name)
        run.saved[name] = self.result.saves, content if whole else None

    def lag(self, run: Run) -> int:
        """How many whole ones were saved since the one that the pointer names."""
        name = self.pointed(run)
        at = run.saved[name][0] if name else 0
        return sum(number > at and content is not None for number, content in run.saved.values())

    def pointed(self, run: Run) -> str | None:
        try:
            name = os.path.basename((run.place / "last_ckpt").read_text().rstrip("\n"))
        except FileNotFoundError:
            if run.pointed_once:
                raise BrokenPromise(f"{run.place}/last_ckpt was there, and is gone") from None
            return None
        run.pointed_once = True
        return name

    def resume(self, run: Run) -> None:
        """As a job that starts: from what the pointer names, sometimes from an older one that is there."""
        while (name := self.pointed(run)) is not None:
            try:
                content = (run.place / name).read_bytes()
            except FileNotFoundError:
                if self.pointed(run) == name:
                    raise BrokenPromise(f"{run.place}: last_ckpt names {name}, which is not there") from None
                continue  # it has moved on between the two looks
            if name in run.spoiled:
                break  # it has not been seen yet that the job has taken it back
            if content != run.saved[name][1]:
                raise BrokenPromise(f"{run.place}: last_ckpt names {name}, which is not what was saved")
            break
        series = self.random.choice(SERIES)
        there = [name for name in run.whole(series) if (run.place / name).exists()]
        if there:
            name = there[-1] if self.random.random() < 0.7 else self.random.choice(there)
            run.step[series] = int("".join(filter(str.isdigit, name)))
        self.result.resumes += 1

    def check(self, run: Run) -> None:
        """The newest are there, as they were written, and what is gone had newer ones."""
        there = set(os.listdir(run.place))
        for series in SERIES:
            for name in run.whole(series)[-KEEP:]:
                if name not in there and name in run.excused:
                    continue
                if name not in there:
                    raise BrokenPromise(f"{run.place}/{name} is gone, and one of the {KEEP} newest")
                if (run.place / name).read_bytes() != run.saved[name][1]:
                    raise BrokenPromise(f"{run.place}/{name} is not what was saved")
        missing = set(run.saved) - there
        self.result.pruned += len(missing)
        for name in missing:
            del run.saved[name]
        self.result.checks += 1

    def _now_ns(self) -> int:
        """A time after all earlier ones: file systems count in milliseconds, and this job is faster."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        return self._last_ns


class Watch:
    """`ckptd watch` over all the work dirs, as a process."""

    def __init__(self, places: list[Path], log: Path) -> None:
        self._command = [sys.executable, "-m", "ckptd", "watch", *map(str, places), *_OPTIONS]
        self._log = log
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(self._command, env=environment(), stderr=log, stdin=subprocess.DEVNULL)

    def kill(self) -> None:
        self._lives()
        self.process.kill()
        self.process.wait()
        self.start()

    def sizes(self) -> tuple[int, int]:
        """Resident kB, and how many descriptors are open."""
        self._lives()
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        rss = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(rss.split()[1]), len(os.listdir(f"/proc/{self.process.pid}/fd"))

    def has_opened(self, runs: list[Run]) -> bool:
        """Whether it has locked all in which something was saved: before that, its size says nothing."""
        self._lives()
        wanted = {str(run.place / ".ckptd/lock") for run in runs if run.saved}
        with contextlib.suppress(FileNotFoundError):  # closed while we look
            return wanted <= {os.readlink(fd) for fd in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        return False

    def stop(self) -> None:
        self.process.terminate()
        if self.process.wait(PATIENCE_S) != 0:
            raise BrokenPromise(f"ckptd ended with {self.process.returncode}")

    def discard(self) -> None:
        self.process.kill()
        self.process.wait()

    def _lives(self) -> None:
        if self.process.poll() is not None:
            raise BrokenPromise(f"ckptd has ended by itself with {self.process.returncode}")


def soak(root: Path, *, saves: int, seed: int, work_dirs: int = 3, kills: int | None = None) -> Result:
    """Run the job in `root` until it has saved so often. Raises BrokenPromise."""
    began_s = time.monotonic()
    places = [root / f"run-{number}" for number in range(work_dirs)]
    for place in places:
        place.mkdir()
    job, result = Job(places, seed), None
    moments = job.random.sample(range(1, saves // 2), saves // 100 if kills is None else kills)
    to_kill = sorted(moments, reverse=True)
    sizes: list[tuple[int, int]] = []
    log = root / "ckptd.log"
    watch = Watch(places, log)
    try:
        while job.result.saves < saves:
            run = job.random.choice(job.runs)
            for _ in range(min(job.random.randint(1, _LONGEST_BURST), saves - job.result.saves)):
                job.save(run)
                job.result.worst_lag_saves = max(job.result.worst_lag_saves, job.lag(run))
                if to_kill and job.result.saves >= to_kill[-1]:
                    to_kill.pop()
                    watch.kill()
                    job.result.kills += 1
            job.check(run)
            if job.random.random() < 0.3:
                job.resume(run)
            if job.random.random() < 0.5:
                _eventually(lambda run=run: job.lag(run) == 0, f"the pointer of {run.place} to catch up", log)
                if not to_kill:
                    if not sizes:
                        _eventually(lambda: watch.has_opened(job.runs), "all work dirs to be opened", log)
                    sizes.append(watch.sizes())
        for run in job.runs:
            _eventually(lambda run=run: job.lag(run) == 0, f"the pointer of {run.place} to catch up", log)
            _eventually(lambda run=run: _is_done(run.place), f"{run.place} to be as the policy has it", log)
            job.check(run)
            job.resume(run)
        watch.stop()
    finally:
        watch.discard()
    if "Traceback" in log.read_text():
        raise BrokenPromise(f"ckptd has shown a trace:\n{log.read_text()[-5000:]}")
    result = job.result
    result.took_s = round(time.monotonic() - began_s, 1)
    _compare(result, sizes)
    return result


def _is_done(place: Path) -> bool:
    """Whether nothing is left to prune, and what was pruned is freed."""
    survey = api.plan(place, _POLICY)
    trash = place / ".ckptd" / "trash"  # not before something was saved
    return not survey.prune and survey.settles_s is None and not (trash.exists() and os.listdir(trash))


def _compare(result: Result, sizes: list[tuple[int, int]]) -> None:
    """The medians of the first and the last third of a process's life are alike."""
    third = len(sizes) // 3
    if not third:
        return
    (result.rss_first_kb, result.rss_last_kb), (result.fds_first, result.fds_last) = (
        (statistics.median(each[:third]), statistics.median(each[-third:])) for each in zip(*sizes, strict=True)
    )
    if result.rss_last_kb > result.rss_first_kb + _MOST_GROWTH_KB:
        raise BrokenPromise(f"ckptd grows: {result}")
    if result.fds_last > result.fds_first + _MOST_MORE_FDS:
        raise BrokenPromise(f"ckptd leaks descriptors: {result}")


def _eventually(is_so: Callable[[], bool], what: str, log: Path) -> None:
    deadline_s = time.monotonic() + PATIENCE_S
    while not is_so():
        if time.monotonic() > deadline_s:
            raise BrokenPromise(f"waited {PATIENCE_S:.0f} s for {what}:\n{log.read_text()[-3000:]}")
        time.sleep(0.002)


def main(examples: int = 5000, saves: int = 20_000, seed: int | None = None) -> int:
    seed = random.randrange(10**6) if seed is None else seed
    code = 0
    if examples:
        print(f"the world, {examples} examples ...", flush=True)
        profile = {"WORLD_PROFILE": "soak", "WORLD_EXAMPLES": str(examples)}
        command = [sys.executable, "-m", "pytest", "-q", "--timeout", "0", "tests/test_world.py"]
        code = subprocess.run(command, cwd=ROOT, env=environment(**profile), check=False).returncode
    if saves:
        print(f"ckptd watch beside {saves} saves, seed {seed} ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="ckptd-soak-") as root:
            try:
                result = soak(Path(root), saves=saves, seed=seed)
            except BrokenPromise as broken:
                print(f"broken with seed {seed}: {broken}")
                return 1
            print(json.dumps(asdict(result), indent=1))
    return code


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
