"""What the tests beside real frameworks share: training jobs as processes, and a `ckptd watch` that can be frozen.

Knows no framework: each test module names its own, and brings its own training script.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from ..conftest import PATIENCE_S, Watching, environment, write_to_disk

HERE = Path(__file__).parent


def pytest_configure() -> None:
    write_to_disk()


@pytest.fixture(scope="session")
def framework() -> Callable[[str, str], None]:
    """Ask for a framework in exactly one version: without it the test is skipped, and in CI it fails."""

    def ask(name: str, version: str) -> None:
        try:
            found = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found = "not installed"
        if found != version:
            message = f"needs {name} {version} ({found}): install it as tests/requirements-real.txt says"
            if os.environ.get("CI") == "true":
                pytest.fail(message, pytrace=False)
            pytest.skip(message)

    return ask


class Watch(Watching):
    """A running `ckptd watch` of one work dir."""

    def __init__(self, work_dir: Path, *options: str) -> None:
        super().__init__((work_dir, *options))
        self.work_dir = work_dir

    def pause(self) -> None:
        """Stop it in the middle of whatever it does, and return when it stands still."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)

    def unpause(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def until(self, read: Callable[[], Any], expected: Any) -> None:
        """Look until `read()` is what is expected; fail with what it was instead, at once if ckptd has ended."""
        deadline = time.monotonic() + PATIENCE_S
        while (found := read()) != expected and time.monotonic() < deadline:
            assert self.process.poll() is None, f"ckptd watch ended\n{self.log}"
            time.sleep(0.01)
        assert found == expected, f"not within {PATIENCE_S} s"

    def make_a_pass(self) -> None:
        """Return when a whole pass has begun and ended after this call.

        A pass with nothing to do is silent, so it is given something: a pointer to put back. That comes before
        the pass deletes anything; so when a second one puts it back, the first has ended.
        """
        pointer = self.work_dir / "last_ckpt"
        for _ in range(2):
            pointer.unlink()
            self.process.send_signal(signal.SIGHUP)
            self.until(pointer.exists, True)

    def stop_well(self) -> None:
        """End it as a service manager does; it must end well."""
        assert self.stop() == 0, self.log

    @property
    def log(self) -> str:
        return "\n".join(self.lines)


@pytest.fixture
def watch() -> Iterator[Callable[..., Watch]]:
    """Start `ckptd watch WORK_DIR OPTIONS...`. After the test it is gone, and its log shown if the test failed."""
    watches: list[Watch] = []

    def start(work_dir: Path, *options: str) -> Watch:
        watches.append(Watch(work_dir, *options))
        return watches[-1]

    yield start
    for number, watch in enumerate(watches, 1):
        watch.discard()
        print(f"--- ckptd watch, {number} of {len(watches)}\n{watch.log}")


class Trainer:
    """A training script of this folder; with `serve.py`, the other end, it forks a process for each request.

    It is started when it is first asked for something, and once: what it imports takes seconds.
    """

    def __init__(self, script: str) -> None:
        self.script = script
        self.process: subprocess.Popen[str] | None = None

    @contextmanager
    def begin(self, **request: Any) -> Iterator[Iterator[Any]]:
        """Ask for something, to hear what is said meanwhile. When the `with` ends, it must have ended well."""
        if self.process is None:
            self._start()
        try:
            self.tell(json.dumps(request))
            lines = self._lines()
            yield lines
            for _ in lines:  # what nobody wanted to hear
                pass
        except BaseException:
            self.discard()  # who knows where it stands; the next request gets a new one
            raise

    def do(self, **request: Any) -> list[Any]:
        """Ask for something, and return what was said when it has ended."""
        with self.begin(**request) as lines:
            return list(lines)

    def tell(self, line: str = "") -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()

    def discard(self) -> None:
        if self.process is None:
            return
        os.killpg(self.process.pid, signal.SIGKILL)
        with self.process:  # closes its pipes and waits for it
            self.process = None

    def _start(self) -> None:
        stubs = os.pathsep.join(filter(None, [str(HERE / "stubs"), os.environ.get("PYTHONPATH")]))
        self.process = subprocess.Popen(
            [sys.executable, str(HERE / self.script)],
            # One thread is all that a model of three numbers needs, and a process that forks may have.
            env=environment(PYTHONPATH=stubs, OMP_NUM_THREADS="1"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,  # to end it together with what it has forked
        )

    def _lines(self) -> Iterator[Any]:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said = json.loads(line)
            if "ended" in said:
                assert said["ended"] == 0, f"{self.script} ended with {said['ended']}"
                return
            yield said
        raise AssertionError(f"{self.script} is gone")


@pytest.fixture(scope="session")
def trainer() -> Iterator[Callable[[str], Trainer]]:
    """The `Trainer` of a script."""
    trainers: dict[str, Trainer] = {}

    def of(script: str) -> Trainer:
        return trainers.setdefault(script, Trainer(script))

    yield of
    for one in trainers.values():
        one.discard()
