"""A command made by a process that can be left behind, for it asks a disk that may not answer.

Who asks a file system that does not answer hangs in the kernel, beyond any signal, and so does who waits for him: a job
script, by `$(ckptd latest ...)`. Imported before all else, so that the two processes have little to share.
"""

from __future__ import annotations

import gc
import io
import os
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

PATIENCE_S = 120.0
DOUBT = 6  # as errors.DoubtError


def answer_of(run: Callable[[], object]) -> int:
    """Make `run`, which ends by sys.exit, in a process of its own; pass on what it prints, and return its exit code.

    That is DOUBT, with a message, where it does not end in time, or not by itself. For a process with one thread.
    """
    _fill_closed()
    try:
        if sys.stdout is None:
            raise OSError("stdout is closed, so that no answer can be given")
        said = _said_by(run)
        if said is None:
            raise OSError(f"the disk has not answered for {PATIENCE_S:.0f} s. See to it, and ask again")
        if not said:
            raise OSError("the process that looked was killed")
        head, _, text = said.partition(b"\n")
        code, length = map(int, head.split())
        if sys.stderr is not None:
            sys.stderr.buffer.write(text[length:])
            sys.stderr.flush()
        sys.stdout.buffer.write(text[:length])
        sys.stdout.flush()
    except OSError as error:
        if sys.stderr is not None:
            sys.stderr.write(f"error: ckptd {' '.join(sys.argv[1:])}: {error.strerror or error}\n")
        return DOUBT
    return code


def _fill_closed() -> None:
    """Let no descriptor of ours take the place of stdin, stdout or stderr where we were started without."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(fd)


def _said_by(run: Callable[[], object]) -> bytes | None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.close(reader)
        _be_apart(run, writer)
    os.close(writer)
    said = _read(reader)
    os.close(reader)
    if said is not None:
        os.waitpid(child, 0)
    return said


def _be_apart(run: Callable[[], object], writer: int) -> NoReturn:
    """Be the process that may hang: it holds nothing open for whose end somebody waits."""
    gc.disable()  # it lives too briefly for that
    code = DOUBT
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(nowhere, fd)
        out, err = sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
        try:
            run()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else DOUBT
        except Exception:  # noqa: BLE001 - not even a bug of ours may tell a job to start anew
            sys.excepthook(*sys.exc_info())
        printed, told = (text.getvalue().encode(errors="surrogateescape") for text in (out, err))
        with os.fdopen(writer, "wb") as pipe:
            pipe.write(b"%d %d\n" % (code, len(printed)) + printed + told)
    finally:
        os._exit(0)


def _read(reader: int) -> bytes | None:
    """All that comes until the end; None if that has not come in time."""
    said = bytearray()
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
    try:
        while more := os.read(reader, 1 << 16):
            said += more
    except TimeoutError:
        return None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
    return bytes(said)


def _give_up(_number: int, _frame: FrameType | None) -> None:
    raise TimeoutError
