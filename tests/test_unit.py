"""The systemd units as text: what is shipped is what is rendered, and every path survives the writing."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from ckptd.errors import UsageError
from ckptd.systemd.unit import render, unit_name

REPOSITORY = Path(__file__).parents[1]

AWKWARD = [
    pytest.param("/home/alice/run", id="plain"),
    pytest.param("/home/alice/my run", id="a space"),
    pytest.param("/home/alice/llm-7b", id="a dash"),
    pytest.param("/data/100%f", id="a percent sign"),
    pytest.param("/data/$HOME/${USER}", id="variables"),
    pytest.param('/data/"a"', id="double quotes"),
    pytest.param("/data/it's", id="a single quote"),
    pytest.param("""/data/'"'\\"'""", id="quotes of both kinds"),
    pytest.param("/data/back\\slash\\", id="backslashes, one at the end"),
    pytest.param("/data/\\x41\\n\\", id="what looks like an escape"),
    pytest.param("/data/ein größerer Lauf 実験", id="letters that are not ASCII"),
    pytest.param("/data/#;=@:!+-~*?[a]{b}", id="punctuation"),
    pytest.param("/data/;", id="a lone semicolon"),
    pytest.param("/.hidden/..dots.", id="dots"),
    pytest.param("/", id="the root"),
]


@pytest.mark.parametrize("user", [False, True])
def test_the_shipped_templates_are_what_is_rendered(user: bool) -> None:
    shipped = REPOSITORY / ("systemd/user/ckptd@.service" if user else "systemd/ckptd@.service")
    assert render(None, user=user) == shipped.read_text()


@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("path", AWKWARD)
def test_systemd_reads_the_work_dir_and_the_options_as_they_were_given(path: str, user: bool) -> None:
    options = ["--max-keep", "3", "--template", "a b_{}.pth", "--pointer", path, "", ";"]
    unit = settings(render(Path(path), options, command="/opt/my tools/ckptd", user=user))
    assert read_words(unit["ExecStart"]) == [":/opt/my tools/ckptd", "watch", path, *options]
    assert read_words(unit["RequiresMountsFor"]) == [path]
    assert unit["Description"].replace("%%", "%") == f"ckptd for {path} (keeps the newest checkpoints)"
    if not user:
        assert read_words(unit["ReadWritePaths"]) == [f"-{path}"]


@pytest.mark.parametrize("path", AWKWARD)
def test_no_line_of_a_unit_runs_on_into_the_next(path: str) -> None:
    assert not [line for line in render(Path(path), [path]).splitlines() if line.endswith("\\")]


@pytest.mark.parametrize(
    "text",
    ["/data/two\nlines", "/data/tab\t", "/data/not \udcff UTF-8", "/data/\x7f"],
    ids=["newline", "tab", "byte", "del"],
)
def test_what_no_unit_can_hold_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="cannot hold"):
        render(Path(text))
    with pytest.raises(UsageError, match="cannot hold"):
        unit_name(Path(text))
    with pytest.raises(UsageError, match="cannot hold"):
        render(Path("/data"), ["--pointer", text])


def test_a_relative_work_dir_is_written_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert render(Path("runs/../run"), ["--max-keep", "3"]) == render(tmp_path / "run", ["--max-keep", "3"])
    assert unit_name(Path("run")) == unit_name(tmp_path / "run")


def test_the_first_lines_say_how_to_install_it() -> None:
    system, user = render(Path("/home/alice/my run")), render(Path("/home/alice/my run"), user=True)
    assert "/etc/systemd/system/'ckptd-home-alice-my\\x20run.service'\n" in system
    assert " systemctl enable --now 'ckptd-home-alice-my\\x20run.service'\n" in system
    assert "~/.config/systemd/user/'ckptd-home-alice-my\\x20run.service'\n" in user
    assert " systemctl --user enable --now 'ckptd-home-alice-my\\x20run.service'\n" in user
    assert "enable-linger" in user


@pytest.mark.parametrize(
    ("expected", "path"),
    [
        ("ckptd-home-alice-run.service", "/home/alice/run"),
        ("ckptd-home-alice-run.service", "//home///alice/./x/../run/"),
        (r"ckptd-home-alice-my\x20run\x2d1.service", "/home/alice/my run-1"),
        (r"ckptd-\x2ecache-a.b-.c_d:e.service", "/.cache/a.b/.c_d:e"),
        (r"ckptd-data-gr\xc3\xb6\xc3\x9fe\x5c\x40\x25.service", "/data/größe\\@%"),
        ("ckptd--.service", "/"),
    ],
)
def test_a_unit_is_named_after_its_work_dir(expected: str, path: str) -> None:
    assert unit_name(Path(path)) == expected


@pytest.mark.parametrize("path", AWKWARD)
def test_names_are_escaped_as_systemd_escape_does_it(path: str) -> None:
    if shutil.which("systemd-escape") is None:
        pytest.skip("needs systemd-escape (package systemd)")
    escape = subprocess.run(["systemd-escape", "--path", path], capture_output=True, text=True, check=True)
    assert unit_name(Path(path)) == f"ckptd-{escape.stdout.strip()}.service"


def test_a_path_too_long_for_a_file_name_still_has_a_name_of_its_own() -> None:
    paths = [Path("/data") / ("ü" * 60) / end for end in ("a", "b")]
    names = [unit_name(path) for path in paths]
    assert names == [f"ckptd-{hashlib.sha256(os.fsencode(p)).hexdigest()[:32]}.service" for p in paths]
    assert len(unit_name(Path("/" + "n" * 241))) == 255


def settings(unit: str) -> dict[str, str]:
    lines = [line for line in unit.splitlines() if "=" in line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}


def read_words(value: str) -> list[str]:
    """A list as systemd 252 reads it: quotes open and close anywhere, then %% is one %."""
    words: list[str] = []
    word: str | None = None
    quote = ""
    chars = iter(value)
    for char in itertools.chain(chars, " "):
        if not quote and char == " ":
            words += [] if word is None else [word]
            word = None
        elif char == quote:
            quote = ""
        elif not quote and char in "'\"":
            word, quote = word or "", char
        elif char == "\\":
            word = (word or "") + next(chars)
        else:
            word = (word or "") + char
    assert not quote
    return [word.replace("%%", "%") for word in words]
