"""The commands for what is done by hand: pins, what is in the trash, what was done."""

from __future__ import annotations

import json
import logging
import os
from typing import Any

import click

from ..core.plan import PRUNE, Decision
from ..core.policy import Policy
from ..errors import RefusedError
from . import completion
from .commands import cli, print_json, work_dir_argument
from .log import log_to_stderr, say
from .options import policy_options


@cli.command()
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", shell_complete=completion.files)
def pin(checkpoints: tuple[str, ...]) -> None:
    """Keep checkpoints whatever the policy says, until they are unpinned.

    A pin is an empty file NAME.keep beside the checkpoint.
    """
    log_to_stderr()
    from ..workdir.pins import pin as make
    from ..workdir.workdir import become_owner

    become_owner([os.path.dirname(os.path.abspath(path)) for path in checkpoints])
    for path in checkpoints:
        say(f"pinned {path}" if make(path) else f"{path} is pinned already")


@cli.command(options_metavar="[POLICY]")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", shell_complete=completion.files)
@policy_options
def unpin(checkpoints: tuple[str, ...], **policy: Any) -> None:
    """Let the policy decide again, and say what that means for each.

    Give the policy of the ckptd that looks after the work dir, as options or as variables.
    """
    log_to_stderr()
    from .. import api
    from ..workdir.pins import unpin as remove
    from ..workdir.workdir import become_owner

    made, code = Policy(**policy), 0
    become_owner([os.path.dirname(os.path.abspath(path)) for path in checkpoints])
    for path in checkpoints:
        if not remove(path):
            logging.getLogger("ckptd").error("%s is not pinned", path)
            code = 1
            continue
        place, name = os.path.split(os.path.abspath(path))
        try:
            decisions = api.plan(place, made).decisions
        except RefusedError as error:
            say(f"unpinned {path}: it stays ({error})")
            continue
        say(f"unpinned {path}: {_fate(next((d for d in decisions if name in _files_of(d)), None))}")
    raise click.exceptions.Exit(code)


def _files_of(decision: Decision) -> list[str]:
    return [file.name for file in decision.checkpoint.entry.files]


def _fate(decision: Decision | None) -> str:
    """What the next pass does with a checkpoint, in words."""
    if decision is None:
        return "not among the checkpoints that this policy looks at, so it stays"
    does = "the next pass prunes it" if decision.decision == PRUNE else "it stays"
    return f"{does} ({'; '.join(decision.reasons)})"


@cli.command()
@work_dir_argument
@click.argument("names", nargs=-1, metavar="[NAME...]", shell_complete=completion.in_trash)
@click.option("--all", "all_", is_flag=True, help="Restore all that is in the trash.")
@print_json
def restore(work_dir: str, names: tuple[str, ...], all_: bool, json_: bool) -> None:
    """Bring pruned checkpoints back, and pin them.

    Without names: list what is in the trash.
    """
    log_to_stderr()
    from ..passes import restore as restoring
    from ..workdir.workdir import become_owner

    become_owner([work_dir])
    if not names and not all_:
        for each in restoring.restorable(work_dir):
            if json_:
                click.echo(json.dumps(each))
            else:
                say(f"{each['name']}  pruned {each['at']}  until {each['until']}")
        return
    restored, failed = restoring.restore(work_dir, names, everything=all_)
    for name in restored:
        if json_:
            click.echo(json.dumps({"name": name, "restored": True}))
        else:
            say(f"restored {name}, and pinned it ({name}.keep)")
    for name, why in failed.items():
        logging.getLogger("ckptd").error("could not restore %s: %s", name, why)
    raise click.exceptions.Exit(1 if failed else 0)


@cli.command()
@work_dir_argument
@print_json
def history(work_dir: str, json_: bool) -> None:
    """List what was pruned, when and why, oldest first."""
    log_to_stderr()
    from ..text import render
    from ..text.human import human_bytes
    from ..workdir import journal
    from ..workdir.workdir import WorkDir, become_owner

    become_owner([work_dir])
    with WorkDir(work_dir) as work:
        own_fd = work.open_own()
        lines = journal.read(own_fd) if own_fd is not None else []
    if json_:
        click.echo(json.dumps(lines))
    elif lines:
        rows = [("WHEN", "DID", "CHECKPOINT", "SIZE", "REASON")]
        rows += [
            (
                str(x.get("at")),
                str(x.get("did")),
                x["name"],
                human_bytes(x["size_bytes"]) if "size_bytes" in x else "",
                str(x.get("reason") or ""),
            )
            for x in lines
        ]
        for line in render.columns(rows, right=(3,)):
            say(line)
