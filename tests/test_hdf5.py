"""HDF5 says how long it is: what is shorter was cut short, in whatever version its superblock is."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from ckptd import api
from ckptd.core.checkpoint import State
from ckptd.inspect.files import structure_of_file

from .conftest import Builder, a_pass, left
from .in_memory import Bytes

SIGNATURE = b"\x89HDF\r\n\x1a\n"
VERSIONS = (0, 1, 2, 3)


def hdf5(version: int = 0, *, length: int = 300, says: int | None = None, width: int = 8, flags: int = 0) -> bytes:
    """A file with a superblock as the specification has it, and nothing sensible behind it."""
    end = length if says is None else says
    addresses = b"".join(each.to_bytes(width, "little") for each in (0, 2 ** (8 * width) - 1, end, 96))
    if version < 2:
        head = struct.pack("<BBBBBBBBHHI", version, 0, 0, 0, 0, width, 8, 0, 4, 16, 0)
        head += struct.pack("<HH", 32, 0) if version else b""
    else:
        head = struct.pack("<BBBB", version, width, 8, flags)
    return (SIGNATURE + head + addresses).ljust(length, b"x")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("width", [4, 8])
def test_it_is_whole_as_long_as_its_superblock_says(version: int, width: int) -> None:
    content = hdf5(version, width=width)
    assert structure_of_file(Bytes(content)).state is State.COMPLETE
    # As h5py 3.16 leaves it, killed before it had closed the file: it is longer than it says, and cannot be opened.
    assert structure_of_file(Bytes(content + b"x")).state is State.INCOMPLETE


@pytest.mark.parametrize("version", VERSIONS)
def test_cut_short_at_any_byte_it_is_incomplete(version: int) -> None:
    content = hdf5(version)
    for length in range(len(SIGNATURE), len(content)):
        assert structure_of_file(Bytes(content[:length])).state is State.INCOMPLETE, length


@pytest.mark.parametrize("content", [
    pytest.param(SIGNATURE, id="a signature alone"),
    pytest.param(hdf5(7), id="a version that there is not"),
    pytest.param(hdf5(width=3), id="addresses of three bytes"),
    pytest.param(hdf5(says=2**63), id="longer than any disk"),
    pytest.param(hdf5(3, flags=1), id="still open for writing"),
])  # fmt: skip
def test_a_superblock_that_lies_is_no_proof(content: bytes) -> None:
    assert structure_of_file(Bytes(content)).state is State.INCOMPLETE


def test_one_that_was_cut_short_takes_no_ones_place(work_dir: Path) -> None:
    build = Builder(work_dir)
    for step in (1, 2):
        build(f"weights.{step:02d}.h5", content=hdf5())
    build("weights.03.h5", content=hdf5()[:150])
    named = {"templates": ("weights.{:02d}.h5",), "max_keep": 1, "trash_ttl_s": 0.0}
    assert [d.checkpoint.name for d in a_pass(work_dir, **named).pruned] == ["weights.01.h5"]
    assert left(work_dir) == ["weights.02.h5", "weights.03.h5"]
    assert api.verify(work_dir / "weights.03.h5").structure == "HDF5, 150 of 300 bytes"
