"""Carry out what a plan prunes: into the trash, into the journal, and after its time to the remover.

Decides nothing: which checkpoints go, and that they may, is settled before it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from datetime import UTC, datetime
from typing import Any

from . import delete, journal
from .core.plan import Decision, Plan
from .disk import NO_ROOM, SyncError
from .errors import why
from .filesystem import free_bytes
from .remover import Remover
from .survey import Survey
from .units import human_bytes
from .workdir import WorkDir

LARGE_PRUNE_TTL_S = 3600.0


class Labelled(logging.LoggerAdapter[logging.Logger]):
    """A log whose lines begin with the work dir they are about, where there are several."""

    def process(self, msg: Any, kwargs: MutableMapping[str, Any]) -> tuple[Any, MutableMapping[str, Any]]:
        label = self.extra["label"] if self.extra else ""
        return (f"{label}: {msg}" if label else msg), kwargs


class Pruner:
    """Deletes from one work dir, and knows what waits in its trash and until when.

    trash_ttl_s: how long, or None for DESIGN section 3's default.
    """

    def __init__(
        self, work: WorkDir, trash_ttl_s: float | None, remover: Remover, clock: Callable[[], int], log: Labelled
    ) -> None:
        self._work, self._trash_ttl_s, self._remover, self._clock, self._log = work, trash_ttl_s, remover, clock, log
        self._unwritten: list[dict[str, Any]] = []  # journal lines that found no room
        self._expires_ms: dict[str, int] = {}
        self._said: dict[str, str] = {}

    def adopt(self) -> None:
        """Finish what a crash left in the trash, and go on waiting for what is to be kept there."""
        journal.check(self._own_fd)  # before anything goes that could not be written down
        with delete.opened_trash(self._own_fd) as trash_fd:
            left = delete.items(trash_fd)
        if not left:
            return
        lines = {str(line.get("trash")): line for line in journal.read(self._own_fd) if line.get("did") == "pruned"}
        for item in left:
            until_ms = lines.get(item.name, {}).get("until_ms")
            if self._trash_ttl_s is not None:
                until_ms = item.at_ms + int(self._trash_ttl_s * 1000)
            if item.claimed or not isinstance(until_ms, int):
                until_ms = item.at_ms  # its removal had begun, or the crash came before its line in the journal
            self._expires_ms[item.name] = until_ms

    def prune(self, survey: Survey, prunes: list[Decision]) -> tuple[list[Decision], dict[str, str]]:
        """Rename into the trash, oldest first, and make that durable. One failure is not the end.

        Returns what is gone, and for what is not the reason that the system gave.
        """
        pruned: list[Decision] = []
        failed: dict[str, str] = {}
        if not prunes:
            return pruned, failed
        now_ms = self._clock() // 1_000_000
        binned: list[tuple[Decision, str]] = []
        with delete.opened_trash(self._own_fd) as trash_fd:
            for decision in prunes:
                name = decision.checkpoint.name
                try:
                    item = delete.put(survey.entries[name], work_fd=self._work.fd, trash_fd=trash_fd, now_ms=now_ms)
                except FileNotFoundError:
                    pruned.append(decision)  # somebody else was faster
                except delete.ChangedError as error:
                    self._log.warning("left %s alone: %s", name, error)
                except OSError as error:
                    failed[name] = why(error)
                    self._refused(name, why(error))
                else:
                    binned.append((decision, item))
            pruned += [decision for decision, _ in binned]
            if not binned:
                return pruned, failed
            until_ms = now_ms + int(self._ttl_s(survey.plan, len(binned)) * 1000)
            self._unwritten += [_line(decision, item, now_ms, until_ms) for decision, item in binned]
            try:
                delete.sync(work_fd=self._work.fd, trash_fd=trash_fd)
            except SyncError as error:
                # A rename that a power cut may undo: what it moved stays whole in the trash until the next start.
                failed |= {decision.checkpoint.name: why(error) for decision, _ in binned}
                self._log.error(
                    "fsync of %s failed (%s): nothing is freed; check the disk", self._work.path, why(error)
                )
                return pruned, failed
        self._expires_ms |= {item: until_ms for _, item in binned}
        self._say(binned, (until_ms - now_ms) / 1000)
        return pruned, failed

    def settle(self) -> None:
        """Write the journal, then hand to the remover what has been in the trash long enough."""
        try:
            journal.append(self._unwritten, self._own_fd)
        except OSError as error:
            if error.errno not in NO_ROOM:
                raise
            self._log.warning("could not write the journal: %s; will try again", why(error))
        else:
            self._unwritten.clear()
        now_ms = self._clock() // 1_000_000
        for item in [item for item, until_ms in self._expires_ms.items() if until_ms <= now_ms]:
            del self._expires_ms[item]
            self._remover.submit(self._own_fd, item)

    def expires_in_s(self) -> list[float]:
        """Seconds until the first thing in the trash is to be freed; none if nothing waits there."""
        return [max(0.0, min(self._expires_ms.values()) / 1000 - self._clock() / 1e9)] if self._expires_ms else []

    @property
    def _own_fd(self) -> int:
        assert self._work.own_fd is not None  # nobody prunes before the work dir is taken
        return self._work.own_fd

    def _ttl_s(self, plan: Plan, count: int) -> float:
        """How long the trash is kept: as asked for, or an hour for more than the saves since the last pass account
        for (first contact, a changed policy), room permitting."""
        if self._trash_ttl_s is not None:
            return self._trash_ttl_s
        expected = sum(max(1, 0 if s.grid.first_contact else s.grid.saves) for s in plan.series if s.decisions)
        if count <= expected or plan.newest is None:
            return 0.0
        return LARGE_PRUNE_TTL_S if free_bytes(self._work.fd) >= 2 * plan.newest.size_bytes else 0.0

    def _say(self, binned: list[tuple[Decision, str]], kept_s: float) -> None:
        for decision, _ in binned:
            c = decision.checkpoint
            self._log.info("pruned %s size_bytes=%d reason=%r", c.name, c.size_bytes, decision.reasons[0])
        if not kept_s:
            return
        self._log.info(
            "kept %d pruned (%s) in the trash for %.0f min: `ckptd restore --all %s` brings them back, "
            "`rm -r %s/.ckptd/trash/*` frees the space at once",
            len(binned),
            human_bytes(sum(d.checkpoint.allocated_bytes for d, _ in binned)),
            kept_s / 60,
            self._work.path,
            self._work.path,
        )

    def _refused(self, name: str, reason: str) -> None:
        """Say it once, not at every try."""
        if self._said.get(name) != reason:
            self._said[name] = reason
            self._log.warning("could not prune %s/%s: %s; will try again", self._work.path, name, reason)


def _line(decision: Decision, item: str, now_ms: int, until_ms: int) -> dict[str, Any]:
    c = decision.checkpoint
    return {
        "at": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "did": "pruned",
        "name": c.name,
        "series": c.series,
        "step": c.step,
        "size_bytes": c.size_bytes,
        "reason": "; ".join(decision.reasons),
        "trash": item,
        "until_ms": until_ms,
    }
