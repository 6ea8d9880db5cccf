"""What a training job does in a work dir: it saves, aside or in place, is killed in the middle, and resumes."""

from __future__ import annotations

import os
import shutil
from dataclasses import replace

from ckptd.core.naming import Template

from .place import DIRECTORIES, SECOND, TRUNCATED, UNMARKED, WHOLE, WRITING, Place, Saved


class Job(Place):
    """The job of the run."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._writer: tuple[int, str, int, bytes] | None = None

    def save(self, series: str, *, gap: int = 1, kind: str = WHOLE, in_place: bool = False, ahead_s: int = 0) -> str:
        step = self.last_step.get(series, 0) + gap
        return self.write(Template(series).name_of(step), kind=kind, in_place=in_place, ahead_s=ahead_s)

    def write(self, name: str, *, kind: str = WHOLE, in_place: bool = False, ahead_s: int = 0) -> str:
        """Write `name` anew: aside and by rename, or over what is there; a directory's old shards go first."""
        series, step = self._parse(name)
        if series in DIRECTORIES and kind != WHOLE:
            kind = UNMARKED
        content = self._bytes(series, kind)
        path = self.work_dir / name
        if self._writer and self._writer[1] == name:
            self.writer_dies()
        mtime_ns = self._next_ns() + ahead_s * SECOND
        if series in DIRECTORIES:
            if path.is_dir():
                self.stop_reading(name)
                shutil.rmtree(path)
            path.mkdir()
            for inside, data in content.items():
                (path / inside).write_bytes(data)
                os.utime(path / inside, ns=(mtime_ns, mtime_ns))
        else:
            aside = path if in_place else self.work_dir / f".{name}.tmp"
            aside.write_bytes(content[""])
            os.utime(aside, ns=(mtime_ns, mtime_ns))
            os.replace(aside, path)
        self._put(name, Saved(series, step, kind, content, mtime_ns, 0, 0, self.clock_ns))
        self.last_step[series] = step
        return name

    def begin_writing(self, name: str) -> None:
        """Open a file at its final name, and write the first half."""
        self.writer_dies()
        series, step = self._parse(name)
        content = self._bytes(series, WHOLE)[""]
        fd = os.open(self.work_dir / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        half = len(content) // 2
        os.write(fd, content[:half])
        mtime_ns = self._next_ns()
        os.utime(fd, ns=(mtime_ns, mtime_ns))
        self._writer = fd, name, os.fstat(fd).st_ino, content[half:]
        self._put(name, Saved(series, step, WRITING, {"": content[:half]}, mtime_ns, 0, 0, self.clock_ns))
        self.last_step[series] = step

    def finish_writing(self) -> None:
        if self._writer is None:
            return
        fd, name, _, rest = self._writer
        if self._is_written(name):
            os.write(fd, rest)
            mtime_ns = self._next_ns()
            os.utime(fd, ns=(mtime_ns, mtime_ns))
            before = self.files[name]
            content = {"": before.content[""] + rest}
            self._put(name, replace(before, kind=WHOLE, content=content, mtime_ns=mtime_ns))
        os.close(fd)
        self._writer = None

    def writer_dies(self) -> None:
        if self._writer is None:
            return
        fd, name, _, _ = self._writer
        if self._is_written(name):
            self.files[name].kind = TRUNCATED
        os.close(fd)
        self._writer = None

    def resume(self, name: str) -> None:
        saved = self.files[name]
        self.last_step[saved.series] = saved.step

    def resume_from_pointer(self) -> str | None:
        """What a job is to resume from that reads the pointer, which is whole, or was touched since the last pass."""
        name = self.pointed()
        if name is None:
            return None
        if self._settled == name and name not in self._touched:
            assert self.is_good(name), f"last_ckpt names {name}, which is {self.files[name].kind}"
            assert self._read(name) == self.files[name].content
        return name if name in self.files and self.is_good(name) else None

    def _is_written(self, name: str) -> bool:
        there = self.work_dir / name
        return name in self.files and there.exists() and there.stat().st_ino == self._writer[2]
