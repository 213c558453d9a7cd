"""What the scenarios with processes cost with `multiprocessing.Pool` alone.

python bench/bare_pool.py SCENARIO       as scenarios.py
"""

import multiprocessing
import sys
import time

from serving import Measured, serve

CHUNK = 1000  # the best of 1, 10, ..., 10 000


def inc(x: int) -> int:
    return x + 1


def two_processes(n: int) -> float:
    """Seconds for an item of `n` through a pool of two, the pool made and ended."""
    started = time.perf_counter()
    with multiprocessing.Pool(2) as pool:
        taken = sum(1 for _ in pool.imap(inc, range(n), CHUNK))
    if taken != n:
        raise SystemExit(f"{taken} outputs instead of {n}")
    return (time.perf_counter() - started) / n


SCENARIOS: dict[str, Measured] = {"2 processes": two_processes}

if __name__ == "__main__":
    serve(SCENARIOS[sys.argv[1]])
