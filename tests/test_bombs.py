"""What is made to exhaust whoever reads it is damage, and is found before it costs time or memory."""

from __future__ import annotations

import json
import lzma
import os
import pickle
import struct
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

import ckptd
from ckptd.core.policy import Policy
from ckptd.inspect.dcp import _asks_for_more

from .conftest import PACE, UNTRACED, Builder, a_pass, dcp_metadata, environment, epochs, left, pointed, torch_zip
from .layouts.writers import accelerate_fsdp, put, trainer

MOST_MB, MOST_S = 150, 10 * PACE
Q = struct.Struct("<Q").pack
L = struct.Struct("<L").pack


# A process between, because one that is forked from a large one counts as large itself.
MEASURE = """
import resource, subprocess, sys
print(subprocess.run(sys.argv[1:], capture_output=True, text=True).stdout.rstrip())
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)
"""


def verified(path: Path) -> str:
    """The state that `ckptd verify` tells of it, as a process that takes neither long nor much memory."""
    for each in [path, *path.rglob("*")]:
        os.utime(each, (1e9, 1e9))
    command = [sys.executable, "-m", "ckptd", "verify", "--json", str(path)]
    began_s = time.monotonic()
    measured = [sys.executable, "-c", MEASURE, *command]
    said, most_mb = subprocess.run(
        measured, capture_output=True, text=True, env=environment(**UNTRACED)
    ).stdout.splitlines()
    assert int(most_mb) < MOST_MB
    assert time.monotonic() - began_s < MOST_S
    return str(json.loads(said)["state"])


PICKLES = {
    "an index of the memo": b"\x80\x02Nr" + L(2**27) + b".",
    "an index of the memo in digits": b"Np134217728\n.",
    "an index after what is whole": b"\x80\x02}" * 50 + b"r" + L(2**28) + b".",
    "bytes": b"\x80\x04\x8e" + Q(2**36) + b"x.",
    "a text": b"\x80\x04\x8d" + Q(2**36) + b"x.",
    "a bytearray": b"\x80\x05\x96" + Q(2**36) + b"x.",
    "a frame": b"\x80\x04\x95" + Q(2**36) + b"N.",
    "a number": b"\x80\x02\x8b" + L(2**31 - 1) + b"x.",
    "lists without end": b"\x80\x04" + b"]" * 10**7 + b".",
    "sets and tuples without end": b"\x80\x04" + b"\x8f)(" * 10**7 + b".",
    "a short text": b"\x80\x02X" + L(2**32 - 1) + b"x.",
}


@pytest.mark.parametrize("content", PICKLES.values(), ids=PICKLES)
def test_a_pickle_that_asks_for_more_than_it_holds_is_damaged(content: bytes, work_dir: Path) -> None:
    put(work_dir / "step-500", {"__0_0.distcp": b"s" * 300, ".metadata": content})
    assert verified(work_dir / "step-500") == "incomplete"


def test_a_pickle_deep_inside_is_looked_at_too(work_dir: Path) -> None:
    bomb = PICKLES["an index of the memo"]
    inside = {"optimizer_0/.metadata": bomb, "optimizer_0/__0_0.distcp": b""}
    put(work_dir / "checkpoint_1", {**accelerate_fsdp(1), **inside})
    put(work_dir / "checkpoint-1", {**trainer(1), **inside})
    assert [verified(work_dir / name) for name in ("checkpoint_1", "checkpoint-1")] == ["incomplete"] * 2


def test_a_metadata_with_a_hole_is_damaged(work_dir: Path) -> None:
    put(work_dir / "step-500", {"__0_0.distcp": b"s" * 300, ".metadata": b"\x80\x02Nr" + L(2**27) + b"."})
    os.truncate(work_dir / "step-500/.metadata", 2**28)
    assert verified(work_dir / "step-500") == "incomplete"


HONEST = [
    dict.fromkeys(range(3000), "a text"), [[1, -1, 2**40, 2**3000, 1.5, True, None, b"b" * 300, "ü" * 70_000]] * 500,
    {"a": (Fraction(1, 3), {4, 5}, frozenset("abc"), complex(1, 2), bytearray(b"x" * 9), [[]] * 9)}, "x\n", 10**4000,
]  # fmt: skip


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("value", HONEST, ids=range(len(HONEST)))
def test_no_honest_pickle_asks_for_more_and_any_that_is_cut_short_does(protocol: int, value: object) -> None:
    content = pickle.dumps(value, protocol)
    assert not _asks_for_more(content)
    for length in range(0, len(content), max(1, len(content) // 50)):
        assert _asks_for_more(content[:length])


def test_a_huge_honest_metadata_is_read(work_dir: Path) -> None:
    metadata = dcp_metadata(dict.fromkeys((f"__{n}_0.distcp" for n in range(3000)), 3))
    put(work_dir / "step-1", {".metadata": metadata, **{f"__{n}_0.distcp": b"abc" for n in range(3000)}})
    assert verified(work_dir / "step-1") == "complete"


# --- zips --------------------------------------------------------------------------------------------------------


def zipped(*members: tuple[bytes, bytes, int, int, int | None]) -> bytes:
    """A zip of members: name, packed bytes, how, unpacked size, and whose place it has, if not its own."""
    out, listed, at = bytearray(), bytearray(), list[int]()
    for name, packed, method, size, same in members:
        fields = struct.pack("<HHHHLLL", 0, method, 0, 33, 0, len(packed), size)
        if same is None:
            at.append(len(out))
            out += b"PK\3\4" + struct.pack("<H", 20) + fields + struct.pack("<HH", len(name), 0) + name + packed
        offset = at[-1] if same is None else at[same]
        listed += (
            b"PK\1\2" + struct.pack("<HH", 20, 20) + fields + struct.pack("<HHHHHLL", len(name), 0, 0, 0, 0, 0, offset)
        )
        listed += name
    count = len(members)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, count & 0xFFFF, count & 0xFFFF, len(listed), len(out), 0)
    if count > 0xFFFE:
        size, where = len(listed), len(out) + len(listed)
        end64 = struct.pack("<4sQHHLLQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, len(out))
        end = end64 + struct.pack("<4sLQL", b"PK\6\7", 0, where, 1) + end
    return bytes(out + listed) + end


PICKLED = (b"archive/data.pkl", b"\x80\x02}.", zipfile.ZIP_STORED, 4, None)


def deflated(size: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return packer.compress(bytes(size)) + packer.flush()


def overlapping() -> bytes:
    tensor = (b"archive/data/0", b"w" * 1000, zipfile.ZIP_STORED, 1000)
    return zipped(PICKLED, (*tensor, None), *[(*tensor, 1)] * 1000)


def one_inside_another() -> bytes:
    outer = zipped((b"archive/data/1", b"w" * 100, zipfile.ZIP_STORED, 100, None))
    content = bytearray(zipped(PICKLED, (b"archive/data/0", outer, zipfile.ZIP_STORED, len(outer), None)))
    at = content.index(b"PK\1\2", content.rindex(outer) + len(outer))
    listed = content[at : content.rindex(b"PK\5\6")]
    inner = bytearray(listed[-60:])
    struct.pack_into("<L", inner, 42, content.index(outer))
    struct.pack_into("<LL", inner, 20, 100, 100)
    end = struct.pack("<4sHHHHLLH", b"PK\5\6", 0, 0, 3, 3, len(listed) + len(inner), at, 0)
    return bytes(content[:at] + listed + inner) + end


def inflating() -> bytes:
    return zipped(PICKLED, *((b"archive/data/%d" % n, deflated(1 << 24), 8, 1 << 24, None) for n in range(40)))


def a_million_members() -> bytes:
    return zipped(PICKLED, *[(b"x", b"", zipfile.ZIP_STORED, 0, None)] * 1_000_000)


BOMBS = [overlapping, one_inside_another, inflating, a_million_members]


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_zip_that_unpacks_to_more_than_it_holds_is_damaged(bomb: Callable[[], bytes], work_dir: Path) -> None:
    (work_dir / "epoch_1.pth").write_bytes(bomb())
    assert verified(work_dir / "epoch_1.pth") == "incomplete"
    put(work_dir / "checkpoint-1", {**trainer(1), "optimizer.pt": bomb()})
    assert verified(work_dir / "checkpoint-1") == "incomplete"


def test_a_bomb_holds_up_no_pruning(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    with_checkpoints("epoch_3.pth", content=overlapping())
    with_checkpoints(*epochs(4, 5))
    a_pass(work_dir, max_keep=2, interval=1, trash_ttl_s=0)
    assert (left(work_dir), pointed(work_dir)) == (epochs(4, 5), "epoch_5.pth")


def test_what_is_packed_as_well_as_weights_can_be_is_whole(work_dir: Path) -> None:
    content = os.urandom(2000) + bytes(90_000)
    with zipfile.ZipFile(work_dir / "epoch_1.pth", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, inside in (("archive/data.pkl", b"\x80\x02}."), ("archive/data/0", content)):
            archive.writestr(name, inside)
    assert (work_dir / "epoch_1.pth").stat().st_size * 30 < len(content)
    assert verified(work_dir / "epoch_1.pth") == "complete"


def test_a_member_that_takes_any_memory_to_unpack_is_not_unpacked(work_dir: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA1, "dict_size": 1 << 30}]
    packed = lzma.compress(b"w" * 1000, lzma.FORMAT_RAW, filters=filters)
    properties = struct.pack("<BBH", 9, 4, 5) + struct.pack("<BL", 0x5D, 1 << 30)
    member = (b"archive/data/0", properties + packed, zipfile.ZIP_LZMA, 1000, None)
    (work_dir / "epoch_1.pth").write_bytes(zipped(PICKLED, member))
    assert verified(work_dir / "epoch_1.pth") == "incomplete"
    (work_dir / "epoch_2.pth").write_bytes(zipped((b"data", b"", zipfile.ZIP_STORED, 0, None), member))
    assert verified(work_dir / "epoch_2.pth") == "complete"


# --- JSON --------------------------------------------------------------------------------------------------------


def test_a_header_of_millions_of_values_is_not_taken_apart(work_dir: Path) -> None:
    header = b'{"w":[' + b"[]," * 20_000_000 + b"0]}"
    (work_dir / "epoch_1.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    began_s = time.monotonic()
    assert ckptd.plan(work_dir, Policy(max_keep=1)).plan.newest is None
    assert time.monotonic() - began_s < MOST_S


@pytest.mark.parametrize("file", ["model.safetensors.index.json", "trainer_state.json"])
def test_a_json_of_millions_of_values_is_damaged(file: str, work_dir: Path) -> None:
    put(work_dir / "checkpoint-1", {**trainer(1), file: b'{"global_step": [' + b"[]," * 10_000_000 + b"0]}"})
    assert verified(work_dir / "checkpoint-1") == "incomplete"


def test_the_log_of_a_run_may_be_of_any_length(work_dir: Path) -> None:
    line = {"epoch": 1.5, "grad_norm": 0.123456, "learning_rate": 0.0001, "loss": 1.5, "step": 100}
    state = {"best_model_checkpoint": "runs/checkpoint-1", "global_step": 2, "log_history": [line], "max_steps": 9}
    text = json.dumps(state, indent=2, sort_keys=True)
    start, end = text.index("    {"), text.index("    }") + 5
    huge = text[:start] + (text[start:end] + ",\n") * 520_000 + text[start:]
    assert len(huge) > 1 << 26
    for step in (1, 2, 3):
        put(work_dir / f"checkpoint-{step}", trainer(step))
        os.utime(work_dir / f"checkpoint-{step}/trainer_state.json", (step, step))
    put(work_dir / "checkpoint-3", {"trainer_state.json": huge.encode()})
    assert verified(work_dir / "checkpoint-3") == "complete"
    survey = ckptd.plan(work_dir, Policy(max_keep=1))
    reasons = {d.checkpoint.name: d.reasons for d in survey.decisions}
    assert "the best, by checkpoint-3/trainer_state.json" in reasons["checkpoint-1"]
    put(work_dir / "checkpoint-3", {"trainer_state.json": huge[:-50].encode()})
    assert verified(work_dir / "checkpoint-3") != "complete"


def test_what_is_whole_is_read_as_before(work_dir: Path) -> None:
    (work_dir / "epoch_1.pth").write_bytes(torch_zip())
    assert verified(work_dir / "epoch_1.pth") == "complete"


def nines() -> bytes:
    header = b'{"w":{"dtype":"U8","shape":[1],"data_offsets":[0,' + b"9" * 4200 + b"]}}"
    return struct.pack("<Q", len(header)) + header


def huge_directory() -> bytes:
    """The end of a zip whose central directory would fill the memory."""
    end = struct.pack("<4sHHHHLLH", b"PK\x05\x06", 0, 0, 1, 1, 0xFFFFFFF0, 10, 0)
    return torch_zip()[:200] + end


@pytest.mark.parametrize("hostile", [nines, huge_directory])
def test_a_file_with_absurd_numbers_is_no_checkpoint_and_no_end(hostile, with_checkpoints: Builder) -> None:  # type: ignore[no-untyped-def]
    work_dir = with_checkpoints("epoch_1.pth", "epoch_2.pth")
    with_checkpoints("epoch_3.safetensors", content=hostile())
    report = a_pass(work_dir, max_keep=1, interval=1)
    assert [d.checkpoint.name for d in report.pruned] == ["epoch_1.pth"]
    assert (work_dir / "epoch_3.safetensors").exists()


def test_a_zip_of_ten_thousand_members_is_still_read(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    with zipfile.ZipFile(work_dir / "epoch_2.pth", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
        for member in range(10_000):
            archive.writestr(f"archive/data/{member}", b"y")
    with_checkpoints.tick(work_dir / "epoch_2.pth")
    a_pass(work_dir, max_keep=1, interval=1)
    assert left(work_dir) == epochs(2)
