"""Eight threads open checkpoints while they are pruned, each rename delayed: what was opened under its name stays."""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import Builder, epochs, eventually
from tests.root.scene import OPTIONS
from tests.root.strace import Strace

pytestmark = [pytest.mark.root, pytest.mark.timeout(300)]

SAVES, THREADS = 42, 8
KEPT = 2


@pytest.mark.parametrize(
    ("delayed", "call"),
    [
        pytest.param("renameat,renameat2:delay_enter=20000", "renameat,renameat2", id="20 ms before each rename"),
        pytest.param("fsync:delay_enter=1000000", "fsync", id="a second in each fsync"),
    ],
)
@pytest.mark.parametrize("shards", [False, True], ids=["files, for writing", "a shard of each, for reading"])
def test_none_that_somebody_has_opened_under_its_name_is_deleted(
    shards: bool, delayed: str, call: str, strace: Strace, places: Iterator[Path]
) -> None:
    work_dir = next(places)
    work_dir.mkdir()
    builder = Builder(work_dir)
    names = [f"epoch_{step}" for step in range(1, SAVES + 1)] if shards else epochs(*range(1, SAVES + 1))
    for name in names:
        builder.shards(name) if shards else builder(name)
    opened: list[tuple[Path, int]] = []
    began, ended = threading.Event(), threading.Event()

    def open_now_and_then(paths: list[Path]) -> None:
        began.wait()
        for path in paths:
            ended.wait(random.uniform(0.0, 0.3))
            try:
                fd = os.open(path, os.O_RDONLY if shards else os.O_RDWR)
            except FileNotFoundError:
                continue
            if is_at(path, fd):
                opened.append((path, fd))
            else:
                os.close(fd)

    paths = [work_dir / name / "__0_0.distcp" if shards else work_dir / name for name in names[:-KEPT]]
    random.shuffle(paths)
    threads = [threading.Thread(target=open_now_and_then, args=(paths[at::THREADS],)) for at in range(THREADS)]
    for thread in threads:
        thread.start()
    e = [f"trace={call}", f"inject={delayed}"]
    try:
        with strace.running("prune", work_dir, *OPTIONS, e=e, one_thread=False) as ckptd:
            eventually(
                lambda: "INJECTED" in ckptd.log.read_text() or "DELAYED" in ckptd.log.read_text(), what="a delay"
            )
            began.set()
            code = ckptd.wait()
        said = ckptd.said()
    finally:
        began.set(), ended.set()
        for thread in threads:
            thread.join()
        lost = [path for path, fd in opened if not is_at(path, fd)]
        for _, fd in opened:
            os.close(fd)
    assert code == 0, said
    assert not lost, f"{len(lost)} of {len(opened)} were lost:\n{said}"
    assert opened
    assert "pruned" in said


def is_at(path: Path, fd: int) -> bool:
    """Whether what is open bears this name now."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
