"""The command line as a program: exit codes, what goes to stdout, and that reading changes nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import ckptd
import ckptd as package
from ckptd.core.policy import Policy

from .conftest import (
    Builder,
    Somebody,
    a_pass,
    environment,
    epochs,
    left,
    legacy,
    picture,
    pointed,
    safetensors,
    truncated,
)

Ckptd = Callable[..., subprocess.CompletedProcess[str]]


# --- exit codes -------------------------------------------------------------------------------------------------


def test_done_is_0_and_says_on_stderr_what_was_done(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    done = ckptd("prune", work_dir, "--max-keep", 1)
    assert (done.returncode, done.stdout) == (0, "")
    assert "pointed last_ckpt at epoch_3.pth" in done.stderr
    assert [line.split()[1] for line in done.stderr.splitlines() if line.startswith("pruned ")] == epochs(1, 2)


def test_nothing_found_is_1_and_prints_nothing(work_dir: Path, ckptd: Ckptd) -> None:
    done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"{work_dir}: no complete checkpoint" in done.stderr


@pytest.mark.parametrize("args", [["prune"], ["plan", "--max-keep"], ["nonsense"], ["watch", ".", "--"], ["latest"]])
def test_wrong_use_is_2(args: list[str], ckptd: Ckptd) -> None:
    done = ckptd(*args)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Error: " in done.stderr


def test_a_deletion_that_the_system_refuses_is_3_and_the_others_go_on(somebody: Somebody, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2, 3))
    somebody.owns(place)
    assert ckptd("prune", place, "--max-keep", 3, user=somebody).returncode == 0
    place.chmod(0o555)
    done = ckptd("prune", place, "--max-keep", 1, "--rule", "newest", user=somebody)
    assert (done.returncode, left(place)) == (3, epochs(1, 2, 3))
    for name in epochs(1, 2):
        assert f"could not prune {place}/{name}: Permission denied" in done.stderr


def test_a_checkpoint_that_cannot_be_read_is_3_and_kept(somebody: Somebody, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2, 3, 4))
    somebody.owns(place)
    (place / "epoch_2.pth").chmod(0)
    done = ckptd("prune", place, "--max-keep", 1, "--rule", "newest", "--trash-ttl", 0, user=somebody)
    assert (done.returncode, left(place)) == (3, epochs(2, 4)), done.stderr


def test_what_could_be_renamed_but_not_freed_is_3(somebody: Somebody, ckptd: Ckptd) -> None:
    if somebody.is_us:
        pytest.skip("only root can leave something that its owner may not remove")
    place = somebody.place / "run"
    place.mkdir()
    builder = Builder(place)
    for step in (1, 2, 3):
        builder.shards(f"iter_{step}")
    (place / "iter_1" / "logs").mkdir()
    (place / "iter_1" / "logs" / "events").touch()
    somebody.owns(place)
    os.chown(place / "iter_1" / "logs", 0, 0)
    options = ["--max-keep", 1, "--rule", "newest", "--trash-ttl", 0, "--settle", 0]
    done = ckptd("prune", place, *options, user=somebody)
    assert left(place) == ["iter_3"]
    assert "could not free" in done.stderr
    assert done.returncode == 3


def test_refused_for_safety_is_4(with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (work_dir / ".ckptd").symlink_to(tmp_path)
    assert ckptd("prune", work_dir, "--max-keep", 1).returncode == 4
    assert left(work_dir) == epochs(1, 2, 3)


def test_a_work_dir_that_another_process_owns_is_5(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3)
    with (work_dir / ".ckptd" / "lock").open("r+b") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = ckptd("prune", work_dir, "--max-keep", 1)
        reading = ckptd("latest", work_dir)
    assert (done.returncode, left(work_dir)) == (5, epochs(1, 2, 3))
    assert f"error: {work_dir}: process {os.getpid()} (" in done.stderr
    assert (reading.returncode, reading.stdout) == (0, f"{work_dir}/epoch_3.pth\n")


def test_the_worst_of_several_work_dirs_is_the_exit_code(
    with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    (tmp_path / "refused").mkdir()
    Builder(tmp_path / "refused")("epoch_1.pth")
    (tmp_path / "refused" / ".ckptd").symlink_to(work_dir)
    done = ckptd("prune", tmp_path / "refused", work_dir, "--max-keep", 1)
    assert (done.returncode, left(work_dir)) == (4, epochs(3))


def test_what_is_said_of_one_of_several_work_dirs_names_it(tmp_path: Path, ckptd: Ckptd) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Builder(tmp_path / name)(*epochs(1, 2))
    said = ckptd("prune", tmp_path / "a", tmp_path / "b").stderr
    for name in ("a", "b"):
        assert f"warning: {tmp_path}/{name}: epoch_{{}}.pth: no --max-keep" in said
        assert f"{tmp_path}/{name}: reconciled kept=2" in said


# --- options ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        ({"CKPTD_MAX_KEEP": "1"}, [4]),
        ({"CKPTD_MAX_KEEP": "2", "CKPTD_RULE": "newest"}, [3, 4]),
        ({"CKPTD_MAX_KEEP": "1", "CKPTD_INTERVAL": "2"}, [3, 4]),
        ({"CKPTD_MAX_KEEP": "1", "CKPTD_TEMPLATE": "iter_{}.pth"}, [1, 2, 3, 4]),
        ({}, [1, 2, 3, 4]),
    ],
)
def test_every_option_is_an_environment_variable(
    env: dict[str, str], expected: list[int], with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    assert ckptd("prune", work_dir, env=env).returncode == 0
    assert left(work_dir) == epochs(*expected)


def test_an_option_wins_over_its_environment_variable(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    assert ckptd("prune", work_dir, "--max-keep", 2, env={"CKPTD_MAX_KEEP": "1"}).returncode == 0
    assert left(work_dir) == epochs(2, 3)


def test_the_trash_and_the_pointer_are_where_the_environment_says(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    env = {"CKPTD_MAX_KEEP": "1", "CKPTD_TRASH_TTL": "1h", "CKPTD_POINTER": "last_checkpoint"}
    assert ckptd("prune", work_dir, env=env).returncode == 0
    assert (work_dir / "last_checkpoint").read_text() == f"{work_dir}/epoch_2.pth\n"
    assert len(list((work_dir / ".ckptd" / "trash").iterdir())) == 1


# --- plan -------------------------------------------------------------------------------------------------------


def test_the_plan_as_json_has_the_shape_that_programs_rely_on(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    with_checkpoints("epoch_5.pth", content=truncated())
    work_dir = with_checkpoints(*epochs(10, 20, 30, 40))
    (work_dir / "epoch_1.pth").mkdir()
    (work_dir / "epoch_20.pth.keep").touch()
    done = ckptd("plan", work_dir, "--max-keep", 1, "--interval", 10, "--json")
    planned = json.loads(done.stdout)
    assert done.returncode == 0
    assert (planned["work_dir"], planned["pointer"]) == (str(work_dir), None)
    assert [each["name"] for each in planned["left_alone"]] == ["epoch_1.pth"]
    (series,) = planned["series"]
    assert {key: series[key] for key in ("template", "unit", "rule", "interval", "interval_from")} == {
        "template": "epoch_{}.pth", "unit": "epoch", "rule": "stepped", "interval": 10, "interval_from": "given",
    }  # fmt: skip
    rows = {row["step"]: row for row in series["checkpoints"]}
    assert {step: (row["state"], row["decision"]) for step, row in rows.items()} == {
        5: ("incomplete", "prune"),
        10: ("complete", "prune"),
        20: ("complete", "skip"),
        30: ("complete", "prune"),
        40: ("complete", "keep"),
    }
    assert rows[20]["reasons"] == ["pinned"]
    assert rows[20]["why"] == [{"kind": "pinned", "text": "pinned"}]
    assert {row["why"][0]["kind"] for row in rows.values()} == {"broken", "rule", "pinned", "newest"}
    assert all(row["reasons"] and row["name"] == f"epoch_{step}.pth" for step, row in rows.items())
    info = (work_dir / "epoch_40.pth").stat()
    assert (rows[40]["size_bytes"], rows[40]["written"][-1]) == (info.st_size, "Z")


def test_a_plan_says_what_is_held_back_and_why(
    with_checkpoints: Builder, ckptd: Ckptd, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusing(name: str, *, dir_fd: int) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name)

    def planned() -> tuple[dict[str, str | None], list[str]]:
        rows = json.loads(ckptd("plan", work_dir, *one, "--json").stdout)["series"][0]["checkpoints"]
        table = ckptd("plan", work_dir, *one).stdout.splitlines()
        held = {row["name"]: row["held_back"] and row["held_back"]["text"] for row in rows}
        assert all(row["held_back"] is None or row["held_back"]["kind"] == "waits" for row in rows)
        return held, [line for line in table if line.startswith("held back: ")]

    one = ("--max-keep", "1", "--interval", "1")
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    assert planned() == (dict.fromkeys(epochs(1, 2, 3)), []), "what no pass has met holds nothing back"
    with monkeypatch.context() as patch:
        patch.setattr("ckptd.passes.reliance.sync_file", refusing)
        a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(1, 2, 3)
    why = "epoch_3.pth is not on stable storage yet"
    assert planned() == (
        {"epoch_1.pth": why, "epoch_2.pth": why, "epoch_3.pth": None},
        [f"held back: epoch_1.pth, epoch_2.pth ({why})"],
    )
    with_checkpoints(*epochs(4))
    assert planned() == (dict.fromkeys(epochs(1, 2, 3, 4)), []), "the next pass flushes what it meets"
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(4)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(["--max-keep", "1"], id="by epoch"),
        pytest.param(["--max-keep", "2", "--interval", "2"], id="by another interval"),
        pytest.param(["--max-keep", "2", "--rule", "newest"], id="the newest by writing"),
        pytest.param(["--max-keep", "1", "--template", "epoch_{}.pth"], id="one template"),
        pytest.param([], id="without a max-keep"),
    ],
)
def test_plan_prints_exactly_what_prune_does(options: list[str], with_checkpoints: Builder, ckptd: Ckptd) -> None:
    with_checkpoints("epoch_1.pth", content=legacy())
    with_checkpoints("epoch_2.pth", content=truncated())
    with_checkpoints("iter_100.safetensors", "iter_200.safetensors", content=safetensors())
    work_dir = with_checkpoints(*epochs(3, 4, 5, 6))
    (work_dir / "epoch_3.pth.keep").touch()
    (work_dir / "best.pth").symlink_to("epoch_4.pth")
    before = left(work_dir)
    planned = json.loads(ckptd("plan", work_dir, *options, "--json").stdout)
    table = ckptd("plan", work_dir, *options).stdout
    rows = [row for series in planned["series"] for row in series["checkpoints"]]
    pruned = {row["name"] for row in rows if row["decision"] == "prune"}
    assert {line.split()[0] for line in table.splitlines() if "  prune  " in line} == pruned
    assert ckptd("prune", work_dir, *options).returncode == 0
    assert set(before) - set(left(work_dir)) == pruned


def test_a_plan_of_several_work_dirs_is_one_json_object_a_line(
    with_checkpoints: Builder, tmp_path: Path, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    done = ckptd("plan", work_dir, tmp_path, "--json")
    assert [json.loads(line)["work_dir"] for line in done.stdout.splitlines()] == [str(work_dir), str(tmp_path)]


# --- reading ----------------------------------------------------------------------------------------------------


def test_latest_prints_the_path_and_nothing_else(with_checkpoints: Builder, ckptd: Ckptd, tmp_path: Path) -> None:
    work_dir = with_checkpoints(*epochs(9, 10))
    with_checkpoints("epoch_11.pth", content=truncated())
    done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{work_dir}/epoch_10.pth\n", "")
    assert json.loads(ckptd("latest", work_dir, "--json").stdout)["latest"] == f"{work_dir}/epoch_10.pth"
    assert json.loads(ckptd("latest", tmp_path, "--json").stdout)["latest"] is None


def test_latest_finds_a_moved_runs_checkpoint_beside_its_pointer(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(2, 1))
    (work_dir / "last_ckpt").write_text("/before/the/move/epoch_2.pth\n")
    assert ckptd("latest", work_dir).stdout == f"{work_dir}/epoch_2.pth\n"


def test_latest_prints_a_path_that_is_no_text_as_the_bytes_that_it_is(tmp_path: Path, ckptd: Ckptd) -> None:
    place = tmp_path / os.fsdecode(b"run\xff")
    place.mkdir()
    Builder(place)("epoch_1.pth")
    assert ckptd("latest", place, env={"PYTHONIOENCODING": "utf-8:strict"}).stdout == f"{place}/epoch_1.pth\n"


@pytest.mark.parametrize(
    "args", [["plan"], ["plan", "--json"], ["latest"], ["history"], ["restore"], ["unit"], ["verify"]]
)
def test_reading_commands_create_nothing_and_need_no_right_to_write(
    args: list[str], somebody: Somebody, ckptd: Ckptd
) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2, 3))
    for state in ("untouched", "kept by us"):
        if state == "kept by us":
            a_pass(place, max_keep=2, interval=1)  # as root it stays root's; somebody reads it
        place.chmod(0o555)
        before = picture(place)
        done = ckptd(args[0], place / "epoch_3.pth" if args == ["verify"] else place, *args[1:], user=somebody)
        assert (done.returncode, picture(place)) == (0, before), (state, done.stderr)
        place.chmod(0o755)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, (0, "complete", True)),
        (safetensors(), (0, "complete", True)),
        (legacy(), (0, "unverifiable", True)),
        (truncated(), (1, "incomplete", True)),
        (b"", (1, "incomplete", True)),
        (b"text", (1, "unverifiable", False)),
    ],
)
def test_verify_tells_the_state_and_the_evidence(
    content: bytes | None, expected: tuple[int, str, bool], with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    path = with_checkpoints("any name", content=content) / "any name"
    done = ckptd("verify", path, "--json")
    told = json.loads(done.stdout)
    assert (done.returncode, told["state"], told["known"]) == expected
    assert (told["path"], bool(told["evidence"])) == (str(path), True)
    assert told["evidence"] in ckptd("verify", path).stdout


def test_history_tells_what_was_pruned_and_why(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    assert json.loads(ckptd("history", work_dir, "--json").stdout) == []
    a_pass(work_dir, max_keep=1, interval=1)
    lines = json.loads(ckptd("history", work_dir, "--json").stdout)
    assert [(line["did"], line["name"], line["step"]) for line in lines] == [
        ("pruned", "epoch_1.pth", 1),
        ("pruned", "epoch_2.pth", 2),
    ]
    table = ckptd("history", work_dir).stdout
    assert all(line["name"] in table and line["reason"] in table for line in lines)


def test_unit_prints_a_unit_that_watches_this_work_dir(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    done = ckptd("unit", work_dir, "--max-keep", 3, "--keep-within", "60d", "--settle", "0.5")
    assert done.returncode == 0
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("ExecStart=")]
    assert str(work_dir) in line
    assert line.endswith("--max-keep 3 --settle 0.5 --keep-within 5184000")


def test_the_version_is_the_packages(ckptd: Ckptd) -> None:
    assert ckptd("--version").stdout == f"ckptd {package.__version__}\n"


def test_the_python_interface_does_what_the_commands_do(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    policy = package.Policy(max_keep=1, interval=1)
    assert [d.checkpoint.name for d in package.plan(work_dir, policy).plan.prune] == epochs(1, 2)
    assert package.prune(work_dir, policy).exit_code == 0
    assert (left(work_dir), pointed(work_dir)) == (epochs(3), "epoch_3.pth")
    assert package.latest(work_dir) == work_dir / "epoch_3.pth"
    assert package.verify(work_dir / "epoch_3.pth").state.value == "complete"


# --- by hand ----------------------------------------------------------------------------------------------------


def test_a_pinned_checkpoint_stays_and_an_unpinned_one_is_told_its_fate(
    with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4))
    assert ckptd("pin", work_dir / "epoch_1.pth", work_dir / "epoch_4.pth").returncode == 0
    assert "is pinned already" in ckptd("pin", work_dir / "epoch_1.pth").stdout
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert left(work_dir) == ["epoch_1.pth", "epoch_1.pth.keep", "epoch_4.pth", "epoch_4.pth.keep"]
    told = ckptd("unpin", work_dir / "epoch_1.pth", work_dir / "epoch_4.pth", "--max-keep", 1, "--interval", 1)
    assert told.returncode == 0
    first, second = told.stdout.splitlines()
    assert "epoch_1.pth: the next pass prunes it (1 or more intervals behind)" in first
    assert "epoch_4.pth: it stays (the newest)" in second
    a_pass(work_dir, max_keep=1, interval=1, trash_ttl_s=0)
    assert left(work_dir) == epochs(4)


@pytest.mark.parametrize("kind", ["missing", "link", "pin", "root"])
def test_what_is_no_checkpoint_is_not_pinned(with_checkpoints: Builder, ckptd: Ckptd, kind: str) -> None:
    work_dir = with_checkpoints(*epochs(1))
    (work_dir / "latest.pth").symlink_to("epoch_1.pth")
    (work_dir / "epoch_1.pth.keep").touch()
    before = sorted(path.name for path in work_dir.iterdir())
    path = {"missing": work_dir / "epoch_2.pth", "link": work_dir / "latest.pth", "pin": work_dir / "epoch_1.pth.keep",
            "root": Path("/")}[kind]  # fmt: skip
    done = ckptd("pin", path)
    assert (done.returncode, done.stdout) == (2 if kind in ("pin", "root") else 1, "")
    assert done.stderr.startswith("error: ")
    assert before == sorted(path.name for path in work_dir.iterdir())


def test_what_is_not_pinned_cannot_be_unpinned(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1))
    done = ckptd("unpin", work_dir / "epoch_1.pth")
    assert (done.returncode, done.stdout, "epoch_1.pth is not pinned" in done.stderr) == (1, "", True)


def test_a_pin_is_no_more_than_a_file_and_is_made_as_the_owner(somebody: Somebody, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1))
    somebody.owns(place)
    assert ckptd("pin", place / "epoch_1.pth").returncode == 0  # as root
    assert (place / "epoch_1.pth.keep").stat().st_uid == place.stat().st_uid


def test_the_policy_in_force_is_told_with_what_nobody_asked_for(work_dir: Path, ckptd: Ckptd) -> None:
    told = ckptd("plan", "-v", work_dir, "--max-keep", 3, "--keep-best", "mAP:max:2", "--max-bytes", "1.5GiB")
    for part in ("3 newest", "--keep-best mAP:max:2", "at most 1.6 GB", "rule auto", "verify full", "last_ckpt"):
        assert part in told.stdout.splitlines()[0]


def test_a_simulated_run_leaves_what_the_real_one_leaves(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    done = ckptd("plan", "--simulate", "epoch_{}.pth:2..21:2", "--max-keep", 2, "--keep-every", 8, "--json")
    told = json.loads(done.stdout)
    most = 0
    for step in (2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 21):
        with_checkpoints(f"epoch_{step}.pth")
        most = max(most, len(left(with_checkpoints.work_dir)))
        a_pass(with_checkpoints.work_dir, max_keep=2, keep_every=8, trash_ttl_s=0)
    assert [each["name"] for each in told["left"]] == left(with_checkpoints.work_dir)
    assert (told["saves"], told["peak_files"]) == (11, most)


@pytest.mark.parametrize(("args", "says"), [
    pytest.param(["--simulate", "epoch_{}.pth"], "TEMPLATE:FIRST..LAST", id="no steps"),
    pytest.param(["--simulate", "epoch.pth:1..3"], "no fields", id="no field"),
    pytest.param(["--simulate", "epoch_{}.pth:3..1"], "saves nothing", id="backwards"),
    pytest.param(["--simulate", "epoch_{}.pth:1..3:0"], "saves nothing", id="no step between two"),
    pytest.param(["--simulate", "epoch_{}.pth:1..999999999999"], "steps between them larger", id="without end"),
    pytest.param(["--simulate", "epoch_{}.pth:1..9000"], "too many to simulate", id="all of a long run"),
    pytest.param(["--simulate", "epoch_{}.pth:1..3", "."], "no WORK_DIR", id="a work dir too"),
    pytest.param(["--simulate", "epoch_{}.pth:1..3", "--keep-best", "mAP:max"], "--keep-best", id="unknown scores"),
    pytest.param(["--simulate", "epoch_{}.pth:1..3", "--max-bytes", "1GB"], "--max-bytes", id="unknown sizes"),
    pytest.param([".", "--max-bytes", "much"], "is no size", id="no size"),
    pytest.param([".", "--max-bytes", "0"], "out of range", id="nothing at all"),
    pytest.param([".", "--keep-best", "mAP"], "METRIC:min or METRIC:max", id="no direction"),
    pytest.param([".", "--keep-within", "0"], "stays anyway", id="no time"),
])  # fmt: skip
def test_what_can_never_be_meant_is_2_and_names_the_way_out(args: list[str], says: str, ckptd: Ckptd) -> None:
    done = ckptd("plan", *args)
    assert (done.returncode, done.stdout) == (2, "")
    assert says in done.stderr


def test_a_shell_completes_commands_and_options() -> None:
    asked = {"_CKPTD_COMPLETE": "bash_complete", "COMP_WORDS": "ckptd plan --keep-b", "COMP_CWORD": "2"}
    run = [sys.executable, "-m", "ckptd"]
    done = subprocess.run(run, env=environment(**asked), capture_output=True, text=True, check=True)
    assert done.stdout == "plain,--keep-best\n"
    source = subprocess.run(run, env=environment(_CKPTD_COMPLETE="bash_source"), capture_output=True, text=True)
    assert "complete -o nosort -F _ckptd_completion ckptd" in source.stdout


def test_the_policy_in_force_names_what_is_looked_for(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    done = ckptd("plan", "-v", work_dir, "--max-bytes", "1GB", "--layout", "olmo", "--layout", "verl")
    assert "keep as many as fit; at most 1.0 GB" in done.stdout
    assert "layouts olmo verl;" in done.stdout


def test_a_command_ends_without_a_search_for_cycles_in_all_that_it_imported() -> None:
    say = "import atexit, gc, sys; atexit.register(lambda: print('left alone:', gc.get_freeze_count() > 10_000))"
    code = f"{say}\nsys.argv = ['ckptd', '--version']\nfrom ckptd.__main__ import main\nmain()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment())
    assert done.stdout.splitlines()[-1] == "left alone: True"


@pytest.mark.parametrize("command", ["watch", "plan", "prune", "latest", "restore", "history", "unit"])
def test_an_empty_name_is_no_work_dir(command: str, with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable that is empty in a script, and the directory in which that happens to run."""
    monkeypatch.chdir(with_checkpoints(*epochs(1, 2, 3)))
    done = subprocess.run([sys.executable, "-m", "ckptd", command, ""], capture_output=True, text=True,
                          env=environment(), timeout=30, check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert left(Path.cwd()) == epochs(1, 2, 3)
    assert not Path(".ckptd").exists()


def test_an_option_that_does_nothing_is_said_to(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    advice = ckptd.plan(work_dir, Policy(keep_every=2)).advice
    assert any("no --max-keep" in text and "--keep-every has nothing to keep from" in text for text in advice)
