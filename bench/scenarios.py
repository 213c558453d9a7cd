"""The Python scenarios of the benchmark: each prints what one round of it cost.

Run by bench/run.py, once for each round, with the interpreter whose `pyper` is to be measured: this
project's, or python-pyper, which has the same import name and the same `task`.

    python bench/scenarios.py SCENARIO ITEMS    ->  seconds (for one item, or as the scenario says)
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator

from pyper import task

Measured = Callable[[int], float]


def inc(x: int) -> int:
    return x + 1


async def ainc(x: int) -> int:
    return x + 1


def burn(x: int) -> int:
    """Some 8 us of Python."""
    for _ in range(200):
        pass
    return x


def burning_range(n: int) -> Iterator[int]:
    for i in range(n):
        burn(i)
        yield i


def wait_1ms(x: int) -> int:
    time.sleep(0.001)
    return x


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


def two_tasks(n: int) -> float:
    return drain(task(range, branch=True) | task(inc), n)


def four_tasks(n: int) -> float:
    return drain(task(range, branch=True) | task(inc) | task(inc) | task(inc), n)


def throttled(throttle: int) -> Measured:
    def measure(n: int) -> float:
        return drain(task(range, branch=True, throttle=throttle) | task(inc, throttle=throttle), n)

    return measure


def eight_workers(n: int) -> float:
    return drain(task(range, branch=True) | task(inc, workers=8) | task(inc), n)


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


SCENARIOS: dict[str, Measured] = {
    "two tasks": two_tasks,
    "four tasks": four_tasks,
    "throttle 1": throttled(1),
    "throttle 10": throttled(10),
    "throttle 100": throttled(100),
    "throttle 1000": throttled(1000),
    "8 workers": eight_workers,
    "one call": one_call,
    "first output": first_output,
    "convoy": convoy,
    "async task": async_task,
    "async, 20 workers": async_workers,
    "async, 4 threads": async_and_threads,
}

if __name__ == "__main__":
    print(SCENARIOS[sys.argv[1]](int(sys.argv[2])))
