"""What a shell offers at <TAB>, asked as click's script asks, and in a bash on a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd.core.layouts import LAYOUTS

from .conftest import PATIENCE_S, UNTRACED, Builder, Somebody, environment, epochs

Ckptd = Callable[..., subprocess.CompletedProcess[str]]


def asked(line: str, ckptd: Ckptd, *, shell: str = "bash") -> list[str]:
    """The answers to a <TAB> at the end of `line`, each `type,value`."""
    words = str(len(line.split(" ")) - 1)
    done = ckptd(env={"_CKPTD_COMPLETE": f"{shell}_complete", "COMP_WORDS": line, "COMP_CWORD": words, **UNTRACED})
    assert (done.returncode, done.stderr) == (0, "")
    return [line for line in done.stdout.splitlines() if line]


@pytest.mark.parametrize(("line", "expected"), [
    ("ckptd plan wo", ["dir,wo"]),
    ("ckptd plan runs/a ", ["dir,"]),
    ("ckptd plan --max-keep 3 wo", ["dir,wo"]),
    ("ckptd prune --recursive wo", ["dir,wo"]),
    ("ckptd watch wo", ["dir,wo"]),
    ("ckptd latest ~/wo", ["dir,~/wo"]),
    ("ckptd history wo", ["dir,wo"]),
    ("ckptd restore wo", ["dir,wo"]),
    ("ckptd unit wo", ["dir,wo"]),
    ("ckptd verify b", ["file,b"]),
    ("ckptd pin big2/", ["file,big2/"]),
    ("ckptd unpin big2/epoch_1.pth big2/ep", ["file,big2/ep"]),
    ("ckptd watch . -- ./tr", ["file,./tr"]),
    ("ckptd watch . -- ", ["file,"]),
    ("ckptd watch . -- python tr", ["file,tr"]),
    ("ckptd watch . -- python -", ["file,-"]),
    ("ckptd watch . --max-keep 3 -- no-such-command-any", ["file,no-such-command-any"]),
    ("ckptd plan --layout verl --layout torcht", ["plain,torchtitan", "plain,torchtune"]),
    ("ckptd plan --rule st", ["plain,stepped"]),
    ("ckptd la", ["plain,latest"]),
    ("ckptd restore /nowhere ep", []),
])  # fmt: skip
def test_a_shell_is_told_what_could_come(line: str, expected: list[str], ckptd: Ckptd) -> None:
    assert asked(line, ckptd) == expected


def test_all_layouts_are_offered(ckptd: Ckptd) -> None:
    assert asked("ckptd plan --layout ", ckptd) == [f"plain,{layout.name}" for layout in LAYOUTS]


def test_behind_the_dashes_commands_are_offered(ckptd: Ckptd) -> None:
    assert "plain,env" in asked("ckptd watch . -- en", ckptd)
    assert asked("ckptd watch . -- env en", ckptd) == ["file,en"]


@pytest.mark.parametrize("line", ["ckptd watch . --", "ckptd watch --", "ckptd watch . --no-such x", "ckptd plan -- "])
def test_nothing_is_printed_into_the_prompt(line: str, ckptd: Ckptd) -> None:
    asked(line, ckptd)


def test_what_is_in_the_trash_is_offered(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3), "iter_1.pth", "iter_2.pth")
    ckptd("prune", work_dir, "--max-keep", "1", "--interval", "1", "--trash-ttl", "1h")
    assert asked(f"ckptd restore {work_dir} ep", ckptd) == ["plain,epoch_1.pth", "plain,epoch_2.pth"]
    assert asked(f"ckptd restore {work_dir} epoch_1.pth it", ckptd) == ["plain,iter_1.pth"]


def test_root_looks_into_no_trash_but_as_its_owner(somebody: Somebody, ckptd: Ckptd) -> None:
    work_dir = somebody.place / "run"
    work_dir.mkdir()
    Builder(work_dir)(*epochs(1, 2))
    somebody.owns(work_dir)
    ckptd("prune", work_dir, "--max-keep", "1", "--interval", "1", "--trash-ttl", "1h")
    assert asked(f"ckptd restore {work_dir} ep", ckptd) == ["plain,epoch_1.pth"]
    closed = somebody.place / "closed"
    (closed / "trash").mkdir(parents=True)
    (work_dir / ".ckptd").rename(somebody.place / "old")
    (work_dir / ".ckptd").symlink_to(closed)
    assert asked(f"ckptd restore {work_dir} ep", ckptd) == []


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_the_other_shells_are_told_of_directories_too(shell: str, ckptd: Ckptd) -> None:
    assert "dir" in asked("ckptd plan wo", ckptd, shell=shell)[0]


# --- on a terminal ----------------------------------------------------------------------------------------------


class Bash:
    """An interactive bash that completes `ckptd` as the README says."""

    def __init__(self, place: Path) -> None:
        (place / "bin").mkdir()
        script = place / "bin" / "ckptd"
        script.write_text(f'#!/bin/sh\nexec {sys.executable} -m ckptd "$@"\n')
        script.chmod(0o755)
        self._ours, theirs = pty.openpty()
        path = f"{place}/bin:{os.environ['PATH']}"
        env = environment(PATH=path, TERM="dumb", PS1="$ ", INPUTRC="/dev/null", HOME=str(place), HISTFILE="")
        self.process = subprocess.Popen(
            ["bash", "--norc", "--noprofile", "-i"], stdin=theirs, stdout=theirs, stderr=theirs, cwd=place, env=env,
            start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self.seen = ""
        self._type('eval "$(_CKPTD_COMPLETE=bash_source ckptd)"\n')

    def completed(self, line: str) -> str:
        """What `line` becomes at a <TAB>."""
        self._type(f"{line}\t\x01echo '[' \x05 ']'\n")  # to the start of the line, and to its end
        before = len(self.seen)
        deadline = time.monotonic() + PATIENCE_S
        while "\n[ " not in (new := self.seen[before:].replace("\r", "\n")) or " ]" not in new.rpartition("\n[ ")[2]:
            assert time.monotonic() < deadline, self.seen
            if select.select([self._ours], [], [], 0.1)[0]:
                self.seen += os.read(self._ours, 65536).decode(errors="replace")
        return new.rpartition("\n[ ")[2].partition(" ]")[0].strip()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._ours)

    def _type(self, text: str) -> None:
        os.write(self._ours, text.encode())


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Bash]:
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    bash = Bash(tmp_path)
    with contextlib.closing(bash):
        yield bash


def test_in_a_bash_paths_are_completed(bash: Bash, tmp_path: Path) -> None:
    for name in ("work_dir/deeper", "other"):
        (tmp_path / name).mkdir(parents=True)
    Builder(tmp_path / "work_dir")("epoch_1.pth")
    (tmp_path / "worn").touch()
    (tmp_path / "train.sh").touch()
    assert bash.completed("ckptd plan wo") == "ckptd plan work_dir/"  # no file is a work dir
    assert bash.completed("ckptd plan work_dir/") == "ckptd plan work_dir/deeper/"
    assert bash.completed("ckptd pin work_dir/ep") == "ckptd pin work_dir/epoch_1.pth"
    assert bash.completed("ckptd verify work_dir/d") == "ckptd verify work_dir/deeper/"
    assert bash.completed("ckptd plan work_dir --layout veri") == "ckptd plan work_dir --layout veri"
    assert bash.completed("ckptd plan work_dir --layout torchtu") == "ckptd plan work_dir --layout torchtune"
    assert bash.completed("ckptd watch ./work_dir -- bas").startswith("ckptd watch ./work_dir -- bas")
    assert bash.completed("ckptd watch ./work_dir -- sh tra") == "ckptd watch ./work_dir -- sh train.sh"
    assert "Usage" not in bash.seen
    assert "rror" not in bash.seen
