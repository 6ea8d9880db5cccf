"""What jobs import runs on their Pythons, and the command says in one line where it cannot run."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ckptd
from ckptd import python

from .conftest import environment
from .test_architecture import MODULES, name_of, package_of
from .test_inotify import RANGE

REPOSITORY = Path(__file__).parents[1]
JOBS = sorted(name_of(path) for path in MODULES if package_of(path).jobs and path.stem not in ("__main__", "__init__"))
NEEDS_MMCV = {"shim.mmcv", "shim.mmengine"}


@pytest.fixture(params=["python3.9", "python3.10"])
def old_python(request: pytest.FixtureRequest) -> str:
    """An older Python, without any package; many machines have none."""
    found = shutil.which(request.param)
    # What is found may be a shim of a version manager that has no such version.
    if found is None or subprocess.run([found, "-c", ""], capture_output=True, check=False).returncode != 0:
        pytest.skip(f"no {request.param} here: whether ckptd's part in jobs runs on it was not tried")
    return found


def run(interpreter: str, *args: str) -> subprocess.CompletedProcess[str]:
    env = environment(PYTHONPATH=str(REPOSITORY), PYTHONDONTWRITEBYTECODE="1")
    return subprocess.run([interpreter, *args], env=env, text=True, capture_output=True, timeout=60, check=False)


def test_what_jobs_import_can_be_imported(old_python: str) -> None:
    """With a stand-in for torch, which has no builds for all of these Pythons: every line outside functions runs."""
    code = """
import importlib, sys
from unittest.mock import MagicMock
for name in ("torch", "torch.distributed", "torch._utils"):
    sys.modules[name] = MagicMock()
for name in sys.argv[1:]:
    importlib.import_module("ckptd." + name)
print(*[name for name in ("click", "watchdog") if name in sys.modules])
"""
    done = run(old_python, "-c", code, *(name for name in JOBS if name not in NEEDS_MMCV))
    assert (done.stdout, done.returncode) == ("\n", 0), done.stderr


def test_the_command_says_in_one_line_what_it_needs(old_python: str) -> None:
    done = run(old_python, "-m", "ckptd", "latest", "/")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1), done.stderr
    assert done.stderr.startswith("error: the command ckptd needs Python 3.11 or newer, and this is 3.")


def test_the_python_interface_says_in_one_line_what_it_needs(old_python: str) -> None:
    done = run(old_python, "-c", "import ckptd; ckptd.Policy(max_keep=3); from ckptd import plan")
    assert done.stderr.splitlines()[-1].startswith("ImportError: ckptd.plan needs Python 3.11 or newer"), done.stderr


def test_the_same_is_said_by_the_oldest_that_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """For machines that have no such Python."""
    monkeypatch.setattr(sys, "version_info", (3, 10, 13))
    assert "needs Python 3.11 or newer, and this is 3.10" in (python.why_not_here("it") or "")
    with pytest.raises(ImportError, match=r"^ckptd\.plan needs Python 3\.11"):
        ckptd.__getattr__("plan")
    assert ckptd.__getattr__("Policy")(max_keep=3).max_keep == 3
    monkeypatch.setattr(sys, "version_info", (3, 11, 0))
    assert python.why_not_here("it") is None


@pytest.mark.parametrize("package", ["click", "watchdog"])
def test_where_a_package_of_the_daemons_is_missing_the_command_says_which(package: str, tmp_path: Path) -> None:
    code = f"import sys; sys.modules[{package!r}] = None; sys.argv = ['ckptd', 'watch', {os.fspath(tmp_path)!r}]\n"
    done = run(sys.executable, "-c", code + "from ckptd.__main__ import main; main()")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert done.stderr.startswith(f"error: the command ckptd needs {package}, which is not installed here")
    assert f"-m pip install click '{RANGE}'`" in done.stderr
