"""Soaks pyper for a chosen time and reports what it has survived.

usage: run.py [--seconds S] [--seed N] [PROGRAM ...]

Runs one soaker for each program, side by side: soak.c ("C"), and soak.py with the Python that runs
this script and with a free-threaded one if the machine has it (by their tags: "3.11", "3.13t").
What they do stands in soak.py.  They say what they are about to run, so this program knows the seed
of a run that crashes or hangs, and counts for them.  When they have ended, it looks for what they
may have left: processes, names in /dev/shm, and memory that grows and grows.

Prints a table of runs, outputs, faults and figures of memory.  The exit status is 1 if any promise
was broken; then the seed, and how to repeat it, are printed as well.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOAK = Path(__file__).with_name("soak.py")
sys.path.insert(0, str(ROOT / "scripts"))

from interpreters import interpreters  # noqa: E402

HANG = 400  # seconds without a word, when a run takes milliseconds
LEAVING = 30  # seconds for what ends by itself after its program

# How much more there may be in the last quarter of the time than in the second one.  Minima are
# compared, for what there is between two runs comes and goes.
#
# Free-threaded Python keeps pages of threads that have ended: a program of plain threads beside an
# asyncio loop whose runs fail goes from 25 to 120 MB there.  What is in use tells more: `blocks`.
GROWTH = {"rss_kb": 64 << 10, "blocks": 5000, "bytes": 256 << 10}
FREE_THREADED_RSS_KB = 256 << 10


class Soaker(threading.Thread):
    """One soaker at work, and what it has said."""

    def __init__(self, name: str, command: list[str], seed: int, seconds: float) -> None:
        super().__init__(name=name)
        self.command = command
        self.process = subprocess.Popen(
            [*command, str(seed), "--seconds", str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.last_run = "none"
        self.last_word = time.monotonic()
        self.hangs = self.stopped = False
        self.runs = self.items = 0
        self.ends: Counter[str] = Counter()
        self.in_time: Counter[str] = Counter()
        self.workers: Counter[str] = Counter()
        self.states: list[dict[str, int]] = []
        self.errors = ""
        self._complaints = threading.Thread(target=self._read_errors)

    def _read_errors(self) -> None:
        assert self.process.stderr
        self.errors = self.process.stderr.read()

    def run(self) -> None:
        """Read what it says until it ends."""
        assert self.process.stdout
        self._complaints.start()
        for line in self.process.stdout:
            self.last_word = time.monotonic()
            word, *words = line.split()
            if word == "run":
                self.last_run = line.rstrip()
            elif word == "ok":
                self._count(int(words[0]), words[1] == "1")
            elif word == "state":
                self.states.append({k: int(v) for k, v in (w.split("=") for w in words)})
        self.process.wait()
        if self.failed():
            end_session(self.process.pid)
            self._complaints.join()
            print(f"BROKEN: {self.name}", self.last_run, self.errors[-20_000:], sep="\n")
        self._complaints.join()

    def failed(self) -> bool:
        """Has it ended, badly, and not because it was told to?"""
        return not self.stopped and self.process.poll() not in (None, 0)

    def stop(self) -> None:
        """Another one has failed: enough."""
        if self.process.poll() is None:
            self.stopped = True
            end_session(self.process.pid)

    def _count(self, items: int, in_time: bool) -> None:
        self.runs += 1
        self.items += items
        _, _, end, *plan = self.last_run.split()
        self.ends[end] += 1
        self.in_time[end] += in_time
        for kind in ("thread", "process", "async"):
            self.workers[kind] += any(step.startswith(kind) for step in plan)

    def look(self) -> None:
        """End it if it says nothing any more; Python says then where each thread was."""
        if self.is_alive() and not self.hangs and time.monotonic() - self.last_word > HANG:
            self.hangs = True
            self.process.send_signal(signal.SIGABRT)

    def figure(self, name: str) -> tuple[int, int] | None:
        """The least there was in the second and in the last quarter of the time."""
        known = [state[name] for state in self.states if name in state]
        quarter = len(known) // 4
        if not quarter:
            return None
        return min(known[quarter : 2 * quarter]), min(known[-quarter:])

    def broken(self) -> list[str]:
        """What went wrong, in words."""
        found: list[str] = []
        if self.stopped:
            return found
        if self.hangs:
            found.append(f"hangs (nothing was heard for {HANG} s)")
        elif self.failed():
            found.append(f"ended with {self.process.returncode}")
        for name, most in GROWTH.items():
            if name == "rss_kb" and self.name.endswith("t"):
                most = FREE_THREADED_RSS_KB
            before_after = self.figure(name)
            if before_after and before_after[1] - before_after[0] > most:
                found.append(f"{name} grows from {before_after[0]} to {before_after[1]}")
        left = wait_until_empty(lambda: processes_of(self.process.pid))
        if left:
            found.append(f"leaves processes: {left}")
        return found

    def again(self) -> str:
        """How its last run can be had again."""
        seed = self.last_run.split()[1] if " " in self.last_run else "?"
        return f"{' '.join(self.command)} {seed} --times 1000"


def end_session(session: int) -> None:
    """End what a soaker that has failed has left behind."""
    for process in processes_of(session):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def processes_of(session: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                if os.getsid(int(entry.name)) == session:
                    found.append(int(entry.name))
            except ProcessLookupError:
                continue
    return found


def names_in_shared_memory() -> set[str]:
    return {entry.name for entry in Path("/dev/shm").iterdir()}


def wait_until_empty(ask: object) -> object:
    """Ask until the answer is empty, or for so long that it will not be; returns the answer."""
    deadline = time.monotonic() + LEAVING
    while (answer := ask()) and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.1)
    return answer


def programs() -> dict[str, list[str]]:
    """The soakers that this machine can run, by name."""
    found = {"C": [str(ROOT / "build" / "tests" / "soak" / "soak")]}
    tags = interpreters()
    main = next(iter(tags))
    found[main] = [sys.executable, str(SOAK)]
    for tag, path in tags.items():
        if tag.endswith("t") and tag != main:
            folder = ROOT / "build" / "venvs" / tag
            update = [path, ROOT / "scripts" / "environment.py", folder, "build", "--package"]
            subprocess.run(update, cwd=ROOT, check=True)
            found[tag] = [str(folder / "bin" / "python"), str(SOAK)]
            break
    return found


def table(soakers: list[Soaker]) -> Iterable[list[str]]:
    """The rows of the report."""
    yield ["", *(soaker.name for soaker in soakers)]
    yield ["runs", *(f"{s.runs}" for s in soakers)]
    yield ["outputs, all checked", *(f"{s.items}" for s in soakers)]
    for kind in ("thread", "process", "async"):
        yield [f"runs with {kind} workers", *(f"{s.workers[kind]}" for s in soakers)]
    ends = sorted({end for s in soakers for end in s.ends})
    yield ["ends, all as promised:", *("" for _ in soakers)]
    for end in ends:
        row = []
        for s in soakers:
            late = s.ends[end] - s.in_time[end]
            text = f"{s.in_time[end]} (+{late})" if late else f"{s.in_time[end]}"
            row.append(text if s.ends[end] else "-")
        yield [f"  {end.replace('_', ' ')}", *row]
    for name in GROWTH:
        figures = [s.figure(name) for s in soakers]
        if any(figures):
            yield [
                f"{name}, 2nd and last quarter",
                *(f"{f[0]} {f[1]}" if f else "-" for f in figures),
            ]


def main() -> int:
    parser = argparse.ArgumentParser(description="Soaks pyper.")
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=time.time_ns() // 1_000_000 % 1_000_000_000)
    parser.add_argument("programs", nargs="*")
    options = parser.parse_args()
    known = programs()
    unknown = [name for name in options.programs if name not in known]
    if unknown:
        sys.exit(f"soak: no such program: {' '.join(unknown)}; there are: {' '.join(known)}")
    names = options.programs or list(known)

    shared_before = names_in_shared_memory()
    seconds = options.seconds
    print(f"soak: {', '.join(names)} for {seconds:.0f} s from seed {options.seed}", flush=True)
    soakers = [Soaker(name, known[name], options.seed, seconds) for name in names]
    for soaker in soakers:
        soaker.start()
    while any(soaker.is_alive() for soaker in soakers):
        for soaker in soakers:
            soaker.look()
            soaker.join(1)
        if any(soaker.failed() for soaker in soakers):
            for soaker in soakers:
                soaker.stop()

    rows = list(table(soakers))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for first, *others in rows:
        cells = [f"{cell:>{width}}" for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([f"{first:<{widths[0]}}", *cells]).rstrip())

    failed = False
    for soaker in soakers:
        for words in soaker.broken():
            failed = True
            print(f"BROKEN: {soaker.name} {words}; again: {soaker.again()}")
    left = wait_until_empty(lambda: names_in_shared_memory() - shared_before)
    if left:
        failed = True
        print(f"BROKEN: left in /dev/shm: {left}")
    if not failed:
        print("after each run nothing was left: threads, processes, descriptors, mappings, items")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
