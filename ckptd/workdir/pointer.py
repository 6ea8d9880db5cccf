"""The pointer: one line that names the checkpoint to resume from. Advice that a reader checks.

It lies in the work dir; where a job trips over it, in `.ckptd`, or wherever an operator wants it.

Reads and replaces; what it should name is decided in passes/. Also reads the frameworks' own pointers.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterator

from ..core.naming import named_by
from ..core.policy import NO_POINTER
from ..disk.descriptors import OWN_DIR, exists, open_file, opened_dir, path_of, replace_file
from ..disk.opened import OpenedDirectory
from ..errors import CkptdError, RefusedError, why
from .workdir import WorkDir

HIDDEN = "pointer"  # in `.ckptd`, where an operator wants none among the checkpoints
_LONGEST = 8192  # bytes; two paths of PATH_MAX


class PointerFile:
    """The pointer of one work dir, wherever its policy has it: `asked` is the policy's word for that.

    With none among the checkpoints it lies in `.ckptd`, and is all that it is elsewhere: durable before anything goes,
    and what it names stays.
    """

    def __init__(self, work: WorkDir, asked: str) -> None:
        self._work, self._asked = work, asked

    @property
    def name(self) -> str:
        """What it is called, for a message."""
        return f"{OWN_DIR}/{HIDDEN}" if self._asked == NO_POINTER else self._asked

    @contextlib.contextmanager
    def place(self) -> Iterator[tuple[str, int] | None]:
        """Its name, and a descriptor of the directory that it is in; None where there is no `.ckptd` for it yet.

        Raises RefusedError where an operator wants it in a directory that cannot be opened.
        """
        if self._asked == NO_POINTER:
            own_fd = self._work.open_own()
            yield None if own_fd is None else (HIDDEN, own_fd)
        elif "/" not in self._asked:
            yield self._asked, self._work.pointer_fd
        else:
            parent, name = os.path.split(self._asked)
            with contextlib.ExitStack() as stack:
                try:
                    fd = stack.enter_context(opened_dir(parent))
                except OSError as error:
                    raise RefusedError(f"--pointer {self._asked}: {why(error)}. Make {parent} first") from error
                yield name, fd

    def read(self) -> str | None:
        """The line that it holds; None if there is none."""
        with self.place() as place:
            return read_pointer(place[0], dir_fd=place[1]) if place is not None else None

    def exists(self) -> bool:
        """Whether anything bears its name."""
        with self.place() as place:
            return place is not None and exists(place[0], dir_fd=place[1])

    def written_ns(self) -> int:
        """When it was set. Raises OSError."""
        with self.place() as place:
            return 0 if place is None else os.stat(place[0], dir_fd=place[1], follow_symlinks=False).st_mtime_ns

    def check_ours(self, views: Collection[str] = ()) -> None:
        """Raise RefusedError where what lies at a path elsewhere is another work dir's pointer, or none at all.

        views: paths by which runs have declared this work dir. One that does not exist here is where this run was once.
        """
        if "/" not in self._asked or not self.exists():
            return
        line = self.read()
        if line is None or not line.startswith("/"):
            raise RefusedError(f"{self._asked}: is there, and no pointer of ckptd's. Remove it, or give another path")
        place = os.path.dirname(line.rstrip("/"))
        if place in views:
            return
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            if not os.path.samestat(os.stat(place), os.fstat(self._work.fd)):
                raise RefusedError(
                    f"{self._asked}: names {line}, so it is another work dir's pointer. Give each its own --pointer"
                )


def read_pointer(name: str, *, dir_fd: int) -> str | None:
    """The line that the pointer file `name` holds, without its newline; None if it is missing or no line of text."""
    try:
        fd = open_file(name, dir_fd=dir_fd)
    except (OSError, RefusedError):
        return None  # as nearly always of a framework's own, several times in each pass
    try:
        content = os.pread(fd, _LONGEST + 1, 0)
    except OSError:
        return None
    finally:
        os.close(fd)
    text = os.fsdecode(content).strip()
    return text if text and len(content) <= _LONGEST and "\n" not in text and "\0" not in text else None


def replace_pointer(name: str, target: str, *, dir_fd: int) -> None:
    """Make the pointer name the path `target`: durable, and whole at every moment. Raises OSError.

    A directory in the pointer's place is refused; a symlink is replaced, never followed.
    """
    try:
        replace_file(name, os.fsencode(target) + b"\n", dir_fd=dir_fd)
    except (IsADirectoryError, NotADirectoryError) as error:
        raise RefusedError(
            f"{path_of(name, dir_fd=dir_fd)}: a directory where the pointer goes. "
            "Move it away, or name another --pointer"
        ) from error


def best_of_trainer(name: str, *, dir_fd: int) -> str | None:
    """The checkpoint that the state of a Trainer in the directory `name` calls the best, as a plain name."""
    from ..inspect.parts import trainer_state  # here, because only a Trainer's checkpoints need it

    try:
        with opened_dir(name, dir_fd=dir_fd) as fd:
            best = (trainer_state(OpenedDirectory(fd)) or {}).get("best_model_checkpoint")
    except (OSError, CkptdError):
        return None
    return named_by(best) if isinstance(best, str) else None


def link_target(name: str, *, dir_fd: int) -> str | None:
    """What the symlink `name` names, as a plain name; None if it is no symlink."""
    try:
        if not stat.S_ISLNK(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode):
            return None
        return named_by(os.readlink(name, dir_fd=dir_fd))
    except OSError:
        return None
