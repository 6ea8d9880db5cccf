"""A work dir that is met for the first time, or again without what was remembered: in doubt nothing goes."""

from __future__ import annotations

import json
import logging
import os
import shutil
import time

import pytest

from ckptd import api
from ckptd.core.policy import Policy
from ckptd.core.reason import Kind
from ckptd.passes.background import Background
from ckptd.passes.reconcile import Reconciler
from ckptd.workdir.pointer import replace_pointer
from ckptd.workdir.workdir import WorkDir

from .conftest import Builder, Ckptd, a_pass, epochs, in_trash, kept, left, pointed, torch_zip


def test_first_contact_in_doubt_prunes_nothing_until_a_save_is_seen(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(4, 5, 1, 2, 3))  # resumed from 0, or copied?
    for _ in range(2):
        a_pass(work_dir, max_keep=1, interval=1)
        assert (left(work_dir), pointed(work_dir)) == (epochs(1, 2, 3, 4, 5), "epoch_3.pth")
    (work_dir / "epoch_4.pth").write_bytes(torch_zip(b"resumed" * 99))
    with_checkpoints.tick(work_dir / "epoch_4.pth")
    a_pass(work_dir, max_keep=1, interval=1)
    assert (left(work_dir), pointed(work_dir)) == (epochs(4, 5), "epoch_4.pth")


@pytest.mark.parametrize("pointer", ["last_ckpt", "last_checkpoint", "latest.pth"])
def test_first_contact_in_doubt_believes_a_pointer_that_names_a_complete_one(
    pointer: str, with_checkpoints: Builder
) -> None:
    work_dir = with_checkpoints(*epochs(2, 3, 1))
    if pointer == "latest.pth":
        (work_dir / pointer).symlink_to("epoch_2.pth")
    else:
        (work_dir / pointer).write_text("/somewhere/else/epoch_2.pth")
    a_pass(work_dir, max_keep=1)
    assert pointed(work_dir) == "epoch_2.pth"


def test_a_copied_directory_whose_times_are_in_another_order_loses_nothing(
    with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(2, 10, 1, 3))
    done = ckptd("prune", work_dir, "--max-keep", 1)
    assert (done.returncode, left(work_dir)) == (0, epochs(1, 2, 3, 10))
    assert "the order of writing and the order of steps disagree" in done.stderr


def test_a_pointer_of_our_own_is_no_word_against_the_order_of_writing_after_a_crash(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))

    def dies(name: str, target: str, *, dir_fd: int) -> None:
        replace_pointer(name, target, dir_fd=dir_fd)
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptd.passes.reconcile.replace_pointer", dies)
    with pytest.raises(KeyboardInterrupt):
        a_pass(work_dir, max_keep=2, interval=1)
    monkeypatch.undo()
    assert pointed(work_dir) == "epoch_3.pth"
    (work_dir / "epoch_2.pth").write_bytes(torch_zip(b"resumed from the first" * 9))
    with_checkpoints.tick(work_dir / "epoch_2.pth")
    a_pass(work_dir, max_keep=2, interval=1)
    assert pointed(work_dir) == "epoch_2.pth"


def test_what_was_found_damaged_before_a_crash_in_the_first_pass_goes_in_its_turn_all_the_same(
    with_checkpoints: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3, 4, 5))
    damaged, times = work_dir / "epoch_4.pth", os.stat(work_dir / "epoch_4.pth")
    whole = damaged.read_bytes()
    damaged.write_bytes(whole[:100] + bytes(60) + whole[160:])
    os.utime(damaged, ns=(times.st_atime_ns, times.st_mtime_ns))

    def dies(name: str, target: str, *, dir_fd: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ckptd.passes.reconcile.replace_pointer", dies)
    with pytest.raises(KeyboardInterrupt):
        a_pass(work_dir, max_keep=3, rule="newest")
    monkeypatch.undo()
    for epoch in (6, 7, 8):
        with_checkpoints(f"epoch_{epoch}.pth")
        a_pass(work_dir, max_keep=3, rule="newest")
    assert left(work_dir) == epochs(6, 7, 8)


def test_a_large_prune_at_first_contact_can_be_taken_back_for_an_hour(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir, now = with_checkpoints(*epochs(1, 2, 3, 4, 5)), time.time()
    caplog.set_level(logging.INFO, "ckptd")
    a_pass(work_dir, max_keep=1, interval=1)
    assert (left(work_dir), len(in_trash(work_dir))) == (epochs(5), 4)
    assert f"`ckptd restore --all {work_dir}` brings them back" in caplog.text
    a_pass(work_dir, max_keep=1, interval=1)
    assert len(in_trash(work_dir)) == 4
    lines = [json.loads(line) for line in (work_dir / ".ckptd/journal.jsonl").read_text().splitlines()]
    assert all(3590 < line["until_ms"] / 1000 - now < 3660 for line in lines)
    background = Background()
    with WorkDir(work_dir) as work:
        later = Reconciler(
            work, Policy(max_keep=1, interval=1), background, clock=lambda: time.time_ns() + 3700 * 10**9
        )
        later.reconcile()
        background.close()
    assert in_trash(work_dir) == []


def test_one_save_after_another_is_freed_at_once(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints("epoch_1.pth")
    a_pass(work_dir, max_keep=1, interval=1)
    with_checkpoints("epoch_2.pth")
    a_pass(work_dir, max_keep=1, interval=1)
    assert (left(work_dir), in_trash(work_dir)) == (epochs(2), [])


def test_a_corrupt_state_is_met_as_if_for_the_first_time(
    with_checkpoints: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    a_pass(work_dir, max_keep=3, interval=1)
    (work_dir / ".ckptd/state.json").write_text('{"version": 1, "seen": ')
    a_pass(work_dir, max_keep=2, interval=1)
    assert (left(work_dir), pointed(work_dir)) == (epochs(2, 3), "epoch_3.pth")
    assert f"{work_dir}/.ckptd/state.json: not a state of this version" in caplog.text


def test_after_the_state_was_lost_the_old_ones_go_all_the_same(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    kept(work_dir, max_keep=3, interval=1)
    shutil.rmtree(work_dir / ".ckptd")
    with_checkpoints(*epochs(4, 5))
    assert kept(work_dir, max_keep=3, interval=1) == epochs(3, 4, 5)


def test_what_was_brought_back_stays_so_however_the_template_is_spelt(with_checkpoints: Builder) -> None:
    work_dir = with_checkpoints(*epochs(3, 4, 5))
    a_pass(work_dir, templates=("epoch_{}.pth",), max_keep=1, rule="newest", trash_ttl_s=0)
    (work_dir / "epoch_1.pth").write_bytes(torch_zip())
    os.utime(work_dir / "epoch_1.pth", ns=(1, 1))
    for spelt in ("epoch_{}.pth", "epoch_{:d}.pth", "epoch_{epoch:01d}.pth", "epoch_{}.pth"):
        a_pass(work_dir, templates=(spelt,), max_keep=1, rule="newest", trash_ttl_s=0)
        assert left(work_dir) == epochs(1, 5)
        first = api.plan(work_dir, Policy(templates=(spelt,), max_keep=1, rule="newest")).decisions[0]
        assert (first.checkpoint.name, first.reasons[0].kind) == ("epoch_1.pth", Kind.BROUGHT_BACK)


def test_of_what_was_brought_back_the_note_names_a_way_out_that_is_one(with_checkpoints: Builder, ckptd: Ckptd) -> None:
    """A run that arrives one file after the other, in the order of the names as text, with its old times."""
    work_dir = with_checkpoints.work_dir
    for name in sorted(epochs(*range(1, 13))):
        (work_dir / name).write_bytes(torch_zip())
        os.utime(work_dir / name, ns=((10**9 + int(name[6:-4])) * 10**9,) * 2)
        ckptd("prune", work_dir, "--max-keep", 2, "--interval", 1, "--trash-ttl", 0)
    options = ("--max-keep", 2, "--interval", 1)
    said = ckptd("plan", work_dir, *options).stdout
    assert "copied or restored by hand, which no rule prunes: delete them by hand" in said
    assert "1 of them where the stepped rule does not reach; `--rule newest` goes by order of writing instead" in said
    rows = json.loads(ckptd("plan", work_dir, *options, "--json").stdout)["series"][0]["checkpoints"]
    brought = [row["name"] for row in rows if row["why"][0]["kind"] == "brought_back"]
    assert f"{len(brought)} copied or restored" in said
    for name in brought:
        (work_dir / name).unlink()
    ckptd("prune", work_dir, *options, "--rule", "newest", "--trash-ttl", 0)
    assert left(work_dir) == epochs(11, 12)
    assert "beyond" not in ckptd("plan", work_dir, *options).stdout
