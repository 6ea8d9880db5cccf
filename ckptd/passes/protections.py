"""Who must stay whatever a rule says: what is pinned, or named by a pointer or a link, and what somebody is at.

Reads, never writes; also reads the pointer itself, as what it names is one of these.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from ..core.entry import Entry
from ..core.layouts import FIRST_CONTACT_POINTERS
from ..core.naming import Names, named_by
from ..core.policy import NO_POINTER, Policy
from ..core.reason import Kind, Reason
from ..core.trackers import Told, meant, reasons_by
from ..disk.opened import OpenedDirectory
from ..errors import RefusedError
from ..inspect.scan import Found, scan_marks
from ..workdir.pointer import PointerFile, best_of_trainer, link_target, read_pointer
from ..workdir.workdir import WorkDir
from .last_look import PINNED_INSIDE, Holders

if TYPE_CHECKING:
    from ..core.newest import Latest
    from ..inspect.trackers import Trackers


class Protections:
    """What protects checkpoints of one work dir. `pointer` is the file that we keep there ourselves.

    as_remembered: for a reader, who need not know that there is to be no pointer among the checkpoints.
    """

    def __init__(self, work: WorkDir, policy: Policy, *, as_remembered: bool = False) -> None:
        self._work, self._policy, self._as_remembered = work, policy, as_remembered
        self._best: dict[Entry, str | None] = {}
        self._trackers: Trackers | None = None
        self._series: Sequence[Names] = ()  # as the last survey knew them, and their names and steps
        self._there: dict[str, int] = {}
        self.told: Sequence[Told] = ()  # by other files, at the last look
        self.pointer = PointerFile(work, policy.pointer)

    def of(self, found: Found, series: Sequence[Names], trainers: Collection[str]) -> dict[str, list[Reason]]:
        """By name, why it stays (docs/design.md, section 4). series: those that are looked for. trainers: what a
        Trainer has saved, whole."""
        self._series = series
        self._there = {file.name: entry.step for entry in found.entries for file in entry.files}
        protected = self._named(found)
        saved = [entry for entry in found.entries if entry.name in trainers]
        if saved:
            newest = max(saved, key=lambda entry: (entry.mtime_ns, entry.step))
            if newest not in self._best:  # else read already
                self._best = {newest: best_of_trainer(newest.name, dir_fd=self._work.fd)}
            best = self._best[newest]
            if best is not None:
                _protect(protected, best, Kind.POINTER, f"the best, by {newest.name}/trainer_state.json")
        for entry in found.entries:
            # Of directories only: on overlayfs a file's device is that of its layer. A file that something is mounted
            # on cannot be renamed, and says so then.
            if entry.is_dir and entry.device != self._work.device:
                _protect(protected, entry.name, Kind.MOUNT, "a mount point")
            for part in entry.parts:
                for reason in protected.get(part.name, ()) if part.name != entry.name else ():
                    if reason in protected.get(entry.name, ()):
                        continue
                    _protect(protected, entry.name, reason.kind, f"{reason} ({part.name})")
        return protected

    def named_now(self) -> dict[str, list[Reason]]:
        """What is pinned, or named by a pointer, a symlink or another file, at this moment, with the reasons."""
        named = self._named(scan_marks(self._work.path, self._work.fd, but=self._there))
        text = self.pointer.read()
        if text:
            _protect(named, named_by(text), Kind.POINTER, f"named by {self.pointer.name}")
        return named

    def latest(self) -> list[Latest]:
        """What frameworks call their latest, by their own trackers."""
        told = [each for each in self.told if each.said.newest]
        if not told:
            return []
        from ..core.newest import latest_of  # here, because few work dirs have any

        return latest_of(told, self._series, tuple(self._there.items()))

    def trackers(self) -> set[str]:
        """The files that name something here, or may."""
        there = tuple(self._there.items())
        return {
            each.file
            for each in self.told
            if each.trouble or not meant(each.said, self._series, there).isdisjoint(self._there)
        }

    def in_use(self, entries: Iterable[Entry]) -> dict[str, Reason]:
        """Who is at the checkpoints that are about to go, by their names."""
        used: dict[str, Reason] = {}
        holders = Holders()
        for name, file in ((entry.name, file.name) for entry in entries for file in entry.files):
            # What cannot be looked at now cannot be renamed either, and says so then.
            with contextlib.suppress(OSError, RefusedError):
                use = holders.of(file, dir_fd=self._work.fd)
                if use:
                    used[name] = Reason(Kind.PINNED if use == PINNED_INSIDE else Kind.IN_USE, use)
        return used

    def trusted(self, whole: Mapping[str, str]) -> str | None:
        """The complete checkpoint that a pointer in a work dir names which is met for the first time.

        whole: the names of complete ones, by those of their files.
        """
        for name in dict.fromkeys((self._policy.pointer, *FIRST_CONTACT_POINTERS)):
            target = link_target(name, dir_fd=self._work.fd)
            if target is None:
                ours = name == self._policy.pointer
                text = self.pointer.read() if ours else read_pointer(name, dir_fd=self._work.fd)
                target = named_by(text) if text else None
            if target is not None and target in whole:
                return whole[target]
        return None

    def pointed(self) -> str | None:
        """The line in our pointer."""
        text = self.pointer.read()
        if text is None and self._as_remembered and self._policy.pointer != NO_POINTER:
            hidden = PointerFile(self._work, NO_POINTER)
            text = hidden.read()
            if text is not None:
                self.pointer = hidden
        return text

    def pointed_ns(self, name: str) -> int:
        """When the pointer was set to a checkpoint; 0 if it names another."""
        text = self.pointed()
        return self.pointer.written_ns() if text is not None and named_by(text) == name else 0

    def advice(self) -> list[str]:
        """What to know of a pointer that lies there from before there was to be none."""
        name = Policy.pointer
        if self._policy.pointer != NO_POINTER and "/" not in self._policy.pointer:
            return []
        line = read_pointer(name, dir_fd=self._work.pointer_fd)
        if line is None:
            return []
        return [f"{name} is there from before and kept up no more; while it is, {named_by(line)} stays: remove it"]

    def _named(self, found: Found) -> dict[str, list[Reason]]:
        named: dict[str, list[Reason]] = {}
        for name in found.pinned:
            _protect(named, name, Kind.PINNED, "pinned")
        for name, link in found.linked.items():
            _protect(named, name, Kind.LINK, f"named by the symlink {link}")
        others = [name for name in found.files if name != self._policy.pointer]
        links = {link: found.tracking[link] for link in found.tracking if link != self._policy.pointer}
        self.told = self._told(others, links) if others or links else ()
        for name, reasons in reasons_by(self.told, self._series, self._there.items()).items() if self.told else ():
            named.setdefault(name, []).extend(reasons)
        return named

    def _told(self, files: list[str], links: Mapping[str, str]) -> Sequence[Told]:
        if self._trackers is None:
            from ..inspect.trackers import Trackers  # here, because many work dirs hold checkpoints alone

            self._trackers = Trackers()
        return self._trackers.told(files, links, OpenedDirectory(self._work.fd))


def _protect(protected: dict[str, list[Reason]], name: str, kind: Kind, text: str) -> None:
    protected.setdefault(name, []).append(Reason(kind, text))
