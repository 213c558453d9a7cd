"""What type checkers say about the package and the documents, and whether its stub is true.

mypy is one of the tools that check the sources (`scripts/check`), so it is there for the main
interpreter only; basedpyright is asked where somebody has installed it.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import pyper
from test_docs import PYTHON

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT / "tests" / "typing"

needs_mypy = pytest.mark.skipif(
    importlib.util.find_spec("mypy") is None, reason="mypy checks with the main interpreter"
)
needs_pyright = pytest.mark.skipif(
    shutil.which("basedpyright") is None, reason="basedpyright is not installed"
)


def run(*command: str | Path, cwd: Path) -> tuple[int, str]:
    done = subprocess.run(
        [str(word) for word in command], cwd=cwd, capture_output=True, text=True, timeout=300
    )
    return done.returncode, done.stdout + done.stderr


@needs_mypy
@pytest.mark.timeout(300)
def test_mypy_agrees_with_every_line(tmp_path: Path) -> None:
    command = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache")
    status, said = run(*command, CASES, cwd=tmp_path)
    assert status == 0, said


@needs_mypy
@pytest.mark.timeout(300)
def test_mypy_sees_mistakes(tmp_path: Path) -> None:
    source = tmp_path / "mistake.py"
    source.write_text("from pyper import task\nx: str = next(task(len)('text'))\n")
    command = (sys.executable, "-m", "mypy", "--strict", "--cache-dir", tmp_path / "cache")
    status, said = run(*command, source, cwd=tmp_path)
    assert status == 1
    assert 'expression has type "int", variable has type "str"' in said


@needs_mypy
@pytest.mark.timeout(300)
def test_the_stub_tells_the_truth_about_the_extension(tmp_path: Path) -> None:
    status, said = run(sys.executable, "-m", "mypy.stubtest", "pyper._pyper", cwd=tmp_path)
    assert status == 0, said


def pyright(folder: Path, settings: Path) -> tuple[int, str]:
    """Ask pyright about the files of a folder; `settings` is where its own file goes."""
    wanted = {
        "include": [str(folder)],
        "extraPaths": [str(Path(pyper.__file__).parents[1])],
        "typeCheckingMode": "standard",
        "reportUnnecessaryTypeIgnoreComment": "error",
    }
    (settings / "pyrightconfig.json").write_text(json.dumps(wanted))
    return run("basedpyright", "-p", settings, cwd=settings)


@needs_pyright
@pytest.mark.timeout(300)
def test_pyright_agrees_with_every_line(tmp_path: Path) -> None:
    status, said = pyright(CASES, tmp_path)
    assert status == 0, said


@needs_pyright
@pytest.mark.timeout(300)
def test_pyright_accepts_the_documents(tmp_path: Path) -> None:
    """Their functions have no annotations: an editor must not find mistakes in them for that."""
    for block in PYTHON:
        (tmp_path / f"{block.page.stem}_{block.line}.py").write_text(block.text, "utf-8")
    status, said = pyright(tmp_path, tmp_path)
    assert status == 0, said


def test_the_package_says_that_it_is_typed() -> None:
    folder = Path(pyper.__file__).parent
    assert (folder / "py.typed").exists()
    assert (folder / "_pyper.pyi").exists()
