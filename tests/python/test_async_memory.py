"""Asynchronous runs where an allocation fails: each in turn, once, and some that follow.

asyncio itself does not survive that (a task whose step finds no memory is lost), so the loop here
is a few lines of Python.  Whatever fails in it, or in the run, nothing crashes or hangs, the run
can be closed, and it gives the right outputs or a MemoryError.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import select
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from pyper import Cancelled, task

_testcapi = pytest.importorskip("_testcapi")


class Future:
    _asyncio_future_blocking = False

    def __init__(self) -> None:
        self.finished = False

    def done(self) -> bool:
        return self.finished

    def set_result(self, _: object) -> None:
        self.finished = True


class Step:
    """A coroutine and what it waits for."""

    _log_destroy_pending = True

    def __init__(self, coroutine: Any) -> None:
        self.coroutine = coroutine
        self.waits_for: Future | None = None
        self.cancelling = self.ended = False

    def cancel(self) -> bool:
        self.cancelling = True
        return True

    def go_on(self) -> Any:
        """One step of the coroutine, if it has not to wait; its result."""
        waits = self.waits_for is not None and not self.waits_for.finished
        if self.ended or (waits and not self.cancelling):
            return None
        self.waits_for = None
        try:
            if self.cancelling:
                self.cancelling = False
                self.waits_for = self.coroutine.throw(asyncio.CancelledError())
            else:
                self.waits_for = self.coroutine.send(None)
        except StopIteration as stop:
            self.ended = True
            return stop.value
        except asyncio.CancelledError:
            self.ended = True
        except BaseException:
            self.ended = True
            raise
        return None


class Loop:
    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.watched: tuple[int, Callable[[], object]] | None = None

    def create_future(self) -> Future:
        return Future()

    def create_task(self, coroutine: Any, *, name: str, context: Any) -> Step:
        step = Step(coroutine)
        self.steps.append(step)
        return step

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        self.watched = (fd, callback)

    def remove_reader(self, fd: int) -> bool:
        self.watched = None
        return True

    def is_closed(self) -> bool:
        return False

    def turn(self) -> None:
        for step in list(self.steps):
            step.go_on()
        if self.watched and select.select([self.watched[0]], [], [], 0)[0]:
            self.watched[1]()

    def run(self, awaitable: Any) -> Any:
        main = Step(awaitable)
        while True:
            result = main.go_on()
            if main.ended:
                return result
            self.turn()


@pytest.fixture
def loop() -> Iterator[Loop]:
    loop = Loop()
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    yield loop
    _testcapi.remove_mem_hooks()
    asyncio._set_running_loop(None)


class Item:
    def __init__(self, value: int) -> None:
        self.value = value


async def items(n: int) -> AsyncIterator[Item]:
    for i in range(n):
        yield Item(i)


async def same(x: Item) -> Item:
    return x


async def values(data: AsyncIterator[Item]) -> AsyncIterator[int]:
    async for x in data:
        yield x.value


PIPELINE = (
    task(items, branch=True, throttle=2)
    | task(same, workers=3, ordered=True, throttle=1)
    | task(same)
    | task(values, branch=True, join=True)
)


def tells_of_memory(error: BaseException) -> bool:
    """Does it say that there was no memory?"""
    if isinstance(
        error, SystemError
    ):  # so does Python 3.11, if there is none for a frame of its own
        return traceback.extract_tb(error.__traceback__)[-1].name != "go_on"
    return isinstance(error, (MemoryError, Cancelled)) or isinstance(error.__cause__, MemoryError)


def attempt(loop: Loop, start: int, stop: int) -> list[int] | None:
    """What the pipeline gives; None if there was no memory, for it or for the loop."""
    outputs = PIPELINE(5)
    found: list[int] = []
    try:
        _testcapi.set_nomemory(start, stop)
        while True:
            found.append(loop.run(outputs.__anext__()))
    except StopAsyncIteration:
        return found
    except BaseException as error:
        _testcapi.remove_mem_hooks()
        if not tells_of_memory(error):
            raise
        return None
    finally:
        _testcapi.remove_mem_hooks()
        closing = outputs.aclose()
        with contextlib.suppress(MemoryError, Cancelled):  # if nobody was told of the failure yet
            loop.run(closing)
        while loop.watched:
            loop.turn()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # that is told, too
@pytest.mark.parametrize("how_many", [1, 3, 20])
def test_each_allocation_fails_in_turn(loop: Loop, how_many: int) -> None:
    assert attempt(loop, 10**9, 10**9 + 1) == [0, 1, 2, 3, 4]
    failed = 0
    for start in range(400):
        found = attempt(loop, start, start + how_many)
        assert found in (None, [0, 1, 2, 3, 4])
        failed += found is None
        loop.steps.clear()
    assert failed > 20
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Item)] == []
