"""Small file systems of our own in image files, whose power can be cut.

A cut is FS_IOC_SHUTDOWN without a flush of the log: what had not reached the disk by then never does.
"""

from __future__ import annotations

import ctypes
import fcntl
import itertools
import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import eventually

_SHUTDOWN = 0x8004587D  # _IOR('X', 125, __u32)
_WITHOUT_FLUSH = 2
_SIZE_BYTES = {"ext4": 32 << 20, "xfs": 300 << 20}  # sparse; xfs takes no less
_FORMAT = {"ext4": ("mkfs.ext4", "-q", "-F"), "xfs": ("mkfs.xfs", "-q", "-f")}
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Disk:
    """A kind of file system: formatted once, then a fresh copy for everyone who asks."""

    kind: str
    options: str
    place: Path
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def __post_init__(self) -> None:
        self.place.mkdir()
        self._formatted = self.place / "formatted"
        self._formatted.touch()
        os.truncate(self._formatted, _SIZE_BYTES[self.kind])
        _run(*_FORMAT[self.kind], self._formatted)

    @contextmanager
    def fresh(self) -> Iterator[Plugged]:
        number = next(self._numbers)
        image, mount = self.place / f"image{number}", self.place / f"mount{number}"
        _run("cp", "--sparse=always", self._formatted, image)
        mount.mkdir()
        plugged = Plugged(image, mount, self.options)
        plugged.mount()
        try:
            yield plugged
        finally:
            plugged.unmount()
            mount.rmdir()
            image.unlink()


@dataclass
class Plugged:
    """A mounted disk."""

    _image: Path
    path: Path
    _options: str
    _is_mounted: bool = False

    def mount(self) -> None:
        _run("mount", "-o", f"loop,{self._options}", self._image, self.path)
        self._is_mounted = True

    def unmount(self) -> None:
        if self._is_mounted:
            # Busy for the moment in which another thread's fork still holds our descriptors.
            eventually(lambda: subprocess.run(["umount", self.path], capture_output=True).returncode == 0)
            self._is_mounted = False

    def sync(self) -> None:
        """Bring all that was written to the disk."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            if _libc.syncfs(fd) != 0:
                raise OSError(ctypes.get_errno(), "syncfs")
        finally:
            os.close(fd)

    def neighbour_syncs(self) -> None:
        """Another process syncs a file of its own, and with it whatever the file system has in its journal."""
        with (self.path / "neighbour").open("wb") as file:
            file.write(b"mine")
            file.flush()
            os.fsync(file.fileno())

    def cut_power(self) -> None:
        """Cut the power, and bring it back."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, struct.pack("I", _WITHOUT_FLUSH))
        finally:
            os.close(fd)
        self.unmount()
        self.mount()


def can_mount(place: Path) -> str:
    """Why no image can be mounted here, "" if one can."""
    try:
        with Disk("ext4", "rw", place / "try").fresh():
            return ""
    except subprocess.CalledProcessError as error:
        return f"cannot mount an image on a loop device: {error.stderr.decode().strip()}"


def _run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)
