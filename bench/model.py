"""What a row of the benchmark is: a scenario, its systems, and what is wanted of ours."""

from collections.abc import Sequence
from dataclasses import dataclass, field

OURS = "pyper"


@dataclass(frozen=True)
class System:
    """A program that does rounds of a scenario, one for each line of its standard input.

    A line holds a count; the program answers with a figure, in the base unit (seconds, mostly), and
    with the processor seconds of the round.
    """

    name: str
    command: tuple[str, ...]
    kind: str = "peer"  # "ours", "peer", or "floor": what can be had without any such library

    @staticmethod
    def of(name: str, *command: object, kind: str = "") -> "System":
        words = tuple(str(word) for word in command)
        return System(name, words, kind or ("ours" if name == OURS else "peer"))


# What rows that are `busy` say.
BUSY = "on each processor a process that only computes"


@dataclass(frozen=True)
class Unit:
    """How figures of a row are shown."""

    name: str
    scale: float  # from the base unit
    per_item: bool = True  # then processor seconds are shown for each item, too
    more_is_better: bool = False


NS = Unit("ns/item", 1e9)
US = Unit("us/item", 1e6)
BYTES = Unit("bytes/item", 1.0)
SECONDS = Unit("s", 1.0, per_item=False)
MS = Unit("ms", 1e3, per_item=False)
US_EACH = Unit("us", 1e6, per_item=False)
NS_EACH = Unit("ns", 1e9, per_item=False)
TIMES = Unit("times", 1.0, per_item=False)


@dataclass(frozen=True)
class Target:
    """What is wanted of a row.

    kind      what `value` says
    ahead     another system takes at least that many times as much as ours
    best      and so does each peer (floors are no peers)
    within    ours takes at most that many times as much as another
    at most   our figure is at most that, in the row's unit
    """

    kind: str
    value: float
    against: str = ""
    remark: str = ""  # "stretch", say

    def text(self, unit: Unit) -> str:
        words = {
            "ahead": f"at least {self.value:.3g}x {self.against}",
            "best": f"at least {self.value:.3g}x the best peer",
            "within": f"at most {self.value:.4g}x {self.against}",
            "at most": f"at most {self.value:g} {unit.name}",
        }[self.kind]
        return f"{words} ({self.remark})" if self.remark else words


def ahead(value: float, against: str) -> Target:
    return Target("ahead", value, against)


def best(value: float) -> Target:
    return Target("best", value)


def within(value: float, against: str) -> Target:
    return Target("within", value, against)


def at_most(value: float, remark: str = "") -> Target:
    return Target("at most", value, remark=remark)


@dataclass(frozen=True)
class Row:
    """One scenario.

    items       how many items (calls, samples) a round of ours has.  A slow peer gets fewer, so
                that its round takes about as long as the effort has for it.
    whole       the figure is one of the whole round, not an average: everybody gets as many.
    fast        whether FAST=1 runs it.
    fast_items  how many items it then has; if nothing is said a quarter, unless `whole`.
    fresh       whether each round needs a new process.
    warm        whether there is a first round that does not count.
    rounds      at most so many.
    busy        whether a process that only computes is on each processor meanwhile.
    """

    name: str
    what: str
    unit: Unit
    items: int
    systems: Sequence[System]
    targets: Sequence[Target] = field(default_factory=tuple)
    whole: bool = False
    fast: bool = True
    fast_items: int | None = None
    fresh: bool = False
    warm: bool = True
    rounds: int = 1000
    busy: bool = False
