"""The way of an item through Python tasks, for callgrind to count instructions.

    valgrind --tool=callgrind python bench/paths.py MARKS ITEMS

MARKS is the shared library made from bench/c/marks.c.  As in bench/c/paths.c nobody runs beside the
path that is counted: the first item of each stage waits until the stage before it has done all it
has to do.
"""

import ctypes
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice

from pyper import task

marks = ctypes.CDLL(sys.argv[1])
items = int(sys.argv[2])


class Mark:
    """An item that does something when the function adds to it."""

    def __init__(self, do: Callable[[], object]):
        self.do = do

    def __add__(self, other: int) -> None:
        self.do()


def inc(x: int) -> int:
    return x + 1


entered, pushed, turned = (threading.Event() for _ in range(3))


def first() -> None:
    entered.set()
    pushed.wait()
    marks.begin()


def last() -> None:
    marks.end(b"Python: turn")
    turned.set()


def source(n: int) -> Iterator[object]:
    yield Mark(first)
    entered.wait()
    marks.begin()
    yield from range(n)
    marks.end(b"Python: push")
    yield Mark(last)
    pushed.set()


outputs = (task(source, branch=True) | task(inc))(items)
next(outputs)
turned.wait()
marks.begin()
deque(islice(outputs, items), maxlen=0)
marks.end(b"Python: pop by the caller")
if list(outputs) != [None]:
    sys.exit("the outputs are not what they should be")
