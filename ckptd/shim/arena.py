"""Host memory that is kept from save to save, and that no forked child has. Knows nothing of what is in it.

What parent and child share is copied, page by page, as one of them writes: after a fork of DataLoader workers, a copy
into such memory would take several times as long.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import mmap
import os
import weakref

import torch
from torch import Tensor

from ..errors import CkptdError, why

_ALIGNED = 64  # bytes, as torch's own memory

_mappings: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()  # those that this process has


class Arena:
    """One mapping, as large as what was last asked for. It lives for as long as one of its pieces does."""

    def __init__(self) -> None:
        self._mapped: mmap.mmap | None = None
        self._sizes: list[int] = []
        self._pieces: list[Tensor] = []

    def pieces(self, sizes: list[int]) -> list[Tensor]:
        """A tensor of as many bytes for each of `sizes`, to be written over; none shares storage with another.

        Their memory is that of the call before, which must be done with. Raises CkptdError where there is no more.
        """
        if self._mapped is not None and self._mapped not in _mappings:  # this is a child, which has only the object
            self._mapped, self._sizes, self._pieces = None, [], []
        if sizes != self._sizes:
            self._sizes, self._pieces = [], []
            ends = list(itertools.accumulate(-(-size // _ALIGNED) * _ALIGNED for size in sizes))
            self._map(ends[-1] if ends else 0)
            # By a view, which keeps the mapping where it is: torch.frombuffer itself only keeps the object.
            view = memoryview(self._mapped or b"")
            self._pieces = [_piece(view, begin, size) for begin, size in zip([0, *ends], sizes)]
            self._sizes = sizes
        return self._pieces

    def _map(self, size: int) -> None:
        if size == 0:
            self._mapped = None
            return
        try:
            # Moved as a whole: what is there is neither copied nor touched for the first time again.
            with contextlib.suppress(BufferError, SystemError):  # a piece is still in use; a system that cannot
                if self._mapped is not None:
                    self._mapped.resize(size)
                    return
            self._mapped = None  # first, so that both are not there at once
            self._mapped = _mapping(size)
        except (OSError, ValueError) as error:
            raise CkptdError(
                f"{size} bytes of host memory for a copy of the state: {why(error)}. Save without background=True"
            ) from error


def _piece(view: memoryview, begin: int, size: int) -> Tensor:
    # Made in inference mode it could not be written again outside of it.
    with torch.inference_mode(False):
        if size == 0:
            return torch.empty(0, dtype=torch.uint8, device="cpu")
        return torch.frombuffer(view, dtype=torch.uint8, count=size, offset=begin)


def _mapping(size: int) -> mmap.mmap:
    mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    _mappings.add(mapped)
    with contextlib.suppress(AttributeError, OSError):  # where there is no such thing, a fork costs the next copy more
        mapped.madvise(mmap.MADV_DONTFORK)
    return mapped


def _forget() -> None:
    """In a forked child: what it has of our mappings are objects, at whose end they must unmap nothing.

    What lies at their place by then would be something else of the child's. So they never end.
    """
    for each in _mappings:
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(each))
    _mappings.clear()


os.register_at_fork(after_in_child=_forget)
