"""Python without the GIL: do thread workers and independent runs scale with the processors?"""

from machine import Machine
from model import US, Row, System, ahead

TITLE = "Python without the GIL"


def rows(machine: Machine) -> list[Row]:
    python = machine.free_threaded
    if not python:
        return []

    def ours(name: str, scenario: str) -> System:
        script = machine.script("scenarios.py")
        return System.of(name, python, script, scenario, kind="" if name == "pyper" else "floor")

    def scaling(us: int, **more: object) -> Row:
        """Against the same with one worker, and against what else uses several threads."""
        scenario = f"2 workers, {us} us"
        peers = machine.script("peers.py")
        others = [("futures", ""), ("ThreadPool", ""), ("bare threads", "floor")]
        systems = [
            ours("pyper", scenario),
            ours("1 worker", f"1 worker, {us} us"),
            *(System.of(name, python, peers, name, scenario, kind=kind) for name, kind in others),
        ]
        what = f"range | {us} us of Python in 2 workers"
        targets = (ahead(1.8, "1 worker"),)
        return Row(f"no GIL: {us} us, 2 workers", what, US, 20_000, systems, targets, **more)

    runs = Row(
        "no GIL: 2 runs at once",
        "two runs of range | inc, each taken by a thread of its own; an item of either",
        US,
        1_000_000,
        [ours("pyper", "2 runs"), ours("1 run", "1 run")],
        (ahead(1.8, "1 run"),),
    )
    return [scaling(50), scaling(200, fast=False), runs]
