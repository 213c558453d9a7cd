"""What the Python programs of the benchmark share: they do a round for each line of their input."""

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

# How many turns of an empty loop are a microsecond of Python; run.py has measured it.
LOOPS_PER_US = int(os.environ.get("BENCH_LOOPS_PER_US", "50"))

# So long after an item all threads of an idle pipeline have gone to sleep.
SETTLE_SECONDS = 0.1

SMALL_FILE = Path(__file__)

# Does a scenario with so many items; the figure, in seconds mostly.
Measured = Callable[[int], float]


def wait_1ms(x: int) -> int:
    time.sleep(0.001)
    return x


def read_file(x: int) -> int:
    SMALL_FILE.read_bytes()
    return x


def cpu_seconds() -> float:
    """Processor seconds of this process and of the children that it has waited for."""
    usages = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def resident_bytes() -> int:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def percentile(values: list[float], percent: float) -> float:
    """The value below which `percent` of the values are."""
    return sorted(values)[min(int(len(values) * percent / 100), len(values) - 1)]


def serve(measured: Measured) -> None:
    """A round for each count on the standard input: print its figure and its processor seconds."""
    for line in sys.stdin:
        before = cpu_seconds()
        figure = measured(int(line))
        print(f"{figure:.9g} {cpu_seconds() - before:.9g}", flush=True)
