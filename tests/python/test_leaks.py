"""Leak hunts: what one run leaves behind, however little, many runs show.

Cells of the table of ends (see matrix.py) run many times each, in processes of their own that look
at threads, processes, descriptors, references and memory.
"""

from __future__ import annotations

import faulthandler
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import matrix
from matrix import Cell
from test_matrix import HANG, SEED

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="process workers need Linux"),
    pytest.mark.timeout(4 * HANG),
]

# Interrupts are not hunted: they leave things in Python's own caches.
SOME = ("break", "close", "fail-middle")
HUNTED = {
    ("thread", "branch"): [end for end in matrix.ENDS if end not in ("normal", "ctrl-c", "exit")],
    ("async", "join"): [end for end in matrix.ENDS if end not in ("normal", "ctrl-c", "exit")],
    ("thread", "nested"): SOME,
    ("async.thread.async", "plain"): SOME,
    ("fork", "plain"): (*SOME, "killed"),
}


def hunt(cells: list[Cell]) -> None:
    """Run each cell many times, and fail with all that was wrong."""
    faulthandler.cancel_dump_traceback_later()  # pytest's, which is for shorter tests
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("matrix_cells.py"), "--hunt"],
        input="\n".join(cell.name for cell in cells),
        capture_output=True,
        text=True,
        timeout=3 * HANG,
        env=os.environ | {"PYPER_TEST_SEED": SEED},
    )
    said = [json.loads(line) for line in done.stdout.splitlines()]
    assert done.returncode == 0, (said[-1], done.stderr)
    ended = {line["ended"]: line["problems"] for line in said if "ended" in line}
    failures = [f"{name}: {' '.join(problems)}" for name, problems in ended.items() if problems]
    assert failures == []
    assert len(ended) == len(cells)


@pytest.mark.parametrize(("kind", "shape"), HUNTED, ids=map(" ".join, HUNTED))
def test_no_end_leaks(kind: str, shape: str) -> None:
    ends = HUNTED[kind, shape]
    cells = [Cell(kind, shape, 1, 2, end, "infinite") for end in ends]
    hunt([cell for cell in matrix.cells(kind) if cell in cells])


@pytest.mark.parametrize(
    ("leak", "what"),
    [
        ("kept.append([])", "objects leak"),
        ("kept.append(1.5 * len(kept))", "blocks leak"),
        ("cells.LIBC.malloc(100)", "bytes leak"),
    ],
    ids=("an object", "blocks", "bytes"),
)
def test_the_hunt_finds_what_leaks(tmp_path: Path, leak: str, what: str) -> None:
    """The hunt itself: a cell that keeps one object, or a few bytes, of each run."""
    program = tmp_path / "leaking.py"
    program.write_text(
        "import sys\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import matrix_cells as cells\n"
        "kept = []\n"
        "run = cells.run\n"
        "def run_and_leak(cell):\n"
        f"    {leak}\n"
        "    return run(cell)\n"
        "cells.run = run_and_leak\n"
        "cells.main()\n"
    )
    cell = Cell("thread", "plain", 1, 2, "normal", "finite")
    done = subprocess.run(
        [sys.executable, program, "--hunt", cell.name],
        capture_output=True,
        text=True,
        timeout=HANG,
        check=True,
    )
    [problem] = [p for p in json.loads(done.stdout.splitlines()[-1])["problems"] if what in p]
    assert problem.startswith(what)
