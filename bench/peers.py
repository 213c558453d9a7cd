"""The Python scenarios of the benchmark, done with other packages, in their default settings.

    python bench/peers.py SYSTEM SCENARIO       as scenarios.py

What a package cannot do (a chain of pools, say) is not here, and it has no figure there.
"""

import importlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from queue import SimpleQueue

from serving import (
    LOOPS_PER_US,
    SETTLE_SECONDS,
    Measured,
    percentile,
    read_file,
    serve,
    wait_1ms,
)

Function = Callable[[int], int]
Source = Callable[[int], Iterable[int]]


def inc(x: int) -> int:
    return x + 1


class Work:
    """So many microseconds of Python, on a processor of its own."""

    def __init__(self, us: int):
        self.loops = LOOPS_PER_US * us

    def __call__(self, x: int) -> int:
        for _ in range(self.loops):
            pass
        return x


burn = Work(8)


def burning_range(n: int) -> Iterator[int]:
    for i in range(n):
        burn(i)
        yield i


# Outputs of a source through functions, each with so many workers and so many places behind it.
Outputs = Callable[[Source, list[tuple[Function, int]], int, int], Iterator[int]]


# ----------------------------------------------------------------------------------- packages


def pypeln(source, stages, n, throttle) -> Iterator[int]:
    thread = importlib.import_module("pypeln").thread
    outputs = source(n)
    for function, workers in stages:
        outputs = thread.map(function, outputs, workers=workers, maxsize=throttle)
    yield from outputs


def spdl(source, stages, n, throttle) -> Iterator[int]:
    builder = importlib.import_module("spdl.pipeline").PipelineBuilder().add_source(source(n))
    for function, workers in stages:
        builder = builder.pipe(function, concurrency=workers)
    builder = builder.add_sink(throttle) if throttle else builder.add_sink()
    pipeline = builder.build(num_threads=max(1, sum(workers for _, workers in stages)))
    with pipeline.auto_stop():
        yield from pipeline


def one(stages: list[tuple[Function, int]]) -> tuple[Function, int]:
    """The only stage, for what has no chains."""
    ((function, workers),) = stages
    return function, workers


def futures(source, stages, n, throttle) -> Iterator[int]:
    executor = importlib.import_module("concurrent.futures").ThreadPoolExecutor
    function, workers = one(stages)
    with executor(workers) as pool:
        yield from pool.map(function, source(n))


def thread_pool(source, stages, n, throttle) -> Iterator[int]:
    pool_type = importlib.import_module("multiprocessing.pool").ThreadPool
    function, workers = one(stages)
    with pool_type(workers) as pool:
        yield from pool.imap(function, source(n))


def joblib(source, stages, n, throttle) -> Iterator[int]:
    module = importlib.import_module("joblib")
    function, workers = one(stages)
    # With one worker it would use no thread at all: that is the plain loop.
    parallel = module.Parallel(max(2, workers), prefer="threads", return_as="generator")
    yield from parallel(module.delayed(function)(x) for x in source(n))


def mpire(source, stages, n, throttle) -> Iterator[int]:
    pool_type = importlib.import_module("mpire").WorkerPool
    function, workers = one(stages)
    with pool_type(workers, start_method="threading") as pool:
        yield from pool.imap(function, source(n), iterable_len=n)


END = object()


def by_hand(source, stages, n, throttle) -> Iterator[int]:
    """A thread and a queue.SimpleQueue for each stage: what CPython's own queue allows."""

    def produce(out) -> None:
        for x in source(n):
            out.put(x)
        out.put(END)

    def work(function, into, out) -> None:
        while (x := into.get()) is not END:
            out.put(function(x))
        out.put(END)

    queue: SimpleQueue = SimpleQueue()
    threads = [threading.Thread(target=produce, args=(queue,))]
    for function, workers in stages:
        assert workers == 1
        into, queue = queue, SimpleQueue()
        threads.append(threading.Thread(target=work, args=(function, into, queue)))
    for thread in threads:
        thread.start()
    while (x := queue.get()) is not END:
        yield x
    for thread in threads:
        thread.join()


def plain_loop(source, stages, n, throttle) -> Iterator[int]:
    """No concurrency at all."""
    for x in source(n):
        for function, _ in stages:
            x = function(x)
        yield x


def bare_threads(source, stages, n, throttle) -> Iterator[int]:
    """Threads among which the items were shared out beforehand."""
    function, workers = one(stages)
    done: list[list[int]] = [[] for _ in range(workers)]

    def work(part: int) -> None:
        done[part] = [function(x) for x in range(part, n, workers)]

    threads = [threading.Thread(target=work, args=(part,)) for part in range(workers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for part in done:
        yield from part


SYSTEMS: dict[str, Outputs] = {
    "pypeln": pypeln,
    "SPDL": spdl,
    "futures": futures,
    "ThreadPool": thread_pool,
    "joblib": joblib,
    "mpire": mpire,
    "by hand": by_hand,
    "plain loop": plain_loop,
    "bare threads": bare_threads,
}


# ---------------------------------------------------------------------------------- scenarios


def drain(outputs: Outputs, source: Source, stages, n: int, throttle: int = 0) -> float:
    """Seconds for each of the `n` items."""
    started = time.perf_counter()
    taken = sum(1 for _ in outputs(source, stages, n, throttle))
    seconds = time.perf_counter() - started
    if taken != n:
        raise SystemExit(f"{taken} outputs instead of {n}")
    return seconds / n


def each(stages: list[tuple[Function, int]], source: Source = range, throttle: int = 0):
    """A scenario whose figure is seconds an item."""
    return lambda outputs: lambda n: drain(outputs, source, stages, n, throttle)


def total(stages: list[tuple[Function, int]], source: Source = range):
    """A scenario whose figure is seconds for all."""
    return lambda outputs: lambda n: drain(outputs, source, stages, n) * n


def one_call(outputs: Outputs) -> Measured:
    def measure(n: int) -> float:
        started = time.perf_counter()
        for _ in range(n):
            if list(outputs(range, [(inc, 1)], 1, 0)) != [1]:
                raise SystemExit("wrong output")
        return (time.perf_counter() - started) / n

    return measure


def first_output(outputs: Outputs) -> Measured:
    def measure(n: int) -> float:
        stream = outputs(burning_range, [(burn, 1)], n, 0)
        started = time.perf_counter()
        next(stream)
        seconds = time.perf_counter() - started
        for _ in stream:
            pass
        return seconds

    return measure


def latency(percent: float):
    def scenario(outputs: Outputs) -> Measured:
        def measure(n: int) -> float:
            inputs: SimpleQueue = SimpleQueue()

            def source(_: int) -> Iterator[int]:
                while (x := inputs.get()) is not None:
                    yield x

            stream = outputs(source, [(inc, 1)], 0, 0)
            inputs.put(0)
            next(stream)
            seconds = []
            for i in range(n):
                time.sleep(0.001)
                started = time.perf_counter()
                inputs.put(i)
                next(stream)
                seconds.append(time.perf_counter() - started)
            inputs.put(None)
            for _ in stream:
                raise SystemExit("an output too many")
            return percentile(seconds, percent)

        return measure

    return scenario


def idle(outputs: Outputs) -> Measured:
    def measure(tenths: int) -> float:
        spent = 0.0

        def source(_: int) -> Iterator[int]:
            nonlocal spent
            yield 0
            time.sleep(SETTLE_SECONDS)
            before = time.process_time()
            time.sleep(tenths / 10)
            spent = time.process_time() - before

        for _ in outputs(source, [(inc, 1)] * 2, 0, 0):
            pass
        return spent

    return measure


SCENARIOS: dict[str, Callable[[Outputs], Measured]] = {
    "two tasks": each([(inc, 1)]),
    "four tasks": each([(inc, 1)] * 3),
    "8 tasks": each([(inc, 1)] * 7),
    "16 tasks": each([(inc, 1)] * 15),
    **{f"throttle {t}": each([(inc, 1)], throttle=t) for t in (1, 10, 100, 1000)},
    "1 worker": each([(inc, 1), (inc, 1)]),
    **{f"{w} workers": each([(inc, w), (inc, 1)]) for w in (2, 4, 8, 64)},
    **{f"work of {us} us": each([(Work(us), 4)]) for us in (0, 1, 10, 100)},
    "one call": one_call,
    "first output": first_output,
    "convoy": total([(wait_1ms, 20)], burning_range),
    "500 sleepers": total([(wait_1ms, 500)]),
    "small files": each([(read_file, 20)]),
    "latency, p50": latency(50),
    "latency, p99": latency(99),
    "idle": idle,
    **{f"2 workers, {us} us": each([(Work(us), 2)]) for us in (50, 200)},
}

if __name__ == "__main__":
    serve(SCENARIOS[sys.argv[2]](SYSTEMS[sys.argv[1]]))
