"""What the asynchronous scenarios cost with asyncio alone.

python bench/bare_asyncio.py SCENARIO       as scenarios.py
"""

import asyncio
import sys
import time
from collections.abc import Awaitable

from serving import LOOPS_PER_US, Measured, serve


async def nap(x: int) -> int:
    await asyncio.sleep(0.1)
    return x


def sleepers(n: int) -> float:
    """Seconds for 10 000 coroutines that sleep for 0.1 s until there were `n` sleeps."""
    each = n // 10_000

    async def naps() -> None:
        for x in range(each):
            await nap(x)

    async def gather() -> None:
        await asyncio.gather(*(naps() for _ in range(10_000)))

    started = time.perf_counter()
    asyncio.run(gather())
    return time.perf_counter() - started


async def lateness_beside(work: Awaitable[object]) -> float:
    """The worst lateness, in seconds, of a timer that is to fire each millisecond meanwhile."""
    worst = 0.0
    working = asyncio.ensure_future(work)
    while not working.done():
        due = time.perf_counter() + 0.001
        await asyncio.sleep(0.001)
        worst = max(worst, time.perf_counter() - due)
    await working
    return worst


def busy_thread(n: int) -> float:
    """That of a timer beside a plain thread that does `n` times 8 us of Python."""

    def work() -> None:
        for _ in range(n):
            for _ in range(8 * LOOPS_PER_US):
                pass

    async def main() -> float:
        return await lateness_beside(asyncio.to_thread(work))

    return asyncio.run(main())


SCENARIOS: dict[str, Measured] = {"async sleepers": sleepers, "loop lateness": busy_thread}

if __name__ == "__main__":
    serve(SCENARIOS[sys.argv[1]])
