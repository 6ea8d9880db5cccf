"""Symlinks in a work dir: what one names stays, wherever it leads, and none is followed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import ckptd

from .conftest import Builder, Ckptd, epochs, kept, left, picture
from .layouts.writers import Run, the


@pytest.mark.parametrize("odd", [b"link\xff", b"link\nepoch_9.pth  complete"])
def test_a_symlink_with_an_odd_name_neither_ends_the_plan_nor_writes_lines_of_its_own(
    odd: bytes, with_checkpoints: Builder, ckptd: Ckptd
) -> None:
    work_dir = with_checkpoints(*epochs(1, 2, 3))
    os.symlink(b"epoch_1.pth", os.path.join(os.fsencode(work_dir), odd))
    # As a terminal has it: text, not whatever bytes there are.
    strict = {"PYTHONIOENCODING": "utf-8:strict"}
    for command in ("plan", "prune"):
        done = ckptd(command, work_dir, "--max-keep", 1, "--trash-ttl", 0, env=strict)
        assert (done.returncode, "Traceback" in done.stderr) == (0, False), done.stderr
        assert not any(line.startswith("epoch_9.pth") for line in (done.stdout + done.stderr).splitlines())
    assert set(epochs(1, 3)) <= set(left(work_dir))


@pytest.mark.parametrize("links", [
    pytest.param({"last.ckpt": "last.ckpt"}, id="to itself"),
    pytest.param({"last.ckpt": "last-v1.ckpt", "last-v1.ckpt": "last.ckpt"}, id="in a circle"),
    pytest.param({"last.ckpt": "/nowhere/epoch=9-step=90.ckpt"}, id="to what is gone"),
    pytest.param({"last.ckpt": ".."}, id="to the parent"),
])  # fmt: skip
def test_a_link_that_is_a_loop_or_leads_nowhere_stays_and_stops_no_pass(links: dict[str, str], work_dir: Path) -> None:
    run = Run(work_dir, the("lightning"))
    names = run.saves([1, 2, 3])
    for link, target in links.items():
        (work_dir / link).symlink_to(target)
    assert set(kept(work_dir, max_keep=1)) == {names[2], *links}
    assert links == {link: os.readlink(work_dir / link) for link in links}
    assert ckptd.latest(work_dir) == work_dir / names[2]


def test_a_link_that_was_made_from_another_directory_than_its_own_protects_what_it_means(work_dir: Path) -> None:
    names = Run(work_dir, the("lightning")).saves([1, 2, 3])
    (work_dir / "best.ckpt").symlink_to(f"run/{names[0]}")
    assert set(kept(work_dir, max_keep=1)) == {"best.ckpt", names[0], names[2]}


def test_links_into_another_run_protect_here_and_touch_nothing_there(work_dir: Path) -> None:
    other = work_dir.parent / "other"
    other.mkdir()
    elsewhere = Run(other, the("lightning")).saves([1, 2, 3])
    (work_dir / elsewhere[0]).symlink_to(other / elsewhere[0])
    (work_dir / "last.ckpt").symlink_to(other / elsewhere[1])
    names = Run(work_dir, the("lightning")).saves([2, 3, 4])
    before = picture(other)
    assert set(kept(work_dir, max_keep=1)) == {elsewhere[0], "last.ckpt", names[2]}
    assert picture(other) == before
