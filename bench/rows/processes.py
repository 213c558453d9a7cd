"""Tasks in processes, in Python and in C."""

from machine import Machine
from model import MS, NS, SECONDS, US, Row, Unit, ahead, at_most, within

TITLE = "processes"

US_AN_ITEM = Unit("us/item", 1e6)
POOL = "Pool.imap, chunks of 1000"


def rows(machine: Machine) -> list[Row]:
    def blocks(kind: str, most: float) -> Row:
        what = f"8 MiB of {kind} through a process task and back"
        systems = [machine.ours(f"8 MiB, {kind}"), *machine.python_pyper(f"8 MiB, {kind}")]
        return Row(f"8 MiB, {kind}", what, MS, 200, systems, (at_most(most),), fast_items=50)

    def floor(name: str, scenario: str):
        ours = machine.ours(scenario)
        return type(ours)(name, ours.command, "floor")

    def crossing(size: int, places: int, items: int, most: float, unit: Unit) -> Row:
        what = f"items of {size} bytes through a process task, in and out"
        systems = [machine.c_program("pyper", "processes", size, places)]
        targets = (at_most(most),)
        return Row(f"C: {size} bytes to a process", what, unit, items, systems, targets)

    return [
        Row(
            "2 processes",
            "range | inc in 2 processes",
            US,
            300_000,
            [
                machine.ours("2 processes"),
                *machine.python_pyper("2 processes"),
                machine.pool_alone(POOL, "2 processes"),
            ],
            (ahead(150, "python-pyper"), within(1.0, POOL)),
        ),
        Row(
            "two process tasks",
            "range | inc in a process | inc in a process",
            US,
            300_000,
            [machine.ours("two process tasks"), floor("one process task", "1 process")],
            (within(2.2, "one process task"),),
        ),
        blocks("arrays", 2.1),
        blocks("bytes", 3.36),
        Row(
            "20 ms in 2 processes",
            "50 items of 20 ms of Python in 2 processes",
            SECONDS,
            50,
            [machine.ours("20 ms in 2 processes"), floor("1 process", "20 ms in 1 process")],
            (ahead(1.9, "1 process"),),
            whole=True,
        ),
        Row(
            "first output, fork",
            "from the start to the first output of 2 processes, forked",
            MS,
            5,
            [machine.ours("first output, fork"), *machine.python_pyper("first output, fork")],
            (at_most(6),),
        ),
        crossing(64, 1024, 1_000_000, 100, NS),
        crossing(1 << 20, 16, 5_000, 105, US_AN_ITEM),
        Row(
            "C: wake-up, process",
            "an item each 200 us from a process for a consumer that sleeps, on another processor:"
            " until it has it, p50",
            US_AN_ITEM,
            1000,
            [
                machine.c_program("pyper", "costs", "wake-process", "pyper"),
                machine.c_program("raw futex", "costs", "wake-process", "futex", kind="floor"),
            ],
            (within(1.2, "raw futex"),),
            fast_items=250,
            whole=True,
        ),
    ]
