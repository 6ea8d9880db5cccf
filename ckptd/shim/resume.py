"""Which checkpoint of a series a run resumes from: the newest that is complete. Reads, never writes or unpickles."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..content import ChangedError, check_content
from ..core.naming import Template
from ..disk import opened_dir
from ..errors import RefusedError, why
from ..scan import Entry, scan
from ..verdict import Settling, judge

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


def newest_complete(work_dir: str, template: Template) -> str | None:
    """The name of the newest complete checkpoint of a series, by time of writing, or None if there is none.

    Each is read to its end where its format has checksums. What is passed over is said, with the reason. Raises
    OSError if the directory cannot be read.
    """
    now_ns = time.time_ns()
    with opened_dir(work_dir) as fd:
        # A directory of shards is none of ours. A time in the future says nothing, so it counts as now.
        found = [entry for entry in scan(work_dir, fd, (template,)).entries if not entry.is_dir]
        for entry in sorted(found, key=lambda each: (min(each.mtime_ns, now_ns), each.step), reverse=True):
            fault = _fault(entry, fd, now_ns)
            if not fault:
                return entry.name
            _log.warning("passed over %s/%s, which is not complete: %s", work_dir, entry.name, fault)
    return None


def _fault(entry: Entry, dir_fd: int, now_ns: int) -> str:
    """What is wrong with a checkpoint, or "". Ours bear their name once they are whole, so nothing has to settle."""
    try:
        verdict = judge(entry, dir_fd=dir_fd, settling=Settling(local=False, settle_s=0), now_ns=now_ns)
        if not (verdict.known and verdict.state.whole):
            return verdict.evidence
        return check_content(entry, dir_fd=dir_fd) if verdict.checksum else ""
    except ChangedError:
        return "changed while it was read"
    except RefusedError as error:
        return str(error)
    except OSError as error:
        return why(error)
