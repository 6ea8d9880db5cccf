"""No name, and nothing else that is read from a disk, moves a cursor on a terminal or forges a line in a log."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Builder, Watching, dcp_metadata, environment, epochs, torch_zip

Ckptd = Callable[..., subprocess.CompletedProcess[str]]
Watch = Callable[..., contextlib.AbstractContextManager[Watching]]

# A title, a line that is deleted and written anew, one forged outright, C1's, and letters that run the other way.
EVIL = "x\x1b]0;owned\x07\x1b[2K\rerror: gone\n<3>pruned epoch_9.pth\x9b8m\u202egpj"
ONE = ("--max-keep", "1", "--interval", "1", "--trash-ttl", "1h")


def unclean(text: str) -> str:
    """The first line with something in it that is not for the eye; "" if all are clean."""
    return next((ascii(line) for line in text.split("\n") if not line.replace("\udcff", "\ufffd").isprintable()), "")


def forged(text: str) -> bool:
    return any(line.startswith(("error: gone", "<3>pruned epoch_9")) for line in text.replace("\r", "\n").split("\n"))


def evil_run(place: Path) -> Path:
    """A work dir in which every name that somebody can choose, and every text, is evil."""
    place.mkdir(parents=True)
    evil = EVIL.replace("\n", " ")
    build = Builder(place)
    build(*epochs(1, 2, 3))
    (place / "iter_1").mkdir()
    (place / "iter_1" / ".metadata").write_bytes(dcp_metadata({f"{evil}.distcp": 300}))
    (place / "iter_2").mkdir()
    weights = {"weight_map": {"w": f"model-{evil}.safetensors"}}
    (place / "iter_2" / "model.safetensors.index.json").write_text(json.dumps(weights))
    (place / evil).symlink_to("epoch_1.pth")
    (place / "latest_checkpointed_iteration.txt").write_text(f"{evil}\n")
    (place / "last_ckpt").write_text(f"/{evil}/epoch_2.pth\n")
    (place / "last_checkpoint").write_text(f"/{evil}/{evil}\n")
    (place / ".ckptd" / "schedules").mkdir(parents=True)
    (place / ".ckptd" / "schedules" / f"{evil}.json").write_text("{")
    (place / ".ckptd" / "state.json").write_text(json.dumps({"version": evil}))
    return place


def edit_journal(run: Path) -> None:
    """Give what is in the trash evil names and reasons, as whoever owns the work dir can."""
    journal = run / ".ckptd" / "journal.jsonl"
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    for number, line in enumerate(lines):
        line.update(name=f"{number}{EVIL}", reason=EVIL, at=EVIL)
    journal.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with one such work dir in it, whose own name is evil too, as far as a work dir's can be."""
    evil_run(tmp_path / "root" / EVIL.replace("\n", " "))
    return tmp_path / "root"


@pytest.mark.parametrize(("command", "how"), [
    *((command, "RUN") for command in ("plan", "prune", "latest", "restore", "history", "verify", "pin", "unpin")),
    *((command, "ROOT") for command in ("plan", "prune")),
])  # fmt: skip
def test_what_a_command_prints_is_clean(command: str, how: str, root: Path, ckptd: Ckptd) -> None:
    (run,) = root.iterdir()
    where = ["--recursive", root] if how == "ROOT" else [run]
    if command in ("restore", "history"):
        ckptd("prune", run, *ONE)
        edit_journal(run)
    for words in {
        "plan": [[*where, *ONE, "-v"], [*where, *ONE, "--layout", "megatron"]],
        "prune": [[*where, *ONE]],
        "latest": [[f"{run}/none"], [run, "--pointer", f"a/{run.name}"]],
        "restore": [where, [*where, "--all"], [*where, run.name]],
        "history": [where],
        "verify": [[run / "epoch_1.pth", run / "iter_1", run / "iter_2", run / "none", run]],
        "pin": [[run / "epoch_1.pth"], [run / "none"]],
        "unpin": [[run / "epoch_1.pth"]],
    }[command]:
        if command == "unpin":
            ckptd("pin", *words)
        done = ckptd(command, *words)
        said = done.stdout + done.stderr
        assert said
        assert "Traceback" not in said
        assert not unclean(said)
        assert not forged(said)


@pytest.mark.parametrize("args", [
    ["plan", "RUN", "EVIL", "--max-keep", "EVIL"],
    ["latest", "RUN", "EVIL"],
    ["EVIL"],
    ["plan", "--EVIL"],
    ["plan", "RUN", "--keep-best", "EVIL"],
    ["plan", "RUN", "--template", "EVIL"],
    ["plan", "RUN", "--max-bytes", "EVIL"],
    ["plan", "RUN", "--simulate", "EVIL"],
    ["watch", "EVIL/none", "--", "EVIL"],
    ["unit", "EVIL"],
    ["verify", "EVIL"],
    ["prune", "EVIL"],
], ids=" ".join)  # fmt: skip
def test_what_was_typed_is_quoted_clean(args: list[str], root: Path, ckptd: Ckptd) -> None:
    (run,) = root.iterdir()
    done = ckptd(*(arg.replace("RUN", str(run)).replace("EVIL", EVIL) for arg in args))
    assert done.returncode in (1, 2, 127)
    assert done.stderr
    assert not unclean(done.stderr)
    assert not forged(done.stderr)


@pytest.mark.parametrize("how", ["RUN", "ROOT"])
@pytest.mark.parametrize("dry", [True, False], ids=["dry run", ""])
def test_the_log_and_the_status_of_a_watch_are_clean(
    how: str, dry: bool, root: Path, tmp_path: Path, watching: Watch
) -> None:
    (run,) = root.iterdir()
    where = ["--recursive", root] if how == "ROOT" else [run]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        env = environment(NOTIFY_SOCKET=str(tmp_path / "notify"))
        with watching(*where, *ONE, *(["--dry-run"] if dry else []), env=env) as watch:
            watch.heard("would prune epoch_2.pth" if dry else "pruned epoch_2.pth")
            while not (message := manager.recv(65536).decode()).startswith("READY=1"):
                pass
            assert watch.stop() == 0
    assert not unclean("\n".join(watch.lines))
    assert not forged("\n".join(watch.lines))
    assert not unclean(message)


def test_json_and_what_scripts_read_are_exact(root: Path, ckptd: Ckptd) -> None:
    (run,) = root.iterdir()
    plan = ckptd("plan", run, "--json").stdout
    assert not unclean(plan)
    assert json.loads(plan)["work_dir"] == str(run)
    latest = [sys.executable, "-m", "ckptd", "latest", str(run)]
    done = subprocess.run(latest, env=environment(), stdout=subprocess.PIPE, check=True)
    assert done.stdout == os.fsencode(f"{run}/epoch_3.pth\n")
    assert json.loads(ckptd("latest", run, "--json").stdout)["latest"] == f"{run}/epoch_3.pth"


def test_a_bar_on_a_terminal_has_a_clean_label(tmp_path: Path) -> None:
    path = tmp_path / EVIL
    path.write_bytes(torch_zip(b"w" * 5_000_000))
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "ckptd", "verify", str(path)]
    done = subprocess.run(command, env=environment(TERM="xterm"), stdout=subprocess.PIPE, stderr=theirs)
    os.close(theirs)
    shown = b""
    with contextlib.suppress(OSError):  # EIO: the other side is closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    assert done.returncode == 0
    assert b"reading" in shown
    assert b"owned\\x07" in shown
    assert b"\x07" not in shown
    assert b"\x1b]" not in shown
