"""Count the identifiers of a folder of Python sources with a pipeline of four tasks.

    list_files (branch) -> read (8 workers) -> analyse (a worker per core) -> total (join)

    python demo.py [PATH] [--plain | --processes] [--json]

PATH is a folder, searched with its subfolders for *.py, or a single file; without it, the
standard library of the interpreter that runs the demo.  ``--plain`` computes the same answer with
a plain loop, ``--processes`` analyses in processes instead of threads, ``--json`` prints the answer
for machines.  ``examples/c/demo.c`` is the same program in C and gives the same answer.

Files are user input.  They are read as bytes, whatever their encoding; an identifier is a match of
``[A-Za-z_][A-Za-z0-9_]*``.  What cannot be read is skipped and counted by kind: *missing* (the
target of a dangling link, say), *folder* (one that is called something.py), *special* (a FIFO, a
socket, a device: never waited for), *unreadable* (permissions, input errors, loops of links).
Links to folders are not followed; folders called site-packages, which hold what was installed and
not the library, are passed over.

Exit status: 0, or 1 if something was skipped and no file could be read, or 2 for wrong usage.
"""

from __future__ import annotations

import argparse
import errno
import json
import os
import re
import stat
import sys
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pyper import TaskStats, task

KINDS = ("missing", "folder", "special", "unreadable")
WORD = re.compile(rb"[A-Za-z_][A-Za-z0-9_]*")


@dataclass
class Source:
    """A file on its way: first its path, then what was in it or why it was skipped."""

    path: bytes
    data: bytes = b""
    skipped: str | None = None


@dataclass
class Report:
    """What is known about one file, or about many."""

    files: int = 0
    size: int = 0
    lines: int = 0
    words: Counter[bytes] = field(default_factory=Counter)
    skipped: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        """Add another report to this one."""
        self.files += other.files
        self.size += other.size
        self.lines += other.lines
        self.words.update(other.words)
        self.skipped.update(other.skipped)


def kind_of(error: OSError) -> str:
    """Say in one of our words why something could not be read."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR):
        return "missing"
    return "special" if error.errno == errno.ENXIO else "unreadable"


# ------------------------------------------------------------------------------ the four tasks


def list_files(root: str) -> Iterator[Source]:
    """Walk through a folder and yield what is called *.py; yield a single file as it is."""
    start = os.fsencode(root)
    if not Path(root).is_dir():
        yield Source(start)
        return
    folders = [start]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    if entry.name.endswith(b".py"):
                        yield Source(entry.path)
                    if entry.name != b"site-packages" and entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
        except OSError as error:
            yield Source(folder, skipped=kind_of(error))


def read(source: Source) -> Source:
    """Read the file, or find out why not.  Never waits for the other end of a FIFO."""
    if source.skipped:
        return source
    try:
        descriptor = os.open(source.path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISREG(mode):
                with open(descriptor, "rb", closefd=False) as file:
                    source.data = file.read()
            else:
                source.skipped = "folder" if stat.S_ISDIR(mode) else "special"
        finally:
            os.close(descriptor)
    except OSError as error:
        source.skipped = kind_of(error)
    return source


def analyse(source: Source) -> Report:
    """Count the bytes, lines and identifiers of one file."""
    if source.skipped:
        return Report(skipped=Counter({source.skipped: 1}))
    data = source.data
    return Report(1, len(data), data.count(b"\n"), Counter(WORD.findall(data)))


def total(reports: Iterable[Report]) -> Report:
    """Add up all reports."""
    answer = Report()
    for report in reports:
        answer.add(report)
    return answer


# ------------------------------------------------------------------------ running and printing


def run_pipeline(root: str, processes: bool) -> tuple[Report, tuple[TaskStats, ...]]:
    """Return the answer, and the counters of each task."""
    pipeline = (
        task(list_files, branch=True, throttle=256)
        | task(read, workers=8, throttle=64)  # at most 64 files wait in memory
        | task(analyse, workers=os.cpu_count() or 1, multiprocess=processes)
        | task(total, join=True)
    )
    with pipeline(root) as outputs:
        (answer,) = outputs
    return answer, outputs.stats()


def run_plain(root: str) -> Report:
    """Return the same answer, without a pipeline."""
    answer = Report()
    for source in list_files(root):
        answer.add(analyse(read(source)))
    return answer


def top(answer: Report) -> list[tuple[str, int]]:
    """The ten most frequent identifiers; equally frequent ones in the order of their bytes."""
    ranked = sorted(answer.words.items(), key=lambda item: (-item[1], item[0]))
    return [(word.decode("ascii"), count) for word, count in ranked[:10]]


def print_json(answer: Report) -> None:
    print(
        json.dumps(
            {
                "files": answer.files,
                "bytes": answer.size,
                "lines": answer.lines,
                "identifiers": answer.words.total(),
                "distinct": len(answer.words),
                "top": top(answer),
                "skipped": {kind: answer.skipped[kind] for kind in KINDS},
            }
        )
    )


def print_table(answer: Report, seconds: float, stats: tuple[TaskStats, ...]) -> None:
    identifiers = answer.words.total()
    for label, number in (
        ("files", answer.files),
        ("bytes", answer.size),
        ("lines", answer.lines),
        ("identifiers", identifiers),
        ("distinct", len(answer.words)),
    ):
        print(f"{label:<12} {number:>12}")
    skipped = [f"{answer.skipped[kind]} {kind}" for kind in KINDS if answer.skipped[kind]]
    print("skipped:", ", ".join(skipped) or "nothing")
    print()
    for word, count in top(answer):
        print(f"{word:<24.24} {count:>12}")
    print()
    rate = 1 / seconds if seconds else 0.0
    speed = f"{answer.files * rate:.0f} files/s, {identifiers * rate:.0f} identifiers/s"
    print(f"{seconds:.2f} s: {speed}")
    if stats:
        print("\ntask         workers       in      out    busy s starved s blocked s")
    for s in stats:
        print(
            f"{s.name:<12} {s.workers:>7} {s.items_in:>8} {s.items_out:>8}"
            f" {s.busy:>9.2f} {s.starved:>9.2f} {s.blocked:>9.2f}"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description="Count the identifiers of Python sources.")
    parser.add_argument("path", nargs="?", default=sysconfig.get_path("stdlib"))
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--plain", action="store_true", help="use a plain loop, not a pipeline")
    how.add_argument("--processes", action="store_true", help="analyse in processes")
    parser.add_argument("--json", action="store_true", help="print the answer for machines")
    options = parser.parse_args()

    stats: tuple[TaskStats, ...] = ()
    started = time.perf_counter()
    if options.plain:
        answer = run_plain(options.path)
    else:
        answer, stats = run_pipeline(options.path, options.processes)
    seconds = time.perf_counter() - started

    if options.json:
        print_json(answer)
    else:
        print_table(answer, seconds, stats)
    return 1 if answer.skipped.total() and not answer.files else 0


if __name__ == "__main__":
    sys.exit(main())
