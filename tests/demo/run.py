"""Show ckptd beside a real training run, in a temporary directory.

Exits with 1 unless the last three checkpoints, and only they, are what is left in the end.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

RUN = "spirals"
POLICY = ("--max-keep", "3", "--interval", "1")
EXPECTED = ["epoch_10.pth", "epoch_11.pth", "epoch_12.pth"]
PATIENCE_S = 60.0


def main() -> int:
    with tempfile.TemporaryDirectory(prefix="ckptd-demo-") as place:
        os.chdir(place)
        try:
            return demo(Path(place, RUN))
        finally:
            os.chdir("/")


def demo(work_dir: Path) -> int:
    work_dir.mkdir()
    heading(
        "A training job, and ckptd beside it",
        "The job saves a checkpoint after each epoch and deletes none. ckptd keeps the newest three,",
        "and points last_ckpt at the newest before it deletes anything. This job ends early, after epoch 5.",
    )
    with running("ckptd", "ckptd", "watch", RUN, *POLICY) as ckptd:
        train("--epochs", "5")
        heading(
            "The job is started again",
            "It resumes from the newest complete checkpoint, and trains on to epoch 12.",
        )
        train("--epochs", "12")
        caught_up = wait_until(lambda: ckptd.poll() is not None or state_of(work_dir) == ("epoch_12.pth", EXPECTED))
        heading("Training has ended, and ckptd is told to stop (SIGTERM)")
        ckptd.send_signal(signal.SIGTERM)
        ckptd.wait(PATIENCE_S)
    say(f"ckptd ended with exit code {ckptd.returncode}")
    if not caught_up:
        say(f"ckptd did not catch up within {PATIENCE_S:.0f} s")

    heading("What stays, what goes, and why", "`plan` changes nothing. All is done, so there is nothing to prune.")
    planned = show("ckptd", "plan", RUN, *POLICY)
    heading("What was deleted, and why")
    told = show("ckptd", "history", RUN)
    heading("What is left")
    show("ls", "-l", RUN)
    show("cat", f"{RUN}/last_ckpt")
    heading("The checkpoint that last_ckpt names, loaded")
    epoch = load(work_dir)

    pointed, left = state_of(work_dir)
    good = (pointed, left, epoch) == (EXPECTED[-1], EXPECTED, 12) and {ckptd.returncode, planned, told} == {0}
    heading(
        "As it should be: epochs 10, 11 and 12 are left, and last_ckpt names the newest."
        if good
        else f"NOT as it should be: expected {', '.join(EXPECTED)}; left are {', '.join(left) or 'none'}."
    )
    return 0 if good else 1


def train(*options: str) -> None:
    """One job, to its end."""
    script = Path(__file__).resolve().with_name("train.py")
    with running("train", "python", str(script), RUN, *options) as job:
        if job.wait(10 * PATIENCE_S) != 0:
            raise SystemExit(f"training failed with exit code {job.returncode}")


def load(work_dir: Path) -> int:
    """The epoch of the checkpoint that the pointer names; 0 where there is no pointer."""
    pointer = work_dir / "last_ckpt"
    if not pointer.exists():
        say("there is no last_ckpt")
        return 0
    import torch  # late: it takes seconds, and the reader is waiting for the first line

    path = pointer.read_text().rstrip("\n")
    state = torch.load(path, weights_only=True)
    say(f"{path}\nis a whole checkpoint of epoch {state['meta']['epoch']}, accuracy {state['record']['accuracy']:.1%}")
    return state["meta"]["epoch"]


def state_of(work_dir: Path) -> tuple[str, list[str]]:
    """The name in the pointer, and all that lies there is to see in the work dir, by epoch."""
    pointer = work_dir / "last_ckpt"
    pointed = Path(pointer.read_text().rstrip("\n")).name if pointer.exists() else ""
    names = [p.name for p in work_dir.iterdir() if not p.name.startswith(".") and p != pointer]
    return pointed, sorted(names, key=lambda name: (len(name), name))


def wait_until(done: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.05)
    return False


@contextmanager
def running(label: str, *command: str) -> Iterator[subprocess.Popen[str]]:
    """Start `command` and show each line it prints behind `label`; it does not outlive the block."""
    announce(*command)
    process = subprocess.Popen(
        in_our_environment(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )

    def relay() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            say(line.rstrip("\n"), label)

    reader = threading.Thread(target=relay)
    reader.start()
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        reader.join()
        process.stdout.close()


def show(*command: str) -> int:
    """Run `command` to its end and show what it prints."""
    announce(*command)
    done = subprocess.run(
        in_our_environment(command),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(),
    )
    say(done.stdout.rstrip("\n") or "(nothing)")
    if done.returncode != 0:
        say(f"exit code {done.returncode}")
    return done.returncode


def in_our_environment(command: tuple[str, ...]) -> tuple[str, ...]:
    return (sys.executable, *command[1:]) if command[0] == "python" else command


def environment() -> dict[str, str]:
    """The commands of this interpreter's environment first, and nobody's settings of ckptd."""
    ours = {name: value for name, value in os.environ.items() if not name.startswith("CKPTD_")}
    ours["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{ours.get('PATH', os.defpath)}"
    ours["PYTHONUNBUFFERED"] = "1"
    return ours


_printing = threading.Lock()


def heading(title: str, *lines: str) -> None:
    print_all(f"\n== {title}", *(f"   {line}" for line in lines), "")


def announce(*command: str) -> None:
    shown = [Path(word).name if word.endswith("train.py") else word for word in command]
    print_all(f"      $ {shlex.join(shown)}")


def say(text: str, label: str = "") -> None:
    print_all(*(f"{label:>5} | {line}" for line in text.splitlines()))


def print_all(*lines: str) -> None:
    with _printing:  # two processes talk at once; a line stays a line
        print(*lines, sep="\n", flush=True)


if __name__ == "__main__":
    sys.exit(main())
