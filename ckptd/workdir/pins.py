"""Pins: an empty file `NAME.keep` beside a checkpoint, which no policy overrules.

Whoever can `touch` needs none of this.
"""

from __future__ import annotations

import os
import stat

from ..disk.descriptors import sync_dir
from ..errors import CkptdError, UsageError, why
from ..inspect.scan import PIN_ENDING, stat_entry
from .workdir import WorkDir

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def make_pin(name: str, *, work_fd: int) -> bool:
    """Create the pin of `name`; False if there is one already. Raises OSError."""
    try:
        os.close(os.open(name + PIN_ENDING, _NEW, 0o666, dir_fd=work_fd))
    except FileExistsError:
        return False
    return True


def pin(path: str) -> bool:
    """Pin the checkpoint at `path`, durably; False if it was already. Raises CkptdError if nothing is there to pin."""
    place, name = _split(path)
    with WorkDir(place) as work:
        try:
            kind = stat_entry(name, dir_fd=work.fd).st_mode
            if not (stat.S_ISREG(kind) or stat.S_ISDIR(kind)):
                raise CkptdError(f"{path}: neither a file nor a directory. Name the checkpoint itself")
            made = make_pin(name, work_fd=work.fd)
            sync_dir(work.fd)
        except FileNotFoundError as error:
            raise CkptdError(f"{path}: does not exist. `ckptd plan {place}` lists what is there") from error
        except OSError as error:
            raise CkptdError(f"{path}{PIN_ENDING}: cannot be written: {why(error)}") from error
        return made


def unpin(path: str) -> bool:
    """Take the pin from the checkpoint at `path`, durably; False if it had none. Raises CkptdError."""
    place, name = _split(path)
    with WorkDir(place) as work:
        try:
            os.unlink(name + PIN_ENDING, dir_fd=work.fd)
            sync_dir(work.fd)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise CkptdError(f"{path}{PIN_ENDING}: cannot be removed: {why(error)}") from error
        return True


def _split(path: str) -> tuple[str, str]:
    place, name = os.path.split(os.path.abspath(path))
    if not name:
        raise UsageError(f"{path}: name a checkpoint, such as work_dir/epoch_3.pth")
    if name.endswith(PIN_ENDING):
        raise UsageError(f"{path}: is a pin. Name the checkpoint: {path.removesuffix(PIN_ENDING)}")
    return place, name
