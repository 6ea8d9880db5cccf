"""The directories below a root: which of them are work dirs, and what has changed there. Reads, never writes.

No symlink is followed, and what is hidden (snapshots, backups, caches), ours, or a checkpoint itself is not looked
into. What somebody has left out is looked into only for a trash of ours. A directory is listed when it is new and when
its own time of change says so: what lies in it costs nothing from then on.
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from ..core.policy import NameTest
from ..core.rank_dirs import RANK, shape, why_with_others
from ..disk.descriptors import OWN_DIR, opened_dir
from ..disk.opened import OpenedDirectory
from ..inspect.directories import is_claimed
from ..workdir import trash
from ..workdir.place import IGNORE
from .exclude import why
from .notable import is_ours

# A change so soon after the one before can leave the time of change as it was, most of all on a network file system.
_SAME_TIME_NS = 2 * 10**9
_HIDDEN = "hidden"

Stamp = tuple[int, int, int, int]


@dataclass(slots=True)
class _Node:
    """A directory as it was listed. stamp: None if it may have changed since without a new time of change.

    left_out: why it is, or a directory above it; "" if none is. holds: a checkpoint, or what ckptd keeps of a run; in
    what is left out, a trash.
    """

    device: int = 0
    stamp: Stamp | None = None
    children: set[str] = field(default_factory=set)
    holds: bool = False
    left_out: str = ""


class Tree:
    """What is known of the directories below `root`, which is absolute.

    exclude: tells of a path the pattern that leaves it out, or "". on_look: told of a directory just before it is
    listed, so that it can be watched before anything in it is missed; not of what is left out.
    on_gone: told of each directory that is no longer there. on_trouble: told of what cannot be listed.
    """

    def __init__(
        self,
        root: str,
        is_checkpoint: NameTest,
        *,
        exclude: Callable[[str], str] = lambda path: "",
        on_look: Callable[[str], None] = lambda path: None,
        on_gone: Callable[[str], None] = lambda path: None,
        on_trouble: Callable[[str, OSError], None] = lambda path, error: None,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self.root, self._is_checkpoint, self._clock = root, is_checkpoint, clock
        self._exclude, self._on_look, self._on_gone, self._on_trouble = exclude, on_look, on_gone, on_trouble
        self._nodes: dict[str, _Node] = {}
        self._left_out: dict[str, str] = {}
        self.listed = 0  # how many directories were, ever

    @property
    def work_dirs(self) -> list[str]:
        """Those known by now, by path."""
        return sorted(path for path, node in self._nodes.items() if node.holds and not node.left_out)

    @property
    def left_behind(self) -> list[str]:
        """Directories that are no work dirs, and hold a trash of ours from when they were."""
        return sorted(path for path, node in self._nodes.items() if node.holds and node.left_out)

    @property
    def left_out(self) -> dict[str, str]:
        """Directories that somebody has left out, and by what; not those below them."""
        return dict(sorted(self._left_out.items()))

    def why_left_out(self, path: str) -> str:
        """Why no run is to be looked after at `path`; "" if nothing speaks against that."""
        node = self._nodes.get(path)
        return node.left_out if node else ""

    def __contains__(self, path: str) -> bool:
        return path in self._nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def device_of(self, path: str) -> int:
        """The number of the disk that a directory was on when it was listed; 0 if it was not."""
        node = self._nodes.get(path)
        return node.device if node else 0

    def look(self, path: str) -> Iterator[str]:
        """List `path` and what below it is new; yields each work dir among them as it is found, and each that is
        left out and has a trash, or was none until now."""
        if path != self.root:
            parent, name = os.path.split(path)
            if parent not in self._nodes or (is_hidden(name) and not _has_trash(path)):
                return  # its parent is gone, or is a checkpoint
        ahead = [path]
        while ahead:
            here = ahead.pop()
            before = self._nodes.get(here)
            found = self._list(here)
            if found is None:
                continue
            if found.holds or (before is not None and before.holds and found.left_out):
                yield here
            below = [os.path.join(here, name) for name in sorted(found.children, reverse=True)]
            same = before is not None and before.left_out == found.left_out
            ahead += [each for each in below if each not in self._nodes or not same]
            if found.left_out.startswith(RANK) and not (before and before.left_out):
                ahead += self._other_ranks(here)

    def look_again(self) -> Iterator[str]:
        """List what has changed by its own time of change; yields each work dir among that. Asks one stat of each."""
        if self.root not in self._nodes:
            yield from self.look(self.root)
            return
        for path, node in list(self._nodes.items()):
            if self._nodes.get(path) is not node:
                continue  # gone meanwhile, or listed anew
            try:
                stamp = _stamp(path, follow=path == self.root)
            except OSError:
                stamp = None
            if stamp is None or stamp != node.stamp:
                yield from self.look(path)

    def distrust(self) -> None:
        """Let the next `look_again` list everything: events were lost."""
        for node in self._nodes.values():
            node.stamp = None

    def forget(self, path: str) -> None:
        """`path` is gone, and all below it."""
        parent = self._nodes.get(os.path.dirname(path))
        if parent is not None and path != self.root:
            parent.children.discard(os.path.basename(path))
        ahead = [path]
        while ahead:
            here = ahead.pop()
            self._left_out.pop(here, None)
            node = self._nodes.pop(here, None)
            if node is not None:
                ahead += [os.path.join(here, name) for name in node.children]
            if node is not None or here == path:
                self._on_gone(here)

    def _list(self, path: str) -> _Node | None:
        """List one directory; None if it is none, or a checkpoint, which are forgotten."""
        node = _Node(left_out=self._why_left_out(path))
        if not node.left_out:
            self._on_look(path)
        named = path != self.root and self._is_checkpoint(os.path.basename(path), True)
        try:
            stamp = _stamp(path, follow=path == self.root)
            if stamp is None:
                self.forget(path)
                return None
            self.listed += 1
            node.device = stamp[0]
            if self._clock() - max(stamp[2:]) > _SAME_TIME_NS:
                node.stamp = stamp
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if name == IGNORE:
                        node.left_out = node.left_out or IGNORE
                    elif entry.is_dir(follow_symlinks=False):
                        if is_ours(name):
                            # A run has declared itself there, or ckptd has been there.
                            node.holds = node.holds or name == OWN_DIR
                            continue
                        if not is_hidden(name) or _has_trash(os.path.join(path, name)):
                            node.children.add(name)
                        node.holds = node.holds or self._is_checkpoint(name, True)
                    elif not node.holds and self._is_checkpoint(name, False):
                        node.holds = entry.is_file(follow_symlinks=False)
            if named and _is_one(path):
                self.forget(path)
                return None
        except (FileNotFoundError, NotADirectoryError):
            self.forget(path)
            return None
        except OSError as error:
            self._on_trouble(path, error)
            node = self._nodes.get(path, node)  # what was known of it stays known, and it is tried again
            node.stamp = None
            self._keep(path, node)
            return None
        if node.left_out:
            node.holds = _has_trash(path)
            if node.left_out == _HIDDEN:
                node.children.clear()  # snapshots and backups: what trash there is in them is a copy
        self._keep(path, node)
        return node

    def _why_left_out(self, path: str) -> str:
        """As far as its place tells, and not yet what lies in it."""
        if path == self.root:
            return ""
        parent, name = os.path.split(path)
        above = self.why_left_out(parent)
        if above or is_hidden(name):
            return above or _HIDDEN
        pattern = self._exclude(path)
        return why(pattern) if pattern else why_with_others(name, self._beside(path))

    def _beside(self, path: str) -> set[str]:
        parent = self._nodes.get(os.path.dirname(path))
        return parent.children if parent is not None else set()

    def _other_ranks(self, path: str) -> Iterator[str]:
        """Those that were work dirs before this one came."""
        parent, name = os.path.split(path)
        for other in sorted(self._beside(path)):
            node = self._nodes.get(os.path.join(parent, other))
            if node is not None and not node.left_out and shape(other) == shape(name):
                yield os.path.join(parent, other)

    def _keep(self, path: str, node: _Node) -> None:
        before = self._nodes.get(path)
        for name in before.children - node.children if before else ():
            self.forget(os.path.join(path, name))
        self._nodes[path] = node
        if node.left_out in ("", _HIDDEN) or self.why_left_out(os.path.dirname(path)):
            self._left_out.pop(path, None)
        else:
            self._left_out[path] = node.left_out
        parent = self._nodes.get(os.path.dirname(path))
        if parent is not None and path != self.root:
            parent.children.add(os.path.basename(path))


def is_hidden(name: str) -> bool:
    """Whether a directory with this name is none that runs are in."""
    return name.startswith(".")


def _has_trash(path: str) -> bool:
    """Whether a directory, or one of ours beside it, holds a trash."""
    parent, name = os.path.split(path)
    owns = os.path.join(path, OWN_DIR), os.path.join(parent, f"{OWN_DIR}.{name}")
    return any(os.path.lexists(os.path.join(own, trash.NAME)) for own in owns)


def _is_one(path: str) -> bool:
    """Whether a directory with a checkpoint's name is one."""
    with opened_dir(path) as fd:
        return is_claimed(OpenedDirectory(fd))


def _stamp(path: str, *, follow: bool) -> Stamp | None:
    """What changes with the content of a directory; None for what is no directory. Raises OSError."""
    info = os.stat(path, follow_symlinks=follow)
    return (info.st_dev, info.st_ino, info.st_mtime_ns, info.st_ctime_ns) if stat.S_ISDIR(info.st_mode) else None
