"""What goes to stderr: one line a message, with a priority where the journal reads it."""

from __future__ import annotations

import logging
import os
import sys
from typing import NoReturn

from ..notify import journal_stream


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
        text = super().format(record).replace("\n", "\\n")
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


def fail(text: str, code: int) -> NoReturn:
    """Say what happened, as the last line, and end."""
    sys.stderr.write(("<3>" if journal_stream() else "error: ") + text + "\n")
    sys.exit(code)
