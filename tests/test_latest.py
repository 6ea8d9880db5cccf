"""`ckptd latest` in a job script: what it exits with decides whether a run goes on, starts anew, or stops."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd import errors
from ckptd.disk import mounts as mounts_of_the_kernel
from ckptd.errors import DoubtError
from ckptd.passes import absence

from .conftest import Builder, Somebody, a_pass, environment, epochs, holding_open, torch_zip, truncated

Ckptd = Callable[..., subprocess.CompletedProcess[str]]
NOTHING, DOUBT = 1, 6


# --- nothing to resume from -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [(), ("train.log", "config.yaml", "events.out.tfevents.1", "epoch_1.pth.keep")])
def test_a_work_dir_without_any_checkpoint_is_nothing_to_resume_from(
    beside: tuple[str, ...], work_dir: Path, ckptd: Ckptd
) -> None:
    for name in beside:
        (work_dir / name).write_bytes(b"...")
    done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout) == (NOTHING, "")
    assert f"{work_dir}: no complete checkpoint, nor what could be one" in done.stderr
    asked = ckptd("latest", work_dir, "--json")
    assert (asked.returncode, json.loads(asked.stdout)["latest"]) == (NOTHING, None)


@pytest.mark.parametrize("name", ["run", "runs/deep/a"])
def test_a_work_dir_that_does_not_exist_yet_is_nothing_to_resume_from_and_its_name_is_said(
    name: str, tmp_path: Path, ckptd: Ckptd
) -> None:
    done = ckptd("latest", tmp_path / name)
    assert (done.returncode, done.stdout) == (NOTHING, "")
    assert f"{tmp_path / name}: does not exist. " in done.stderr
    assert os.listdir(tmp_path) == []


# --- doubt ------------------------------------------------------------------------------------------------------


def incomplete(place: Path) -> None:
    Builder(place)("epoch_1.pth", content=truncated())


def young(place: Path) -> None:
    (place / "epoch_1.pth").write_bytes(truncated())


def left_alone(place: Path) -> None:
    (place / "epoch_1").mkdir()
    (place / "epoch_1" / "a.png").write_bytes(b"\x89PNG")


def of_a_layout_that_must_be_named(place: Path) -> None:
    (place / "global_step100").mkdir()
    (place / "global_step100" / "mp_rank_00_model_states.pt").write_bytes(torch_zip())


def a_link(place: Path) -> None:
    (place / "epoch_1.pth").symlink_to("/nowhere/epoch_1.pth")


def our_pointer(place: Path) -> None:
    (place / "last_ckpt").write_text("/data/run/epoch_7.pth\n")


def an_unreadable_pointer(place: Path) -> None:
    (place / "last_ckpt").write_bytes(b"\0\0\0\0")


def a_pointer_of_a_framework(place: Path) -> None:
    (place / "latest_checkpointed_iteration.txt").write_text("500")


def a_link_to_the_latest(place: Path) -> None:
    (place / "latest.pth").symlink_to("epoch_7.pth")


def another_name(place: Path) -> None:
    (place / "ckpt_000100.pt").write_bytes(torch_zip())


def a_directory_by_another_name(place: Path) -> None:
    (place / "state").mkdir()
    (place / "state" / "trainer_state.json").write_text('{"global_step": 5}')


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (incomplete, "epoch_1.pth is incomplete ("),
        (young, "; ask again in "),
        (left_alone, "epoch_1 has a checkpoint's name, and is left alone (a directory without any known marker)"),
        (of_a_layout_that_must_be_named, "--layout deepspeed"),
        (a_link, "epoch_1.pth has a checkpoint's name, and is left alone (a symlink"),
        (our_pointer, "last_ckpt names epoch_7.pth, and no complete checkpoint is there"),
        (an_unreadable_pointer, "last_ckpt names nothing that can be read"),
        (a_pointer_of_a_framework, "latest_checkpointed_iteration.txt names "),
        (a_link_to_the_latest, "latest.pth names epoch_7.pth"),
        (another_name, "ckpt_000100.pt looks like a checkpoint, by none of the known names"),
        (a_directory_by_another_name, "state looks like a checkpoint"),
    ],
    ids=lambda each: each.__name__ if callable(each) else "",
)
def test_what_could_be_a_checkpoint_or_knows_of_one_is_a_doubt_that_is_named(
    made: Callable[[Path], None], said: str, work_dir: Path, ckptd: Ckptd
) -> None:
    made(work_dir)
    for options in ((), ("--json",)):
        done = ckptd("latest", work_dir, *options)
        assert (done.returncode, done.stdout) == (DOUBT, "")
        assert said in done.stderr
        assert f"`ckptd plan {work_dir}`" in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_one_that_is_open_for_writing_is_a_doubt(work_dir: Path, ckptd: Ckptd) -> None:
    Builder(work_dir)("epoch_1.pth")
    with holding_open(work_dir / "epoch_1.pth", "r+b"):
        done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert "open for writing" in done.stderr


def hdf5(size_bytes: int = 96) -> bytes:
    head = b"\x89HDF\r\n\x1a\n" + bytes([0, 0, 0, 0, 0, 8, 8, 0]) + struct.pack("<HHI", 4, 16, 0)
    return (head + struct.pack("<QQQQ", 0, 2**64 - 1, size_bytes, 2**64 - 1)).ljust(size_bytes, b"x")


@pytest.mark.parametrize(
    "names",
    [
        ("weights.01-0.90.h5", "weights.02-0.55.h5"),
        ("weights.05-0.21.h5",),
        ("weights.05-0.21-1.33.h5", "weights.06-0.19-1.31.h5"),
        ("model.h5",),
    ],
)
def test_hdf5_by_a_name_of_several_numbers_is_a_doubt(names: tuple[str, ...], work_dir: Path, ckptd: Ckptd) -> None:
    Builder(work_dir)(*names, content=hdf5())
    done = ckptd("latest", work_dir)
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert "--template" in done.stderr or "--layout keras" in done.stderr


def test_data_in_hdf5_is_none(work_dir: Path, ckptd: Ckptd) -> None:
    Builder(work_dir)("train.h5", "features_1.h5", "features_2.h5", content=hdf5())
    assert ckptd("latest", work_dir).returncode == NOTHING


@pytest.mark.parametrize(
    ("there", "template"),
    [
        (("ckpt_000100.pt",), "ckpt_{}.pt"),
        (("ckpt_100.pt",), "ckpt-{:06d}.pth"),
        (("CKPT100.pt",), "ckpt_{}.pt"),
        (("model_1.pt", "model_2.pt"), "modle_{}.pt"),
        (("epoch_3.pth",), "model_{}.pth"),
        (("weights.01-0.90.h5", "weights.02-0.55.h5"), "weights.{epoch}-{val_loss:.3f}.h5"),
        (("weights.01-0.90.h5",), "weights.{epoch}-{val_loss:.3f}.h5"),
    ],
)
def test_beside_a_template_that_may_be_mistyped_it_is_a_doubt(
    there: tuple[str, ...], template: str, work_dir: Path, ckptd: Ckptd
) -> None:
    Builder(work_dir)(*there, content=hdf5() if there[0].endswith("h5") else torch_zip())
    done = ckptd("latest", work_dir, "--template", template)
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert there[0] in done.stderr or "look like one series" in done.stderr


def test_what_is_asked_for_by_its_name_is_all_that_counts(work_dir: Path, ckptd: Ckptd) -> None:
    (work_dir / "pretrained.pth").write_bytes(torch_zip())
    (work_dir / "epoch_1").mkdir()
    done = ckptd("latest", work_dir, "--template", "epoch_{}.pth")
    assert (done.returncode, done.stdout) == (NOTHING, "")


@pytest.mark.parametrize("closed", ["the work dir", "its parent", "all it has", "the newest"])
def test_what_cannot_be_read_is_a_doubt(closed: str, somebody: Somebody, ckptd: Ckptd) -> None:
    parent = somebody.place / "runs"
    place = parent / "a"
    place.mkdir(parents=True)
    Builder(place)(*epochs(1, 2))
    somebody.owns(parent)
    shut = {"the work dir": [place], "its parent": [parent], "the newest": [place / "epoch_2.pth"]}
    for path in shut.get(closed, list(place.iterdir())):
        path.chmod(0o000)
    done = ckptd("latest", place, user=somebody)
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert "Permission denied" in done.stderr
    if closed == "the newest":
        assert f"{place}/epoch_2.pth: cannot be read: Permission denied. It is newer than epoch_1.pth" in done.stderr


def test_an_older_one_that_cannot_be_read_is_no_doubt(somebody: Somebody, ckptd: Ckptd) -> None:
    place = somebody.place / "run"
    place.mkdir()
    Builder(place)(*epochs(1, 2))
    somebody.owns(place)
    (place / "epoch_1.pth").chmod(0o000)
    done = ckptd("latest", place, user=somebody)
    assert (done.returncode, done.stdout) == (0, f"{place}/epoch_2.pth\n")


@pytest.mark.parametrize("at", ["the work dir", "above it"])
def test_a_link_that_leads_nowhere_is_a_doubt(at: str, tmp_path: Path, ckptd: Ckptd) -> None:
    (tmp_path / "scratch").symlink_to(tmp_path / "not mounted")
    done = ckptd("latest", tmp_path / "scratch" if at == "the work dir" else tmp_path / "scratch" / "runs" / "a")
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert f"{tmp_path}/scratch leads nowhere" in done.stderr


@pytest.mark.parametrize("exists", [True, False])
def test_a_file_system_that_should_be_mounted_and_is_not_is_a_doubt(
    exists: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = tmp_path / "scratch disk"
    (point / "run").mkdir(parents=True) if exists else point.mkdir()
    fstab = tmp_path / "fstab"
    fstab.write_text(f"# what is mounted\n\nserver:/x {str(point).replace(' ', chr(92) + '040')} nfs defaults 0 0\n")
    monkeypatch.setattr(absence, "_FSTAB", str(fstab))
    with pytest.raises(DoubtError, match="scratch disk is not mounted"):
        latest_or_why(point / "run")
    fstab.write_text(f"server:/x {tmp_path}/elsewhere nfs defaults 0 0\n/dev/root / ext4 defaults 0 1\n")
    assert latest_or_why(point / "run")[0] is None


def latest_or_why(place: Path) -> tuple[Path | None, str]:
    from ckptd.api import latest_or_why
    from ckptd.core.policy import Policy

    return latest_or_why(place, Policy())


def test_what_is_below_a_mount_on_demand_is_a_doubt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mounts, fstab = tmp_path / "mounts", tmp_path / "fstab"
    mounts.write_text(f"20 1 8:1 / / rw - ext4 /dev/sda rw\n21 20 0:9 / {tmp_path} rw - autofs systemd-1 rw\n")
    fstab.write_text("")
    monkeypatch.setattr(mounts_of_the_kernel, "MOUNTS", str(mounts))
    monkeypatch.setattr(absence, "_FSTAB", str(fstab))
    with pytest.raises(DoubtError, match="mounted on demand"):
        latest_or_why(tmp_path / "project" / "run")


def test_a_damaged_one_that_is_newest_does_not_hide_a_complete_one(work_dir: Path, ckptd: Ckptd) -> None:
    Builder(work_dir)(*epochs(1))
    Builder(work_dir)("epoch_2.pth", content=truncated())
    a_pass(work_dir)
    assert ckptd("latest", work_dir).stdout == f"{work_dir}/epoch_1.pth\n"


# --- trouble of other kinds -------------------------------------------------------------------------------------


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_path_that_cannot_be_printed_is_a_doubt(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-m", "ckptd", "latest", work_dir], stdout=full, stderr=subprocess.PIPE,
                              env=environment(), check=False)  # fmt: skip
    assert done.returncode == DOUBT


@pytest.mark.parametrize("broken", ["api.py", "cli/commands.py", "passes/surveyor.py", "passes/absence.py"])
def test_a_bug_of_ours_is_a_doubt(broken: str, work_dir: Path, tmp_path: Path) -> None:
    """What starts anew where Python fails with 1 would start anew because of a half upgraded installation."""
    shutil.copytree(Path(errors.__file__).parent, tmp_path / "ckptd", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "ckptd" / broken).write_text("raise ValueError('half an upgrade')")
    done = subprocess.run([sys.executable, "-m", "ckptd", "latest", work_dir], cwd=tmp_path, text=True,
                          capture_output=True, env=environment(), check=False)  # fmt: skip
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert "half an upgrade" in done.stderr


_APART = """
import os, sys, time
from ckptd.disk import apart
apart.PATIENCE_S = float(sys.argv[1])
def run():
    {does}
sys.exit(apart.answer_of(run))
"""


def run_apart(does: str, *, patience_s: float = 20.0) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _APART.format(does=does), str(patience_s)], capture_output=True,
                          text=True, env=environment(), timeout=60, check=False)  # fmt: skip


def test_a_disk_that_does_not_answer_is_given_up_and_nobody_waits_for_who_hangs(tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    done = run_apart(f"open({str(gate)!r})", patience_s=0.3)
    assert (done.returncode, done.stdout) == (DOUBT, "")
    assert done.stderr == "error: ckptd 0.3: the disk has not answered for 0 s. See to it, and ask again\n"
    with open(gate, "w"):  # so that it ends
        pass


def test_what_is_said_apart_is_passed_on_with_the_code() -> None:
    done = run_apart("print('x' * 200_000); print('a warning', file=sys.stderr); sys.exit(5)")
    assert (done.returncode, done.stdout, done.stderr) == (5, "x" * 200_000 + "\n", "a warning\n")


@pytest.mark.parametrize(("does", "said"), [
    ("os.kill(os.getpid(), 9)", "error: ckptd 20.0: the process that looked was killed"),
    ("raise MemoryError('none left')", "MemoryError: none left"),
])  # fmt: skip
def test_who_ends_otherwise_than_by_itself_is_a_doubt(does: str, said: str) -> None:
    done = run_apart(does)
    assert (done.returncode, done.stdout, done.stderr.splitlines()[-1]) == (DOUBT, "", said)


# --- where Python itself would exit with 1 ----------------------------------------------------------------------


@pytest.mark.parametrize(("closed", "code"), [("2>&-", 0), ("<&- 2>&-", 0), (">&-", DOUBT), (">&- 2>&-", DOUBT)])
def test_a_stream_that_is_closed_is_no_answer(closed: str, code: int, with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    command = f'exec "{sys.executable}" -m ckptd latest "{work_dir}" {closed}'
    done = subprocess.run(["bash", "-c", command], stdout=subprocess.PIPE, env=environment(), check=False)
    assert (done.returncode, done.stdout) == (code, b"" if code else os.fsencode(work_dir / "epoch_1.pth") + b"\n")


@pytest.mark.parametrize("content", ["x = 1", "raise RuntimeError('mine')"])
@pytest.mark.parametrize("module", ["signal", "json", "click"])
def test_a_module_of_the_job_that_bears_the_name_of_one_that_we_need_is_no_answer(
    module: str, content: str, with_checkpoints: Builder, tmp_path: Path
) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / f"{module}.py").write_text(content)
    env = environment()
    env["PYTHONPATH"] = os.pathsep.join(filter(None, (str(tmp_path / "job"), env.get("PYTHONPATH"))))
    done = subprocess.run(
        [sys.executable, "-m", "ckptd", "latest", work_dir], capture_output=True, env=env, check=False
    )
    assert done.returncode in (0, DOUBT), done.stderr


# --- a copy -------------------------------------------------------------------------------------------------------


def copied(place: Path, names: list[str]) -> None:
    """As `cp -r` does: one after the other, in the order of their names as text."""
    for at, name in enumerate(sorted(names)):
        (place / name).write_bytes(torch_zip())
        os.utime(place / name, ns=(10**18 + at * 10**9,) * 2)


def test_of_a_copy_the_highest_step_is_named_with_a_word_and_nothing_goes(work_dir: Path, ckptd: Ckptd) -> None:
    copied(work_dir, epochs(*range(1, 13)))
    for _ in range(2):  # met for the first time, and then
        done = ckptd("latest", work_dir)
        assert (done.returncode, done.stdout) == (0, f"{work_dir}/epoch_12.pth\n")
        assert "those of a copy" in done.stderr
        assert "epoch_9.pth is the last" in done.stderr
        assert a_pass(work_dir, max_keep=1).pruned == ()


def test_once_a_save_is_seen_a_copy_is_a_run_like_any_other(work_dir: Path, ckptd: Ckptd) -> None:
    copied(work_dir, epochs(*range(1, 13)))
    a_pass(work_dir)
    (work_dir / "epoch_13.pth").write_bytes(torch_zip())
    a_pass(work_dir)
    done = ckptd("latest", work_dir)
    assert (done.stdout, done.stderr) == (f"{work_dir}/epoch_13.pth\n", "")


@pytest.mark.parametrize("how", ["a pointer names the last", "resumed", "the times are equal", "cut short"])
def test_what_is_no_copy_goes_by_its_times(how: str, work_dir: Path, ckptd: Ckptd) -> None:
    names, expected = epochs(8, 9, 10, 11), "epoch_9.pth"
    copied(work_dir, names)
    if how == "a pointer names the last":
        (work_dir / "last_ckpt").write_text(f"{work_dir}/epoch_9.pth\n")
    elif how == "resumed":  # and 8 was saved once more after all others
        os.utime(work_dir / "epoch_8.pth", ns=(10**18 + 10**10,) * 2)
        expected = "epoch_8.pth"
    elif how == "the times are equal":
        for name in names:
            os.utime(work_dir / name, ns=(10**18, 10**18))
        expected = "epoch_11.pth"
    else:
        (work_dir / "epoch_11.pth").write_bytes(truncated())
        os.utime(work_dir / "epoch_11.pth", ns=(10**18 + 10**9,) * 2)
        expected = "epoch_10.pth"  # the highest of what is whole
    assert ckptd("latest", work_dir).stdout == f"{work_dir}/{expected}\n"
