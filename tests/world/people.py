"""What people and other programs do in a work dir: they pin, link, read, evaluate, copy and delete."""

from __future__ import annotations

import os

from .place import FOREIGN, Place, Saved


class People(Place):
    """All who are neither the job nor ckptd."""

    def protect(self, how: str, name: str) -> None:
        """Pin it, read in it, or name it by a symlink, by a framework's own pointer or by a file of one's own."""
        place = self.work_dir / how
        if how == "pin":
            (self.work_dir / f"{name}.keep").touch()
            self.pins.add(name)
        elif how == "reader":
            self.reader.open(self.work_dir / name / "__0_0.distcp")
            self.read_in = name
        else:
            place.unlink(missing_ok=True)
            if how == "last_checkpoint":
                place.write_text(f"{self.work_dir / name}\n")
            elif how in ("LATEST", "best.txt"):
                place.write_text(name)
            else:
                place.symlink_to(name if how != "best.pth" else self.work_dir / name)
            self.names[how] = name

    def release(self, index: int) -> None:
        """Take one of these protections away."""
        there = [("pin", name) for name in sorted(self.pins)] + sorted(self.names.items())
        there += [("reader", self.read_in)] if self.read_in else []
        if not there:
            return
        how, name = there[index % len(there)]
        if how == "pin":
            (self.work_dir / f"{name}.keep").unlink()
            self.pins.discard(name)
        elif how == "reader":
            self.stop_reading()
        else:
            (self.work_dir / how).unlink()
            del self.names[how]

    def stop_reading(self, name: str | None = None) -> None:
        if self.read_in is not None and name in (None, self.read_in):
            self.reader.open(None)
            self.read_in = None

    def drop_result(self, name: str) -> None:
        """An evaluator leaves its result in a directory checkpoint: no save."""
        saved = self.files[name]
        inside = f"eval_{self.events}.json"
        (self.work_dir / name / inside).write_text("{}")
        saved.content[inside] = b"{}"

    def put_back(self, name: str, copy: Saved) -> None:
        """Copy it back with its old time, as `cp -p` and rsync do."""
        path = self.work_dir / name
        if name in self.files:
            return
        if "" in copy.content:
            path.write_bytes(copy.content[""])
            os.utime(path, ns=(copy.mtime_ns, copy.mtime_ns))
        else:
            path.mkdir()
            for inside, data in copy.content.items():
                (path / inside).write_bytes(data)
                os.utime(path / inside, ns=(copy.mtime_ns, copy.mtime_ns))
        self._put_again(name, copy)

    def delete(self, name: str) -> None:
        """By hand."""
        if self._writer and self._writer[1] == name:
            self.writer_dies()
        self.stop_reading(name)
        # Moved away: an inode that is free would go to the next file, and nobody could tell that one from this.
        (self.work_dir / name).rename(self.root / "deleted" / str(len(self.copies)))
        self.copies.append((name, self.files.pop(name)))
        self._since = [each for each in self._since if each != name]
        self._touched.add(name)

    def put_foreign(self, name: str) -> None:
        """Something that only looks like a checkpoint."""
        if name in self.files:
            return
        path = self.work_dir / name
        if "." in name:
            path.write_bytes(b"notes about " + name.encode())
            content = {"": path.read_bytes()}
        else:
            path.mkdir()
            (path / "sample_0.png").write_bytes(b"\x89PNG")
            content = {"sample_0.png": b"\x89PNG"}
        self.files[name] = Saved(None, 0, FOREIGN, content, 0, 0, 0, 0)
