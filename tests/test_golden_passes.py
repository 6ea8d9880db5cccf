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
from ckptd.passes.report import Report
from tests.golden_cases import CASES, Outside, Save, happenings, policy_of

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
    """Each with a policy of its own that names only its template, in turns, as two hooks would."""
    quiet = [case for case in CASES if not any(isinstance(each, Outside) for each in happenings(case))]
    for at, first in enumerate(quiet[::4]):
        rng = random.Random(at)
        mine = {policy_of(segment).templates for segment in first["segments"]}
        second = rng.choice(
            [c for c in quiet if not mine & {policy_of(segment).templates for segment in c["segments"]}]
        )
        directory = Directory(tmp_path / str(at), first)
        for name in second["pre"]:
            directory.write(name)
        ckptd.prune(directory.path, replace(policy_of(second["segments"][0]), max_keep=None))
        streams = {0: list(happenings(first)), 1: list(happenings(second))}
        expected = {0: set(first["pre"]), 1: set(second["pre"])}
        while any(streams.values()):
            turn = rng.choice([turn for turn, stream in streams.items() if stream])
            each = streams[turn].pop(0)
            assert isinstance(each, Save)
            directory.write(each.name)
            expected[turn] = each.files | owed(ckptd.prune(directory.path, each.policy))
            assert expected[0] | expected[1] == directory.files(), (first["id"], second["id"], each.step)


def test_a_pass_that_looks_at_one_series_leaves_the_pointer_on_a_newer_checkpoint_of_another(tmp_path: Path) -> None:
    directory = Directory(tmp_path / "both", {"pre": [], "segments": []})
    epochs, iters = (
        ckptd.Policy(max_keep=1, interval=1, templates=(text,)) for text in ("epoch_{}.pth", "iter_{}.pth")
    )
    for name, policy in (("epoch_1.pth", epochs), ("iter_1.pth", iters), ("iter_2.pth", iters)):
        directory.write(name)
        ckptd.prune(directory.path, policy)
    ckptd.prune(directory.path, epochs)
    assert (directory.path / "last_ckpt").read_text() == f"{directory.path / 'iter_2.pth'}\n"
    directory.write("epoch_2.pth")
    ckptd.prune(directory.path, epochs)
    assert (directory.path / "last_ckpt").read_text() == f"{directory.path / 'epoch_2.pth'}\n"
    assert {"epoch_2.pth", "iter_2.pth"} == directory.files()
