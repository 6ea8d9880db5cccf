"""Reads what small files beside the checkpoints say of them. An unchanged one is read once; none is followed.

What it means is core's business. A file that frameworks know is read whatever else lies there, and each time: there are
few. Of all others only those are looked at that can be meant for one, so that a thousand samples cost a pass nothing.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from ..core.layouts import TRACKERS
from ..core.naming import PIN_ENDING, SIDECAR_ENDING
from ..core.trackers import LARGEST, LARGEST_KNOWN, NOTHING, RANK, Said, Told, rows_of, said_in
from ..disk.descriptors import OWN_DIR, temporary_name
from ..errors import RefusedError, why

if TYPE_CHECKING:
    from .view import DirectoryView, Inode

MOST_ALIKE = 64  # more names than this that differ in digits alone are somebody's data
MOST = 256  # of more that are unlike, only those count whose names say what they are for
_OURS = (PIN_ENDING, SIDECAR_ENDING, temporary_name("")[1:])  # how what we keep beside checkpoints ends
_RANKS = tuple(file.removesuffix(RANK) for file in TRACKERS if file.endswith(RANK))
_WITHOUT_DIGITS = str.maketrans("", "", "0123456789")
_TELLING = r"(?i)ckpt|check_?point|last|latest|newest|best|lowest|highest|resume|keep|pin|final|track|step|iter|epoch"
# Two changes within one tick of the kernel's clock can bear one time.
_TICK_NS = 50 * 10**6


class Trackers:
    """Of one work dir."""

    def __init__(self) -> None:
        self._listed: list[str] = []
        self._known: list[str] = []
        self._likely: list[str] = []
        self._read: dict[str, tuple[Inode, Said]] = {}

    def told(self, files: list[str], links: Mapping[str, str], here: DirectoryView) -> list[Told]:
        """What is told in the work dir `here`. files: regular files that are no checkpoints. links: what symlinks say
        that frameworks keep."""
        if files != self._listed:  # nearly always the same, and in the same order
            self._listed = files
            self._known = [name for name in files if name in TRACKERS or name.startswith(_RANKS)]
            self._likely = likely(set(files).difference(self._known))
        found = [*told_by_frameworks(self._known, here), *_of_links(links, here)]
        before, self._read = self._read, {}
        for name in self._likely:
            said = self._said(name, before.get(name), here)
            if said != NOTHING:
                found.append(Told(name, said))
        return found

    def _said(self, name: str, before: tuple[Inode, Said] | None, here: DirectoryView) -> Said:
        try:
            inode = here.about(name)
            if before is not None and before[0] == inode:
                self._read[name] = before
                return before[1]
            if not 0 < inode.size_bytes <= LARGEST:
                said = NOTHING
            else:
                with here.opened_file(name) as file:
                    said = said_in(file.read(LARGEST + 1, 0))
                if here.about(name) != inode:
                    return said
        except (OSError, RefusedError):
            return NOTHING  # gone, or nobody's business
        if time.time_ns() - inode.mtime_ns > _TICK_NS:
            self._read[name] = inode, said
        return said


def told_by_frameworks(files: Iterable[str], here: DirectoryView) -> Iterator[Told]:
    """What is told in those of `files` that frameworks know, or why it cannot be."""
    for name in files:
        rows = rows_of(name, TRACKERS)
        if not rows:
            continue
        try:
            with here.opened_file(name) as file:
                content = file.read(LARGEST_KNOWN + 1, 0)
            written_ns = here.about(name).mtime_ns
        except (FileNotFoundError, RefusedError):
            continue  # gone, or something else by now
        except OSError as error:
            yield Told(name, known=True, trouble=why(error))
            continue
        if len(content) <= LARGEST_KNOWN:
            yield Told(name, said_in(content, rows), True, written_ns)


def likely(names: Collection[str]) -> list[str]:
    """Those of `names` that may be meant for trackers, in a stable order; none of ours is."""
    found = list(names)
    if len(found) > MOST_ALIKE:
        alike = "/".join(found).translate(_WITHOUT_DIGITS).split("/")  # at once: one by one takes longer
        count = Counter(alike)
        found = [name for name, form in zip(found, alike) if count[form] <= MOST_ALIKE]
    found = [name for name in found if not (name.endswith(_OURS) or name.startswith(OWN_DIR))]
    if len(found) > MOST:
        found = [name for name in found if re.search(_TELLING, name)]
    return sorted(found)[:MOST]


def _of_links(links: Mapping[str, str], here: DirectoryView) -> Iterator[Told]:
    for link, target in links.items():
        try:
            written_ns = here.about(link).mtime_ns
        except OSError:
            continue
        said = said_in(target.encode("utf-8", "surrogateescape"), rows_of(link, TRACKERS))
        # What it protects is told of a link by itself.
        yield Told(link, Said(newest=said.newest), True, written_ns)
