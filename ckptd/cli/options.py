"""The options that make a Policy, and their types. Each is an environment variable too, the same for every command."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from ..core.budget import Floor
from ..core.layouts import LAYOUTS
from ..core.naming import JOINT
from ..core.policy import RULES, VERIFY
from ..errors import UsageError
from .completion import layouts

_UNITS_S = {"": 1, "s": 1, "m": 60, "min": 60, "h": 3600, "d": 86400, "w": 604800}
_SIZE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([kmgtp]?)(ib|b|)", re.ASCII)
_PREFIXES = ("", "k", "m", "g", "t", "p")
_PLUS = JOINT.strip()
_SHAPE = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-z]*)", re.ASCII)


if TYPE_CHECKING:
    _Float = click.ParamType[float]
    _Int = click.ParamType[int]
else:
    _Float = _Int = click.ParamType  # no generic before click 8.5


class Duration(_Float):
    """A number of seconds, or a number with one of s, m, h, d, w. Converts to seconds."""

    name = "duration"

    def __init__(self, minimum_s: float = 0.0) -> None:
        self._minimum_s = minimum_s

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        match = _SHAPE.fullmatch(str(value).strip().lower())
        if match is None or match[2] not in _UNITS_S:
            self.fail(
                f"{value!r} is no duration: write seconds, or a number with s, m, h, d or w, such as 1h",
                param,
                ctx,
            )
        seconds = float(match[1]) * _UNITS_S[match[2]]
        if not math.isfinite(seconds) or seconds < self._minimum_s or seconds > 1e10:
            self.fail(f"{value!r} is out of range: at least {self._minimum_s:g} s", param, ctx)
        return seconds


class Size(_Int):
    """A number of bytes, or a number with kB, MB, GB, TB (powers of 1000) or KiB, MiB, GiB, TiB. Converts to bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(str(value).strip().lower())
        if match is None:
            self.fail(f"{value!r} is no size: write bytes, or a number with MB, GB, TB or GiB, as in 500GB", param, ctx)
        size = float(match[1]) * (1024 if match[3] == "ib" else 1000) ** _PREFIXES.index(match[2])
        if size < 1:
            self.fail(f"{value!r} is out of range: at least one byte", param, ctx)
        if size >= 2**63:
            self.fail(f"{value!r} is out of range: no file system is as large", param, ctx)
        return int(size)


class Room(Size):
    """As Size, or a percentage of the file system. Converts to a Floor."""

    name = "size or percentage"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Floor):
            return value
        if not str(value).strip().endswith("%"):
            return Floor(super().convert(value, param, ctx))
        try:
            return Floor.from_text(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


verify_option = click.option(
    "--verify",
    type=click.Choice(VERIFY),
    default="full",
    show_default=True,
    envvar="CKPTD_VERIFY",
    help="full: read each checkpoint once before anything relies on it; structure: trust one whose ends are intact.",
)


def _templates(_ctx: click.Context, _param: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
    """The templates that were given. A variable comes split at its blanks, those around a plus too."""
    words = list(value)
    while _PLUS in words[1:-1]:
        at = words.index(_PLUS, 1)
        words[at - 1 : at + 2] = [JOINT.join((words[at - 1], words[at + 1]))]
    return tuple(words)


def template_option(text: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    return click.option("--template", "templates", multiple=True, metavar="T", envvar="CKPTD_TEMPLATE",
                        callback=_templates, help=text)  # fmt: skip


layout_option = click.option(
    "--layout",
    "layouts",
    multiple=True,
    metavar="NAME",
    envvar="CKPTD_LAYOUT",
    shell_complete=layouts,
    help="Framework whose checkpoints to look for, in place of the known names; repeatable. "
    f"One of {', '.join(layout.name for layout in LAYOUTS)}.",
)


def policy_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that make a Policy; each also an environment variable, the same for every command."""
    options: list[Callable[..., Any]] = [
        click.option("--max-keep", type=click.IntRange(min=1), metavar="N", envvar="CKPTD_MAX_KEEP",
                     help="Keep N of each series; without it, undeclared, and without --max-bytes and --min-free, "
                          "nothing is pruned."),
        click.option("--interval", type=click.IntRange(min=1), metavar="N", envvar="CKPTD_INTERVAL",
                     help="Steps between two saves, for the stepped rule. Default: as declared, else inferred."),
        click.option("--rule", type=click.Choice(RULES), default="auto", show_default=True, envvar="CKPTD_RULE",
                     help="stepped: as mmcv's hook prunes; newest: the N newest by order of writing; "
                          "auto: stepped where the interval is known."),
        template_option("Name of a checkpoint, such as 'model-{:04d}.ckpt' or 'e{epoch}-{loss:.2f}.pt', in place of "
                        "the known names; repeatable. Such files count, whatever their format, and can be pruned. "
                        "'G_{}.pth + D_{}.pth': both files are one checkpoint."),
        layout_option,
        click.option("--keep-every", type=click.IntRange(min=1), metavar="N", envvar="CKPTD_KEEP_EVERY",
                     help="Keep steps divisible by N for ever."),
        click.option("--keep-best", multiple=True, metavar="M:min|max[:K]", envvar="CKPTD_KEEP_BEST",
                     help="Keep the K best (default: the best) by metric M, as in mAP:max:3; repeatable. Scores "
                          "come from names, from a Trainer's state, and from NAME.metrics.json."),
        click.option("--keep-within", "keep_within_s", type=Duration(), metavar="D", envvar="CKPTD_KEEP_WITHIN",
                     help="Keep what was written within D before the newest."),
        click.option("--max-bytes", type=Size(), metavar="S", envvar="CKPTD_MAX_BYTES",
                     help="Empty the trash and then delete the oldest until all fits into S, such as 500GB; never what "
                          "the options above keep, nor the newest."),
        click.option("--min-free", type=Room(), metavar="S", envvar="CKPTD_MIN_FREE",
                     help="Delete the oldest, as --max-bytes does, while less than S of the disk is free, such as "
                          "200GB or 10%; for one work dir."),
        click.option("--settle", "settle_s", type=Duration(), metavar="S", envvar="CKPTD_SETTLE",
                     help="Unchanged for so long, a file whose writer cannot be seen counts as written. "
                          "Default: 5s on local file systems, 60s on others."),
        verify_option,
        click.option("--trash-ttl", "trash_ttl_s", type=Duration(), metavar="D", envvar="CKPTD_TRASH_TTL",
                     help="Keep what was pruned for so long, for `ckptd restore`. Default: free it at once, "
                          "an hour for more than the saves since the last pass account for, or a changed --max-keep."),
        click.option("--pointer", default="last_ckpt", show_default=True, metavar="NAME", envvar="CKPTD_POINTER",
                     help="Name of the pointer file; last_checkpoint makes mmengine's own resume work. none: none "
                          "among the checkpoints; an absolute path: there, for one work dir."),
    ]  # fmt: skip
    for option in reversed(options):
        command = option(command)
    return command
