"""Directories that differ by a rank alone are one run: left alone below a root, and said."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ckptd.core.rank_dirs import why_with_others

from .conftest import Builder, Watching, epochs, eventually, left

Ckptd = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., AbstractContextManager[Watching]]


def run_of(root: Path, *names: str, steps: tuple[int, ...] = (1, 2, 3)) -> None:
    for name in names:
        (root / name).mkdir(parents=True)
        Builder(root / name)(*epochs(*steps))


@pytest.mark.parametrize(("names", "expected"), [
    pytest.param(["mp_rank_00", "mp_rank_01"], True, id="Megatron's"),
    pytest.param(["rank0", "rank1", "rank2"], True, id="plain"),
    pytest.param(["rank_1", "rank_0", "logs"], True, id="beside something else"),
    pytest.param(["tp_rank_00_pp_rank_000", "tp_rank_01_pp_rank_000"], True, id="of two kinds"),
    pytest.param(["mp_rank_00"], False, id="one alone"),
    pytest.param(["lora_rank_8", "lora_rank_16"], False, id="what has no first is no rank of a process"),
    pytest.param(["run_0", "run_1"], False, id="runs"),
    pytest.param(["rank_0_seed_1", "rank_1_lr_1"], False, id="that differ in more"),
    pytest.param(["frank_0", "frank_1"], False, id="another word"),
])  # fmt: skip
def test_what_differs_by_a_rank_alone_is_one_run(names: list[str], expected: bool) -> None:
    assert bool(why_with_others(names[0], names)) is expected


def test_below_a_root_they_are_left_alone_and_said(ckptd: Ckptd, tmp_path: Path) -> None:
    run_of(tmp_path, "mp_rank_00", "mp_rank_01", "other")
    done = ckptd("plan", "--recursive", tmp_path, "--max-keep", "1", "--json")
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["work_dir"] for row in rows if "work_dir" in row] == [f"{tmp_path}/other"]
    assert {row["left_out"]: row["reason"] for row in rows if "left_out" in row} == {
        f"{tmp_path}/mp_rank_00": "of one rank of a run, as mp_rank_01 is, and never pruned apart",
        f"{tmp_path}/mp_rank_01": "of one rank of a run, as mp_rank_00 is, and never pruned apart",
    }
    ckptd("prune", "--recursive", tmp_path, "--max-keep", "1", "--trash-ttl", "0")
    assert [left(tmp_path / name) for name in ("mp_rank_00", "mp_rank_01")] == [epochs(1, 2, 3)] * 2
    assert left(tmp_path / "other") == epochs(3)


def test_where_there_is_nothing_else_no_command_is_told_that_would_do_nothing(ckptd: Ckptd, tmp_path: Path) -> None:
    run_of(tmp_path, "mp_rank_00", "mp_rank_01")
    for arguments in (["plan", tmp_path], ["plan", "--recursive", tmp_path]):
        done = ckptd(*arguments, "--max-keep", "1")
        told = done.stdout + done.stderr
        assert "2 directories such as mp_rank_00 hold a rank of one run each" in told
        assert "ckptd plan" not in told


def test_one_that_is_named_is_looked_after(ckptd: Ckptd, tmp_path: Path) -> None:
    run_of(tmp_path, "mp_rank_00", "mp_rank_01")
    ckptd("prune", tmp_path / "mp_rank_00", "--max-keep", "1", "--trash-ttl", "0")
    assert left(tmp_path / "mp_rank_00") == epochs(3)


def test_one_that_was_alone_is_left_alone_from_then_on_when_another_comes(tmp_path: Path, watching: Watch) -> None:
    first, second = tmp_path / "rank_0", tmp_path / "rank_1"
    run_of(tmp_path, "rank_0", steps=(1,))
    with watching("--recursive", tmp_path, "--max-keep", "1", "--trash-ttl", "0") as watch:
        eventually(lambda: (first / "last_ckpt").exists())
        run_of(tmp_path, "rank_1", steps=(1,))
        watch.heard(f"left out {first} (of one rank of a run, as rank_1 is, and never pruned apart)")
        Builder(first)(*epochs(2, 3))
        Builder(second)(*epochs(2))
        run_of(tmp_path, "another")
        eventually(lambda: left(tmp_path / "another") == epochs(3))
    assert (left(first), left(second)) == (epochs(1, 2, 3), epochs(1, 2))
