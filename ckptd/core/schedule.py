"""What a run declares about itself: one small text for each template.

Pure. The run writes it into the work dir, the daemon obeys where no option says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import CkptdError, UsageError
from .naming import Template

VERSION = 1
DIRECTORY = "schedules"  # in `.ckptd`, one file for each template
LARGEST_BYTES = 4096  # a schedule is a line; what is larger is none
WITNESSES = 3  # how many of the last saves can contradict a schedule


@dataclass(frozen=True)
class Schedule:
    """A series as its run declares it.

    template: the checkpoint name. unit: what its number counts. interval: steps between saves, or None.
    max_keep: how many to keep, or None for all. work_dir: the job's own path of the directory, which inside a
    container may differ from the daemon's. declared_ns: when the run said so, or None; it is no part of the text.
    """

    template: str
    unit: str
    interval: int | None = None
    max_keep: int | None = None
    work_dir: str | None = None
    declared_ns: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "template", Template(self.template).text)
        for name in ("interval", "max_keep"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise UsageError(f"schedule of {self.template!r}: {name} is {value!r}, not a number of at least 1")
        for name in ("unit", "work_dir"):
            value = getattr(self, name)
            if value is not None and not (
                isinstance(value, str) and value.isprintable() and len(value) <= LARGEST_BYTES
            ):
                raise UsageError(f"schedule of {self.template!r}: {name} is not a line of text")

    def is_contradicted_by(self, steps: Sequence[int]) -> bool:
        """Whether another run than the one that declared this has made the saves `steps`, in order of writing.

        So it is where of the last three no two lie a whole number of intervals apart. One save may be off the grid:
        a run's last one, or the first of a run that has resumed.
        """
        last = steps[-WITNESSES:]
        if self.interval is None or len(last) < WITNESSES:
            return False
        return len({step % self.interval for step in last}) == len(last)

    def to_text(self) -> str:
        """One JSON object and a newline."""
        fields = {name: getattr(self, name) for name in ("template", "unit", "interval", "max_keep", "work_dir")}
        return json.dumps({"version": VERSION, **fields}) + "\n"

    @classmethod
    def from_text(cls, text: str) -> Schedule:
        """The schedule in `text`; raises CkptdError for what is not one of this version."""
        try:
            fields = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise CkptdError(f"not a schedule: {error}") from error
        if not isinstance(fields, dict) or fields.get("version") != VERSION:
            raise CkptdError(f"not a schedule of version {VERSION}")
        template, unit = fields.get("template"), fields.get("unit")
        if not isinstance(template, str) or not isinstance(unit, str):
            raise CkptdError("not a schedule: it names no template, or no unit")
        return cls(
            template,
            unit,
            fields.get("interval"),
            fields.get("max_keep"),
            fields.get("work_dir"),
        )
