"""C: what the engine costs, without Python."""

from collections.abc import Sequence

from machine import Machine
from model import (
    BUSY,
    BYTES,
    NS,
    TIMES,
    US_EACH,
    Row,
    System,
    Target,
    Unit,
    ahead,
    at_most,
    within,
)

TITLE = "C"

WORKING = Unit("us/item", 1e6)
MS_OF_CPU = Unit("ms", 1e3, per_item=False)
TBB = "oneTBB"
THREADS = "bare threads"
LINE = "cache line"


def stretch(value: float) -> Target:
    """What a bare prototype of rings and yields reached."""
    return at_most(value, "stretch")


def rows(machine: Machine) -> list[Row]:
    if not machine.c:
        return []

    def chain(
        name: str,
        tasks: int,
        workers: int,
        targets: Sequence[Target] = (),
        bound: int = 1024,
        ordered: bool = False,
        loops: int = 0,
        busy: bool = False,
        **more: object,
    ) -> Row:
        shape = (tasks, workers, bound)
        systems = [
            machine.c_program("pyper", "chain", f"pyper{'-ordered' * ordered}", *shape, loops)
        ]
        if "chain_tbb" in machine.c:
            systems.append(machine.c_program(TBB, "chain_tbb", "chain", *shape, loops))
        if "chain_fastflow" in machine.c:
            for label, places in (("FastFlow", bound), ("FastFlow, no bound", 0)):
                arguments = (tasks, workers, places, int(ordered), loops)
                systems.append(machine.c_program(label, "chain_fastflow", *arguments))
        systems.append(machine.c_program("textbook", "chain", "textbook", *shape, loops))
        if loops:
            each = (tasks, min(workers, machine.processors), bound, loops)
            systems.append(machine.c_program(THREADS, "chain", "threads", *each, kind="floor"))
        else:
            systems.append(machine.c_program("loop", "chain", "loop", *shape, kind="floor"))
        if machine.processors > 1 and not busy:
            systems.append(machine.c_program(LINE, "costs", "distance", "bare", kind="floor"))
        what = f"{tasks} tasks in a chain, at most {bound or 'any number'} waiting behind each"
        if workers > 1:
            what = (
                f"source, {workers} workers{', ordered' * ordered}, sink; at most {bound} waiting"
            )
        if busy:
            what += f"; {BUSY}"
        options: dict[str, object] = {"items": 30_000_000, "fast_items": 2_000_000, "busy": busy}
        return Row(
            f"C: {name}", what, systems=systems, targets=targets, **({"unit": NS} | options | more)
        )

    def working(
        us: int, wanted: float | None, workers: int = 4, ordered: bool = False, **more: object
    ) -> Row:
        targets = []
        if wanted:
            # Of an efficiency of 95 % the processors' time is 1 / 0.95 of what bare threads need.
            targets.append(Target("within", 1 / wanted, THREADS, f"{wanted:.0%} efficiency"))
        return chain(
            f"{us} us of work, {workers} worker{'s' * (workers > 1)}{', ordered' * ordered}",
            3,
            workers,
            targets,
            ordered=ordered,
            loops=us * machine.loops_per_us,
            unit=WORKING,
            items=1_000_000 // us,
            fast_items=None,
            **more,
        )

    def costs(
        name: str,
        what: str,
        unit: Unit,
        items: int,
        arguments: Sequence[object],
        others: Sequence[System] = (),
        targets: Sequence[Target] = (),
        **more: object,
    ) -> Row:
        systems = [machine.c_program("pyper", "costs", *arguments, "pyper"), *others]
        return Row(f"C: {name}", what, unit, items, systems, targets, **more)

    def tbb(*arguments: object) -> list[System]:
        if "chain_tbb" not in machine.c:
            return []
        return [machine.c_program(TBB, "chain_tbb", *arguments)]

    def futex(*arguments: object) -> list[System]:
        return [machine.c_program("raw futex", "costs", *arguments, "futex", kind="floor")]

    def throttle(bound: int, targets: Sequence[Target] = (), **more: object) -> Row:
        return chain(f"bound {bound or 'none'}", 3, 1, targets, bound, **more)

    few = {"items": 200_000, "fast_items": None}
    return [
        chain("2 in a chain", 2, 1, fast=False),
        chain(
            "3 in a chain",
            3,
            1,
            (ahead(15, TBB), ahead(1, "FastFlow, no bound"), stretch(8)),
        ),
        chain("4 in a chain", 4, 1, fast=False),
        chain("8 in a chain", 8, 1, (ahead(20, TBB), stretch(20))),
        chain("16 in a chain", 16, 1, fast=False),
        chain("1 worker, ordered", 3, 1, ordered=True, fast=False),
        chain("2 workers", 3, 2, fast=False),
        chain("4 workers", 3, 4, (ahead(10, TBB), stretch(15))),
        chain("4 workers, ordered", 3, 4, (ahead(10, TBB), stretch(15)), ordered=True),
        chain("8 workers", 3, 8, fast=False),
        chain("64 workers", 3, 64),
        throttle(1, (at_most(1000),), **few),
        throttle(10, fast=False, **few),
        throttle(1000, fast=False),
        throttle(0),
        chain("busy, 3 in a chain", 3, 1, busy=True, items=3_000_000, fast_items=300_000),
        chain("busy, 4 workers", 3, 4, busy=True, items=2_000_000, fast=False),
        chain("busy, bound 1", 3, 1, bound=1, busy=True, items=20_000, fast=False),
        working(1, 0.95),
        working(1, 0.95, ordered=True, fast=False),
        working(10, 0.98),
        working(10, 0.98, ordered=True, fast=False),
        working(100, 0.98, fast=False),
        working(10, None, workers=1),
        costs(
            "wake-up",
            "an item each 200 us for a consumer that sleeps, on another processor:"
            " until it has it, p50",
            US_EACH,
            1000,
            ["wake"],
            futex("wake"),
            (within(1.2, "raw futex"),),
            fast_items=250,
            whole=True,
        ),
        costs(
            "latency, p50",
            "an item a millisecond through source, f and sink",
            US_EACH,
            300,
            ["latency", 50],
            [*futex("latency", 50), *tbb("latency", 50)],
            fast_items=100,
            whole=True,
        ),
        costs(
            "latency, p99",
            "the same",
            US_EACH,
            1000,
            ["latency", 99],
            [*futex("latency", 99), *tbb("latency", 99)],
            whole=True,
            rounds=3,
            fast=False,
        ),
        costs(
            "start and end",
            "a run of 3 tasks and one item, against 3 threads that do nothing",
            US_EACH,
            2000,
            ["start"],
            [
                machine.c_program(THREADS, "costs", "start", "threads", kind="floor"),
                *tbb("start"),
            ],
            (within(1.3, THREADS),),
        ),
        costs(
            "idle",
            "processor time of three tasks while they wait for their source, 10 s (FAST: 1 s)",
            MS_OF_CPU,
            100,
            ["idle"],
            [machine.c_program("bare sleep", "costs", "idle", "sleep", kind="floor")],
            targets=(at_most(5),),
            fast_items=10,
            whole=True,
            warm=False,
            rounds=1,
        ),
        costs(
            "memory",
            "10 million pointers that wait in a queue without a bound",
            BYTES,
            10_000_000,
            ["memory"],
            tbb("memory"),
            (at_most(8.5),),
            fast_items=2_000_000,
            fresh=True,
        ),
        costs(
            "memory kept",
            "the same, and what is still taken when all have left",
            BYTES,
            10_000_000,
            ["kept"],
            tbb("kept"),
            (at_most(0.5),),
            fast_items=2_000_000,
            fresh=True,
        ),
        *(
            costs(
                f"growth, {name}",
                "source, f, sink, no bound: the cost of an item of the many, by that of the few",
                TIMES,
                items,
                ["growth"],
                (),
                (at_most(1.5),),
                whole=True,
            )
            for name, items in (("10^4 to 10^6", 1_000_000), ("10^5 to 10^7", 10_000_000))
        ),
    ]
