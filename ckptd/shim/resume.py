"""Which checkpoint of a series a run resumes from: the newest that is complete. Reads, never writes or unpickles."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from ..core.checkpoint import Checkpoint, State
from ..core.copied import are_a_copy
from ..core.entry import Entry
from ..core.finder import Finder
from ..core.layouts import FIRST_CONTACT_POINTERS
from ..core.memory import Memory
from ..core.naming import Template, named_by
from ..core.policy import Policy
from ..core.replay import replay
from ..disk.descriptors import OWN_DIR, opened_dir
from ..errors import CkptdError, RefusedError, why
from ..inspect.content import ChangedError, check_content
from ..inspect.scan import scan
from ..inspect.verdict import Settling, Verdict, judge
from ..workdir.place import opened_own
from ..workdir.pointer import link_target, read_pointer
from ..workdir.state import read_state

_log = logging.getLogger("ckptd.shim")


@dataclass(frozen=True)
class Progress:
    """How far a run has come: `for epoch in range(progress.epoch, max_epochs)` does what is left.

    epoch, iteration: how many are finished; 0 where the run has not counted them. path: the checkpoint that was
    loaded, or None where there was none, and everything is 0. meta: what the checkpoint holds under that key.
    states: the plain values among the given states, as they were saved.
    """

    epoch: int = 0
    iteration: int = 0
    path: Path | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    states: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Candidate:
    """A checkpoint with what its ends say. doubt: what an earlier pass has found out about it, or ""."""

    checkpoint: Checkpoint
    verdict: Verdict
    doubt: str


class _Trusted(NamedTuple):
    """A checkpoint that a pointer names in a directory of which nothing is remembered."""

    name: str
    by: str


def newest_complete(work_dir: str, template: Template) -> str | None:
    """The name of the newest complete checkpoint of a series, or None if there is none.

    Newest by the order of writing, as a ckptd beside the job remembers it, so that `ckptd latest` names the same;
    where none remembers anything, by (time of writing, step), or where the times are a copy's by the step. Each is read
    to its end where its format has checksums. What is passed over is said, with the reason. Raises OSError if the
    directory cannot be read.
    """
    now_ns = time.time_ns()
    with opened_dir(work_dir) as fd:
        remembered = _remembered(work_dir, fd)
        memory = remembered or Memory()
        # A directory of shards is none of ours.
        entries = [entry for entry in scan(work_dir, fd, Finder((template,))).entries if not entry.is_dir]
        found = [_candidate(entry, _judge(entry, fd, now_ns), memory) for entry in entries]
        trusted = _trusted(found, fd) if remembered is None else None
        ordered = _newest_first(found, memory, template, now_ns, trusted)
        for each in ordered:
            fault = each.doubt or _fault(each, fd)
            if not fault:
                return each.checkpoint.name
            _log.warning("passed over %s/%s, which is not complete: %s", work_dir, each.checkpoint.name, fault)
        # What only an earlier pass had a doubt about is better than to start anew.
        return next((each.checkpoint.name for each in ordered if each.doubt and not _fault(each, fd)), None)


def _remembered(work_dir: str, dir_fd: int) -> Memory | None:
    try:
        with opened_own(dir_fd) as own_fd:
            return read_state(own_fd)
    except FileNotFoundError:
        return None
    except (OSError, CkptdError) as error:
        _log.warning("could not read in %s/%s what was seen before: %s; the newest is told by the times of writing",
                     work_dir, OWN_DIR, why(error))  # fmt: skip
        return Memory()


def _candidate(entry: Entry, verdict: Verdict, memory: Memory) -> _Candidate:
    # Bytes of no known format are left alone, as whatever cannot be judged now: neither is a save to go by.
    state = verdict.state if verdict.known else State.IN_FLIGHT
    known = memory.seen.get(entry.name)
    if known is not None and known.content and known.bytes_on_disk == entry.bytes_on_disk:
        return _Candidate(Checkpoint(entry, State.INCOMPLETE), verdict, known.content)
    doubt = "an fsync of it has failed" if known is not None and known.has_failed(entry) else ""
    return _Candidate(Checkpoint(entry, state), verdict, doubt)


def _newest_first(
    found: list[_Candidate], memory: Memory, template: Template, now_ns: int, trusted: _Trusted | None
) -> list[_Candidate]:
    """As the next pass of a ckptd would order them; what it would wait for comes first, to be told of.

    Those of a copy, whose times say nothing, by their steps, as `ckptd latest` does.
    """
    checkpoints = [each.checkpoint for each in found]
    name = trusted.name if trusted else None
    replayed = replay(checkpoints, memory, Policy(), now_ns=now_ns, declared={}, trusted=name, patterns=(template,))
    after, grid = replayed.memory, replayed.grids.get(template.text)
    by_us = trusted is not None and trusted.by == Policy.pointer
    if grid is not None and grid.waits and not by_us and are_a_copy(checkpoints):
        _log.warning("the times of the checkpoints are those of a copy, in the order of their names as text: the "
                     "highest step is resumed from")  # fmt: skip
        return sorted(found, key=lambda each: each.checkpoint.step, reverse=True)

    def rank(each: _Candidate) -> tuple[int, int, int]:
        known = after.seen.get(each.checkpoint.name)
        return known.rank if known else (after.next_order, each.checkpoint.mtime_ns, each.checkpoint.step)

    return sorted(found, key=rank, reverse=True)


def _trusted(found: list[_Candidate], dir_fd: int) -> _Trusted | None:
    """The complete checkpoint that a pointer names."""
    whole = {each.checkpoint.name for each in found if each.checkpoint.state.whole}
    for pointer in FIRST_CONTACT_POINTERS:
        text = link_target(pointer, dir_fd=dir_fd) or read_pointer(pointer, dir_fd=dir_fd)
        if text and named_by(text) in whole:
            return _Trusted(named_by(text), pointer)
    return None


def _judge(entry: Entry, dir_fd: int, now_ns: int) -> Verdict:
    """What the ends of a checkpoint say. Ours bear their name once they are whole, so nothing has to settle."""
    try:
        return judge(entry, dir_fd=dir_fd, settling=Settling(local=False, settle_s=0), now_ns=now_ns)
    except RefusedError as error:
        return Verdict(State.IN_FLIGHT, str(error))
    except OSError as error:
        return Verdict(State.IN_FLIGHT, why(error))


def _fault(found: _Candidate, dir_fd: int) -> str:
    """What is wrong with a checkpoint, or ""."""
    entry, verdict = found.checkpoint.entry, found.verdict
    if not (verdict.known and verdict.state.whole):
        return verdict.evidence
    try:
        return check_content(entry, dir_fd=dir_fd) if verdict.checksum else ""
    except ChangedError:
        return "changed while it was read"
    except RefusedError as error:
        return str(error)
    except OSError as error:
        return why(error)
