"""A look at a disk that may not answer, made by a process that can be left behind.

Who asks a file system that does not answer hangs in the kernel, beyond any signal, and so does who waits for him.
"""

from __future__ import annotations

import io
import json
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NamedTuple


class Answer(NamedTuple):
    """What a call has ended with, and what it has printed."""

    code: int
    out: str
    err: str


def answer_of(call: Callable[[], int], *, patience_s: float) -> Answer | None:
    """What `call` answers, made in a process of its own; None if it does not within `patience_s`, and is left behind.

    Raises OSError if that process cannot be made, or was killed. For the main thread of a process that has no other.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_apart(call, writer)
    os.close(writer)
    said = _read(reader, patience_s)
    os.close(reader)
    if said is None:
        return None
    os.waitpid(child, 0)
    if not said:
        raise ChildProcessError("the process that looked was killed")
    return Answer(*json.loads(said))


def _be_apart(call: Callable[[], int], writer: int) -> None:
    """Be the process that may hang: it holds nothing open for whose end somebody waits."""
    code = os.EX_SOFTWARE
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        out, err = sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        code = call()
        with os.fdopen(writer, "w") as pipe:
            json.dump(Answer(code, out.getvalue(), err.getvalue()), pipe)
    finally:
        os._exit(code)


def _read(reader: int, patience_s: float) -> bytes | None:
    """All that comes until the end; None if that has not come in time."""
    said = bytearray()
    before = signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, patience_s)
    try:
        while more := os.read(reader, 1 << 16):
            said += more
    except TimeoutError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    return bytes(said)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError
