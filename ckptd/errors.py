"""What an operator can mend: one line each, with what, where and what to do.

Anything that is not a CkptdError is our bug, and shows its trace.
"""

from __future__ import annotations


class CkptdError(Exception):
    """Something went wrong that a person can put right; `exit_code` is what a command ends with."""

    exit_code = 1


class UsageError(CkptdError):
    """The request itself makes no sense: a bad template, a `max_keep` of 0."""

    exit_code = 2


class RefusedError(CkptdError):
    """Nothing was done, because doing it could harm: a planted symlink, several owners."""

    exit_code = 4


class OwnedError(CkptdError):
    """Another ckptd owns the work dir."""

    exit_code = 5


class CommandError(CkptdError):
    """The command behind `--` cannot be started; the exit code is a shell's."""

    exit_code = 127

    def __init__(self, message: str, exit_code: int = exit_code) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class DoubtError(CkptdError):
    """There is, or may be, a checkpoint to resume from, and none can be named."""

    exit_code = 6


class NoRoomError(CkptdError):
    """The disk is too full for even the few kB that ckptd keeps in a work dir."""


class ReplacedError(CkptdError):
    """The work dir is not the directory it was, and this process cannot follow to the new one."""

    exit_code = 75


def one_line(text: str) -> str:
    """`text` as one line that moves no cursor: names and pointers are data, and may hold whatever a file name may."""
    return text if text.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def why(error: Exception) -> str:
    """What went wrong; of what the system refused, in its words."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
