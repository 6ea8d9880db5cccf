"""A checkpoint of several files goes as one, or stays as one: whatever happens between two of its renames."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.entry import entry_of_parts
from ckptd.disk import descriptors
from ckptd.errors import RefusedError
from ckptd.inspect.scan import entry_of
from ckptd.passes import pruner, remover
from ckptd.passes.left_behind import LeftBehind
from ckptd.passes.restore import restorable, restore
from ckptd.workdir import groups, trash
from ckptd.workdir.journal import Line
from ckptd.workdir.workdir import WorkDir

from .conftest import Crash, holding_open, in_trash, left, picture, pointed, torch_zip
from .grouped import NAMES, Now, Run, passes
from .test_delete import opened
from .world.onlooker import Calls

SYNCING = (trash, groups, pruner, remover)


@pytest.fixture(params=NAMES, ids=lambda count: f"{count} files")
def run(request: pytest.FixtureRequest, tmp_path: Path) -> Run:
    return Run(tmp_path / "run", request.param)


def journal(run: Run) -> list[tuple[str, str]]:
    lines = (run.work_dir / ".ckptd/journal.jsonl").read_text().splitlines()
    return [(line["did"], line["name"]) for line in map(json.loads, lines)]


def names(run: Run, *steps: int) -> list[str]:
    return sorted(name for step in steps for name in run.names(step))


def test_all_files_of_a_step_go_and_the_pointer_names_the_first_of_the_newest(run: Run) -> None:
    run.save(1, 2, 3)
    report = run.make_pass()
    assert [d.checkpoint.name for d in report.pruned] == [run.names(1)[0], run.names(2)[0]]
    assert (sorted(left(run.work_dir)), run.whole(1, 2, 3), in_trash(run.work_dir)) == (names(run, 3), [3], [])
    assert pointed(run.work_dir) == run.names(3)[0]


def test_history_has_one_line_of_it_with_the_bytes_of_all(run: Run) -> None:
    run.save(1, 2)
    run.make_pass()
    (line,) = map(json.loads, (run.work_dir / ".ckptd/journal.jsonl").read_text().splitlines())
    assert (line["did"], line["name"], line["parts"]) == ("pruned", run.names(1)[0], run.names(1))
    assert line["size_bytes"] == sum(len(run.content(name)) for name in run.names(1))


def test_in_the_trash_nothing_of_it_bears_a_checkpoints_name(run: Run) -> None:
    run.save(1, 2)
    run.make_pass(trash_ttl_s=3600.0)
    (item,) = in_trash(run.work_dir)
    inside = sorted(os.listdir(run.work_dir / ".ckptd/trash" / item))
    assert inside == [*map(str, range(run.count)), "record.json"]
    assert run.kept_in_trash() == sorted(run.content(name) for name in run.names(1))


def test_an_earlier_version_passes_over_it_in_the_trash_and_reads_the_journal(run: Run) -> None:
    run.save(1, 2)
    run.make_pass(trash_ttl_s=3600.0)
    (item,) = in_trash(run.work_dir)
    assert not re.fullmatch(r"[0-9]{1,19}-[0-9]{1,9}(\.gone)?", item)  # as 0.1.0 knows what it frees and restores
    (line,) = map(json.loads, (run.work_dir / ".ckptd/journal.jsonl").read_text().splitlines())
    known = {"at", "did", "name", "series", "step", "order", "size_bytes", "reason", "trash", "until_ms", "scores"}
    assert line.keys() - known == {"parts"}


def test_its_scores_go_and_come_back_with_each_file(run: Run) -> None:
    run.save(1, 2)
    scores = [f"{name}.metrics.json" for name in run.names(1)]
    for name in scores:
        (run.work_dir / name).write_text(json.dumps({name: 0.5}))
    run.make_pass(trash_ttl_s=3600.0)
    assert sorted(left(run.work_dir)) == names(run, 2)
    restore(str(run.work_dir), [run.names(1)[0]])
    assert all(json.loads((run.work_dir / name).read_text()) == {name: 0.5} for name in scores)


# --- a crash ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ttl_s", [0.0, 3600.0], ids=["freed at once", "kept for an hour"])
def test_killed_at_any_call_none_is_halved_once_ckptd_has_started_again(run: Run, ttl_s: float, tmp_path: Path) -> None:
    def scene(at: int) -> Run:
        made = Run(tmp_path / f"run{at}", run.count)
        made.save(1, 2)
        made.make_pass(trash_ttl_s=ttl_s, max_keep=2)
        made.save(3)
        return made

    for at in range(1, 1000):
        again = scene(at)
        with contextlib.suppress(Crash), Calls(lambda *_: None, at).watched():
            again.make_pass(trash_ttl_s=ttl_s)
            break
        assert 3 in again.whole(1, 2, 3), at
        check_that_nothing_is_alone(again, at)
        again.make_pass(trash_ttl_s=ttl_s)
        assert (again.whole(1, 2, 3), sorted(left(again.work_dir))) == ([3], names(again, 3)), at
        assert len(in_trash(again.work_dir)) == (2 if ttl_s else 0), at
        assert pointed(again.work_dir) == again.names(3)[0]
        assert sorted(journal(again)) == [("pruned", again.names(1)[0]), ("pruned", again.names(2)[0])], at
    assert at > 30


def check_that_nothing_is_alone(run: Run, at: Any, *, steps: tuple[int, ...] = (1, 2, 3)) -> None:
    """A start that is to prune nothing has all of a step back at their names, or all are gone or in the trash."""
    run.make_pass(max_keep=None, trash_ttl_s=3600.0)
    assert run.halves(*steps) == [], at
    assert run.whole(*steps) == [step for step in steps if (run.work_dir / run.names(step)[0]).exists()], at
    assert run.whole(*steps)[-1] == steps[-1], at
    there = [name for name in os.listdir(run.work_dir / ".ckptd/trash") if not name.endswith((".group", ".gone"))]
    assert there == [], at


@pytest.mark.parametrize("reverted", range(5))
def test_after_a_power_cut_that_has_lost_any_renames_none_is_halved(run: Run, reverted: int, tmp_path: Path) -> None:
    """At every call: of the renames that no fsync has made durable since, those are undone that a number says."""
    for at in range(1, 1000):
        again = Run(tmp_path / f"run{at}", run.count)
        again.save(1, 2)
        unsynced = Unsynced()
        try:
            with Calls(lambda *_: None, at).watched(), unsynced.watched():
                again.make_pass()
        except Crash:
            pass
        else:
            break
        unsynced.undo(lambda number: reverted == 4 or number % 4 == reverted)
        check_that_nothing_is_alone(again, at, steps=(1, 2))
        again.make_pass()
        assert (again.whole(1, 2), sorted(left(again.work_dir)), in_trash(again.work_dir)) == ([2], names(again, 2), [])
    assert at > 20


class Unsynced:
    """Renames between two directories, and their undoing by a power cut that comes before both were flushed."""

    def __init__(self) -> None:
        self._renames: list[tuple[str, str]] = []
        self._synced: dict[str, int] = {}

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        with pytest.MonkeyPatch.context() as patch:
            for module in (trash, groups):
                patch.setattr(module, "rename_new", self._noting(module.rename_new))
            for module in SYNCING:
                patch.setattr(module, "sync_dir", self._syncing(module.sync_dir))
            yield

    def undo(self, which: Callable[[int], bool]) -> None:
        """The last first, each only if nothing has taken its place."""
        for number, (src, dst) in reversed(list(enumerate(self._renames))):
            durable = all(self._synced.get(os.path.dirname(path), -1) > number for path in (src, dst))
            if not durable and which(number) and os.path.lexists(dst) and not os.path.lexists(src):
                os.rename(dst, src)

    def _noting(self, rename: Callable[..., None]) -> Callable[..., None]:
        def noted(src: str, dst: str, *, src_dir_fd: int, dst_dir_fd: int, **more: Any) -> None:
            rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd, **more)
            self._renames.append((f"{_path(src_dir_fd)}/{src}", f"{_path(dst_dir_fd)}/{dst}"))

        return noted

    def _syncing(self, sync: Callable[[int], None]) -> Callable[[int], None]:
        def synced(fd: int) -> None:
            sync(fd)
            self._synced[_path(fd)] = len(self._renames)

        return synced


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")


@pytest.mark.parametrize("moved", [1, 2])
def test_killed_again_while_a_start_brings_files_back_all_are_back_after_the_next(
    run: Run, moved: int, tmp_path: Path
) -> None:
    for at in range(1, 1000):
        again = half_done(Run(tmp_path / f"run{at}", run.count), moved)
        with contextlib.suppress(Crash), Calls(lambda *_: None, at).watched():
            again.make_pass(max_keep=None)
            break
        check_that_nothing_is_alone(again, at, steps=(1, 2))
        assert again.whole(1, 2) == [1, 2]
    assert at > moved


def half_done(run: Run, moved: int) -> Run:
    """Killed after so many renames of the files of step 1."""
    run.save(1, 2)
    run.make_pass(max_keep=2)
    put, count = trash.put_as, itertools.count(1)

    def killed(*args: Any, **more: Any) -> str:
        item = put(*args, **more)
        if next(count) == moved:
            raise Crash
        return item

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trash, "put_as", killed)
        with pytest.raises(Crash):
            run.make_pass()
    assert run.halves(1, 2) == ([1] if moved < run.count else [])
    return run


@pytest.mark.parametrize("of", [0, 1], ids=["the first file", "the second"])
def test_what_a_resumed_job_has_written_again_since_a_crash_is_left_alone_and_said(
    run: Run, of: int, caplog: pytest.LogCaptureFixture
) -> None:
    half_done(run, 2)
    name, new = run.names(1)[of], torch_zip(b"new" * 50)
    (run.work_dir / name).write_bytes(new)
    run.make_pass(max_keep=None)
    assert (run.work_dir / name).read_bytes() == new
    assert sorted(left(run.work_dir)) == sorted([name, *run.names(1)[2:], *run.names(2)])
    (kept,) = in_trash(run.work_dir)
    assert kept.startswith("held-")
    assert run.kept_in_trash() == sorted(run.content(each) for each in run.names(1)[:2])
    assert any(f"/.ckptd/trash/{kept}, which nothing frees" in text for text in caplog.messages)
    run.make_pass(trash_ttl_s=0.0, max_keep=None)
    assert in_trash(run.work_dir) == [kept]


def test_what_a_resumed_job_wrote_again_before_it_went_is_left_alone_after_a_crash(run: Run) -> None:
    half_done(run, 1)
    name, new = run.names(1)[1], torch_zip(b"new" * 50)
    (run.work_dir / name).write_bytes(new)
    run.make_pass(max_keep=None)
    assert sorted(left(run.work_dir)) == names(run, 1, 2)
    assert ((run.work_dir / name).read_bytes(), in_trash(run.work_dir)) == (new, [])


def test_a_record_that_a_kill_has_left_alone_is_removed(run: Run) -> None:
    run.save(1, 2)
    run.make_pass(max_keep=2)
    for item, record in (("1000-0.going", b""), ("1000-1.going", b"{"), ("1000-2.back", None)):
        place = run.work_dir / ".ckptd/trash" / item
        place.mkdir()
        if record is not None:
            (place / "record.json").write_bytes(record)
    run.make_pass(max_keep=2)
    assert (run.whole(1, 2), in_trash(run.work_dir)) == ([1, 2], [])


@pytest.mark.parametrize("name", ["../outside", "/tmp/outside", "..", "", "a\0b", 7])
def test_a_record_that_somebody_has_forged_names_nothing_outside_of_the_work_dir(run: Run, name: Any) -> None:
    half_done(run, 1)
    (place,) = (run.work_dir / ".ckptd/trash").iterdir()
    record = json.loads((place / "record.json").read_text())
    record["parts"][0][0] = name
    (place / "record.json").write_text(json.dumps(record))
    run.make_pass(max_keep=None)
    assert in_trash(run.work_dir) == [f"held-{place.stem}.group"]
    assert sorted(os.listdir(run.work_dir.parent)) == [run.work_dir.name]


# --- somebody wants one of them -----------------------------------------------------------------------------------


def pin(run: Run, name: str) -> None:
    (run.work_dir / f"{name}.keep").touch()


def link(run: Run, name: str) -> None:
    (run.work_dir / "best.pth").symlink_to(name)


def name_in_a_tracker(run: Run, name: str) -> None:
    (run.work_dir / "best.txt").write_text(f"/elsewhere/{name}")


def name_in_the_pointer(run: Run, name: str) -> None:
    (run.work_dir / "last_ckpt").write_text(f"{run.work_dir}/{name}\n")


CLAIMS = [pin, link, name_in_a_tracker, name_in_the_pointer]


@pytest.mark.parametrize("when", ["before any", "between two", "after all"])
@pytest.mark.parametrize("of", [0, -1], ids=["the first file", "the last"])
@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.__name__)
def test_who_names_one_of_them_while_they_go_keeps_all(
    run: Run, claim: Callable[[Run, str], None], of: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2, 3)
    name = run.names(2)[of]
    during(run, when, lambda: claim(run, name), monkeypatch)
    report = run.make_pass()
    assert [d.checkpoint.name for d in report.pruned] == run.names(1)[:1]
    assert (run.whole(1, 2, 3), in_trash(run.work_dir)) == ([2, 3], [])


@pytest.mark.parametrize("when", ["before any", "between two", "after all"])
@pytest.mark.parametrize("of", [0, -1], ids=["the first file", "the last"])
def test_who_has_one_of_them_open_for_writing_while_they_go_keeps_all(
    run: Run, of: int, when: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.save(1, 2, 3)
    inodes = {name: (run.work_dir / name).stat().st_ino for name in run.names(2)}
    with contextlib.ExitStack() as holders:

        def hold() -> None:
            name = run.names(2)[of]
            here = [run.work_dir / name, *(run.work_dir / ".ckptd/trash").rglob("[0-9]")]
            path = next(each for each in here if each.exists() and each.stat().st_ino == inodes[name])
            holders.enter_context(holding_open(path, "r+b"))

        with monkeypatch.context() as patch:
            during(run, when, hold, patch)
            run.make_pass()
        assert (run.whole(1, 2, 3), in_trash(run.work_dir)) == ([2, 3], [])
        assert {name: (run.work_dir / name).stat().st_ino for name in run.names(2)} == inodes
        assert any("open for writing" in text and run.names(2)[of] in text for text in caplog.messages)
    run.make_pass()
    assert (run.whole(1, 2, 3), in_trash(run.work_dir)) == ([3], [])


@pytest.mark.parametrize("how", ["in place", "by a rename"])
@pytest.mark.parametrize("when", ["before any", "between two", "after all"])
def test_a_job_that_writes_the_last_of_them_again_loses_nothing_of_it(
    run: Run, how: str, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2, 3)
    name, new = run.names(2)[-1], torch_zip(b"new" * 77)

    def write() -> None:
        aside = run.work_dir / (name if how == "in place" else "aside")
        aside.write_bytes(new)
        aside.rename(run.work_dir / name)

    during(run, when, write, monkeypatch)
    run.make_pass()
    assert (run.work_dir / name).read_bytes() == new
    rest = run.names(2)[:-1]
    if when == "after all":  # what had been renamed is not what was written since
        assert not any((run.work_dir / each).exists() for each in rest)
    else:
        assert all(run.is_there(each) for each in rest)
    assert in_trash(run.work_dir) == []


def test_a_job_that_writes_the_first_of_them_again_and_then_the_last_keeps_what_it_wrote(
    run: Run, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.save(1, 2, 3)
    first, last, new = run.names(2)[0], run.names(2)[-1], torch_zip(b"new" * 77)

    def write() -> None:
        for name in (first, last):
            (run.work_dir / name).write_bytes(new)

    during(run, "between two", write, monkeypatch)
    run.make_pass()
    assert [(run.work_dir / name).read_bytes() for name in (first, last)] == [new, new]
    (kept,) = in_trash(run.work_dir)  # what had gone before cannot go back, and is half of something
    assert any(f"{kept}, which nothing frees" in text for text in caplog.messages)
    assert ("kept in the trash", first) in journal(run)


def during(run: Run, when: str, do: Callable[[], None], patch: pytest.MonkeyPatch) -> None:
    """Do it around the renames of the files of step 2."""
    put, files = trash.put_as, run.names(2)
    about = {"before any": files[0], "between two": files[1], "after all": files[-1]}[when]

    def renamed(entry: Any, *args: Any, **more: Any) -> str:
        if entry.name == about and when != "after all":
            do()
        item = put(entry, *args, **more)
        if entry.name == about and when == "after all":
            do()
        return item

    patch.setattr(trash, "put_as", renamed)


@pytest.mark.parametrize("restarted", [False, True])
@pytest.mark.parametrize("claim", [None, pin, link, name_in_a_tracker])
@pytest.mark.parametrize("of", [0, -1], ids=["the first file", "the last"])
def test_who_wants_one_of_them_when_its_hour_in_the_trash_is_over_gets_all_back(
    run: Run, of: int, claim: Callable[[Run, str], None] | None, restarted: bool
) -> None:
    run.save(1, 2)
    now_ns = run.builder.at_ns + 3600 * 10**9
    with passes(run, clock=lambda: now_ns, trash_ttl_s=3600.0) as reconciler, contextlib.ExitStack() as holders:
        reconciler.reconcile()
        (item,) = in_trash(run.work_dir)
        if claim is None:
            inside = run.work_dir / ".ckptd/trash" / item / str(range(run.count)[of])
            holders.enter_context(holding_open(inside, "r+b"))
        else:
            claim(run, run.names(1)[of])
        now_ns += 3601 * 10**9
        if restarted:
            reconciler.work.close()
            run.make_pass(at=lambda: now_ns, trash_ttl_s=3600.0)
        else:
            reconciler.reconcile()
        assert (run.whole(1, 2), in_trash(run.work_dir)) == ([1, 2], [])
        assert journal(run)[-1] == ("gave back", run.names(1)[0])
        reconciler.work.close()
        report = run.make_pass(at=lambda: now_ns, trash_ttl_s=3600.0)
        assert (report.survey.newest, run.whole(1, 2)) == (run.names(2)[0], [1, 2])
        seen = report.survey.plan.memory.seen[run.names(1)[0]]
        assert (seen.owed, seen.order) == (True, 1)


@pytest.mark.parametrize("when", ["before any", "after all"])
@pytest.mark.parametrize("missing", [0, -1], ids=["the first file", "the last"])
def test_half_of_one_whose_other_half_comes_while_it_goes_stays(
    run: Run, missing: int, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2, 3)
    late = run.work_dir / run.names(2)[missing]
    content = late.read_bytes()
    late.unlink()
    there = [name for name in run.names(2) if name != late.name]
    put, done = trash.put_as, []

    def renamed(entry: Any, *args: Any, **more: Any) -> str:
        first = entry.name in run.names(1)  # the last look is made before the first rename, and after the last
        if first and when == "before any":
            late.write_bytes(content)
        item = put(entry, *args, **more)
        if entry.name == there[-1]:
            done.append(entry.name)
            late.write_bytes(content)
        return item

    with monkeypatch.context() as patch:
        patch.setattr(trash, "put_as", renamed)
        run.make_pass()
    assert (run.whole(1, 2, 3), in_trash(run.work_dir)) == ([2, 3], [])
    assert done


def test_half_of_one_goes_where_nothing_of_it_comes(run: Run) -> None:
    run.save(1, 2)
    (run.work_dir / run.names(1)[0]).unlink()
    run.make_pass()
    assert (sorted(left(run.work_dir)), in_trash(run.work_dir)) == (names(run, 2), [])


# --- the system refuses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["mkdir", "write_record", "sync_dir"])
def test_on_a_disk_too_full_for_the_record_nothing_goes_and_that_is_said(
    run: Run, call: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.save(1, 2)
    run.make_pass(max_keep=2)

    real = getattr(os if call == "mkdir" else groups, call)

    def no_room(what: Any, *args: Any, **more: Any) -> None:
        if call == "mkdir" and what in (".ckptd", "trash"):
            return real(what, *args, **more)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os if call == "mkdir" else groups, call, no_room)
        report = run.make_pass()
    assert (report.exit_code, run.whole(1, 2), report.pruned) == (3, [1, 2], ())
    assert any(f"could not prune {run.work_dir}/{run.names(1)[0]}: No space left" in each for each in caplog.messages)
    run.make_pass()
    assert (run.whole(1, 2), in_trash(run.work_dir)) == ([2], [])


@pytest.mark.parametrize("of", [0, 1], ids=["the first file", "the second"])
def test_where_the_system_refuses_one_rename_all_are_back(run: Run, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save(1, 2)
    with monkeypatch.context() as patch:
        patch.setattr(trash, "rename_new", refusing(run.names(1)[of]))
        report = run.make_pass()
    assert (report.exit_code, list(report.failed), run.whole(1, 2)) == (3, run.names(1)[:1], [1, 2])
    assert in_trash(run.work_dir) == []
    run.make_pass()
    assert run.whole(1, 2) == [2]


@pytest.mark.parametrize("refused", [0, 1], ids=["once", "for longer"])
def test_what_cannot_come_back_is_not_freed_and_comes_back_at_a_later_pass(
    run: Run, refused: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run.save(1, 2)
    with passes(run) as reconciler:
        with monkeypatch.context() as patch:
            patch.setattr(trash, "rename_new", refusing(run.names(1)[1], "0"))
            report = reconciler.reconcile()
            assert (report.exit_code, run.halves(1, 2), reconciler.can_rest) == (3, [1], False)
            assert any("back: Permission denied; will try again" in text for text in caplog.messages)
            for _ in range(refused):
                reconciler.reconcile()
                assert run.kept_in_trash() == [run.content(run.names(1)[0])]
        reconciler.reconcile()
        # One that was seen without its file was changed since, and is kept.
        assert (run.whole(1, 2), in_trash(run.work_dir)) == ([1, 2] if refused else [2], [])


@pytest.mark.parametrize("restarted", [False, True])
def test_a_pass_that_ends_before_its_time_halves_none_either(
    run: Run, restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2, 3)
    put = trash.put_as

    def refused(entry: Any, *args: Any, **more: Any) -> str:
        if entry.name == run.names(2)[1]:
            raise RefusedError("not ours")
        return put(entry, *args, **more)

    with passes(run) as reconciler:
        with monkeypatch.context() as patch:
            patch.setattr(trash, "put_as", refused)
            with pytest.raises(RefusedError):
                reconciler.reconcile()
        if restarted:
            reconciler.work.close()
            run.make_pass()
        else:
            reconciler.reconcile()
    assert (run.whole(1, 2, 3), run.halves(1, 2, 3), in_trash(run.work_dir)) == ([3], [], [])


def refusing(*names: str) -> Callable[..., None]:
    rename = trash.rename_new

    def renamed(src: str, *args: Any, **more: Any) -> None:
        if src in names:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        rename(src, *args, **more)

    return renamed


@pytest.mark.parametrize("failing", range(1, 6))
def test_where_an_fsync_fails_nothing_is_freed_and_none_is_halved(
    run: Run, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2)
    run.make_pass(max_keep=2)
    count = itertools.count(1)

    def sync(fd: int) -> None:
        if next(count) == failing:
            raise descriptors.SyncError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        for module in SYNCING:
            patch.setattr(module, "sync_dir", sync)
        run.make_pass()
    assert next(count) > failing
    assert run.whole(1, 2) == [1, 2] or len(run.kept_in_trash()) in (0, run.count)
    check_that_nothing_is_alone(run, failing, steps=(1, 2))
    run.make_pass()
    assert (run.whole(1, 2), in_trash(run.work_dir)) == ([2], [])


def test_without_a_rename_that_overwrites_nothing_it_comes_back_all_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    half_done(run, 1)
    (place,) = (run.work_dir / ".ckptd/trash").iterdir()
    os.link(place / "0", run.work_dir / run.names(1)[0])  # killed between a second name and the loss of the first

    def einval(*_: Any) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(descriptors, "_rename_noreplace", einval)
    run.make_pass(max_keep=None)
    assert (run.whole(1, 2), in_trash(run.work_dir)) == ([1, 2], [])
    run.make_pass(trash_ttl_s=3600.0)
    assert restore(str(run.work_dir), run.names(1)) == (run.names(1)[:1], {})
    assert run.whole(1, 2) == [1, 2]


# --- the trash ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["the first file", "the last file", "all"])
def test_restore_brings_back_all_of_them_and_they_stay(run: Run, how: str) -> None:
    run.save(1, 2, 3)
    run.make_pass(trash_ttl_s=3600.0)
    assert [each["name"] for each in restorable(str(run.work_dir))] == [run.names(1)[0], run.names(2)[0]]
    if how == "all":
        done = restore(str(run.work_dir), [], everything=True)
        assert done == ([run.names(1)[0], run.names(2)[0]], {})
    else:
        name = run.names(2)[0 if how == "the first file" else -1]
        assert restore(str(run.work_dir), [name]) == (run.names(2)[:1], {})
    back = [1, 2, 3] if how == "all" else [2, 3]
    for _ in range(2):
        assert run.whole(1, 2, 3) == back
        run.make_pass()
    assert in_trash(run.work_dir) == []


@pytest.mark.parametrize("of", [0, -1], ids=["the first file", "the last"])
@pytest.mark.parametrize("why", ["its name is taken", "the system refuses", "it is gone from the trash"])
def test_restore_brings_back_none_of_them_where_one_cannot_come(
    run: Run, of: int, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2)
    run.make_pass(trash_ttl_s=3600.0)
    (item,) = in_trash(run.work_dir)
    name, inside = run.names(1)[of], str(range(run.count)[of])
    if why == "its name is taken":
        (run.work_dir / name).write_bytes(b"new")
    elif why == "the system refuses":
        monkeypatch.setattr(trash, "rename_new", refusing(inside))
    else:
        (run.work_dir / ".ckptd/trash" / item / inside).unlink()
    there = left(run.work_dir)
    restored, failed = restore(str(run.work_dir), run.names(1)[:1])
    assert (restored, list(failed)) == ([], run.names(1)[:1])
    assert (left(run.work_dir), in_trash(run.work_dir)) == (there, [item])


def test_a_restore_that_is_killed_is_finished_at_the_next_start(run: Run, tmp_path: Path) -> None:
    for at in range(1, 100):
        again = Run(tmp_path / f"run{at}", run.count)
        again.save(1, 2)
        again.make_pass(trash_ttl_s=3600.0)
        with contextlib.suppress(Crash), Calls(lambda *_: None, at).watched():
            restore(str(again.work_dir), again.names(1)[:1])
            break
        again.make_pass(trash_ttl_s=3600.0)
        assert again.halves(1, 2) == []
    assert (again.whole(1, 2), at > 5) == ([1, 2], True)


def test_a_budget_takes_from_the_trash_all_of_one_or_none_of_it(run: Run) -> None:
    run.save(1, 2, 3)
    run.make_pass(trash_ttl_s=3600.0)
    first, second = in_trash(run.work_dir)
    place = run.work_dir / ".ckptd/trash"
    one = sum(path.stat().st_blocks * 512 for path in (place / first).iterdir())
    kept = sum((run.work_dir / name).stat().st_blocks * 512 for name in run.names(3))
    run.make_pass(trash_ttl_s=3600.0, max_bytes=kept + one)
    assert in_trash(run.work_dir) == [second]
    assert len(run.kept_in_trash()) == run.count
    run.make_pass(trash_ttl_s=3600.0, max_bytes=kept + one - 1)
    assert in_trash(run.work_dir) == []


def test_asked_to_end_it_ends_between_two_and_halves_none(run: Run) -> None:
    run.save(1, 2, 3)
    asked = itertools.count(1)
    run.make_pass(stopping=lambda: next(asked) > 1)
    assert (run.whole(1, 2, 3), run.halves(1, 2, 3)) == ([2, 3], [])


@pytest.mark.parametrize("half", [False, True], ids=["in the trash", "half in it"])
def test_what_was_left_out_since_gets_its_files_back_and_its_trash_is_freed(run: Run, half: bool) -> None:
    if half:
        half_done(run, 1)
    else:
        run.save(1, 2)
        run.make_pass(trash_ttl_s=3600.0)
    now_ns = run.builder.at_ns + 2 * 3600 * 10**9
    with WorkDir(run.work_dir) as work:
        LeftBehind(work, run.policy(), Now(), clock=lambda: now_ns).empty_trash()
    assert (run.whole(1, 2), run.halves(1, 2), in_trash(run.work_dir)) == ([1, 2] if half else [2], [], [])


def test_a_file_and_a_directory_go_together_and_come_back_together(tmp_path: Path) -> None:
    work_dir = tmp_path / "run"
    (work_dir / "model_1").mkdir(parents=True)
    (work_dir / "model_1/shard").write_bytes(b"s" * 300)
    (work_dir / "optim_1.pth").write_bytes(torch_zip())
    before = [each[:4] + each[5:] for each in (*picture(work_dir / "model_1").values(),)]
    with opened(work_dir) as dirs:
        parts = [entry_of(name, dir_fd=dirs["work_fd"]) for name in ("model_1", "optim_1.pth")]
        entry = entry_of_parts("", "model_1", 1, parts)
        for back in (groups.bring_back, groups.restore):
            item = groups.new_item(now_ms=7, first=0, trash_fd=dirs["trash_fd"])
            line = Line(None, "pruned", "model_1", trash=item)
            groups.put(entry, line, who=lambda *_, **__: "", **dirs)
            assert left(work_dir) == []
            groups.commit(item, trash_fd=dirs["trash_fd"])
            assert in_trash(work_dir) == [item]
            back(item, **dirs)
            assert (sorted(left(work_dir)), in_trash(work_dir)) == (["model_1", "optim_1.pth"], [])
            assert [each[:4] + each[5:] for each in picture(work_dir / "model_1").values()] == before


def test_a_file_alone_of_which_the_others_are_gone_is_left_alone(run: Run) -> None:
    run.save(1, 2, 3)
    going = run.work_dir / run.names(2)[1]
    during_pass = []

    def stopping() -> bool:
        during_pass.append(going.unlink(missing_ok=True) if during_pass else None)
        return False

    run.make_pass(stopping=stopping)
    assert (run.is_there(run.names(2)[0]), in_trash(run.work_dir)) == (True, [])


def test_one_of_which_all_files_are_gone_by_then_is_a_success(run: Run) -> None:
    run.save(1, 2)

    def stopping() -> bool:
        for name in run.names(1):
            (run.work_dir / name).unlink(missing_ok=True)
        return False

    report = run.make_pass(stopping=stopping)
    assert (report.exit_code, run.whole(1, 2), in_trash(run.work_dir)) == (0, [2], [])


@pytest.mark.parametrize("of", [0, 1], ids=["at the first file", "at the second"])
def test_two_who_restore_the_same_at_once_lose_nothing(run: Run, of: int, monkeypatch: pytest.MonkeyPatch) -> None:
    run.save(1, 2)
    run.make_pass(trash_ttl_s=3600.0)
    (item,) = in_trash(run.work_dir)
    real, began = trash.rename_back, []

    def slower(inside: str, *args: Any, **more: Any) -> None:
        if inside == str(of) and not began:
            began.append(inside)
            with opened(run.work_dir) as dirs:
                groups.bring_back(item, **dirs)
        real(inside, *args, **more)

    monkeypatch.setattr(trash, "rename_back", slower)
    assert restore(str(run.work_dir), run.names(1)[:1]) == (run.names(1)[:1], {})
    assert (run.whole(1, 2), in_trash(run.work_dir)) == ([1, 2], [])


@pytest.mark.parametrize("keep", [None, 1], ids=["the other looks", "the other prunes"])
@pytest.mark.parametrize("at", ["put_as", "sync", "commit"])
@pytest.mark.parametrize("count", [1, 2])
def test_two_at_once_without_locks_halve_none(
    run: Run, at: str, count: int, keep: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.save(1, 2, 3)
    monkeypatch.setattr(WorkDir, "_flock", lambda self, fd: False)
    module = trash if at == "put_as" else groups
    real, calls = getattr(module, at), itertools.count(1)

    def beside(*args: Any, **more: Any) -> Any:
        if next(calls) == count:
            run.make_pass(max_keep=keep)
        done = real(*args, **more)
        if next(calls) == count + 1:
            run.make_pass(max_keep=keep)
        return done

    with monkeypatch.context() as patch:
        patch.setattr(module, at, beside)
        run.make_pass()
    assert (run.halves(1, 2, 3), run.whole(1, 2, 3)[-1]) == ([], 3)
    assert all(run.whole(step) for step in (1, 2) if (run.work_dir / run.names(step)[0]).exists())
    assert in_trash(run.work_dir) == []
    run.make_pass()
    assert run.halves(1, 2, 3) == []
