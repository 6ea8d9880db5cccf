"""`ckptd` with its system calls traced, failed, delayed or deadly: strace on forks of a process that has it imported.

A fork costs milliseconds where a new interpreter costs a fifth of a second, and its first traced call is ckptd's own:
so every call of a pass can be tried. The number of a call is its place among the calls of that name.
"""

from __future__ import annotations

import json
import os
import queue
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.conftest import environment, eventually

MUTATING = frozenset({
    "write", "pwrite64", "fsync", "fdatasync", "ftruncate", "fallocate", "fchmod", "fchown", "fchmodat", "fchownat",
    "mkdir", "mkdirat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat",
    "unlink", "unlinkat", "rmdir", "utimensat", "fsetxattr",
})  # fmt: skip
LOOKING = frozenset({
    "open", "openat", "stat", "lstat", "fstat", "newfstatat", "statx", "access", "faccessat2", "readlink",
    "readlinkat", "read", "pread64", "lseek", "getdents64", "flock", "fcntl", "statfs", "fstatfs", "fadvise64",
})  # fmt: skip

_ZYGOTE = """
import json, os, signal, sys
import ctypes, encodings.cp437, zipfile
import ckptd.api, ckptd.cli, ckptd.daemon.service, ckptd.passes.reconcile, ckptd.passes.reliance, ckptd.text.render
from ckptd.passes.background import Background

def child(order):
    said = os.open(order["said"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0), os.dup2(said, 1), os.dup2(said, 2)
    if order["one_thread"]:
        # Jobs run where they are handed over, and nobody looks again because reading took long: then every call has its
        # number. What other processes have open, looked for all through /proc, would change those from run to run.
        assert Background.submit
        Background.submit = lambda self, key, job, device: job()
        assert ckptd.passes.reliance._STALE_S < 60
        ckptd.passes.reliance._STALE_S = 60.0
        listdir = os.listdir
        os.listdir = lambda path=".": [] if path == "/proc" else listdir(path)
    sys.argv = ["ckptd", *order["args"]]
    signal.alarm(60)  # nobody waits for longer
    os.kill(os.getpid(), signal.SIGSTOP)  # until strace is there
    ckptd.cli.main()

for line in sys.stdin:
    pid = os.fork()
    if pid == 0:
        code = 70
        try:
            child(json.loads(line))
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stderr.flush(), sys.stdout.flush()
            os._exit(code)
    status = os.waitpid(pid, os.WUNTRACED)[1]
    print(pid, flush=True)
    if os.WIFSTOPPED(status):
        status = os.waitpid(pid, 0)[1]
    print(os.waitstatus_to_exitcode(status), flush=True)
"""

_CALL = re.compile(r"(?:[0-9.]+ )?([a-z0-9_]+)\(")
_TIMES = re.compile(r"[0-9]{13}-[0-9]+")
_DESCRIPTOR = re.compile(r"[0-9]+<")
_RESULT = re.compile(r"\)? += (-?[0-9]|\?|0x).*$")
_CONTENTS = ("read(", "pread64(", "write(", "pwrite64(", "readlink(")
_SHOWN = 12
T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Call:
    """One system call of a run: the `at`-th of its name. `text` is what it did, the work dir's path taken out."""

    name: str
    at: int
    text: str

    @property
    def mutates(self) -> bool:
        return self.name in MUTATING or (self.name == "openat" and "O_CREAT" in self.text)

    def with_(self, what: str) -> str:
        """The option of strace that does `what` to this call."""
        return f"inject={self.name}:{what}:when={self.at}"


@dataclass
class Ran:
    """How a run went: its exit code (negative: the signal), what it said, and its calls that name the work dir."""

    code: int
    said: str
    calls: list[Call] = field(default_factory=list)
    injected: list[str] = field(default_factory=list)


class Traced:
    """A run under way, from its first own call on."""

    def __init__(self, zygote: subprocess.Popen[str], log: Path, said: Path, order: dict[str, Any], e: Iterable[str]):
        self._zygote, self.log, self._said = zygote, log, said
        zygote.stdin.write(json.dumps({**order, "said": str(said)}) + "\n")
        zygote.stdin.flush()
        self.pid = int(zygote.stdout.readline())
        self._code: int | None = None
        self.attach(e)
        os.kill(self.pid, signal.SIGCONT)

    def attach(self, e: Iterable[str]) -> None:
        """Trace its main thread, with these options of strace, from now on."""
        options = [word for each in e for word in ("-e", each)]
        command = ["strace", "-y", "-ttt", "-s", "120", "-o", str(self.log), *options, "-p", str(self.pid)]
        self.strace = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        attached = self.strace.stderr.readline()
        assert "attached" in attached, (attached, self.said())

    def said(self) -> str:
        return self._said.read_text()

    def detach(self) -> None:
        """End the tracing, and with it the faults; what is traced goes on."""
        self.strace.terminate()
        self._end_of_strace()

    def wait(self) -> int:
        """Wait for the end; returns the exit code, or the signal that ended it, negative."""
        if self._code is None:
            self._code = int(self._zygote.stdout.readline())
            self._end_of_strace()
        return self._code

    def ended(self) -> bool:
        return self.strace.poll() is not None

    def stopped(self) -> None:
        """Wait until an injected signal has stopped it."""
        eventually(lambda: "stopped by SIGSTOP" in self.log.read_text().partition("SI_KERNEL}")[2], what="the stop")

    def stop(self) -> int:
        """Ask it to end, as a service manager does."""
        os.kill(self.pid, signal.SIGTERM)
        return self.wait()

    def discard(self) -> None:
        if self._code is None:
            with suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait()

    def _end_of_strace(self) -> None:
        self.strace.wait()
        self.strace.stderr.close()


class Strace:
    """Runs ckptd under strace. Safe to use from several threads, each with a process of its own to fork from."""

    def __init__(self, place: Path) -> None:
        self._place, self._number = place, 0
        self._idle: queue.SimpleQueue[tuple[int, subprocess.Popen[str]]] = queue.SimpleQueue()
        self.workers = min(4, os.cpu_count() or 1)
        self._zygotes = [self._zygote() for _ in range(self.workers)]
        for each in enumerate(self._zygotes):
            self._idle.put(each)

    @contextmanager
    def running(self, *args: str | Path, e: Iterable[str] = (), one_thread: bool = True) -> Iterator[Traced]:
        number, zygote = self._idle.get()
        log, said = self._place / f"trace{number}", self._place / f"said{number}"
        said.unlink(missing_ok=True)
        traced = Traced(zygote, log, said, {"args": [*map(str, args)], "one_thread": one_thread}, e)
        try:
            yield traced
        finally:
            traced.discard()
            self._idle.put((number, zygote))

    def run(self, *args: str | Path, work_dir: Path, e: Sequence[str] = (), trace: Iterable[str] = ()) -> Ran:
        """Run one command to its end. With nothing to inject: list its calls."""
        names = sorted(trace) or sorted(MUTATING | LOOKING)
        with self.running(*args, e=[f"trace={','.join('?' + name for name in names)}", *e]) as traced:
            code = traced.wait()
            lines = traced.log.read_text().splitlines()
            calls = calls_of(lines, work_dir)
            return Ran(code, traced.said(), calls, [line for line in lines if "(INJECTED)" in line])

    def close(self) -> None:
        for zygote in self._zygotes:
            zygote.stdin.close()
            zygote.wait()
            zygote.stdout.close()

    def each(self, do: Callable[[T], R], what: Sequence[T]) -> list[R]:
        """Do it to each, several at a time; the first failure is raised once all are done."""
        with ThreadPoolExecutor(self.workers) as pool:
            return list(pool.map(do, what))

    @staticmethod
    def _zygote() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", _ZYGOTE]
        return subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=Path.cwd()
        )


def calls_of(lines: Iterable[str], work_dir: Path) -> list[Call]:
    """The calls of a trace that name the work dir or anything in it, each with its number."""
    counts: dict[str, int] = {}
    found = []
    for line in lines:
        match = _CALL.match(line)
        if match:
            name = match[1]
            counts[name] = counts.get(name, 0) + 1
            if str(work_dir) in line and "/proc/self/" not in line and "../.ckptd." not in line:
                found.append(Call(name, counts[name], line[match.start(1) :].replace(str(work_dir), "")))
    return found


def steady(text: str) -> str:
    """What a call was asked to do: without its result, contents, and what else differs from run to run."""
    text = _RESULT.sub("", text)
    text = _DESCRIPTOR.sub("<", _TIMES.sub("ITEM", text.partition(", {")[0].partition(", 0x")[0]))
    return text.partition(">, ")[0].rstrip(">") if text.startswith(_CONTENTS) else text


def none(found: Iterable[Iterable[str]]) -> None:
    """Fail with what was found wrong, one a line."""
    lines = [line for each in found for line in each]
    if lines:
        shown = [line[:500] for line in lines[:_SHOWN]]
        pytest.fail(f"{len(lines)} found, the first of them:\n" + "\n".join(shown), pytrace=False)


def needs(*commands: str) -> None:
    """Skip what cannot run here, by name; where everything was to be installed, that is a failure."""
    absent = [command for command in commands if shutil.which(command) is None]
    if absent:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"not installed: {', '.join(absent)}")
