"""The commands: parse, call, print. What they do is done elsewhere, and imported when a command needs it."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from .. import __version__
from ..core.policy import Policy
from ..errors import CkptdError, DoubtError, one_line, why
from . import completion
from .log import log_to_stderr, say, say_exactly
from .options import Duration, layout_option, policy_options, template_option, verify_option

_EPILOG = """\b
Exit codes: 0 done; 1 failed, or nothing found; 2 wrong use; 3 some deletions failed or were refused by the
system; 4 refused for safety; 5 another ckptd owns the work dir; 6 from `latest`: there may be a checkpoint, but
none can be named; 75 the work dir was replaced under systemd; 126 the command behind -- cannot be executed;
127 it was not found.

\b
Every option of the policy is also an environment variable: --max-keep 3 is CKPTD_MAX_KEEP=3. What ckptd did goes
to stderr, what was asked for goes to stdout."""

_CONTEXT = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


@click.group(context_settings=_CONTEXT, epilog=_EPILOG)
@click.version_option(__version__, prog_name="ckptd", message="%(prog)s %(version)s")
def cli() -> None:
    """Keep the right training checkpoints and delete the rest.

    Only complete, durable checkpoints count, and what `last_ckpt` names is never deleted. Begin with
    `ckptd plan WORK_DIR --max-keep 3`, which changes nothing.
    """


print_json = click.option("--json", "json_", is_flag=True, help="Print JSON.")


def _named(_ctx: click.Context, _param: click.Parameter, value: Any) -> Any:
    """What was given. A variable of a script that is empty names no work dir, and not the one it happens to run in."""
    if "" in ((value,) if isinstance(value, str) else value):
        raise click.BadParameter("an empty name. Give the directory that holds the checkpoints, or . for this one")
    return value


_work_dirs = click.argument(
    "work_dirs", nargs=-1, required=True, metavar="WORK_DIR...", callback=_named,
    shell_complete=completion.directories,
)  # fmt: skip
work_dir_argument = click.argument(
    "work_dir", metavar="WORK_DIR", callback=_named, shell_complete=completion.directories
)


def _excludes(ctx: click.Context, param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The patterns that were given. In a variable they may be for other commands than this one."""
    if not ctx.params.get("recursive"):
        if value and param.name and ctx.get_parameter_source(param.name) is click.core.ParameterSource.COMMANDLINE:
            raise click.UsageError("--exclude is about what lies below WORK_DIR: give --recursive too", ctx)
        return ()
    return value


def _recursive(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options for what lies below WORK_DIR."""
    exclude = click.option("--exclude", "excludes", multiple=True, metavar="PATTERN", envvar="CKPTD_EXCLUDE",
                           callback=_excludes, help="With --recursive: leave out the directories with such a name, "
                           "or such a path below WORK_DIR, and all in them; repeatable.")  # fmt: skip
    recursive = click.option("--recursive", is_flag=True, envvar="CKPTD_RECURSIVE", is_eager=True,
                             help="Take every directory below WORK_DIR that holds a checkpoint.")  # fmt: skip
    return recursive(exclude(command))


def _check_alone(policy: Policy, work_dirs: Sequence[str], *, recursive: bool) -> None:
    """Refuse for several work dirs what is one's alone: a pointer elsewhere, and the room on a disk."""
    if not recursive and len(work_dirs) < 2:
        return
    if "/" in policy.pointer:
        raise click.UsageError(f"--pointer {policy.pointer}: one file cannot point into several work dirs. Name one, "
                               "or give a plain file name")  # fmt: skip
    if policy.min_free is not None:
        raise click.UsageError("--min-free is for one work dir: of several, each would free all that is missing on the "
                               "disk. Name one, or give each its --max-bytes")  # fmt: skip


class _WithJob(click.Command):
    """A command whose words after `--` are another command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            at = args.index("--")
            args, job = args[:at], args[at + 1 :]
            if not job and not ctx.resilient_parsing:  # else a shell asks what it could be
                raise click.UsageError("no command after `--`", ctx)
            ctx.meta[completion.JOB] = job
        return super().parse_args(ctx, args)


@cli.command(cls=_WithJob, options_metavar="[POLICY]", epilog="After `--`: a command to run beside the watch.")
@_work_dirs
@policy_options
@_recursive
@click.option("--dry-run", is_flag=True, help="Say what would be pruned, change nothing.")
@click.option("--scan-interval", "scan_interval_s", type=Duration(minimum_s=0.1), metavar="S",
              envvar="CKPTD_SCAN_INTERVAL",
              help="Look at least so often. Default: 60s on local file systems, 10s on others.")  # fmt: skip
def watch(
    work_dirs: tuple[str, ...],
    recursive: bool,
    excludes: tuple[str, ...],
    dry_run: bool,
    scan_interval_s: float | None,
    **policy: Any,
) -> None:
    """Look after work dirs, now and after every save, until stopped.

    Keeps the pointer on the newest complete checkpoint, and prunes what the policy does.

    With `-- COMMAND...`: run the command, forward signals to it, make a last pass when it ends, and exit with its
    code. A work dir that does not exist yet is waited for. SIGHUP looks again at once; SIGTERM ends.
    """
    log_to_stderr()
    from ..daemon.service import Service

    made = Policy(**policy)
    _check_alone(made, work_dirs, recursive=recursive)
    command = click.get_current_context().meta.get(completion.JOB, ())
    service = Service(work_dirs, made, recursive, dry_run, scan_interval_s, command, excludes)
    raise click.exceptions.Exit(service.run())


@cli.command(options_metavar="[POLICY]")
@click.argument("work_dirs", nargs=-1, metavar="WORK_DIR...", callback=_named, shell_complete=completion.directories)
@policy_options
@_recursive
@click.option("--verbose", "-v", is_flag=True, help="Begin with the policy in force.")
@click.option("--simulate", metavar="RUN",
              help="Show what the policy would leave of a whole run, such as 'epoch_{}.pth:1..300' or "
                   "'iter_{}.pth:1000..90000:1000', and the most files there at once. Needs no WORK_DIR.")  # fmt: skip
@print_json
def plan(
    work_dirs: tuple[str, ...],
    recursive: bool,
    excludes: tuple[str, ...],
    verbose: bool,
    simulate: str | None,
    json_: bool,
    **policy: Any,
) -> None:
    """Show what would be kept and pruned, and why. Changes nothing; `prune` does exactly this."""
    log_to_stderr()
    from .. import api
    from ..text import render
    from ..workdir.workdir import become_owner

    made = Policy(**policy)
    _check_alone(made, work_dirs, recursive=recursive)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    if verbose and not json_:
        say(render.policy_text(made))
    if simulate is not None:
        from ..core import simulate as simulating
        from ..text import simulation

        if work_dirs:
            raise click.UsageError("--simulate is about a run to come: name no WORK_DIR")
        done = simulating.simulate(simulating.Run.from_text(simulate), made)
        if json_:
            click.echo(json.dumps(simulation.as_json(done)))
        else:
            for line in simulation.as_lines(done, width=width):
                say(line)
        return
    if not work_dirs:
        raise click.UsageError("Missing argument 'WORK_DIR...'.")
    become_owner(work_dirs)
    if recursive:
        from . import recursive as below

        raise click.exceptions.Exit(below.plan(work_dirs, made, excludes, json_=json_, width=width))
    for work_dir in work_dirs:
        survey = api.plan(work_dir, made)
        if json_:
            click.echo(json.dumps(render.as_json(survey, os.path.abspath(work_dir))))
        else:
            for line in render.as_table(survey, work_dir, time.time(), width=width):
                say(line)


@cli.command(options_metavar="[POLICY]")
@_work_dirs
@policy_options
@_recursive
def prune(work_dirs: tuple[str, ...], recursive: bool, excludes: tuple[str, ...], **policy: Any) -> None:
    """Make one pass, then exit.

    Makes the newest durable, moves the pointer, then deletes what the policy prunes.
    """
    log_to_stderr()
    from .. import api
    from ..workdir.workdir import become_owner

    made = Policy(**policy)
    _check_alone(made, work_dirs, recursive=recursive)
    become_owner(work_dirs)
    if recursive:
        from . import recursive as below

        raise click.exceptions.Exit(below.prune(work_dirs, made, excludes))
    codes = []
    for work_dir in work_dirs:
        try:
            report = api.prune(work_dir, made)
        except CkptdError as error:
            if len(work_dirs) == 1:
                raise
            logging.getLogger("ckptd").error("%s", error)
            codes.append(error.exit_code)
        else:
            codes.append(report.exit_code)
            log = logging.getLogger("ckptd")
            where = "" if len(work_dirs) == 1 else f"{work_dir}: "
            for advice in report.survey.advice:
                log.warning("%s%s", where, advice)
            log.info("%s%s", where, report.counts)
    raise click.exceptions.Exit(max(codes))


@cli.command()
@work_dir_argument
@template_option("Name of a checkpoint, in place of the known names; repeatable.")
@layout_option
@click.option("--pointer", default="last_ckpt", show_default=True, metavar="NAME", envvar="CKPTD_POINTER",
              help="Name of the pointer file, none, or an absolute path.")  # fmt: skip
@print_json
def latest(work_dir: str, json_: bool, **policy: Any) -> None:
    """Print the path of the newest complete checkpoint.

    Exits 1, with nothing on stdout, if there is certainly nothing to resume from: no checkpoint at all, or no work dir
    yet. Exits 6 if there is something, or may be, and none can be named: one that is incomplete, still being written
    or cannot be read, or a disk that does not answer. Then a job must not start anew.
    """
    log_to_stderr()
    from .. import api
    from ..workdir.workdir import become_owner

    made = Policy(**policy)
    try:
        become_owner([work_dir])
        path, word = api.latest_or_why(work_dir, made)
    except CkptdError as error:
        if error.exit_code != CkptdError.exit_code:
            raise
        raise DoubtError(str(error)) from error
    except OSError as error:
        raise DoubtError(f"{error.filename or work_dir}: {why(error)}") from error
    if word:
        logging.getLogger("ckptd").warning("%s", word)
    if json_:
        click.echo(json.dumps({"work_dir": os.path.abspath(work_dir), "latest": str(path) if path else None}))
    elif path is not None:
        say_exactly(str(path))
    raise click.exceptions.Exit(0 if path is not None else 1)


@cli.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH...", shell_complete=completion.files)
@verify_option
@print_json
def verify(paths: tuple[str, ...], verify: str, json_: bool) -> None:
    """Say whether checkpoints are complete, and why.

    Exits 1 if one is not.
    """
    log_to_stderr()
    from .. import api

    code = 0
    for path in paths:
        try:
            with _progress(path) as progress:
                verdict = api.verify(path, content=verify == "full", progress=progress)
        except CkptdError as error:
            logging.getLogger("ckptd").error("%s", error)
            code = 1
            continue
        good = verdict.state.whole and verdict.known
        code = code if good else 1
        if json_:
            row = {"path": os.path.abspath(path), "state": verdict.state.value, "evidence": verdict.evidence}
            click.echo(json.dumps({**row, "known": verdict.known}))
        else:
            say(f"{path}: {verdict.state.value if verdict.known else 'no checkpoint'} ({verdict.evidence})")
    raise click.exceptions.Exit(code)


@contextlib.contextmanager
def _progress(path: str) -> Iterator[Callable[[int], None] | None]:
    """How far a file was read, on a terminal; None elsewhere."""
    if not sys.stderr.isatty() or not os.path.isfile(path):
        yield None
        return
    with click.progressbar(length=os.path.getsize(path), label=one_line(f"reading {path}"), file=sys.stderr) as bar:
        yield bar.update


@cli.command(options_metavar="[POLICY]")
@work_dir_argument
@policy_options
@click.option("--user", is_flag=True, help="For a user's own service manager.")
def unit(work_dir: str, user: bool, **policy: Any) -> None:
    """Print the finished systemd unit for a work dir."""
    from ..systemd.unit import render as render_unit
    from ..text.render import options_of

    made = Policy(**policy)
    elsewhere = os.path.dirname(made.pointer)
    command = shutil.which("ckptd", path=os.path.dirname(sys.executable)) or os.path.abspath(sys.argv[0])
    if not user and os.path.exists(command) and os.stat(command).st_uid != 0:
        log_to_stderr()
        logging.getLogger("ckptd").warning(
            "%s: root would run it, and another user can change it; see `make install`", command
        )
    click.echo(
        render_unit(Path(work_dir), options_of(made), command=command, user=user, also_writable=elsewhere), nl=False
    )
