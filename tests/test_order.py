"""The order of a pass is the promise: what the world of test_world sees of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd.core.policy import Policy

from .world import Reader, World


@pytest.mark.parametrize("at", range(1, 25))
def test_what_a_killed_pass_has_renamed_is_freed_only_once_that_is_durable(at: int, tmp_path: Path) -> None:
    with a_world(tmp_path) as world:
        for _ in range(2):
            world.save("epoch_{}.pth")
            world.make_pass()
        world.save("epoch_{}.pth")
        world.crash(at)


@contextlib.contextmanager
def a_world(place: Path) -> Iterator[World]:
    place.mkdir(exist_ok=True)
    reader = Reader()
    world = World(place, reader, Policy(max_keep=1, interval=1, trash_ttl_s=0))
    try:
        yield world
    finally:
        world.close()
        reader.close()
