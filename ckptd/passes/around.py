"""The checkpoint of several files that a file is of, by what passes over its work dir remember. Reads, never writes."""

from __future__ import annotations

import time
from pathlib import Path

from ..core.entry import Entry
from ..core.keyed import names_from
from ..core.policy import Policy
from ..errors import CkptdError
from ..inspect.verdict import Verdict
from ..workdir.state import read_state
from ..workdir.workdir import WorkDir
from .surveyor import Surveyor


def group_around(path: Path, settle_s: float | None) -> tuple[Entry, Verdict] | None:
    """All of the checkpoint with what a survey says of it; None where the file is a checkpoint by itself, or nothing is
    remembered."""
    try:
        with WorkDir(path.parent) as work:
            own_fd = work.open_own()
            memory = read_state(own_fd) if own_fd is not None else None
            groups = (names for names in map(names_from, memory.series if memory else ()) if names.is_group)
            text = next((names.text for names in groups if names.step_of(path.name) is not None), None)
            if text is None:
                return None
            policy = Policy(templates=(text,), settle_s=settle_s)
            survey = Surveyor(work, policy, as_remembered=True).survey(time.time_ns())
    except (CkptdError, OSError):
        return None  # then it is told what can be seen of the file
    for checkpoint in (d.checkpoint for d in survey.decisions):
        if any(file.name == path.name for file in checkpoint.entry.files):
            checksum = checkpoint.state.whole and checkpoint.content.has_checksum
            return checkpoint.entry, Verdict(checkpoint.state, checkpoint.evidence, checksum=checksum)
    return None
