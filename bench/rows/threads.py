"""Python: tasks in threads, with the GIL."""

from collections.abc import Sequence

from machine import Machine
from model import (
    BUSY,
    BYTES,
    MS,
    NS,
    SECONDS,
    TIMES,
    US,
    US_EACH,
    Row,
    Target,
    Unit,
    ahead,
    at_most,
    best,
)

TITLE = "Python, threads"

# What can do a chain of tasks, and what can do one task only.
CHAINS = ("pypeln", "SPDL")
POOLS = ("futures", "ThreadPool", "joblib", "mpire")
FLOORS = ("by hand", "plain loop")
THROTTLED = "range | inc, at most so many items waiting behind each"
# These take 0.1 s to start: FAST=1 has them in the first row only.
SLOW_STARTERS = ("SPDL", "mpire")


def rows(machine: Machine) -> list[Row]:
    def row(
        scenario: str,
        what: str,
        others: Sequence[str] = (),
        targets: Sequence[Target] = (),
        unit: Unit = US,
        items: int = 200_000,
        peer: bool = True,
        name: str = "",
        **more: object,
    ) -> Row:
        systems = [machine.ours(scenario)]
        if peer:
            systems += machine.python_pyper(scenario)
        for other in others:
            if not (machine.fast and other in SLOW_STARTERS and scenario != "two tasks"):
                systems += machine.package(other, scenario)
        return Row(name or scenario, what, unit, items, systems, targets, **more)

    def pyper(value: float) -> Target:
        return ahead(value, "python-pyper")

    def fan(workers: int, targets: Sequence[Target] = (), **more: object) -> Row:
        name = "1 worker" if workers == 1 else f"{workers} workers"
        return row(
            name, "range | inc in so many workers | inc", CHAINS, (*targets, best(3)), **more
        )

    def throttle(places: int, wanted: float, items: int, **more: object) -> Row:
        return row(
            f"throttle {places}", THROTTLED, CHAINS, (pyper(wanted), best(3)), items=items, **more
        )

    def grain(us: int, items: int, **more: object) -> Row:
        what = "range | so much Python in 4 workers; the plain loop has no overhead"
        others = (*CHAINS, "futures", "ThreadPool", "joblib", "plain loop")
        return row(f"work of {us} us", what, others, items=items, **more)

    def growth(name: str, items: int, **more: object) -> Row:
        # 1 is linear; with a hundred times as many items, 100 would be quadratic.
        what = "range | inc: the cost of an item of the many, by that of one of the few"
        return row(
            "growth",
            what,
            (),
            (at_most(1.5),),
            TIMES,
            items,
            peer=False,
            name=f"growth, {name}",
            whole=True,
            **more,
        )

    return [
        row(
            "two tasks",
            "range | inc, no throttle",
            (*CHAINS, *POOLS, *FLOORS),
            (pyper(25), best(3), at_most(0.2)),
        ),
        row(
            "four tasks",
            "range | inc | inc | inc",
            (*CHAINS, *FLOORS),
            (pyper(30), best(3)),
        ),
        row("8 tasks", "range and seven times inc", (*CHAINS, *FLOORS), (best(3),)),
        row("16 tasks", "range and 15 times inc", (*CHAINS, *FLOORS), (best(3),), fast=False),
        row(
            "further task",
            "what one more task costs, over the call of its function",
            (),
            (at_most(30),),
            unit=NS,
            items=100_000,
            peer=False,  # a difference, which may be nothing: no ratio
        ),
        throttle(1, 2, 5_000),
        throttle(10, 2.5, 20_000, fast=False),
        throttle(100, 6, 100_000, fast=False),
        throttle(1000, 15, 200_000),
        fan(1, fast=False),
        fan(2, fast=False),
        fan(4, fast=False),
        fan(8, [pyper(12)]),
        fan(64, fast=False),
        grain(0, 100_000, fast=False),
        grain(1, 100_000, fast=False),
        grain(10, 20_000),
        grain(100, 4_000, fast=False),
        row(
            "one call",
            "call of a one-task pipeline to its end, thread included",
            (*CHAINS, *POOLS, "by hand", "bare threads"),
            (pyper(50), best(3)),
            unit=US_EACH,
            items=200,
        ),
        row(
            "first output",
            "of a CPU-bound generator of 20 000 items | a CPU-bound task",
            (*CHAINS, "ThreadPool"),
            (at_most(2),),
            unit=MS,
            items=20_000,
            whole=True,
        ),
        row(
            "convoy",
            "5 000 items of 8 us of Python | 20 workers that sleep 1 ms; ideal 0.25 s",
            (*CHAINS, "futures", "ThreadPool", "joblib"),
            (at_most(0.325),),
            unit=SECONDS,
            items=5_000,
            whole=True,
        ),
        row(
            "500 sleepers",
            "20 000 items | 500 workers that sleep 1 ms; ideal 0.04 s",
            ("pypeln", "SPDL", "futures", "ThreadPool", "joblib"),
            (),
            unit=SECONDS,
            items=20_000,
            whole=True,
            fast=False,
        ),
        row(
            "small files",
            "range | reading a small file, in 20 workers",
            (*CHAINS, "futures", "ThreadPool", "joblib", "bare threads"),
            (),
            items=20_000,
            fast=False,
        ),
        row(
            "latency, p50",
            "one item a millisecond through source | inc, from its arrival to the caller",
            (*CHAINS, "ThreadPool", "by hand"),
            unit=US_EACH,
            items=300,
            fast_items=100,
            whole=True,
        ),
        row(
            "latency, p99",
            "the same",
            (*CHAINS, "ThreadPool", "by hand"),
            unit=US_EACH,
            items=1000,
            whole=True,
            rounds=3,
            fast=False,
        ),
        row(
            "throttle 1000",
            f"{THROTTLED}; {BUSY}",
            (*CHAINS, "by hand"),
            (best(3),),
            name="busy, throttle 1000",
            busy=True,
        ),
        row(
            "throttle 10",
            "the same",
            CHAINS,
            (best(3),),
            items=5_000,
            name="busy, throttle 10",
            busy=True,
            fast=False,
        ),
        row(
            "latency, p50",
            f"one item a millisecond through source | inc; {BUSY}",
            (*CHAINS, "ThreadPool", "by hand"),
            unit=US_EACH,
            items=300,
            fast_items=100,
            whole=True,
            name="busy, latency",
            busy=True,
            fast=False,
        ),
        row(
            "idle",
            "processor time of three tasks while they wait for their source, 10 s (FAST: 1 s)",
            (*CHAINS, "by hand"),
            (at_most(5),),
            unit=MS,
            items=100,
            fast_items=10,
            whole=True,
            warm=False,
            rounds=1,
        ),
        row(
            "memory",
            "10 million items (None) that wait in a queue without a bound",
            (),
            (at_most(8.5),),
            unit=BYTES,
            items=10_000_000,
            fast_items=2_000_000,
            fresh=True,
        ),
        row(
            "memory kept",
            "the same, and what is still taken when all have left",
            (),
            (at_most(0.5),),
            unit=BYTES,
            items=10_000_000,
            fast_items=2_000_000,
            fresh=True,
        ),
        growth("10^4 to 10^6", 1_000_000),
        growth("10^5 to 10^7", 10_000_000, fast=False),
    ]
