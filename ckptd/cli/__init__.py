"""The command line. The only part of ckptd that imports click."""

from __future__ import annotations

import io
import os
import sys

import click

from ..errors import CkptdError, why
from . import hands  # noqa: F401 - its commands are in the group once it is imported
from .commands import cli
from .log import fail, fail_as_click_does

__all__ = ["main"]


def main() -> None:
    """Run the command; a CkptdError is one line and an exit code, anything else is our bug and shows its trace."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # a path is printed as the bytes that it is
    try:
        code = cli.main(standalone_mode=False, prog_name="ckptd")
    except click.ClickException as error:
        fail_as_click_does(error)
    except click.Abort:
        sys.exit(130)
    except CkptdError as error:
        fail(str(error), error.exit_code)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        fail(f"{error.filename or 'ckptd'}: {why(error)}", 1)
    sys.exit(code if isinstance(code, int) else 0)  # click returns the code of an early exit
