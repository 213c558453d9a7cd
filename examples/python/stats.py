"""Find the slow task of a pipeline by its counters.

``outputs.stats()`` may be called at any moment, during the run and after it.  The task whose
workers are the busiest sets the pace; give it more workers, or less to do.
"""

import hashlib
from collections.abc import Iterable

from pyper import task


def passwords(n: int) -> Iterable[bytes]:
    return (b"password %d" % i for i in range(n))


def derive(password: bytes) -> bytes:
    """Slow by intention, and without the interpreter lock."""
    return hashlib.pbkdf2_hmac("sha256", password, b"salt", 20_000)


def shorten(key: bytes) -> str:
    return key.hex()[:8]


if __name__ == "__main__":
    pipeline = task(passwords, branch=True, throttle=10) | task(derive, workers=2) | task(shorten)
    with pipeline(40) as outputs:
        keys = set(outputs)
    stats = outputs.stats()
    for s in stats:
        print(f"{s.name} x {s.workers}: {s.items_in} in, {s.items_out} out, {s.queued} queued")
    #> passwords x 1: 1 in, 40 out, 0 queued
    #> derive x 2: 40 in, 40 out, 0 queued
    #> shorten x 1: 40 in, 40 out, 0 queued
    print("slowest:", max(stats, key=lambda s: s.busy / s.workers).name)
    #> slowest: derive
