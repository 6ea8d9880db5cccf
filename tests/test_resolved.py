"""Where a path leads is what `realpath` says, wherever all file systems on the way answer."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptd.disk import links
from ckptd.disk.links import UnknownError, resolved
from ckptd.disk.mounts import Mount, mounts, way_to

NAMES = ("a", "b", "c")
PATHS = st.lists(st.sampled_from((*NAMES, "..", ".")), min_size=1, max_size=5).map("/".join)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.path.realpath(tmp_path_factory.mktemp("links")))


def emptied(place: Path) -> Path:
    for path in sorted(place.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    return place


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(PATHS, st.one_of(st.none(), PATHS, PATHS.map("/{}".format)), max_size=8), PATHS)
def test_a_path_leads_where_realpath_says(place: Path, made: dict[str, str | None], path: str) -> None:
    """Of any tree of directories and links, circles aside: there `realpath` stops somewhere on the way."""
    emptied(place)
    for where, target in made.items():
        parent = os.path.dirname(os.path.realpath(place / where))
        if os.path.lexists(place / where) or os.path.commonpath([parent, place]) != str(place):
            continue  # nothing is made elsewhere
        try:
            if target is None:
                os.mkdir(place / where)
            else:
                absolute = target.startswith("/")
                os.symlink(f"{place}{target}" if absolute else target, place / where)
        except OSError:
            continue
    wanted = os.path.join(place, path)
    try:
        os.path.realpath(wanted, strict=True)
    except FileNotFoundError:
        pass
    except OSError:
        assert resolved(wanted, device=0)
        return
    assert resolved(wanted, device=0) == os.path.realpath(wanted)


DEAD = "/mnt/dead"
TABLE = [Mount("/", 1, "ext4"), Mount("/mnt", 2, "tmpfs"), Mount(DEAD, 3, "nfs4"), Mount(f"{DEAD}/disk", 4, "xfs")]


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links, "mounts", lambda: TABLE)


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("path", [DEAD, f"{DEAD}/run", f"{DEAD}/disk/run", f"{DEAD}/../x", f"/x/..{DEAD}"])
def test_what_needs_a_server_is_not_asked(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def readlink(path: str) -> str:
        asked.append(path)
        raise OSError(errno.EINVAL, "no link", path)

    monkeypatch.setattr(os, "readlink", readlink)
    with pytest.raises(UnknownError):
        resolved(path, device=1)
    assert not [path for path in asked if path.startswith(DEAD)]


@pytest.mark.usefixtures("table")
@pytest.mark.parametrize("path", ["/mnt/deadly", "/mnt", "/home/x", "/"])
def test_what_lies_beside_it_is(path: str) -> None:
    assert resolved(path, device=1) == path


@pytest.mark.usefixtures("table")
def test_the_server_of_the_work_dir_itself_is_asked_as_it_is_anyway() -> None:
    assert resolved(f"{DEAD}/run", device=3) == f"{DEAD}/run"


def test_whoever_asks_passes_the_topmost_of_what_is_mounted_at_each_place_on_the_way() -> None:
    above = Mount(DEAD, 5, "tmpfs")
    assert way_to(f"{DEAD}/run", [*TABLE, above]) == [*TABLE[:2], above]
    assert way_to("/mnt/deadly", TABLE) == TABLE[:2]


def test_what_this_process_sees_mounted_has_numbers_as_descriptors_do() -> None:
    fd = os.open("/", os.O_PATH)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            number = next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    assert [each.place for each in mounts() if each.number == number] == ["/"]
