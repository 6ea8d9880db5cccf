"""The README and docs/ are true: their transcripts are what ckptd prints, snippets run, and no option is missing.

What it cannot run here (an installer, systemd, Slurm) is a stand-in that writes down how it was called.
"""

from __future__ import annotations

import dataclasses
import doctest
import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import ckptd
from ckptd import errors
from ckptd.cli.commands import cli
from ckptd.core.formats import COUNTERS
from ckptd.core.layouts import DEFAULT_TEMPLATES, FRAMEWORK_POINTERS, LAYOUTS
from ckptd.core.trackers import INSIDE

from .conftest import Builder, Watching, a_pass, environment, eventually, left, pages, pointed, section, torch_zip
from .demo import picture
from .demo.picture import fill, save

REPOSITORY = Path(__file__).parents[1]
PAGES = pages()
README = PAGES["README.md"]
DOCS = "\n".join(PAGES.values())
MAKEFILE = (REPOSITORY / "Makefile").read_text()
CHANGELOG = (REPOSITORY / "CHANGELOG.md").read_text()
POLICY_COMMANDS = {"watch", "plan", "prune", "unit", "unpin"}
OTHERS_OPTIONS = {"NeMo": {"--val"}, "systemctl": {"--user", "--now"}, "systemd-escape": {"--template", "--path"},
                  "SBATCH": {"--signal", "--requeue"}, "Slurm": {"--signal"}, "train.py": {"--resume-from"},
                  "script": {"--resume-from"}}  # fmt: skip


# --- transcripts ----------------------------------------------------------------------------------------------


def test_the_transcripts_are_what_ckptd_prints(tmp_path: Path) -> None:
    fill(tmp_path)
    (tmp_path / "runs/b").mkdir()
    for at, score in enumerate(("0.90", "0.38", "0.55")):
        save(tmp_path / f"runs/b/weights.{at + 1:02d}-{score}.h5", hours_ago=6.5 - 2 * at)
    (tmp_path / "runs/gan").mkdir()
    for at, name in enumerate(("G_800", "D_800", "G_1600", "D_1600", "G_2400")):
        save(tmp_path / f"runs/gan/{name}.pth", hours_ago=3.5 - at // 2)
    for block in blocks("console"):
        for command, expected in exchanges(block):
            run = watched if command.startswith("ckptd watch") else printed
            assert normalised("\n".join(expected)) == normalised("\n".join(run(command, expected, tmp_path)), tmp_path)


def exchanges(block: str) -> Iterator[tuple[str, list[str]]]:
    """Each command of a transcript, with the lines that it printed."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        command, *lines = part.rstrip("\n").split("\n")
        yield command, lines


def printed(command: str, _: list[str], cwd: Path) -> list[str]:
    words = shlex.split(command)
    words = [sys.executable, "-m", *words] if words[0] == "ckptd" else words
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.run(words, cwd=cwd, env=environment(), text=True, check=True, **streams).stdout.splitlines()


def watched(command: str, expected: list[str], cwd: Path) -> list[str]:
    """What `ckptd watch` says, each line in its turn with what the transcript tells of the world around it."""
    watch = Watching(tuple(shlex.split(command)[2:]), cwd=cwd)
    told: list[str] = []
    heard = 0
    try:
        for line in expected:
            if event := re.fullmatch(r"# the job saves (\S+)", line):
                save(cwd / shlex.split(command)[2] / event[1], hours_ago=0)
            elif line == "^C":
                watch.process.send_signal(signal.SIGINT)
            else:
                eventually(lambda at=heard: len(watch.lines) > at, what=repr(line))
                line, heard = watch.lines[heard], heard + 1
            told.append(line)
        assert watch.ends() == 0
        return [*told, *watch.lines[heard:]]
    finally:
        watch.discard()


def test_the_picture_is_what_a_terminal_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture, "PICTURE", tmp_path / "plan.svg")
    picture.main()
    assert (tmp_path / "plan.svg").read_text() == (REPOSITORY / "docs/plan.svg").read_text(), "run `make picture`"
    command = picture.COMMAND
    assert f"\n$ {command}\n" in README


def normalised(text: str, tmp_path: Path | None = None) -> str:
    """The text without what differs from run to run: the place and the times of day."""
    text = text.replace(str(tmp_path), "/data") if tmp_path else text
    text = re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+", lambda date: re.sub(r"\d", "0", date[0]), text)
    return re.sub(r"\b\d\d:\d\d\b", "HH:MM", text)


# --- snippets -------------------------------------------------------------------------------------------------


def test_the_first_two_commands_are_those_for_a_newcomer() -> None:
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert commands[:2] == ["make demo", "make test"]
    assert README.index("make test") < README.index("ckptd plan")


def test_the_python_session_goes_as_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(filled(tmp_path).parent)
    (session,) = [block for block in blocks("python") if block.startswith(">>>")]
    example = doctest.DocTestParser().get_doctest(session, {}, "README.md", "README.md", 0)
    said: list[str] = []
    result = doctest.DocTestRunner(verbose=False).run(example, out=said.append)
    assert result.attempted > 0
    assert result.failed == 0, "".join(said)


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_the_training_script_saves_and_resumes(page: str, tmp_path: Path) -> None:
    (script,) = [block for block in blocks("python", PAGES[page]) if "with CheckpointHook" in block]
    pytest.importorskip("torch")
    for again in (False, True):
        command = [sys.executable, "-c", script + "\nprint(progress.epoch)"]
        env = environment(PYTHONPATH=str(REPOSITORY))
        done = subprocess.run(command, cwd=tmp_path, env=env, text=True, capture_output=True, timeout=60)
        assert done.returncode == 0, done.stderr
        saved = sorted(path.name for path in (tmp_path / "work_dir").glob("epoch_*"))
        assert len(saved) == 5
        assert done.stdout == ("5\n" if again else "0\n")
    a_pass(tmp_path / "work_dir")
    assert left(tmp_path / "work_dir") == ["epoch_3.pth", "epoch_4.pth", "epoch_5.pth"]


def test_the_names_for_training_scripts_are_those_of_the_shim() -> None:
    from ckptd import shim

    text = PAGES["docs/training.md"] + PAGES["docs/frameworks.md"]
    assert set(re.findall(r"`(CheckpointHook|average_buffers|declare|Progress)\b", text)) <= set(shim.__all__)
    imported = re.findall(r"from ckptd\.shim import ([^\n]*)", DOCS)
    assert {name for line in imported for name in line.split(", ")} <= set(shim.__all__)


def test_every_other_framework_has_its_own_test() -> None:
    told = re.findall(r"^## (.*)", PAGES["docs/training.md"] + PAGES["docs/frameworks.md"], re.MULTILINE)
    tests = "".join(path.read_text() for path in (REPOSITORY / "tests").rglob("test_*.py"))
    told.remove("Named with a template")  # each of its lines is tried below
    assert told
    assert [heading for heading in told if f'readme("{heading}")' not in tests and f'"{heading}", "' not in tests] == []


def shell_blocks() -> list[object]:
    found = re.findall(r"^```sh\n(.*?)^```", DOCS, re.DOTALL | re.MULTILINE)
    return [pytest.param(block, id=block.splitlines()[-1]) for block in found]


@pytest.mark.parametrize("block", shell_blocks())
def test_the_shell_snippets_run(block: str, stand_ins: StandIns) -> None:
    work_dir = filled(stand_ins.home)
    stand_ins.run(block)
    for name, *args in stand_ins.calls():
        if name == "make":
            variables_given = {word.partition("=")[0] for word in args if "=" in word}
            assert {word for word in args if "=" not in word} <= targets()
            assert variables_given <= set(re.findall(r"^([A-Z]+) \?=", MAKEFILE, re.MULTILINE))
        elif name == "pip":
            assert args in (["install", "."], ["install", ".[shim]"])
        elif name == "systemctl" and "enable" in args:
            assert_unit_exists(args[-1], user="--user" in args, home=stand_ins.home)
        elif name == "tee":
            path, variable = args
            assert f"EnvironmentFile=-{path}\n" in (REPOSITORY / "systemd/ckptd@.service").read_text()
            assert variable.partition("=")[0] in variables()
    if "ckptd watch" in block:
        assert len(left(work_dir)) == 3
        assert pointed(work_dir) == left(work_dir)[-1]


def test_the_resume_snippet_resumes_from_the_newest_starts_anew_only_where_nothing_is_and_else_stops(
    stand_ins: StandIns,
) -> None:
    (block,) = [block for block in blocks("sh") if block.startswith("newest=$(ckptd latest")]
    stand_ins.run(block)  # not even a work dir
    (stand_ins.home / "work_dir").mkdir()
    stand_ins.run(block)  # which saves
    stand_ins.run(block)
    saved = stand_ins.home / "work_dir/epoch_6.pth"
    assert stand_ins.calls() == [["train.py"], ["train.py"], ["train.py", "--resume-from", str(saved)]]
    os.truncate(saved, 100)
    assert stand_ins.run(block, code=6).startswith(f"error: {saved.parent}: epoch_6.pth is in flight (")
    assert len(stand_ins.calls()) == 3


def test_the_job_beside_the_watch_is_run_and_its_checkpoints_are_pruned(stand_ins: StandIns) -> None:
    found = [block for block in blocks("sh") if " -- " in block]
    assert len(found) == 2
    for block in found:
        work_dir = filled(stand_ins.home)
        newest = left(work_dir)[-1]
        stand_ins.run(block)
        assert left(work_dir) == ["epoch_4.pth", "epoch_5.pth", "epoch_6.pth"]
    command = ["train.py", "--resume-from", f"{work_dir}/{newest}"]
    assert stand_ins.calls() == [["train.py"], ["srun", "python", *command], command]


def test_the_batch_script_starts_anew_only_where_nothing_is_and_stops_where_it_cannot_tell(stand_ins: StandIns) -> None:
    (block,) = [block for block in blocks("sh") if "#SBATCH" in block]
    work_dir = stand_ins.home / "work_dir"
    work_dir.mkdir()
    stand_ins.run(block)
    assert stand_ins.calls() == [["srun", "python", "train.py"], ["train.py"]]
    os.truncate(work_dir / "epoch_6.pth", 100)
    stand_ins.run(block, code=6)
    assert len(stand_ins.calls()) == 2


def test_the_training_script_for_slurm_saves_when_it_is_asked_to_and_goes_on_from_there(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    (script,) = [block for block in blocks("python") if "asked" in block]
    newest = 0
    for number in (signal.SIGUSR1, signal.SIGTERM):
        command = [sys.executable, "-c", f"{script}\nprint(progress.iteration, iteration + 1)"]
        job = subprocess.Popen(command, cwd=tmp_path, env=environment(PYTHONPATH=str(REPOSITORY)), text=True,
                               stdout=subprocess.PIPE)  # fmt: skip
        with job:
            eventually(lambda at=newest: newest_in(tmp_path / "work_dir") > at, what="a save")
            job.send_signal(number)
            began, ended = map(int, job.stdout.read().split())
        assert (job.returncode, began) == (0, newest)
        newest = newest_in(tmp_path / "work_dir")
        assert newest == ended


def newest_in(work_dir: Path) -> int:
    return max((int(path.stem.removeprefix("iter_")) for path in work_dir.glob("iter_*.pth")), default=0)


def filled(place: Path) -> Path:
    """A work dir with five epochs."""
    work_dir = place / "work_dir"
    work_dir.mkdir(exist_ok=True)
    return Builder(work_dir)(*(f"epoch_{step}.pth" for step in range(1, 6)))


def assert_unit_exists(unit: str, *, user: bool, home: Path) -> None:
    template, is_instance, _ = unit.partition("@")
    if is_instance:
        assert (REPOSITORY / "systemd" / ("user" if user else "") / f"{template}@.service").exists()
    else:
        assert user
        assert "\nExecStart=" in (home / ".config/systemd/user" / unit).read_text()


def targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


# What stands in for a program: it notes its words, and runs what the real one would run. Only `watch` is stopped.
STAND_IN = """\
#!{python}
import json, os, pathlib, subprocess, sys, time
name, args, home = os.path.basename(sys.argv[0]), sys.argv[1:], pathlib.Path(os.environ["HOME"])
if name == "ckptd":
    watch = subprocess.Popen([{python!r}, "-m", "ckptd", *args])
    if args[0] == "watch" and "--" not in args:
        while watch.poll() is None and len(list((home / args[1]).glob("epoch_*"))) > 3:
            time.sleep(0.01)
        watch.terminate()
    sys.exit(watch.wait())
if name == "sudo":
    name, *args = args
    if name in ("make", "systemctl"):
        os.execvp(name, [name, *args])
    args += sys.stdin.read().split() if name == "tee" else []
if name == "python":
    name, *args = args
    if (home / "work_dir").exists():
        (home / "work_dir/epoch_6.pth").write_bytes((home / "a checkpoint").read_bytes())
with (home / "calls").open("a") as calls:
    calls.write(json.dumps([name, *args]) + "\\n")
if name == "srun":
    os.execvp(args[0], args)
if name == "systemd-escape":
    template = args[0].partition("=")[2].partition("@")[0]
    print(template + "@" + args[-1].strip("/").replace("/", "-") + ".service")
"""


class StandIns:
    """A home in which snippets run, with stand-ins for what they call."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "a checkpoint").write_bytes(torch_zip())
        (home / "calls").touch()
        (home / "runs/a").mkdir(parents=True)
        (home / "bin").mkdir()
        for name in ("ckptd", "make", "pip", "python", "srun", "sudo", "systemctl", "systemd-escape"):
            (home / "bin" / name).write_text(STAND_IN.format(python=sys.executable))
            (home / "bin" / name).chmod(0o755)

    def run(self, block: str, *, code: int = 0) -> str:
        path = f"{self.home / 'bin'}{os.pathsep}{os.environ['PATH']}"
        env = environment(HOME=str(self.home), PATH=path, PYTHONPATH=str(REPOSITORY))
        done = subprocess.run(["bash", "-eu", "-c", block], cwd=self.home, env=env, text=True, capture_output=True,
                              timeout=60)  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stderr

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.home / "calls").read_text().splitlines()]


@pytest.fixture
def stand_ins(tmp_path: Path) -> StandIns:
    return StandIns(tmp_path)


# --- what it says of commands, options and exit codes ---------------------------------------------------------


def test_every_command_is_in_the_table_of_commands_and_no_other() -> None:
    assert {row[0].split()[1] for row in table("command")} == set(cli.commands)


def test_every_option_stands_in_the_table_with_its_variable() -> None:
    rows = {row[0].split()[0]: row for row in table("option")}
    for name, _, option in all_options():
        assert name in rows, f"{name} is not in the table of options"
        assert rows[name][1] == (option.envvar or "none")
        assert ("repeatable" in rows[name][2]) == option.multiple
        if option.show_default and option.default is not None and not option.is_flag:
            assert f"default: `{option.default}`" in rows[name][2]
        for default in re.findall(r"Default: (.*)", option.help or ""):
            assert set(re.findall(r"\b\d+s\b", default)) <= set(re.findall(r"\w+", rows[name][2]))
    assert set(rows) == {name for name, _, _ in all_options()}


def test_every_option_stands_with_the_commands_that_take_it() -> None:
    takers: dict[str, set[str]] = {}
    for name, command, _ in all_options():
        takers.setdefault(name, set()).add(command)
    rows = [(row[0].split()[0], row[2]) for row in table("option")]
    policy = [name for name, _ in rows if takers[name] >= POLICY_COMMANDS]
    assert [name for name, _ in rows[: len(policy)]] == policy
    assert len(policy) == 14, "the page counts them: the first fourteen"
    more = {"--template", "--layout", "--pointer", "--verify"}
    assert {name for name in policy if takers[name] > POLICY_COMMANDS} == more
    assert takers["--verify"] == {*POLICY_COMMANDS, "verify"}
    assert takers["--pointer"] == takers["--template"] == takers["--layout"] == {*POLICY_COMMANDS, "latest"}
    for name, meaning in rows[len(policy) :]:
        assert set(re.findall(r"`(\w+)`", meaning.partition(":")[0])) == takers[name], name


def test_no_option_or_variable_is_mentioned_that_does_not_exist() -> None:
    ours = {name for name, _, _ in all_options()} | {"--help", "--version"}
    for line in DOCS.splitlines():
        others = {option for word, options in OTHERS_OPTIONS.items() if word in line for option in options}
        mentioned = set(re.findall(r"(?<![\w|-])--[a-z][a-z-]*", line))
        assert mentioned <= ours | others, line
    assert set(re.findall(r"CKPTD_\w+", DOCS)) == variables() | {
        "CKPTD_DEBUG",
        "CKPTD_COMPLETE",
        "CKPTD_SAVE_TIMEOUT",
    }


def test_every_command_line_shown_is_one_that_ckptd_takes() -> None:
    shown = re.findall(r"\bckptd ([a-z]+)\b([^`\n>)]*)", "\n".join(code()))
    assert {name for name, _ in shown} == set(cli.commands)
    lines = [(name, words) for name, words in shown if words.strip()]
    outside_tables = re.sub(r"^\|.*", "", DOCS, flags=re.MULTILINE)
    lines += [("plan", f"work_dir {words}") for words in re.findall(r"`(--[a-z-]+\s[^`]+)`", outside_tables)]
    for name, words in lines:
        context = cli.commands[name].make_context(name, shlex.split(words, comments=True))
        if name in POLICY_COMMANDS:
            ckptd.Policy(**{field.name: context.params[field.name] for field in dataclasses.fields(ckptd.Policy)})


def test_the_files_of_options_are_those_that_the_units_read() -> None:
    named = set(re.findall(r"/etc/ckptd\S*\.env", DOCS))
    unit = (REPOSITORY / "systemd/ckptd@.service").read_text().replace("%f", "/data/runs/a")
    assert named == set(re.findall(r"EnvironmentFile=-(.*)", unit))
    users = (REPOSITORY / "systemd/user/ckptd@.service").read_text()
    assert "`~/.config/ckptd`" in DOCS
    assert "~/.config/ckptd/ckptd.env" in users


def test_every_exit_code_is_in_the_table_and_in_the_help() -> None:
    told = {row[0] for row in table("exit code")}
    assert cli.epilog is not None
    assert told == set(
        re.findall(r"(?<=[:;] )\d+", re.sub(r"\s+", " ", cli.epilog)[: cli.epilog.index("Every option")])
    )
    known = [each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, errors.CkptdError)]
    assert {str(each.exit_code) for each in known} <= told


def all_options() -> list[tuple[str, str, click.Option]]:
    """Every option of every command, as (name, command, option)."""
    return [
        (name, command.name or "", option)
        for command in cli.commands.values()
        for option in command.params
        if isinstance(option, click.Option)
        for name in option.opts
        if name.startswith("--")  # a short one stands with its long one
    ]


def variables() -> set[str]:
    return {str(option.envvar) for _, _, option in all_options() if option.envvar}


# --- what it says of rules and names --------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["stepped", "newest"])
@pytest.mark.parametrize("case", range(4))
def test_the_rules_leave_what_the_table_says(case: int, column: str, with_checkpoints: Builder) -> None:
    rows = table("case")
    assert len(rows) == 4
    given = re.search(r"with `--max-keep (\d+) --interval (\d+)`", re.sub(r"\s+", " ", DOCS))
    assert given is not None
    _, saves, stepped, newest = rows[case]
    for step in saves.split():
        work_dir = with_checkpoints(f"iter_{step}.pth")
        a_pass(work_dir, max_keep=int(given[1]), interval=int(given[2]), rule=column)
    expected = stepped if column == "stepped" else newest
    assert left(work_dir) == [f"iter_{step}.pth" for step in expected.split()]
    assert pointed(work_dir) == f"iter_{saves.split()[-1]}.pth"


def test_the_names_are_known_or_left_alone_as_said() -> None:
    known, alone = re.search(r"Known are (.*?)\. (.*?) are left alone", DOCS, re.DOTALL).groups()
    units = {f"`{template.unit}_N`" for template in DEFAULT_TEMPLATES}
    endings = {f"`{template.text.partition('}')[2]}`" for template in DEFAULT_TEMPLATES} - {"``"}
    assert set(re.findall(r"`.*?`", known)) == units | endings
    names = re.findall(r"`(.*?)`", alone)
    assert len(names) == 3
    assert not [(t, name) for t in DEFAULT_TEMPLATES for name in names if t.step_of(name) is not None]


def test_every_layout_is_named_with_its_option_or_as_known() -> None:
    (row,) = [row for row in table("option") if row[0].startswith("--layout")]
    assert {layout.name for layout in LAYOUTS} == set(re.findall(r"`([a-z0-9]+)`", row[2]))
    promises = section("What is never deleted")
    others = promises.partition("**What another framework has written,**")[2].partition("\n- ")[0]
    known = " ".join(row[0] for row in table("framework | names"))
    assert [layout for layout in LAYOUTS if not layout.by_itself and layout.title not in others] == []
    assert [layout for layout in LAYOUTS[1:] if layout.by_itself and layout.title not in known] == []


def test_the_names_of_frameworks_are_known_as_said() -> None:
    finder = ckptd.Policy().finder()
    names = [name for row in table("framework | names") for name in re.findall(r"`([^`]*[0-9][^`]*)`", row[1])]
    assert names
    for name in names:
        if not name.startswith("-"):
            assert finder.match(name) is not None, name
            assert not finder.match(name)[0].alone, name


def test_the_names_of_others_are_those_of_the_template_beside_them(tmp_path: Path) -> None:
    rows = table("saved by | names | `--template` | its own pointer | resume")
    assert len(rows) > 40
    assert [row[0].lower() for row in rows] == sorted(row[0].lower() for row in rows)
    for number, (_, names, template, *_) in enumerate(rows):
        work_dir = tmp_path / str(number)
        (given,) = re.findall(r"^`?(.*?)(?:`|$)", template)
        expected = set()
        for name in re.findall(r"[^`, ]+", names):
            path = work_dir / name / "w.pt" if name.endswith("/") else work_dir / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(torch_zip())
            expected.add(name.rstrip("/"))
        survey = ckptd.plan(work_dir, ckptd.Policy(templates=(given,), settle_s=0))
        assert {file.name for each in survey.decisions for file in each.checkpoint.entry.files} == expected


def test_the_order_of_the_steps_is_the_one_that_is_told() -> None:
    (row,) = [row for row in table("field | what it is") if "in this order" in row[1]]
    assert re.findall(r"{(\w+)}", row[0]) == list(COUNTERS)


def test_every_pointer_that_protects_is_named() -> None:
    promises = section("What is never deleted")
    assert {f"`{pointer.file}`" for pointer in FRAMEWORK_POINTERS} <= set(re.findall(r"`.*?`", promises))


def test_the_pointers_of_frameworks_are_told_as_the_table_has_them() -> None:
    rows = table("framework | file | holds | names the latest")
    told = {file: row[3] == "yes" for row in rows for file in re.findall("`(.*?)`", row[1]) or [row[1]]}
    known = {pointer.file: pointer.latest for pointer in FRAMEWORK_POINTERS if pointer.file != "last_ckpt"}
    assert told == {**known, INSIDE: False}


def test_the_python_interface_is_named_whole() -> None:
    assert set(re.findall(r"(?<![/.\w])ckptd\.([A-Za-z]+)", DOCS)) == {*ckptd.__all__, "shim"}
    fields = {field.name for field in dataclasses.fields(ckptd.Policy)}
    assert fields <= set(re.findall(r"`(.*?)`", DOCS.partition("`Policy` takes")[2].partition("\n\n")[0]))


# --- the files themselves -------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", without_code(PAGES[page])):
        path, _, anchor = target.partition("#")
        place = (REPOSITORY / page).parent / path if path else REPOSITORY / page
        assert place.resolve().is_relative_to(REPOSITORY), target
        assert place.exists(), target
        assert not anchor or anchor in anchors(place.read_text()), target


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist_with_what_is_said_to_be_in_them(page: str) -> None:
    for name, path in re.findall(r"(?:`(\w+)` in )?`((?:ckptd|tests|docs|systemd)/[\w/.@-]+)`", PAGES[page]):
        assert (REPOSITORY / path).exists(), path
        assert not name or re.search(rf"\b{name}\b", (REPOSITORY / path).read_text()), (name, path)


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page: str) -> None:
    for path, name in re.findall(r"`([\w/.]+\.py)::(\w+)`", PAGES[page]):
        assert f"\ndef {name}(" in (REPOSITORY / path).read_text(), (path, name)


def test_each_promise_has_tests() -> None:
    promises = re.findall(r"^(\d+)\. ", PAGES["docs/design.md"].partition("## 2. ")[0], re.MULTILINE)
    told = PAGES["docs/safety.md"].partition("## The promises and their tests")[2].partition("\n## ")[0]
    sections = re.split(r"^### (\d+)\. .*$", told, flags=re.MULTILINE)[1:]
    assert sections[::2] == promises
    assert all(len(re.findall(r"::test_", text)) >= 3 for text in sections[1::2])


def test_sections_of_the_design_that_are_cited_exist() -> None:
    sections = set(re.findall(r"^## (\d+)\. ", PAGES["docs/design.md"], re.MULTILINE))
    source = "\n".join(path.read_text() for each in ("ckptd", "tests") for path in (REPOSITORY / each).rglob("*.py"))
    cited = set(re.findall(r"docs/design\.md\b.{0,40}?section (\d+)", source))
    within = {number for each in re.findall(r"\bsections? ([\d, and]+)", PAGES["docs/design.md"])
              for number in re.findall(r"\d+", each)}  # fmt: skip
    assert cited
    assert cited | within <= sections


def anchors(text: str) -> set[str]:
    """What a link can lead to in a page: its headings, as GitHub names them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```|`[^`\n]*`", "", text, flags=re.DOTALL | re.MULTILINE)


def test_the_readme_is_short_and_leads_to_every_page() -> None:
    assert len(README.splitlines()) <= 150
    assert set(PAGES) - {"README.md"} <= set(re.findall(r"\]\(([^)#]+)", README))


def test_the_changelog_begins_with_this_version() -> None:
    heading = re.search(r"^## \[?([^\]\s]+)\]?(?: - \d{4}-\d\d-\d\d)?$", CHANGELOG, re.MULTILINE)
    assert heading is not None
    assert heading[1] in (ckptd.__version__, "Unreleased")
    kinds = set(re.findall(r"^### (.*)$", CHANGELOG, re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def blocks(language: str, text: str = DOCS) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def code() -> list[str]:
    """All code: blocks without what ckptd printed, and what stands in backquotes."""
    text = re.sub(r"^```.*?^```", "", DOCS, flags=re.DOTALL | re.MULTILINE)
    shown = [command for block in blocks("console") for command, _ in exchanges(block)]
    return [*blocks("sh"), *shown, *re.findall(r"`([^`]+)`", text)]


def table(head: str) -> list[list[str]]:
    """The rows of the table whose first columns are called `head`, backquotes at the ends of a cell removed."""
    lines = DOCS[DOCS.index(f"\n| {head} |") + 1 :].partition("\n\n")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[2:]]
    return [[cell.strip("`") if re.fullmatch(r"`[^`]*`", cell) else cell for cell in row] for row in rows]
