"""Tell the service manager how we are: ready, reloading, stopping, alive.

Never an error: where nobody listens, or the listener is dead, every call does nothing.
"""

from __future__ import annotations

import os
import sys
import time

from ..errors import one_line

# A manager that is starting a whole system may take a moment to read; a message of `ready` must not be lost.
PATIENCE_S = 5.0


def ready(status: str) -> None:
    """The start, or the reload, is done."""
    _send("READY=1", _status(status))


def status(text: str) -> None:
    """One line for `systemctl status`."""
    _send(_status(text))


def reloading() -> None:
    """A SIGHUP was taken; `ready` must follow."""
    _send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """We end, and want no more pings."""
    _send("STOPPING=1")


def ping() -> None:
    """A sign of life, due every `watchdog_interval_s`; it also extends the time for a start."""
    limit_usec = _watchdog_usec()
    if limit_usec is not None:
        _send("WATCHDOG=1", f"EXTEND_TIMEOUT_USEC={limit_usec}")


def watchdog_interval_s() -> float | None:
    """Seconds from one ping to the next, half of what the unit allows; None if nobody waits for them."""
    limit_usec = _watchdog_usec()
    return None if limit_usec is None else limit_usec / 2 / 1_000_000


def under_systemd() -> bool:
    """Are we a service that its manager starts again?

    Not by INVOCATION_ID, which every shell in a desktop's terminal has inherited from the terminal's service.
    """
    return os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid()) or "NOTIFY_SOCKET" in os.environ


def journal_stream() -> bool:
    """Does stderr go to the journal, which reads a priority such as <4> from the start of a line?"""
    device, colon, inode = os.environ.get("JOURNAL_STREAM", "").partition(":")
    if not colon or sys.stderr is None:
        return False
    try:
        found = os.fstat(sys.stderr.fileno())
    except (OSError, ValueError):  # closed, or no file at all
        return False
    return (device, inode) == (str(found.st_dev), str(found.st_ino))


def _watchdog_usec() -> int | None:
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    usec = os.environ.get("WATCHDOG_USEC", "")
    return int(usec) if usec.isascii() and usec.isdigit() and int(usec) > 0 else None


def _status(text: str) -> str:
    return "STATUS=" + one_line(" ".join(text.splitlines()))


def _send(*fields: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    if address.startswith("@"):  # an abstract name
        address = "\0" + address[1:]
    import socket  # here, because most commands have nobody to tell, and it is slow to import

    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notifier:
            notifier.settimeout(PATIENCE_S)
            notifier.connect(address)  # a connected socket can wait for room
            notifier.send("\n".join(fields).encode("utf-8", "replace"))
    except OSError:
        return  # gone, stuck, or longer than an address may be: not our business
