"""The golden cases through whole passes over real files: every event, and with passes missed and restarts between."""

from __future__ import annotations

import os
import random
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import ckptd
from ckptd.core.plan import SKIP
from ckptd.reconcile import Report
from tests.golden_cases import CASES, Outside, happenings, policy_of

SHARDS = 6  # the cases in so many tests, so that a failure names a part


class Directory:
    """A real directory, with times of writing in the order of writing."""

    def __init__(self, path: Path, case: dict[str, Any]) -> None:
        self.path = path
        self._clock = 1_000_000_000
        path.mkdir()
        for name in case["pre"]:
            self.write(name)
        if case["pre"]:
            ckptd.prune(path, replace(policy_of(case["segments"][0]), max_keep=None))

    def write(self, name: str) -> None:
        self._clock += 1
        aside = self.path / "aside"
        with zipfile.ZipFile(aside, "w") as archive:
            archive.writestr("archive/data.pkl", b"")
        os.utime(aside, (self._clock, self._clock))
        aside.rename(self.path / name)

    def change(self, outside: Outside) -> None:
        for name in outside.remove:
            (self.path / name).unlink(missing_ok=True)
        for name in outside.create:
            self.write(name)

    def files(self) -> set[str]:
        return {entry.name for entry in self.path.iterdir() if entry.name not in (".ckptd", "last_ckpt")}


def owed(report: Report) -> set[str]:
    """What the rule has pruned and a protection keeps; each must be one of the K newest."""
    kept = [d for d in report.survey.plan.decisions if d.decision == SKIP]
    assert all("newest" in d.reasons[0] for d in kept)
    return {d.checkpoint.name for d in kept}


@pytest.mark.parametrize("shard", range(SHARDS))
def test_a_pass_after_each_save_leaves_what_the_hook_left(tmp_path: Path, shard: int) -> None:
    for case in CASES[shard::SHARDS]:
        directory = Directory(tmp_path / case["id"], case)
        for each in happenings(case):
            if isinstance(each, Outside):
                directory.change(each)
                continue
            directory.write(each.name)
            report = ckptd.prune(directory.path, each.policy)
            assert each.files | owed(report) == directory.files(), (case["id"], each.step)
            assert (directory.path / "last_ckpt").read_text() == f"{directory.path / each.name}\n"


@pytest.mark.parametrize("shard", range(SHARDS))
def test_passes_missed_and_seen_late_with_restarts_between_end_the_same(tmp_path: Path, shard: int) -> None:
    for case in CASES[shard::SHARDS]:
        rng = random.Random(case["id"])
        directory = Directory(tmp_path / case["id"], case)
        for each in happenings(case):
            if isinstance(each, Outside):
                # A change between two passes leaves no trace of its time: only then does it matter when they are.
                ckptd.prune(directory.path, each.policy)
                directory.change(each)
                ckptd.prune(directory.path, each.policy)
                continue
            directory.write(each.name)
            if each.last or rng.random() < 0.3:
                report = ckptd.prune(directory.path, each.policy)
                assert each.files | owed(report) == directory.files(), (case["id"], each.step)


def test_two_series_in_one_directory_are_each_pruned_as_if_alone(tmp_path: Path) -> None:
    epochs, iters = (
        next(c for c in CASES if c["id"] == name and not c["pre"])
        for name in (
            next(c["id"] for c in CASES if policy_of(c["segments"][0]).templates == ("epoch_{}.pth",) and not c["pre"]),
            next(c["id"] for c in CASES if policy_of(c["segments"][0]).templates == ("iter_{}.pth",) and not c["pre"]),
        )
    )
    directory = Directory(tmp_path / "both", epochs)
    streams = [list(happenings(epochs)), list(happenings(iters))]
    expected: dict[int, set[str]] = {0: set(), 1: set()}
    rng = random.Random(0)
    while any(streams):
        which = rng.choice([i for i, stream in enumerate(streams) if stream])
        each = streams[which].pop(0)
        assert not isinstance(each, Outside)
        directory.write(each.name)
        report = ckptd.prune(directory.path, each.policy)
        expected[which] = each.files | owed(report)
        assert expected[0] | expected[1] == directory.files()
