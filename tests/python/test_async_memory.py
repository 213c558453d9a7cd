"""Asynchronous runs where an allocation fails: each in turn, once, and some that follow.

asyncio itself does not survive that (a task whose step finds no memory is lost), so the loop here
is a few lines of Python.  Whatever fails in it, or in the run, nothing crashes or hangs, the run
can be closed, and it gives the right outputs or a MemoryError.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import os
import shlex
import subprocess
import sys
import sysconfig
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from pyper import task


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
    def __init__(self, is_readable: Callable[[int], bool]) -> None:
        self.is_readable = is_readable
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
        if self.watched and self.is_readable(self.watched[0]):
            self.watched[1]()

    def run(self, awaitable: Any) -> Any:
        main = Step(awaitable)
        while True:
            result = main.go_on()
            if main.ended:
                return result
            self.turn()


@pytest.fixture(scope="module")
def no_memory(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The module no_memory, built for this interpreter."""
    source = Path(__file__).with_name("no_memory.c")
    binary = tmp_path_factory.mktemp("no_memory") / "no_memory.so"
    compiler = shlex.split(os.environ.get("CC", "cc"))
    include = f"-I{sysconfig.get_path('include')}"
    subprocess.run([*compiler, "-shared", "-fPIC", include, "-o", binary, source], check=True)
    loader = ExtensionFileLoader("no_memory", str(binary))
    spec = spec_from_file_location("no_memory", binary, loader=loader)
    assert spec
    module = module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def loop(no_memory: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loop]:
    loop = Loop(no_memory.is_readable)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # what goes there is told, too
    asyncio._set_running_loop(loop)  # type: ignore[arg-type]
    yield loop
    no_memory.stop()
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
    if isinstance(error, SystemError):  # so does Python, if there is none for a frame of its own
        return traceback.extract_tb(error.__traceback__)[-1].name in ("attempt", "run")
    return isinstance(error, MemoryError)


def forget_tracebacks() -> None:
    """Let the MemoryErrors that Python keeps for when there is no memory for one hold no frames."""
    seen: list[BaseException] = []
    for _ in range(50):
        try:
            bytearray(sys.maxsize)
        except MemoryError as error:
            seen.append(error)
    for one in seen:
        one.__traceback__ = one.__context__ = None


def attempt(loop: Loop, no_memory: Any, first: int, end: int) -> tuple[list[int] | None, int]:
    """What the pipeline gives, None if there was no memory for it or for the loop; and how many
    allocations there were."""
    outputs = PIPELINE(5)
    found: list[int] = []
    try:
        no_memory.between(first, end)
        while True:
            found.append(loop.run(outputs.__anext__()))
    except StopAsyncIteration:
        return found, no_memory.stop()
    except BaseException as error:
        count = no_memory.stop()
        if not tells_of_memory(error):
            raise
        return None, count
    finally:
        no_memory.stop()
        closing = outputs.aclose()
        with contextlib.suppress(MemoryError):  # if nobody was told of the failure yet
            loop.run(closing)
        while loop.watched:
            loop.turn()
        loop.steps.clear()


@pytest.mark.parametrize("how_many", [1, 3, 20])
def test_each_allocation_fails_in_turn(loop: Loop, no_memory: Any, how_many: int) -> None:
    failed = 0
    for first in itertools.count():
        found, count = attempt(loop, no_memory, first, first + how_many)
        assert found in (None, [0, 1, 2, 3, 4])
        failed += found is None
        if count <= first:
            break
    assert found == [0, 1, 2, 3, 4]
    assert failed > 20
    forget_tracebacks()
    gc.collect()
    assert [one for one in gc.get_objects() if isinstance(one, Item)] == []
