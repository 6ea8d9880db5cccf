"""Draw docs/plan.svg: what a terminal shows of a real `ckptd plan` over the README's run. `make picture` runs it."""

from __future__ import annotations

import html
import os
import random
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(REPOSITORY))

from tests.conftest import environment, torch_zip  # noqa: E402

PICTURE = REPOSITORY / "docs/plan.svg"
COMMAND = "ckptd plan runs/a --max-keep 3"
COLUMNS = 120
_CHARACTER, _LINE, _EDGE, _BAR = 7.8, 18, 16, 30  # pixels: a character's width, a line's height, around all, on top


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="ckptd-picture-") as place:
        fill(Path(place))
        (Path(place) / "runs/a/epoch_2.pth.keep").touch()
        PICTURE.write_text(svg([f"$ {COMMAND}", *on_a_terminal(COMMAND, Path(place))]))


def fill(place: Path) -> None:
    """The run of the README: six epochs, one each two hours, and a directory of images with a checkpoint's name."""
    (place / "runs/a/epoch_1").mkdir(parents=True)
    (place / "runs/a/epoch_1/sample.png").write_bytes(b"\x89PNG")
    for step in range(1, 7):
        save(place / f"runs/a/epoch_{step}.pth", hours_ago=14.5 - 2 * step)


def save(path: Path, *, hours_ago: float) -> None:
    """Save a checkpoint of 4 MiB, aside and then renamed, as a careful job does."""
    weights = random.Random(path.name).randbytes(4 * 1024 * 1024 - len(torch_zip(b"")))
    aside = path.with_name(path.name + ".tmp")
    with aside.open("wb") as file:
        file.write(torch_zip(weights))
        os.fsync(file.fileno())
    at_s = time.time() - 3600 * hours_ago
    os.utime(aside, (at_s, at_s))
    os.replace(aside, path)


def on_a_terminal(command: str, cwd: Path) -> list[str]:
    """The lines that a `ckptd` command prints where its output is a terminal."""
    ours, its = os.openpty()
    words = [sys.executable, "-m", *shlex.split(command)]
    env = environment(COLUMNS=str(COLUMNS), PYTHONPATH=str(REPOSITORY))
    with subprocess.Popen(words, cwd=cwd, env=env, stdout=its, stderr=its) as process:
        os.close(its)
        said = b""
        while piece := _read(ours):
            said += piece
    os.close(ours)
    assert process.returncode == 0, said
    return said.decode().replace("\r\n", "\n").splitlines()


def svg(lines: list[str]) -> str:
    """A window with these lines in it; the first is the command."""
    width = round(2 * _EDGE + _CHARACTER * max(map(len, lines)))
    height = _BAR + _LINE * len(lines) + _EDGE
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img">',
        f"<title>{html.escape(lines[0][2:])}</title>",
        f'<rect width="{width}" height="{height}" rx="8" fill="#1e2127"/>',
        *(f'<circle cx="{_EDGE + 16 * n}" cy="15" r="5" fill="#4b515c"/>' for n in range(3)),
        '<g font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13" fill="#d7dae0">',
    ]
    for number, line in enumerate(lines):
        if line:
            y = _BAR + _LINE * (number + 1) - 5
            length = round(_CHARACTER * len(line.rstrip()), 1)
            bold = ' font-weight="bold"' if number == 0 else ""
            parts.append(
                f'<text x="{_EDGE}" y="{y}" textLength="{length}"{bold}>'
                f"{html.escape(line.rstrip()).replace(' ', '&#160;')}</text>"
            )
    return "\n".join([*parts, "</g>", "</svg>", ""])


def _read(fd: int) -> bytes:
    try:
        return os.read(fd, 1 << 16)
    except OSError:  # nobody writes to it any more
        return b""


if __name__ == "__main__":
    main()
