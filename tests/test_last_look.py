"""Whoever opens, names or pins a checkpoint after the plan was made keeps it: until its rename, and after it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.plan import SKIP
from ckptd.core.policy import Policy
from ckptd.disk.descriptors import opened_dir
from ckptd.disk.filesystem import is_local
from ckptd.disk.in_use import OpenFiles
from ckptd.inspect.scan import entry_of
from ckptd.passes.background import Background
from ckptd.passes.last_look import Holders
from ckptd.passes.protections import Protections
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.report import Report
from ckptd.workdir import trash
from ckptd.workdir.state import read_state
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, epochs, holding_open, in_trash, left, torch_zip

POLICY: dict[str, Any] = {"max_keep": 2, "interval": 1, "trash_ttl_s": 0.0}
FILES, DIRECTORIES = epochs(1, 2, 3, 4), [f"epoch_{step}" for step in (1, 2, 3, 4)]


@contextmanager
def mapping(path: Path) -> Iterator[None]:
    """Another process that has mapped `path`, and closed it."""
    script = """
import ctypes, os, sys
libc = ctypes.CDLL(None)
libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
fd = os.open(sys.argv[1], os.O_RDONLY)
assert libc.mmap(None, 4096, 1, 1, fd, 0) > 0
os.close(fd)
print("mapped", flush=True)
sys.stdin.read()
"""  # noqa: E501
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", script, str(path)], text=True, **streams) as process:
        assert process.stdout.readline() == "mapped\n"
        yield


@contextmanager
def working_in(path: Path) -> Iterator[None]:
    """Another process whose working directory is `path`."""
    streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    script = "import sys; print('there', flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", script], text=True, cwd=path, **streams) as process:
        assert process.stdout.readline() == "there\n"
        yield


HOLDERS = [
    pytest.param(FILES, lambda path: holding_open(path, "r+b"), id="a writer of a file"),
    pytest.param(DIRECTORIES, lambda path: holding_open(path / "__0_0.distcp", "rb"), id="a reader in a directory"),
    pytest.param(DIRECTORIES, lambda path: holding_open(path / "__0_0.distcp", "r+b"), id="a writer in a directory"),
    pytest.param(DIRECTORIES, lambda path: mapping(path / "__0_0.distcp"), id="a mapping of a directory's file"),
    pytest.param(DIRECTORIES, working_in, id="a process that works in a directory"),
]
Hold = Callable[[Path], contextlib.AbstractContextManager[Any]]


@pytest.fixture
def saved(with_checkpoints: Builder) -> Callable[[list[str]], Path]:
    """Four checkpoints, of which two are to go."""
    with opened_dir(str(with_checkpoints.work_dir)) as fd:
        if not is_local(fd):
            pytest.skip("no leases on the file system of the tests: nobody can tell who writes")

    def save(names: list[str]) -> Path:
        if names is FILES:
            return with_checkpoints(*names)
        for name in names:
            with_checkpoints.shards(name)
        return with_checkpoints.work_dir

    return save


def reconcile(work_dir: Path, clock: Callable[[], int] | None = None, **more: Any) -> Report:
    """One pass of a process that has just started and then ends."""
    background = Background()
    if clock is not None:
        more["clock"] = clock
    with WorkDir(work_dir) as work:
        report = Reconciler(work, Policy(**{**POLICY, **more.pop("policy", {})}), background, **more).reconcile()
        background.close()
    return report


def owed(work_dir: Path) -> set[str]:
    with opened_dir(str(work_dir / ".ckptd")) as own_fd:
        return {name for name, seen in read_state(own_fd).seen.items() if seen.owed}


def journal(work_dir: Path) -> list[tuple[str, str]]:
    lines = (work_dir / ".ckptd/journal.jsonl").read_text().splitlines()
    return [(line["did"], line["name"]) for line in map(json.loads, lines)]


@pytest.mark.parametrize(("names", "hold"), HOLDERS)
def test_what_somebody_opens_before_its_rename_is_left_alone_and_goes_when_he_is_done(
    names: list[str], hold: Hold, saved: Callable[[list[str]], Path], caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = saved(names)
    with ExitStack() as holders:
        asked = []

        def stopping() -> bool:  # asked just before each rename: what the plan has looked at is past
            asked.append(len(asked))
            if len(asked) == 1:
                holders.enter_context(hold(work_dir / names[0]))
            return False

        report = reconcile(work_dir, stopping=stopping)
        assert (left(work_dir), report.exit_code) == ([names[0], *names[2:]], 0)
        assert [text for text in caplog.messages if text.startswith(f"left {names[0]} alone: open ")]
        assert owed(work_dir) == {names[0]}
        held = next(d for d in reconcile(work_dir).survey.decisions if d.checkpoint.name == names[0])
        assert held.decision == SKIP
    reconcile(work_dir)
    assert (left(work_dir), in_trash(work_dir)) == (names[2:], [])


@pytest.mark.parametrize(("names", "hold"), HOLDERS)
def test_what_somebody_opens_between_the_look_and_the_rename_gets_its_name_back(
    names: list[str], hold: Hold, saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = saved(names)
    inode, mtime_ns = (work_dir / names[0]).stat().st_ino, (work_dir / names[0]).stat().st_mtime_ns
    (work_dir / f"{names[0]}.metrics.json").write_text('{"mAP": 0.5}')
    with ExitStack() as holders:
        with monkeypatch.context() as patch:
            patch.setattr(
                trash, "rename_new", opening(names[0], work_dir, lambda path: holders.enter_context(hold(path)))
            )
            report = reconcile(work_dir)
        assert (report.exit_code, [d.checkpoint.name for d in report.pruned]) == (0, [names[1]])
        back = (work_dir / names[0]).stat()
        assert (back.st_ino, back.st_mtime_ns) == (inode, mtime_ns)
        assert (work_dir / f"{names[0]}.metrics.json").exists()
        assert journal(work_dir) == [("pruned", names[0]), ("pruned", names[1]), ("gave back", names[0])]
        assert owed(work_dir) == {names[0]}
        for _ in range(2):
            again = reconcile(work_dir)
            held = next(d for d in again.survey.decisions if d.checkpoint.name == names[0])
            assert (held.decision, again.survey.newest, in_trash(work_dir)) == (SKIP, names[3], [])
    reconcile(work_dir)
    assert (left(work_dir), in_trash(work_dir)) == (names[2:], [])


@pytest.mark.parametrize("names", [FILES, DIRECTORIES], ids=["a file", "a directory"])
def test_what_is_written_and_closed_around_its_rename_gets_its_name_back(
    names: list[str], saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = saved(names)
    path = work_dir / names[0] / "__0_0.distcp" if names is DIRECTORIES else work_dir / names[0]
    files = []

    def write_and_close(_: Path) -> None:
        with files.pop() as file:
            file.write(b"more")

    renamed = opening(names[0], work_dir, lambda _: files.append(path.open("ab")), then=write_and_close)
    with monkeypatch.context() as patch:
        patch.setattr(trash, "rename_new", renamed)
        reconcile(work_dir)
    assert path.read_bytes().endswith(b"more")


def test_what_is_held_in_the_trash_stays_there_for_good_where_its_name_is_taken(
    saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = saved(FILES)
    was, new = (work_dir / FILES[0]).read_bytes(), torch_zip(b"n" * 900)
    with ExitStack() as holders:

        def open_and_save(path: Path) -> None:
            holders.enter_context(holding_open(path, "r+b"))

        with monkeypatch.context() as patch:
            renamed = opening(FILES[0], work_dir, open_and_save, then=lambda path: path.write_bytes(new))
            patch.setattr(trash, "rename_new", renamed)
            reconcile(work_dir)
        (kept,) = in_trash(work_dir)
        assert kept.startswith("held-")
        assert any(f"kept as {work_dir}/.ckptd/trash/{kept}, which nothing frees" in text for text in caplog.messages)
        assert ("kept in the trash", FILES[0]) in journal(work_dir)
    for _ in range(2):
        reconcile(work_dir)
    assert (in_trash(work_dir), (work_dir / ".ckptd/trash" / kept).read_bytes()) == ([kept], was)
    assert (work_dir / FILES[0]).read_bytes() == new


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize(("names", "hold"), HOLDERS)
def test_what_is_held_when_its_hour_in_the_trash_is_over_gets_its_name_back_and_is_still_owed(
    names: list[str], hold: Hold, restarted: bool, saved: Callable[[list[str]], Path]
) -> None:
    work_dir = saved(names)
    begins_ns = (work_dir / names[-1]).stat().st_mtime_ns + 3600 * 10**9
    now_ns = begins_ns
    hour = {**POLICY, "trash_ttl_s": 3600.0}
    background = Background()
    with WorkDir(work_dir) as work, ExitStack() as holders:
        reconciler = Reconciler(work, Policy(**hour), background, clock=lambda: now_ns)
        reconciler.reconcile()
        first, _ = in_trash(work_dir)
        holders.enter_context(hold(work_dir / ".ckptd/trash" / first))
        now_ns += 3601 * 10**9
        if restarted:
            work.close()
            reconcile(work_dir, policy=hour, clock=lambda: now_ns)
        else:
            reconciler.reconcile()
        background.wait()
        assert (left(work_dir), in_trash(work_dir)) == ([names[0], *names[2:]], [])
        assert journal(work_dir)[-1] == ("gave back", names[0])
        assert owed(work_dir) == {names[0]}
        work.close()
        again = reconcile(work_dir, clock=lambda: now_ns)
        held = next(d for d in again.survey.decisions if d.checkpoint.name == names[0])
        assert (held.decision, again.survey.newest) == (SKIP, names[3])
    background.close()
    reconcile(work_dir, clock=lambda: now_ns)
    assert (left(work_dir), in_trash(work_dir)) == (names[2:], [])


def test_what_is_held_and_nobody_knows_the_name_of_stays_in_the_trash_for_good(
    saved: Callable[[list[str]], Path],
) -> None:
    work_dir = saved(FILES)
    reconcile(work_dir)
    item = work_dir / ".ckptd/trash/1000-0"
    item.write_bytes(torch_zip())
    with holding_open(item, "r+b"):
        reconcile(work_dir)
    reconcile(work_dir)
    assert in_trash(work_dir) == ["held-1000-0"]


@pytest.mark.parametrize(
    "make", [os.mkfifo, lambda path: path.symlink_to("/etc/hostname")], ids=["a FIFO", "a symlink"]
)
def test_what_nobody_can_be_at_is_freed(make: Callable[[Path], None], saved: Callable[[list[str]], Path]) -> None:
    work_dir = saved(FILES)
    reconcile(work_dir)
    make(work_dir / ".ckptd/trash/1000-0")
    reconcile(work_dir)
    assert in_trash(work_dir) == []


def test_what_cannot_go_back_though_it_is_held_stays_where_it_is_and_is_tried_again(
    saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = saved(FILES)
    hour = {**POLICY, "trash_ttl_s": 3600.0}
    now_ns = (work_dir / FILES[-1]).stat().st_mtime_ns + 3600 * 10**9
    background = Background()
    with WorkDir(work_dir) as work:
        reconciler = Reconciler(work, Policy(**hour), background, clock=lambda: now_ns)
        reconciler.reconcile()
        first, _ = in_trash(work_dir)
        with holding_open(work_dir / ".ckptd/trash" / first, "r+b"):

            def refuse(*_: object, **__: object) -> None:
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

            now_ns += 3601 * 10**9
            with monkeypatch.context() as patch:
                patch.setattr(trash, "give_back", refuse)
                reconciler.reconcile()
                background.wait()
            assert (in_trash(work_dir), left(work_dir)) == ([first], FILES[2:])
            assert any("Permission denied; will try again" in text for text in caplog.messages)
            now_ns += 60 * 10**9
            reconciler.reconcile()
            assert left(work_dir) == [FILES[0], *FILES[2:]]
    background.close()


def pin(work_dir: Path) -> None:
    (work_dir / "epoch_2.pth.keep").touch()


def link(work_dir: Path) -> None:
    (work_dir / "best.pth").symlink_to("epoch_2.pth")


def name_in_a_tracker(work_dir: Path) -> None:
    (work_dir / "last_checkpoint").write_text("/elsewhere/epoch_2.pth")


def name_in_the_pointer(work_dir: Path) -> None:
    (work_dir / "last_ckpt").write_text(f"{work_dir}/epoch_2.pth\n")


@pytest.mark.parametrize("after", [False, True], ids=["before its rename", "after it"])
@pytest.mark.parametrize("claim", [pin, link, name_in_a_tracker, name_in_the_pointer], ids=lambda claim: claim.__name__)
def test_what_somebody_names_while_checkpoints_go_stays(
    claim: Callable[[Path], None], after: bool, saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = saved(FILES)
    # Around the first rename of the batch, or the second, which is its own.
    about = FILES[1] if after else FILES[0]
    renamed = opening(about, work_dir, lambda _: None, then=lambda _: claim(work_dir))
    with monkeypatch.context() as patch:
        patch.setattr(trash, "rename_new", renamed)
        report = reconcile(work_dir)
    assert [d.checkpoint.name for d in report.pruned] == FILES[:1]
    assert (work_dir / "epoch_2.pth").read_bytes() == torch_zip()
    assert in_trash(work_dir) == []


@pytest.mark.parametrize("claim", [pin, link, name_in_a_tracker], ids=lambda claim: claim.__name__)
def test_what_is_named_when_its_hour_in_the_trash_is_over_gets_its_name_back(
    claim: Callable[[Path], None], saved: Callable[[list[str]], Path]
) -> None:
    work_dir = saved(FILES)
    hour = {**POLICY, "trash_ttl_s": 3600.0}
    now_ns = (work_dir / FILES[-1]).stat().st_mtime_ns + 3600 * 10**9
    reconcile(work_dir, policy=hour, clock=lambda: now_ns)
    claim(work_dir)
    now_ns += 3601 * 10**9
    reconcile(work_dir, policy=hour, clock=lambda: now_ns)
    assert (work_dir / "epoch_2.pth").read_bytes() == torch_zip()
    assert (journal(work_dir)[-1], in_trash(work_dir)) == (("gave back", "epoch_2.pth"), [])


def test_what_is_named_and_there_again_is_freed_from_the_trash(saved: Callable[[list[str]], Path]) -> None:
    work_dir = saved(FILES)
    hour = {**POLICY, "trash_ttl_s": 3600.0}
    now_ns = (work_dir / FILES[-1]).stat().st_mtime_ns + 3600 * 10**9
    reconcile(work_dir, policy=hour, clock=lambda: now_ns)
    (work_dir / "epoch_2.pth").write_bytes(torch_zip(b"n" * 900))
    pin(work_dir)
    now_ns += 3601 * 10**9
    reconcile(work_dir, policy=hour, clock=lambda: now_ns)
    assert (work_dir / "epoch_2.pth").read_bytes() == torch_zip(b"n" * 900)
    assert in_trash(work_dir) == []


def test_the_trash_is_not_freed_while_no_complete_checkpoint_is_left(
    saved: Callable[[list[str]], Path], caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = saved(FILES)
    hour = {**POLICY, "trash_ttl_s": 3600.0}
    now_ns = (work_dir / FILES[-1]).stat().st_mtime_ns + 3600 * 10**9
    reconcile(work_dir, policy=hour, clock=lambda: now_ns)
    for name in FILES[2:]:
        (work_dir / name).unlink()
    now_ns += 3601 * 10**9
    report = reconcile(work_dir, policy=hour, clock=lambda: now_ns)
    assert len(in_trash(work_dir)) == 2
    assert report.look_again_s == pytest.approx(3600)
    assert any(f"`ckptd restore --all {work_dir}` brings back what is there" in text for text in caplog.messages)
    (work_dir / FILES[3]).write_bytes(torch_zip())
    reconcile(work_dir, policy={**hour, "settle_s": 0.0}, clock=lambda: now_ns)
    assert in_trash(work_dir) == []


@pytest.mark.parametrize("change", [Path.unlink, lambda path: path.write_bytes(b"cut"), os.utime],
                         ids=["is deleted", "is written over", "is touched"])  # fmt: skip
def test_nothing_goes_where_what_is_to_stay_in_its_place_is_no_longer_what_it_was(
    change: Callable[[Path], Any], saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = saved(FILES)
    renamed = opening(FILES[0], work_dir, lambda _: None, then=lambda _: change(work_dir / FILES[3]))
    with monkeypatch.context() as patch:
        patch.setattr(trash, "rename_new", renamed)
        report = reconcile(work_dir)
    assert report.pruned == ()
    assert set(FILES[:3]) <= set(left(work_dir))
    assert in_trash(work_dir) == []


@pytest.mark.parametrize("what", ["the look", "the way back"])
def test_nothing_is_freed_for_an_hour_where_a_look_in_the_trash_or_the_way_back_fails(
    what: str, saved: Callable[[list[str]], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = saved(FILES)
    now_ns = (work_dir / FILES[-1]).stat().st_mtime_ns + 3600 * 10**9
    looked: list[str] = []

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    named_now = Protections.named_now

    def second_fails(protections: Protections) -> dict[str, list[str]]:
        looked.append("")
        if len(looked) == 2 and what == "the look":
            refuse()
        return {FILES[0]: ["pinned"]} if len(looked) == 2 else named_now(protections)

    background = Background()
    with WorkDir(work_dir) as work, monkeypatch.context() as patch:
        patch.setattr(Protections, "named_now", second_fails)
        patch.setattr(trash, "give_back", refuse)
        reconciler = Reconciler(work, Policy(**POLICY), background, clock=lambda: now_ns)
        report = reconciler.reconcile()
        assert (report.exit_code, sorted(report.failed)) == (3, FILES[:2])
        for _ in range(2):
            background.wait()
            assert len(in_trash(work_dir)) == 2
            reconciler.reconcile()
        now_ns += 3601 * 10**9
        reconciler.reconcile()
        background.wait()
        assert in_trash(work_dir) == []
    background.close()


def test_a_writer_that_comes_before_an_unlink_without_the_trash_keeps_his_file(
    saved: Callable[[list[str]], Path],
) -> None:
    work_dir = saved(FILES)
    with (
        opened_dir(str(work_dir)) as fd,
        holding_open(work_dir / FILES[0], "r+b"),
        pytest.raises(trash.ChangedError, match="open for writing"),
    ):
        trash.unlink(entry_of(FILES[0], dir_fd=fd), work_fd=fd, who=Holders().of)
    assert left(work_dir) == FILES


def test_one_look_through_all_processes_serves_for_as_long_as_it_took(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that at most half of the time goes into looking, however many directories go."""
    now_s, looked_at_s, listdir = 100.0, [], os.listdir

    def listing(path: Any = ".") -> list[str]:
        nonlocal now_s
        if path == "/proc":
            looked_at_s.append(now_s)
            now_s += 3.0  # so long it takes
        return listdir(path)

    monkeypatch.setattr(os, "listdir", listing)
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    with_checkpoints.shards("epoch_1")
    open_files = OpenFiles()
    with opened_dir(str(with_checkpoints.work_dir)) as fd:
        for _ in range(8):
            assert open_files.user_of("epoch_1", dir_fd=fd) is None
            now_s += 1.0
    assert looked_at_s == [100.0, 107.0]


def opening(
    name: str, work_dir: Path, before: Callable[[Path], Any], *, then: Callable[[Path], Any] = lambda _: None
) -> Callable[..., None]:
    """A rename that does something to what `name` names just before it goes, and just after."""
    rename, done = trash.rename_new, []

    def renamed(src: str, dst: str, **more: Any) -> None:
        first = src == name and not done
        if first:
            done.append(src)
            before(work_dir / name)
        rename(src, dst, **more)
        if first:
            then(work_dir / name)

    return renamed
