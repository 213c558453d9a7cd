"""Process workers (`multiprocess=True`), with each start method.

The functions of the tasks stand at the top level of this module: a worker finds them by name.
"""

from __future__ import annotations

import abc
import collections
import contextlib
import copyreg
import dataclasses
import datetime
import decimal
import enum
import errno
import fractions
import itertools
import multiprocessing
import os
import pathlib
import random
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
import traceback
import uuid
from collections.abc import Generator, Iterable, Iterator
from functools import partial
from multiprocessing import forkserver, resource_tracker
from pathlib import Path
from typing import Any

import pytest

import pyper
import pyper._processes as _processes
from helpers import PATIENCE, Program, until
from pyper import task

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="process workers need Linux"),
    # We fork beside pytest's own threads; Python says so from 3.12 on.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]


METHODS = ["fork", "forkserver", "spawn"]


@pytest.fixture(scope="module", autouse=True)
def servers() -> None:
    """Start what multiprocessing keeps for the whole session, so that it is not taken for ours."""
    resource_tracker.ensure_running()
    forkserver.ensure_running()


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def method(request: pytest.FixtureRequest) -> Iterator[str]:
    """The start method that "the user" has chosen."""
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(request.param, force=True)
    yield request.param
    multiprocessing.set_start_method(before, force=True)


@pytest.fixture
def fork() -> Iterator[None]:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method("fork", force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


def descriptors() -> set[str]:
    """The descriptors of this process that are of the kinds a run has."""
    found = set()
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.add(f"{entry.name} {entry.readlink()}")
    return {name for name in found if "memfd:pyper" in name or "anon_inode" in name}


def count_of_descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def shared_memory() -> int:
    """How many mappings of our shared memory there are."""
    return Path("/proc/self/maps").read_text().count("memfd:pyper")


def workers_alive() -> list[Any]:
    """The processes of runs; a server that forks for others stays."""
    return [p for p in multiprocessing.active_children() if "ForkServer" not in p.name]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """After each test: no process, no descriptor, no shared memory."""
    before = descriptors()
    named = set(Path("/dev/shm").iterdir())
    yield
    assert workers_alive() == []
    assert descriptors() <= before
    assert shared_memory() == 0
    # Other programs of this machine have names there for a moment, too.
    until(lambda: set(Path("/dev/shm").iterdir()) <= named)


@contextlib.contextmanager
def nothing_stays() -> Iterator[None]:
    """Wait until nothing of a run that is dropped inside is left: that takes its time."""
    descriptors_before = descriptors()
    yield
    until(lambda: not workers_alive())
    until(lambda: not [t for t in threading.enumerate() if t.name == "pyper-processes"])
    until(lambda: shared_memory() == 0 and descriptors() <= descriptors_before)


# --------------------------------------------------------------------------- functions of tasks


def inc(x: int) -> int:
    return x + 1


def same(x: Any) -> Any:
    return x


def repeat(x: int) -> Iterator[int]:
    for _ in range(x % 4):
        yield x


def total(data: Iterable[int]) -> int:
    return sum(data)


def scaled(x: int, by: int, plus: int = 0) -> int:
    return x * by + plus


def first_three(data: Iterator[int]) -> Iterator[int]:
    for _, item in zip(range(3), data, strict=False):
        yield item


def endless(start: int) -> Iterator[int]:
    while True:
        yield start
        start += 1


def pid(_: object) -> int:
    return os.getpid()


def pid_and_stay(x: object) -> Iterator[int]:
    yield os.getpid()
    time.sleep(1000)


def pid_too(first: int) -> Iterator[int]:
    yield first
    yield os.getpid()


def pids_of_two_that_stay() -> pyper.Outputs[int]:
    """A run of two workers, both of which stay; its outputs are their numbers."""
    return (
        task(pid_and_stay, branch=True, multiprocess=True)
        | task(pid_too, branch=True, multiprocess=True)
    )(0)


def raise_value_error(x: int) -> int:
    if x == 3:
        raise ValueError("three is bad")
    return x


def stop_iteration(x: int) -> int:
    raise StopIteration(x)


class Picky(Exception):
    """Pickles, but cannot be unpickled."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__("only the message")


class Unpicklable(Exception):
    """Cannot be pickled."""

    def __init__(self) -> None:
        super().__init__("with a lock")
        self.lock = threading.Lock()


@dataclasses.dataclass(frozen=True)
class Frozen(Exception):
    """Refuses all changes, so also notes and a cause."""


class NoCause(Exception):
    __cause__ = property(lambda self: None)  # type: ignore[assignment]


class NoNotes(Exception):
    @property
    def __notes__(self) -> list[str]:  # type: ignore[override]
        raise LookupError("no notes")


class Words(str):
    def __reduce__(self) -> Any:
        raise TypeError("no words")


class OddWords(Exception):
    def __str__(self) -> str:
        return Words("odd words")


class LeavesWhenPickled(Exception):
    def __reduce__(self) -> Any:
        raise SystemExit(3)


class LeavesWhenUnpickled(Exception):
    def __reduce__(self) -> Any:
        return (sys.exit, (3,))


class LeavesWhenRead(Unpicklable):
    def __str__(self) -> str:
        raise KeyboardInterrupt


def raise_and_leave(x: int, kind: type[Exception]) -> int:
    raise kind() if kind is LeavesWhenRead else kind("its words")


def raise_picky(x: int) -> int:
    raise Picky(1, 2)


def raise_unpicklable(x: int) -> int:
    raise Unpicklable


def leave_by_exit(x: int) -> int:
    raise SystemExit(7)


def make_lock(x: int) -> Any:
    return threading.Lock()


def loads_badly(x: int) -> Any:
    return LoadsBadly()


def badly_at_two(x: int) -> Any:
    return LoadsBadly() if x == 2 else x


def _explode() -> None:
    raise ValueError("not here")


class LoadsBadly:
    def __reduce__(self) -> Any:
        return (_explode, ())


def die_of_signal(x: int) -> int:
    if x == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def long_named(x: int) -> int:
    if x == 3:
        os._exit(3)
    return x


long_named.__name__ = "字" * 48  # 144 bytes


def die_by_exit(x: int) -> int:
    if x == 5:
        os._exit(3)
    return x


def printing(x: int) -> int:
    print("from the worker", x)
    return x


class Adder:
    """An object with __call__."""

    def __init__(self, by: int) -> None:
        self.by = by

    def __call__(self, x: int) -> int:
        return x + self.by

    def add(self, x: int) -> int:
        return x + self.by


@task(multiprocess=True, workers=2)
def decorated(x: int) -> int:
    return x * 2


@task(branch=True)
def numbers(n: int) -> Iterable[int]:
    return range(n)


def nested_processes(n: int) -> int:
    """Runs a pipeline with processes of its own."""
    inner = numbers | task(inc, multiprocess=True, workers=2) | task(total, join=True)
    (result,) = inner(n)
    return result


def main_thread(x: int) -> bool:
    return threading.current_thread() is threading.main_thread()


def same_array(x: Any) -> Any:
    x += 1  # writable, and private
    return x


def big_output(n: int) -> bytes:
    return b"x" * n


class Point:
    def __init__(self, x: int, y: int) -> None:
        self.x, self.y = x, y

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and (self.x, self.y) == (other.x, other.y)

    __hash__ = None  # type: ignore[assignment]


# -------------------------------------------------------------------------------- the options


@pytest.mark.parametrize("where", range(1, 8))
def test_processes_in_any_position(fork: None, where: int) -> None:
    pipeline = (
        task(range, branch=True, multiprocess=bool(where & 1))
        | task(inc, multiprocess=bool(where & 2))
        | task(inc, multiprocess=bool(where & 4))
    )
    assert list(pipeline(200)) == list(range(2, 202))


def test_each_start_method(method: str) -> None:
    pipeline = (
        numbers
        | task(inc, multiprocess=True, workers=2, ordered=True, throttle=10)
        | task(repeat, branch=True, multiprocess=True)
        | task(same)
        | task(scaled, bind=task.bind(by=10, plus=1), multiprocess=True)
    )
    expected = [x * 10 + 1 for i in range(100) for x in repeat(i + 1)]
    assert list(pipeline(100)) == expected
    assert list(pipeline(100)) == expected


def test_workers_are_other_processes(method: str) -> None:
    pids = set((numbers | task(pid, multiprocess=True))(50))
    assert len(pids) == 1
    assert pids.isdisjoint({os.getpid()})


def test_several_workers_lose_and_double_nothing(fork: None) -> None:
    pipeline = numbers | task(inc, multiprocess=True, workers=4) | task(inc, workers=3)
    assert sorted(pipeline(5000)) == list(range(2, 5002))


@pytest.mark.parametrize("throttle", [0, 1, 7])
def test_order_is_kept(fork: None, throttle: int) -> None:
    pipeline = numbers | task(
        repeat, branch=True, multiprocess=True, workers=3, ordered=True, throttle=throttle
    )
    assert list(pipeline(500)) == [x for i in range(500) for x in repeat(i)]


def test_join_gives_each_item_to_one_process(fork: None) -> None:
    pipeline = numbers | task(total, join=True, multiprocess=True, workers=3)
    totals = list(pipeline(2000))
    assert len(totals) == 3
    assert sum(totals) == sum(range(2000))


@pytest.mark.parametrize("before", [False, True])
def test_a_join_that_has_enough_ends_what_is_before(fork: None, before: bool) -> None:
    pipeline = task(endless, branch=True, throttle=10, multiprocess=before) | task(
        first_three, branch=True, join=True, multiprocess=True
    )
    assert list(pipeline(7)) == [7, 8, 9]


def test_first_task_in_a_process_with_arguments(method: str) -> None:
    assert list(task(scaled, multiprocess=True)(4, by=5, plus=2)) == [22]


def test_all_kinds_of_callables(method: str) -> None:
    for func in (Adder(3), Adder(3).add, partial(scaled, by=1, plus=3)):
        assert list((numbers | task(func, multiprocess=True))(5)) == [3, 4, 5, 6, 7]


def test_decorated_functions(method: str) -> None:
    assert sorted((numbers | decorated)(10)) == list(range(0, 20, 2))
    assert list(decorated.tasks[0].func.__name__) == list("decorated")


def test_a_pipeline_is_a_function(method: str) -> None:
    inner = numbers | task(inc)
    pipeline = numbers | task(inner, branch=True, multiprocess=True)
    assert list(pipeline(4)) == [1, 1, 2, 1, 2, 3]


def test_workers_may_run_processes_of_their_own(method: str) -> None:
    pipeline = numbers | task(nested_processes, multiprocess=True, workers=2, ordered=True)
    assert list(pipeline(6)) == [sum(range(1, n + 1)) for n in range(6)]


def shared_with_what_is_executed(_: object) -> list[str]:
    """Which descriptors of the run a program that is executed in this process would have."""
    entries = list(Path("/proc/self/fd").iterdir())  # the one that listed them is closed by now
    shared = [entry for entry in entries if entry.exists() and os.get_inheritable(int(entry.name))]
    names = [str(entry.readlink()) for entry in shared]
    return [name for name in names if name.startswith(("/memfd:", "anon_inode:"))]


def test_what_a_worker_executes_has_nothing_of_the_run(method: str) -> None:
    pipeline = task(range, branch=True) | task(shared_with_what_is_executed, multiprocess=True)
    assert list(pipeline(1)) == [[]]


def test_functions_run_in_the_main_thread(method: str) -> None:
    assert list((numbers | task(main_thread, multiprocess=True))(2)) == [True, True]


def test_statistics(fork: None) -> None:
    outputs = (numbers | task(inc, multiprocess=True, workers=2))(1000)
    assert len(list(outputs)) == 1000
    stats = outputs.stats()
    assert (stats[1].name, stats[1].workers, stats[1].alive) == ("inc", 2, 0)
    assert (stats[1].items_in, stats[1].items_out, stats[1].queued) == (1000, 1000, 0)
    assert stats[1].busy > 0


def test_runs_beside_each_other(fork: None) -> None:
    pipeline = numbers | task(inc, multiprocess=True, throttle=3)
    runs = [pipeline(100) for _ in range(3)]
    for _ in range(100):
        assert len({next(run) for run in runs}) == 1
    for run in runs:
        assert list(run) == []


# ------------------------------------------------------------------------------------- items

ITEMS: list[Any] = [
    None, True, False, 0, -1, 2**63 - 1, -(2**63), 2**63, 10**30, 1.5, float("inf"), "", "text",
    "ü€😀", "\udc80", "x" * 10_000_000, b"", b"bytes", b"b" * 5_000_000, bytearray(b"array"),
    (1, "two", [3.0]), {"a": {1, 2}}, Point(1, 2), range(5), 1j, frozenset({1}), int, len,
]  # fmt: skip


def test_items_of_all_kinds(method: str) -> None:
    pipeline = task(iter_items, branch=True) | task(same, multiprocess=True)
    results = list(pipeline())
    assert results == ITEMS
    assert [type(item) for item in results] == [type(item) for item in ITEMS]


def iter_items() -> Iterator[Any]:
    yield from ITEMS


class Colour(enum.Enum):
    RED = 1


class Slots:
    __slots__ = ("a", "b")

    def __init__(self, a: int) -> None:
        self.a, self.b = a, [a]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slots) and (self.a, self.b) == (other.a, other.b)

    __hash__ = None  # type: ignore[assignment]


class Stateful:
    """Counts how often it has crossed."""

    def __init__(self) -> None:
        self.crossed = 0

    def __getstate__(self) -> list[int]:
        return [self.crossed]

    def __setstate__(self, state: list[int]) -> None:
        self.crossed = state[0] + 1


class WithNew:
    def __new__(cls, *args: int) -> WithNew:
        made = super().__new__(cls)
        made.args = args
        return made

    args: tuple[int, ...]

    def __getnewargs__(self) -> tuple[int, ...]:
        return self.args

    def __eq__(self, other: object) -> bool:
        return isinstance(other, WithNew) and self.__dict__ == other.__dict__

    __hash__ = None  # type: ignore[assignment]


Pair = collections.namedtuple("Pair", "first second")


class ListOfSorts(list[int]):
    extra = None


OBJECTS: list[Any] = [
    Point(1, [2, {"three": None}]), Colour.RED, Slots(3), WithNew(1, 2), Pair(1, [2]), Point, same,
    datetime.datetime(2020, 1, 2, tzinfo=datetime.UTC), datetime.timedelta(3),
    decimal.Decimal("1.5"), fractions.Fraction(1, 3), uuid.UUID(int=7), pathlib.PurePath("a/b"),
    collections.OrderedDict(a=1, b=2), collections.defaultdict(list, a=[1]), collections.deque([1]),
    collections.Counter("aab"), ListOfSorts([1, 2]), {Point: [Colour.RED]}, (), [], {}, set(),
    [1] * 300, ["x" * 300, "y" * 300], "x" * 446, ("x" * 200, "ü" * 100), {(1, (2,)): {3}},
    [2**70], ["\udc80"], bytearray(b"x"), [b"x", bytearray(b"y")], slice(1, 2), Ellipsis,
    type(None),
]  # fmt: skip


def iter_objects() -> Iterator[Any]:
    yield from OBJECTS


def test_objects_of_all_kinds(method: str) -> None:
    pipeline = task(iter_objects, branch=True) | task(same, multiprocess=True)
    results = list(pipeline())
    assert results == OBJECTS
    assert [type(item) for item in results] == [type(item) for item in OBJECTS]
    assert results[-2] is Ellipsis


def test_pickles_methods_are_used(fork: None) -> None:
    (result,) = task(same, multiprocess=True)(Stateful())
    assert result.crossed == 2


class HasShared:
    """Its state is something that others may have as well."""

    def __init__(self, shared: dict[str, int]) -> None:
        self.shared = shared

    def __getstate__(self) -> dict[str, int]:
        return self.shared

    def __setstate__(self, state: dict[str, int]) -> None:
        self.shared = state


class SharesByHook:
    """The same, by an attribute of its own and by a tuple that it keeps."""

    def __init__(self, shared: tuple[Any, ...]) -> None:
        self.shared = shared

    def __reduce__(self) -> Any:
        return (SharesByHook._made, self.shared)

    @staticmethod
    def _made(*shared: Any) -> SharesByHook:
        return SharesByHook(shared)


def test_what_two_states_share_they_share_at_the_other_end(fork: None) -> None:
    pipeline = task(same, multiprocess=True)
    shared = {"one": 1}
    ((first, second),) = pipeline([HasShared(shared), HasShared(shared)])
    assert first.shared is second.shared
    inside = ([1],)
    ((one, other),) = pipeline([SharesByHook(inside), SharesByHook(inside)])
    assert one.shared[0] is other.shared[0]
    errors = [ValueError([1]), ValueError()]
    errors[1].args = errors[0].args
    ((left, right),) = pipeline(errors)
    assert left.args[0] is right.args[0]
    point = Point(1, 2)
    ((again, names),) = pipeline((point, point.__dict__))
    assert again.__dict__ == names == {"x": 1, "y": 2}


class Consumed:
    """Is empty once it has been reduced."""

    def __init__(self, n: int) -> None:
        self.numbers = iter(range(n))

    def __reduce__(self) -> Any:
        return (list, (list(self.numbers),))


class CountsItsReductions:
    """Says by each hook of pickle's how often it was asked."""

    asked = 0

    def _ask(self) -> int:
        type(self).asked += 1
        return type(self).asked


class ByGetState(CountsItsReductions):
    def __getstate__(self) -> dict[str, Any]:
        return {"asked": self._ask(), "much": list(range(200))}


class ByNewArgs(CountsItsReductions):
    def __new__(cls, asked: int = 0) -> ByNewArgs:
        made = super().__new__(cls)
        made.__dict__["asked"] = asked
        return made

    def __init__(self, *_: int) -> None:
        self.much = list(range(200))

    def __getnewargs__(self) -> tuple[int]:
        return (self._ask(),)


class ByAttributes(CountsItsReductions):
    """Asked for what it has, it counts."""

    def __init__(self) -> None:
        self.much = list(range(200))

    def __getattribute__(self, name: str) -> Any:
        if name == "__reduce_ex__":
            object.__getattribute__(self, "_ask")()
        return object.__getattribute__(self, name)


class ByItself(CountsItsReductions):
    """Only the object has the hook, not its class."""

    def __init__(self) -> None:
        self.__dict__["__reduce_ex__"] = self.reduce

    def reduce(self, protocol: int) -> Any:
        return (list, ([self._ask(), *range(200)],))


class Iterated(list[int]):
    asked = 0

    def __iter__(self) -> Iterator[int]:
        type(self).asked += 1
        return super().__iter__()


@pytest.mark.parametrize("n", [10, 100])
def test_what_is_reduced_is_reduced_once(fork: None, n: int) -> None:
    outputs = task(same, multiprocess=True)(Consumed(n))  # nobody else may refer to it
    assert list(outputs) == [list(range(n))]


@pytest.mark.parametrize("kind", [ByGetState, ByNewArgs, ByAttributes, ByItself, Iterated])
def test_each_hook_is_called_once(fork: None, kind: Any) -> None:
    kind.asked = 0
    for _ in task(id, multiprocess=True)(kind()):
        pass
    assert kind.asked == 1


class Foo(abc.ABC):  # noqa: B024
    """A class whose instances are reduced by something that would take the class as well."""

    def __reduce_ex__(self, protocol: Any = 4) -> Any:
        return (Foo, ())


def test_a_class_with_a_metaclass_stays_a_class(fork: None) -> None:
    assert list(task(same, multiprocess=True)(Foo)) == [Foo]
    ((again,),) = task(same, multiprocess=True)([Foo])
    assert again is Foo


def reduce_to_eleven(x: SpeaksForItself) -> Any:
    return (int, ("11",))


class SpeaksForItself:
    """Says by copyreg what it becomes."""


copyreg.pickle(SpeaksForItself, reduce_to_eleven)


def test_copyregs_table_is_used(fork: None) -> None:
    (result,) = task(same, multiprocess=True)([SpeaksForItself()])
    assert result == [11]


def tangle(rng: random.Random, depth: int, seen: list[Any]) -> Any:
    """Some structure that refers to parts of itself now and then."""
    if seen and rng.random() < 0.1:
        return rng.choice(seen)
    if depth == 0 or rng.random() < 0.3:
        return rng.choice([None, True, 7, -(2**40), 2**80, 0.5, "text", b"bytes", Colour.RED])
    parts = [tangle(rng, depth - 1, seen) for _ in range(rng.randrange(4))]
    made: Any = rng.choice(
        [
            list,
            tuple,
            lambda parts: dict(enumerate(parts)),
            lambda parts: Point(len(parts), parts),
            lambda parts: Pair(parts, None),
        ]
    )(parts)
    seen.append(made)
    if isinstance(made, list) and rng.random() < 0.05:
        made.append(made)
    return made


def outline(value: Any, numbers: dict[int, int], kept: list[Any]) -> Any:
    """What a structure looks like, with what is in it twice as such."""
    if isinstance(value, (list, dict, Point)):
        if id(value) in numbers:
            return f"again {numbers[id(value)]}"
        numbers[id(value)] = len(numbers)
        kept.append(value)
    if isinstance(value, Point):
        return "point", outline(value.__dict__, numbers, kept)
    if isinstance(value, dict):
        return "dict", [(key, outline(item, numbers, kept)) for key, item in value.items()]
    if isinstance(value, (list, tuple)):
        return type(value).__name__, [outline(item, numbers, kept) for item in value]
    return value


def tangles(seed: int, count: int) -> Iterator[Any]:
    rng = random.Random(seed)
    for _ in range(count):
        yield tangle(rng, 4, [])


def test_what_is_in_an_item_twice_is_in_it_twice_at_the_other_end(fork: None) -> None:
    seed = int(os.environ.get("PYPER_TEST_SEED", time.time_ns() % 2**32))
    print(f"PYPER_TEST_SEED={seed}")
    outputs = (task(tangles, branch=True) | task(same, multiprocess=True))(seed, 3000)
    for before, after in zip(tangles(seed, 3000), outputs, strict=True):
        assert outline(before, {}, []) == outline(after, {}, [])


def growing(n: int) -> Iterator[list[int]]:
    numbers: list[int] = []
    for i in range(n):
        numbers.append(i)
        yield numbers


@pytest.mark.parametrize("where", [False, True])
def test_an_item_is_what_it_was_when_it_was_emitted(fork: None, where: bool) -> None:
    pipeline = task(growing, branch=True, multiprocess=where) | task(same, multiprocess=not where)
    assert list(pipeline(100)) == [list(range(i + 1)) for i in range(100)]


def test_items_larger_than_everything(fork: None) -> None:
    pipeline = task(range, branch=True) | task(big_output, multiprocess=True, throttle=1)
    assert [len(item) for item in (pipeline | task(same, multiprocess=True))(0, 60_000_000, 2**24)]


def test_arrays_cross_out_of_band(method: str, numpy: Any) -> None:
    arrays = [
        numpy.arange(100_000),
        numpy.zeros(0),
        numpy.asfortranarray(numpy.ones((300, 200))),
        numpy.arange(7, dtype="u1"),
    ]
    pipeline = task(iter, branch=True) | task(same_array, multiprocess=True, workers=1)
    for array, result in zip(arrays, pipeline(arrays), strict=True):
        assert result.dtype == array.dtype
        assert (result == array + 1).all()
        result += 1  # writable, and it outlives the run
        assert (result == array + 2).all()


def test_what_was_received_outlives_the_run(fork: None, numpy: Any) -> None:
    """And keeps no descriptor of it: so of any number of runs something may be kept."""
    files = count_of_descriptors()
    kept = list((numbers | task(partial(numpy.full, 100_000), multiprocess=True))(10))
    assert count_of_descriptors() == files
    for i, array in enumerate(kept):
        assert (array == i).all()
        array += 1
        assert (array == i + 1).all()


def test_the_memory_of_arrays_goes_with_the_last_view(fork: None, numpy: Any) -> None:
    outputs = (numbers | task(partial(numpy.full, 100_000), multiprocess=True))(5)
    first, *others = outputs
    del others
    part = first[10:20]
    del first
    assert shared_memory() > 0
    assert (part == 0).all()
    part += 3
    assert (part == 3).all()
    del part
    assert shared_memory() == 0
    assert outputs.stats()[1].items_out == 5


def test_a_received_array_is_private_in_a_forked_child(fork: None, numpy: Any) -> None:
    (array,) = task(partial(numpy.zeros, 100_000), multiprocess=True)()
    child = os.fork()
    if child == 0:
        array += 1
        os._exit(int(array[5]))
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 1
    assert (array == 0).all()


def test_read_only_arrays_stay_read_only(fork: None, numpy: Any) -> None:
    array = numpy.arange(100_000)
    array.setflags(write=False)
    (result,) = task(same, multiprocess=True)(array)
    assert (result == array).all()
    assert not result.flags.writeable


# ---------------------------------------------------------------------------------- refusals


def test_functions_that_cannot_be_pickled_are_refused() -> None:
    def local(x: int) -> int:
        return x

    for func in (lambda x: x, local, partial(local), Unpicklable().lock.acquire):
        with pytest.raises(RuntimeError, match=r"multiprocess=True.*pickle"):
            task(func, multiprocess=True)
    with pytest.raises(RuntimeError, match="'local'"):
        task(multiprocess=True)(local)


def test_a_function_that_is_hidden_is_refused_at_the_call() -> None:
    def make() -> Any:
        def hidden(x: int) -> int:
            return x

        hidden.__qualname__ = "hidden"
        return hidden

    pipeline = task(multiprocess=True)(make())
    with pytest.raises(RuntimeError, match="'hidden'"):
        pipeline(1)


def test_async_functions_are_refused() -> None:
    async def coroutine(x: int) -> int:
        return x

    with pytest.raises(ValueError, match="async"):
        task(coroutine, multiprocess=True)


@pytest.mark.parametrize(
    ("pipeline", "name", "kind"),
    [
        (numbers | task(make_lock, multiprocess=True), "make_lock", "lock"),
        (numbers | task(make_lock) | task(same, multiprocess=True), "make_lock", "lock"),
        (task(same, multiprocess=True), "same", r"arguments of the call \(_thread\.lock\)"),
    ],
)
def test_items_that_cannot_be_pickled_end_the_run(
    fork: None, pipeline: Any, name: str, kind: str
) -> None:
    argument = threading.Lock() if name == "same" else 5
    with pytest.raises(RuntimeError, match=rf"'{name}'.*{kind}.*cannot be pickled"):
        list(pipeline(argument))


def test_results_that_cannot_be_unpickled_end_the_run(method: str) -> None:
    with pytest.raises(RuntimeError, match="cannot be unpickled") as caught:
        list((numbers | task(loads_badly, multiprocess=True))(5))
    assert "not here" in "".join(traceback.format_exception(caught.value))


@pytest.mark.parametrize("options", [{}, {"workers": 3, "ordered": True}])
def test_outputs_end_at_the_one_that_cannot_be_unpickled(fork: None, options: Any) -> None:
    outputs = (numbers | task(badly_at_two, multiprocess=True, **options))(8)
    assert next(outputs) == 0
    until(lambda: all(counters.alive == 0 for counters in outputs.stats()))  # all are there
    assert next(outputs) == 1
    with pytest.raises(RuntimeError, match="cannot be unpickled"):
        next(outputs)
    assert list(outputs) == []


def test_a_join_learns_of_it_by_cancellation(fork: None, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[type[BaseException]] = []
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)

    def total(data: Iterator[int]) -> int:
        try:
            return sum(data)
        except BaseException as exception:
            seen.append(type(exception))
            raise

    with pytest.raises(RuntimeError, match="cannot be unpickled"):
        list((numbers | task(loads_badly, multiprocess=True) | task(total, join=True))(5))
    assert seen == [pyper.Cancelled]
    assert unraisable == []


# ------------------------------------------------------------------------------------- errors


reads: Any = None  # an Event that forked processes share


def raise_when_it_reads(x: int) -> int:
    reads.wait(PATIENCE)
    raise ValueError("first")


def die_when_it_reads(x: int) -> int:
    reads.wait(PATIENCE)
    os._exit(3)


def total_in_vain(data: Iterator[int]) -> int:
    reads.set()
    try:
        return sum(data)
    except BaseException:
        raise OSError("no total") from None


@pytest.mark.parametrize(
    ("func", "kind"), [(raise_when_it_reads, ValueError), (die_when_it_reads, pyper.WorkerDied)]
)
def test_what_is_raised_because_of_it_becomes_a_note(
    fork: None, monkeypatch: pytest.MonkeyPatch, func: Any, kind: type[Exception]
) -> None:
    monkeypatch.setattr(sys.modules[__name__], "reads", multiprocessing.get_context("fork").Event())
    pipeline = numbers | task(func, multiprocess=True) | task(total_in_vain, join=True)
    with pytest.raises(kind) as caught:
        list(pipeline(10))
    assert caught.value.__notes__[-1] == (
        "also raised in task 'total_in_vain' (3 of 3): OSError: no total"
    )


@pytest.mark.parametrize(("func", "kind"), [(raise_value_error, ValueError), (die_by_exit, None)])
def test_what_nobody_is_told_goes_to_the_hook(
    fork: None, monkeypatch: pytest.MonkeyPatch, func: Any, kind: type[Exception] | None
) -> None:
    unraisable: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    kept = [(numbers | task(func, multiprocess=True))(10)]
    assert next(kept[0]) == 0
    until(lambda: all(counters.alive == 0 for counters in kept[0].stats()))
    assert unraisable == []
    kept.clear()
    until(lambda: len(unraisable) > 0)
    assert [type(args.exc_value) for args in unraisable] == [kind or pyper.WorkerDied]


def test_an_exception_comes_with_its_remote_traceback(method: str) -> None:
    outputs = (numbers | task(raise_value_error, multiprocess=True))(10)
    assert [next(outputs) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three is bad") as caught:
        next(outputs)
    shown = "".join(traceback.format_exception(caught.value))
    assert "in raise_value_error" in shown
    assert 'raise ValueError("three is bad")' in shown
    assert "in task 'raise_value_error' (2 of 2)" in shown
    with pytest.raises(StopIteration):
        next(outputs)


def test_stop_iteration_is_loud(fork: None) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        list((numbers | task(stop_iteration, multiprocess=True))(1))


def test_system_exit_counts(fork: None) -> None:
    with pytest.raises(SystemExit) as caught:
        list((numbers | task(leave_by_exit, multiprocess=True))(1))
    assert caught.value.code == 7


@pytest.mark.parametrize(
    ("func", "kind", "words"),
    [(raise_picky, "Picky", "only the message"), (raise_unpicklable, "Unpicklable", "with a lock")],
)
def test_exceptions_that_cannot_travel(fork: None, func: Any, kind: str, words: str) -> None:
    with pytest.raises(pyper.RemoteError, match=rf"{kind}: {words}") as caught:
        list((numbers | task(func, multiprocess=True))(1))
    assert f"in {func.__name__}" in "".join(traceback.format_exception(caught.value))
    assert isinstance(caught.value, pyper.Error)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (LeavesWhenPickled, "its words"),
        (LeavesWhenUnpickled, "its words"),
        (LeavesWhenRead, r"\(its str\(\) raises\)"),
    ],
)
def test_what_an_exception_raises_itself_does_not_hide_it(
    fork: None, kind: type[Exception], words: str
) -> None:
    leaves = task(raise_and_leave, bind=task.bind(kind=kind), multiprocess=True)
    with pytest.raises(pyper.RemoteError, match=rf"{kind.__name__}: {words}") as caught:
        list((numbers | leaves)(1))
    assert "in raise_and_leave" in "".join(traceback.format_exception(caught.value))
    assert caught.value.__notes__ == ["in task 'raise_and_leave' (2 of 2)"]


def raise_plainly(x: int, kind: type[Exception]) -> int:
    raise kind


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # it has no note
@pytest.mark.parametrize("kind", [Frozen, NoCause, NoNotes, OddWords])
def test_an_exception_that_refuses_what_is_added_to_it_is_raised_all_the_same(
    fork: None, kind: type[Exception]
) -> None:
    raises = task(raise_plainly, bind=task.bind(kind=kind), multiprocess=True)
    with pytest.raises(kind) as caught:
        list((numbers | raises)(1))
    cause = caught.value.__cause__
    assert kind is NoCause or "in raise_plainly" in str(cause)


class NoSource:
    """The loader of a module whose source cannot be had."""

    def get_source(self, name: str) -> str:
        raise SystemExit("no source")


without_source: dict[str, Any] = {"__name__": "without_source", "__loader__": NoSource()}
exec(compile("def fail(x): raise ValueError(x)", "without_source.py", "exec"), without_source)


def fail_without_source(x: int) -> None:
    without_source["fail"](x)


def test_source_that_cannot_be_had_does_not_hide_an_exception(fork: None) -> None:
    with pytest.raises(ValueError, match="^0") as caught:
        list((numbers | task(fail_without_source, multiprocess=True))(1))
    assert 'File "without_source.py", line 1, in fail' in str(caught.value.__cause__)
    assert caught.value.__notes__ == ["in task 'fail_without_source' (2 of 2)"]


# ------------------------------------------------------------------- children of a function


def forking(x: int, how: str) -> int:
    """Forks; the child goes on in the ways there are, and the parent waits for it."""
    child = os.fork()
    if child:
        assert os.waitpid(child, 0) == (child, 0)
    elif how == "exits":
        sys.exit(0)
    elif how == "raises":
        raise ValueError("in the child")
    return x


def forking_and_yielding(x: int) -> Iterator[int]:
    child = 0
    try:
        yield x
        child = os.fork()
        yield x
        yield x
    finally:
        if child:
            assert os.waitpid(child, 0) == (child, 0)


def forking_and_reading(data: Iterator[int]) -> int:
    first = next(data)
    child = os.fork()
    if child:
        assert os.waitpid(child, 0) == (child, 0)
    return first + sum(data)


@pytest.mark.parametrize("how", ["returns", "exits", "raises"])
def test_a_forked_child_of_a_worker_has_no_part_in_the_run(method: str, how: str) -> None:
    options: Any
    for options in ({}, {"workers": 3, "ordered": True}):
        forks = task(forking, bind=task.bind(how=how), multiprocess=True, **options)
        assert list((task(range, branch=True) | forks)(5)) == list(range(5))


def test_nor_has_one_of_a_thread_beside_processes(fork: None) -> None:
    chain = task(range, branch=True) | task(forking, bind=task.bind(how="exits"))
    assert list((chain | task(same, multiprocess=True))(1)) == [0]


@pytest.mark.parametrize(
    ("statement", "said"),
    [("return x", ""), ("sys.exit(0)", ""), ("raise ValueError(x)", "ValueError: 0")],
)
def test_what_a_forked_child_of_a_worker_says_and_prints(statement: str, said: str) -> None:
    program = Program(f"""
        import multiprocessing, os, sys, warnings
        from pyper import task

        def forking(x):
            warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
            child = os.fork()
            if not child:
                print("in the child", flush=False)
                {statement}
            assert os.waitpid(child, 0) == (child, 0)
            return x

        multiprocessing.set_start_method("fork")
        print(list((task(range, branch=True) | task(forking, multiprocess=True))(1)))
        """)
    printed, errors, status = program.end()
    assert (printed, status) == ("in the child\n[0]", 0)
    assert errors.splitlines()[-1:] == ([said] if said else [])


def test_a_forked_child_of_a_generator_is_refused_its_outputs(fork: None) -> None:
    chain = numbers | task(forking_and_yielding, branch=True, multiprocess=True, ordered=True)
    assert list(chain(3)) == [0, 0, 0, 1, 1, 1, 2, 2, 2]


def test_a_forked_child_of_a_join_takes_no_inputs(fork: None) -> None:
    chain = numbers | task(forking_and_reading, join=True, multiprocess=True)
    assert list(chain(100)) == [sum(range(100))]


# ------------------------------------------------------------------------------ deaths, leaving


@pytest.mark.parametrize(
    ("func", "code", "words"),
    [(die_of_signal, -9, "signal 9"), (die_by_exit, 3, "exit code 3")],
)
def test_a_death_is_named(method: str, func: Any, code: int, words: str) -> None:
    outputs = (numbers | task(same) | task(func, multiprocess=True))(10)
    seen = []
    with pytest.raises(pyper.WorkerDied, match=rf"'{func.__name__}'.*worker 1 of 1.*{words}") as c:
        seen.extend(outputs)
    assert c.value.exitcode == code
    assert c.value.task == 2
    assert isinstance(c.value, pyper.Error)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_long_name_of_other_letters_is_cut_between_them(fork: None, workers: int) -> None:
    pipeline = numbers | task(long_named, multiprocess=True, workers=workers)
    assert sorted(pipeline(3)) == [0, 1, 2]
    with pytest.raises(pyper.WorkerDied, match="task '字{21}' "):
        list(pipeline(4))


@pytest.mark.parametrize("handler", ["signal.SIG_IGN", "wait_for_all"])
@pytest.mark.parametrize("chosen", METHODS)
def test_others_may_wait_for_the_processes(tmp_path: Path, chosen: str, handler: str) -> None:
    """The kernel, or a handler of the program's: multiprocessing never hears of their end."""
    done = run_program(
        tmp_path,
        f"""
        import multiprocessing, os, signal
        import pyper
        from pyper import task

        def inc(x):
            return x + 1

        def die(x):
            os.kill(os.getpid(), signal.SIGKILL)

        def wait_for_all(number, frame):
            try:
                while os.waitpid(-1, os.WNOHANG)[0]:
                    pass
            except ChildProcessError:
                pass

        if __name__ == "__main__":
            multiprocessing.set_start_method("{chosen}")
            signal.signal(signal.SIGCHLD, {handler})
            numbers = task(range, branch=True)
            print(list((numbers | task(inc, multiprocess=True, workers=2, ordered=True))(3)))
            try:
                list((numbers | task(die, multiprocess=True))(3))
            except pyper.WorkerDied as error:
                print(error.task, error.exitcode, error)
            print(multiprocessing.active_children(), flush=True)
            os._exit(0)  # at its end multiprocessing may complain that its own process is gone
        """,
    )
    assert done.stderr == ""
    first, second, third = done.stdout.splitlines()
    assert (first, third) == ("[1, 2, 3]", "[]")
    known = second.startswith("1 -9 ") and "was killed by signal 9" in second
    unknown = second.startswith(f"1 {-(2**31)} ") and "how is not known" in second
    assert known if chosen == "forkserver" else known or unknown
    if handler == "signal.SIG_IGN":
        assert known == (chosen == "forkserver")


def die_quietly() -> None:
    os._exit(3)


def test_a_process_that_the_program_has_closed_is_joined_quietly(fork: None) -> None:
    for closes in (False, True):
        process = multiprocessing.get_context("fork").Process(target=die_quietly)
        process.start()
        if closes:
            process.join()
            process.close()
        assert _processes.join(process) == (None if closes else 3)


def test_a_process_may_be_closed_while_it_is_joined(fork: None) -> None:
    class ClosedInBetween(multiprocessing.get_context("fork").Process):  # type: ignore[misc]
        def join(self, timeout: float | None = None) -> None:
            super().join(timeout)
            self.close()

    process = ClosedInBetween(target=die_quietly)
    process.start()
    assert _processes.join(process) == 3


def test_an_idle_worker_may_die(fork: None) -> None:
    """It waits for an input, and the caller for an output: nobody else is doing anything."""
    outputs = pids_of_two_that_stay()
    first, second = next(outputs), next(outputs)
    while outputs.stats()[1].starved == 0:
        time.sleep(0.001)
    assert first != second
    os.kill(second, signal.SIGKILL)
    with pytest.raises(pyper.WorkerDied, match="'pid_too'"):
        next(outputs)


def test_a_function_that_cannot_be_loaded_is_an_error_of_its_own(tmp_path: Path) -> None:
    """Without the guard for __main__ a spawned worker runs the program again."""
    done = run_program(
        tmp_path,
        """
        import multiprocessing
        from pyper import task
        def inc(x): return x + 1
        multiprocessing.set_start_method("spawn", force=True)
        for x in (task(range, branch=True) | task(inc, multiprocess=True))(3):
            print(x)
        """,
    )
    assert done.returncode == 1
    assert "before it could begin" in done.stderr


@pytest.mark.parametrize("chosen", ["forkserver", "spawn"])
@pytest.mark.parametrize("where", ["first", "middle", "join"])
def test_what_loading_a_function_raises_is_told(tmp_path: Path, chosen: str, where: str) -> None:
    """The module is there for the caller alone."""
    done = run_program(
        tmp_path,
        f"""
        import multiprocessing, sys, types
        from pyper import task

        if __name__ == "__main__":
            multiprocessing.set_start_method("{chosen}")
            here = sys.modules["here"] = types.ModuleType("here")
            exec("def function(x): yield from x", vars(here))
            missing = task(here.function, branch=True, multiprocess=True, join={where == "join"})
            pipeline = missing if {where == "first"} else task(range, branch=True) | missing
            argument = (1, 2) if {where == "first"} else 2
            try:
                print(*pipeline(argument))
            except ModuleNotFoundError as error:
                print(error, *error.__notes__, sep="\\n")
                print("in process function" in str(error.__cause__))
            del sys.modules["here"]
            print(*(task(range, branch=True) | task(abs, multiprocess=True))(2))
        """,
    )
    assert done.stderr == ""
    note = (
        "the process of a worker cannot load the function of task 'function': define it at the top "
        "level of a module that other processes can import"
    )
    assert done.stdout.splitlines() == [
        "No module named 'here'",
        note,
        f"in task 'function' ({'1 of 1' if where == 'first' else '2 of 2'})",
        "True",
        "0 1",
    ]


def test_without_a_guard_no_worker_runs_the_program_once_more(tmp_path: Path) -> None:
    """Beside another thread, where nobody has chosen a start method, none is forked."""
    done = run_program(
        tmp_path,
        """
        import threading
        from pyper import task
        def inc(x): return x + 1
        leave = threading.Event()
        thread = threading.Thread(target=leave.wait, daemon=True)
        thread.start()
        print("the program")
        try:
            print(list((task(range, branch=True) | task(inc, multiprocess=True, workers=2))(3)))
        finally:
            leave.set()
        """,
    )
    assert done.returncode == 1
    assert '`if __name__ == "__main__":`' in done.stderr
    # Whoever imports the program gets no further: each worker's process or, in Python 3.14, the
    # fork server itself.
    assert "WorkerDied" in done.stderr or "fork server has ended" in done.stderr
    assert set(done.stdout.splitlines()) == {"the program"}


def note_in(x: int, lock: Any, queue: Any, end: Any) -> int:
    """Use everything that processes can have in common."""
    with lock:
        queue.put(x)
        end.send(x)
    return x


def test_what_processes_have_in_common_can_be_bound(method: str) -> None:
    """multiprocessing lets it be pickled only while it starts a process."""
    context = multiprocessing.get_context(method)
    lock, queue = context.Lock(), context.SimpleQueue()
    here, there = context.Pipe(duplex=False)
    bound = task.bind(lock=lock, queue=queue, end=there)
    pipeline = numbers | task(note_in, multiprocess=True, workers=2, bind=bound)
    outputs = sorted(pipeline(5))
    assert outputs == [0, 1, 2, 3, 4]
    assert sorted(queue.get() for _ in range(5)) == outputs
    assert sorted(here.recv() for _ in range(5)) == outputs
    queue.close()
    here.close()
    there.close()


def report_from_a_pool(n: int) -> str:
    with pytest.raises(RuntimeError) as caught:
        list((numbers | task(abs, multiprocess=True))(n))
    return str(caught.value)


def test_a_daemonic_process_is_told_why_it_has_no_workers(fork: None) -> None:
    with multiprocessing.Pool(1) as pool:
        (report,) = pool.map(report_from_a_pool, [3])
    assert report == (
        "task 'abs' (2 of 2): worker 1 of 1 could not be started: a process could not be started: "
        "AssertionError: daemonic processes are not allowed to have children"
    )


def test_a_child_that_the_program_forks_ends_as_ever(tmp_path: Path) -> None:
    """The workers are its parent's: multiprocessing does not wait for them at its end."""
    done = run_program(
        tmp_path,
        """
        import multiprocessing, os, sys, itertools, warnings
        from pyper import task
        def same(x): return x
        if __name__ == "__main__":
            warnings.simplefilter("ignore", DeprecationWarning)  # it forks beside threads
            multiprocessing.set_start_method("fork")
            queue = multiprocessing.Queue()
            counting = task(itertools.count, branch=True, throttle=5)
            with (counting | task(same, multiprocess=True, workers=2))() as outputs:
                next(outputs)
                child = os.fork()
                if not child:
                    queue.put("written by a thread that multiprocessing waits for")
                    sys.exit(3)
                print(queue.get())
                print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
                print(len(multiprocessing.active_children()))
        """,
    )
    assert done.stderr == ""
    assert done.stdout.splitlines() == [
        "written by a thread that multiprocessing waits for",
        "3",
        "2",
    ]


# leave() begins a run of processes, and lets it live: it returns the first output.
LEAVE = f"""
import itertools, multiprocessing, os, signal, threading
from concurrent.futures import ProcessPoolExecutor
from multiprocessing.util import Finalize
from pyper import task

def same(x):
    return x

workers = task(same, multiprocess=True, workers=2, ordered=True)
left = []

def leave():
    signal.alarm({PATIENCE // 2})  # only for the case that this process does not end
    left.append((task(itertools.count, branch=True, throttle=5) | workers)())
    return next(left[-1])
"""


@pytest.mark.parametrize("chosen", METHODS)
def test_a_child_of_multiprocessing_ends_with_runs_alive(tmp_path: Path, chosen: str) -> None:
    """It waits for children before threads, by which time nobody would have cancelled the run."""
    program = f"""
        def finish():
            outputs = (task(range, branch=True) | workers)(1000)
            first = next(outputs)
            go_on = lambda: print(first + sum(outputs))
            threading.Thread(target=go_on).start()

        if __name__ == "__main__":
            multiprocessing.set_start_method("{chosen}")
            for target in (leave, finish):
                child = multiprocessing.Process(target=target)
                child.start()
                child.join()
                print(target.__name__, child.exitcode, flush=True)
            with ProcessPoolExecutor(1) as executor:
                print(executor.submit(leave).result())
    """
    done = run_program(tmp_path, LEAVE + textwrap.dedent(program))
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["leave 0", "499500", "finish 0", "0"]


def test_a_fork_of_a_child_of_multiprocessing_ends_with_runs_alive(tmp_path: Path) -> None:
    """Also one that a finalizer begins, when multiprocessing waits for children next."""
    program = """
        def target():
            Finalize(None, lambda: print(leave(), flush=True), exitpriority=0)
            print(sum((task(range, branch=True) | workers)(3)), flush=True)
            child = os.fork()
            if not child:
                print(leave(), flush=True)
                raise SystemExit(4)
            print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)

        if __name__ == "__main__":
            multiprocessing.set_start_method("fork")
            child = multiprocessing.Process(target=target)
            child.start()
            child.join()
            print(child.exitcode)
    """
    done = run_program(tmp_path, LEAVE + textwrap.dedent(program))
    assert done.stderr == ""
    assert done.stdout.split() == ["3", "0", "4", "0", "0"]


def stay() -> Generator[int, None, None]:
    """The outputs of two workers that stay in their first call."""
    return (numbers | task(pid_and_stay, branch=True, multiprocess=True, workers=2))(10)


@pytest.mark.parametrize("how", ["close", "with", "throw"])
def test_leaving_ends_long_calls(method: str, how: str) -> None:
    outputs = stay()
    next(outputs)
    if how == "close":
        outputs.close()
    elif how == "with":
        with outputs:
            pass
    else:
        with pytest.raises(KeyError):
            outputs.throw(KeyError)


def test_dropping_ends_long_calls(method: str) -> None:
    with nothing_stays():
        outputs = stay()
        pidfd = os.pidfd_open(next(outputs))
        del outputs
        wait_readable(pidfd)


def wait_readable(fd: int) -> None:
    import select

    poll = select.poll()
    poll.register(fd, select.POLLIN)
    poll.poll()
    os.close(fd)


def wait_asleep(process: int) -> None:
    """Wait until the main thread of a process sleeps, as two looks in a row find it."""
    before = ""
    while True:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
        now = " ".join(line for line in lines if line.startswith(("State", "voluntary")))
        if now == before and "S (sleeping)" in now:
            return
        before = now
        time.sleep(0.02)


def run_program(folder: Path, source: str, **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a program that imports pyper from where we have it."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(source))
    return subprocess.run(
        [sys.executable, str(path)],
        capture_output=True,
        text=True,
        timeout=50,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        **options,
    )


@pytest.mark.parametrize("chosen", METHODS)
def test_functions_of_main_and_prints(tmp_path: Path, chosen: str) -> None:
    done = run_program(
        tmp_path,
        f"""
        import multiprocessing
        from pyper import task

        def shout(x):
            print("from the worker", x)
            return x + 1

        @task(multiprocess=True)
        def twice(x):
            return 2 * x

        if __name__ == "__main__":
            multiprocessing.set_start_method("{chosen}")
            print("before")
            pipeline = task(range, branch=True) | task(shout, multiprocess=True) | twice
            print(list(pipeline(3)))
        """,
    )
    assert done.stderr == ""
    assert sorted(done.stdout.splitlines()) == sorted(
        ["before", *(f"from the worker {i}" for i in range(3)), "[2, 4, 6]"]
    )


@pytest.mark.parametrize("chosen", METHODS)
def test_workers_follow_a_caller_that_is_killed(tmp_path: Path, chosen: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, os, time
            from pyper import task

            def stay(x):
                yield os.getpid()
                time.sleep(1000)

            if __name__ == "__main__":
                multiprocessing.set_start_method("{chosen}")
                outputs = (task(range, branch=True)
                           | task(stay, branch=True, multiprocess=True, workers=2))(2)
                print(next(outputs), next(outputs), flush=True)
                next(outputs)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, str(path)], stdout=subprocess.PIPE, text=True, env=environment
    ) as caller:
        assert caller.stdout is not None
        pidfds = [os.pidfd_open(int(word)) for word in caller.stdout.readline().split()]
        assert len(pidfds) == 2
        caller.kill()
        for pidfd in pidfds:
            wait_readable(pidfd)


@pytest.mark.parametrize("chosen", METHODS)
def test_ctrl_c_is_the_callers(tmp_path: Path, chosen: str) -> None:
    path = tmp_path / "program.py"
    path.write_text(
        textwrap.dedent(
            f"""
            import multiprocessing, os, time
            from pyper import task

            def stay(x):
                yield os.getpid()
                time.sleep(1000)

            if __name__ == "__main__":
                multiprocessing.set_start_method("{chosen}")
                outputs = (task(range, branch=True)
                           | task(stay, branch=True, multiprocess=True, workers=2))(2)
                try:
                    print(next(outputs), next(outputs), flush=True)
                    next(outputs)
                except KeyboardInterrupt:
                    print("interrupted", flush=True)
            """
        )
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    with subprocess.Popen(
        [sys.executable, str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    ) as caller:
        assert caller.stdout is not None
        assert caller.stderr is not None
        pidfds = [os.pidfd_open(int(word)) for word in caller.stdout.readline().split()]
        assert len(pidfds) == 2
        wait_asleep(caller.pid)
        os.killpg(caller.pid, signal.SIGINT)
        assert caller.stdout.readline() == "interrupted\n"
        for pidfd in pidfds:
            wait_readable(pidfd)
        assert caller.wait() == 0
        assert caller.stderr.read() == ""


@pytest.mark.parametrize("chosen", ["forkserver", "spawn"])
def test_also_while_a_worker_imports_the_main_module(tmp_path: Path, chosen: str) -> None:
    """A fork server gives its processes other handlers and another mask than the caller has."""
    done = run_program(
        tmp_path,
        f"""
        import multiprocessing, os, signal
        from pyper import task

        def inc(x):
            return x + 1

        if __name__ == "__main__":
            multiprocessing.set_forkserver_preload([])  # the server does not import this
            multiprocessing.set_start_method("{chosen}")
            heard = []
            signal.signal(signal.SIGINT, lambda *_: heard.append("Ctrl-C"))
            print(*(task(range, branch=True) | task(inc, multiprocess=True))(2), *heard)
        elif multiprocessing.current_process().name == "inc":
            os.killpg(0, signal.SIGINT)
        """,
        start_new_session=True,
    )
    assert done.stderr == ""
    assert done.stdout == "1 2 Ctrl-C\n"


def test_and_that_of_other_processes_of_the_program(tmp_path: Path) -> None:
    """A fork server that was started for a worker blocks no signal of theirs."""
    done = run_program(
        tmp_path,
        """
        import multiprocessing, signal
        from multiprocessing import resource_tracker
        from pyper import task

        def blocked(_):
            return signal.pthread_sigmask(signal.SIG_BLOCK, ())

        if __name__ == "__main__":
            multiprocessing.set_start_method("forkserver")
            resource_tracker.ensure_running()
            print(*task(blocked, multiprocess=True)(0))
            with multiprocessing.Pool(1) as pool:
                print(pool.apply(blocked, (0,)))
        """,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["set()", "set()"]


class TooLateError(Exception):
    """What a handler of the program raises."""


def too_late(number: int, frame: object) -> None:
    raise TooLateError


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, KeyboardInterrupt), (signal.SIGALRM, TooLateError)],
    ids=("ctrl-c", "alarm"),
)
def test_handlers_wait_while_a_process_starts(
    fork: None, monkeypatch: pytest.MonkeyPatch, number: int, expected: type[BaseException]
) -> None:
    """Else multiprocessing is interrupted between two steps, and nobody knows of the process."""
    real_fork = os.fork
    forked: list[int] = []

    def fork_and_interrupt() -> int:
        pid = real_fork()
        if pid:
            forked.append(pid)
            signal.raise_signal(number)  # as in: just now, in a terminal
        return pid

    monkeypatch.setattr(os, "fork", fork_and_interrupt)
    before = signal.signal(signal.SIGALRM, too_late)
    files = count_of_descriptors()
    try:
        for workers in (1, 3):
            incs = task(inc, multiprocess=True, workers=workers)
            outputs = (task(endless, branch=True) | incs)(0)
            with pytest.raises(expected):
                next(outputs)
            outputs.close()
            for pid in forked:
                with pytest.raises(ProcessLookupError):  # not even a zombie
                    os.kill(pid, 0)
            assert count_of_descriptors() == files
        assert signal.getsignal(signal.SIGALRM) is too_late
    finally:
        signal.signal(signal.SIGALRM, before)
    assert len(forked) == 2


def test_a_second_ctrl_c_leaves_no_process(fork: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """It comes when those that had been started before the first one are waited for."""
    real_fork, real_waitid = os.fork, os.waitid
    interrupted: list[str] = []

    def fork_and_interrupt() -> int:
        pid = real_fork()
        if pid:
            interrupted.append("fork")
            signal.raise_signal(signal.SIGINT)
        return pid

    def interrupt_and_wait(*args: Any) -> Any:
        if threading.current_thread() is threading.main_thread() and "wait" not in interrupted:
            interrupted.append("wait")
            signal.raise_signal(signal.SIGINT)
        return real_waitid(*args)

    monkeypatch.setattr(os, "fork", fork_and_interrupt)
    monkeypatch.setattr(os, "waitid", interrupt_and_wait)
    hooked: list[BaseException | None] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda info: hooked.append(info.exc_value))
    outputs = (task(endless, branch=True) | task(inc, multiprocess=True, workers=2))(0)
    with pytest.raises(KeyboardInterrupt):
        next(outputs)
    outputs.close()
    assert interrupted == ["fork", "wait"]
    assert workers_alive() == []
    assert [type(one) for one in hooked] == [KeyboardInterrupt]  # there is one already


def handler_name(number: int) -> str:
    return getattr(signal.getsignal(number), "__name__", "none")


def test_a_forked_worker_has_the_handlers_of_its_program(fork: None) -> None:
    before = signal.signal(signal.SIGALRM, too_late)
    try:
        alarm = task(lambda: [signal.SIGALRM], branch=True)
        [name] = (alarm | task(handler_name, multiprocess=True))()
        assert name == "too_late"
    finally:
        signal.signal(signal.SIGALRM, before)


the_caller = 0  # its process, where the signals of the following tests go


def interrupt_the_caller(x: int) -> int:
    """Ctrl-C, but only where the caller makes or unmakes an item."""
    if os.getpid() == the_caller:
        signal.raise_signal(signal.SIGINT)
    return x


class LoadsWithCtrlC:
    """Interrupts a caller that unpickles it."""

    def __reduce__(self) -> Any:
        return (interrupt_the_caller, (1,))


class DumpsWithCtrlC:
    """Interrupts a caller that pickles it."""

    def __reduce__(self) -> Any:
        return (int, (interrupt_the_caller(1),))


def interrupting_at_two(x: int) -> Any:
    return [x, LoadsWithCtrlC()] if x == 2 else x


def interrupting_at_two_bad_at_ten(x: int) -> Any:
    if x == 10:
        raise ValueError("ten is bad")
    return interrupting_at_two(x)


@pytest.fixture
def caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "the_caller", os.getpid())


def test_ctrl_c_while_an_output_is_unpickled(fork: None, caller: None) -> None:
    """It is neither the item's fault nor does anything come after it."""
    chain = task(endless, branch=True, throttle=9)
    outputs = (chain | task(interrupting_at_two, multiprocess=True, throttle=9))(0)
    assert [next(outputs), next(outputs)] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        next(outputs)
    assert list(outputs) == []
    outputs.close()


def test_ctrl_c_while_an_output_of_a_failed_run_is_unpickled(fork: None, caller: None) -> None:
    outputs = (numbers | task(interrupting_at_two_bad_at_ten, multiprocess=True))(100)
    assert next(outputs) == 0
    until(lambda: all(counters.alive == 0 for counters in outputs.stats()))
    assert next(outputs) == 1
    with pytest.raises(KeyboardInterrupt):
        next(outputs)
    with pytest.raises(ValueError, match="ten is bad"):
        outputs.close()


def test_ctrl_c_while_the_arguments_are_pickled(fork: None, caller: None) -> None:
    outputs = task(same, multiprocess=True)(DumpsWithCtrlC())
    with pytest.raises(KeyboardInterrupt):
        next(outputs)
    assert list(outputs) == []
    outputs.close()


def test_what_the_handler_of_a_signal_raises_comes_out(fork: None, caller: None) -> None:
    class Enough(BaseException):
        pass

    def handler(number: int, frame: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGINT, handler)
    try:
        outputs = (numbers | task(interrupting_at_two, multiprocess=True))(100)
        with pytest.raises(Enough):
            list(outputs)
        outputs.close()
    finally:
        signal.signal(signal.SIGINT, before)


def test_in_another_thread_it_is_the_items_fault(fork: None) -> None:
    """No handler of a signal runs there."""
    raised: list[BaseException] = []

    def consume() -> None:
        try:
            list((numbers | task(exits_when_it_loads, multiprocess=True))(1))
        except BaseException as exception:
            raised.append(exception)

    thread = threading.Thread(target=consume)
    thread.start()
    thread.join()
    assert [type(exception) for exception in raised] == [RuntimeError]
    assert "because of: SystemExit: 3" in raised[0].__notes__


class ExitsWhenItLoads:
    def __reduce__(self) -> Any:
        return (sys.exit, (3,))


def exits_when_it_loads(x: int) -> Any:
    return ExitsWhenItLoads()


def test_the_handler_of_ctrl_c_is_the_users_again(fork: None) -> None:
    def handler(number: int, frame: object) -> None:
        raise AssertionError("nobody has interrupted")

    before = signal.signal(signal.SIGINT, handler)
    try:
        assert list((numbers | task(inc, multiprocess=True))(3)) == [1, 2, 3]
        assert signal.getsignal(signal.SIGINT) is handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_without_descriptors_a_run_fails_and_leaves_none(fork: None) -> None:
    pipeline = numbers | task(inc, multiprocess=True, workers=2, ordered=True)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    before = count_of_descriptors()
    refusals = []
    for spare in itertools.count():
        found, refusal = [], None
        resource.setrlimit(resource.RLIMIT_NOFILE, (before + spare - 1, hard))
        try:
            found = list(pipeline(3))
        except RuntimeError as error:
            refusal = error
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert count_of_descriptors() == before
        if refusal is None:
            assert found == [1, 2, 3]
            break
        refusals.append(refusal)
    assert len(refusals) > 4
    for refusal in refusals:
        why = refusal.__cause__ or refusal
        assert getattr(why, "errno", None) == errno.EMFILE or "no file descriptors" in str(why)


def test_threads_alone_do_not_pay(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import sys, threading
        from pyper import task
        outputs = (task(range, branch=True) | task(str))(100)
        next(outputs)
        assert len(list(outputs)) == 99
        for name in ("multiprocessing", "pickle", "pyper._processes"):
            print(name, name in sys.modules)
        """,
    )
    assert "multiprocessing False" in done.stdout
    assert "pyper._processes False" in done.stdout


def test_beside_threads_nothing_is_forked_unasked(tmp_path: Path) -> None:
    done = run_program(
        tmp_path,
        """
        import multiprocessing, os, threading
        from pyper import task

        def parent(x):
            return os.getppid()

        if __name__ == "__main__":
            pipeline = task(range, branch=True) | task(parent, multiprocess=True)
            print(set(pipeline(2)) == {os.getpid()})
            leave = threading.Event()
            thread = threading.Thread(target=leave.wait)
            thread.start()
            print(set(pipeline(2)) == {os.getpid()})
            leave.set()
            thread.join()
            print(multiprocessing.get_start_method(allow_none=True))
        """,
    )
    assert done.stderr == ""
    first = "True" if multiprocessing.get_all_start_methods()[0] == "fork" else "False"
    assert done.stdout.split() == [first, "False", "None"]


def test_nor_while_another_thread_starts_a_process(tmp_path: Path) -> None:
    """Meanwhile multiprocessing takes its default for a choice of the user's."""
    done = run_program(
        tmp_path,
        """
        import multiprocessing, os, threading
        from pyper import _processes, task

        begun, asked = threading.Event(), threading.Event()

        class Lock:
            def __init__(self, lock):
                self.lock = lock

            def __enter__(self):
                if threading.current_thread().name == "second":
                    asked.set()
                self.lock.acquire()

            def __exit__(self, *_):
                self.lock.release()

        class Slow:
            def __reduce__(self):
                if threading.current_thread().name == "first":
                    begun.set()
                    asked.wait()
                return (Slow, ())

        def parent(x, slow=None):
            return os.getppid()

        def ask(pipeline):
            # In one write: there are two who print.
            print(f"{set(pipeline(2)) == {os.getpid()}} ", end="")

        if __name__ == "__main__":
            _processes._starting = Lock(_processes._starting)
            numbers = task(range, branch=True)
            slow = numbers | task(parent, multiprocess=True, bind=((), {"slow": Slow()}))
            first = threading.Thread(target=ask, args=(slow,), name="first")
            first.start()
            begun.wait()
            quick = numbers | task(parent, multiprocess=True)
            second = threading.Thread(target=ask, args=(quick,), name="second")
            second.start()
            first.join()
            second.join()
            print(multiprocessing.get_start_method(allow_none=True))
        """,
    )
    assert done.stderr == ""
    assert done.stdout.split() == ["False", "False", "None"]


def test_several_runs_fit_into_a_limited_address_space(tmp_path: Path) -> None:
    """What a run reserves leaves room for others, and for the stacks of threads."""
    done = run_program(
        tmp_path,
        """
        import multiprocessing, resource
        from pyper import task

        def inc(x):
            return x + 1

        if __name__ == "__main__":
            multiprocessing.set_start_method("fork")
            hard = resource.getrlimit(resource.RLIMIT_AS)[1]
            resource.setrlimit(resource.RLIMIT_AS, (12 << 30, hard))
            pipeline = (task(range, branch=True) | task(inc, multiprocess=True, workers=2)
                        | task(str, workers=20))
            runs = [pipeline(100) for _ in range(4)]
            for run in runs:
                next(run)
            print([len(list(run)) for run in runs])
        """,
    )
    assert done.stderr == ""
    assert done.stdout == "[99, 99, 99, 99]\n"


def test_another_thread_polls_at_the_same_time(
    method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """multiprocessing polls all children, in any thread: here one has taken the exit code of a
    worker from the system, and not kept it yet, when the run asks for it."""
    where, name = (forkserver, "read_signed") if method == "forkserver" else (os, "waitpid")
    take, wait = getattr(where, name), os.waitid
    taken, asked_again = threading.Event(), threading.Event()

    def somebody_polls() -> bool:
        for thread, frame in sys._current_frames().items():
            while frame and thread != poller.ident:
                if frame.f_code.co_name == "poll":
                    return True
                frame = frame.f_back  # type: ignore[assignment]
        return False

    def take_slowly(*args: int) -> Any:
        if threading.current_thread() is not poller:
            asked_again.set()
            return take(*args)
        found = take(*args)
        if found != (0, 0):
            taken.set()
            until(lambda: asked_again.is_set() or somebody_polls())
        return found

    def wait_until_taken(*args: int) -> Any:
        taken.wait()
        return wait(*args)

    outputs = task(pid_and_stay, branch=True, multiprocess=True)(0)
    victim = next(outputs)
    poller = threading.Thread(target=lambda: until(lambda: not workers_alive()))
    monkeypatch.setattr(where, name, take_slowly)
    monkeypatch.setattr(os, "waitid", wait_until_taken)
    poller.start()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(pyper.WorkerDied, match="was killed by signal 9"):
        next(outputs)
    poller.join()


def test_the_program_waits_for_one_worker_while_another_dies(method: str) -> None:
    """Whoever waits for a process polls it, which keeps nobody from polling others."""
    outputs = pids_of_two_that_stay()
    victim, other = next(outputs), next(outputs)
    (awaited,) = [worker for worker in workers_alive() if worker.pid == other]
    program = threading.Thread(target=awaited.join)
    program.start()

    def waits() -> bool:
        frame = sys._current_frames().get(program.ident or 0)
        while frame and frame.f_back:
            frame = frame.f_back
            if frame.f_code.co_name == "poll":
                return True
        return False

    until(waits)
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(pyper.WorkerDied, match="was killed by signal 9"):
        next(outputs)
    program.join()


def test_a_hundred_kills(fork: None) -> None:
    """Whatever a worker is doing when it is killed, the caller is told, and nothing hangs."""
    seed = int(os.environ.get("PYPER_TEST_SEED", time.time_ns() % 2**32))
    print(f"PYPER_TEST_SEED={seed}")
    rng = random.Random(seed)
    for _ in range(100):
        pipeline = (
            task(endless, branch=True, throttle=rng.choice([1, 10, 1000]))
            | task(same, multiprocess=True, workers=2, throttle=10, ordered=rng.random() < 0.5)
            | task(same, multiprocess=rng.random() < 0.5, throttle=10)
        )
        outputs = pipeline(0)
        for _ in range(rng.randrange(1, 200)):
            next(outputs)
        for _ in range(rng.randrange(20000)):
            pass
        victim = rng.choice(multiprocessing.active_children())
        os.kill(victim.pid or 0, signal.SIGKILL)
        with pytest.raises(pyper.WorkerDied, match="was killed by signal 9"):
            for _ in outputs:
                pass
        outputs.close()
