"""What the tests share: checkpoints with real bytes, `ckptd` as a process, an ordinary user, and patience.

The builders write what the frameworks write; nothing here knows what ckptd should decide about it.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import types
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.passes.background import Background
from ckptd.passes.reading import Reader
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.report import Report
from ckptd.workdir.workdir import WorkDir

PACE = 4 if "COVERAGE_RUN" in os.environ else 1  # how many times as long all may take
PATIENCE_S = 20.0 * PACE  # for what takes milliseconds on a machine that does nothing else
# For processes that become somebody else, who may not write coverage's files, and for those that are measured.
UNTRACED = {"COVERAGE_PROCESS_CONFIG": ""}
LEGACY_MAGIC = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e8003")  # how torch before 1.6 begins
_NOBODY = 65534

# --- where the tests write ------------------------------------------------------------------------------------

_MEMORY = "/dev/shm"
_ROOM_BYTES = 2 * 2**30  # many times what is there at once
_DISKS = (tempfile.gettempdir(), "/var/tmp", str(Path(__file__).parents[1]))


def write_to_disk() -> None:
    """Have the temporary files of this run on a disk: the `pytest_configure` of folders that are about real systems."""
    if disk := _disk():
        os.environ["TMPDIR"] = tempfile.tempdir = disk


@pytest.hookimpl(trylast=True)
def pytest_configure() -> None:
    """Have them in memory, where fsync costs nothing, unless TMPDIR says where."""
    if "TMPDIR" not in os.environ and _has_room(_MEMORY):
        os.environ["TMPDIR"] = tempfile.tempdir = _MEMORY


def pytest_report_header() -> str:
    return f"temporary files: {tempfile.gettempdir()}"


@pytest.fixture
def disk_path() -> Iterator[Path]:
    """As `tmp_path`, and always on a disk: for what a file system in memory could not show."""
    disk = _disk()
    if disk is None:
        pytest.skip(f"all of these are in memory: {', '.join(_DISKS)}")
    with tempfile.TemporaryDirectory(prefix="ckptd-test-", dir=disk) as path:
        yield Path(path).resolve()


def _disk() -> str | None:
    return next((place for place in _DISKS if not _is_in_memory(place)), None)


def _has_room(place: str) -> bool:
    if not os.path.isdir(place) or not _is_in_memory(place) or not os.access(place, os.W_OK):
        return False
    info = os.statvfs(place)
    return info.f_bavail * info.f_frsize >= _ROOM_BYTES and not info.f_flag & os.ST_NOEXEC


def _is_in_memory(place: str) -> bool:
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    kinds = {mounted_on: kind for _, mounted_on, kind, *_ in mounts}
    path = Path(place).resolve()
    return next(kinds[str(above)] for above in (path, *path.parents) if str(above) in kinds) in ("tmpfs", "ramfs")


# --- bytes ----------------------------------------------------------------------------------------------------


def torch_zip(weights: bytes = b"w" * 600, *, root: str = "archive") -> bytes:
    """What torch.save writes: stored members, the pickle first."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, content in (("data.pkl", b"\x80\x02}q\x00."), ("data/0", weights), ("version", b"3\n")):
            archive.writestr(zipfile.ZipInfo(f"{root}/{name}"), content)
    return out.getvalue()


def safetensors(size_bytes: int = 64) -> bytes:
    """One tensor of bytes, as safetensors writes it."""
    header = json.dumps({"w": {"dtype": "U8", "shape": [size_bytes], "data_offsets": [0, size_bytes]}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(size_bytes)


def legacy() -> bytes:
    """How a file begins that torch before 1.6 wrote: a pickled magic number, then pickles."""
    return LEGACY_MAGIC + b"weights" * 50


def truncated() -> bytes:
    """A checkpoint whose writer died."""
    return torch_zip()[:-100]


# --- a work dir -----------------------------------------------------------------------------------------------


def dcp_metadata(shards: dict[str, int]) -> bytes:
    """A `.metadata` that lists shards with their sizes, in torch's fields, of classes that no reader can import."""
    module = types.ModuleType("nowhere")
    metadata, info = (type(name, (), {"__module__": "nowhere"}) for name in ("Metadata", "StorageInfo"))
    module.Metadata, module.StorageInfo = metadata, info
    made = metadata()
    made.storage_data = {}
    for index, (path, length) in enumerate(shards.items()):
        made.storage_data[index] = info()
        made.storage_data[index].__dict__.update(relative_path=path, offset=0, length=length)
    sys.modules["nowhere"] = module
    try:
        return pickle.dumps(made)
    finally:
        del sys.modules["nowhere"]


@dataclass
class Builder:
    """Writes checkpoints one second apart, an hour ago, so that the order of the calls is the order of writing."""

    work_dir: Path
    at_ns: int = field(default_factory=lambda: time.time_ns() - 3600 * 10**9)

    def __call__(self, *names: str, content: bytes | None = None) -> Path:
        """Write `names` in this order, a whole torch zip each unless told otherwise; returns the work dir."""
        for name in names:
            path = self.work_dir / name
            path.write_bytes(torch_zip() if content is None else content)
            self.tick(path)
        return self.work_dir

    def shards(self, name: str, *, whole: bool = True) -> Path:
        """Write a distributed checkpoint: a directory of shards, with its marker if it is whole."""
        path = self.work_dir / name
        path.mkdir()
        (path / "__0_0.distcp").write_bytes(b"s" * 300)
        self.tick(path / "__0_0.distcp")
        if whole:
            (path / ".metadata").write_bytes(dcp_metadata({"__0_0.distcp": 300}))
            self.tick(path / ".metadata")
        return path

    def tick(self, path: Path) -> None:
        """Date `path` a second after whatever was dated before."""
        self.at_ns += 10**9
        os.utime(path, ns=(self.at_ns, self.at_ns))


@pytest.fixture
def work_dir(tmp_path: Path) -> Path:
    """An empty work dir; beside it in `tmp_path` is the world outside."""
    path = tmp_path / "run"
    path.mkdir()
    return path


@pytest.fixture
def with_checkpoints(work_dir: Path) -> Builder:
    """Put checkpoints into the work dir: `with_checkpoints("epoch_1.pth", "iter_20.pth")`."""
    return Builder(work_dir)


@pytest.fixture
def declare() -> Callable[..., None]:
    """What a training job declares its series with; torch comes with it."""
    pytest.importorskip("torch")
    from ckptd.shim.declaration import declare

    return declare


def a_pass(work_dir: Path, **policy: Any) -> Report:
    """One pass of a process that has just started and then ends, as `ckptd prune` makes it."""
    return api.prune(work_dir, Policy(**policy))


class Crash(BaseException):
    """The process ends here."""


@contextlib.contextmanager
def passes(work_dir: Path, **policy: Any) -> Iterator[Reconciler]:
    """A process that makes pass after pass over one work dir."""
    background = Background()
    with WorkDir(work_dir) as work:
        try:
            yield Reconciler(work, Policy(**policy), background)
        finally:
            background.close()


def kept(work_dir: Path, **policy: Any) -> list[str]:
    """What is left by a pass that waits for nothing and frees at once."""
    a_pass(work_dir, **{"trash_ttl_s": 0.0, "settle_s": 0.0, **policy})
    return left(work_dir)


def in_trash(work_dir: Path) -> list[str]:
    return sorted(os.listdir(work_dir / ".ckptd/trash"))


def keeper_of(work_dir: Path, policy: Policy, background: Background, *, root: Path | None = None) -> Any:
    """The keeper of a work dir that was named, or found below a root; no hint ever comes of it."""
    from ckptd.daemon.inotify import Inotify
    from ckptd.daemon.keeper import Keeper
    from ckptd.daemon.lookout import Lookout
    from ckptd.daemon.named import Named
    from ckptd.daemon.notable import Filter
    from ckptd.daemon.process import Process

    deaf, nobody = Inotify(), lambda *_: None
    deaf.close()
    process = Process(policy, background, Reader(background, wait=False), deaf, Filter(policy.pointer))
    below = root and Lookout(str(root), process, look=nobody, gone=nobody, walked=nobody)
    return Keeper(str(work_dir), process, below or Named([str(work_dir)], process, nobody))


def bottomless(path: Path, *, depth: int) -> None:
    """A directory in a directory in a directory ..., some of them protected against writing."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for level in range(depth):
        os.mkdir("d", dir_fd=fd)
        inner = os.open("d", os.O_RDONLY, dir_fd=fd)
        if level % 1000 == 0:
            os.fchmod(fd, 0o555)
        os.close(fd)
        fd = inner
    os.close(fd)


def left(work_dir: Path) -> list[str]:
    """The names in a work dir, ckptd's own aside, by the numbers in them."""
    ours = {".ckptd", "last_ckpt"}
    names = [path.name for path in work_dir.iterdir() if path.name not in ours]
    return sorted(names, key=lambda name: (int("".join(c for c in name if c in "0123456789") or 0), name))


def epochs(*steps: int) -> list[str]:
    return [f"epoch_{step}.pth" for step in steps]


def pointed(work_dir: Path) -> str:
    """The name in the pointer, once it is known to be the absolute path that it must be.

    It is beside the work dir where the framework trips over it.
    """
    place = work_dir if (work_dir / ".ckptd").exists() else work_dir.parent
    text = (place / "last_ckpt").read_text()
    name = os.path.basename(text.rstrip("\n"))
    assert text == f"{work_dir / name}\n"
    return name


def keeps(work_dir: Path, *steps: int) -> Callable[[], bool]:
    """Whether these epochs are left, oldest first, and the pointer names the last of them."""
    return lambda: (
        left(work_dir) == epochs(*steps)
        and (work_dir / "last_ckpt").exists()
        and pointed(work_dir) == f"epoch_{steps[-1]}.pth"
    )


def picture(place: Path) -> dict[str, tuple[Any, ...]]:
    """All that can change about the files below `place`: inode, mode, owner, times of change, bytes or target."""
    found = {}
    for path in [place, *sorted(place.rglob("*"))]:
        info = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        identity = (info.st_ino, info.st_mode, info.st_uid, info.st_mtime_ns, info.st_ctime_ns)
        found[str(path.relative_to(place))] = (*identity, content)
    return found


def pages() -> dict[str, str]:
    """The README and the pages of docs/, by their paths in the repository."""
    repository = Path(__file__).parents[1]
    paths = [repository / "README.md", *sorted((repository / "docs").glob("*.md"))]
    return {str(path.relative_to(repository)): path.read_text() for path in paths}


def section(heading: str) -> str:
    """What stands under a heading, in whichever page it is, down to the next heading that is no smaller."""
    found = []
    for page in pages().values():
        level = 0
        for line, is_code in _lines(page):
            marks = 0 if is_code else len(line) - len(line.lstrip("#"))
            if level and 0 < marks <= level:
                break
            if level:
                found.append(line)
            elif marks and line[marks:].strip() == heading:
                level = marks
    assert found, f"no section {heading!r}"
    return "".join(found)


def readme(heading: str) -> str:
    """The Python code that the README or a page of docs/ has under a heading of a framework's."""
    found = re.search(r"^```python\n(.*?)^```", section(heading), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def _lines(page: str) -> Iterator[tuple[str, bool]]:
    """Each line of a page, and whether it is in a block of code."""
    is_code = False
    for line in page.splitlines(keepends=True):
        is_code ^= line.startswith("```")
        yield line, is_code


# --- processes ------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    """This process's, less what would configure ckptd or make it think that a service manager started it."""
    managers = {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "JOURNAL_STREAM", "SYSTEMD_EXEC_PID"}
    ours = ("CKPTD_", "SLURM_")
    mine = {key: value for key, value in os.environ.items() if key not in managers and not key.startswith(ours)}
    return {**mine, "PYTHONUTF8": "1", **more}


def eventually(is_so: Callable[[], Any], *, what: str = "it") -> None:
    """Look until `is_so()`; fail when patience is at its end."""
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE_S} s"
        time.sleep(0.005)


Ckptd = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def ckptd() -> Ckptd:
    """Run one `ckptd` command as a process: `ckptd("plan", work_dir, env={"CKPTD_MAX_KEEP": "3"}, user=somebody)`."""

    def run(
        *args: str | Path,
        env: dict[str, str] | None = None,
        user: Somebody | None = None,
        timeout_s: float = PATIENCE_S,
    ) -> subprocess.CompletedProcess[str]:
        command = user.command(*args) if user else [sys.executable, "-m", "ckptd", *map(str, args)]
        env = {**(env or {}), **(UNTRACED if user else {})}
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
        return subprocess.run(
            command, text=True, errors="surrogateescape", timeout=timeout_s, env=environment(**env), **streams
        )

    return run


class Watching:
    """A `ckptd watch` that runs; its stderr is read as it comes."""

    def __init__(self, args: tuple[str | Path, ...], *, command: list[str] | None = None, **more: Any) -> None:
        command = command or [sys.executable, "-m", "ckptd", "watch", *map(str, args)]
        more = {"env": environment(PYTHONFAULTHANDLER="1"), **more}
        more = {"stdin": subprocess.DEVNULL, **more}
        self.process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
        self.lines: list[str] = []
        self._more = threading.Condition()
        self._ended = False
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def heard(self, text: str, *, times: int = 1) -> str:
        """Wait until `times` lines with `text` in them were said; returns the last of these."""
        with self._more:
            self._more.wait_for(lambda: self._ended or len(self._with(text)) >= times, PATIENCE_S)
            assert len(self._with(text)) >= times, f"{text!r} was not said {times}x in:\n" + "\n".join(self.lines)
            return self._with(text)[times - 1]

    def said(self, text: str) -> int:
        """How many lines so far have `text` in them."""
        with self._more:
            return len(self._with(text))

    def ends(self) -> int:
        """Wait until it has ended by itself; returns its exit code. All its lines are then in `lines`."""
        try:
            code = self.process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # it tells then where it stands
            self._reader.join()
            pytest.fail("it did not end:\n" + "\n".join(self.lines))
        self._reader.join(PATIENCE_S)
        return code

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal, and wait for the end."""
        self.process.send_signal(number)
        return self.ends()

    def discard(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        for stream in (self.process.stdout, self.process.stderr):
            stream.close()

    def _with(self, text: str) -> list[str]:
        return [line for line in self.lines if text in line]

    def _read(self) -> None:
        for line in self.process.stderr:
            with self._more:
                self.lines.append(line.rstrip("\n"))
                self._more.notify_all()
        with self._more:
            self._ended = True
            self._more.notify_all()


@pytest.fixture
def watching() -> Iterator[Callable[..., contextlib.AbstractContextManager[Watching]]]:
    """`with watching(work_dir, "--max-keep", "3") as watch: watch.heard("pruned epoch_1.pth")`."""

    @contextlib.contextmanager
    def watching(*args: str | Path, **more: Any) -> Iterator[Watching]:
        watch = Watching(args, **more)
        try:
            yield watch
        finally:
            watch.discard()

    return watching


def refuse(monkeypatch: pytest.MonkeyPatch, number: int, *ends: str) -> None:
    """Let every write-open of a name with one of these ends fail, as on a full disk."""
    opened = os.open

    def refusing(path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        if str(path).endswith(ends) and flags & os.O_CREAT:
            raise OSError(number, os.strerror(number), path)
        return opened(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", refusing)


@contextlib.contextmanager
def holding_open(path: Path, mode: str) -> Iterator[subprocess.Popen[str]]:
    """Another process that has `path` open until the `with` ends."""
    script = "import sys; f = open(sys.argv[1], sys.argv[2]); print('open', flush=True); sys.stdin.read()"
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(path), mode], text=True, **streams) as process:
        assert process.stdout.readline() == "open\n"
        yield process


# --- users ----------------------------------------------------------------------------------------------------


_AS_SOMEBODY = """
import encodings.cp437, ctypes, os, sys
import ckptd.cli
from ckptd.workdir.workdir import _import_all
_import_all()  # while this Python can still be read
uid = int(sys.argv.pop(1))
os.setgroups([]), os.setresgid(uid, uid, uid), os.setresuid(uid, uid, uid)
ckptd.cli.main()
"""


@dataclass(frozen=True)
class Somebody:
    """A user whom permission bits stop: ourselves, or nobody if we are root.

    place: a directory of his that he can reach, and that is gone after the test.
    """

    place: Path
    is_us: bool

    def owns(self, path: Path) -> Path:
        """Give `path` and all below it to him."""
        if not self.is_us:
            for each in [path, *path.rglob("*")]:
                os.chown(each, _NOBODY, _NOBODY, follow_symlinks=False)
        return path

    def command(self, *args: str | Path) -> list[str]:
        """What runs `ckptd` as this user."""
        how = ["-m", "ckptd"] if self.is_us else ["-c", _AS_SOMEBODY, str(_NOBODY)]
        return [sys.executable, *how, *map(str, args)]


@pytest.fixture
def somebody() -> Iterator[Somebody]:
    """A user for whom permission bits hold."""
    with tempfile.TemporaryDirectory(prefix="ckptd-test-") as place:
        os.chmod(place, 0o755)
        yield Somebody(Path(place), is_us=os.geteuid() != 0)
        for parent, folders, _ in os.walk(place):  # from the top, so that what a test has closed can be removed
            for name in folders:
                os.chmod(os.path.join(parent, name), 0o755)
