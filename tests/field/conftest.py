"""What the tests with other people's services share: a page of results, with date and versions."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

import ckptd

from ..conftest import write_to_disk

RESULTS = Path(__file__).with_name("results")


def pytest_configure() -> None:
    write_to_disk()


@dataclass
class Page:
    """A table of what was tried and what came of it."""

    title: str
    versions: list[str] = field(default_factory=list)
    rows: list[tuple[str, str]] = field(default_factory=list)

    def write(self, path: Path) -> None:
        made = datetime.datetime.now(datetime.UTC).date().isoformat()
        versions = ", ".join([f"ckptd {ckptd.__version__}", f"Python {platform.python_version()}", *self.versions])
        lines = [f"# {self.title}", "", f"{made}; {versions}.", "", "| tried | found |", "|---|---|"]
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join([*lines, *(f"| {tried} | {found} |" for tried, found in self.rows)]) + "\n")


@pytest.fixture(scope="module")
def page(request: pytest.FixtureRequest) -> Iterator[Page]:
    """The page that a module fills; written if all of its tests were tried and passed."""
    page = Page(request.module.TITLE)
    failed = request.session.testsfailed
    yield page
    if request.session.testsfailed == failed and len(page.rows) == request.module.ROWS:
        page.write(RESULTS / f"{request.module.__name__.rpartition('test_')[2]}.md")
