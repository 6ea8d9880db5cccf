"""What the kernel tells of directories, each watched for itself, with one thread for all: the only import of watchdog.

Its observers would also watch what is inside checkpoints and our own directories, hold back what follows a move, and do
not say which directories they could not watch. So this takes its reader of inotify, which promises less from one
version to the next: only versions are taken that tests/test_inotify.py has been through.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import stat
import struct
import sys
import threading
import time
from collections.abc import Callable

from watchdog.version import VERSION_INFO, VERSION_STRING

from ..errors import UsageError
from .pace import Pace

PROVEN = ((7, 1), (7, 2))  # from the first to before the second; setup.cfg says the same

if not PROVEN[0] <= VERSION_INFO[:2] < PROVEN[1]:
    _range = "watchdog>={}.{},<{}.{}".format(*PROVEN[0], *PROVEN[1])
    raise UsageError(
        f"the command ckptd needs {_range}, and this is {VERSION_STRING}: `{sys.executable} -m pip install '{_range}'`"
    )

from watchdog.observers.inotify_c import CallbackId, InotifyEvent, InotifyFD, Mask, WatchDescriptor  # noqa: E402
from watchdog.observers.inotify_c import InotifyConstants as In  # noqa: E402

# Asked of the kernel, so that the thousands of writes into one big file never wake this process. What two ask of one
# directory adds up.
_MASK = In.IN_CLOSE_WRITE | In.IN_MOVED_FROM | In.IN_MOVED_TO | In.IN_CREATE | In.IN_DELETE
_FATE = In.IN_DELETE_SELF | In.IN_MOVE_SELF
_HOW = In.IN_ONLYDIR | In.IN_MASK_ADD
_CAME = In.IN_CLOSE_WRITE | In.IN_MOVED_TO | In.IN_CREATE  # which of them it was makes no difference to anybody

# In a storm what is heard waits so long at most, and is read together: to be woken costs more than an event.
_PUT_OFF_S = 0.01
_READING = 0.01  # of the time, unless so much happens that it takes more
_BURST_S = 0.005  # some fifty reads
_BUFFER_BYTES = 1 << 18  # thousands of events: a third of what the kernel holds before it loses any

# struct inotify_event: wd, mask, cookie, the length of the name; then the name, filled up with zeros.
_HEAD_BYTES = 16
_head = struct.Struct("iII").unpack_from
_length_of_name = struct.Struct("I").unpack_from

_Watched = tuple[WatchDescriptor, CallbackId]

log = logging.getLogger("ckptd")
logging.getLogger("watchdog").addHandler(logging.NullHandler())  # what it says of lost events is dealt with here


class Inotify:
    """The one instance of the kernel's that all watches share, and its thread: there once a directory is watched.

    Any thread may call it.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._reader: InotifyFD | None = None  # changed under the lock
        self._closed = False
        self._ids = itertools.count()
        self._said_full = False

    def add(self, path: str, mask: int, whom: DirectoryWatch) -> _Watched | None:
        """Watch a directory, and tell `whom`; None where it is no directory, or may not be read, or this is closed.

        Raises OSError where the system gives no more watches or instances.
        """
        reader, id_ = self._opened(), CallbackId(next(self._ids))
        if reader is None:
            return None
        try:
            wd = reader.add_callback(os.fsencode(path), Mask(mask), whom, id_)
        except (FileNotFoundError, NotADirectoryError):
            return None
        if wd < 0:
            self.remove((wd, id_))
            return None
        return wd, id_

    def remove(self, watched: _Watched) -> None:
        """Tell whom it was watched for no more."""
        reader = self._reader
        if reader is not None:
            with contextlib.suppress(OSError):  # gone already
                reader.remove_callbacks([watched])

    @property
    def is_open(self) -> bool:
        """Whether anything can be watched."""
        return self._reader is not None

    def is_alive(self) -> bool:
        """Whether hints still come, if any were promised."""
        reader = self._reader
        return reader is None or reader.is_alive()

    def say_full(self, path: str, error: OSError) -> None:
        """Out of watches or instances, which is said once: scanning goes on without."""
        if not self._said_full:
            self._said_full = True
            instances = error.errno == errno.EMFILE
            limit = "fs.inotify.max_user_instances" if instances else "fs.inotify.max_user_watches"
            log.warning("could not watch %s: %s; scanning instead (see %s)", path, error, limit)

    def begin_anew(self) -> None:
        """Stop, and forget all watches; whoever watches something after that has another instance."""
        with self._lock:
            reader, self._reader = self._reader, None
        if reader is not None:
            reader.stop()  # tells each DirectoryWatch that its watches are gone
            reader.join()

    def close(self) -> None:
        """Stop for good."""
        self._closed = True
        self.begin_anew()

    def _opened(self) -> InotifyFD | None:
        with self._lock:
            if self._reader is None and not self._closed:
                reader = _Reader()
                reader.start()
                self._reader = reader
            return self._reader


class _Reader(InotifyFD):
    """Reads at once where little happens, and much at a time in a storm. What one read holds twice is told once."""

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace(_READING, _BURST_S, _PUT_OFF_S)
        self._used_s = 0.0

    def read_events(self, *, event_buffer_size: int = _BUFFER_BYTES) -> list[InotifyEvent]:
        """The next events; called again once these were told."""
        now_s, used_s = time.monotonic(), time.thread_time()  # not what it waits for a pass that is under way
        self._pace.done(now_s, used_s - self._used_s)
        self._used_s = used_s
        due_s = self._pace.due_s(now_s)
        if due_s > now_s:
            time.sleep(due_s - now_s)
        return _events(self._read_event_buffer(event_buffer_size))


def _events(buffer: bytes) -> list[InotifyEvent]:
    """What the kernel told, in its order; of what says the same to whoever listens only the last."""
    records, at = [], 0
    while at < len(buffer):
        end = at + _HEAD_BYTES + _length_of_name(buffer, at + _HEAD_BYTES - 4)[0]
        records.append(buffer[at:end])
        at = end
    events: dict[tuple[int, int, bytes], InotifyEvent] = {}
    for record in dict.fromkeys(reversed(records)):
        wd, mask, cookie = _head(record)
        name = record[_HEAD_BYTES:].rstrip(b"\0")
        if wd != -1 or mask & In.IN_Q_OVERFLOW:
            events.setdefault((wd, mask & ~_CAME, name), InotifyEvent(wd, mask, cookie, name))
    return list(reversed(events.values()))


def is_yet_to_be_written(path: str, name: str) -> bool:
    """Whether a file that came is as one that was just opened to be written, whose closing is told too.

    Nothing more is told of a symlink, a link to what was written before, or a pipe.
    """
    try:
        info = os.lstat(f"{path}/{name}")
    except OSError:
        return False
    return stat.S_ISREG(info.st_mode) and info.st_nlink == 1 and not info.st_size


class DirectoryWatch:
    """Calls `changed(directory, name, is_dir, gone)` from the thread of inotify for what happens in the watched ones.

    The name is empty where it is the directory itself: no longer watched, or gone, if somebody has asked for its
    `fate`. lost: called when events were lost. Neither may raise, nor take long. Where the system has no watches left,
    that is said once: scanning does it there. Any thread may add and remove.
    """

    def __init__(
        self, inotify: Inotify, changed: Callable[[str, str, bool, bool], None], lost: Callable[[], None]
    ) -> None:
        self._inotify, self._changed, self._lost = inotify, changed, lost
        self._lock = threading.Lock()
        # Both are changed under the lock. The kernel has one watch for an inode, whatever paths lead to it: a symlink
        # and its target, or the old path of a directory that was moved and the new one.
        self._watches: dict[str, _Watched] = {}
        self._paths: dict[WatchDescriptor, tuple[str, ...]] = {}
        self._told: InotifyEvent | None = None  # the thread of inotify's alone

    def __contains__(self, path: str) -> bool:
        return path in self._watches

    def add(self, path: str, *, follow: bool = False, fate: bool = False) -> bool:
        """Watch the directory that is at `path` now; whether it was not watched before.

        follow: also where that is a symlink to one. fate: ask for its own disappearance too.
        """
        try:
            os.stat(path, follow_symlinks=follow)  # where a disk does not answer it waits here, with nobody behind it
        except (FileNotFoundError, NotADirectoryError):
            self.remove(path)
            return False
        except OSError:
            return False  # whoever looks into it says why
        mask = _MASK | _HOW | (0 if follow else In.IN_DONT_FOLLOW) | (_FATE if fate else 0)
        with self._lock:
            try:
                watched = self._inotify.add(path, mask, self)
            except OSError as error:
                self._inotify.say_full(path, error)
                return False
            before = self._watches.get(path)
            if watched is not None and before is not None and before[0] == watched[0]:
                self._inotify.remove(watched)  # the same directory, which is not out of sight for a moment
                return False
            self._forget(path)
            if watched is None:
                return False
            self._watches[path] = watched
            self._paths[watched[0]] = (*self._paths.get(watched[0], ()), path)
            return True

    def remove(self, path: str) -> None:
        """Watch a directory no more."""
        with self._lock:
            self._forget(path)

    def _forget(self, path: str) -> None:
        watched = self._watches.pop(path, None)
        if watched is None:
            return
        left = tuple(each for each in self._paths.get(watched[0], ()) if each != path)
        if left:
            self._paths[watched[0]] = left
        else:
            self._paths.pop(watched[0], None)
        self._inotify.remove(watched)

    # --- called by the thread of inotify ----------------------------------------------------------------------

    def on_event(self, event: InotifyEvent) -> None:
        """Something happened in a directory, or to it."""
        if event is self._told:
            return  # by another of the paths that lead to it
        self._told = event
        for path in self._paths.get(event.wd, ()):
            if event.is_delete_self or event.is_move_self:
                self._changed(path, "", True, True)
            elif event.name:
                name, gone = os.fsdecode(event.name), event.is_delete or event.is_moved_from
                if not (event.is_create and not event.is_directory and is_yet_to_be_written(path, name)):
                    self._changed(path, name, event.is_directory, gone)

    def on_watch_deleted(self, wd: WatchDescriptor) -> None:
        """The directory is gone, and its watch with it."""
        with self._lock:
            paths = self._paths.pop(wd, ())
            for path in paths:
                if path in self._watches and self._watches[path][0] == wd:
                    del self._watches[path]
        if self._inotify.is_open:
            for path in paths:
                self._changed(path, "", True, False)  # another may be there by now, and is not watched

    def on_queue_overflow(self) -> None:
        """The kernel had more to tell than it could hold."""
        log.debug("events were lost; looking everywhere")
        self._lost()
