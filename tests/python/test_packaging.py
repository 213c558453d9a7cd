"""What is shipped: the wheel holds the package and nothing else, the sdist holds everything.

The engine is linked into the extension module and hidden there: two extensions in one process may
bring an engine each, and neither must meet the other's symbols.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from printed import ROOT

pytestmark = pytest.mark.timeout(300)


def run(*command: str | Path, cwd: Path = ROOT) -> str:
    """Run a command with this environment's tools first on PATH; return what it printed."""
    tools = str(Path(sys.executable).parent)
    environment = dict(os.environ, PATH=tools + os.pathsep + os.environ["PATH"])
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def build_wheel(source: Path, folder: Path) -> Path:
    """Build the wheel of a source tree into the folder, with the tools of this environment."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation"]
    run(*pip, f"--config-settings=build-dir={folder / 'build'}", "-w", folder, source, cwd=folder)
    (wheel,) = folder.glob("pyper-*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_wheel(ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of what is committed, as PEP 517 front ends build it."""
    if not (ROOT / ".git").exists():
        pytest.skip("an sdist is made from a git checkout, and this is none")
    folder = tmp_path_factory.mktemp("sdist")
    build = "import mesonpy, sys; mesonpy.build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder)
    (path,) = folder.glob("pyper-*.tar.gz")
    return path


def package_files(names: list[str]) -> set[str]:
    return {name for name in names if name.startswith("pyper/")}


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    sources = {
        f"pyper/{path.name}"
        for path in (ROOT / "python" / "pyper").iterdir()
        if path.suffix in {".py", ".pyi", ".typed"}
    }
    assert "pyper/py.typed" in sources
    extensions = {name for name in names if name.endswith(".so")}
    assert len(extensions) == 1
    assert package_files(names) == sources | extensions
    others = set(names) - package_files(names)
    assert all(".dist-info/" in name for name in others), others
    assert any(name.endswith("/LICENSE") for name in others)


def test_the_extension_exports_nothing_but_its_init_function(wheel: Path, tmp_path: Path) -> None:
    nm = shutil.which("nm")
    assert nm, "nm is missing; on Debian: apt-get install binutils"
    archive = zipfile.ZipFile(wheel)
    (name,) = (name for name in archive.namelist() if name.endswith(".so"))
    symbols = run(nm, "-D", "--defined-only", archive.extract(name, tmp_path)).splitlines()
    assert [line.split()[-1] for line in symbols] == ["PyInit__pyper"]
    needed = run(nm, "-D", "--undefined-only", tmp_path / name)
    assert " pyper_" not in needed, "the extension wants a libpyper from outside"


def test_the_wheel_works_alone(wheel: Path, tmp_path: Path) -> None:
    run(sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv")
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--no-index", wheel)
    program = (
        "from pyper import task\n"
        "print(list((task(range, branch=True) | task(lambda x: x * x, workers=2))(1)))\n"
    )
    assert run(python, "-c", program, cwd=tmp_path) == "[0]\n"


def test_the_sdist_holds_all_sources_and_makes_the_same_wheel(
    sdist: Path, wheel: Path, tmp_path: Path
) -> None:
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    packed = {str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()}
    committed = set(run("git", "ls-tree", "-r", "--name-only", "HEAD").splitlines())
    assert packed == committed | {"PKG-INFO"}

    out = tmp_path / "out"
    out.mkdir()
    rebuilt = build_wheel(source, out)
    assert rebuilt.name == wheel.name
    names = set(zipfile.ZipFile(rebuilt).namelist())
    committed_package = {
        name.removeprefix("python/") for name in committed if name.startswith("python/pyper/")
    }
    assert committed_package <= names


def test_the_installed_package_is_the_one_that_was_built() -> None:
    program = "import pyper; print(pyper.__file__); print(pyper.__version__)"
    file, version = run(sys.executable, "-c", program, cwd=Path("/")).splitlines()
    assert ROOT / "python" not in Path(file).parents
    assert f"version: '{version}'" in (ROOT / "meson.build").read_text()
