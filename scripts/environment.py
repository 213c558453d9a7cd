"""Keeps a virtual environment up to date: its tools, and the package pyper in it.

usage: environment.py FOLDER [GROUP ...] [--package]

Creates FOLDER with the interpreter that runs this script if it is not there yet, installs the
named dependency groups of pyproject.toml, and with --package builds and installs pyper (the groups
must have brought the build tools).  What is up to date already is left alone: a package is built
again only when one of its sources has changed.  Only one process at a time works on a folder.
"""

import argparse
import fcntl
import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# Everything a wheel is made from.
SOURCES = ["pyproject.toml", "meson.build", "meson.options", "LICENSE", "README.md"]
SOURCE_FOLDERS = ["include", "src", "python"]


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def fingerprint() -> str:
    """A hash of the sources of the package."""
    paths = [ROOT / name for name in SOURCES]
    for folder in SOURCE_FOLDERS:
        paths += sorted((ROOT / folder).rglob("*"))
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file() and "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\0{path.stat().st_size}\0".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def pip_install(folder: Path, *arguments: str) -> None:
    """Run the folder's pip, with the folder's tools first on PATH."""
    environment = dict(os.environ)
    environment["PATH"] = f"{folder / 'bin'}{os.pathsep}{environment['PATH']}"
    environment["PIP_DISABLE_PIP_VERSION_CHECK"] = "1"
    environment["PIP_ROOT_USER_ACTION"] = "ignore"
    command = [str(python_of(folder)), "-m", "pip", "install", "--quiet", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, text=True, capture_output=True)
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        sys.exit(f"pyper: pip could not install into {folder}: {' '.join(arguments)}")


def update(folder: Path, groups: list[str], package: bool) -> None:
    state_path = folder / "pyper.json"
    # Resolved, because the environment's own Python may know its base by another name (python3.11)
    # than the one it was created with (python3); it is the same environment all the same.
    base = str(Path(getattr(sys, "_base_executable", sys.executable)).resolve())
    state = json.loads(state_path.read_text()) if state_path.exists() else {}

    if state.get("base") != base or not python_of(folder).exists():
        print(f"pyper: creating {folder} with {base}", flush=True)
        subprocess.run([base, "-m", "venv", "--clear", str(folder)], check=True)
        state = {"base": base}
        state_path.write_text(json.dumps(state))

    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["dependency-groups"]
    installed = state.setdefault("groups", {})
    stale = [group for group in groups if installed.get(group) != known[group]]
    if stale:
        missing = [requirement for group in stale for requirement in known[group]]
        print(f"pyper: installing {', '.join(missing)} into {folder}", flush=True)
        pip_install(folder, "--prefer-binary", *missing)
        installed.update({group: known[group] for group in stale})
        state_path.write_text(json.dumps(state))

    if package and state.get("package") != (now := fingerprint()):
        print(f"pyper: building the package and installing it into {folder}", flush=True)
        pip_install(
            folder,
            "--no-build-isolation",
            "--no-deps",
            "--force-reinstall",
            f"--config-settings=build-dir={ROOT / 'build' / 'wheel' / folder.name}",
            str(ROOT),
        )
        state["package"] = now
        state_path.write_text(json.dumps(state))


def main() -> None:
    parser = argparse.ArgumentParser(description="Keeps a virtual environment up to date.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("groups", nargs="*")
    parser.add_argument("--package", action="store_true", help="build and install pyper too")
    options = parser.parse_args()
    folder = options.folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_path = ROOT / "build" / f"{folder.name.lstrip('.')}.lock"
    lock_path.parent.mkdir(exist_ok=True)
    with lock_path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        update(folder, options.groups, options.package)


if __name__ == "__main__":
    main()
