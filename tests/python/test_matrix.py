"""The table of all ends that a run can have: see matrix.py for its cells and how to run one alone.

The cells of a kind run one after another in a process of their own, which says where it is; so a
cell that hangs or crashes is named, and the others run in spite of it.  The product of threads,
tasks and forked processes runs with the oldest Python, that of threads and tasks with the
free-threaded one; the rest is the cover.  PYPER_MATRIX=full runs the whole table.
"""

from __future__ import annotations

import collections
import faulthandler
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import matrix
from matrix import Cell

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="process workers need Linux"),
    pytest.mark.timeout(0),  # HANG guards each cell
]

HANG = 120  # seconds without a word; a cell that finds something left waits for 20
SEED = os.environ.get("PYPER_TEST_SEED", str(int.from_bytes(os.urandom(4), "big")))


OLDEST = sys.version_info[:2] == (3, 11)
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
PRODUCT = ("thread", "async", "fork") if OLDEST else ("thread", "async") if FREE_THREADED else ()
# Three or four interpreters for each run: once will do, and others have at least one each.
OLDEST_ONLY = ("spawn",)


def chosen(kind: str) -> list[Cell]:
    """The cells of this kind that run here."""
    if os.environ.get("PYPER_MATRIX") == "full":
        return matrix.whole(kind)
    if kind in OLDEST_ONLY and not OLDEST:
        return []
    return matrix.ordinary(kind, product=PRODUCT)


def lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    """What the process says; TimeoutError if it says nothing for too long."""
    assert process.stdout
    poll = select.poll()
    poll.register(process.stdout, select.POLLIN)
    while True:
        if not poll.poll(HANG * 1000):
            raise TimeoutError
        line = process.stdout.readline()  # it writes whole lines at once
        if not line:
            return
        yield json.loads(line)


def run_until_it_breaks(cells: list[Cell], failures: list[str]) -> list[Cell]:
    """Run cells in a process; those that could not be run because one hung or crashed."""
    program = Path(__file__).with_name("matrix_cells.py")
    with tempfile.TemporaryFile() as errors, tempfile.TemporaryFile() as names:
        names.write("\n".join(cell.name for cell in cells).encode())
        names.seek(0)
        process = subprocess.Popen(
            [sys.executable, program],
            stdin=names,
            stdout=subprocess.PIPE,
            stderr=errors,
            bufsize=0,
            env=os.environ | {"PYPER_TEST_SEED": SEED},
            start_new_session=True,
        )
        with process:
            what = ""
            begun = ended = 0
            try:
                for said in lines(process):
                    if "begins" in said:
                        begun += 1
                    else:
                        ended += 1
                        if said["problems"]:
                            problems = "\n".join(said["problems"])
                            failures.append(f"{said['ended']}: {problems}")
                status = process.wait()
            except TimeoutError:
                what = "hangs"
                os.killpg(process.pid, signal.SIGABRT)  # faulthandler says where it is
                status = process.wait()
            except BaseException:  # these tests are interrupted
                os.killpg(process.pid, signal.SIGKILL)
                raise
        if status == 0 and ended == len(cells):
            return []
        errors.seek(0)
        name = cells[begun - 1].name if begun > ended else "between two cells"
        text = errors.read().decode(errors="replace")
        failures.append(f"{name}: {what or f'ends the process with status {status}'}:\n{text}")
        return cells[max(begun, 1) :]


def run(cells: list[Cell]) -> None:
    """Run cells, and fail with all that was wrong with them."""
    assert cells
    faulthandler.cancel_dump_traceback_later()  # pytest's; the cells have guards of their own
    failures: list[str] = []
    # Interpreters that end are forked from one that has not used what multiprocessing keeps.
    for group in (
        [cell for cell in cells if cell.end != "exit"],
        [cell for cell in cells if cell.end == "exit"],
    ):
        while group:
            group = run_until_it_breaks(group, failures)
    if failures:
        text = "\n\n".join(failures)
        pytest.fail(f"{len(failures)} of {len(cells)} cells, PYPER_TEST_SEED={SEED}\n{text}")


@pytest.mark.parametrize(
    ("kind", "workers"),
    [
        (kind, workers)
        for kind in matrix.KINDS
        for workers in matrix.WORKERS
        if any(cell.workers == workers for cell in chosen(kind))
    ],
)
def test_every_end(kind: str, workers: int) -> None:
    run([cell for cell in chosen(kind) if cell.workers == workers])


def test_many_runs_in_many_threads() -> None:
    """Each thread begins runs and leaves them in every way, in an order of its own.

    Without a GIL they do so in parallel.  None has 64 workers: so many pipelines of threads inside
    of others, in each thread, would be more threads than a limited address space has room for.
    """
    kinds = ("thread", "async", "async.thread.async", "thread.async.thread")
    cells = [
        cell.name
        for kind in kinds
        for cell in matrix.cover(cell for cell in matrix.cells(kind) if cell.workers < 64)
        if cell.end not in ("ctrl-c", "exit")  # these concern the main thread alone
    ]
    faulthandler.cancel_dump_traceback_later()  # pytest's, which is for shorter tests
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("matrix_cells.py"), "--together", *cells],
        capture_output=True,
        text=True,
        timeout=3 * HANG,
        env=os.environ | {"PYPER_TEST_SEED": SEED},
    )
    assert done.returncode == 0, f"PYPER_TEST_SEED={SEED}\n{done.stderr}"
    ended = json.loads(done.stdout.splitlines()[-1])
    assert ended["problems"] == [], f"PYPER_TEST_SEED={SEED}"


def test_the_cover_has_every_pair() -> None:
    for kind in matrix.KINDS:
        every = matrix.cells(kind)
        pairs = collections.Counter(pair for cell in every for pair in cell._pairs())
        cover = matrix.cover(every)
        covered = {pair for cell in cover for pair in cell._pairs()}
        assert covered == set(pairs)
        assert len(cover) < len(every) / 8


def test_a_cell_that_fails_hangs_or_crashes_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The harness itself: a program that breaks in the ways that it must notice."""
    program = tmp_path / "matrix_cells.py"
    program.write_text(
        "import json, os, sys, time\n"
        "for i, name in enumerate(sys.stdin.read().split()):\n"
        "    print(json.dumps({'begins': name}), flush=True)\n"
        "    if 'break/' in name: os.abort()\n"
        "    if 'close/' in name: time.sleep(1000)\n"
        "    problems = ['bad'] if 'normal/' in name else []\n"
        "    print(json.dumps({'ended': name, 'problems': problems}), flush=True)\n"
    )
    monkeypatch.setitem(globals(), "__file__", str(tmp_path / "test_matrix.py"))
    monkeypatch.setitem(globals(), "HANG", 2)
    cells = [Cell("thread", "plain", 0, 1, end, "finite") for end in matrix.ENDS]
    with pytest.raises(pytest.fail.Exception) as caught:
        run(cells)
    said = str(caught.value)
    assert said.startswith("3 of 16 cells")
    assert "thread/plain/throttle=0/workers=1/normal/finite: bad" in said
    assert "workers=1/break/finite: ends the process with status -6" in said
    assert "workers=1/close/finite: hangs" in said
