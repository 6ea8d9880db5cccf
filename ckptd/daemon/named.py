"""Work dirs that were named: waited for while they are not there, whoever they belong to, wherever a symlink leads."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ..core.survey import Survey
from ..disk.filesystem import SCAN_LOCAL_S, SCAN_NETWORK_S, is_local, is_read_only
from ..disk.mounts import mounts
from ..errors import RefusedError, ReplacedError
from ..systemd import notify
from ..workdir.place import left_alone_text
from ..workdir.workdir import WorkDir, become_owner, check_library_use
from .process import Process
from .watch import Watcher

log = logging.getLogger("ckptd")


class Named:
    """The source of the work dirs at `paths`. hint: told of one that may have changed, by the thread of inotify."""

    def __init__(self, paths: Sequence[str], process: Process, hint: Callable[[str], None]) -> None:
        self.paths = tuple(paths)
        self._scan_interval_s = process.scan_interval_s
        self._watcher = Watcher(hint, process.inotify, process.filter)
        self._mounts = _mounts()
        self._becoming = threading.Lock()  # of two that appear at once, the first decides who we are

    def watch(self, path: str, inside: Iterable[str] = ()) -> bool:
        """Give hints of `path` and its directories `inside`, and of its coming and going."""
        return self._watcher.watch(path, inside)

    def forget(self, path: str) -> None:
        """Give no hint of `path` any more."""
        self._watcher.forget(path)

    def open(self, path: str, *, waited: bool) -> WorkDir | None:
        """Meet the work dir if it is there, as its owner. Raises ReplacedError where only a restart can go on."""
        if not os.path.exists(path):
            if not waited:
                log.info("waiting for %s, which does not exist yet", path)
            return None
        with self._becoming:
            become_owner([path])
        work = WorkDir(path)
        try:
            check_library_use(work)
            if waited and is_read_only(work.fd) and notify.under_systemd():
                raise ReplacedError(f"{path}: appeared after the start, and only a restart makes it writable")
        except BaseException:
            work.close()
            raise
        return work

    def interval_s(self, work: WorkDir) -> float:
        """As was asked for, or as its file system needs."""
        return self._scan_interval_s or (SCAN_LOCAL_S if is_local(work.fd) else SCAN_NETWORK_S)

    def misses(self, path: str) -> bool:
        """Always: somebody has named it."""
        return True

    def announces(self, survey: Survey) -> bool:
        """Always: somebody has named it."""
        return True

    def leaves_out(self, path: str) -> bool:
        """Never: somebody has named it. A file in it may still say so."""
        return False

    def check_left_out(self, path: str) -> None:
        """Raise RefusedError, with the way out."""
        raise RefusedError(left_alone_text(path))

    def label(self, path: str) -> str:
        """Its path, where there are several."""
        return path if len(self.paths) > 1 else ""

    def device_of(self, path: str) -> int:
        """The number of the disk that is mounted there, symlinks aside."""
        return next((self._mounts[str(p)] for p in (Path(path), *Path(path).parents) if str(p) in self._mounts), 0)


def _mounts() -> dict[str, int]:
    """The number of the disk by the place where it is mounted."""
    try:
        return {mount.place: mount.device for mount in mounts()}
    except OSError:
        return {}
