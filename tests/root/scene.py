"""The work dirs that passes are stopped in, what must then be there, and what must be there in the end."""

from __future__ import annotations

import os
import time
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ckptd.disk.descriptors import OWN_DIR, opened_dir
from ckptd.workdir import journal
from ckptd.workdir.pointer import HIDDEN
from ckptd.workdir.state import read_state
from tests.conftest import Builder, a_pass, torch_zip

KEEP = 2
OPTIONS = ("--max-keep", str(KEEP), "--interval", "1", "--trash-ttl", "0")
POLICY: dict[str, Any] = {"max_keep": KEEP, "interval": 1, "trash_ttl_s": 0.0}
NOTES = "epoch_1.pth.notes"  # nobody's checkpoint
_BEGAN_NS = time.time_ns() - 3600 * 10**9
_WEIGHTS_BYTES = 40_000

Content = bytes | dict[str, bytes]


@dataclass(frozen=True)
class Scene:
    """A run that has saved `old` checkpoints, over which passes have been made if they are `met`, and then `new` ones.

    shards: whether a checkpoint is a directory of shards, or a file. pointer: as the option has it. together: the
    template of checkpoints that are several files.
    """

    shards: bool
    met: bool
    pointer: str = "last_ckpt"
    together: str = ""

    def __str__(self) -> str:
        where = "" if self.pointer == "last_ckpt" else f", pointer {self.pointer}"
        kind = self.together or ("directories" if self.shards else "files")
        return f"{'a later pass' if self.met else 'first contact'}, {kind}{where}"

    @property
    def options(self) -> tuple[str, ...]:
        named = ("--template", self.together) if self.together else ()
        return (*OPTIONS, "--pointer", self.pointer, *named)

    @property
    def policy(self) -> dict[str, Any]:
        return {**POLICY, "pointer": self.pointer, "templates": (self.together,) if self.together else ()}

    @property
    def old(self) -> list[str]:
        return [self.name(step) for step in ((1, 2) if self.met else (1, 2, 3))]

    @property
    def new(self) -> str:
        return self.name(len(self.old) + 1)

    @property
    def all(self) -> list[str]:
        return [*self.old, self.new]

    @property
    def kept(self) -> list[str]:
        """What is there in the end."""
        return self.all[-KEEP:]

    @property
    def pruned(self) -> list[str]:
        return self.all[:-KEEP]

    def name(self, step: int) -> str:
        if self.together:
            return self._names(step)[0]
        return f"epoch_{step}" if self.shards else f"epoch_{step}.pth"

    def content(self, name: str) -> Content:
        """What is saved under a name: other bytes under each, as many under all."""
        step = int("".join(c for c in name if c.isdigit()))
        if self.together:
            return {each: torch_zip(each.encode() * 4000) for each in self._names(step)}
        byte = bytes([len(name) + step])
        return {"__0_0.distcp": byte * 300} if self.shards else torch_zip(byte * _WEIGHTS_BYTES)

    def begin(self, work_dir: Path) -> None:
        work_dir.mkdir()
        (work_dir / NOTES).write_text("mine")
        os.utime(work_dir / NOTES, ns=(_BEGAN_NS, _BEGAN_NS))  # one that has just been written is read at each look
        for name in self.old:
            self.save(work_dir, name)
        if self.met:
            a_pass(work_dir, **self.policy)

    def save(self, work_dir: Path, name: str, *, later_s: int = 0) -> None:
        """Save as frameworks do: no fsync. Always with the same time of writing, an hour ago, or `later_s` after it."""
        builder = Builder(work_dir, _BEGAN_NS + (10 * self.all.index(name) + later_s) * 10**9)
        content = self.content(name)
        if isinstance(content, bytes):
            builder(name, content=content)
            return
        if self.together:
            for each, data in content.items():
                builder(each, content=data)
            return
        place = builder.shards(name)
        written_ns = (place / ".metadata").stat().st_mtime_ns
        for shard, weights in content.items():
            (place / shard).write_bytes(weights)
            os.utime(place / shard, ns=(written_ns, written_ns))  # a younger one is being written over

    def whole(self, work_dir: Path) -> list[str]:
        """Which checkpoints are there as they were saved, to the byte."""
        return [name for name in self.all if self.found(work_dir, name) == self.content(name)]

    def found(self, work_dir: Path, name: str) -> Content | None:
        """What is there of a checkpoint, None if nothing is."""
        if not self.together:
            return self._there(work_dir / name)
        files = {each: (work_dir / each).read_bytes() for each in self.content(name) if (work_dir / each).exists()}
        return files or None

    def built(self, work_dir: Path) -> Path:
        self.begin(work_dir)
        self.save(work_dir, self.new)
        return work_dir

    def _names(self, step: int) -> list[str]:
        return [each.format(step) for each in self.together.split(" + ")]

    def _there(self, path: Path) -> Content | None:
        if not os.path.lexists(path):
            return None
        if path.is_file():
            return path.read_bytes()
        files = {str(each.relative_to(path)): each.read_bytes() for each in path.rglob("*") if each.is_file()}
        return files if files.pop(".metadata", None) else {**files, "no marker": b""}


@dataclass(frozen=True)
class End:
    """What a work dir has come to."""

    whole: list[str]
    names: list[str]
    pointed: str | None
    memory: dict[str, Any]
    journal: list[str]
    trash: list[str]

    @classmethod
    def of(cls, work_dir: Path, scene: Scene) -> End:
        with opened_dir(str(work_dir / OWN_DIR)) as own_fd:
            memory = read_state(own_fd)
            remembered = asdict(memory) if memory else {"seen": {}}
            for seen in remembered["seen"].values():
                for other in ("inode", "changes"):  # another in every work dir
                    seen.pop(other, None)
            lines = journal.read(own_fd)
            back = {line["trash"] for line in lines if line["did"] == "gave back"}
            pruned = sorted(
                str(line["name"]) for line in lines if line["did"] == "pruned" and line["trash"] not in back
            )
        trash = sorted(os.listdir(work_dir / OWN_DIR / "trash"))
        return cls(scene.whole(work_dir), sorted(os.listdir(work_dir)), pointed(work_dir), remembered, pruned, trash)

    def unlike(self, expected: End) -> list[str]:
        """In what it differs, for a person to read."""
        pairs = [(each.name, getattr(self, each.name), getattr(expected, each.name)) for each in fields(End)]
        return [f"ended with {name} {now}, not {then}" for name, now, then in pairs if now != then]


def pointed(work_dir: Path) -> str | None:
    """The name in the pointer, if there is one, wherever it is."""
    there = [path for path in (work_dir / "last_ckpt", work_dir / OWN_DIR / HIDDEN) if path.exists()]
    assert len(there) < 2, there
    if not there:
        return None
    text = there[0].read_text()
    assert text.startswith(f"{work_dir}/"), text
    assert text.endswith("\n"), text
    return os.path.basename(text.rstrip("\n"))


def is_kept(work_dir: Path, scene: Scene, name: str) -> bool:
    """Whether each file of a checkpoint of several is at its name or in the trash."""
    content, found = scene.content(name), scene.found(work_dir, name) or {}
    in_trash = [path.read_bytes() for path in (work_dir / OWN_DIR / "trash").rglob("*") if path.is_file()]
    return all(found.get(each) == content[each] or content[each] in in_trash for each in content)


def broken_promises(work_dir: Path, scene: Scene, *, met: bool | None = None, newest: str | None = None) -> list[str]:
    """What of the promises (docs/design.md, section 1) does not hold in a work dir in which a pass was stopped.

    met: whether there was a pointer before. newest: what it is to name before anything goes, "" for anything whole.
    """
    whole, target = scene.whole(work_dir), pointed(work_dir)
    there = [name for name in scene.all if scene.found(work_dir, name) is not None]
    halves = [name for name in there if name not in whole and scene.together]
    there = [name for name in there if name not in halves]
    gone = [name for name in scene.all if name not in there]
    broken = [f"{name} is not whole" for name in there if name not in whole]
    broken += [f"{name} is neither there nor in the trash" for name in halves if not is_kept(work_dir, scene, name)]
    broken += [f"{name} is gone" for name in gone if name not in scene.pruned]
    broken += [f"the pointer names {target}, which is not there"] if target and target not in whole else []
    broken += ["the pointer is gone"] if (scene.met if met is None else met) and target is None else []
    newest = scene.new if newest is None else newest
    if gone and (target is None or newest not in ("", target)):
        broken.append(f"{gone} went before the pointer was moved, which names {target}")
    if (work_dir / NOTES).read_text() != "mine":
        broken.append("what is no checkpoint was touched")
    return broken
