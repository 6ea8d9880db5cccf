"""`--exclude`, and `.ckptd-ignore`: what is left out below a root, by what, and what is still done there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.daemon.exclude import excluder
from ckptd.errors import RefusedError, UsageError
from ckptd.workdir import trash

from .conftest import Builder, Watching, a_pass, epochs, eventually, keeps, left, picture

Command = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., AbstractContextManager[Watching]]
ONE = ("--recursive", "--max-keep", "1", "--interval", "1", "--trash-ttl", "0")
AN_HOUR = {"max_keep": 1, "interval": 1, "trash_ttl_s": 3600}


def run(place: Path, *names: str) -> Path:
    """A run at `place`, with two checkpoints unless it is told otherwise."""
    place.mkdir(parents=True, exist_ok=True)
    return Builder(place)(*(names or epochs(1, 2)))


def trash_of(place: Path) -> list[str]:
    return sorted(os.listdir(place / ".ckptd" / "trash"))


# --- patterns ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("pattern", "leaves_out", "leaves_in"), [
    pytest.param("base", ["base", "a/base", "a/b/base"], ["base2", "a", "rebase"], id="a name, at any depth"),
    pytest.param("base*", ["base", "a/base2"], ["a", "rebase"], id="a name with a star"),
    pytest.param("base/", ["base", "a/base"], ["a"], id="a slash at the end says that it is a directory, as all are"),
    pytest.param("./base", ["base"], ["a/base"], id="a path below the root"),
    pytest.param("a/*/base", ["a/b/base"], ["a/base", "a/b/c/base", "base"], id="a star stays within one name"),
    pytest.param("a/**/base", ["a/base", "a/b/base", "a/b/c/base"], ["base", "b/base"], id="two stars do not"),
    pytest.param("**/b[12]", ["b1", "a/b2"], ["b3"], id="a set of characters"),
    pytest.param("/data/runs/a", ["a"], ["b/a", "ab"], id="a path in full"),
    pytest.param("/data/runs/*/a", ["b/a"], ["a"], id="a path in full, with a star"),
    pytest.param("Base", ["Base"], ["base"], id="the case counts"),
])  # fmt: skip
def test_a_pattern_is_about_a_name_at_any_depth_or_about_a_path(
    pattern: str, leaves_out: list[str], leaves_in: list[str]
) -> None:
    pattern_of = excluder([pattern], ["/data/runs"])
    assert {pattern_of(f"/data/runs/{path}") for path in leaves_out} == {pattern}
    assert {pattern_of(f"/data/runs/{path}") for path in leaves_in} == {""}


@pytest.mark.parametrize(
    "pattern", ["", ".", "./", "/", "*", "**", "**/", "./**", "runs", "r*", "/data/runs", "/data/runs/", "/data", "*s"]
)
def test_a_pattern_that_leaves_out_the_root_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="leaves out /data/runs itself"):
        excluder([pattern], ["/data/runs"])


@pytest.mark.parametrize("pattern", ["../other", "a/../../other", "/elsewhere", "/data/run"])
def test_a_pattern_that_is_about_nothing_below_the_root_is_refused(pattern: str) -> None:
    with pytest.raises(UsageError, match="not below"):
        excluder([pattern], ["/data/runs"])


def test_of_several_roots_a_path_in_full_is_about_one_and_a_name_about_all() -> None:
    pattern_of = excluder(["/data/b/x", "y"], ["/data/a", "/data/b"])
    assert [pattern_of(f"/data/{path}") for path in ("a/x", "b/x", "a/y", "b/z/y")] == ["", "/data/b/x", "y", "y"]
    with pytest.raises(UsageError, match="leaves out /data/b itself"):
        excluder(["b"], ["/data/a", "/data/b"])


def test_a_path_as_a_shell_completes_it_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pattern_of = excluder(["runs/old*"], [f"{tmp_path}/runs"])
    assert pattern_of(f"{tmp_path}/runs/old2") == pattern_of(f"{tmp_path}/runs/runs/old") == "runs/old*"
    assert pattern_of(f"{tmp_path}/runs/a/old") == ""
    assert excluder([f"../{tmp_path.name}/runs/a"], [f"{tmp_path}/runs"])(f"{tmp_path}/runs/a") != ""
    for pattern in ("./runs", "../" + tmp_path.name):
        with pytest.raises(UsageError, match="leaves out"):
            excluder([pattern], [f"{tmp_path}/runs"])


def test_a_root_called_as_the_pattern_is_told_apart_from_what_lies_below_it() -> None:
    assert excluder(["**/runs"], ["/data/runs"])("/data/runs/a/runs") == "**/runs"


# --- plan and prune ---------------------------------------------------------------------------------------------


def test_a_root_inside_what_another_leaves_out_is_looked_after(tmp_path: Path, watching: Watch) -> None:
    real = tmp_path / "real"
    named, other = run(real / "old" / "a"), run(real / "old" / "b")
    (tmp_path / "link").symlink_to(real)
    with watching(tmp_path / "link", tmp_path / "link/old/a", *ONE, "--exclude", "old") as watch:
        eventually(lambda: left(named) == epochs(2))
        assert watch.stop() == 0
    assert left(other) == epochs(1, 2)


def test_what_is_left_out_is_not_pruned_and_the_table_says_by_what(tmp_path: Path, ckptd: Command) -> None:
    places = {name: run(tmp_path / name) for name in ("a", "base", "b/base/deep", "theirs", "theirs/deep")}
    (tmp_path / "theirs" / ".ckptd-ignore").touch()
    before = {name: picture(place) for name, place in places.items()}
    said = ["left out: {}/b/base (--exclude 'base')", "left out: {}/base (--exclude 'base')",
            "left out: {}/theirs (.ckptd-ignore)"]  # fmt: skip
    done = ckptd("plan", tmp_path, *ONE, "--exclude", "base")
    assert done.stdout.splitlines()[-4:] == [done.stdout.splitlines()[-4], *(each.format(tmp_path) for each in said)]
    assert done.stdout.splitlines()[-4].endswith("all 1 runs")
    done = ckptd("prune", tmp_path, *ONE, "--exclude", "base")
    assert (done.returncode, left(tmp_path / "a")) == (0, epochs(2))
    assert all(each.format(tmp_path) in done.stderr for each in said)
    assert all(picture(place) == before[name] for name, place in places.items() if name != "a")


def test_the_variable_holds_several_patterns_and_is_for_what_is_recursive(tmp_path: Path, ckptd: Command) -> None:
    for name in ("a", "b", "c"):
        run(tmp_path / name)
    env = {"CKPTD_EXCLUDE": "a b"}
    assert ckptd("prune", tmp_path, *ONE, env=env).returncode == 0
    assert [len(left(tmp_path / name)) for name in "abc"] == [2, 2, 1]
    assert ckptd("prune", tmp_path / "a", *ONE[1:], env=env).returncode == 0  # which was named directly
    assert left(tmp_path / "a") == epochs(2)


def test_json_says_too_what_is_left_out(tmp_path: Path, ckptd: Command) -> None:
    run(tmp_path / "a")
    run(tmp_path / "b")
    done = ckptd("plan", tmp_path, *ONE, "--json", "--exclude", "b")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines[1:] == [{"left_out": str(tmp_path / "b"), "reason": "--exclude 'b'"}]


def test_a_pattern_by_which_nothing_is_left_out_is_named(tmp_path: Path, ckptd: Command) -> None:
    run(tmp_path / "a")
    for command in ("plan", "prune"):
        done = ckptd(command, tmp_path, *ONE, "--exclude", "bse")
        assert "--exclude 'bse' leaves nothing out" in done.stdout + done.stderr


def test_bad_use_is_refused_before_anything_is_done(tmp_path: Path, ckptd: Command) -> None:
    run(tmp_path / "a")
    before = picture(tmp_path)
    for command in ("plan", "prune", "watch"):
        done = ckptd(command, tmp_path, *ONE, "--exclude", tmp_path.name)
        assert (done.returncode, f"leaves out {tmp_path} itself" in done.stderr) == (2, True)
        done = ckptd(command, tmp_path / "a", *ONE[1:], "--exclude", "b")
        assert (done.returncode, "give --recursive too" in done.stderr) == (2, True)
    assert picture(tmp_path) == before


def test_a_checkpoint_that_a_pattern_matches_is_its_runs_own_business(tmp_path: Path, ckptd: Command) -> None:
    place = run(tmp_path / "a", "epoch_1.pth")
    Builder(place).shards("iter_4")
    done = ckptd("plan", tmp_path, *ONE, "--exclude", "iter_*")
    assert "left out: " not in done.stdout
    assert "--exclude 'iter_*' leaves nothing out" in done.stdout


# --- .ckptd-ignore in what is named ---------------------------------------------------------------------------------


def test_a_work_dir_that_is_named_is_left_alone_too_and_the_way_out_is_said(work_dir: Path, ckptd: Command) -> None:
    run(work_dir)
    (work_dir / ".ckptd-ignore").write_text("anything\n")
    before = picture(work_dir)
    for command in ("plan", "prune", "watch"):
        done = ckptd(command, work_dir, *ONE[1:])
        assert (done.returncode, "Remove that file" in done.stderr) == (4, True)
        done = ckptd(command, work_dir, *ONE)  # and as a root
        assert (done.returncode, "Remove that file" in done.stderr) == (4, True)
    assert ckptd("latest", work_dir).stdout == f"{work_dir}/epoch_2.pth\n"
    assert picture(work_dir) == before
    with pytest.raises(RefusedError):
        api.plan(work_dir)
    (work_dir / ".ckptd-ignore").unlink()
    assert ckptd("prune", work_dir, *ONE[1:]).returncode == 0
    assert left(work_dir) == epochs(2)


def test_one_in_a_checkpoint_that_is_a_directory_keeps_that_one(work_dir: Path) -> None:
    builder = Builder(work_dir)
    for step in (1, 2, 3):
        builder.shards(f"iter_{step}")
    (work_dir / "iter_1" / ".ckptd-ignore").touch()
    decided = {d.checkpoint.name: d for d in api.plan(work_dir, Policy(max_keep=1, interval=1)).decisions}
    assert decided["iter_1"].decision == "skip"
    assert decided["iter_1"].reasons == ("left alone by the .ckptd-ignore in it",)
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert left(work_dir) == ["iter_1", "iter_3"]


def test_one_that_comes_between_two_renames_stops_the_pass(work_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(work_dir, *epochs(1, 2, 3, 4))
    put = trash.put

    def then_ignored(*args: object, **more: object) -> str:
        (work_dir / ".ckptd-ignore").touch()
        return put(*args, **more)

    monkeypatch.setattr(trash, "put", then_ignored)
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == [".ckptd-ignore", *epochs(2, 3, 4)]


# --- the trash of what is left out --------------------------------------------------------------------------------


def hide(place: Path) -> Path:
    return place.rename(place.with_name(f".{place.name}"))


def ignore(place: Path) -> Path:
    (place / ".ckptd-ignore").touch()
    return place


def ignore_above(place: Path) -> Path:
    ignore(place.parent)
    return place


LEAVE_OUT = {"hidden": hide, "ignored": ignore, "below what is ignored": ignore_above, "excluded": lambda place: place}


@pytest.mark.parametrize("how", LEAVE_OUT)
def test_its_trash_is_still_emptied_and_restorable_and_nothing_is_pruned(
    how: str, tmp_path: Path, ckptd: Command
) -> None:
    root = tmp_path / "root"
    place = run(root / "group" / "a", *epochs(1, 2, 3))
    run(root / "other")
    a_pass(place, **AN_HOUR)
    place = LEAVE_OUT[how](place)
    assert ckptd("restore", place, "epoch_1.pth").returncode == 0
    Builder(place)(*epochs(4, 5))
    more = ("--exclude", "a") if how == "excluded" else ()
    there = sorted({"last_ckpt", *left(place)})
    assert ckptd("prune", root, *ONE[:-2], *more).returncode == 0
    assert len(trash_of(place)) == 1  # its hour is not over
    assert ckptd("prune", root, *ONE, *more).returncode == 0
    assert (trash_of(place), sorted({"last_ckpt", *left(place)})) == ([], there)
    assert left(root / "other") == epochs(2)


def test_the_trash_of_a_work_dir_that_is_named_and_left_alone_is_emptied(work_dir: Path, ckptd: Command) -> None:
    run(work_dir, *epochs(1, 2, 3))
    a_pass(work_dir, **AN_HOUR)
    ignore(work_dir)
    assert ckptd("prune", work_dir, *ONE[1:-2]).returncode == 4
    assert len(trash_of(work_dir)) == 2
    assert ckptd("prune", work_dir, *ONE[1:]).returncode == 4
    assert (trash_of(work_dir), left(work_dir)) == ([], [".ckptd-ignore", "epoch_3.pth"])


def test_what_was_pinned_since_goes_back_and_is_owed_as_ever(work_dir: Path, ckptd: Command) -> None:
    run(work_dir, *epochs(1, 2, 3))
    a_pass(work_dir, **AN_HOUR)
    ignore(work_dir)
    (work_dir / "epoch_1.pth.keep").touch()
    assert ckptd("prune", work_dir, *ONE[1:]).returncode == 4
    assert left(work_dir) == [".ckptd-ignore", "epoch_1.pth", "epoch_1.pth.keep", "epoch_3.pth"]
    for name in (".ckptd-ignore", "epoch_1.pth.keep"):
        (work_dir / name).unlink()
    assert [d.checkpoint.name for d in a_pass(work_dir, **AN_HOUR).pruned] == ["epoch_1.pth"]


def test_nothing_is_freed_while_no_complete_one_is_left(work_dir: Path, ckptd: Command) -> None:
    run(work_dir, *epochs(1, 2, 3))
    a_pass(work_dir, **AN_HOUR)
    ignore(work_dir)
    (work_dir / "epoch_3.pth").unlink()
    done = ckptd("prune", work_dir, *ONE[1:])
    assert (done.returncode, len(trash_of(work_dir)), "no complete checkpoint is left" in done.stderr) == (4, 2, True)


@pytest.mark.parametrize("copy", ["cp -a", "cp -al"])
def test_the_trash_of_a_copy_is_somebodys_backup_and_stays(
    copy: str, tmp_path: Path, ckptd: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    place = run(root / "a", *epochs(1, 2, 3))
    a_pass(place, **AN_HOUR)
    for item in trash_of(place):  # as if that had been five minutes ago
        at, _, number = item.partition("-")
        (place / ".ckptd" / "trash" / item).rename(place / ".ckptd" / "trash" / f"{int(at) - 300_000}-{number}")
    for name in (".a", "b"):
        subprocess.run([*copy.split(), place, root / name], check=True)
    before = [picture(root / name) for name in (".a", "b")]
    shutil.rmtree(place)
    assert ckptd("prune", root, *ONE, "--exclude", "b").returncode == 0
    after = [picture(root / name) for name in (".a", "b")]
    assert [_still(each) for each in after] == [_still(each) for each in before]


def _still(pictured: dict[str, tuple[object, ...]]) -> dict[str, object]:
    return {name: each[-1] for name, each in pictured.items()}


def test_below_what_is_hidden_nothing_is_looked_for(tmp_path: Path, ckptd: Command) -> None:
    place = run(tmp_path / ".snapshots" / "1" / "a", *epochs(1, 2, 3))
    a_pass(place, **AN_HOUR)
    before = picture(tmp_path)
    assert ckptd("prune", tmp_path, *ONE).returncode == 0
    assert picture(tmp_path) == before


# --- watch ------------------------------------------------------------------------------------------------------


def test_watch_says_what_it_leaves_out_and_takes_up_what_is_left_out_no_more(tmp_path: Path, watching: Watch) -> None:
    a, b = run(tmp_path / "a"), run(tmp_path / "deep" / "b")
    base = run(tmp_path / "base")
    with watching(tmp_path, *ONE, "--exclude", "base", "--exclude", "typo", "--scan-interval", "1000s") as watch:
        watch.heard(f"left out {base} (--exclude 'base')")
        watch.heard(f"--exclude 'typo' leaves nothing out below {tmp_path}")
        watch.heard(f"found 2 work dirs in 5 directories below {tmp_path}")
        for place in (a, b):
            eventually(keeps(place, 2))
        ignore(tmp_path / "deep")  # of which an event tells
        watch.heard(f"left out {tmp_path}/deep (.ckptd-ignore)")
        run(b, *epochs(3, 4))
        run(a, "epoch_3.pth")
        eventually(keeps(a, 3))
        (tmp_path / "deep" / ".ckptd-ignore").unlink()
        eventually(keeps(b, 4))
        assert watch.stop() == 0
    assert left(base) == epochs(1, 2)
    assert not [line for line in watch.lines if "Traceback" in line or "is gone" in line]


def test_watch_empties_the_trash_of_what_is_excluded_from_the_start(tmp_path: Path, watching: Watch) -> None:
    place = run(tmp_path / "old" / "a", *epochs(1, 2, 3))
    a_pass(place, **AN_HOUR)
    Builder(place)("epoch_4.pth")
    with watching(tmp_path, *ONE, "--exclude", "old") as watch:
        eventually(lambda: trash_of(place) == [], what="the end of the trash")
        assert watch.stop() == 0
    assert left(place) == epochs(3, 4)


@pytest.mark.parametrize("how", ["hidden", "ignored", "below what is ignored"])
def test_watch_empties_the_trash_of_what_is_left_out_while_it_runs(how: str, tmp_path: Path, watching: Watch) -> None:
    root = tmp_path / "root"
    place = run(root / "group" / "a", *epochs(1, 2, 3))
    options = (*ONE[:-1], "4s", "--scan-interval", "1000s")
    with watching(root, *options) as watch:
        eventually(lambda: watch.said("pruned epoch_") == 2)
        place = LEAVE_OUT[how](place)
        run(place, *epochs(4, 5))
        eventually(lambda: trash_of(place) == [], what="the end of the trash")
        assert watch.stop() == 0
    assert [name for name in left(place) if name.startswith("epoch")] == epochs(3, 4, 5)
    assert not [line for line in watch.lines if "Traceback" in line or "bug" in line]


def test_a_work_dir_that_is_watched_by_its_name_is_left_alone_from_the_next_look_on(
    work_dir: Path, watching: Watch
) -> None:
    run(work_dir)
    with watching(work_dir, *ONE[1:], "--scan-interval", "1000s") as watch:
        eventually(keeps(work_dir, 2))
        ignore(work_dir)
        watch.heard(f"{work_dir}: is left alone, since it holds .ckptd-ignore")
        run(work_dir, *epochs(3, 4))
        (work_dir / ".ckptd-ignore").unlink()
        watch.heard(f"{work_dir}: works again")
        eventually(keeps(work_dir, 4))
        assert watch.stop() == 0
    assert watch.said("left alone") == 1
