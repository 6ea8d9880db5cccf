"""The command behind `--`: started, signalled, waited for, and with it all that it leaves behind.

Of what it starts this process is told too: as the first one of a container, or as a subreaper, it becomes the parent of
those whose own has ended. So it reaps them, and knows when none is left.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence

from ..errors import CommandError, why

_PR_SET_CHILD_SUBREAPER = 36


class Job:
    """Runs `command`. ended: told the exit code, as a shell would give it, by a thread.

    Reaps every child of this process, whoever started it. Raises CommandError if the command cannot be started.
    """

    def __init__(self, command: Sequence[str], ended: Callable[[int], None]) -> None:
        if signal.getsignal(signal.SIGCHLD) == signal.SIG_IGN:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # whoever started us did not care; we want its exit code
        self._ended = ended
        self._adopts = _become_subreaper()
        self._lock = threading.Lock()  # between its end and a signal, which may not go to the next of its number
        self._none_left = threading.Event()
        try:
            self._process = subprocess.Popen(list(command))
        except OSError as error:
            raise _cannot_start(command[0], error) from error
        threading.Thread(target=self._wait, name="ckptd-job", daemon=True).start()

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        with self._lock:
            if self._process.returncode is None:
                os.kill(self._process.pid, number)

    def has_left_nobody(self, timeout_s: float) -> bool:
        """Whether it has ended, and with it everyone that it has started; given a moment for that.

        False where that cannot be known: another host's processes, and those of a Slurm step, are not ours.
        """
        if not self._adopts or "SLURM_JOB_ID" in os.environ:
            return False
        return self._none_left.wait(timeout_s)

    def _wait(self) -> None:
        """Reap whoever ends, until nobody is left."""
        while True:
            try:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                self._none_left.set()
                return
            if ended is None:
                continue
            if ended.si_pid != self._process.pid:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(ended.si_pid, 0)
                continue
            with self._lock:
                code = self._process.wait()
            self._ended(128 - code if code < 0 else code)


def let_orphans_go() -> None:
    """As the first process, without a job: nobody waits for those handed to us, so the kernel is to forget them."""
    if os.getpid() == 1 and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)


def _become_subreaper() -> bool:
    """Have those handed to us who lose their parent; whether that is so."""
    if os.getpid() == 1:
        return True
    import ctypes  # here, because it is slow to import

    try:
        return bool(ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)
    except (OSError, AttributeError):
        return False


def _cannot_start(name: str, error: OSError) -> CommandError:
    """With a shell's codes: 127 for what is not there, 126 for what is and cannot be executed."""
    reason, code = why(error), CommandError.exit_code
    if not isinstance(error, FileNotFoundError):
        code = 126
    elif os.path.lexists(name) and "/" in name:
        reason, code = "what its first line names as its interpreter, or it links to, does not exist", 126
    if error.errno == errno.ENOEXEC:
        reason = "not a program, and no script that begins with #!"
    return CommandError(f"{name}: cannot be started: {reason}", code)
