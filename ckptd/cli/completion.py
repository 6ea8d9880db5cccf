"""What the shell offers at <TAB> where click knows no answer: directories, files, layouts, and what is in a trash."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import click

from ..core.layouts import LAYOUTS
from ..errors import CkptdError

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

JOB = "ckptd.daemon.job"  # where a context keeps the words after `--`


def directories(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Work dirs and roots; after `--` what a shell completes at the start of a line, and behind that."""
    job = ctx.meta.get(JOB)
    if job is None:
        return _left_to_the_shell(incomplete, "dir")
    commands = [] if job or "/" in incomplete or not incomplete else sorted(set(_commands(incomplete)))
    return _words(commands) if commands else _left_to_the_shell(incomplete, "file")


def files(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """Checkpoints: files and directories, as the shell completes them."""
    return _left_to_the_shell(incomplete, "file")


def layouts(_: click.Context, __: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the layouts."""
    return _words([layout.name for layout in LAYOUTS if layout.name.startswith(incomplete)])


def in_trash(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """What could be restored in the work dir that the line names."""
    from ..passes.restore import restorable
    from ..workdir.workdir import become_owner

    work_dir = os.path.expanduser(ctx.params.get("work_dir") or "")
    names: list[str] = []
    with contextlib.suppress(CkptdError, OSError):  # a prompt is no place for it; the command will say it
        become_owner([work_dir])
        names = [each["name"] for each in restorable(work_dir)]
    return _words([name for name in dict.fromkeys(names) if name.startswith(incomplete) and name.isprintable()])


def _commands(begin: str) -> Iterator[str]:
    for place in os.get_exec_path():
        with contextlib.suppress(OSError), os.scandir(place) as entries:
            yield from (entry.name for entry in entries if entry.name.startswith(begin))


def _words(words: list[str]) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(word) for word in words]


def _left_to_the_shell(incomplete: str, kind: str) -> list[CompletionItem]:
    from click.shell_completion import CompletionItem

    return [CompletionItem(incomplete, type=kind)]
