"""The order of a pass is the promise: with two of its steps swapped, the world of test_world sees a promise broken.

A step is swapped with a later one by making it wait until that one is done.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ckptd.core.policy import Policy
from ckptd.passes import reconcile
from ckptd.passes.pruner import Pruner
from ckptd.passes.reconcile import Reconciler
from ckptd.passes.reliance import Reliance
from ckptd.passes.remover import Remover
from ckptd.workdir import trash

from .world import Reader, World

Step = tuple[Any, str]  # a class or a module, and what it calls the step

SWAPS = [
    pytest.param((Reliance, "_sync_one"), (reconcile, "replace_pointer"), "is not durable, and last_ckpt is to name it",
                 id="what is relied on is fsynced, then the pointer moves"),
    pytest.param((reconcile, "replace_pointer"), (Pruner, "prune"), "prune did not do what plan",
                 id="the pointer moves, then a checkpoint is renamed into the trash"),
    pytest.param((Reconciler, "_remember"), (Pruner, "prune"), "before it is written down",
                 id="the state is written, then a checkpoint is renamed into the trash"),
    pytest.param((trash, "sync"), (Remover, "submit"), "would be freed before it is durable that it went",
                 id="the rename is durable, then its space is freed"),
]  # fmt: skip


def test_the_page_on_the_code_names_the_same_pairs() -> None:
    page = (Path(__file__).parents[1] / "docs/architecture.md").read_text()
    rows = page[page.index("| first | then |") :].partition("\n\n")[0].splitlines()[2:]
    pairs = [re.sub(r" \(`.*?`\)", "", row).strip("| ").split(" | ")[:2] for row in rows]
    assert [f"{first}, then {then}" for first, then in pairs] == [each.id for each in SWAPS]


@pytest.mark.parametrize("pointer", ["last_ckpt", "none"])
@pytest.mark.parametrize(("step", "later", "broken"), SWAPS)
def test_two_steps_swapped_break_a_promise(
    step: Step, later: Step, broken: str, pointer: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    a_run(tmp_path / "as it is", pointer)
    swap(step, later, monkeypatch)
    with pytest.raises(AssertionError, match=broken):
        a_run(tmp_path / "swapped", pointer)


@pytest.mark.parametrize("at", range(1, 25))
def test_what_a_killed_pass_has_renamed_is_freed_only_once_that_is_durable(at: int, tmp_path: Path) -> None:
    with a_world(tmp_path) as world:
        for _ in range(2):
            world.save("epoch_{}.pth")
            world.make_pass()
        world.save("epoch_{}.pth")
        world.crash(at)


def a_run(place: Path, pointer: str) -> None:
    """Five saves with a pass after each, of which one is kept."""
    with a_world(place, pointer) as world:
        for _ in range(5):
            world.save("epoch_{}.pth")
            world.make_pass()
            world.check()


@contextlib.contextmanager
def a_world(place: Path, pointer: str = "last_ckpt") -> Iterator[World]:
    place.mkdir(exist_ok=True)
    reader = Reader()
    world = World(place, reader, Policy(max_keep=1, interval=1, trash_ttl_s=0, pointer=pointer))
    try:
        yield world
    finally:
        world.close()
        reader.close()


def swap(step: Step, later: Step, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whenever `step` is called, let it wait until `later` was."""
    waiting: list[Callable[[], object]] = []
    real, real_later = getattr(*step), getattr(*later)

    def wait(*args: Any, **more: Any) -> None:
        waiting.append(lambda: real(*args, **more))

    def catch_up(*args: Any, **more: Any) -> Any:
        done = real_later(*args, **more)
        while waiting:
            waiting.pop(0)()
        return done

    monkeypatch.setattr(*step, wait)
    monkeypatch.setattr(*later, catch_up)
