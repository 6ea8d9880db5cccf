"""What the service manager hears, over a real socket; and that nobody listening is never an error."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptd.systemd import notify

CALLS: list[Callable[[], None]] = [
    lambda: notify.ready("watching"),
    lambda: notify.status("watching"),
    notify.reloading,
    notify.stopping,
    notify.ping,
]


@pytest.fixture(autouse=True)
def _no_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (
        "NOTIFY_SOCKET",
        "WATCHDOG_USEC",
        "WATCHDOG_PID",
        "SYSTEMD_EXEC_PID",
        "JOURNAL_STREAM",
        "INVOCATION_ID",
    ):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(params=["a path", "an abstract name"])
def manager(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.setblocking(False)
        if request.param == "a path":
            monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
            listener.bind(str(tmp_path / "notify"))
        else:
            name = f"ckptd-test-{secrets.token_hex(8)}"
            monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
            listener.bind(f"\0{name}")
        yield listener


def heard(listener: socket.socket) -> list[str]:
    return listener.recv(4096).decode().split("\n")


def test_ready_brings_its_status_along(manager: socket.socket) -> None:
    notify.ready("watching /runs/a")
    assert heard(manager) == ["READY=1", "STATUS=watching /runs/a"]


def test_a_status_is_one_line_whatever_is_in_it(manager: socket.socket) -> None:
    notify.status("waiting for /runs/a\nREADY=1\r\nand \udcff")
    assert heard(manager) == ["STATUS=waiting for /runs/a READY=1 and \\udcff"]


def test_reloading_says_since_when(manager: socket.socket) -> None:
    notify.reloading()
    first, second = heard(manager)
    assert first == "RELOADING=1"
    assert re.fullmatch(r"MONOTONIC_USEC=\d+", second)


def test_stopping(manager: socket.socket) -> None:
    notify.stopping()
    assert heard(manager) == ["STOPPING=1"]


def test_a_ping_is_due_at_half_the_limit_and_extends_the_start_by_all_of_it(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    notify.ping()
    assert heard(manager) == ["WATCHDOG=1", "EXTEND_TIMEOUT_USEC=3000000"]
    assert notify.watchdog_interval_s() == 1.5


@pytest.mark.parametrize(
    ("usec", "pid"),
    [
        pytest.param(None, None, id="the unit has no watchdog"),
        pytest.param("3000000", "1", id="it waits for another process"),
        pytest.param("0", None, id="zero"),
        pytest.param("soon", None, id="no number"),
    ],
)
def test_nobody_waits_for_pings(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch, usec: str | None, pid: str | None
) -> None:
    for name, value in (("WATCHDOG_USEC", usec), ("WATCHDOG_PID", pid)):
        if value is not None:
            monkeypatch.setenv(name, value)
    notify.ping()
    assert notify.watchdog_interval_s() is None
    with pytest.raises(BlockingIOError):
        heard(manager)


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    "address",
    [
        pytest.param(None, id="no manager"),
        pytest.param("", id="an empty name"),
        pytest.param("relative", id="a relative name"),
        pytest.param("/nowhere/notify", id="a socket that is gone"),
        pytest.param("/" + "n" * 300, id="a name too long for a socket"),
        pytest.param("@" + "n" * 300, id="an abstract name too long for a socket"),
        pytest.param("/nul\udcff", id="a name that is not UTF-8"),
    ],
)
def test_nobody_listening_is_no_error(
    monkeypatch: pytest.MonkeyPatch, address: str | None, call: Callable[[], None]
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "3000000")
    if address is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", address)
    call()


def test_a_listener_that_reads_late_still_hears(manager: socket.socket) -> None:
    filler = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    filler.setblocking(False)
    with filler, contextlib.suppress(BlockingIOError):
        while True:
            filler.sendto(b"STATUS=filler", manager.getsockname())
    speaker = threading.Thread(target=notify.ready, args=("watching",))
    speaker.start()
    manager.setblocking(True)
    while (message := heard(manager)) == ["STATUS=filler"]:
        pass
    speaker.join()
    assert message == ["READY=1", "STATUS=watching"]


def test_a_dead_listener_is_no_error(manager: socket.socket) -> None:
    manager.close()
    notify.ready("watching")


def test_a_listener_that_does_not_read_holds_us_up_for_a_moment_only(
    manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(notify, "PATIENCE_S", 0.001)
    for number in range(100):
        notify.status(f"pass {number}")
    assert heard(manager) == ["STATUS=pass 0"]


@pytest.mark.parametrize(
    ("expected", "environment"),
    [
        pytest.param(False, {}, id="a shell"),
        pytest.param(False, {"INVOCATION_ID": "0" * 32, "SYSTEMD_EXEC_PID": "1"}, id="a shell in a desktop's terminal"),
        pytest.param(True, {"SYSTEMD_EXEC_PID": "{pid}"}, id="the main process of a service"),
        pytest.param(True, {"NOTIFY_SOCKET": "/run/systemd/notify"}, id="a service that says when it is ready"),
    ],
)
def test_a_service_knows_that_it_is_one(
    monkeypatch: pytest.MonkeyPatch, expected: bool, environment: dict[str, str]
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value.format(pid=os.getpid()))
    assert expected == notify.under_systemd()


@pytest.mark.parametrize(
    ("expected", "stream"),
    [
        pytest.param(True, "{dev}:{ino}", id="stderr is the journal"),
        pytest.param(False, "{dev}:1", id="stderr was sent elsewhere"),
        pytest.param(False, "", id="empty"),
        pytest.param(False, "journal", id="nonsense"),
        pytest.param(False, None, id="no journal"),
    ],
)
def test_priorities_are_for_the_journal_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: bool, stream: str | None
) -> None:
    with (tmp_path / "stderr").open("w") as stderr:
        found = os.fstat(stderr.fileno())
        monkeypatch.setattr("sys.stderr", stderr)
        if stream is not None:
            monkeypatch.setenv("JOURNAL_STREAM", stream.format(dev=found.st_dev, ino=found.st_ino))
        assert expected == notify.journal_stream()


def test_a_closed_stderr_is_not_the_journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:1")
    stderr = (tmp_path / "stderr").open("w")
    stderr.close()
    monkeypatch.setattr("sys.stderr", stderr)
    assert notify.journal_stream() is False
