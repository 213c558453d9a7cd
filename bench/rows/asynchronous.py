"""Python: asynchronous tasks."""

from machine import Machine
from model import US, Row, ahead, best

TITLE = "Python, asyncio"


def rows(machine: Machine) -> list[Row]:
    def row(scenario: str, what: str, wanted: float, **more: object) -> Row:
        systems = [machine.ours(scenario), *machine.python_pyper(scenario)]
        targets = (ahead(wanted, "python-pyper"), best(3))
        return Row(scenario, what, US, 200_000, systems, targets, **more)

    return [
        row("async task", "range | async inc", 15),
        row("async, 20 workers", "range | async inc in 20 workers | async inc", 15),
        row("async, 4 threads", "range | async inc | inc in 4 threads", 60),
    ]
