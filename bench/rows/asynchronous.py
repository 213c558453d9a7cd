"""Python: asynchronous tasks."""

from machine import Machine
from model import MS, SECONDS, US, Row, ahead, best, within

TITLE = "Python, asyncio"


def rows(machine: Machine) -> list[Row]:
    def row(scenario: str, what: str, wanted: float, **more: object) -> Row:
        systems = [machine.ours(scenario), *machine.python_pyper(scenario)]
        targets = (ahead(wanted, "python-pyper"), best(3))
        return Row(scenario, what, US, 200_000, systems, targets, **more)

    def beside(scenario: str, what: str, alone: str, most: float, **more: object) -> Row:
        systems = [machine.ours(scenario), machine.asyncio_alone(alone, scenario)]
        return Row(scenario, what, systems=systems, targets=(within(most, alone),), **more)

    return [
        row("async task", "range | async inc", 15),
        row("async, 20 workers", "range | async inc in 20 workers | async inc", 15),
        row("async, 4 threads", "range | async inc | inc in 4 threads", 60),
        row("async, 2 processes", "range | async inc | inc in 2 processes", 150),
        beside(
            "async sleepers",
            "20 000 items | 10 000 async workers that sleep 0.1 s; ideal 0.2 s",
            "asyncio.gather",
            1.5,
            unit=SECONDS,
            items=20_000,
            whole=True,
        ),
        beside(
            "loop lateness",
            "worst of a 1 ms timer beside 100 000 items of 8 us of Python in a thread | async inc",
            "busy thread",
            1.0,
            unit=MS,
            items=100_000,
            fast_items=20_000,
            whole=True,
        ),
    ]
