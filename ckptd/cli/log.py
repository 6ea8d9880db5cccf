"""What goes to a terminal or a log: one line a message, in which no name can move a cursor or begin another line.

Not cleaned so: JSON, which escapes by itself, and what scripts read.
"""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import NoReturn

import click

from ..errors import one_line
from ..systemd.notify import journal_stream


class _Line(logging.Formatter):
    """One line a message: a priority for the journal, else a word for what a person should notice."""

    _PRIORITIES = (
        (logging.ERROR, "<3>", "error: "),
        (logging.WARNING, "<4>", "warning: "),
        (logging.INFO, "<6>", ""),
    )

    def __init__(self, *, journal: bool) -> None:
        super().__init__("%(message)s")
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        text = one_line(super().format(record))
        for level, priority, word in self._PRIORITIES:
            if record.levelno >= level:
                return (priority if self._journal else word) + text
        return ("<7>" if self._journal else "") + text


def log_to_stderr() -> None:
    """Send what ckptd says to stderr; CKPTD_DEBUG=1 adds why nothing was done."""
    log = logging.getLogger("ckptd")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(journal=journal_stream()))
    log.handlers = [handler]
    log.setLevel(logging.DEBUG if os.environ.get("CKPTD_DEBUG") else logging.INFO)
    log.propagate = False


def say(text: str = "") -> None:
    """Print a line of what was asked for, on stdout."""
    click.echo(one_line(text))


def say_exactly(text: str) -> None:
    """Print what a script reads. (`click.echo` takes colours out, which could be part of a name.)"""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def fail(text: str, code: int) -> NoReturn:
    """Say what happened, as the last line, and end."""
    sys.stderr.write(("<3>" if journal_stream() else "error: ") + one_line(text) + "\n")
    sys.exit(code)


def fail_as_click_does(error: click.ClickException) -> NoReturn:
    """Say what was wrong with the words of the command, and end."""
    error.message = one_line(error.message)  # type: ignore[misc]  # it may quote them
    text = io.StringIO()
    error.show(file=text)
    for line in text.getvalue().splitlines():
        click.echo(one_line(line), err=True)
    sys.exit(error.exit_code)
