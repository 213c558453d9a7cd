"""The table of all ends that a run can have: its cells, their names, and which of them are run.

A cell is one combination of the dimensions below.  `matrix_cells.py` runs a cell and judges it,
`test_matrix.py` runs the table.  Each cell may be run alone, by its name:

    python tests/python/matrix_cells.py fork/join/throttle=1/workers=2/killed/infinite

Every pipeline has three tasks.  The first produces, the middle one has the shape and the workers,
the last hands on what it gets; all three have the throttle.  A kind with dots names the workers of
the three tasks one by one; another one is the kind of all three.

Left out are the cells that make no sense:

- an infinite producer has no normal end;
- only a process can be killed: the middle task must have processes;
- only a loop can be closed: one task must be asynchronous.

Not every run of the tests runs all of them: ordinary() says which.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, fields

__all__ = ["KINDS", "Cell", "cells", "cover", "ordinary", "whole"]

KINDS = {
    kind: tuple(kind.split(".")) if "." in kind else (kind,) * 3
    for kind in (
        "thread",
        "async",
        "fork",
        "forkserver",
        "spawn",
        "async.thread.async",
        "thread.async.thread",
        "thread.fork.thread",
        "fork.thread.fork",
        "async.fork.thread",
        "fork.async.fork",
        "thread.spawn.async",
    )
}
PROCESSES = ("fork", "forkserver", "spawn")
NEW_INTERPRETERS = ("forkserver", "spawn")

SHAPES = ("plain", "branch", "join", "nested")
THROTTLES = (0, 1, 1000)
WORKERS = (1, 2, 64)
ENDS = (
    "normal",
    "break",  # after the first output
    "close",  # from another thread; in an event loop from another asyncio task
    "collected",  # the outputs are part of a cycle that the collector finds
    "fail-first",  # the first, the middle, the last task raises
    "fail-middle",
    "fail-last",
    "fail-finally",  # a generator's `finally` raises
    "fail-iterable",  # an iterable that a function has returned raises
    "fail-consumer",
    "system-exit",  # in a task
    "ctrl-c",  # at a random moment
    "killed",  # a worker
    "exit",  # of the interpreter, with the run alive
    "caller-ended",  # the thread that asked for the first output
    "loop-closed",  # with the run alive
)
PRODUCERS = ("finite", "infinite")


@dataclass(frozen=True)
class Cell:
    kind: str
    shape: str
    throttle: int
    workers: int
    end: str
    producer: str

    @property
    def name(self) -> str:
        return (
            f"{self.kind}/{self.shape}/throttle={self.throttle}/workers={self.workers}/"
            f"{self.end}/{self.producer}"
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of workers of the three tasks."""
        return KINDS[self.kind]

    @property
    def infinite(self) -> bool:
        return self.producer == "infinite"

    @property
    def is_async(self) -> bool:
        return "async" in self.kinds

    @property
    def method(self) -> str | None:
        """The start method of its processes."""
        return next((kind for kind in self.kinds if kind in PROCESSES), None)

    @property
    def nests_processes(self) -> bool:
        """Is the middle task a pipeline of processes, run by a thread for each item?"""
        inside = self.kinds[1] == "fork" and self.kinds[0] != "fork"
        return self.shape == "nested" and inside

    def _makes_sense(self) -> bool:
        if self.end == "normal" and self.infinite:
            return False
        if self.end == "killed" and self.kinds[1] not in PROCESSES:
            return False
        return self.end != "loop-closed" or self.is_async

    def _pairs(self) -> Iterator[object]:
        """The pairs of values of two dimensions that are in this cell."""
        values = [(field.name, getattr(self, field.name)) for field in fields(self)]
        yield from itertools.combinations(values, 2)


def cells(kind: str | None = None) -> list[Cell]:
    """All cells that make sense, or those of one kind."""
    kinds = KINDS if kind is None else (kind,)
    product = itertools.product(kinds, SHAPES, THROTTLES, WORKERS, ENDS, PRODUCERS)
    return [cell for cell in itertools.starmap(Cell, product) if cell._makes_sense()]


def cover(candidates: Iterable[Cell]) -> list[Cell]:
    """So many of the cells that each pair of values that is in any of them is in one of these.

    Always the same ones.
    """
    shuffled = list(candidates)
    random.Random(0).shuffle(shuffled)
    wanted = {pair for cell in shuffled for pair in cell._pairs()}
    chosen = []
    for least in (6, 4, 2, 1):  # those with many new pairs first: then fewer are needed
        for cell in shuffled:
            new = wanted.intersection(cell._pairs())
            if len(new) >= least:
                chosen.append(cell)
                wanted -= new
    return chosen


def whole(kind: str) -> list[Cell]:
    """The cells of a kind that the whole table has: all that make sense.

    But where a new interpreter must be started for each worker, 64 of them take seconds: of those
    cells it is the cover.
    """
    every = cells(kind)
    if not any(worker in NEW_INTERPRETERS for worker in KINDS[kind]):
        return every
    many = [cell for cell in every if cell.workers == 64]
    return [cell for cell in every if cell.workers < 64] + cover(many)


def ordinary(kind: str, *, product: Container[str]) -> list[Cell]:
    """The cells of a kind that every run of the tests runs.

    Of the kinds of `product` (threads, tasks, up to two forked processes) it is the product, of all
    others the cover.  Where a new interpreter must be started for each worker, 64 of them take
    seconds, and there is only one such cell here.  So do 64 pipelines of processes at once: there
    are none.
    """
    possible = [cell for cell in cells(kind) if not (cell.nests_processes and cell.workers == 64)]
    if kind in product and "." not in kind:
        many = [cell for cell in possible if cell.workers == 64 and kind in PROCESSES]
        return [cell for cell in possible if cell not in set(many)] + cover(many)
    if any(worker in NEW_INTERPRETERS for worker in KINDS[kind]):
        one = [cell for cell in possible if cell.workers == 64 and cell.end == "killed"][:1]
        return cover(cell for cell in possible if cell.workers < 64) + one
    return cover(possible)
