"""From a file closed after writing to a durable pointer and the pruned name gone: `ckptd watch` against shell scripts.

Each has a work dir of its own and watches it all the time; a round saves once in each of them, one after another.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .beside import CKPTD, WATCHMEDO, has_inotifywait, running, until
from .lines import Line, compared, p99, within
from .paired import Seconds

KEEP = 3
GAP_S = 0.1  # between two saves, in which what is left of the last one ends
WARM_UP = KEEP + 3

# Sh: what people write. $1 is the directory, $2 the name of what was closed or moved there.
AFTER = """
after() {{
  case $2 in epoch_*.pth) ;; *) return ;; esac
  n=${{2#epoch_}}; n=${{n%.pth}}
  printf '%s\\n' "$1/$2" > "$1/.last"
  {before}
  mv "$1/.last" "$1/last_ckpt"
  {behind}
  rm -f "$1/epoch_$((n - 3)).pth"
}}
"""
SYNC = {
    "": (":", ":"),
    ", sync": ("sync", "sync"),
    ", sync FILE": ('sync "$1/$2" "$1/.last"', 'sync "$1"'),
}
POLL = """
cd "$1"
while sleep 1; do
  newest=$(ls | grep '^epoch_[0-9]*\\.pth$' | sort -V | tail -n 1)
  [ -n "$newest" ] && [ "$newest" != "$seen" ] && after "$1" "$newest"
  seen=$newest
done
"""

Save = Callable[[Path, bytes], None]


def lines(place: Path, rounds: int) -> list[Line]:
    found = []
    for how, save in (("renamed into place", renamed), ("closed under its name", closed)):
        taken = measured(place / save.__name__, save, rounds)
        ours = taken["ckptd"]
        what = f"a save of 4 KB, {how}: pointer durable, old name gone"
        found += [
            within(f"{what}: median", statistics.median(ours), 0.003, "s", rounds),
            within(f"{what}: p99", p99(ours), 0.015, "s", rounds),
        ]
        budgets = {"inotifywait + sh": 1.0, "inotifywait + sh, sync": 1 / 3}
        for peer, theirs in taken.items():
            if peer != "ckptd":
                found.append(compared(what, peer, ours, theirs, at_most=budgets.get(peer)))
    return found


def measured(place: Path, save: Save, rounds: int) -> Seconds:
    place.mkdir()
    content = torch_zip()
    with contextlib.ExitStack() as stack:
        runs = {name: place / f"run{number}" for number, name in enumerate(contestants())}
        for name, run in runs.items():
            run.mkdir()
            if name != FLOOR:
                stack.enter_context(start(name, run))
        taken: Seconds = {name: [] for name in runs}
        for number in range(1, rounds + WARM_UP + 1):
            for name in sorted(runs, reverse=bool(number % 2)):
                took_s = one(runs[name], number, lambda path: save(path, content), by_hand=name == FLOOR)
                if number > WARM_UP:
                    taken[name].append(took_s)
                time.sleep(GAP_S)
    return taken


FLOOR = "the six fsyncs and three renames alone"


def contestants() -> list[str]:
    inotify = [f"inotifywait + sh{sync}" for sync in SYNC] if has_inotifywait() else []
    return ["ckptd", *inotify, "watchmedo shell-command", "a loop of 1 s in sh", FLOOR]


def start(name: str, run: Path) -> contextlib.AbstractContextManager[int]:
    if name == "ckptd":
        return running([*CKPTD, "watch", run, "--max-keep", str(KEEP), "--interval", "1"], watches=2)
    before, behind = SYNC[next((sync for sync in SYNC if sync and name.endswith(sync)), "")]
    after = AFTER.format(before=before, behind=behind)
    if name.startswith("inotifywait"):
        command = ["inotifywait", "-m", "-q", "-e", "close_write", "-e", "moved_to", "--format", "%f", run]
        return running(command, watches=1, then=f'{after}\nwhile read -r name; do after {run} "$name"; done')
    if name.startswith("watchmedo"):
        script = run.with_suffix(".sh")
        script.write_text(f'{after}\nfor path in "$@"; do after {run} "${{path##*/}}"; done\n')
        act = f"case ${{watch_event_type}} in closed|moved) sh {script} ${{watch_src_path}} ${{watch_dest_path}};; esac"
        return running([*WATCHMEDO, "shell-command", "-p", "**/epoch_*.pth", "-c", act, run], watches=1)
    return running(["sh", "-c", after + POLL, "sh", run])


def one(run: Path, number: int, save: Callable[[Path], None], *, by_hand: bool) -> float:
    """Save checkpoint `number`; how long until the one KEEP older is gone, and the pointer names the new one."""
    new, old = run / f"epoch_{number}.pth", run / f"epoch_{number - KEEP}.pth"
    save(new)
    began = time.perf_counter()
    if by_hand:
        the_least(run, new, old)
    until(lambda: not os.path.lexists(old), f"the end of {old}")
    took_s = time.perf_counter() - began
    until(lambda: pointed(run) == str(new), f"a pointer at {new}")
    return took_s


def pointed(run: Path) -> str:
    with contextlib.suppress(FileNotFoundError):
        return (run / "last_ckpt").read_text().rstrip("\n")
    return ""


def the_least(run: Path, new: Path, old: Path) -> None:
    """What must be durable before a name may go: the checkpoint, the pointer, what is remembered, and their names."""
    own, trash = run / "own", run / "own/trash"
    trash.mkdir(parents=True, exist_ok=True)
    sync(new)
    sync(run)
    for place, name in ((run, "last_ckpt"), (own, "state.json")):
        (place / ".aside").write_text(f"{new}\n")
        sync(place / ".aside")
        os.replace(place / ".aside", place / name)
        sync(place)
    with contextlib.suppress(FileNotFoundError):
        os.rename(old, trash / old.name)


def sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def renamed(path: Path, content: bytes) -> None:
    aside = path.with_name("saving.tmp")
    aside.write_bytes(content)
    os.replace(aside, path)


def closed(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def torch_zip() -> bytes:
    file = io.BytesIO()
    torch.save({"state_dict": {"weight": torch.zeros(512)}}, file)
    return file.getvalue()
