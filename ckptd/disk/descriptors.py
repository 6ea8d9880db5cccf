"""The few disk operations that all others are made of: under one directory descriptor, no symlink followed.

What it opens it never follows, never blocks on (a FIFO), and never creates over.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import stat
from collections.abc import Callable, Iterator
from typing import Any

from ..errors import CkptdError, RefusedError

OWN_DIR = ".ckptd"  # everything of ours in a work dir, but the pointer
LOCK = "lock"  # in it: whoever has the lock on it owns the work dir
FORBIDDEN = frozenset({errno.EACCES, errno.EPERM})
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})

_DEEPEST = 32  # levels below a checkpoint's directory; real ones have four

_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_RENAME_NOREPLACE = 1
_SYS_RENAMEAT2 = {"x86_64": 316, "aarch64": 276}  # for a libc older than the call
_NOT_IN_ONE_CALL = frozenset({errno.ENOSYS, errno.EINVAL, errno.ENOTSUP})  # NFS, FUSE, old kernels
_NO_SECOND_NAME = frozenset({errno.EPERM, errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EMLINK})
_CANNOT_SYNC = frozenset({errno.EINVAL, errno.ENOTSUP})  # some network file systems, for directories only


class SyncError(OSError):
    """An fsync itself has failed: what it was about may never be durable, whatever a later fsync says."""


@contextlib.contextmanager
def opened_dir(path: str, *, dir_fd: int | None = None) -> Iterator[int]:
    """A descriptor of the directory `path`; below `dir_fd`, where a symlink in its place is refused."""
    flags = _DIRECTORY if dir_fd is None else _DIRECTORY | os.O_NOFOLLOW
    fd = _opened(path, flags, dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_again(dir_fd: int) -> Iterator[int]:
    """Another descriptor of the directory open as `dir_fd`, to list it with.

    A FUSE file system may read a directory once for each descriptor, and give nothing, or what it was then, when it is
    read again.
    """
    try:
        fd = os.open(".", _DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        raise OSError(error.errno, error.strerror) from error  # without the ".", which tells nobody anything
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def listed(dir_fd: int) -> Iterator[Iterator[os.DirEntry[str]]]:
    """The entries of the directory open as `dir_fd`, while the `with` lasts, read through another descriptor of it."""
    with opened_again(dir_fd) as fd, os.scandir(fd) as entries:
        yield entries


def names_in(dir_fd: int) -> list[str]:
    """The names in the directory open as `dir_fd`, read as `listed` does."""
    with listed(dir_fd) as entries:
        return [entry.name for entry in entries]


@contextlib.contextmanager
def opened_own_dir(name: str, *, dir_fd: int) -> Iterator[int]:
    """A descriptor of a directory of ours below `dir_fd`; raises RefusedError for whatever else bears its name."""
    try:
        fd = os.open(name, _DIRECTORY | os.O_NOFOLLOW, dir_fd=dir_fd)
    except OSError as error:
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            where = path_of(name, dir_fd=dir_fd)
            raise RefusedError(f"{where}: a symlink or a file where ckptd keeps a directory. Remove it") from error
        raise
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def opened_file(name: str, *, dir_fd: int) -> Iterator[int]:
    """What `open_file` returns, while the `with` lasts."""
    fd = open_file(name, dir_fd=dir_fd)
    try:
        yield fd
    finally:
        os.close(fd)


def open_file(name: str, *, dir_fd: int) -> int:
    """A read-only descriptor of the regular file `name`; raises OSError for a symlink, RefusedError for others."""
    try:
        fd = _opened(name, _READ, dir_fd)
    except OSError as error:
        if error.errno == errno.ENXIO:
            raise _not_regular(name, dir_fd) from error  # a socket
        raise
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise _not_regular(name, dir_fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def read_small(name: str, *, dir_fd: int, at_most: int) -> bytes | None:
    """The content of a regular file of ours, None if there is none; raises RefusedError if it is not a plain file."""
    try:
        with opened_file(name, dir_fd=dir_fd) as fd, open(fd, "rb", closefd=False) as file:
            content = file.read(at_most + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            where = path_of(name, dir_fd=dir_fd)
            raise RefusedError(f"{where}: a symlink where ckptd keeps a file of its own. Remove it") from error
        raise
    if len(content) > at_most:
        raise CkptdError(f"{name}: larger than {at_most} bytes, so nothing that ckptd wrote. Remove it")
    return content


def replace_file(name: str, content: bytes, *, dir_fd: int) -> None:
    """Put `content` under `name` so that a crash leaves the old file or the new one, whole and durable.

    Temporary file in the same directory, fsync, rename, fsync of the directory. A symlink at `name` is replaced,
    not followed. Raises OSError; the old file is then still there.
    """
    aside = temporary_name(name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(aside, dir_fd=dir_fd)
    fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666, dir_fd=dir_fd)
    try:
        try:
            written = 0
            while written < len(content):
                written += os.write(fd, content[written:])
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(aside, name, src_dir_fd=dir_fd, dst_dir_fd=dir_fd)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(aside, dir_fd=dir_fd)
        raise
    sync_dir(dir_fd)


def rename_new(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int, ours: bool = False) -> None:
    """Rename, replacing nothing: raises FileExistsError if the new name is taken, OSError otherwise.

    Where the system cannot do that in one call, a file gets its second name before it loses the first. For a directory,
    which can have no second, a look just before has to do; and for a new name in a directory of `ours`, since whoever
    replaces the old name between the two would lose what he put there.
    """
    try:
        _rename_noreplace(src, dst, src_dir_fd, dst_dir_fd)
        return
    except OSError as error:
        if error.errno not in _NOT_IN_ONE_CALL:
            raise
    is_dir = stat.S_ISDIR(os.stat(src, dir_fd=src_dir_fd, follow_symlinks=False).st_mode)
    if not (ours or is_dir):
        try:
            os.link(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, follow_symlinks=False)
        except OSError as error:
            if error.errno not in _NO_SECOND_NAME:
                raise
        else:
            os.unlink(src, dir_fd=src_dir_fd)
            return
    if exists(dst, dir_fd=dst_dir_fd):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), dst)
    os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)


def open_to_owner(name: str, *, dir_fd: int) -> None:
    """Let its owner do everything in the directory `name`, whatever its mode. What is no directory any more is left as
    it is, a symlink too; and so is what may not be changed."""
    try:
        # Without opening it, which its mode may forbid; by its inode, for by now the name may be somebody else's.
        fd = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    except OSError:
        return
    try:
        with contextlib.suppress(OSError):
            # An absolute path: with dir_fd it is only the same call, fchmodat, on every machine.
            os.chmod(f"/proc/self/fd/{fd}", 0o700, dir_fd=dir_fd)
    finally:
        os.close(fd)


def temporary_name(name: str) -> str:
    """The one temporary name beside `name`: a stray one is found and replaced by the next write."""
    return f".{name}.ckptd-tmp"


def open_as_its_directory(fd: int, *, dir_fd: int) -> None:
    """Let those write to what we have made who may write to the directory it is in: a group that shares one."""
    made, around = os.fstat(fd).st_mode, os.fstat(dir_fd).st_mode
    wanted = around & (0o777 if stat.S_ISDIR(made) else 0o666)
    if made & 0o777 != wanted:
        with contextlib.suppress(PermissionError):  # made by another of them
            os.fchmod(fd, wanted)


def sync_dir(dir_fd: int) -> None:
    """Make the names in a directory durable; a file system that cannot do that for directories is no error."""
    try:
        os.fsync(dir_fd)
    except OSError as error:
        if error.errno not in _CANNOT_SYNC:
            raise SyncError(error.errno, error.strerror) from error


def sync_file(name: str, *, dir_fd: int) -> None:
    """Make a file durable that another process wrote: Linux flushes it through a read-only descriptor too."""
    with opened_file(name, dir_fd=dir_fd) as fd:
        _fsync(fd)


def path_of(name: str, *, dir_fd: int) -> str:
    """Where `name` is, for a message: with the path of the directory, where /proc tells it."""
    try:
        return os.path.join(os.readlink(f"/proc/self/fd/{dir_fd}"), name)
    except OSError:
        return name


def check_depth(depth: int, name: str) -> None:
    """Raise OSError below more directories than any checkpoint has: whoever made them wants to exhaust something."""
    if depth > _DEEPEST:
        raise OSError(errno.ELOOP, "nested deeper than any checkpoint", name)


def exists(name: str, *, dir_fd: int) -> bool:
    """Whether anything bears `name`, a dangling symlink included."""
    try:
        os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENAMETOOLONG):
            raise
        return False
    return True


def hole_in(fd: int, size_bytes: int) -> int | None:
    """The first byte of a file of so many that was never written, and reads as zero; None if all were."""
    try:
        hole = os.lseek(fd, 0, os.SEEK_HOLE)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENXIO):
            return None  # a file system that knows no holes, or an empty file
        raise
    return hole if hole < size_bytes else None


def _rename_noreplace(src: str, dst: str, src_dir_fd: int, dst_dir_fd: int) -> None:
    names = os.fsencode(src), os.fsencode(dst)
    if any(b"\0" in each for each in names):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ascii(src))
    number = _renameat2()(src_dir_fd, names[0], dst_dir_fd, names[1], _RENAME_NOREPLACE)
    if number:
        raise OSError(number, os.strerror(number), src, None, dst)


@functools.cache
def _renameat2() -> Callable[[int, bytes, int, bytes, int], int]:
    """The call itself; it returns an error's number, or 0."""
    import ctypes  # here, because who only reads needs it seldom, and it is slow to import

    libc = ctypes.CDLL(None, use_errno=True)
    number = _SYS_RENAMEAT2.get(os.uname().machine)

    def call(*args: Any) -> int:
        if hasattr(libc, "renameat2"):
            failed = libc.renameat2(*args)
        elif number is not None:
            failed = libc.syscall(number, *args)
        else:
            return errno.ENOSYS
        return ctypes.get_errno() if failed else 0

    return call


def _opened(name: str, flags: int, dir_fd: int | None) -> int:
    """A descriptor. What no name can be is missing: it was read in a file that somebody may have damaged."""
    try:
        return os.open(name, flags, dir_fd=dir_fd)
    except ValueError as error:  # a NUL, or half of a character
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), ascii(name)) from error
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG and dir_fd is not None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from error
        raise


def _not_regular(name: str, dir_fd: int) -> RefusedError:
    return RefusedError(f"{path_of(name, dir_fd=dir_fd)}: not a regular file. Remove it, and run ckptd again")


def _fsync(fd: int) -> None:
    try:
        os.fsync(fd)
    except OSError as error:
        raise SyncError(error.errno, error.strerror) from error
