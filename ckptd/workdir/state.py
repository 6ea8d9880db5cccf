"""What earlier passes saw of a work dir, kept as `.ckptd/state.json`.

A lost or broken file costs nothing but memory: the next pass meets the work dir for the first time.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import fields, replace
from typing import Any

from ..core.checkpoint import Durability
from ..core.entry import Written
from ..core.keyed import names_from
from ..core.memory import BROUGHT_BACK, InForce, Memory, Seen, SeriesMemory
from ..disk.descriptors import read_small, replace_file
from ..errors import CkptdError, UsageError

NAME = "state.json"
VERSION = 1
_LARGEST = 1 << 30  # bytes: four million checkpoints


def read_state(own_fd: int) -> Memory | None:
    """What is remembered in the `.ckptd` directory open as `own_fd`; None if nothing is.

    Raises CkptdError if the file is not one that this version wrote, RefusedError if it is a symlink.
    """
    content = read_small(NAME, dir_fd=own_fd, at_most=_LARGEST)
    if content is None:
        return None
    try:
        raw = json.loads(content)
        if raw["version"] != VERSION:
            raise ValueError(f"version {raw['version']!r}")
        changes, policies, parts, lacks, former = (
            raw.get(key, {}) for key in ("changes", "policies", "parts", "lacks", "former")
        )
        memory = Memory(
            {
                name: _seen(
                    name,
                    *changes.get(name, ()),
                    parts=parts.get(name, ()),
                    lacks=lacks.get(name, (0,)),
                    former=former.get(name, ()),
                    **known,
                )
                for name, known in raw["seen"].items()
            },
            {
                names_from(text).text: _series(**known, **policies.get(text, {}))
                for text, known in raw["series"].items()
            },
            _number(raw["next_order"]),
        )
        if not all(BROUGHT_BACK <= known.order < memory.next_order for known in memory.seen.values()):
            raise ValueError("an order that the next save would get again")
        return memory
    except (UsageError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CkptdError(f"{NAME}: not a state of this version ({error})") from error


def write_state(memory: Memory, own_fd: int) -> None:
    """Replace the state, durably and whole at every moment. Raises OSError."""
    seen = {name: _plain(known) for name, known in memory.seen.items()}
    # Beside the rest, where 0.1.0 passes over it: it would take what it does not know for a broken state.
    changes = {name: [getattr(known, each) for each in _APART] for name, known in memory.seen.items() if known.changes}
    series = {text: _plain_series(known) for text, known in memory.series.items()}
    policies = {text: _plain_policy(known) for text, known in memory.series.items()}
    raw = {
        "version": VERSION, "next_order": memory.next_order, "series": series, "seen": seen, "changes": changes,
        "policies": {text: known for text, known in policies.items() if known},
    }  # fmt: skip
    few = {
        "parts": {name: known.parts for name, known in memory.seen.items() if known.parts},
        "lacks": {name: [known.lacks_until_ns, *known.lacks] for name, known in memory.seen.items() if known.lacks},
        "former": {name: known.former for name, known in memory.seen.items() if known.former},
    }
    raw |= {key: those for key, those in few.items() if those}
    replace_file(NAME, json.dumps(raw, separators=(",", ":")).encode(), dir_fd=own_fd)


_DEFAULTS = {f.name: f.default for f in fields(Seen)}
_APART = ("changes", "older", "younger")
_ELSEWHERE = ("name", "parts", "lacks", "lacks_until_ns", "former", *_APART)
_PLAIN = [(key, default) for key, default in _DEFAULTS.items() if key not in _ELSEWHERE]
_SERIES_DEFAULTS = {f.name: f.default for f in fields(SeriesMemory)}
_SERIES_APART = ("in_force", "walked", "late", "ranks", "usual")


def _plain(known: Seen) -> dict[str, Any]:
    plain = {key: value for key, default in _PLAIN if (value := getattr(known, key)) != default}
    if "durability" in plain:
        plain["durable"] = plain.pop("durability").value
    return plain


def _plain_series(known: SeriesMemory) -> dict[str, Any]:
    return {key: value for key, value in vars(known).items() if key not in _SERIES_APART}


def _plain_policy(known: SeriesMemory) -> dict[str, Any]:
    return {key: value for key in _SERIES_APART if (value := getattr(known, key)) != _SERIES_DEFAULTS[key]}


def _seen(
    name: str,
    changes: int = 0,
    older: int = 0,
    younger: int = 0,
    *,
    series: str,
    owed: bool = False,
    whole: bool = True,
    durable: bool | None = None,
    content: str | None = None,
    parts: Iterable[tuple[str, int, int]] = (),
    lacks: Iterable[Any] = (0,),
    former: Iterable[tuple[str, int, int]] = (),
    **numbers: int,
) -> Seen:
    if not isinstance(series, str):
        raise TypeError("a series is not a name")
    if not (durable is None or isinstance(durable, bool)):
        raise TypeError("durable is neither true nor false")
    if not (content is None or isinstance(content, str)):
        raise TypeError("content is no text")
    numbers |= {"changes": changes, "older": older, "younger": younger}
    checked = {key: _number(value) for key, value in numbers.items()}
    known = Seen(series=series, name=name, **checked)  # type: ignore[arg-type]  # numbers go where numbers are
    until_ns, *missing = lacks
    return replace(
        known, owed=owed is True, whole=whole is True, durability=Durability(durable), content=content,
        parts=tuple(_part(*part) for part in parts), former=tuple(_part(*part) for part in former),
        lacks=tuple(_text(each) for each in missing), lacks_until_ns=_number(until_ns),
    )  # fmt: skip


def _part(name: str, size_bytes: int, mtime_ns: int) -> Written:
    if not isinstance(name, str):
        raise TypeError("a part is not a name")
    return name, _number(size_bytes), _number(mtime_ns)


def _series(
    interval: int | None = None,
    recent: list[int] | None = None,
    waits: bool = False,
    in_force: list[Any] | None = None,
    walked: int | None = None,
    late: list[int] | None = None,
    ranks: list[list[int]] | None = None,
    usual: list[str] | None = None,
) -> SeriesMemory:
    if interval is not None and _number(interval) < 1:
        raise ValueError("an interval below 1")
    return SeriesMemory(
        interval,
        tuple(_number(step) for step in recent or ()),
        waits is True,
        None if in_force is None else _in_force(*in_force),
        None if walked is None else _number(walked),
        tuple(_number(step) for step in late or ()),
        tuple(tuple(_number(each) for each in part) for part in ranks or ()),
        tuple(_text(name) for name in usual or ()),
    )


def _in_force(max_keep: int, rule: str, interval: int | None) -> InForce:
    if not isinstance(rule, str):
        raise TypeError("a rule is not a name")
    if _number(max_keep) < 1 or (interval is not None and _number(interval) < 1):
        raise ValueError("a rule that keeps nothing, or never steps")
    return InForce(max_keep, rule, interval)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _number(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is not a number")
    if value.bit_length() > 1000:  # a step has as many digits as fit into a name
        raise ValueError("a number that nothing has")
    return value
