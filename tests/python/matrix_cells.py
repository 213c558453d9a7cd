"""Runs cells of the table of ends, and judges them.

usage: matrix_cells.py [--hunt | --together] [NAME ...]

Without names they are read from standard input, one a line.  Says for each cell, as a line of JSON,
that it begins, and then how it ended: how long it took and what was wrong.  All cells run in this
one process, one after another; only for the end of the interpreter each has a process of its own,
forked from this one.  PYPER_TEST_SEED chooses the random moments.

With --hunt each cell runs many times, and memory that grows each time is what is wrong.  With
--together several threads run all of the cells at once, each in an order of its own.

The functions of process tasks stand at the top level of this module: a worker finds them by name.
"""

from __future__ import annotations

import array
import asyncio
import contextlib
import ctypes
import faulthandler
import functools
import gc
import itertools
import json
import logging
import multiprocessing
import os
import queue
import random
import select
import signal
import sys
import tempfile
import threading
import time
import traceback
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matrix import PROCESSES, Cell
from matrix import cells as all_cells
from pyper import AsyncPipeline, Cancelled, Pipeline, WorkerDied, task
from pyper._threads import WorkerThread

PATIENCE = 20  # seconds; only a cell that fails waits that long
GRACE = 0.2  # seconds until a process that is to leave is killed (PYPER_GRACE_MS)
SEED = os.environ.get("PYPER_TEST_SEED", "0")
# What a fork server imports once, not each of its workers: a quarter of the time of their cells.
PRELOADED = ["asyncio", "ctypes", "logging", "tempfile", "pyper._processes"]


class Sentinel:
    """Part of every item, so that its references count the items; itself in every process."""

    def __reduce__(self) -> str:
        return "SENTINEL"


SENTINEL = Sentinel()
# Where functions find it: Python 3.15 stops counting the references of what they find as a global.
HELD = [SENTINEL]
Item = tuple[Sentinel, int, int]  # the producer's count, and the branch's


class Failure(Exception):
    """What the functions raise."""


class Late(Exception):
    """A process was killed before it got so far as to fail: the machine had no time for it."""


# ------------------------------------------------------------------- what a cell's tasks do


def length(cell: Cell) -> int:
    """How many items a finite producer has: more than workers, if a call costs little."""
    if cell.shape != "nested":
        return 100
    return 6 if cell.nests_processes else 20


def fail_at(cell: Cell) -> int:
    return length(cell) // 2


def dies_itself(cell: Cell) -> bool:
    """Does the worker kill itself?  Another one is killed by the caller, whatever it is doing."""
    return cell.end == "killed" and (not cell.infinite or cell.shape == "nested")


def check(cell: Cell, place: str, item: Item) -> None:
    """What goes wrong at this item in this task."""
    if item[1] != fail_at(cell) or item[2] != 0:
        return
    if cell.end == f"fail-{place}":
        raise Failure(place)
    if place == "middle" and cell.end == "system-exit":
        raise SystemExit(7)
    if place == "middle" and dies_itself(cell):
        os.kill(os.getpid(), signal.SIGKILL)


def count(cell: Cell) -> Iterator[int]:
    """The numbers of the items; endless ones that nothing bounds must not fill the memory."""
    if not cell.infinite:
        yield from range(length(cell))
        return
    for i in itertools.count():
        if cell.throttle != 1:
            time.sleep(0.001 if i > 10_000 else 0)
        yield i


def produce(cell: Cell) -> Iterator[Item]:
    try:
        for i in count(cell):
            check(cell, "first", (HELD[0], i, 0))
            yield HELD[0], i, 0
    finally:
        if cell.end == "fail-finally":
            raise Failure("finally")


async def aproduce(cell: Cell) -> AsyncIterator[Item]:
    try:
        for i in count(cell):
            check(cell, "first", (HELD[0], i, 0))
            yield HELD[0], i, 0
            if i % 8 == 0:
                await asyncio.sleep(0)
    finally:
        if cell.end == "fail-finally":
            raise Failure("finally")


class Broken:
    """An iterable whose iteration raises in the middle."""

    def __init__(self, items: Iterable[Item], at: int) -> None:
        self.items = iter(items)
        self.left = at

    def __iter__(self) -> Broken:
        return self

    def __next__(self) -> Item:
        if self.left == 0:
            raise Failure("iterable")
        self.left -= 1
        return next(self.items)

    def __aiter__(self) -> Broken:
        return self

    async def __anext__(self) -> Item:
        return next(self)


def produce_broken(cell: Cell) -> Broken:
    return Broken(((HELD[0], i, 0) for i in count(cell)), fail_at(cell))


async def aproduce_broken(cell: Cell) -> Broken:
    return produce_broken(cell)


def work(cell: Cell, item: Item) -> Item:
    check(cell, "middle", item)
    return item


async def awork(cell: Cell, item: Item) -> Item:
    check(cell, "middle", item)
    if item[1] % 8 == 0:
        await asyncio.sleep(0)
    return item


def both(item: Item) -> tuple[Item, Item]:
    return (item[0], item[1], 0), (item[0], item[1], 1)


def fan_out(cell: Cell, item: Item) -> Iterable[Item]:
    check(cell, "middle", item)
    if cell.end == "fail-iterable" and item[1] == fail_at(cell):
        return Broken(both(item), 1)
    return both(item)


async def afan_out(cell: Cell, item: Item) -> AsyncIterator[Item]:
    for one in fan_out(cell, item):
        yield one
        await asyncio.sleep(0)


def stream(cell: Cell, items: Iterable[Item]) -> Iterator[Item]:
    for item in items:
        check(cell, "middle", item)
        yield item


async def astream(cell: Cell, items: AsyncIterator[Item]) -> AsyncIterator[Item]:
    async for item in items:
        check(cell, "middle", item)
        yield item


def double(cell: Cell, item: Item) -> Iterable[Item]:
    return both(item)


async def adouble(cell: Cell, item: Item) -> AsyncIterator[Item]:
    for one in both(item):
        yield one


def finish(cell: Cell, item: Item) -> Item:
    check(cell, "last", item)
    return item


async def afinish(cell: Cell, item: Item) -> Item:
    check(cell, "last", item)
    return item


def build(cell: Cell) -> tuple[Pipeline[..., Any], list[weakref.ref[Any]]]:
    """The pipeline of a cell, and weak references to its functions, which nobody else has."""
    functions: list[weakref.ref[Any]] = []

    def make(
        kind: str, function: Callable[..., Any], other: Callable[..., Any], **options: Any
    ) -> Pipeline[..., Any]:
        func = functools.partial(other if kind == "async" else function, cell)
        functions.append(weakref.ref(func))
        processes = kind not in ("thread", "async")
        return task(func, throttle=cell.throttle, multiprocess=processes, **options)

    first, kind, last = cell.kinds
    broken_branch = cell.end == "fail-iterable" and cell.shape == "branch"
    if cell.end == "fail-iterable" and not broken_branch:
        source = make(first, produce_broken, aproduce_broken, branch=True)
    else:
        source = make(first, produce, aproduce, branch=True)
    middle: Pipeline[..., Any]
    if cell.shape == "plain":
        middle = make(kind, work, awork, workers=cell.workers)
    elif cell.shape == "branch":
        middle = make(kind, fan_out, afan_out, branch=True, workers=cell.workers)
    elif cell.shape == "join":
        middle = make(kind, stream, astream, branch=True, join=True, workers=cell.workers)
    else:
        outer_processes = kind not in ("thread", "async") and not cell.nests_processes
        inner_kind = "thread" if outer_processes else kind
        inner = make(inner_kind, double, adouble, branch=True) | make(inner_kind, work, awork)
        middle = task(
            inner, branch=True, workers=cell.workers, throttle=cell.throttle,
            multiprocess=outer_processes,
        )  # fmt: skip
    return source | middle | make(last, finish, afinish), functions


# -------------------------------------------------------------------------- how it is left

# Each end is a function that takes the outputs into a list; what it raises is the run's error.


def nothing_is_alive(outputs: Any) -> None:
    alive = [stats.alive for stats in outputs.stats()]
    assert alive == [0, 0, 0], f"workers are alive after close(): {alive}"


INTERRUPTS: queue.SimpleQueue[bool] = queue.SimpleQueue()  # True: one is wanted


def interrupt_later(cell: Cell) -> None:
    """Interrupt the main thread at a random moment, each time that this is asked for."""
    while INTERRUPTS.get():
        time.sleep(random.Random(f"{SEED} {cell.name}").random() * 0.005)
        os.kill(os.getpid(), signal.SIGINT)


def kill_somebody(cell: Cell) -> None:
    """Kill one of the run's processes."""
    processes = [p for p in multiprocessing.active_children() if p.pid not in SERVERS]
    victim = random.Random(f"{SEED} {cell.name}").choice(processes)
    os.kill(victim.pid or 0, signal.SIGKILL)


def look_whether_late(cell: Cell, began: float) -> None:
    """Closing did not tell that the producer fails: then it must be a process, and out of time."""
    if cell.kinds[0] in PROCESSES and time.monotonic() - began >= GRACE:
        raise Late


def leave(cell: Cell, pipeline: Pipeline[..., Any], got: list[Item]) -> None:
    outputs: Any
    if cell.end == "break":
        for item in pipeline():
            got.append(item)
            break
    elif cell.end == "close":
        outputs = pipeline()
        got.append(next(outputs))
        closer = threading.Thread(target=outputs.close)
        closer.start()
        try:
            got.extend(outputs)
        finally:
            closer.join()
            nothing_is_alive(outputs)
    elif cell.end == "collected":
        box = [pipeline()]
        got.append(next(box[0]))
        box.append(box)  # type: ignore[arg-type]
        del box
        gc.collect()
    elif cell.end == "fail-finally" and cell.infinite:
        outputs = pipeline()
        got.append(next(outputs))
        began = time.monotonic()
        outputs.close()
        look_whether_late(cell, began)
    elif cell.end == "fail-consumer":

        def consumer(outputs: Iterable[Item]) -> None:
            for item in outputs:
                got.append(item)
                raise Failure("consumer")

        (pipeline > consumer)()
    elif cell.end == "ctrl-c":
        interrupter = threading.Thread(target=interrupt_later, args=(cell,))
        interrupter.start()
        try:
            INTERRUPTS.put(True)
            while True:
                taken: list[Item] = []
                for item in pipeline():
                    taken.append(item)
                verify(cell, taken, complete=True)
        finally:
            INTERRUPTS.put(False)
            interrupter.join()
    elif cell.end == "killed" and not dies_itself(cell):
        outputs = pipeline()
        got.append(next(outputs))
        kill_somebody(cell)
        got.extend(outputs)
    elif cell.end == "caller-ended":
        box = []

        def begin() -> None:
            box.append(pipeline())
            got.append(next(box[0]))

        caller = threading.Thread(target=begin)
        caller.start()
        caller.join()
        with box.pop() as outputs:
            got.extend(itertools.islice(outputs, 10) if cell.infinite else outputs)
    else:
        got.extend(pipeline())


async def atake(outputs: AsyncIterator[Item], got: list[Item], most: int | None = None) -> None:
    async for item in outputs:
        got.append(item)
        if most is not None and len(got) >= most:
            break


async def aleave(cell: Cell, pipeline: AsyncPipeline[..., Any], got: list[Item]) -> None:
    if cell.end == "break":
        await atake(pipeline(), got, 1)
    elif cell.end == "close":
        outputs = pipeline()
        got.append(await anext(outputs))
        closer = asyncio.create_task(outputs.aclose())  # type: ignore[arg-type]
        try:
            await atake(outputs, got)
        finally:
            await closer
            nothing_is_alive(outputs)
    elif cell.end == "collected":
        box: list[Any] = [pipeline()]
        got.append(await anext(box[0]))
        box.append(box)
        del box
        gc.collect()
    elif cell.end == "fail-finally" and cell.infinite:
        outputs = pipeline()
        got.append(await anext(outputs))
        began = time.monotonic()
        await outputs.aclose()
        look_whether_late(cell, began)
    elif cell.end == "fail-consumer":

        async def consumer(outputs: AsyncIterator[Item]) -> None:
            async for item in outputs:
                got.append(item)
                raise Failure("consumer")

        await (pipeline > consumer)()
    elif cell.end == "ctrl-c":
        interrupter = threading.Thread(target=interrupt_later, args=(cell,))
        interrupter.start()
        try:
            INTERRUPTS.put(True)
            while True:
                taken: list[Item] = []
                await atake(pipeline(), taken)
                verify(cell, taken, complete=True)
                await asyncio.sleep(0)
        finally:
            INTERRUPTS.put(False)
            interrupter.join()
    elif cell.end == "killed" and not dies_itself(cell):
        outputs = pipeline()
        got.append(await anext(outputs))
        kill_somebody(cell)
        await atake(outputs, got)
    else:
        await atake(pipeline(), got)


def leave_loop(cell: Cell, pipeline: AsyncPipeline[..., Any], got: list[Item]) -> None:
    """Leave a run on an event loop of its own, in which nothing of it may be left."""
    if cell.end == "loop-closed":
        loop = asyncio.new_event_loop()
        outputs = pipeline()
        got.append(loop.run_until_complete(anext(outputs)))
        loop.close()
        return
    with asyncio.Runner() as runner:
        if cell.end == "caller-ended":
            loop = runner.get_loop()
            outputs = pipeline()

            def begin() -> None:
                got.append(loop.run_until_complete(anext(outputs)))

            caller = threading.Thread(target=begin)
            caller.start()
            caller.join()
            runner.run(atake(outputs, got, 10 if cell.infinite else None))
            runner.run(outputs.aclose())
        else:
            try:
                runner.run(aleave(cell, pipeline, got))
            except Exception as error:
                traceback.clear_frames(error.__traceback__)  # they may have the outputs
                raise
            finally:
                if cell.end != "ctrl-c":  # there the runner has cancelled all that is left
                    runner.run(no_asyncio_task_is_left())


async def no_asyncio_task_is_left() -> None:
    deadline = time.monotonic() + PATIENCE
    gc.collect()
    while others := asyncio.all_tasks() - {asyncio.current_task()}:
        assert time.monotonic() < deadline, f"asyncio tasks are left: {others}"
        await asyncio.sleep(0)


LEFT_ALIVE: list[object] = []


def leave_alive(cell: Cell) -> None:
    """Start a run, and keep it in a global."""
    pipeline, _ = build(cell)
    outputs: Any = pipeline()
    if isinstance(pipeline, AsyncPipeline):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(anext(outputs))
        LEFT_ALIVE.append(loop)
    else:
        next(outputs)
    LEFT_ALIVE.append(outputs)


# ---------------------------------------------------------------------------------- judging


def expected(cell: Cell) -> Iterator[tuple[int, int]]:
    """The outputs of a run that goes on to its end, in the order of a lone worker."""
    numbers: Iterable[int] = itertools.count() if cell.infinite else range(length(cell))
    branches = 2 if cell.shape in ("branch", "nested") else 1
    return ((i, branch) for i in numbers for branch in range(branches))


def verify(cell: Cell, got: list[Item], *, complete: bool) -> None:
    """No output is lost or comes twice, and a lone worker keeps the order."""
    assert all(sentinel is HELD[0] for sentinel, _, _ in got)
    outputs = [(i, branch) for _, i, branch in got]
    assert len(set(outputs)) == len(outputs), f"an output came twice: {outputs}"
    if cell.workers == 1:
        first = list(itertools.islice(expected(cell), len(outputs)))
        assert outputs == first, f"an output is lost, or not in its place: {outputs}"
    if complete:
        wanted = list(expected(cell))
        lost = set(wanted) - set(outputs)
        assert sorted(outputs) == wanted, f"outputs are lost: {lost}"
    elif not cell.infinite:
        assert set(outputs) <= set(expected(cell))


def judge(cell: Cell, got: list[Item], error: BaseException | None) -> None:
    complete = cell.end in ("normal", "caller-ended") and not cell.infinite
    verify(cell, got, complete=complete)
    if cell.end in ("break", "collected", "fail-consumer", "loop-closed"):
        assert len(got) == 1
    if cell.end == "caller-ended" and cell.infinite:
        assert len(got) >= 10
    if cell.end == "fail-last" and cell.workers == 1:
        before = itertools.takewhile(lambda one: one[0] < fail_at(cell), expected(cell))
        assert len(got) == len(list(before)), "what came before the failure is not there"

    notes = getattr(error, "__notes__", [])
    if cell.end in ("normal", "break", "collected", "caller-ended", "loop-closed"):
        assert error is None, repr(error)
    elif cell.end == "close":
        assert error is None or type(error) is Cancelled, repr(error)
    elif cell.end == "ctrl-c":
        assert type(error) is KeyboardInterrupt, repr(error)
        assert notes == []
    elif cell.end == "killed":
        assert type(error) is WorkerDied, repr(error)
        assert "was killed by signal 9" in str(error)
        assert "task '" in str(error)
    elif cell.end == "fail-consumer":
        assert type(error) is Failure, repr(error)
        assert error.args == ("consumer",)
        assert notes == []
    else:
        place = {"first": 1, "finally": 1, "last": 3, "middle": 2, "system-exit": 2}
        what = cell.end.removeprefix("fail-")
        at = place.get(what, 2 if cell.shape == "branch" else 1)
        if cell.end == "system-exit":
            assert type(error) is SystemExit, repr(error)
            assert error.code == 7
        elif type(error) is Late:
            return
        else:
            assert type(error) is Failure, repr(error)
            assert error.args == (what,)
        if cell.shape == "nested" and at == 2:
            assert notes[0].endswith("(2 of 2)"), notes
            notes = notes[1:]
        assert notes[0].startswith("in task '"), notes
        assert notes[0].endswith(f"({at} of 3)"), notes


# ---------------------------------------------------------------------------- what is left

SERVERS: set[int] = set()


def children() -> set[int]:
    """The processes whose parent is this one, but those that multiprocessing keeps.

    What a worker has left behind becomes ours when the worker ends; if that is dead, it is buried.
    Not while there are workers, for somebody may just be starting or burying a process.
    """
    workers = any(isinstance(thread, WorkerThread) for thread in threading.enumerate())
    found = set()
    for folder in os.scandir("/proc"):
        if not folder.name.isdigit():
            continue
        try:
            state, parent = Path(folder.path, "stat").read_text().rpartition(")")[2].split()[:2]
        except OSError:  # it has just ended
            continue
        if int(parent) == os.getpid():
            found.add((int(folder.name), state))
    known = {p.pid for p in multiprocessing.active_children()}
    for pid, state in list(found):
        if state == "Z" and pid not in known and not workers:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            found.discard((pid, state))
    return {pid for pid, _ in found} - SERVERS


def open_files() -> set[str]:
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} -> {entry.readlink()}")
    return {name for name in found if "/proc/" not in name}


@dataclass
class Snapshot:
    """What this process has."""

    threads: set[threading.Thread]
    system_threads: int
    files: set[str]
    children: set[int]
    mappings: int
    references: int

    @staticmethod
    def take(cell: Cell) -> Snapshot:
        return Snapshot(
            threads=set(threading.enumerate()),
            system_threads=Path("/proc/self/task").stat().st_nlink - 2,
            files=open_files(),
            children=children() if cell.method else set(),
            mappings=Path("/proc/self/maps").read_text().count("memfd:pyper") if cell.method else 0,
            references=sys.getrefcount(HELD[0]),
        )

    def exceeded_by(self, now: Snapshot) -> list[str]:
        """What is there now that was not before."""
        problems = []
        for what in ("threads", "files", "children"):
            if more := getattr(now, what) - getattr(self, what):
                problems.append(f"{what} are left: {more}")
        for what in ("system_threads", "mappings", "references"):
            if getattr(now, what) > getattr(self, what):
                problems.append(
                    f"{what} are left: {getattr(now, what)}, before {getattr(self, what)}"
                )
        return problems


def wait_until_nothing_is_left(
    cell: Cell, before: Snapshot, functions: list[weakref.ref[Any]]
) -> list[str]:
    """Wait for all that the cell has begun to go; what has not gone."""
    deadline = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        problems = before.exceeded_by(Snapshot.take(cell))
        problems += [f"a function is left: {ref()}" for ref in functions if ref() is not None]
        if not problems or time.monotonic() > deadline:
            return problems
        time.sleep(0.0005)


# ---------------------------------------------------------------------------------- a cell

SAID: list[str] = []


class Listener(logging.Handler):
    """Notes what asyncio complains of."""

    def emit(self, record: logging.LogRecord) -> None:
        SAID.append(f"asyncio says: {record.getMessage()}")


def hear(args: sys.UnraisableHookArgs) -> None:
    """Note what nobody could raise, but for a Ctrl-C in a callback of Python's own: repeat that."""
    module = getattr(args.object, "__module__", None)
    if args.exc_type is KeyboardInterrupt and module in ("threading", "_weakrefset"):
        INTERRUPTS.put(True)
    else:
        SAID.append(f"unraisable: {args.exc_value!r}, {args.object}")


def listen() -> None:
    """Note what Python reports because nobody could raise it."""
    logging.getLogger("asyncio").addHandler(Listener())
    sys.unraisablehook = hear
    threading.excepthook = lambda args: SAID.append(f"{args.thread} raised {args.exc_value!r}")


def run_and_judge(cell: Cell) -> list[weakref.ref[Any]]:
    got: list[Item] = []
    error: BaseException | None = None
    pipeline, functions = build(cell)
    try:
        if isinstance(pipeline, AsyncPipeline):
            leave_loop(cell, pipeline, got)
        else:
            leave(cell, pipeline, got)
    except AssertionError:
        raise
    except BaseException as caught:
        error = caught
    try:
        judge(cell, got, error)
    except AssertionError as problem:
        raise problem from error
    return functions


def run_in_child(cell: Cell) -> list[str]:
    """Let an interpreter end in which the run of the cell is alive; what was wrong."""
    with tempfile.TemporaryFile() as printed:
        pid = os.fork()
        if pid == 0:
            os.dup2(printed.fileno(), 1)
            os.dup2(printed.fileno(), 2)
            leave_alive(cell)
            sys.exit(0)  # ends as every program ends
        pidfd = os.pidfd_open(pid)
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        problems = []
        if not poll.poll(3 * PATIENCE * 1000):  # it may start a fork server of its own
            problems.append("the program does not end")
            os.kill(pid, signal.SIGABRT)
        _, status = os.waitpid(pid, 0)
        os.close(pidfd)
        printed.seek(0)
        if status != 0:
            problems.append(f"status {status}")
        if text := printed.read().decode():
            problems.append(text)
        return problems


def run(cell: Cell) -> list[str]:
    """Run a cell; what was wrong."""
    if cell.method:
        multiprocessing.set_start_method(cell.method, force=True)
    gc.collect()
    before = Snapshot.take(cell)
    problems: list[str] = []
    functions: list[weakref.ref[Any]] = []
    if cell.end == "exit":
        problems += run_in_child(cell)
    else:
        try:
            functions = run_and_judge(cell)
        except Exception:
            problems.append(traceback.format_exc())
    problems += wait_until_nothing_is_left(cell, before, functions)
    problems += SAID
    SAID.clear()
    return problems


MEASURES = ("blocks", "objects", "bytes")


def memory() -> tuple[int, int, int]:
    """What is in use: Python's blocks and objects, and the bytes that malloc() has handed out."""
    for _ in range(3):
        gc.collect()
    info = LIBC.mallinfo2()
    return sys.getallocatedblocks(), len(gc.get_objects()), info.uordblks + info.hblkhd


INTERVALS = 12
WARM_UP = 200  # runs before the first cell that is hunted


def hunt(cell: Cell) -> list[str]:
    """Run a cell many times; what was wrong, and what has grown all the time.

    Some of Python's caches take a block with nearly every run, for hundreds of runs: what has grown
    is looked at once more after those.  A leak still grows then.
    """
    problems = look_for_growth(cell)
    if problems and all(" leak: " in problem for problem in problems):
        for _ in range(WARM_UP // 10 if cell.method else 5 * WARM_UP):
            if wrong := run(cell):
                return wrong
        problems = look_for_growth(cell)
    return problems


def look_for_growth(cell: Cell) -> list[str]:
    """Run a cell some times; what was wrong, and what has grown all the time.

    Caches fill more and more slowly, and now and then one grows, or gives back what it takes next
    time; a leak grows with each run.  So all of the later intervals but one must have grown.  Where
    processes start, Python's caches take so many runs to fill that its blocks tell nothing.
    """
    repeat = 3 if cell.method else 12
    least = {"objects": 0.5, "bytes": 64}  # for each run
    if not cell.method:
        least["blocks"] = 0.5
    seen = [array.array("q", [0] * (INTERVALS + 1)) for _ in MEASURES]  # to grow by nothing itself
    for i in range(INTERVALS + 1):
        for _ in range(repeat):
            if problems := run(cell):
                return problems
        for numbers, number in zip(seen, memory(), strict=True):
            numbers[i] = number
    problems = []
    for what, numbers in zip(MEASURES, seen, strict=True):
        grown = [after - before for before, after in itertools.pairwise(numbers)]
        if what in least and sorted(grown[INTERVALS // 2 :])[1] >= least[what] * repeat:
            problems.append(f"{what} leak: in {repeat} runs each, {grown}")
    return problems


def run_together(cells: list[Cell]) -> list[str]:
    """Run all cells in several threads at once; what was wrong."""
    threads = 6
    problems: list[str] = []
    functions: list[weakref.ref[Any]] = []
    barrier = threading.Barrier(threads)

    def work(number: int) -> None:
        order = list(cells)
        random.Random(f"{SEED} {number}").shuffle(order)
        barrier.wait(PATIENCE)
        for cell in order:
            try:
                functions.extend(run_and_judge(cell))
            except Exception:
                problems.append(f"{cell.name}: {traceback.format_exc()}")

    before = Snapshot.take(cells[0])
    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return problems + wait_until_nothing_is_left(cells[0], before, functions) + SAID


class MallInfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks",
            "fordblks", "keepcost",
        )
    ]  # fmt: skip


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.mallinfo2.restype = MallInfo


def become_subreaper() -> None:
    """Let orphaned descendants become children of this process, where they are seen."""
    pr_set_child_subreaper = 36
    if LIBC.prctl(pr_set_child_subreaper, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def start_servers(cells: list[Cell]) -> None:
    """Start what multiprocessing keeps, if a cell needs it, so that it is not taken for left.

    An interpreter that ends has its own: it was forked, and may not use ours.
    """
    if not any(cell.method in ("forkserver", "spawn") and cell.end != "exit" for cell in cells):
        return
    from multiprocessing import forkserver, resource_tracker

    assert not any(cell.end == "exit" for cell in cells)
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    SERVERS.update(children())


def main() -> None:
    faulthandler.enable()
    warnings.filterwarnings("error")
    # We fork beside threads; Python says so from 3.12 on.
    warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    options = [word for word in sys.argv[1:] if word.startswith("--")]
    names = sys.argv[1 + len(options) :] or sys.stdin.read().split()
    by_name = {cell.name: cell for cell in all_cells()}
    cells = [by_name[name] for name in names]
    if any(cell.method for cell in cells):
        import pyper._processes  # noqa: F401 - an import that Ctrl-C ends leaves its file open
    multiprocessing.set_forkserver_preload(PRELOADED)
    become_subreaper()
    start_servers(cells)
    listen()
    gc.collect()
    gc.freeze()
    if options == ["--together"]:
        report("together", lambda: run_together(cells))
        return
    if options == ["--hunt"] and not cells[0].method:
        for _ in range(WARM_UP):
            run(cells[0])
    for cell in cells:
        report(cell.name, functools.partial(hunt if options == ["--hunt"] else run, cell))


def report(name: str, work: Callable[[], list[str]]) -> None:
    """Say that it begins, do it, and say how it ended."""
    print(json.dumps({"begins": name}), flush=True)
    start = time.monotonic()
    problems = work()
    seconds = round(time.monotonic() - start, 6)
    print(json.dumps({"ended": name, "seconds": seconds, "problems": problems}), flush=True)


if __name__ == "__main__":
    import matrix_cells

    matrix_cells.main()
