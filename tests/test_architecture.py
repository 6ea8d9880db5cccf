"""Who may import whom (STYLE: the house): walked in the source, and in a real interpreter."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ckptd import workdir

PACKAGE = Path(__file__).parent.parent / "ckptd"
MODULES = sorted(PACKAGE.rglob("*.py"))

# What core may use of the standard library: nothing that could reach a disk, a clock, a log or a process.
PURE = {
    "__future__",
    "collections",
    "dataclasses",
    "enum",
    "functools",
    "itertools",
    "json",
    "math",
    "re",
    "string",
    "typing",
}

# What a training job may import: no click, no watchdog, and Python 3.9's syntax (checked in lint).
SHARED_WITH_JOBS = {
    "python",
    "errors",
    "disk",
    "scan",
    "formats",
    "dcp",
    "parts",
    "frameworks",
    "directories",
    "content",
    "lateness",
    "verdict",
    "place",
    "pointer",
}
SHARED_WITH_JOBS |= {"state"}


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


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("core.")], ids=name_of)
def test_core_is_pure(path: Path) -> None:
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "ckptd":
            assert name.startswith(("ckptd.core", "ckptd.errors")), name
        else:
            assert top in PURE, name


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_click_watchdog_and_torch_each_have_one_place(path: Path) -> None:
    tops = {name.split(".")[0] for name in imports_of(path)}
    module = name_of(path)
    assert "click" not in tops or module.startswith("cli.")
    assert "watchdog" not in tops or module in ("watch", "directory_watch")
    assert "torch" not in tops or module.startswith("shim.")


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) in SHARED_WITH_JOBS], ids=name_of)
def test_what_jobs_share_reaches_nothing_else_of_the_daemon(path: Path) -> None:
    for name in imports_of(path):
        if name.startswith("ckptd."):
            assert name.split(".")[1] in SHARED_WITH_JOBS | {"core"}, name


# What a job does with torch in it, and all that it does without.
SHIM_MAY = SHARED_WITH_JOBS | {"core", "shim"}


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p).startswith("shim.")], ids=name_of)
def test_the_shim_reaches_only_what_jobs_share(path: Path) -> None:
    for name in imports_of(path):
        if name.startswith("ckptd."):
            assert name.split(".")[1] in SHIM_MAY, name


@pytest.mark.parametrize("path", [p for p in MODULES if not name_of(p).startswith("shim.")], ids=name_of)
def test_nothing_of_the_daemon_knows_the_shim(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.startswith("ckptd.shim")]


SHELL = {
    "scan",
    "content",
    "formats",
    "dcp",
    "parts",
    "frameworks",
    "directories",
    "lateness",
    "readers",
    "verdict",
    "delete",
    "pointer",
    "state",
    "journal",
    "watch",
    "notify",
    "workdir",
    "filesystem",
    "disk",
}
BELOW = {
    "place",
    "disk",
    "errors",
    "core",
    "scan",
    "formats",
    "dcp",
    "parts",
    "frameworks",
    "directories",
    "lateness",
}  # scan gives the others their Entry


@pytest.mark.parametrize("path", [p for p in MODULES if name_of(p) in SHELL], ids=name_of)
def test_shell_modules_do_not_know_each_other(path: Path) -> None:
    for name in imports_of(path):
        if name.startswith("ckptd.") and name.count(".") >= 1:
            assert name.split(".")[1] in BELOW, name


@pytest.mark.parametrize(("module", "absent"), [
    ("ckptd", ["click", "watchdog", "torch", "ckptd.cli", "ckptd.reconcile"]),
    ("ckptd.cli", ["torch", "watchdog", "ckptd.service", "asyncio"]),
    ("ckptd.service", ["torch", "click"]),
    ("ckptd.api", ["torch", "click", "watchdog"]),
    ("ckptd.shim", ["torch", "click", "watchdog", "ckptd.shim.hook"]),
])  # fmt: skip
def test_an_import_brings_nothing_that_it_does_not_need(module: str, absent: list[str]) -> None:
    code = f"import sys, {module}; print(*[name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


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
    assert set(ours.split()) <= SHIM_MAY
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
