"""One work dir that this process looks after: its descriptor, its owner, its `.ckptd`, and the lock on it.

Creates `.ckptd` only when it is asked to take the lock; nothing here deletes.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import stat
import time
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path

from ..disk.descriptors import LOCK, NO_ROOM, OWN_DIR, open_as_its_directory, opened_dir
from ..errors import CkptdError, NoRoomError, OwnedError, RefusedError, UsageError, why
from .place import is_aside, make_own, opened_own, own_dir

_MOST_LINKS = 40  # as the kernel's
_NOT_THE_DAEMONS = {"ckptd.__main__", "ckptd.shim"}
# What functions of ours import when they are called, and what Python itself does in what we call.
_PYTHON_IMPORTS_LATE = ("ctypes", "encodings.cp437", "heapq", "linecache", "socket", "tokenize", "traceback")
_NOGROUP = 65534
_LOCK_WAIT_S, _LOCK_RETRY_S = 1.0, 0.05
_SHORT_LOCK_WAIT_S = 0.1  # of one among many, which is tried again: a job that asks for the lock has it for no longer
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL})


class WorkDir:
    """A work dir, open. `path` is absolute; `fd` stays on the directory even if it is renamed.

    below: an absolute path above it; between the two no symlink is followed, whoever made it.
    Raises UsageError if it is no directory, CkptdError if it cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str], *, below: str | None = None) -> None:
        self.path = os.path.abspath(path)
        if "\n" in self.path:
            raise UsageError(f"{self.path!r}: a path with a newline, which no line of a pointer can hold. Rename it")
        try:
            self.fd = _opened(self.path, below)
        except FileNotFoundError as error:
            raise CkptdError(f"{path}: does not exist. Give the directory that the training job writes to") from error
        except NotADirectoryError as error:
            raise UsageError(f"{path}: not a directory. Give the directory that holds the checkpoints") from error
        except OSError as error:
            raise CkptdError(f"{path}: cannot be opened: {why(error)}. Run ckptd as its owner") from error
        try:
            info = os.fstat(self.fd)
        except OSError:
            os.close(self.fd)
            raise
        self.device, self.owner, self._id = info.st_dev, info.st_uid, _id(info)
        self.own_fd: int | None = None
        self._own_dir, self._own_id = "", (0, 0)
        self._lock_fd: int | None = None
        self._pointer_fd: int | None = None
        self._below = below
        self._stack: contextlib.ExitStack | None = None

    def __enter__(self) -> WorkDir:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.rest()
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def rest(self) -> None:
        """Close all but the lock, so that a work dir in which nothing happens costs one descriptor."""
        if self._stack is not None:
            self._stack.close()
        self._stack = self.own_fd = self._pointer_fd = None
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def wake(self) -> None:
        """Open again what rested. Raises OSError, also if it is another directory by now."""
        if self.fd < 0:
            self.fd = _opened(self.path, self._below)
            if _id(os.fstat(self.fd)) != self._id:
                raise OSError(errno.ESTALE, os.strerror(errno.ESTALE), self.path)

    @property
    def is_owned(self) -> bool:
        """Whether we have taken it."""
        return self._lock_fd is not None

    def is_still_there(self) -> bool:
        """Whether the path still leads to this directory, and to the same `.ckptd` in it.

        A directory can be replaced, unmounted or removed while we hold it open; then nothing we do is seen any more.
        """
        try:
            if _id(os.stat(self.path)) != self._id:
                return False
            if not self._own_dir:
                return True
            return _id(os.stat(os.path.join(self.path, self._own_dir), follow_symlinks=False)) == self._own_id
        except OSError:
            return False

    def open_own(self) -> int | None:
        """A descriptor of `.ckptd` if there is one, creating nothing. Raises RefusedError for a symlink there."""
        if self.own_fd is None:
            try:
                self.own_fd = self._kept(opened_own(self.fd))
                self._own_dir, self._own_id = own_dir(self.fd), _id(os.fstat(self.own_fd))
            except FileNotFoundError:
                return None
            except PermissionError as error:
                raise CkptdError(f"{self.own_path}: cannot be opened: {why(error)}. Run ckptd as its owner") from error
        return self.own_fd

    @property
    def taken_fd(self) -> int:
        """The descriptor of `.ckptd`, for who has taken the work dir."""
        assert self.own_fd is not None
        return self.own_fd

    @property
    def own_path(self) -> str:
        """Where `.ckptd` is, or will be, for a message."""
        return os.path.normpath(os.path.join(self.path, own_dir(self.fd)))

    @property
    def pointer_fd(self) -> int:
        """A descriptor of the directory of the pointer: this one, or its parent where `.ckptd` is there."""
        if self._pointer_fd is None:
            if not is_aside(own_dir(self.fd)):
                return self.fd  # looked up anew until it is decided
            self._pointer_fd = self._kept(opened_dir("..", dir_fd=self.fd))
        return self._pointer_fd

    def take(self) -> bool:
        """Make `.ckptd` if need be, and take the lock on it: from here on this process owns the work dir.

        Returns False where the file system knows no locks: every step is safe without one. Raises OwnedError if
        another ckptd has it for longer than a second, CkptdError if the work dir cannot be written.
        """
        if self._lock_fd is not None:
            return True
        try:
            make_own(self.fd)
            own_fd = self.open_own()
            if own_fd is None:  # made above, and removed since by whoever removes the work dir
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), OWN_DIR)
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            fd = os.open(LOCK, flags, 0o666, dir_fd=own_fd)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                raise RefusedError(f"{self.own_path}/{LOCK}: not a file that ckptd made. Remove it") from error
            if error.errno in NO_ROOM:
                raise NoRoomError(
                    f"{self.path}: {why(error)}. Free a few kB on that disk, and run ckptd again"
                ) from error
            advice = ". Run ckptd as its owner" if error.errno in (errno.EACCES, errno.EPERM) else ""
            raise CkptdError(f"{self.path}: cannot be written: {why(error)}{advice}") from error
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise RefusedError(f"{self.own_path}/{LOCK}: not a file that ckptd made. Remove it")
            open_as_its_directory(fd, dir_fd=own_fd)
            locked = self._flock(fd)
        except BaseException:
            os.close(fd)
            raise
        self._lock_fd = fd
        return locked

    def _kept(self, opened: contextlib.AbstractContextManager[int]) -> int:
        """The descriptor, closed when this rests."""
        self._stack = self._stack or contextlib.ExitStack()
        return self._stack.enter_context(opened)

    def _flock(self, fd: int) -> bool:
        deadline = time.monotonic() + (_LOCK_WAIT_S if self._below is None else _SHORT_LOCK_WAIT_S)
        while True:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return True
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    return False
                if error.errno not in (errno.EAGAIN, errno.EACCES):
                    raise CkptdError(f"{self.own_path}/{LOCK}: cannot be locked: {why(error)}") from error
            if time.monotonic() > deadline:
                raise OwnedError(f"{self.path}: {_holder(fd)} owns this work dir. Stop it, or leave the work to it")
            time.sleep(_LOCK_RETRY_S)


def become_owner(paths: Sequence[str | os.PathLike[str]]) -> None:
    """As root: give up root and become the owner of the work dirs, before anything in them is touched.

    Nothing that a user plants can then make root do anything. Raises RefusedError for several owners, since one process
    has one, and for a symlink on the way that is neither root's nor the owner's: whoever made it would choose on whose
    directory ckptd acts, and as whom. A directory that does not exist yet has no owner yet.
    """
    if os.geteuid() != 0:
        return
    owners = {_owner_of(path) for path in paths if os.path.exists(path)}
    if len(owners) > 1:
        raise RefusedError("several owners among these work dirs: run one ckptd for each owner")
    for uid in owners - {0}:
        _import_all()
        _take_groups_of(uid)
        os.setresuid(uid, uid, uid)


def _import_all() -> None:
    """Import all of ckptd's modules while they can still be read: Python may be in a home that is closed to the owner.

    Nothing is imported any more once root is given up.
    """
    from pkgutil import iter_modules  # here, because only root needs it

    packages = [__package__.partition(".")[0]]
    while packages:
        package = packages.pop()
        for found in iter_modules(import_module(package).__path__, f"{package}."):
            if found.name in _NOT_THE_DAEMONS:
                continue
            import_module(found.name)
            if found.ispkg:
                packages.append(found.name)
    for name in _PYTHON_IMPORTS_LATE:
        import_module(name)


def _take_groups_of(uid: int) -> None:
    """The owner's own groups, as at a login, and never the directory's: that may be one whose rights he has not."""
    try:
        owner = pwd.getpwuid(uid)
    except KeyError:  # without a name, as on a file server
        os.setgroups([])
        gid = _NOGROUP if _is_group(uid) else uid
    else:
        os.initgroups(owner.pw_name, owner.pw_gid)
        gid = owner.pw_gid
    os.setresgid(gid, gid, gid)


def _is_group(gid: int) -> bool:
    try:
        grp.getgrgid(gid)
    except KeyError:
        return False
    return True


def check_library_use(work: WorkDir) -> None:
    """Raise RefusedError if root calls into somebody else's directory: a library cannot change its caller's user."""
    if os.geteuid() == 0 and work.owner != 0:
        raise RefusedError(
            f"{work.path}: belongs to another user. Call ckptd as its owner, or use the command, which becomes it"
        )


def _id(info: os.stat_result) -> tuple[int, int]:
    return info.st_dev, info.st_ino


def other_owner(path: str) -> str | None:
    """Who owns the work dir at `path`, found below a root, if that keeps us away: None where we may work.

    Root acts in nobody else's directory. Others may write where the bits let them, as in a group's.
    """
    uid = os.lstat(path).st_uid
    if uid == os.geteuid() or (os.geteuid() != 0 and os.access(path, os.W_OK)):
        return None
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def others_text(work_dir: str, owner: str, root: str) -> str:
    """Why a work dir is left alone, said once for each owner."""
    return (
        f"left alone {work_dir}, and what else {owner} owns below {root}: run a ckptd of {owner}'s for that, "
        f"as `ckptd watch --recursive` does with the owner of the directory it is given"
    )


def _opened(path: str, below: str | None) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    if below is None:
        return os.open(path, flags)
    fd = os.open(below, flags)
    for part in os.path.relpath(path, below).split(os.sep):
        try:
            inside = os.open(part, flags | os.O_NOFOLLOW, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inside
    return fd


def _owner_of(path: str | os.PathLike[str]) -> int:
    info = os.stat(path)
    for link, uid in _links_on_the_way(os.path.abspath(path)):
        if uid not in (0, info.st_uid):
            raise RefusedError(f"{link}: a symlink of another user than {path} belongs to. Name the directory itself")
    return info.st_uid


def _links_on_the_way(path: str) -> Iterator[tuple[str, int]]:
    """Every symlink that leads to `path`, those inside other links' targets too, with its owner."""
    here, ahead, left = "/", path.split("/")[::-1], _MOST_LINKS
    while ahead:
        part = ahead.pop()
        if part in ("", "."):
            continue
        here_part = os.path.dirname(here) if part == ".." else os.path.join(here, part)
        info = os.lstat(here_part)
        if not stat.S_ISLNK(info.st_mode):
            here = here_part
            continue
        left -= 1
        if left < 0:
            raise RefusedError(f"{path}: too many symlinks. Name the directory itself")
        yield here_part, info.st_uid
        target = os.readlink(here_part)
        here = "/" if target.startswith("/") else here
        ahead += target.split("/")[::-1]


def _holder(fd: int) -> str:
    """Who holds the lock, as the kernel lists it; the file itself says nothing, so it can never be stale."""
    info = os.fstat(fd)
    ours = f"{os.major(info.st_dev):02x}:{os.minor(info.st_dev):02x}:{info.st_ino}"
    with contextlib.suppress(OSError, IndexError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()
            if "->" not in fields and fields[1] == "FLOCK" and fields[5] == ours:
                words = Path(f"/proc/{int(fields[4])}/cmdline").read_bytes().split(b"\0")
                return f"process {fields[4]} ({os.fsdecode(b' '.join(words)).strip()})"
    return "another ckptd"
