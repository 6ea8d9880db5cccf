"""`--pointer none`, and a pointer elsewhere: nothing of ours among the checkpoints, and all that a pointer promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.errors import RefusedError, UsageError
from ckptd.passes.protections import Protections
from ckptd.passes.reliance import Reliance

from .conftest import Builder, Watching, a_pass, epochs, eventually, holding_open, left, torch_zip, truncated

Command = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., AbstractContextManager[Watching]]
ONE = {"max_keep": 1, "interval": 1, "trash_ttl_s": 0}
KEEP_ONE = ("--max-keep", "1", "--interval", "1")


def hidden(work_dir: Path) -> Path:
    return work_dir / ".ckptd" / "pointer"


@pytest.fixture(params=["none", "elsewhere"])
def asked(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    (tmp_path / "pointers").mkdir()
    return "none" if request.param == "none" else str(tmp_path / "pointers" / "a")


def place_of(asked: str, work_dir: Path) -> Path:
    return hidden(work_dir) if asked == "none" else Path(asked)


def test_nothing_of_ours_lies_among_the_checkpoints(asked: str, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, **ONE, pointer=asked)
    assert sorted(os.listdir(work_dir)) == [".ckptd", "epoch_3.pth"]
    assert subprocess.run(["ls", "-t", work_dir], capture_output=True, text=True).stdout == "epoch_3.pth\n"
    assert place_of(asked, work_dir).read_text() == f"{work_dir}/epoch_3.pth\n"


def test_latest_names_the_newest_whether_it_is_told_of_that_or_not(
    asked: str, with_checkpoints: Builder, ckptd: Command
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, **ONE, pointer=asked)
    for more in ([], ["--pointer", asked]):
        assert ckptd("latest", work_dir, *more).stdout == f"{work_dir}/epoch_3.pth\n"
    assert json.loads(ckptd("plan", work_dir, "--json", "--pointer", asked).stdout)["pointer"].endswith("epoch_3.pth")


def test_what_it_names_stays_while_it_is_written_over(asked: str, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    policy = {"max_keep": 2, "interval": 1, "pointer": asked}
    a_pass(work_dir, **policy)
    newest, place = work_dir / "epoch_3.pth", place_of(asked, work_dir)
    with holding_open(newest, "r+b"):
        newest.write_bytes(truncated())
        a_pass(work_dir, **policy)
        assert (left(work_dir), place.read_text()) == (epochs(2, 3), f"{newest}\n")
    with_checkpoints.tick(newest)  # nobody writes it, and it is old: its writer died
    a_pass(work_dir, **policy)
    assert (left(work_dir), place.read_text()) == (epochs(2, 3), f"{work_dir}/epoch_2.pth\n")


def test_what_it_names_is_never_pruned_though_the_policy_looks_at_others(asked: str, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, **{**ONE, "max_keep": 3}, pointer=asked)
    with_checkpoints("iter_10.pth", "iter_20.pth")
    place_of(asked, work_dir).write_text(f"{work_dir}/iter_10.pth\n")  # as if the policy had looked at all
    decided = {d.checkpoint.name: d for d in api.plan(work_dir, Policy(**ONE, pointer=asked)).decisions}
    assert decided["iter_20.pth"].decision == "keep"
    named = Protections(api.WorkDir(work_dir), Policy(**ONE, pointer=asked)).named_now()
    assert [name for name, why in named.items() if "named by" in why[0]] == ["iter_10.pth"]


def test_where_the_order_is_in_doubt_and_the_state_is_lost_it_is_believed(
    asked: str, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*epochs(3, 1, 2))
    a_pass(work_dir, max_keep=5, interval=1, pointer=asked)
    assert place_of(asked, work_dir).read_text().endswith("/epoch_2.pth\n")
    place_of(asked, work_dir).write_text(f"{work_dir}/epoch_1.pth\n")
    (work_dir / ".ckptd/state.json").unlink()
    assert api.plan(work_dir, Policy(max_keep=5, interval=1, pointer=asked)).newest == "epoch_1.pth"


def test_watch_points_at_each_save_and_at_once_at_the_end_of_the_job(
    asked: str, work_dir: Path, tmp_path: Path
) -> None:
    (tmp_path / "ready").write_bytes(torch_zip())
    script = f"import shutil; shutil.copy({str(tmp_path / 'ready')!r}, {str(work_dir / 'epoch_1.pth')!r})"
    command = [sys.executable, "-m", "ckptd", "watch", str(work_dir), *KEEP_ONE, "--pointer", asked, "--",
               sys.executable, "-c", script]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    label = ".ckptd/pointer" if asked == "none" else asked
    assert (done.returncode, f"pointed {label} at epoch_1.pth" in done.stderr) == (0, True)
    assert sorted(os.listdir(work_dir)) == [".ckptd", "epoch_1.pth"]


def test_what_we_write_there_ourselves_gives_no_hint(asked: str, with_checkpoints: Builder, watching: Watch) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    env = {"CKPTD_DEBUG": "1", **os.environ}
    with watching(work_dir, *KEEP_ONE, "--pointer", asked, "--scan-interval", "1000s", env=env) as watch:
        eventually(lambda: left(work_dir) == epochs(2))
        with_checkpoints("epoch_3.pth")
        eventually(lambda: left(work_dir) == epochs(3))
        assert watch.stop() == 0
    assert watch.said("pointed ") == 2


def test_in_accelerates_own_directory_it_is_beside_it_with_the_rest(with_checkpoints: Builder) -> None:
    for step in (0, 1, 2):
        Builder(with_checkpoints.work_dir).shards(f"checkpoint_{step}")
    a_pass(with_checkpoints.work_dir, layouts=("accelerate",), pointer="none")
    assert sorted(os.listdir(with_checkpoints.work_dir)) == [f"checkpoint_{step}" for step in (0, 1, 2)]
    assert "last_ckpt" not in os.listdir(with_checkpoints.work_dir.parent)


# --- a pointer that was there before ---------------------------------------------------------------------------------


def test_one_from_before_is_named_with_the_way_out_and_what_it_names_stays(
    asked: str, with_checkpoints: Builder, ckptd: Command
) -> None:
    work_dir = with_checkpoints(*epochs(1))
    a_pass(work_dir, **ONE)
    with_checkpoints(*epochs(2, 3))
    a_pass(work_dir, **ONE, pointer=asked)
    assert left(work_dir) == epochs(1, 3)
    done = ckptd("plan", work_dir, *KEEP_ONE, "--pointer", asked)
    assert "note: last_ckpt is there from before and kept up no more; while it is, epoch_1.pth stays" in done.stdout
    (work_dir / "last_ckpt").unlink()
    a_pass(work_dir, **ONE, pointer=asked)
    assert left(work_dir) == epochs(3)


def test_back_among_the_checkpoints_it_names_the_newest_again(asked: str, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    a_pass(work_dir, **ONE, pointer=asked)
    with_checkpoints("epoch_3.pth")
    a_pass(work_dir, **ONE)
    assert (work_dir / "last_ckpt").read_text() == f"{work_dir}/epoch_3.pth\n"


# --- a path elsewhere -----------------------------------------------------------------------------------------------


def test_one_path_for_two_work_dirs_is_refused_before_anything_goes(tmp_path: Path, ckptd: Command) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Builder(tmp_path / name)(*epochs(1, 2))
    path = str(tmp_path / "pointer")
    a_pass(tmp_path / "a", **ONE, pointer=path)
    for command in ("plan", "prune", "watch"):
        done = ckptd(command, tmp_path / "b", *KEEP_ONE, "--pointer", path)
        assert (done.returncode, "is another work dir's pointer" in done.stderr) == (4, True)
        for several in ((tmp_path / "a", tmp_path / "b"), (tmp_path, "--recursive")):
            done = ckptd(command, *several, *KEEP_ONE, "--pointer", path)
            assert (done.returncode, "cannot point into several work dirs" in done.stderr) == (2, True)
    assert left(tmp_path / "b") == epochs(1, 2)
    assert Path(path).read_text() == f"{tmp_path}/a/epoch_2.pth\n"


def test_another_that_takes_the_path_while_contents_are_read_keeps_it(
    with_checkpoints: Builder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir, path = with_checkpoints(*epochs(1, 2)), tmp_path / "pointer"
    (tmp_path / "other").mkdir()
    establish = Reliance.establish

    def slowly(*args: object) -> object:
        path.write_text(f"{tmp_path}/other/epoch_9.pth\n")
        return establish(*args)

    monkeypatch.setattr(Reliance, "establish", slowly)
    with pytest.raises(RefusedError, match="another work dir's pointer"):
        a_pass(work_dir, **ONE, pointer=str(path))
    assert (left(work_dir), path.read_text()) == (epochs(1, 2), f"{tmp_path}/other/epoch_9.pth\n")


def test_a_run_that_was_moved_takes_its_pointer_along(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    Builder(tmp_path / "a")(*epochs(1, 2))
    path = tmp_path / "pointer"
    a_pass(tmp_path / "a", **ONE, pointer=str(path))
    (tmp_path / "a").rename(tmp_path / "b")
    a_pass(tmp_path / "b", **ONE, pointer=str(path))
    assert path.read_text() == f"{tmp_path}/b/epoch_2.pth\n"


@pytest.mark.parametrize("content", [b"my notes\n", b"", b"two\nlines\n", b"\x80\x02binary", torch_zip()])
def test_what_is_no_pointer_is_not_written_over(content: bytes, with_checkpoints: Builder, tmp_path: Path) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    (tmp_path / "notes").write_bytes(content)
    for look in (api.plan, api.prune):
        with pytest.raises(RefusedError, match="no pointer of ckptd's"):
            look(work_dir, Policy(**ONE, pointer=str(tmp_path / "notes")))
    assert (tmp_path / "notes").read_bytes() == content
    assert left(work_dir) == epochs(1, 2)


def test_a_directory_that_is_not_there_is_refused_and_nothing_goes(with_checkpoints: Builder, tmp_path: Path) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with pytest.raises(RefusedError, match=f"Make {tmp_path}/missing first"):
        a_pass(work_dir, **ONE, pointer=str(tmp_path / "missing" / "a"))
    assert left(work_dir) == epochs(1, 2)


def test_none_is_none_however_it_is_written(with_checkpoints: Builder, ckptd: Command) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    done = ckptd("prune", work_dir, *KEEP_ONE, "--pointer", "None")
    assert done.returncode == 0
    assert not (work_dir / "None").exists()
    assert hidden(work_dir).exists()
    assert "pointer none" in ckptd("plan", work_dir, "-v", "--pointer", "NONE").stdout


@pytest.mark.parametrize(
    "wrong",
    [
        "a/b",
        "../a",
        "/",
        "/a/",
        "/a/.hidden",
        "/a/..",
        ".x",
        "",
        "/a/epoch_3.pth",
        "x\ny",
        "a.pth.keep",
        "/a/b.metrics.json",
    ],
)
def test_what_no_pointer_can_be_called_is_refused(wrong: str) -> None:
    with pytest.raises(UsageError, match="pointer"):
        Policy(pointer=wrong)


def test_the_unit_may_write_there(work_dir: Path, ckptd: Command) -> None:
    unit = ckptd("unit", work_dir, "--pointer", "/data/my pointers/a").stdout
    assert f'ReadWritePaths=-{work_dir} "-/data/my pointers"' in unit or f'ReadWritePaths=-{work_dir} "/data' in unit
    assert '--pointer "/data/my pointers/a"' in unit
    assert "--pointer none" in ckptd("unit", work_dir, "--pointer", "none").stdout
