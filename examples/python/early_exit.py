"""Leave a run early: the producer never ends by itself, the program takes what it needs.

At the end of the ``with`` block nothing of the run is left: no thread, and every generator has been
closed.  A bare ``break`` cancels as well, but does not wait.
"""

import itertools
import threading
from collections.abc import Iterator

from pyper import task


def count(start: int) -> Iterator[int]:
    try:
        yield from itertools.count(start)
    finally:
        print("the producer was closed")


def primes(n: int) -> list[int]:
    """Return [n] or nothing: a branch may have any number of outputs."""
    return [n] if all(n % d for d in range(2, int(n**0.5) + 1)) else []


if __name__ == "__main__":
    pipeline = task(count, branch=True, throttle=100) | task(
        primes, branch=True, workers=4, ordered=True
    )
    with pipeline(1_000_000) as outputs:
        for prime in itertools.islice(outputs, 3):
            print(prime)
    #> 1000003
    #> 1000033
    #> 1000037
    #> the producer was closed
    print("threads:", threading.active_count())
    #> threads: 1
