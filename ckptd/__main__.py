"""The command `ckptd`, which is also `python -m ckptd`. Where it cannot run, it says so in one line."""

from __future__ import annotations

import gc
import sys
from typing import NoReturn

from .python import why_not_here

_DEPENDENCIES = {"click": "click", "watchdog": "'watchdog>=7.1,<7.2'"}
_DOUBT = 6  # as errors.DoubtError
_WRONG_USE = 2  # not 1: of `latest` that means that there is nothing to resume from


def main() -> None:
    """Run the command, or say what is missing here: a job's environment holds neither its Python nor its packages."""
    reason = why_not_here("the command ckptd")
    if reason is not None:
        _fail(reason)
    try:
        if sys.argv[1:2] == ["latest"] and not {"-h", "--help"}.intersection(sys.argv):
            _answer()
        _run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        gc.freeze()  # else Python looks for cycles in all of this before it ends, a tenth of a short command's time


def _answer() -> NoReturn:
    """Run `latest`. Python ends with 1 what it cannot import or go on with, and a job would take that for an answer."""
    try:
        from .disk.apart import answer_of

        code = answer_of(_run)
    except Exception:  # noqa: BLE001 - such as a module of the job's that bears the name of one of Python's
        sys.excepthook(*sys.exc_info())
        code = _DOUBT
    sys.exit(code)


def _run() -> None:
    try:
        from .cli import main as run

        run()
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _DEPENDENCIES:
            raise
        _fail(f"the command ckptd needs {missing}, which is not installed here: `{sys.executable} -m pip install "
              f"{' '.join(_DEPENDENCIES.values())}`, or install ckptd apart; ckptd.shim works without")  # fmt: skip


def _fail(text: str) -> NoReturn:
    sys.stderr.write(f"error: {text}\n")
    sys.exit(_WRONG_USE)


if __name__ == "__main__":
    main()
