"""What the tests of examples and documents share: run a program, compare what it prints.

A source says in comments what it prints, one line each: ``#> text`` in Python, ``//> text`` in C.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SLOW_CALLBACK = re.compile(r"Executing <.*> took [0-9.]+ seconds$")
HANG_GUARD = 50  # seconds; nothing here should take more than a few, except on a loaded machine


def expected_lines(source: str, mark: str = "#>") -> list[str]:
    """Return the lines that the source says it prints."""
    pattern = re.compile(rf"^\s*{re.escape(mark)} ?(.*)$", re.MULTILINE)
    return [line.rstrip() for line in pattern.findall(source)]


def run(
    command: Sequence[str | Path], timeout: float = HANG_GUARD
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end and return what it printed; it has no input."""
    return subprocess.run(
        [str(word) for word in command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )


def run_python(
    script: Path, *arguments: str | Path, timeout: float = HANG_GUARD
) -> subprocess.CompletedProcess[str]:
    """Run a script in a fresh interpreter, with warnings as errors."""
    return run([sys.executable, "-X", "dev", "-W", "error", script, *arguments], timeout)


def printed_lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    """Return what a program printed, after it has ended well and without complaint."""
    assert done.returncode == 0, done.stderr
    # In development mode asyncio tells of callbacks that took 100 ms: that is the machine's load.
    errors = [line for line in done.stderr.splitlines() if not SLOW_CALLBACK.match(line)]
    assert errors == []
    return [line.rstrip() for line in done.stdout.splitlines()]
