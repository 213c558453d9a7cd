"""Each kind of work where it belongs: waiting on the event loop, blocking in threads, computing in
processes, in one pipeline.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator

from pyper import task


async def arrive(n: int) -> AsyncIterator[int]:
    """Orders come in over a network, say."""
    for i in range(n):
        await asyncio.sleep(0.001)
        yield i


async def price(order: int) -> tuple[int, float]:
    """Ask an asynchronous service."""
    await asyncio.sleep(0.01)
    return order, order * 1.5


def store(order: tuple[int, float]) -> tuple[int, float]:
    """Use a library that blocks its thread."""
    time.sleep(0.01)
    return order


def compute(order: tuple[int, float]) -> tuple[int, int]:
    """Pure Python that keeps a processor busy; also says in which process."""
    number, _ = order
    return sum(i * i for i in range(1000 * number)) % 997, os.getpid()


async def report(results: AsyncIterator[tuple[int, int]]) -> None:
    checks, processes = [], set()
    async for check, process in results:
        checks.append(check)
        processes.add(process)
    print(checks)
    print("computed in other processes:", os.getpid() not in processes)


if __name__ == "__main__":
    run = (
        task(arrive, branch=True, throttle=100)
        | task(price, workers=20, ordered=True)
        | task(store, workers=20, ordered=True)
        | task(compute, workers=2, multiprocess=True, ordered=True)
        > report
    )
    asyncio.run(run(12))
    #> [0, 5, 55, 204, 506, 18, 788, 876, 336, 219, 579, 473]
    #> computed in other processes: True
