"""Files of others that name a checkpoint: what is read of them, what stays, and where the pointer waits for one."""

from __future__ import annotations

import errno
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

import ckptd as api
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind
from ckptd.core.trackers import LARGEST
from ckptd.daemon.notable import Notable
from ckptd.disk.opened import Inode
from ckptd.inspect.trackers import LARGEST_KNOWN, MOST, MOST_ALIKE, Trackers, likely
from ckptd.passes.surveyor import Surveyor
from ckptd.workdir import trash
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, Ckptd, a_pass, epochs, in_trash, kept, left, passes, pointed, torch_zip
from .in_memory import Files
from .layouts.writers import Run, the

ONE: dict[str, Any] = {"max_keep": 1, "rule": "newest", "trash_ttl_s": 0.0}


# --- what is read -------------------------------------------------------------------------------------------------


class Counted(Files):
    """A directory in memory that counts what is opened in it, and whose files can be written at a time."""

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(dict(files))
        object.__setattr__(self, "opened", Counter[str]())
        object.__setattr__(self, "at_ns", dict[str, int]())
        object.__setattr__(self, "refused", dict[str, int]())

    def about(self, path: str) -> Inode:
        inode = super().about(path)
        at_ns = self.at_ns.get(path, 0)
        return inode._replace(mtime_ns=at_ns, ctime_ns=at_ns)

    def opened_file(self, name: str) -> Any:
        self.opened[name] += 1
        if name in self.refused:
            raise OSError(self.refused[name], os.strerror(self.refused[name]), name)
        return super().opened_file(name)


def told(trackers: Trackers, here: Files, links: Mapping[str, str] | None = None) -> dict[str, set[str]]:
    return {each.file: set(each.said.names) for each in trackers.told(sorted(here.names), links or {}, here)}


def test_an_unchanged_file_that_nobody_knows_is_opened_once() -> None:
    here, trackers = Counted({"best.txt": b"epoch_1.pth", "train.log": b"x" * (LARGEST + 1), "empty": b""}), Trackers()
    for _ in range(3):
        assert told(trackers, here) == {"best.txt": {"epoch_1.pth"}}
    assert here.opened == {"best.txt": 1}
    here.files["best.txt"], here.at_ns["best.txt"] = b"epoch_2.pth", 1
    assert told(trackers, here) == {"best.txt": {"epoch_2.pth"}}
    assert here.opened == {"best.txt": 2}


def test_one_that_was_written_a_moment_ago_is_read_again_since_a_second_writing_may_bear_the_same_time() -> None:
    here, trackers = Counted({"best.txt": b"epoch_1.pth"}), Trackers()
    here.at_ns["best.txt"] = 10**30
    told(trackers, here)
    here.files["best.txt"] = b"epoch_2.pth"
    assert told(trackers, here) == {"best.txt": {"epoch_2.pth"}}


def test_what_frameworks_know_is_read_each_time() -> None:
    here, trackers = Counted({"LATEST": b"epoch_1.pth"}), Trackers()
    told(trackers, here)
    here.files["LATEST"] = b"epoch_2.pth"
    assert told(trackers, here) == {"LATEST": {"epoch_2.pth"}}


def test_a_file_that_is_too_large_says_nothing() -> None:
    here = Counted({"LATEST": b" " * LARGEST_KNOWN + b"epoch_1.pth", "a.txt": b" " * LARGEST + b"epoch_1.pth"})
    assert told(Trackers(), here) == {}
    assert here.opened == {"LATEST": 1}


def test_what_a_framework_knows_and_nobody_may_read_is_told_with_the_reason() -> None:
    here = Counted({"LATEST": b"epoch_1.pth", "mine.txt": b"epoch_1.pth"})
    here.refused |= {"LATEST": errno.EACCES, "mine.txt": errno.EACCES}
    (found,) = Trackers().told(sorted(here.names), {}, here)
    assert (found.file, found.trouble) == ("LATEST", "Permission denied")


def test_of_many_names_that_differ_in_digits_none_is_a_tracker_and_the_others_are() -> None:
    data = [f"sample_{number}.txt" for number in range(MOST_ALIKE + 1)]
    few = [f"top{number}.txt" for number in range(MOST_ALIKE)]
    assert likely([*data, *few, "best"]) == sorted([*few, "best"])


def test_of_too_many_that_are_unlike_only_telling_names_are_looked_at() -> None:
    words = ["".join(chr(97 + (number // 26**place) % 26) for place in range(3)) for number in range(26**3)]
    found = likely([*words, "best_model.txt"])
    assert "best_model.txt" in found
    assert len(found) <= MOST


def test_beside_5000_foreign_files_a_pass_opens_none_a_second_time(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    for number in range(5000):
        (work_dir / f"sample_{number}.txt").write_text("epoch_1.pth")
    (work_dir / "mine.txt").write_text("epoch_1.pth")
    os.utime(work_dir / "mine.txt", ns=(1, 1))
    with WorkDir(work_dir) as work:
        surveyor = Surveyor(work, Policy(**ONE))
        for _ in range(2):
            (decision,) = [d for d in surveyor.survey(2 * 10**18).decisions if d.checkpoint.step == 1]
            assert decision.reasons[0] == "named by mine.txt"


# --- what stays ---------------------------------------------------------------------------------------------------


@pytest.fixture
def run(with_checkpoints: Builder) -> Path:
    return with_checkpoints(*epochs(*range(1, 9)))


@pytest.mark.parametrize("content", ["epoch_3.pth", "/elsewhere/run/epoch_3.pth\n", '{"best": "epoch_3.pth"}'])
def test_what_a_small_file_of_anybodys_names_stays_while_it_does(content: str, run: Path) -> None:
    (run / "remember").write_text(content)
    assert kept(run, **ONE) == ["remember", "epoch_3.pth", "epoch_8.pth"]
    (run / "remember").unlink()
    assert kept(run, **ONE) == ["epoch_8.pth"]


def test_numbers_beside_checkpoints_protect_none(run: Path) -> None:
    for name, number in {"seed": 1, "version": 2, "world_size": 8, "num_gpus": 4}.items():
        (run / name).write_text(f"{number}\n")
    assert kept(run, **ONE) == ["num_gpus", "seed", "version", "world_size", "epoch_8.pth"]


def test_our_own_files_and_scores_protect_nothing_by_what_is_in_them(run: Path) -> None:
    (run / "epoch_8.pth.metrics.json").write_text('{"from": "epoch_2.pth"}')
    (run / "epoch_8.pth.keep").write_text("epoch_3.pth")
    (run / ".last_ckpt.ckptd-tmp").write_text("epoch_4.pth")
    (run / ".ckptd.old").write_text("epoch_5.pth")
    (run / "mine").write_text(f"{run}/epoch_6.pth")
    a_pass(run, **ONE, pointer="mine")
    assert [name for name in left(run) if name.endswith(".pth")] == ["epoch_8.pth"]


def test_a_log_protects_what_it_names_until_it_grows(run: Path) -> None:
    (run / "saved.log").write_text("epoch_3.pth\n")
    assert "epoch_3.pth" in kept(run, **ONE)
    with (run / "saved.log").open("a") as log:
        log.write("epoch_4.pth\n")
    assert "epoch_3.pth" not in kept(run, **ONE)


def test_directories_are_protected_alike(work_dir: Path) -> None:
    names = Run(work_dir, the("transformers")).saves([1, 2, 3])
    (work_dir / "best_model").write_text(f"/workspace/out/{names[0]}")
    assert set(kept(work_dir, **ONE)) == {names[0], names[2], "best_model"}


def test_what_is_named_below_a_root_stays(run: Path, ckptd: Ckptd) -> None:
    (run / "best.txt").write_text("epoch_3.pth")
    assert ckptd("prune", "--recursive", run.parent, "--max-keep", 1, "--trash-ttl", 0).returncode == 0
    assert {"epoch_3.pth", "epoch_8.pth"} <= set(left(run))
    assert "epoch_2.pth" not in left(run)


def test_a_checkpoint_that_t5x_has_pinned_stays(with_checkpoints: Builder) -> None:
    for step in (1, 2, 3):
        with_checkpoints.shards(f"iter_{step}")
    work_dir = with_checkpoints.work_dir
    (work_dir / "iter_1" / "PINNED").touch()
    (decision,) = [d for d in api.plan(work_dir, Policy(**ONE)).decisions if d.checkpoint.step == 1]
    assert (decision.decision, decision.reasons[0].kind) == ("skip", Kind.PINNED)
    assert decision.reasons == ("pinned by the PINNED in it",)
    assert kept(work_dir, **ONE) == ["iter_1", "iter_3"]


@pytest.mark.parametrize(("templates", "file", "content", "stay"), [
    pytest.param(["epoch_0_step_{}"], "LOWEST_VAL", "epoch_0_step_1", ["epoch_0_step_1"], id="NeMo Automodel"),
    pytest.param(["global_step_{}"], "latest_ckpt_global_step.txt", "2", ["global_step_2"], id="SkyRL"),
    pytest.param(["{}"], "latest.txt", "2\n", ["2"], id="nanotron"),
    pytest.param(["global_step_{}"], "checkpoint_tracker.json",
                 '{"best_global_step": 1, "last_global_step": 2, "last_actor_path": "/a/global_step_2/actor"}',
                 ["global_step_1", "global_step_2"], id="EasyR1"),
    pytest.param(["ckpt-{}.index", "ckpt-{}.data-00000-of-00001"], "checkpoint",
                 'model_checkpoint_path: "ckpt-2"\nall_model_checkpoint_paths: "ckpt-1"\n',
                 [f"ckpt-{n}.{end}" for n in (1, 2) for end in ("data-00000-of-00001", "index")], id="TensorFlow"),
    pytest.param([f"model_{{:07d}}.rank_{rank}.pth" for rank in (0, 1)], "last_checkpoint.rank_1",
                 "model_0000002.rank_1.pth", ["model_0000002.rank_1.pth"], id="DINOv2"),
])  # fmt: skip
def test_what_a_framework_without_a_layout_names_stays(
    templates: list[str], file: str, content: str, stay: list[str], work_dir: Path, ckptd: Ckptd
) -> None:
    for step in range(1, 6):
        for template in templates:
            path = work_dir / template.format(step)
            if "." in path.name:
                path.write_bytes(torch_zip())
            else:
                path.mkdir()
                (path / "model.pt").write_bytes(torch_zip())
            for each in [*path.glob("*"), path]:
                os.utime(each, ns=(10**18 + step, 10**18 + step))
    (work_dir / file).write_text(content)
    os.utime(work_dir / file, ns=(10**18, 10**18))
    options = [each for template in templates for each in ("--template", template)]
    assert ckptd("prune", work_dir, *options, "--max-keep", 1, "--trash-ttl", 0).returncode == 0
    assert sorted(left(work_dir)) == sorted([file, *stay, *(template.format(5) for template in templates)])


def test_the_plan_says_by_which_file(run: Path, ckptd: Ckptd) -> None:
    (run / "remember").write_text("epoch_3.pth")
    (run / "LATEST").write_text("4")
    plan = json.loads(ckptd("plan", run, "--max-keep", 1, "--json").stdout)
    rows = {row["name"]: (row["decision"], row["why"][0]) for row in plan["series"][0]["checkpoints"]}
    assert rows["epoch_3.pth"] == ("skip", {"kind": "tracker", "text": "named by remember"})
    assert rows["epoch_4.pth"] == ("skip", {"kind": "pointer", "text": "named by LATEST"})
    assert "named by remember" in ckptd("plan", run, "--max-keep", 1).stdout


@pytest.mark.parametrize("file", ["last_checkpoint.rank_0", "best_1"])
def test_a_file_that_is_called_like_a_directory_of_checkpoints_is_read_too(file: str, run: Path, ckptd: Ckptd) -> None:
    (run / file).write_text("epoch_1.pth")
    rows = json.loads(ckptd("plan", run, "--max-keep", 1, "--json").stdout)["series"][0]["checkpoints"]
    assert (rows[0]["decision"], rows[0]["reasons"][0]) == ("skip", f"named by {file}")


@pytest.mark.parametrize("make", [
    pytest.param(os.mkfifo, id="a pipe"),
    pytest.param(Path.mkdir, id="a directory"),
    pytest.param(lambda path: path.symlink_to(path.name), id="a loop"),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), id="a link to a device"),
    pytest.param(lambda path: path.write_bytes(b"epoch_3.pth\n" * 10**6), id="millions of lines"),
    pytest.param(lambda path: path.write_bytes(b"\0" * 100), id="zeros"),
    pytest.param(lambda path: path.write_bytes(b"\xff\xfe" * 100), id="no text"),
    pytest.param(lambda path: path.write_text("/runs/a\nb"), id="a newline in a path"),
    pytest.param(lambda path: path.write_text("[" * 100_000), id="brackets"),
])  # fmt: skip
@pytest.mark.parametrize("name", ["LATEST", "checkpoint", "remember"])
def test_what_is_no_tracker_protects_nothing_and_stops_no_pass(
    make: Callable[[Path], None], name: str, run: Path
) -> None:
    make(run / name)
    assert kept(run, **ONE) == [name, "epoch_8.pth"]


def test_where_a_frameworks_own_cannot_be_read_nothing_goes_and_it_is_said(
    run: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (run / "LATEST").write_text("epoch_3.pth")
    real = os.open

    def refuse(path: Any, *args: Any, **more: Any) -> int:
        if path == "LATEST":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path, *args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        report = a_pass(run, **ONE)
    assert report.pruned == ()
    assert f"nothing goes in {run}: LATEST cannot be read" in caplog.text
    (decision,) = [d for d in report.survey.decisions if d.checkpoint.step == 2]
    assert decision.reasons[0] == (
        "LATEST cannot be read (Permission denied), and may name any: make it readable, or remove it"
    )
    assert kept(run, **ONE) == ["LATEST", "epoch_3.pth", "epoch_8.pth"]


# --- the last look ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("file", "content"), [
    ("remember", "epoch_3.pth"), ("LATEST", "3"), ("LATEST", "epoch_3.pth"), ("notes.json", '["epoch_3.pth"]'),
])  # fmt: skip
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_is_named_while_checkpoints_go_stays(
    file: str, content: str, when: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the first rename of the pass, or after the last."""
    wrote: list[str] = []

    def write() -> None:
        if not wrote:
            wrote.append(file)
            (run / file).write_text(content)

    with monkeypatch.context() as patch:
        if when == "before":
            opened = trash.opened_trash
            patch.setattr(trash, "opened_trash", lambda *args: (write(), opened(*args))[1])
        else:
            put = trash.put

            def then(entry: Any, **more: Any) -> str:
                item = put(entry, **more)
                if entry.name == "epoch_7.pth":
                    write()
                return item

            patch.setattr(trash, "put", then)
        a_pass(run, **ONE)
    assert wrote
    assert [name for name in left(run) if name.endswith(".pth")] == ["epoch_3.pth", "epoch_8.pth"]
    assert in_trash(run) == []


@pytest.mark.parametrize("part", ["G_1.pth", "D_1.pth"])
def test_a_part_that_is_named_while_its_checkpoint_goes_keeps_all_of_it(
    part: str, work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2, 3):
        for name in (f"G_{step}.pth", f"D_{step}.pth"):
            (work_dir / name).write_bytes(torch_zip())
            os.utime(work_dir / name, ns=(10**18 + step, 10**18 + step))
    opened = trash.opened_trash

    def then(*args: Any) -> Any:
        (work_dir / "remember").write_text(part)
        return opened(*args)

    with monkeypatch.context() as patch:
        patch.setattr(trash, "opened_trash", then)
        a_pass(work_dir, **ONE, templates=("G_{}.pth + D_{}.pth",))
    assert left(work_dir) == ["remember", "D_1.pth", "G_1.pth", "D_3.pth", "G_3.pth"]


def test_what_is_named_while_it_waits_in_the_trash_gets_its_name_back(run: Path) -> None:
    with passes(run, max_keep=1, rule="newest", trash_ttl_s=0.2) as reconciler:
        assert len(reconciler.reconcile().pruned) == 7
        (run / "LATEST").write_text("3")
        (run / "remember").write_text("epoch_4.pth")
        time.sleep(0.3)
        reconciler.reconcile()
    assert [name for name in left(run) if name.endswith(".pth")] == ["epoch_3.pth", "epoch_4.pth", "epoch_8.pth"]


# --- the pointer --------------------------------------------------------------------------------------------------


@pytest.fixture
def deepspeed(work_dir: Path) -> Run:
    return Run(work_dir, the("deepspeed"))


def names_latest(run: Run, name: str) -> None:
    (run.work_dir / "latest").write_text(name)
    os.utime(run.work_dir / "latest", ns=(run.at_ns, run.at_ns))


@pytest.mark.parametrize("link", [False, True])
def test_the_pointer_waits_for_the_frameworks_own_and_two_later_saves_refute_that(link: bool, deepspeed: Run) -> None:
    work_dir, policy = deepspeed.work_dir, {**ONE, "layouts": ("deepspeed",)}
    first = deepspeed.save(100)
    if link:
        (work_dir / "latest").symlink_to(first)
        os.utime(work_dir / "latest", ns=(deepspeed.at_ns, deepspeed.at_ns), follow_symlinks=False)
    else:
        names_latest(deepspeed, first)
    with passes(work_dir, **policy) as reconciler:
        reconciler.reconcile()
        assert pointed(work_dir) == first
        second = deepspeed.save(200)
        reconciler.reconcile()
        assert pointed(work_dir) == first  # its framework has not said yet that all of it is there
        assert api.latest(work_dir, Policy(**policy)) == work_dir / first
        if not link:
            names_latest(deepspeed, second)
            reconciler.reconcile()
            assert pointed(work_dir) == second
            assert first not in left(work_dir)
        third, fourth = deepspeed.save(300), deepspeed.save(400)
        reconciler.reconcile()
        assert pointed(work_dir) == fourth
        fifth = deepspeed.save(500)
        reconciler.reconcile()
        assert pointed(work_dir) == fifth
        assert (second if not link else first) in left(work_dir)  # it is still named
        assert third not in left(work_dir)


def test_plan_and_latest_say_for_what_the_pointer_waits(deepspeed: Run, ckptd: Ckptd) -> None:
    first, second = deepspeed.save(100), deepspeed.save(200)
    names_latest(deepspeed, first)
    options = (deepspeed.work_dir, "--layout", "deepspeed")
    assert f"{second} is newer, and latest does not name it yet" in ckptd("plan", *options, "--max-keep", 1).stdout
    answer = ckptd("latest", *options)
    assert answer.stdout == f"{deepspeed.work_dir / first}\n"
    assert f"{second} is newer, and latest does not name it yet" in answer.stderr


# --- hints --------------------------------------------------------------------------------------------------------


def test_a_file_that_names_something_asks_for_a_pass_and_a_log_does_not(run: Path) -> None:
    (run / "remember").write_text("epoch_3.pth")
    (run / "train.log").write_text("epoch 3 of 8")
    policy = Policy(**ONE)
    counts = Notable(str(run), policy, api.plan(run, policy), None)
    asked = {
        name for name in ("remember", "train.log", "LATEST", "checkpoint", "last_checkpoint.rank_3", "other")
        if counts(name)
    }  # fmt: skip
    assert asked == {"remember", "LATEST", "checkpoint", "last_checkpoint.rank_3"}


def test_of_several_templates_the_first_is_what_is_resumed_from(work_dir: Path, ckptd: Ckptd) -> None:
    names = ["model_state_epoch_{}.th", "training_state_epoch_{}.th"]
    for step in (1, 2, 3):
        for name in names:
            (work_dir / name.format(step)).write_bytes(torch_zip())
            at_ns = 10**18 + step * 10**10 + names.index(name)
            os.utime(work_dir / name.format(step), ns=(at_ns, at_ns))
    options = [each for name in names for each in ("--template", name)]
    assert ckptd("latest", work_dir, *options).stdout == f"{work_dir / 'model_state_epoch_3.th'}\n"
