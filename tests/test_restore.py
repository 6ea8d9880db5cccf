"""What was pruned comes back under its name, pinned; and whatever cannot come back is left where it is."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptd.passes.restore import restorable, restore
from ckptd.workdir import trash

from .conftest import Builder, Crash, a_pass, epochs, left, torch_zip

KEEP_ONE = {"max_keep": 1, "rule": "newest"}


@pytest.fixture
def pruned(with_checkpoints: Builder) -> Path:
    """A work dir in which epoch_3.pth was kept, and 1 and 2 wait in the trash."""
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, trash_ttl_s=3600, **KEEP_ONE)
    assert left(work_dir) == epochs(3)
    return work_dir


def test_what_is_in_the_trash_is_listed_oldest_first(pruned: Path) -> None:
    listed = restorable(str(pruned))
    assert [each["name"] for each in listed] == epochs(1, 2)
    assert all(each["size_bytes"] == len(torch_zip()) and each["at"] < each["until"] for each in listed)


def test_a_restored_checkpoint_is_whole_pinned_and_not_pruned_again(pruned: Path) -> None:
    assert restore(str(pruned), ["epoch_1.pth"]) == (["epoch_1.pth"], {})
    assert (pruned / "epoch_1.pth").read_bytes() == torch_zip()
    for _ in range(2):
        a_pass(pruned, trash_ttl_s=0, **KEEP_ONE)
        assert left(pruned) == ["epoch_1.pth", "epoch_1.pth.keep", "epoch_3.pth"]


def test_all_of_them_come_back_together(pruned: Path) -> None:
    restored, failed = restore(str(pruned), [], everything=True)
    assert (sorted(restored), failed) == (epochs(1, 2), {})
    assert set(epochs(1, 2, 3)) < set(left(pruned))
    assert restorable(str(pruned)) == []


def test_of_several_with_one_name_the_last_pruned_comes_back(pruned: Path, with_checkpoints: Builder) -> None:
    with_checkpoints("epoch_1.pth", content=torch_zip(b"second" * 50))
    with_checkpoints("epoch_4.pth")
    a_pass(pruned, trash_ttl_s=3600, **KEEP_ONE)
    assert left(pruned) == epochs(4)
    assert restore(str(pruned), ["epoch_1.pth"]) == (["epoch_1.pth"], {})
    assert (pruned / "epoch_1.pth").read_bytes() == torch_zip(b"second" * 50)


def test_a_name_that_is_taken_keeps_what_it_names_and_gets_no_pin(pruned: Path) -> None:
    (pruned / "epoch_1.pth").write_bytes(b"saved anew")
    restored, failed = restore(str(pruned), ["epoch_1.pth", "epoch_2.pth"])
    assert (restored, list(failed)) == (["epoch_2.pth"], ["epoch_1.pth"])
    assert (pruned / "epoch_1.pth").read_bytes() == b"saved anew"
    assert not (pruned / "epoch_1.pth.keep").exists()
    assert [each["name"] for each in restorable(str(pruned))] == ["epoch_1.pth"]


def test_a_pin_that_was_there_stays_when_a_restore_fails(pruned: Path) -> None:
    (pruned / "epoch_1.pth").write_bytes(b"saved anew")
    (pruned / "epoch_1.pth.keep").touch()
    assert list(restore(str(pruned), ["epoch_1.pth"])[1]) == ["epoch_1.pth"]
    assert (pruned / "epoch_1.pth.keep").exists()


@pytest.mark.parametrize("name", ["epoch_9.pth", "epoch_3.pth", "../run/epoch_1.pth", "", "."])
def test_what_is_not_in_the_trash_is_told_by_its_name(name: str, pruned: Path) -> None:
    restored, failed = restore(str(pruned), [name])
    assert (restored, list(failed)) == ([], [name])
    assert left(pruned) == epochs(3)


def test_a_work_dir_without_a_trash_has_nothing_to_restore(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2))
    assert restorable(str(work_dir)) == []
    assert list(restore(str(work_dir), ["epoch_1.pth"])[1]) == ["epoch_1.pth"]
    assert left(work_dir) == epochs(1, 2)
    assert not (work_dir / ".ckptd").exists()


def test_what_is_being_freed_can_no_longer_be_restored(pruned: Path) -> None:
    for item in (pruned / ".ckptd/trash").iterdir():
        item.rename(f"{item}.gone")
    assert restorable(str(pruned)) == []
    assert list(restore(str(pruned), ["epoch_1.pth"])[1]) == ["epoch_1.pth"]


def test_a_journal_that_names_a_path_restores_nothing_outside(pruned: Path, tmp_path: Path) -> None:
    path = pruned / ".ckptd/journal.jsonl"
    path.write_text(path.read_text().replace("epoch_1.pth", "../stolen.pth"))
    restored, failed = restore(str(pruned), ["../stolen.pth"])
    assert (restored, list(failed)) == ([], ["../stolen.pth"])
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run"]


def test_the_command_lists_restores_and_tells_what_it_could_not(
    pruned: Path, ckptd: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    listed = [json.loads(line) for line in ckptd("restore", pruned, "--json").stdout.splitlines()]
    assert [set(line) for line in listed] == [{"name", "size_bytes", "at", "until"}] * 2
    assert ckptd("restore", pruned).stdout.startswith("epoch_1.pth  pruned 20")
    done = ckptd("restore", pruned, "epoch_1.pth", "epoch_9.pth")
    assert (done.returncode, done.stdout) == (1, "restored epoch_1.pth, and pinned it (epoch_1.pth.keep)\n")
    assert f"could not restore epoch_9.pth: not in the trash; `ckptd restore {pruned}` lists what is" in done.stderr
    assert ckptd("restore", pruned, "--all").returncode == 0
    assert set(epochs(1, 2, 3)) < set(left(pruned))
    names = [line["name"] for line in json.loads(ckptd("history", pruned, "--json").stdout)]
    assert names == ["epoch_1.pth", "epoch_2.pth", "epoch_1.pth", "epoch_2.pth"]


def test_a_second_ckptd_that_owns_the_work_dir_does_not_hinder_a_restore(
    pruned: Path, watching, ckptd: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    with watching(pruned, "--max-keep", "1", "--rule", "newest") as watch:
        watch.heard("watching")
        done = ckptd("restore", pruned, "--all")
        assert (done.returncode, watch.stop()) == (0, 0), done.stderr
    assert set(epochs(1, 2, 3)) < set(left(pruned))


def test_a_large_prune_that_is_cut_off_can_be_restored_and_is_not_freed_by_a_start_without_a_policy(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(*range(1, 12)))
    put, count = trash.put, 0

    def cut_off(*args, **more):  # type: ignore[no-untyped-def]
        nonlocal count
        count += 1
        if count == 6:
            raise Crash
        return put(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(trash, "put", cut_off)
        with pytest.raises(Crash):
            a_pass(work_dir, max_keep=1, interval=1)
    a_pass(work_dir)
    assert [each["name"] for each in restorable(str(work_dir))] == epochs(1, 2, 3, 4, 5)
