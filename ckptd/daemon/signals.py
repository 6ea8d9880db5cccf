"""Signals as calls of a function, from a thread: a handler that only notes them, a pipe that the kernel's side fills.

A signal that comes just before the main thread falls asleep would wake nobody; a thread that reads the pipe does.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType


@contextlib.contextmanager
def told_to(tell: Callable[[int], None], wanted: Sequence[int], *, muted: Sequence[int] = ()) -> Iterator[None]:
    """While inside: call `tell(number)` for each of `wanted` that comes, and let `muted` ones pass without effect.

    What was ignored at the start (`nohup`, a shell's background job) stays so, for us and for whom we start. Outside
    the main thread, where Python handles no signals, this does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = {number for number in (*wanted, *muted) if signal.getsignal(number) != signal.SIG_IGN}
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def relay() -> None:
        while numbers := os.read(reader, 64):
            for number in numbers:
                if number in heard and number not in muted:
                    tell(number)

    teller = threading.Thread(target=relay, name="ckptd-signals", daemon=True)
    teller.start()
    before_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {number: signal.signal(number, _noted) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before_fd)
        os.close(writer)
        teller.join()
        os.close(reader)


def share_terminal() -> bool:
    """Whether what the terminal signals (^C, ^\\, a hang-up) reaches those whom we start without us.

    It goes to the process group in front of the terminal, whatever stdin is.
    """
    with contextlib.suppress(OSError):
        fd = os.open("/dev/tty", os.O_RDONLY | os.O_CLOEXEC | os.O_NOCTTY)
        try:
            return os.tcgetpgrp(fd) == os.getpgrp()
        finally:
            os.close(fd)
    return False


def _noted(_number: int, _frame: FrameType | None) -> None:
    """A signal is no reason to end: its number is in the pipe."""
