"""What the sweeps over system calls share: the tracer, and places for work dirs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import write_to_disk
from tests.root.strace import Strace, needs


def pytest_configure() -> None:
    write_to_disk()


@pytest.fixture(scope="module")
def strace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Strace]:
    needs("strace")
    strace = Strace(tmp_path_factory.mktemp("traces"))
    yield strace
    strace.close()


@pytest.fixture
def places(tmp_path: Path) -> Iterator[Path]:
    """Paths that are still free, all of one length: one for each work dir."""
    return (tmp_path / f"run{number:04}" for number in itertools.count())
