"""One soaker in Python: random pipelines with faults, each checked against all promises.

usage: soak.py SEED [--seconds S | --times N]

A seed makes a plan: a source (so many numbers, or endless), a chain of tasks (threads, processes,
asyncio tasks; plain, branching, joining, running a pipeline of their own) with random options, and
an end, which most often is a fault.  The plan is run and everything is checked:

  outputs   A number n becomes 4n, 4n + 1, ... in each task, so each output is unique, tells where
            it comes from, and the outputs are in order exactly if they ascend.  A run that ends by
            itself gives what a plain loop gives; any other a part of that, and nothing twice.
  end       the error that this end promises, and no other
  leaks     no thread, process, descriptor, mapping of shared memory or item is left

With --seconds the seeds SEED, SEED + 1, ... are run until the time is over; with --times one seed
is run so often.  run.py starts this program and reads what it prints (soak.c speaks alike):

  run SEED END PLAN    before a run
  ok ITEMS HIT         after it: so many outputs; was the fault in time (0: the run was quicker)
  state NAME=VALUE ... now and then, between two runs

The first broken promise ends the program with a traceback and exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import faulthandler
import gc
import itertools
import multiprocessing
import os
import random
import resource
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pyper
from pyper import task

PATIENCE = 240  # seconds; only a promise that is broken takes so long, even beside many others
ENDLESS = 1 << 40


class Broken(Exception):
    """A promise is broken."""


class Planned(Exception):
    """What a task or a consumer raises because the plan says so."""


def check(condition: object, *words: object) -> None:
    """Like assert, but never left out."""
    if not condition:
        raise Broken(" ".join(str(word) for word in words))


# ------------------------------------------------------------------------------ numbers and items


class Item:
    """A number in an object, of which the garbage collector knows how many there are."""

    def __init__(self, number: int) -> None:
        self.number = number


def number_of(item: Any) -> int:
    """The number that an item stands for."""
    if isinstance(item, Item):
        return item.number
    if isinstance(item, bytes):
        return int.from_bytes(item[:8], "little")
    check(isinstance(item, int), "no item:", item)
    return item


def how_many(number: int) -> int:
    """How many outputs a branching task makes of a number: 0 to 3."""
    return number * 2654435761 >> 8 & 3


@dataclass(frozen=True)
class Step:
    """A task of the plan; it goes with its function into each call."""

    kind: str  # thread, process, async
    shape: str  # source, plain, branch, join, nested; at the end also sum, enough
    depth: int  # how many tasks are before it
    workers: int
    throttle: int
    ordered: bool
    form: str  # of the items: int, object, bytes
    size: int  # of the bytes
    fault: str = ""  # raise, exit, stop, unpicklable: what becomes of numbers from `at` on
    at: int = 0

    def children(self, number: int) -> list[int]:
        """What this task makes of a number."""
        if self.shape in ("branch", "nested"):
            return [4 * number + i for i in range(how_many(number))]
        return [4 * number]

    def item(self, number: int) -> Any:
        """Wrap a number up as an output; here the task's faults happen."""
        if self.fault and number >> 2 * self.depth >= self.at:
            if self.fault == "raise":
                raise Planned(self.at)
            if self.fault == "exit":
                raise SystemExit(self.at)
            if self.fault == "stop":
                raise StopIteration(self.at)
            return threading.Lock()  # which nobody can pickle
        if self.form == "object":
            return Item(number)
        if self.form == "bytes":
            return number.to_bytes(8, "little") + bytes(self.size)
        return number

    def task(self) -> Any:
        """The task itself."""
        names = {"sum": "add", "source": "produce"}
        name = names.get(self.shape, self.shape)
        func = globals()[f"async_{name}" if self.kind == "async" else name]
        return task(
            func,
            branch=self.shape not in ("plain", "sum"),
            join=self.shape in ("join", "sum", "enough"),
            workers=self.workers,
            throttle=self.throttle,
            ordered=self.ordered,
            multiprocess=self.kind == "process",
            bind=task.bind(step=self),
        )

    def __str__(self) -> str:
        order = ",ordered" if self.ordered else ""
        return f"{self.kind}:{self.shape}*{self.workers}/{self.throttle}{order}"


# ----------------------------------------------------------------------- the functions of the tasks


def produce(limit: int, step: Step) -> Iterator[Any]:
    for number in range(limit):
        yield step.item(number)


def plain(item: Any, step: Step) -> Any:
    return step.item(4 * number_of(item))


def branch(item: Any, step: Step) -> Iterator[Any]:
    for number in step.children(number_of(item)):
        yield step.item(number)


def join(items: Iterable[Any], step: Step) -> Iterator[Any]:
    for item in items:
        yield step.item(4 * number_of(item))


def nested(item: Any, step: Step) -> Iterator[Any]:
    """Runs a pipeline of its own for each item."""
    for number in INNER(step.children(number_of(item))):
        yield step.item(number)


def add(items: Iterable[Any], step: Step) -> int:
    """A total, which must never be one over half of the data."""
    return sum(number_of(item) for item in items)


def enough(items: Iterable[Any], step: Step) -> Iterator[Any]:
    """Has enough after a few items."""
    for _, item in zip(range(step.at), items, strict=False):
        yield item


async def pause(number: int) -> None:
    """Some calls wait a moment, some suspend themselves, some do neither."""
    if number % 7 == 0:
        await asyncio.sleep(0.0001)
    elif number % 3 == 0:
        await asyncio.sleep(0)


async def async_produce(limit: int, step: Step) -> AsyncIterator[Any]:
    for number in range(limit):
        await pause(number)
        yield step.item(number)


async def async_plain(item: Any, step: Step) -> Any:
    await pause(number_of(item))
    return step.item(4 * number_of(item))


async def async_branch(item: Any, step: Step) -> AsyncIterator[Any]:
    for number in step.children(number_of(item)):
        await pause(number)
        yield step.item(number)


async def async_join(items: AsyncIterator[Any], step: Step) -> AsyncIterator[Any]:
    async for item in items:
        await pause(number_of(item))
        yield step.item(4 * number_of(item))


async def async_nested(item: Any, step: Step) -> AsyncIterator[Any]:
    async with ASYNC_INNER(step.children(number_of(item))) as numbers:
        async for number in numbers:
            yield step.item(number)


async def async_add(items: AsyncIterator[Any], step: Step) -> int:
    return sum([number_of(item) async for item in items])


async def async_enough(items: AsyncIterator[Any], step: Step) -> AsyncIterator[Any]:
    left = step.at
    while left:
        yield await anext(items)
        left -= 1


async def async_same(number: int) -> int:
    return number


def same(number: int) -> int:
    return number


INNER: Any = task(iter, branch=True) | task(same, workers=2, ordered=True, throttle=1)
ASYNC_INNER: Any = task(iter, branch=True) | task(async_same, workers=2, ordered=True)


# --------------------------------------------------------------------------------------- the plan

# How a run ends, and how often: the commonest are cheap.  `limit` needs a number to end at.
BOTH = {
    "all": 20,  # read to the end
    "break": 10,  # the last reference is dropped
    "close": 8,
    "close elsewhere": 8,  # by another thread (or asyncio task) while we wait
    "exception in a task": 12,
    "exception in the consumer": 5,
    "SystemExit in a task": 4,
    "StopIteration in a task": 3,
    "Ctrl-C": 8,
    "worker killed": 12,
    "unpicklable item": 5,
    "no descriptors": 4,
    "program ends": 1,  # with the run alive: a program of its own
}
SYNC = BOTH | {"garbage": 5, "fork": 5, "no threads": 3}
ASYNC = BOTH | {"caller cancelled": 8, "worker cancelled": 6, "timeouts": 6, "loop closed": 6}

FINITE = ("all", "fork", "timeouts", "no descriptors", "no threads")
FAULTS = {
    "exception in a task": "raise",
    "SystemExit in a task": "exit",
    "StopIteration in a task": "stop",
    "unpicklable item": "unpicklable",
}
WITHOUT_FIRST_OUTPUT = ("all", *FAULTS, "close elsewhere", "Ctrl-C", "caller cancelled")


@dataclass(frozen=True)
class Plan:
    """What one seed stands for."""

    seed: int
    is_async: bool
    end: str
    method: str  # of starting processes
    limit: int  # so many numbers
    take: int  # so many outputs before the end comes
    steps: tuple[Step, ...]

    def has(self, kind: str) -> bool:
        return any(step.kind == kind for step in self.steps)

    def pipeline(self) -> Any:
        first, *rest = (step.task() for step in self.steps)
        for following in rest:
            first = first | following
        return first

    def in_order(self) -> bool:
        return all(step.workers == 1 or step.ordered for step in self.steps)

    def expand(self, number: int) -> list[int]:
        """What becomes of a number of the source."""
        numbers = [number]
        for step in self.steps[1:]:
            if step.shape not in ("sum", "enough"):
                numbers = [child for n in numbers for child in step.children(n)]
        return numbers

    def __str__(self) -> str:
        limit = "endless" if self.limit == ENDLESS else self.limit
        return f"{limit} {' | '.join(str(step) for step in self.steps)}"


def make_plan(seed: int) -> Plan:
    """The same plan for the same seed."""
    rng = random.Random(seed)
    is_async = rng.random() < 0.4
    ends = ASYNC if is_async else SYNC
    (end,) = rng.choices(list(ends), list(ends.values()))
    kinds = ["thread"] * 4
    if end != "no threads":
        kinds += ["process"] * (4 if end in ("worker killed", "unpicklable item") else 1)
    if is_async:
        kinds += ["async"] * 4
    form = rng.choice(["int", "int", "object", "bytes"])
    large = form == "bytes" and rng.random() < 0.2
    endless = end not in FINITE
    throttles = [1, 2, 3] if large else [1, 1, 2, 3, 10, 1000] if endless else [0, 0, 1, 2, 10]
    limit = ENDLESS if endless else rng.randrange(40 if large else 300)
    crowds = [1, 1, 1, 2, 2, 3, 6, 16]
    shapes = ["plain", "plain", "plain", "branch", "branch", "join", "nested"]

    def step(depth: int, shape: str, **more: Any) -> Step:
        kind = rng.choice(kinds)
        workers = 1 if depth == 0 else rng.choice(crowds)
        if kind == "process":
            workers = min(workers, 3)
        if kind == "async" and workers > 1:
            workers *= 3
        if end == "no threads" and depth > 0:
            workers = 64
        joins = shape in ("join", "sum", "enough")
        return Step(
            kind=kind,
            shape=shape,
            depth=depth,
            workers=workers,
            throttle=rng.choice(throttles),
            ordered=rng.random() < 0.5 and not (joins and workers > 1),
            form=form,
            size=rng.randrange(70_000, 200_000) if large else rng.randrange(200),
            **more,
        )

    steps = [step(0, "source")]
    steps += [step(i, rng.choice(shapes)) for i in range(1, rng.randrange(1, 5))]
    if is_async and not any(s.kind == "async" for s in steps):
        kinds = ["async"]
        steps.append(step(len(steps), rng.choice(shapes)))
    if end in ("worker killed", "unpicklable item") and not any(s.kind == "process" for s in steps):
        kinds = ["process"]
        steps.append(step(len(steps), rng.choice(shapes)))
    if end in FAULTS:
        after = [*steps[1:], steps[0]]
        crossing = [
            i
            for i, (s, following) in enumerate(zip(steps, after, strict=True))
            if s.kind == "process" or (following.kind == "process" and following.depth > 0)
        ]
        where = rng.choice(crossing if end == "unpicklable item" else range(len(steps)))
        spoilt = Step(**(vars(steps[where]) | {"fault": FAULTS[end], "at": rng.randrange(300)}))
        steps[where] = spoilt
    if end in WITHOUT_FIRST_OUTPUT and rng.random() < 0.25:
        enough_too = end == "all" and rng.random() < 0.5
        more = {"at": rng.randrange(20)} if enough_too else {}
        steps.append(step(len(steps), "enough" if enough_too else "sum", **more))
        if enough_too:
            limit = ENDLESS
            steps = [Step(**(vars(s) | {"throttle": s.throttle or 1})) for s in steps]
    (method,) = rng.choices(["fork", "forkserver", "spawn"], [20, 3, 1])
    return Plan(seed, is_async, end, method, limit, rng.randrange(1, 60), tuple(steps))


# ------------------------------------------------------------------------------ what is left over


def threads_of_the_system() -> int:
    return os.stat("/proc/self/task").st_nlink - 2  # noqa: PTH116 - often called


def open_files() -> set[str]:
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # the one that lists the folder
            found.add(f"{entry.name} -> {os.readlink(entry.path)}")  # noqa: PTH115
    return {name for name in found if not name.endswith(f"/proc/{os.getpid()}/fd")}


def processes() -> set[int]:
    """The other processes of our session: run.py gives each soaker one of its own."""
    found = set()
    mine, session = os.getpid(), os.getsid(0)
    for name in os.listdir("/proc"):  # noqa: PTH208
        if name.isdigit() and int(name) != mine:
            with contextlib.suppress(ProcessLookupError):
                if os.getsid(int(name)) == session:
                    found.add(int(name))
    return found


def shared_memory() -> int:
    with open("/proc/self/maps") as maps:  # noqa: PTH123
        return sum("memfd:pyper" in line for line in maps)


def resident() -> int:
    """Kilobytes of memory that this process has now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() // 1024


class Surroundings:
    """What there is between two runs: always the same."""

    def __init__(self) -> None:
        self.threads = set(threading.enumerate())
        self.system_threads = threads_of_the_system()
        self.files = open_files()
        self.processes = processes()

    def other_threads(self) -> list[threading.Thread]:
        """The threads of runs.

        If a signal handler raises in the midst of Thread.start(), threading may name the thread for
        ever although it never began; such a one has no number.
        """
        now = set(threading.enumerate()) - self.threads
        return [thread for thread in now if thread.ident is not None]

    def surplus(self) -> str:
        """What there is more than at the beginning, in words."""
        for name, more in (
            ("threads", [thread.name for thread in self.other_threads()]),
            ("threads of the system", threads_of_the_system() - self.system_threads),
            ("open files", open_files() - self.files),
            ("processes", processes() - self.processes),
            ("mappings of shared memory", shared_memory()),
        ):
            if more and more != 0:
                return f"{name}: {more}"
        return ""

    def settle(self) -> None:
        """Wait until nothing is left of a run that was not waited for."""
        gc.collect()
        deadline = time.monotonic() + PATIENCE
        while left := self.surplus():
            check(time.monotonic() < deadline, "left over:", left)
            for thread in self.other_threads():
                thread.join(0.1)
            time.sleep(0.0005)  # the kernel takes its time with what has ended
        items = [thing for thing in gc.get_objects() if type(thing) is Item]
        check(not items, len(items), "items are left")


# ---------------------------------------------------------------------------------------- the runs


@dataclass
class Result:
    """What a run has given."""

    numbers: list[int]
    error: BaseException | None = None
    hit: bool = True  # has the fault come in time?


def linger(plan: Plan) -> float:
    """Seconds until something happens elsewhere: mostly very few."""
    return random.Random(plan.seed + 1).random() ** 4 * 0.03


def elsewhere(plan: Plan, act: Callable[[], object]) -> threading.Thread:
    """Have another thread do something in a moment."""

    def wait_and_act() -> None:
        time.sleep(linger(plan))
        act()

    return threading.Thread(target=wait_and_act)


def read(outputs: Any, numbers: list[int], most: int = ENDLESS) -> None:
    while len(numbers) < most:
        try:
            numbers.append(number_of(next(outputs)))
        except StopIteration:
            return


async def async_read(outputs: Any, numbers: list[int], most: int = ENDLESS) -> None:
    while len(numbers) < most:
        try:
            numbers.append(number_of(await anext(outputs)))
        except StopAsyncIteration:
            return


def kill_one(plan: Plan, before: set[int]) -> None:
    victims = sorted(processes() - before)
    check(victims, "no process works for this run")
    os.kill(random.Random(plan.seed).choice(victims), signal.SIGKILL)


@contextlib.contextmanager
def limited(which: int, soft: int) -> Iterator[None]:
    """Lower a limit of this process."""
    before = resource.getrlimit(which)
    resource.setrlimit(which, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(which, before)


@contextlib.contextmanager
def large_stacks(threads: int) -> Iterator[None]:
    """Address space for the stacks of so many threads, and for half of one: it is threads that are
    refused, and what they need besides is there (Thread.start() may wait for ever for one that has
    no memory to begin with)."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    each = 1 << 30
    before = threading.stack_size(each)
    try:
        with limited(resource.RLIMIT_AS, used + threads * each + each // 2):
            yield
    finally:
        threading.stack_size(before)


def exhausted(plan: Plan) -> contextlib.AbstractContextManager[None]:
    """The limits of the ends that lack something."""
    if plan.end == "no descriptors":
        free = len(os.listdir("/proc/self/fd")) - 1  # noqa: PTH208
        return limited(resource.RLIMIT_NOFILE, free + plan.seed % 12)
    if plan.end == "no threads":
        return large_stacks(plan.seed % 4)
    return contextlib.nullcontext()


@contextlib.contextmanager
def interrupts(plan: Plan) -> Iterator[None]:
    """Ctrl-C in a moment; the block goes on until it is interrupted."""

    begun = threading.Lock()  # threading does not survive an interrupt in the midst of start()
    begun.acquire()

    def interrupt() -> None:
        begun.acquire()
        os.kill(os.getpid(), signal.SIGINT)

    def swallowed(unraisable: Any) -> None:
        """A destructor that happened to run has swallowed it: once more."""
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            unraisable_hook(unraisable)
        else:
            os.kill(os.getpid(), signal.SIGINT)

    thread = elsewhere(plan, interrupt)
    sys.unraisablehook = swallowed
    thread.start()
    try:
        begun.release()
        yield
    finally:
        thread.join()
        sys.unraisablehook = unraisable_hook


def run_sync(plan: Plan) -> Result:
    pipeline = plan.pipeline()
    result = Result([])
    before = processes() if plan.end == "worker killed" else set()
    with exhausted(plan):
        outputs = pipeline(plan.limit)
        try:
            if plan.end == "break":
                read(outputs, result.numbers, plan.take)
            elif plan.end == "close":
                with outputs:
                    read(outputs, result.numbers, plan.take)
                alive = [s.alive for s in outputs.stats()]
                check(not any(alive), "alive after close():", alive)
            elif plan.end == "close elsewhere":
                thread = elsewhere(plan, outputs.close)
                thread.start()
                try:
                    read(outputs, result.numbers)
                finally:
                    thread.join()
            elif plan.end == "garbage":
                read(outputs, result.numbers, plan.take)
                cycle = [outputs]
                cycle.append(cycle)  # type: ignore[arg-type]
            elif plan.end == "exception in the consumer":
                with outputs:
                    read(outputs, result.numbers, plan.take)
                    raise Planned(plan.take)
            elif plan.end == "Ctrl-C":
                with interrupts(plan):
                    read(outputs, result.numbers)
            elif plan.end == "worker killed":
                read(outputs, result.numbers, plan.take)
                kill_one(plan, before)
                read(outputs, result.numbers)
            elif plan.end == "fork":
                read(outputs, result.numbers, plan.take)
                fork_and_close(outputs)
                read(outputs, result.numbers)
            else:
                read(outputs, result.numbers)
        except BaseException as error:
            result.error = error
    return result


def fork_and_close(outputs: Any) -> None:
    """In a forked child the run is dead: to close it does nothing."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            outputs.close()
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(child, 0)
    check(status == 0, "the forked child ended with", status)


async def consume(plan: Plan, outputs: Any, result: Result) -> None:
    """The caller's coroutine of an asynchronous run."""
    before = processes() if plan.end == "worker killed" else set()
    if plan.end == "break":
        await async_read(outputs, result.numbers, plan.take)
    elif plan.end == "close":
        async with outputs:
            await async_read(outputs, result.numbers, plan.take)
        alive = [s.alive for s in outputs.stats()]
        check(not any(alive), "alive after aclose():", alive)
        check(asyncio.all_tasks() == {asyncio.current_task()}, "tasks:", asyncio.all_tasks())
    elif plan.end == "close elsewhere":

        async def close() -> None:
            await asyncio.sleep(linger(plan))
            await outputs.aclose()

        closer = asyncio.create_task(close())
        try:
            await async_read(outputs, result.numbers)
        finally:
            await closer
    elif plan.end == "exception in the consumer":
        async with outputs:
            await async_read(outputs, result.numbers, plan.take)
            raise Planned(plan.take)
    elif plan.end == "Ctrl-C":
        thread = elsewhere(plan, lambda: os.kill(os.getpid(), signal.SIGINT))
        thread.start()
        try:
            await async_read(outputs, result.numbers)
        finally:
            thread.join()
    elif plan.end == "worker killed":
        await async_read(outputs, result.numbers, plan.take)
        kill_one(plan, before)
        await async_read(outputs, result.numbers)
    elif plan.end == "caller cancelled":
        reader = asyncio.create_task(async_read(outputs, result.numbers))
        await asyncio.sleep(linger(plan))
        reader.cancel()
        await reader
    elif plan.end == "worker cancelled":
        mine = asyncio.all_tasks()
        await async_read(outputs, result.numbers, plan.take)
        workers = sorted(asyncio.all_tasks() - mine, key=asyncio.Task.get_name)
        check(workers, "no asyncio task works for this run")
        random.Random(plan.seed).choice(workers).cancel()
        await async_read(outputs, result.numbers)
    elif plan.end == "timeouts":
        while True:
            try:
                number = await asyncio.wait_for(anext(outputs), plan.take * 1e-5)
                result.numbers.append(number_of(number))
            except TimeoutError:
                continue
            except StopAsyncIteration:
                return
    elif plan.end == "loop closed":
        await async_read(outputs, result.numbers, plan.take)
    else:
        await async_read(outputs, result.numbers)


def run_async(plan: Plan) -> Result:
    pipeline = plan.pipeline()
    result = Result([])
    complaints: list[str] = []
    kept: list[Any] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(str(context)))
        with exhausted(plan):
            outputs = pipeline(plan.limit)
            if plan.end == "loop closed":  # somebody has it still when the loop is closed
                kept.append(outputs)
            await consume(plan, outputs, result)

    try:
        asyncio.run(main())
    except BaseException as error:
        result.error = error
    kept.clear()
    gc.collect()
    check(not complaints, "the loop complains:", complaints)
    return result


def run_program(plan: Plan) -> Result:
    """A program that ends while its run goes on: it must end, well, and without a word."""
    command = [sys.executable, __file__, str(plan.seed), "--abandon"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    check((done.returncode, done.stderr) == (0, ""), "exit status", done.returncode, done.stderr)
    return Result([int(word) for word in done.stdout.split()])


abandoned: Any = None


def abandon(plan: Plan) -> None:
    """What that program does."""
    global abandoned
    numbers: list[int] = []
    abandoned = plan.pipeline()(plan.limit)
    if plan.is_async:
        asyncio.run(async_read(abandoned, numbers, plan.take))
    else:
        read(abandoned, numbers, plan.take)
    print(*numbers)


# --------------------------------------------------------------------------------------- the checks


def says_what_has_run_out(end: str, error: BaseException | None) -> bool:
    """Does the error, or its cause, name it?"""
    if error is None:
        return False
    words = str(error)
    if end == "no descriptors":
        named = "no file descriptors are left" in words or (
            isinstance(error, OSError) and error.errno == errno.EMFILE
        )
    else:  # what is short is address space, for the stacks of threads first
        named = (
            isinstance(error, MemoryError)
            or "thread could not be started" in words
            or "start new thread" in words
        )
    return named or says_what_has_run_out(end, error.__cause__)


def check_error(plan: Plan, result: Result) -> None:
    """Was it the error that this end promises?"""
    error, end = result.error, plan.end
    if error is None and end in ("no descriptors", "no threads", "close elsewhere"):
        result.hit = end == "close elsewhere"  # between two calls of next(): the stream is over
        return
    if error is None:
        check(
            end in ("all", "break", "close", "garbage", "fork", "timeouts", "loop closed")
            or end == "program ends",
            f"no error, but {end}",
        )
        return
    expected: dict[str, type[BaseException]] = {
        "close elsewhere": pyper.Cancelled,
        "worker cancelled": pyper.Cancelled,
        "caller cancelled": asyncio.CancelledError,
        "exception in a task": Planned,
        "exception in the consumer": Planned,
        "SystemExit in a task": SystemExit,
        "StopIteration in a task": RuntimeError,
        "Ctrl-C": KeyboardInterrupt,
        "worker killed": pyper.WorkerDied,
        "unpicklable item": RuntimeError,
    }
    if end in ("no descriptors", "no threads"):
        right = says_what_has_run_out(end, error)
    else:
        right = end in expected and type(error) is expected[end]
    if right and end in ("exception in a task", "SystemExit in a task"):
        right = error.args == tuple(step.at for step in plan.steps if step.fault)
    if right and end == "StopIteration in a task":
        right = "raised StopIteration" in str(error)
    if right and end == "unpicklable item":
        right = "lock" in str(error)
    if right and end == "worker killed":
        right = error.exitcode == -signal.SIGKILL  # type: ignore[attr-defined]
    if not right:
        raise Broken(f"the wrong error for {end}: {error!r} {error.__cause__!r}") from error


def check_outputs(plan: Plan, result: Result) -> None:
    """Nothing lost (if the run ended by itself), nothing twice, nothing that never was."""
    got, last = result.numbers, plan.steps[-1]
    complete = result.error is None and plan.end in FINITE
    if last.shape == "sum":
        if complete:
            check(len(got) == last.workers, len(got), "totals of", last.workers)
            expected = sum(child for n in range(plan.limit) for child in plan.expand(n))
            check(sum(got) == expected, "total:", sum(got), "and not", expected)
        else:
            check(not got, "a total over half of the data:", got)
        return
    if last.shape == "enough":
        check(len(got) == last.at * last.workers, len(got), "outputs")
    elif complete:
        everything = [child for n in range(plan.limit) for child in plan.expand(n)]
        check(len(got) == len(everything), len(got), "outputs of", len(everything))
    check(len(set(got)) == len(got), "twice:", sorted(got))
    depth = sum(step.shape not in ("source", "sum", "enough") for step in plan.steps)
    origins = {number >> 2 * depth for number in got}
    valid = {child for origin in origins for child in plan.expand(origin)}
    check(valid.issuperset(got), "never made:", set(got) - valid)
    if plan.in_order():
        check(got == sorted(got), "out of order:", got)
        first = itertools.chain.from_iterable(plan.expand(n) for n in itertools.count())
        check(got == list(itertools.islice(first, len(got))), "a gap:", got)


unraisables: list[str] = []


def unraisable_hook(unraisable: Any) -> None:
    unraisables.append(f"{unraisable.object!r}: {unraisable.exc_value!r}")


def one_run(plan: Plan, surroundings: Surroundings) -> Result:
    multiprocessing.set_start_method(plan.method, force=True)
    if plan.end == "program ends":
        result = run_program(plan)
    else:
        result = run_async(plan) if plan.is_async else run_sync(plan)
    check_error(plan, result)
    check_outputs(plan, result)
    result.error = None  # and what its traceback holds
    surroundings.settle()
    check(not unraisables, "unraisable:", unraisables)
    return result


def prepare() -> Surroundings:
    """Start what stays for good, so that it is not taken for a leak."""
    warnings.filterwarnings("ignore", ".*use of fork", DeprecationWarning)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = unraisable_hook
    faulthandler.enable()
    # A script is __main__ in itself and __mp_main__ in what spawn starts: pickle must know.
    resource_tracker.ensure_running()
    forkserver.ensure_running()
    asyncio.run(asyncio.sleep(0))
    list(INNER([1]))
    gc.collect()
    gc.freeze()
    return Surroundings()


def main() -> None:
    parser = argparse.ArgumentParser(description="Soaks pyper.")
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--abandon", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.abandon:
        plan = make_plan(options.seed)
        multiprocessing.set_start_method(plan.method)
        abandon(plan)
        return
    surroundings = prepare()
    until = time.monotonic() + (options.seconds or 0)
    next_state = 0.0
    for i in itertools.count():
        if time.monotonic() >= until if options.seconds else i >= options.times:
            break
        plan = make_plan(options.seed + (i if options.seconds else 0))
        print("run", plan.seed, plan.end.replace(" ", "_"), plan, flush=True)
        result = one_run(plan, surroundings)
        print("ok", len(result.numbers), int(result.hit), flush=True)
        if time.monotonic() >= next_state:
            next_state = time.monotonic() + 1
            print(f"state rss_kb={resident()} blocks={sys.getallocatedblocks()}", flush=True)


if __name__ == "__main__":
    main()
