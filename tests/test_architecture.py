"""Who may import whom, and what each package may touch: walked in the source, and in a real interpreter.

PACKAGES is the one table; docs and tools go by it. What runs on Python 3.9 are the folders that pyproject.toml gives
ruff under `per-file-target-version`; the Makefile reads the same rows.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ckptd.workdir import workdir

PACKAGE = Path(__file__).parent.parent / "ckptd"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What core may use of the standard library: nothing that could reach a disk, a clock, a log or a process.
PURE = frozenset({
    "__future__", "collections", "dataclasses", "enum", "functools", "itertools", "json", "math", "re", "string",
    "typing",
})  # fmt: skip


@dataclass(frozen=True)
class Package:
    """One package: what of ckptd it may import beside itself and errors, and which third-party packages.

    jobs: training jobs import it, so it runs on Python 3.9 and reaches only such packages.
    """

    name: str
    imports: frozenset[str]
    third_party: frozenset[str] = frozenset()
    jobs: bool = False


def _package(name: str, imports: str, third_party: str = "", *, jobs: bool = False) -> Package:
    return Package(name, frozenset(imports.split()), frozenset(third_party.split()), jobs)


# The lowest first: each may import only from packages above its own line.
PACKAGES = {
    each.name: each
    for each in (
        _package("errors", "", jobs=True),
        _package("python", "", jobs=True),
        _package("core", "", jobs=True),
        _package("disk", "", jobs=True),
        _package("systemd", ""),
        _package("text", "core"),
        _package("inspect", "core disk", jobs=True),
        _package("workdir", "core disk inspect", jobs=True),
        _package("passes", "core disk inspect workdir text"),
        _package("daemon", "core disk inspect workdir text systemd passes", "watchdog"),
        _package("shim", "core disk inspect workdir python", "torch numpy mmcv mmengine", jobs=True),
        _package("api", "core disk inspect workdir passes"),
        _package("cli", "core disk inspect workdir text systemd passes daemon api", "click"),
        _package("__main__", "python disk cli", jobs=True),
        _package("__init__", "python api core", jobs=True),
    )
}


def imports_of(path: Path) -> Iterator[str]:
    """The absolute names of what a module imports, wherever in it."""
    package = ["ckptd", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def package_of(path: Path) -> Package:
    return PACKAGES[name_of(path).split(".")[0]]


def ours_in(path: Path) -> set[str]:
    """The packages of ckptd that a module imports, its own not among them."""
    tops = {name.split(".")[1] for name in imports_of(path) if name.startswith("ckptd.")}
    return (tops & set(PACKAGES)) - {package_of(path).name}


def test_every_module_is_in_a_package_of_the_table_and_few_are_in_none() -> None:
    assert {name_of(path).split(".")[0] for path in MODULES} == set(PACKAGES)
    assert len(list(PACKAGE.glob("*.py"))) <= 8


def test_the_page_on_the_code_has_the_same_table() -> None:
    page = (PACKAGE.parent / "docs/architecture.md").read_text()
    rows = page[page.index("| package |") :].partition("\n\n")[0].splitlines()[2:]
    told = {}
    for row in rows:
        name, _, imports, others, jobs = row.strip("| ").split(" | ")
        told[name.strip("`")] = (
            frozenset(re.findall(r"`(.*?)`", imports)),
            frozenset(re.findall(r"`(.*?)`", others)),
            jobs,
        )
    assert told == {
        each.name: (each.imports, each.third_party, "yes" if each.jobs else "no") for each in PACKAGES.values()
    }
    assert list(told) == list(PACKAGES)


def test_the_table_has_no_circle() -> None:
    above: set[str] = set()
    for package in PACKAGES.values():
        assert package.imports <= above, package.name
        above.add(package.name)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_imports_only_what_its_package_may(path: Path) -> None:
    package = package_of(path)
    assert ours_in(path) <= package.imports | {"errors"}
    if package.name == "core":
        assert {name.split(".")[0] for name in imports_of(path)} - {"ckptd"} <= PURE
    others = {name.split(".")[0] for name in imports_of(path)} - set(sys.stdlib_module_names) - {"ckptd"}
    assert others <= package.third_party


def test_a_plain_pytest_is_collected_without_torch() -> None:
    """The tests of the shim are left out by their conftest; elsewhere single tests ask for what they need."""
    tests = PACKAGE.parent / "tests"
    for path in (path for folder in (".", "core", "layouts", "soak") for path in (tests / folder).glob("*.py")):
        for node in ast.parse(path.read_text()).body:
            modules = [each.name for each in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not [each for each in modules if re.match(r"(torch|numpy|safetensors|ckptd\.shim)\b", each)], path


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = {f"ckptd.{name_of(path)}": path for path in MODULES}
    edges = {name: {each for each in imports_of(path) if each in known} - {name} for name, path in known.items()}
    while free := {name for name, those in edges.items() if not those}:
        edges = {name: those - free for name, those in edges.items() if name not in free}
    assert not edges


def test_what_jobs_import_reaches_only_what_runs_on_their_python() -> None:
    for package in PACKAGES.values():
        if package.jobs and package.name not in ("__main__", "__init__"):
            assert all(PACKAGES[name].jobs for name in package.imports), package.name


def test_python_39_is_asked_of_the_folders_that_jobs_import() -> None:
    ruff = tomllib.loads((PACKAGE.parent / "pyproject.toml").read_text())["tool"]["ruff"]
    listed = {row.removeprefix("ckptd/").removesuffix("/**").removesuffix(".py"): target
              for row, target in ruff["per-file-target-version"].items()}  # fmt: skip
    assert listed == {name: "py39" for name, package in PACKAGES.items() if package.jobs}


@pytest.mark.parametrize(("module", "absent"), [
    ("ckptd", ["click", "watchdog", "torch", "ckptd.cli", "ckptd.passes"]),
    ("ckptd.cli", ["torch", "watchdog", "ckptd.daemon", "asyncio"]),
    ("ckptd.daemon.service", ["torch", "click"]),
    ("ckptd.api", ["torch", "click", "watchdog", "pickle", "ckptd.inspect.directories", "ckptd.inspect.metrics"]),
    ("ckptd.shim", ["torch", "click", "watchdog", "ckptd.shim.hook"]),
])  # fmt: skip
def test_an_import_brings_nothing_that_it_does_not_need(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_a_daemon_has_all_at_its_start_that_reads_a_checkpoint() -> None:
    """It lives through updates of its package; what it imported later would be of another version."""
    code = "import sys, ckptd.daemon.service; print(*[x for x in sys.modules if x.startswith('ckptd.inspect.')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = {name_of(path) for path in MODULES if path.parent.name == "inspect"} - {"inspect.__init__", "inspect.view"}
    assert {name.removeprefix("ckptd.") for name in done.stdout.split()} == there


def test_a_job_gets_torch_and_nothing_of_the_daemon() -> None:
    """In a real interpreter: what the hook needs to save and to resume is loaded once it has done both."""
    pytest.importorskip("torch")
    code = """
import sys, tempfile, torch
from ckptd.shim import CheckpointHook, average_buffers, declare
with tempfile.TemporaryDirectory() as place, CheckpointHook(place, interval=1) as hook:
    hook.before_run(model=torch.nn.Linear(1, 1))
    hook.after_train_epoch(0)
    assert hook.resume(model=torch.nn.Linear(1, 1)).epoch == 1
print(*sorted(name.split(".")[1] for name in sys.modules if name.startswith("ckptd.")))
print(*[name for name in ("click", "watchdog") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    ours, others = done.stdout.split("\n")[:2]
    assert set(ours.split()) <= {package.name for package in PACKAGES.values() if package.jobs}
    assert others == ""


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_directory_is_listed_through_a_descriptor_of_its_own(path: Path) -> None:
    """Read twice through one, a directory on sshfs is empty the second time."""
    for function in ast.walk(ast.parse(path.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        opened_here = {
            ast.unparse(item.optional_vars)
            for node in ast.walk(function)
            if isinstance(node, ast.With)
            for item in node.items
            if item.optional_vars is not None
        }
        opened_here |= {
            ast.unparse(node.targets[0])
            for node in ast.walk(function)
            if isinstance(node, ast.Assign) and ast.unparse(node.value).startswith("os.open(")
        }
        for call in ast.walk(function):
            if isinstance(call, ast.Call) and ast.unparse(call.func) in ("os.scandir", "os.listdir"):
                listed = ast.unparse(call.args[0])
                assert listed in opened_here or not listed.endswith("fd"), f"{function.name} lists {listed}"


def test_what_a_function_imports_of_python_is_imported_before_root_is_given_up() -> None:
    """Afterwards Python may be out of reach. (What is ckptd's own is imported then, whatever it is.)"""
    late = set()
    for path in MODULES:
        if name_of(path).startswith("shim.") or path.name == "__main__.py":
            continue
        tree = ast.parse(path.read_text())
        at_once = {id(node) for node in tree.body}
        for node in ast.walk(tree):
            if isinstance(node, ast.Import) and id(node) not in at_once:
                late.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and id(node) not in at_once and not node.level:
                late.add(node.module)
    # The last is there before, when a shell asks; nobody else needs it.
    assert late <= {*workdir._PYTHON_IMPORTS_LATE, "pkgutil", "importlib", "click.shell_completion"}
