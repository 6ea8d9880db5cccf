"""Frees what is in the trash, in the background.

What it is given is claimed by a rename first: from then on `restore` cannot see it.
"""

from __future__ import annotations

import os
from collections import deque

from ..disk.descriptors import opened_own_dir, sync_dir
from ..errors import RefusedError, why
from ..text.voice import Voice
from ..workdir import groups, trash
from .background import Background


class Remover:
    """Frees the trash of one work dir; `failed` holds what could not be freed, until somebody takes it."""

    def __init__(self, background: Background, voice: Voice) -> None:
        self._background, self._voice = background, voice
        self._left = 0
        self.failed: deque[tuple[str, OSError | RefusedError]] = deque()  # filled by a thread, emptied by another

    @property
    def is_busy(self) -> bool:
        """Whether something is still to be freed, or could not be."""
        return bool(self._left > 0 or self.failed)

    def submit(self, work_dir: str, own_fd: int, items: list[str]) -> None:
        """Free `items` of the trash below the `.ckptd` directory `own_fd`, soon, in this order."""
        with opened_own_dir(trash.NAME, dir_fd=own_fd) as fd:
            trash_fd = os.dup(fd)  # outlives the pass, and the work dir if that is replaced
        self._left += 1
        device = os.fstat(trash_fd).st_dev
        self._background.submit(f"free {work_dir}", lambda: self._free(items, trash_fd), device=device)

    def _free(self, items: list[str], trash_fd: int) -> None:
        try:
            for item in items:
                if self._background.stopping.is_set():
                    return  # the next start goes on
                self._free_one(item, trash_fd)
        finally:
            os.close(trash_fd)
            self._left -= 1  # jobs of one work dir never run side by side

    def _free_one(self, item: str, trash_fd: int) -> None:
        try:
            together, item = groups.is_group(item), trash.claim(item, trash_fd=trash_fd)
            if together:
                sync_dir(trash_fd)  # after a power cut, too, nobody may find it with a file less
            trash.remove(item, trash_fd=trash_fd)
            self._voice.debug("freed trash/%s", item)
            self._voice.forget("freeing", of=item)
        except FileNotFoundError:
            self._voice.debug("trash/%s was gone", item)  # restored, or freed by hand
        except (OSError, RefusedError) as error:
            self.failed.append((item, error))
            self._voice.once("freeing", f"could not free trash/{item}: {why(error)}; will try again", of=item)
