"""`plan --recursive`, `prune --recursive`: which directories below a root are work dirs, and what is made of them."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.core.policy import Policy, name_test
from ckptd.daemon.tree import Tree

from .conftest import Builder, Somebody, environment, epochs, left, picture, pointed, section

Command = Callable[..., subprocess.CompletedProcess[str]]
ONE = ("--recursive", "--max-keep", "1", "--interval", "1", "--trash-ttl", "0")


def run(place: Path, *names: str, content: bytes | None = None) -> Path:
    """A run at `place`, with checkpoints."""
    place.mkdir(parents=True, exist_ok=True)
    return Builder(place)(*names, content=content)


def tree_of(root: Path, **more: object) -> Tree:
    return Tree(str(root), name_test(Policy()), **more)


def found(root: Path) -> list[str]:
    tree = tree_of(root)
    list(tree.look(str(root)))
    return [os.path.relpath(path, root) for path in tree.work_dirs]


# --- what is found ----------------------------------------------------------------------------------------------


def test_every_directory_that_holds_a_checkpoint_is_a_work_dir(tmp_path: Path) -> None:
    for name in ("a", "b/deep/er", "b/deep"):  # one of them inside another
        run(tmp_path / name, "epoch_1.pth")
    run(tmp_path / "none", "best_epoch_1.pth", "notes.txt")
    assert found(tmp_path) == ["a", "b/deep", "b/deep/er"]


def test_the_root_itself_can_be_one(tmp_path: Path) -> None:
    run(tmp_path, "epoch_1.pth")
    assert found(tmp_path) == ["."]


def test_a_checkpoint_that_is_a_directory_makes_a_work_dir_and_is_none_itself(work_dir: Path) -> None:
    shards = Builder(work_dir).shards("iter_4")
    run(shards / "iter_1", "epoch_1.pth")  # whatever is inside a checkpoint belongs to it
    assert found(work_dir.parent) == ["run"]


def test_a_directory_with_a_checkpoints_name_and_no_checkpoint_in_it_is_looked_into(tmp_path: Path) -> None:
    run(tmp_path / "epoch_1" / "run", "epoch_3.pth")
    assert "epoch_1/run" in found(tmp_path)


def test_a_directory_in_which_a_run_has_declared_itself_is_a_work_dir(tmp_path: Path) -> None:
    (tmp_path / "a" / ".ckptd" / "schedules").mkdir(parents=True)
    assert found(tmp_path) == ["a"]


def test_a_hidden_directory_holds_no_runs_unless_it_is_the_root(tmp_path: Path) -> None:
    run(tmp_path / "a", "epoch_1.pth")
    for hidden in (".snapshots/1/a", ".backup", "b/.cache/c"):
        run(tmp_path / hidden, "epoch_1.pth")
    looked_at: list[str] = []
    tree = tree_of(tmp_path, on_look=looked_at.append)
    assert list(tree.look(str(tmp_path))) == [str(tmp_path / "a")]
    assert list(tree.look(str(tmp_path / ".backup"))) == []  # as after a hint of the kernel
    assert [os.path.relpath(path, tmp_path) for path in looked_at] == [".", "a", "b"]
    assert found(tmp_path / ".snapshots") == ["1/a"]
    assert found(tmp_path / "b" / ".cache") == ["c"]


def test_a_directory_that_is_hidden_later_is_forgotten_and_one_that_is_shown_is_found(tmp_path: Path) -> None:
    for name in ("a", ".b"):
        run(tmp_path / name, "epoch_1.pth")
    tree = tree_of(tmp_path)
    list(tree.look(str(tmp_path)))
    (tmp_path / "a").rename(tmp_path / ".a")
    (tmp_path / ".b").rename(tmp_path / "b")
    list(tree.look_again())
    assert tree.work_dirs == [str(tmp_path / "b")]


def test_a_hidden_checkpoint_that_was_asked_for_makes_a_work_dir(tmp_path: Path) -> None:
    Builder(tmp_path).shards(".step_1")
    tree = Tree(str(tmp_path), name_test(Policy(templates=(".step_{}",))))
    assert list(tree.look(str(tmp_path))) == [str(tmp_path)]


def test_prune_leaves_what_is_hidden_alone_and_takes_it_where_it_is_named(tmp_path: Path, ckptd: Command) -> None:
    hidden = run(tmp_path / ".backup" / "a", *epochs(1, 2))
    run(tmp_path / "a", *epochs(1, 2))
    assert ckptd("prune", tmp_path, *ONE).returncode == 0
    assert (left(tmp_path / "a"), left(hidden)) == (epochs(2), epochs(1, 2))
    assert ckptd("prune", tmp_path, tmp_path / ".backup", *ONE).returncode == 0
    assert left(hidden) == epochs(2)


def test_what_is_pruned_into_the_trash_is_no_work_dir(tmp_path: Path) -> None:
    run(tmp_path / "a", "epoch_1.pth")
    run(tmp_path / "a" / ".ckptd" / "trash", "epoch_1.pth")
    assert found(tmp_path) == ["a"]


def test_no_symlink_is_followed_so_that_a_loop_ends(tmp_path: Path) -> None:
    run(tmp_path / "root" / "a", "epoch_1.pth")
    run(tmp_path / "outside", "epoch_1.pth")
    (tmp_path / "root" / "a" / "up").symlink_to(tmp_path / "root")
    (tmp_path / "root" / "elsewhere").symlink_to(tmp_path / "outside")
    (tmp_path / "root" / "b").mkdir()
    (tmp_path / "root" / "b" / "epoch_1.pth").symlink_to(tmp_path / "outside" / "epoch_1.pth")
    assert found(tmp_path / "root") == ["a"]


# --- what has changed -------------------------------------------------------------------------------------------


def test_only_what_has_changed_is_listed_again(tmp_path: Path) -> None:
    clock = [0]
    for name in "abcdefgh":
        run(tmp_path / name, "epoch_1.pth")
    (tmp_path / "many").mkdir()
    for number in range(1000):
        (tmp_path / "many" / f"sample_{number}.png").touch()
    for place in [*tmp_path.iterdir(), tmp_path]:
        os.utime(place, (1, 1))
    clock[0] = (tmp_path / "many").stat().st_ctime_ns + 10 * 10**9
    tree = tree_of(tmp_path, clock=lambda: clock[0])
    assert len(list(tree.look(str(tmp_path)))) == 8
    before = tree.listed
    assert list(tree.look_again()) == []
    assert tree.listed == before
    run(tmp_path / "b", "epoch_2.pth")
    run(tmp_path / "new" / "one", "epoch_2.pth")
    assert sorted(tree.look_again()) == [str(tmp_path / "b"), str(tmp_path / "new" / "one")]
    assert tree.listed == before + 4  # the root, b, new, and one


def test_what_changed_while_it_was_listed_is_listed_again(tmp_path: Path) -> None:
    run(tmp_path / "a", "epoch_1.pth")
    tree = tree_of(tmp_path)  # all of it is only just written: its time of change may not tell of the next write
    list(tree.look(str(tmp_path)))
    assert list(tree.look_again()) == [str(tmp_path / "a")]


def test_what_is_gone_is_forgotten_with_all_below_it(tmp_path: Path) -> None:
    gone: list[str] = []
    for name in ("a", "a/b", "a/b/c", "d"):
        run(tmp_path / name, "epoch_1.pth")
    tree = tree_of(tmp_path, on_gone=gone.append)
    list(tree.look(str(tmp_path)))
    (tmp_path / "a").rename(tmp_path / "e")
    assert sorted(tree.look_again()) == sorted(str(tmp_path / name) for name in ("e", "e/b", "e/b/c", "d"))
    assert sorted(gone) == [str(tmp_path / name) for name in ("a", "a/b", "a/b/c")]


def test_what_cannot_be_listed_for_a_while_is_not_forgotten_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "a/b"):
        run(tmp_path / name, "epoch_1.pth")
    gone: list[str] = []
    trouble: list[str] = []
    tree = tree_of(tmp_path, on_gone=gone.append, on_trouble=lambda path, _: trouble.append(path))
    list(tree.look(str(tmp_path)))
    scandir = os.scandir

    def stale(path: str) -> object:
        if path == str(tmp_path / "a"):
            raise OSError(116, "Stale file handle", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", stale)
    list(tree.look_again())
    assert (gone, trouble, len(tree.work_dirs)) == ([], [str(tmp_path / "a")], 2)
    monkeypatch.undo()
    assert str(tmp_path / "a") in list(tree.look_again())


# --- plan -------------------------------------------------------------------------------------------------------


def test_plan_ends_with_the_runs_that_hold_most_the_largest_first(tmp_path: Path, ckptd: Command) -> None:
    for name, size in (("small", 4096), ("large", 400_000), ("medium", 40_000)):
        for number in range(1, 4):
            run(tmp_path / name, f"epoch_{number}.ckpt", content=b"\x80\x02}q\x00." + b"w" * size)
    before = picture(tmp_path)
    done = ckptd("plan", tmp_path, *ONE, "--template", "epoch_{}.ckpt")
    assert (done.returncode, picture(tmp_path)) == (0, before)
    table = done.stdout[done.stdout.rindex("HOLDS") :].splitlines()
    assert [line.split()[-1].rpartition("/")[2] for line in table[1:4]] == ["large", "medium", "small"]
    assert [line.split()[2] for line in table[1:]] == ["3", "3", "3", "9"]  # after a size and its unit
    assert table[1].split()[:2] == ["1.2", "MB"]
    assert table[1].split()[3:5] == ["803", "kB"]
    assert table[4].endswith("all 3 runs")
    assert f"\n  {' '.join(table[0].split())}\n" in re.sub(" +", " ", section("Many runs")).replace("\n ", "\n  ")
    assert f"{tmp_path}/small  epoch_{{}}.ckpt" in done.stdout


def test_plan_prints_a_line_of_json_for_each_work_dir(tmp_path: Path, ckptd: Command) -> None:
    for name in ("a", "b/c"):
        run(tmp_path / name, *epochs(1, 2))
    (tmp_path / "b" / "epoch_1").mkdir()  # no checkpoint, so no run
    done = ckptd("plan", tmp_path, *ONE, "--json")
    assert [json.loads(line)["work_dir"] for line in done.stdout.splitlines()] == [
        str(tmp_path / "a"),
        str(tmp_path / "b" / "c"),
    ]


def test_plan_says_so_where_there_is_no_checkpoint(tmp_path: Path, ckptd: Command) -> None:
    done = ckptd("plan", tmp_path, "--recursive")
    assert (done.returncode, done.stdout) == (0, f"no checkpoint below {tmp_path}\n")
    assert ckptd("plan", tmp_path / "missing", "--recursive").returncode == 1


def test_progress_is_for_a_terminal_only(tmp_path: Path, ckptd: Command) -> None:
    run(tmp_path / "a", "epoch_1.pth")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ckptd", "plan", str(tmp_path), *ONE]
    subprocess.run(command, stderr=theirs, stdout=subprocess.DEVNULL, env=environment(), check=True, timeout=20)
    os.close(theirs)
    said = os.read(ours, 4096).decode()
    os.close(ours)
    assert "looked into 1 directories" in said or "looked into 2 directories" in said
    assert ckptd("plan", tmp_path, *ONE).stderr == ""


def test_an_unreadable_subtree_is_named_and_the_rest_goes_on(somebody: Somebody, ckptd: Command) -> None:
    root = somebody.place / "root"
    for name in ("a", "b", "c"):
        run(root / name, *epochs(1, 2))
    somebody.owns(root)
    (root / "b").chmod(0)
    for command in ("plan", "prune"):
        done = ckptd(command, root, *ONE, user=somebody)
        assert done.returncode == 3
        assert done.stderr.count(f"could not look into {root}/b: Permission denied") == 1
    assert [left(root / name) for name in ("a", "c")] == [epochs(2)] * 2


# --- prune ------------------------------------------------------------------------------------------------------


def test_prune_goes_on_after_a_failure_and_ends_with_the_worst_code(tmp_path: Path, ckptd: Command) -> None:
    for name in ("a", "b", "c"):
        run(tmp_path / name, *epochs(1, 2))
    (tmp_path / "b" / ".ckptd").symlink_to(tmp_path)
    done = ckptd("prune", tmp_path, *ONE)
    assert done.returncode == 4
    assert f"{tmp_path}/b/.ckptd: a symlink" in done.stderr
    for name in ("a", "c"):
        assert (left(tmp_path / name), pointed(tmp_path / name)) == (epochs(2), "epoch_2.pth")
    assert len(left(tmp_path / "b")) == 2
    assert done.stderr.splitlines()[-1].startswith("looked after 3 work dirs, pruned 2 checkpoints (")


def test_roots_that_overlap_are_pruned_once(tmp_path: Path, ckptd: Command) -> None:
    run(tmp_path / "a", *epochs(1, 2))
    done = ckptd("prune", tmp_path, tmp_path / "a", tmp_path, *ONE)
    assert (done.returncode, done.stderr.count("reconciled")) == (0, 1)


def test_a_work_dir_swapped_for_a_symlink_once_it_was_found_is_not_followed(tmp_path: Path) -> None:
    from ckptd import api
    from ckptd.errors import CkptdError

    run(tmp_path / "theirs", *epochs(1, 2))
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "a").symlink_to(tmp_path)
    before = picture(tmp_path)
    for work_dir in (tmp_path / "root" / "a", tmp_path / "root" / "a" / "theirs"):
        with pytest.raises(CkptdError):
            api.prune(work_dir, Policy(max_keep=1, interval=1), below=str(tmp_path / "root"))
    assert picture(tmp_path) == before


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has directories of several owners")
def test_as_root_the_work_dirs_of_others_are_left_alone_and_said_once(tmp_path: Path, ckptd: Command) -> None:
    for name in ("ours", "theirs/a", "theirs/b"):
        run(tmp_path / name, *epochs(1, 2))
    for place in (tmp_path / "theirs").rglob("*"):
        os.chown(place, 65534, 65534)
    for command in ("plan", "prune"):
        done = ckptd(command, tmp_path, *ONE)
        assert done.returncode == 0
        assert done.stderr.count(f"left alone {tmp_path}/theirs/a, and what else nobody owns") == 1
        assert "theirs/b" not in done.stdout + done.stderr
    assert [len(left(tmp_path / name)) for name in ("ours", "theirs/a", "theirs/b")] == [1, 2, 2]


# --- layouts ----------------------------------------------------------------------------------------------------


def test_what_a_trainer_leaves_makes_a_work_dir_and_is_not_looked_into(work_dir: Path) -> None:
    for step in (500, 1000):
        run(work_dir / f"checkpoint-{step}" / "global_step500", "iter_1.pth")
        (work_dir / f"checkpoint-{step}" / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    assert found(work_dir.parent) == ["run"]


def test_own_files_beside_a_work_dir_are_not_looked_into(tmp_path: Path) -> None:
    run(tmp_path / ".ckptd.checkpoints" / "trash", "epoch_1.pth")
    assert found(tmp_path) == []
