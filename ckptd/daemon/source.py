"""Where work dirs come from, and word that one may have changed: named ones, or what is found below a root."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from ..core.survey import Survey
from ..workdir.workdir import WorkDir


class Source(Protocol):
    """What a keeper asks of whoever knows its work dir, in the thread that makes the pass.

    A hint is never more than that: the disk is the truth, and a lost one delays, never decides.
    """

    def watch(self, path: str, inside: Iterable[str] = ()) -> bool:
        """Give hints of the work dir at `path`, and of what changes in its directories `inside`.

        Returns whether something is watched now that was not: what has changed there since the caller last looked gave
        no hint.
        """
        ...

    def forget(self, path: str) -> None:
        """Give no hint of `path` any more."""
        ...

    def open(self, path: str, *, waited: bool) -> WorkDir | None:
        """Meet the work dir, if it is there and ours to look after. waited: it was asked for before."""
        ...

    def interval_s(self, work: WorkDir) -> float:
        """How long it may go without a pass; infinite where a hint comes in any case."""
        ...

    def misses(self, path: str) -> bool:
        """Whether a work dir that cannot be reached any more is worth a word: it is not simply gone."""
        ...

    def announces(self, survey: Survey) -> bool:
        """Whether one that is met with this in it is worth a word."""
        ...

    def leaves_out(self, path: str) -> bool:
        """Whether no run is to be looked after there, whatever lies in the work dir itself."""
        ...

    def check_left_out(self, path: str) -> None:
        """Raise RefusedError if the work dir, which is left out, was asked for by name."""
        ...

    def label(self, path: str) -> str:
        """What lines of the log begin with that do not name the work dir: "" where there is only one."""
        ...

    def device_of(self, path: str) -> int:
        """The number of the disk that it is on, as far as is known without asking that disk."""
        ...
