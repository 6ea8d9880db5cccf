"""What the hooks for other frameworks have in common: the framework saves, ckptd prunes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from ..core.naming import Template
from ..errors import UsageError
from .attendance import warn_if_unattended
from .declaration import declare
from .ranks import agree, own_group, rank_of


@dataclass(frozen=True)
class Series:
    """The checkpoints that a framework's hook writes, in the framework's own words.

    interval: below 1 for no saves but the last; max_keep: below 1 for all. Raises UsageError for a template that no
    number can be read from, and for what is no path on this host.
    """

    place: str
    template: str
    unit: str
    interval: int
    max_keep: int

    def __post_init__(self) -> None:
        Template(self.template)
        if not self.place:
            raise UsageError("the run has no work_dir, and the hook no out_dir: give it one")
        if "://" in self.place:
            raise UsageError(f"out_dir is {self.place!r}: ckptd prunes in directories that this host can see")

    def alone(self, others: Iterable[Series | None]) -> Series:
        """This series; raises UsageError if another one, of the run's other hooks, has the same names in it."""
        for other in others:
            if other and (_real(other.place), other.template) == (_real(self.place), self.template):
                raise UsageError(
                    f"{self.place}: another hook of this run saves {self.template} there. Take one of them out, "
                    "or give it another filename_tmpl"
                )
        return self

    def save(self, save: Callable[[], None]) -> None:
        """Let the framework save, on every rank, then tell ckptd. A save that fails on one rank raises on all."""
        failure: Exception | None = None
        try:
            save()
        except Exception as error:  # noqa: BLE001 - raised by agree, on this rank and all others
            failure = error
        agree(failure, own_group(), at=f"the save of {self.template}")
        declare(
            self.place,
            template=self.template,
            unit=self.unit,
            interval=self.interval if self.interval > 0 else None,
            max_keep=self.max_keep if self.max_keep > 0 else None,
        )
        if rank_of() == 0:
            warn_if_unattended(os.path.abspath(self.place), Template(self.template), self.max_keep)


def _real(place: str) -> str:
    return os.path.realpath(place)
