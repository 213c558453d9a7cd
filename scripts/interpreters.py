"""Finds the Python interpreters of this machine that pyper can be tested with.

usage: interpreters.py

Prints one line for each: its tag ("3.12", "3.13t" for a free-threaded build) and its path; the
interpreter that runs this script comes first.  Looked at are the interpreters on PATH by their
versioned names, those of pyenv, and the free-threaded build in the cache folder (see
build-free-threaded-python).  Of several with the same tag the first counts.  Those that do not
really run (a shim may refuse to) or are too old are passed over; those that cannot build an
extension or a virtual environment are named on standard error.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

OLDEST = (3, 11)
NEWEST_MINOR = 19  # how far the versioned names on PATH are looked for

PROBE = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps({
    "version": sys.version_info[:2],
    "implementation": sys.implementation.name,
    "free_threaded": bool(sysconfig.get_config_var("Py_GIL_DISABLED")),
    "header": os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")),
    "venv": all(importlib.util.find_spec(name) for name in ("venv", "ensurepip")),
    "path": getattr(sys, "_base_executable", sys.executable),
}))
"""


def candidates() -> Iterator[Path]:
    """Paths that may be interpreters, the preferred ones first."""
    yield Path(sys.executable)
    names = [
        f"python3.{minor}{suffix}"
        for minor in range(OLDEST[1], NEWEST_MINOR + 1)
        for suffix in ("", "t")
    ]
    for folder in os.environ.get("PATH", os.defpath).split(os.pathsep):
        yield from (Path(folder) / name for name in names)
    try:
        done = subprocess.run(["pyenv", "root"], capture_output=True, text=True)
    except OSError:
        pass  # there is no pyenv here
    else:
        if done.returncode == 0:
            yield from sorted(Path(done.stdout.strip()).glob("versions/*/bin/python3"))
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    free_threaded = os.environ.get("PYPER_FREE_THREADED_PYTHON") or cache / "pyper" / "python3.13t"
    yield Path(free_threaded) / "bin" / "python3.13t"


def probe(path: Path) -> dict[str, Any] | None:
    """What the interpreter says of itself; None if it does not run."""
    if not os.access(path, os.X_OK):
        return None
    try:
        done = subprocess.run([path, "-I", "-c", PROBE], capture_output=True, text=True, timeout=60)
        return json.loads(done.stdout) if done.returncode == 0 else None
    except (OSError, ValueError, subprocess.TimeoutExpired):
        return None


def interpreters() -> dict[str, Path]:
    """The usable interpreters by their tags, the running one first."""
    found: dict[str, Path] = {}
    for path in candidates():
        facts = probe(path)
        if facts is None or tuple(facts["version"]) < OLDEST:
            continue
        if facts["implementation"] != "cpython":
            continue
        tag = "{}.{}".format(*facts["version"]) + ("t" if facts["free_threaded"] else "")
        if tag in found:
            continue
        lacks = [what for what in ("header", "venv") if not facts[what]]
        if lacks:
            names = {"header": "Python.h", "venv": "the venv module"}
            text = " and ".join(names[what] for what in lacks)
            print(f"pyper: {path} is not used for tests: it has no {text}", file=sys.stderr)
            continue
        found[tag] = Path(facts["path"])
    return found


if __name__ == "__main__":
    for tag, path in interpreters().items():
        print(tag, path)
