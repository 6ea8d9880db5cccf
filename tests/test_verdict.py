"""What the bytes of a checkpoint say, byte by byte; and who has it open for writing."""

from __future__ import annotations

import fcntl
import io
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ckptd.core.checkpoint import State
from ckptd.disk.descriptors import opened_dir
from ckptd.disk.filesystem import is_local
from ckptd.inspect import verdict as judging
from ckptd.inspect.files import structure_of_file
from ckptd.inspect.scan import entry_of
from ckptd.inspect.verdict import Settling, Verdict, has_writer, judge

from .conftest import LEGACY_MAGIC, Builder, a_pass, environment, holding_open, legacy, safetensors, torch_zip
from .in_memory import Bytes

LOCAL, NETWORK = Settling(local=True), Settling(local=False)


def judged(path: Path, settling: Settling = LOCAL, *, age_s: float = 3600.0) -> Verdict:
    """The verdict on `path` when it has not changed for `age_s`."""
    with opened_dir(str(path.parent)) as fd:
        entry = entry_of(path.name, dir_fd=fd)
        return judge(entry, dir_fd=fd, settling=settling, now_ns=entry.mtime_ns + int(age_s * 1e9))


def state_of(content: bytes) -> tuple[State, bool]:
    found = structure_of_file(Bytes(content))
    assert found.text
    return found.state, found.known


@pytest.fixture
def leases(work_dir: Path) -> None:
    """Only where leases work can anyone tell who writes."""
    (work_dir / "probe").write_bytes(b"probe")
    with (work_dir / "probe").open("rb") as probe:
        try:
            fcntl.fcntl(probe, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        except OSError as error:
            pytest.skip(f"no leases on the file system of {work_dir}: {error}")
    (work_dir / "probe").unlink()


# --- structure --------------------------------------------------------------------------------------------------


def test_what_torch_writes_is_complete(work_dir: Path) -> None:
    torch = pytest.importorskip("torch")
    torch.save({"w": torch.arange(1000.0), "step": 3}, work_dir / "epoch_1.pth")
    assert judged(work_dir / "epoch_1.pth").state is State.COMPLETE


def test_what_torch_wrote_before_1_6_is_unverifiable_and_known() -> None:
    torch = pytest.importorskip("torch")
    out = io.BytesIO()
    torch.save({"w": torch.arange(10.0)}, out, _use_new_zipfile_serialization=False)
    assert out.getvalue().startswith(LEGACY_MAGIC[:12])
    assert state_of(out.getvalue()) == (State.UNVERIFIABLE, True)


def test_what_safetensors_writes_is_complete() -> None:
    numpy = pytest.importorskip("safetensors.numpy")
    np = pytest.importorskip("numpy")
    content = numpy.save({"w": np.arange(100.0), "b": np.zeros(3)}, metadata={"format": "pt"})
    assert state_of(content) == (State.COMPLETE, True)
    assert state_of(content[:-1]) == (State.INCOMPLETE, True)


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(torch_zip(b"w" * 40), id="torch zip"),
        pytest.param(torch_zip(b"w" * 40, root="epoch_1"), id="torch zip, named for its file"),
        pytest.param(safetensors(16), id="safetensors"),
    ],
)
def test_cut_anywhere_it_is_never_complete(content: bytes) -> None:
    assert state_of(content) == (State.COMPLETE, True)
    for length in range(len(content)):
        state, _ = state_of(content[:length])
        assert state is not State.COMPLETE, length
        if length > 8:  # by then it is clear what it would have become
            assert state is State.INCOMPLETE, length


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"", (State.INCOMPLETE, True), id="empty"),
        pytest.param(bytes(5000), (State.INCOMPLETE, False), id="zeros"),
        pytest.param(b"hello, world\n" * 9, (State.UNVERIFIABLE, False), id="text"),
        pytest.param(b"\x7fELF\x02\x01" + bytes(range(256)), (State.UNVERIFIABLE, False), id="unknown bytes"),
        pytest.param(legacy(), (State.UNVERIFIABLE, True), id="torch's legacy magic"),
        pytest.param(LEGACY_MAGIC[:5], (State.INCOMPLETE, True), id="the beginning of the legacy magic"),
        pytest.param(safetensors() + b"\x00", (State.INCOMPLETE, True), id="safetensors with a byte too many"),
        pytest.param(
            struct.pack("<Q", 30) + b"{" + b" " * 28 + b"}", (State.COMPLETE, True), id="safetensors without a tensor"
        ),
        pytest.param(struct.pack("<Q", 1000) + b"{" * 1000, (State.UNVERIFIABLE, False), id="braces without an end"),
        pytest.param(struct.pack("<Q", 90_000) + b'{"a":' * 18_000, (State.UNVERIFIABLE, False), id="braces too deep"),
    ],
)
def test_bytes_are_what_they_are(content: bytes, expected: tuple[State, bool]) -> None:
    assert state_of(content) == expected


def test_a_zip_that_torch_did_not_write_is_not_known() -> None:
    content = torch_zip().replace(b"data.pkl", b"data.txt")
    assert state_of(content) == (State.COMPLETE, False)


def test_a_member_outside_the_file_is_incomplete() -> None:
    content = bytearray(torch_zip(b"w" * 40))
    at = content.index(b"PK\x01\x02")  # the first entry of the central directory
    struct.pack_into("<II", content, at + 20, 1 << 20, 1 << 20)
    assert state_of(bytes(content)) == (State.INCOMPLETE, True)


def test_a_damaged_byte_of_the_directory_is_never_an_exception() -> None:
    content = torch_zip(b"w" * 40)
    for at in range(content.index(b"PK\x01\x02"), len(content)):
        damaged = bytearray(content)
        damaged[at] ^= 0xFF
        state_of(bytes(damaged))


@pytest.mark.parametrize(
    ("whole", "age_s", "expected"),
    [(True, 3600, State.COMPLETE), (False, 3600, State.INCOMPLETE), (False, 200, State.IN_FLIGHT)],
)
def test_a_distributed_checkpoint_is_complete_once_it_is_marked(
    whole: bool, age_s: float, expected: State, with_checkpoints: Builder
) -> None:
    assert judged(with_checkpoints.shards("iter_1", whole=whole), age_s=age_s).state is expected


def test_a_directory_without_any_known_marker_is_not_known(work_dir: Path) -> None:
    (work_dir / "epoch_1").mkdir()
    (work_dir / "epoch_1" / "sample.png").write_bytes(b"png")
    assert not judged(work_dir / "epoch_1").known


# --- time -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "settling", "age_s", "expected"),
    [
        pytest.param(torch_zip()[:-50], LOCAL, 1, State.IN_FLIGHT, id="broken and young"),
        pytest.param(torch_zip()[:-50], LOCAL, 6, State.INCOMPLETE, id="broken and quiet"),
        pytest.param(torch_zip()[:-50], NETWORK, 59, State.IN_FLIGHT, id="broken and young on a network"),
        pytest.param(torch_zip()[:-50], Settling(True, 100.0), 99, State.IN_FLIGHT, id="young as somebody asked"),
        pytest.param(torch_zip(), NETWORK, 59, State.IN_FLIGHT, id="whole, and nobody can tell who writes"),
        pytest.param(torch_zip(), NETWORK, 61, State.COMPLETE, id="whole and quiet on a network"),
        pytest.param(legacy(), LOCAL, 1, State.IN_FLIGHT, id="without a check, and young"),
        pytest.param(legacy(), LOCAL, 6, State.UNVERIFIABLE, id="without a check, and quiet"),
    ],
)
def test_young_and_unsure_is_in_flight(
    content: bytes, settling: Settling, age_s: float, expected: State, work_dir: Path
) -> None:
    (work_dir / "epoch_1.pth").write_bytes(content)
    assert judged(work_dir / "epoch_1.pth", settling, age_s=age_s).state is expected


def test_a_time_in_the_future_says_nothing_of_the_age(work_dir: Path) -> None:
    path = work_dir / "epoch_1.pth"
    path.write_bytes(torch_zip()[:-50])
    os.utime(path, (4e9, 4e9))
    with opened_dir(str(work_dir)) as fd:
        entry = entry_of(path.name, dir_fd=fd)
        now_ns = time.time_ns()
        assert judge(entry, dir_fd=fd, settling=LOCAL, now_ns=now_ns).state is State.IN_FLIGHT
        assert judge(entry, dir_fd=fd, settling=LOCAL, now_ns=now_ns + 10**10).state is State.INCOMPLETE


# --- the lease --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("leases")
@pytest.mark.parametrize(
    ("mode", "expected"), [("r+b", State.IN_FLIGHT), ("ab", State.IN_FLIGHT), ("rb", State.COMPLETE)]
)
def test_a_file_is_in_flight_exactly_while_another_process_has_it_open_for_writing(
    mode: str, expected: State, work_dir: Path
) -> None:
    path = work_dir / "epoch_1.pth"
    path.write_bytes(torch_zip())
    with opened_dir(str(work_dir)) as fd:
        local = is_local(fd)
    with holding_open(path, mode):
        assert judged(path, Settling(local=True)).state is expected
    assert judged(path, Settling(local=True)).state is State.COMPLETE
    assert local, "a file system that knows leases, and is not in the table of local ones"


_INTERRUPTED = """
import fcntl, signal, subprocess, sys
from ckptd.inspect import verdict

path, own_signal = sys.argv[1], sys.argv[2] == "own"
opener = "import os, sys; os.open(sys.argv[1], os.O_WRONLY | os.O_NONBLOCK)"
real = fcntl.fcntl

def and_somebody_opens_it(fd, command, argument=0):
    if command == fcntl.F_SETSIG and not own_signal:
        return 0  # then it would be SIGIO
    answer = real(fd, command, argument)
    if command == fcntl.F_SETLEASE and argument == fcntl.F_RDLCK:
        done = subprocess.run([sys.executable, "-c", opener, path], capture_output=True, text=True)
        assert "BlockingIOError" in done.stderr, done  # the kernel has told the holder of the lease
    return answer

fcntl.fcntl = and_somebody_opens_it
with open(path, "rb") as file:
    assert verdict.has_writer(file.fileno()) is False
print("alive")
"""


@pytest.mark.usefixtures("leases")
@pytest.mark.parametrize(("whose", "expected"), [("own", (0, "alive\n")), ("the kernel's", (-signal.SIGIO, ""))])
def test_who_opens_a_file_for_writing_while_we_hold_the_lease_kills_nobody(
    whose: str, expected: tuple[int, str], work_dir: Path
) -> None:
    """Without a signal of our own choice it does: the second case shows that the moment is the right one."""
    path = work_dir / "epoch_1.pth"
    path.write_bytes(torch_zip())
    done = subprocess.run(
        [sys.executable, "-c", _INTERRUPTED, str(path), whose], env=environment(), capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == expected, done.stderr


@pytest.mark.usefixtures("leases")
def test_a_lease_is_given_back_at_once(work_dir: Path) -> None:
    path = work_dir / "epoch_1.pth"
    path.write_bytes(torch_zip())
    with path.open("rb") as file:
        assert has_writer(file.fileno()) is False
        assert fcntl.fcntl(file, fcntl.F_GETLEASE) == fcntl.F_UNLCK
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))  # and nobody has to wait


def test_a_lease_refused_for_another_reason_is_not_checked_rather_than_a_veto(
    work_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = work_dir / "epoch_1.pth"
    path.write_bytes(torch_zip())

    def not_the_owner(fd: int, command: int, argument: int = 0) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(judging.fcntl, "fcntl", not_the_owner)
    with path.open("rb") as file:
        assert has_writer(file.fileno()) is None
    assert judged(path, age_s=1).state is State.IN_FLIGHT
    assert judged(path, age_s=6).state is State.COMPLETE


def test_a_metadata_that_is_a_directory_marks_nothing(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints.shards("iter_1", whole=False).parent
    (work_dir / "iter_1/.metadata").mkdir()
    (report,) = a_pass(work_dir, settle_s=0).survey.decisions
    assert report.checkpoint.state.value == "incomplete"
