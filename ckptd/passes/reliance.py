"""Make what a plan relies on reliable: its content read once, its bytes on stable storage.

Deletes nothing and moves nothing; says which checkpoints a pass may stand on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from ..core.checkpoint import Checkpoint, Durability
from ..core.entry import Identity
from ..core.permit import relied_on
from ..core.survey import Survey
from ..disk.descriptors import SyncError, sync_dir, sync_file
from ..disk.walk import sync_tree
from ..errors import RefusedError, why
from ..text.human import human_bytes
from ..text.voice import Voice
from .reading import Reader
from .surveyor import Surveyor

_READ_BACK_EVERY_S = 60.0
_WORTH_A_LINE_BYTES = 10**9
_STALE_S, _MOST_LOOKS = 0.1, 5
_LAG = "reading lags behind the saves: the pointer and the pruning wait for it"


@dataclass(frozen=True)
class Reliable:
    """A plan that may be carried out, as far as `names` go.

    waits: whether contents are still being read. troubled: whether something is to be tried again in a while.
    """

    survey: Survey
    names: frozenset[str]
    waits: bool
    troubled: bool


class Reliance:
    """Establishes what passes over one work dir may rely on. What it finds is kept by the surveyor."""

    def __init__(self, surveyor: Surveyor, reader: Reader, clock: Callable[[], int], voice: Voice) -> None:
        self._surveyor, self._reader, self._clock, self._voice = surveyor, reader, clock, voice
        self._read_back_due_s: dict[Identity, float] = {}
        self._waited_for: set[str] = set()
        self._troubled = False

    @property
    def waits(self) -> bool:
        """Whether contents are still being read."""
        return bool(self._waited_for)

    def establish(self, survey: Survey) -> Reliable:
        """Read and fsync what the plan relies on, and plan anew without what does not stand that.

        What is still being read in the background is planned without too: nothing is deleted on its strength, and
        the pointer does not name it yet. Where that has taken long it looks again, so that whoever has pinned, named
        or opened something meanwhile is seen. Raises OSError if the work dir cannot be read.
        """
        self._troubled = False
        if self._read_back(survey):
            survey = self._survey()
        waits: set[str] = set()
        strict, looks = False, 0
        while True:
            began_s, looks = time.monotonic(), looks + 1
            names, spoiled = set[str](), False
            wanted = relied_on(survey.plan, survey.pointed_name)
            for checkpoint in wanted:
                fault = self._content(checkpoint)
                if fault is None:
                    waits.add(checkpoint.name)
                elif fault:
                    spoiled = True
                else:
                    names.add(checkpoint.name)
            failed = self._sync([c for c in wanted if c.name in names], survey)
            stale = time.monotonic() - began_s > _STALE_S and looks < _MOST_LOOKS
            if not (spoiled or failed or stale) and (strict or not waits):
                break
            strict = strict or bool(waits)
            survey = self._survey(strict=strict)
        self._say_lag(waits)
        durable = frozenset(name for name in names if self._is_durable(name, survey))
        return Reliable(survey, durable, bool(waits), self._troubled or durable != names)

    def _survey(self, *, strict: bool = False) -> Survey:
        return self._surveyor.survey(self._clock(), strict=strict)

    def _content(self, checkpoint: Checkpoint) -> str | None:
        """What is wrong with its content, "" if nothing is; None if that is not known yet."""
        findings, name = self._surveyor.findings, checkpoint.name
        if not checkpoint.content.is_to_be_read:
            return findings.content.get(checkpoint.entry.bytes_on_disk, "")
        work, entry = self._surveyor.work, checkpoint.entry
        if entry.size_bytes >= _WORTH_A_LINE_BYTES:
            text = f"reading {name} ({human_bytes(entry.size_bytes)}) before anything relies on it"
            self._voice.once("reading", text, of=name, level=logging.INFO)
        answer = self._reader.ask(work.path, work.fd, entry)
        if isinstance(answer, OSError):
            self._troubled = True
            self._voice.once("content", f"could not read {work.path}/{name}: {why(answer)}; will try again", of=name)
            return None
        if answer is not None:
            self._voice.forget("reading", of=name)
            self._voice.forget("content", of=name)
            findings.content[checkpoint.entry.bytes_on_disk] = answer
        if answer:
            self._voice.error("%s/%s: %s; it is not relied on, and the next save is to be", work.path, name, answer)
        return answer

    def _sync(self, wanted: list[Checkpoint], survey: Survey) -> bool:
        """fsync what was not yet, then the directory; whether one failed, so that the plan has to do without it."""
        findings, work = self._surveyor.findings, self._surveyor.work
        fresh: list[Checkpoint] = []
        failed = False
        for checkpoint in wanted:
            if self._is_durable(checkpoint.name, survey):
                continue
            try:
                self._sync_one(checkpoint)
            except SyncError as error:
                failed = True
                self._lost(checkpoint, error)
            except (OSError, RefusedError) as error:
                self._could_not_sync(checkpoint.name, error)
            else:
                self._voice.forget("fsync", of=checkpoint.name)
                fresh.append(checkpoint)
        if fresh:
            try:
                sync_dir(work.fd)
            except SyncError as error:
                for checkpoint in fresh:
                    self._lost(checkpoint, error)
                return True
            findings.durability |= {checkpoint.entry.bytes_on_disk: Durability.SYNCED for checkpoint in fresh}
        return failed

    def _sync_one(self, checkpoint: Checkpoint) -> None:
        work_fd = self._surveyor.work.fd
        for file in checkpoint.entry.files:
            if file.is_dir:
                sync_tree(file.name, dir_fd=work_fd)
            else:
                sync_file(file.name, dir_fd=work_fd)

    def _could_not_sync(self, name: str, error: OSError | RefusedError) -> None:
        path = self._surveyor.work.path
        self._voice.once("fsync", f"could not make {path}/{name} durable: {error}; will try again", of=name)

    def _lost(self, checkpoint: Checkpoint, error: SyncError) -> None:
        """A failed fsync: the kernel may have dropped what it could not write, and a second fsync would not tell."""
        self._troubled = True
        self._surveyor.findings.durability[checkpoint.entry.bytes_on_disk] = Durability.FAILED
        self._read_back_due_s[checkpoint.entry.bytes_on_disk] = time.monotonic() + _READ_BACK_EVERY_S
        self._voice.error(
            "fsync of %s/%s failed (%s): not relied on until its content was read back from the disk; check the disk",
            self._surveyor.work.path,
            checkpoint.name,
            why(error),
        )

    def _read_back(self, survey: Survey) -> bool:
        """Whether something whose fsync had failed was read from the disk whole, and could then be made durable."""
        mended = False
        findings, work = self._surveyor.findings, self._surveyor.work
        for checkpoint in (d.checkpoint for d in survey.plan.decisions):
            lost = checkpoint.durability.failed and checkpoint.state.whole
            if not (lost and checkpoint.content.has_checksum) or checkpoint.entry.is_dir or checkpoint.entry.parts:
                continue  # not all of its files have a checksum: what the disk holds of the others cannot be told
            self._troubled = True
            if time.monotonic() < self._read_back_due_s.get(checkpoint.entry.bytes_on_disk, 0.0):
                continue
            answer = self._reader.ask(work.path, work.fd, checkpoint.entry, from_disk=True)
            if answer is None:
                continue
            self._read_back_due_s[checkpoint.entry.bytes_on_disk] = time.monotonic() + _READ_BACK_EVERY_S
            if isinstance(answer, OSError):
                continue
            findings.content[checkpoint.entry.bytes_on_disk] = answer
            try:
                if not answer:
                    self._sync_one(checkpoint)
                    sync_dir(work.fd)
                    findings.durability[checkpoint.entry.bytes_on_disk] = Durability.SYNCED
                    self._voice.info("read %s back from the disk, whole", checkpoint.name)
                mended = True
            except (OSError, RefusedError) as error:
                self._could_not_sync(checkpoint.name, error)
        return mended

    def _is_durable(self, name: str, survey: Survey) -> bool:
        seen = survey.plan.memory.seen[name]
        return self._surveyor.findings.durability.get(seen.bytes_on_disk, seen.durability) is Durability.SYNCED

    def _say_lag(self, waits: set[str]) -> None:
        """Say, once for each time it happens, that saves come faster than they can be read."""
        if self._waited_for & waits and waits - self._waited_for:
            self._voice.once("lag", _LAG)
        if not waits:
            self._voice.forget("lag")
        self._waited_for = waits
