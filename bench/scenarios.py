"""The Python scenarios of the benchmark, for whatever package `pyper` the interpreter has.

That is this project's, or python-pyper, which has the same import name and the same `task`.  Other
packages do the same scenarios in peers.py.

    python bench/scenarios.py SCENARIO      counts on standard input -> seconds for one item (or
                                            as the scenario says), processor seconds
"""

import asyncio
import itertools
import multiprocessing
import pickle
import sys
import threading
import time
from collections.abc import Callable, Iterator
from queue import SimpleQueue

from bare_asyncio import lateness_beside, nap
from pyper import task
from serving import (
    LOOPS_PER_US,
    SETTLE_SECONDS,
    Measured,
    percentile,
    read_file,
    resident_bytes,
    serve,
    wait_1ms,
)


def inc(x: int) -> int:
    return x + 1


async def ainc(x: int) -> int:
    return x + 1


def work(x: int, us: int) -> int:
    """So many microseconds of Python, on a processor of its own."""
    for _ in range(LOOPS_PER_US * us):
        pass
    return x


def burn(x: int) -> int:
    return work(x, 8)


def burning_range(n: int) -> Iterator[int]:
    for i in range(n):
        burn(i)
        yield i


def seconds_each(count: Callable[[], int], n: int) -> float:
    """Seconds for each of the `n` outputs that `count` takes."""
    started = time.perf_counter()
    taken = count()
    seconds = time.perf_counter() - started
    if taken != n:
        raise SystemExit(f"{taken} outputs instead of {n}")
    return seconds / n


def drain(pipeline, n: int) -> float:
    """Seconds for each of the `n` items of one call, all outputs taken."""
    return seconds_each(lambda: sum(1 for _ in pipeline(n)), n)


# ------------------------------------------------------------------------- items and overhead


def chain(tasks: int):
    pipeline = task(range, branch=True)
    for _ in range(tasks - 1):
        pipeline = pipeline | task(inc)
    return pipeline


def chained(tasks: int) -> Measured:
    return lambda n: drain(chain(tasks), n)


def throttled(throttle: int) -> Measured:
    def measure(n: int) -> float:
        return drain(task(range, branch=True, throttle=throttle) | task(inc, throttle=throttle), n)

    return measure


def fanned(workers: int) -> Measured:
    return lambda n: drain(task(range, branch=True) | task(inc, workers=workers) | task(inc), n)


def worked(us: int) -> Measured:
    """Items that cost some microseconds of Python in one of four workers."""
    bind = task.bind(us=us)
    return lambda n: drain(task(range, branch=True) | task(work, workers=4, bind=bind), n)


def further_task(n: int) -> float:
    """What one more task costs an item, over the call of its function."""
    started = time.perf_counter()
    for i in range(n):
        inc(i)
    call = (time.perf_counter() - started) / n
    return (drain(chain(6), n) - drain(chain(2), n)) / 4 - call


def growth(n: int) -> float:
    """The cost of an item among so many, as a multiple of the cost of one among a hundredth."""
    few = max(n // 100, 1)
    return drain(chain(2), n) / (sum(drain(chain(2), few) for _ in range(10)) / 10)


# ------------------------------------------------------------------------------ time and rest


def one_call(n: int) -> float:
    """Seconds from the call of a one-task pipeline to its end, on average over `n` calls."""
    pipeline = task(inc)
    started = time.perf_counter()
    for i in range(n):
        if list(pipeline(i)) != [i + 1]:
            raise SystemExit("wrong output")
    return (time.perf_counter() - started) / n


def first_output(n: int) -> float:
    """Seconds to the first output of a CPU-bound pair with `n` items."""
    outputs = (task(burning_range, branch=True) | task(burn))(n)
    started = time.perf_counter()
    next(outputs)
    seconds = time.perf_counter() - started
    for _ in outputs:
        pass
    return seconds


def convoy(n: int) -> float:
    """Seconds for all of `n` items that cost 8 us to make and wait 1 ms in one of 20 workers."""
    return drain(task(burning_range, branch=True) | task(wait_1ms, workers=20), n) * n


def sleepers(n: int) -> float:
    """Seconds for all of `n` items, each 1 ms asleep in one of 500 workers."""
    return drain(task(range, branch=True) | task(wait_1ms, workers=500), n) * n


def small_files(n: int) -> float:
    """Seconds for each of `n` reads of a small file in one of 20 workers."""
    return drain(task(range, branch=True) | task(read_file, workers=20), n)


def latency(percent: float) -> Measured:
    """Seconds of an item through an idle pipeline, one each millisecond; that percentile."""

    def measure(n: int) -> float:
        inputs: SimpleQueue = SimpleQueue()

        def source(_: int) -> Iterator[int]:
            while (x := inputs.get()) is not None:
                yield x

        outputs = (task(source, branch=True) | task(inc))(0)
        inputs.put(0)
        next(outputs)  # the threads are there
        seconds = []
        for i in range(n):
            time.sleep(0.001)
            started = time.perf_counter()
            inputs.put(i)
            next(outputs)
            seconds.append(time.perf_counter() - started)
        inputs.put(None)
        for _ in outputs:
            raise SystemExit("an output too many")
        return percentile(seconds, percent)

    return measure


def idle(tenths: int) -> float:
    """Processor seconds of a pipeline that waits for its source, for so many tenths of a second."""
    spent = 0.0

    def source(_: int) -> Iterator[int]:
        nonlocal spent
        yield 0  # all threads are there
        time.sleep(SETTLE_SECONDS)
        before = time.process_time()
        time.sleep(tenths / 10)
        spent = time.process_time() - before

    for _ in (task(source, branch=True) | task(inc) | task(inc))(0):
        pass
    return spent


def waiting(kept: bool) -> Measured:
    """Bytes of an item that waits in a queue without a bound; or what stays when all have left."""

    def measure(n: int) -> float:
        finished = threading.Event()

        def source(n: int) -> Iterator[None]:
            for _ in range(n):
                yield None
            finished.set()

        before = resident_bytes()
        outputs = task(source, branch=True)(n)
        next(outputs)
        finished.wait()
        full = resident_bytes()
        for _ in outputs:
            pass
        return ((resident_bytes() if kept else full) - before) / n

    return measure


# ------------------------------------------------------------------------------ asynchronous


def drain_async(pipeline, n: int) -> float:
    """The like of drain() for a pipeline with asynchronous tasks."""

    async def count() -> int:
        taken = 0
        async for _ in pipeline(n):
            taken += 1
        return taken

    return seconds_each(lambda: asyncio.run(count()), n)


def async_task(n: int) -> float:
    return drain_async(task(range, branch=True) | task(ainc), n)


def async_workers(n: int) -> float:
    return drain_async(task(range, branch=True) | task(ainc, workers=20) | task(ainc), n)


def async_and_threads(n: int) -> float:
    return drain_async(task(range, branch=True) | task(ainc) | task(inc, workers=4), n)


def async_and_processes(n: int) -> float:
    two = task(inc, workers=2, multiprocess=True)
    return drain_async(task(range, branch=True) | task(ainc) | two, n)


def async_sleepers(n: int) -> float:
    """Seconds for all of `n` items, each 0.1 s asleep in one of 10 000 asynchronous workers."""
    return drain_async(task(range, branch=True) | task(nap, workers=10_000), n) * n


def loop_lateness(n: int) -> float:
    """The worst lateness, in seconds, of a timer that is to fire each millisecond, beside a run in
    which a thread does 8 us of Python for each of `n` items and passes it on to the loop."""

    async def read() -> None:
        async for _ in (task(burning_range, branch=True, throttle=1000) | task(ainc))(n):
            pass

    return asyncio.run(lateness_beside(read()))


# ------------------------------------------------------------------------------- processes


def in_processes(tasks: int, workers: int) -> Measured:
    """Small ints through so many process tasks, start and end included."""

    def measure(n: int) -> float:
        pipeline = task(range, branch=True)
        for _ in range(tasks):
            pipeline = pipeline | task(inc, workers=workers, multiprocess=True)
        return drain(pipeline, n)

    return measure


class Array:
    """Anything whose memory pickle lays beside the pickle: an array of NumPy's, say."""

    def __init__(self, memory: object):
        self.memory = memory

    def __reduce_ex__(self, protocol: int) -> tuple:
        return Array, (pickle.PickleBuffer(self.memory),)


def same(x: object) -> object:
    return x


def blocks(make: Callable[[int], object]) -> Measured:
    """Blocks of 8 MiB through a process task and back, when everything is running."""

    def measure(n: int) -> float:
        block = make(8 << 20)
        source = task(itertools.repeat, branch=True, throttle=2, bind=task.bind(times=n + 1))
        outputs = (source | task(same, multiprocess=True, throttle=2))(block)
        next(outputs)
        return seconds_each(lambda: sum(1 for _ in outputs), n)

    return measure


def burn_20_ms(x: int) -> int:
    return work(x, 20_000)


def long_calls(workers: int) -> Measured:
    """Seconds for all of `n` items of 20 ms, start and end included."""
    pipeline = task(range, branch=True) | task(burn_20_ms, workers=workers, multiprocess=True)
    return lambda n: drain(pipeline, n) * n


def first_forked(n: int) -> float:
    """Seconds to the first output of two forked processes, on average over `n` runs."""
    multiprocessing.set_start_method("fork", force=True)
    seconds = 0.0
    for _ in range(n):
        outputs = (task(range, branch=True) | task(inc, workers=2, multiprocess=True))(10)
        started = time.perf_counter()
        next(outputs)
        seconds += time.perf_counter() - started
        for _ in outputs:
            pass
    return seconds / n


# ---------------------------------------------------------- CPU-bound workers, without the GIL


def parallel_work(workers: int, us: int) -> Measured:
    bind = task.bind(us=us)
    return lambda n: drain(task(range, branch=True) | task(work, workers=workers, bind=bind), n)


def independent_runs(runs: int) -> Measured:
    """Seconds an item with so many runs at once, each by a thread of its own and of n items."""

    def measure(n: int) -> float:
        threads = [threading.Thread(target=drain, args=(chain(2), n)) for _ in range(runs)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return (time.perf_counter() - started) / (runs * n)

    return measure


SCENARIOS: dict[str, Measured] = {
    "two tasks": chained(2),
    "four tasks": chained(4),
    "8 tasks": chained(8),
    "16 tasks": chained(16),
    "further task": further_task,
    "throttle 1": throttled(1),
    "throttle 10": throttled(10),
    "throttle 100": throttled(100),
    "throttle 1000": throttled(1000),
    "1 worker": fanned(1),
    "2 workers": fanned(2),
    "4 workers": fanned(4),
    "8 workers": fanned(8),
    "64 workers": fanned(64),
    "work of 0 us": worked(0),
    "work of 1 us": worked(1),
    "work of 10 us": worked(10),
    "work of 100 us": worked(100),
    "one call": one_call,
    "first output": first_output,
    "convoy": convoy,
    "500 sleepers": sleepers,
    "small files": small_files,
    "latency, p50": latency(50),
    "latency, p99": latency(99),
    "idle": idle,
    "memory": waiting(kept=False),
    "memory kept": waiting(kept=True),
    "growth": growth,
    "async task": async_task,
    "async, 20 workers": async_workers,
    "async, 4 threads": async_and_threads,
    "async, 2 processes": async_and_processes,
    "async sleepers": async_sleepers,
    "loop lateness": loop_lateness,
    "1 process": in_processes(1, 1),
    "2 processes": in_processes(1, 2),
    "two process tasks": in_processes(2, 1),
    "8 MiB, arrays": blocks(lambda size: Array(bytearray(size))),
    "8 MiB, bytes": blocks(bytes),
    "20 ms in 1 process": long_calls(1),
    "20 ms in 2 processes": long_calls(2),
    "first output, fork": first_forked,
    "1 worker, 50 us": parallel_work(1, 50),
    "2 workers, 50 us": parallel_work(2, 50),
    "1 worker, 200 us": parallel_work(1, 200),
    "2 workers, 200 us": parallel_work(2, 200),
    "1 run": independent_runs(1),
    "2 runs": independent_runs(2),
}

if __name__ == "__main__":
    serve(SCENARIOS[sys.argv[1]])
