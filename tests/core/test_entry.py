"""Several files that are one checkpoint are told from what they were before, whichever of them was written over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from ckptd.core.entry import Entry, entry_of_parts

SERIES = "G_{}.pth + D_{}.pth"
G = Entry(SERIES, "G_5.pth", 5, 100, 50, 4096, ctime_ns=51, device=1, inode=7, touched_ns=50, changes=51)
D = Entry(SERIES, "D_5.pth", 5, 300, 60, 8192, ctime_ns=61, device=1, inode=8, touched_ns=60, changes=61)


def pair(*parts: Entry) -> Entry:
    return entry_of_parts(SERIES, "G_5.pth", 5, parts or (G, D))


def test_a_group_is_called_as_its_first_part_and_has_the_sums_and_the_latest_times_of_all() -> None:
    assert pair() == Entry(
        SERIES, "G_5.pth", 5, 400, 60, 12288, ctime_ns=61, device=1, inode=7, touched_ns=60, changes=112, parts=(G, D),
    )  # fmt: skip


def test_a_group_of_which_a_part_may_not_be_read_may_not_be_read() -> None:
    assert pair(G, replace(D, forbidden=True)).forbidden


REWRITTEN: list[Callable[[Entry], Entry]] = [
    lambda part: replace(part, size_bytes=part.size_bytes + 1),
    lambda part: replace(part, mtime_ns=40, touched_ns=40),  # older than it was, as a copy of another is
    lambda part: replace(part, mtime_ns=99, touched_ns=99),
]


@pytest.mark.parametrize("rewrite", REWRITTEN, ids=["longer", "older", "younger"])
@pytest.mark.parametrize("of", [0, 1], ids=["the first", "the second"])
def test_a_rewrite_of_any_part_is_another_save(of: int, rewrite: Callable[[Entry], Entry]) -> None:
    now = pair(*(rewrite(part) if at == of else part for at, part in enumerate((G, D))))
    assert now.identity != pair().identity
    assert now.bytes_on_disk != pair().bytes_on_disk
    assert not now.is_same_as(pair())


@pytest.mark.parametrize("of", [0, 1], ids=["the first", "the second"])
def test_a_copy_in_the_place_of_any_part_is_the_same_save_and_other_bytes(of: int) -> None:
    now = pair(*(replace(part, inode=99, changes=999) if at == of else part for at, part in enumerate((G, D))))
    assert now.identity == pair().identity
    assert now.bytes_on_disk != pair().bytes_on_disk
    assert not now.is_same_as(pair())


def test_a_part_more_or_less_is_another_checkpoint() -> None:
    more = pair(G, D, replace(D, name="E_5.pth", size_bytes=0, changes=0))
    for other in (pair(G), more):
        assert other.identity != pair().identity
        assert not other.is_same_as(pair())
        assert not pair().is_same_as(other)


def test_what_changes_no_bytes_of_a_part_makes_it_no_other() -> None:
    now = pair(G, replace(D, changes=999, ctime_ns=999))
    assert now.identity == pair().identity
    assert now.is_same_as(pair())
