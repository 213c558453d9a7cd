"""Asynchronous tasks: what they mean, how they mix with threads, how they end."""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import contextvars
import functools
import gc
import inspect
import itertools
import pickle
import subprocess
import sys
import textwrap
import threading
import types
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Generator,
    Iterable,
    Iterator,
)
from pathlib import Path
from typing import Any
from unittest.mock import AsyncMock

import pytest

import pyper
from helpers import PATIENCE, Counted, none_alive, until
from on_loop import ainc, ainc_later, arange, collect, gated, nothing_said, run
from pyper import AsyncOutputs, AsyncPipeline, Pipeline, task

__all__ = ["nothing_said"]  # a fixture for every test here


def inc(x: int) -> int:
    return x + 1


def numbers(n: int) -> Pipeline[..., int]:
    return task(range, branch=True, bind=task.bind(n))


def futures_alive() -> int:
    gc.collect()
    return sum(isinstance(one, asyncio.Future) for one in gc.get_objects())


async def give_up(waiting: Awaitable[Any]) -> None:
    """Let it begin to wait, and cancel it."""
    waiting = asyncio.ensure_future(waiting)
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting


# ------------------------------------------------------------------------------------- kinds


class Called:
    async def __call__(self, x: int) -> int:
        return x + 1


class CalledGenerator:
    async def __call__(self, n: int) -> AsyncGenerator[int, None]:
        for i in range(n):
            yield i


class Methods:
    async def inc(self, x: int) -> int:
        return x + 1


async def three(x: int) -> list[int]:
    await asyncio.sleep(0)
    return [x, x, x]


async def generator_of_three(x: int) -> AsyncIterator[int]:
    return arange(3)


@types.coroutine
def old_style(x: int) -> Iterator[None]:
    yield
    return x + 1  # type: ignore[return-value]


@pytest.mark.parametrize("workers", [1, 5])
@pytest.mark.parametrize(
    "func", [ainc, ainc_later, Called(), Methods().inc, functools.partial(ainc)]
)
def test_an_async_callable_makes_an_async_task(func: Any, workers: int) -> None:
    pipeline = task(range, branch=True) | task(func, workers=workers)
    assert isinstance(pipeline, AsyncPipeline)
    assert [one.is_async for one in pipeline.tasks] == [False, True]
    assert sorted(run(collect(pipeline(200)))) == list(range(1, 201))


@pytest.mark.parametrize("func", [arange, CalledGenerator(), three, generator_of_three])
def test_branch_takes_asynchronous_and_awaited_iterables(func: Any) -> None:
    pipeline = task(func, branch=True)
    assert pipeline.tasks[0].is_async
    assert run(collect(pipeline(3))) == ([3] * 3 if func is three else [0, 1, 2])


def test_without_branch_an_async_generator_is_one_output() -> None:
    [made] = run(collect(task(arange)(3)))
    assert inspect.isasyncgen(made)
    run(made.aclose())


def test_what_an_async_function_awaits_may_be_any_awaitable() -> None:
    async def waits(x: int) -> int:
        future = asyncio.get_running_loop().create_future()
        asyncio.get_running_loop().call_soon(future.set_result, x)
        return await future + await asyncio.create_task(ainc(0)) + await old_style(-1)

    pipeline = task(range, branch=True) | task(waits, workers=3, ordered=True)
    assert run(collect(pipeline(10))) == list(range(1, 11))


def test_a_task_is_its_own_asyncio_task() -> None:
    seen = set()

    async def who(x: int) -> str:
        await asyncio.sleep(0)
        current = asyncio.current_task()
        assert current is not None
        seen.add(current)
        return current.get_name()

    names = run(collect((task(range, branch=True) | task(who, workers=3))(50)))
    assert set(names) <= {"who-0", "who-1", "who-2"}
    assert len(seen) <= 3
    assert set(run(collect(task(who)(1)))) == {"who"}


@pytest.mark.parametrize("throttle", [0, 1, 3])
def test_mixtures_in_any_order(throttle: int) -> None:
    steps = [ainc, inc, ainc_later, inc]
    for mix in range(16):
        chain: Any = task(arange, branch=True, throttle=throttle)
        for bit, step in enumerate(steps):
            func = step if mix >> bit & 1 else {ainc: inc, ainc_later: inc, inc: ainc}[step]
            chain |= task(func, workers=1 + bit, ordered=True, throttle=throttle)
        assert run(collect(chain(100))) == list(range(4, 104))


def test_sync_tasks_run_in_threads_and_do_not_block_the_loop() -> None:
    loop_thread = threading.get_ident()
    may_go = threading.Event()

    def blocks(x: int) -> int:
        assert threading.get_ident() != loop_thread
        assert may_go.wait(PATIENCE)
        return x

    async def main() -> list[int]:
        reading = asyncio.create_task(collect((task(ainc) | task(blocks) | task(ainc))(1)))
        while not any(thread.name == "blocks" for thread in threading.enumerate()):
            await asyncio.sleep(0)
        may_go.set()
        return await reading

    assert run(main) == [3]


def test_as_many_calls_as_workers_are_in_progress() -> None:
    now = most = 0

    async def main() -> list[int]:
        everybody = asyncio.Event()

        async def counted(x: int) -> int:
            nonlocal now, most
            now += 1
            most = max(most, now)
            if now == 50:
                everybody.set()
            await everybody.wait()
            now -= 1
            return x

        return await collect((task(range, branch=True) | task(counted, workers=50))(200))

    assert sorted(run(main)) == list(range(200))
    assert most == 50


def test_ordered_keeps_the_order_whatever_takes_how_long() -> None:
    async def main() -> list[int]:
        gates = {x: asyncio.Event() for x in range(20)}

        async def after_the_next(x: int) -> int:
            if x % 5 != 4:
                await gates[x + 1].wait()
            gates[x].set()
            return x

        pipeline = task(range, branch=True) | task(after_the_next, workers=5, ordered=True)
        return await collect(pipeline(20))

    assert run(main) == list(range(20))


def test_throttle_is_exact() -> None:
    made = taken = 0

    async def produce(n: int) -> AsyncIterator[int]:
        nonlocal made
        for i in range(n):
            made += 1
            yield i

    async def main() -> None:
        nonlocal taken
        async for _ in task(produce, branch=True, throttle=4)(1000):
            taken += 1
            assert made <= taken + 4 + 1
            await asyncio.sleep(0)

    run(main)
    assert (made, taken) == (1000, 1000)


def test_bind_adds_arguments() -> None:
    async def times(x: int, factor: int) -> int:
        return x * factor

    pipeline = task(range, branch=True) | task(times, bind=task.bind(factor=10))
    assert run(collect(pipeline(1, 4))) == [10, 20, 30]


# -------------------------------------------------------------------------------------- join


async def asum(data: AsyncIterator[int]) -> int:
    return sum([x async for x in data])


async def running(data: AsyncIterator[int]) -> AsyncIterator[int]:
    total = 0
    async for x in data:
        total += x
        yield total


@pytest.mark.parametrize("throttle", [0, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_an_async_join_reads_an_async_iterator(workers: int, throttle: int) -> None:
    pipeline = task(range, branch=True, throttle=throttle) | task(asum, join=True, workers=workers)
    sums = run(collect(pipeline(1000)))
    assert len(sums) == workers
    assert sum(sums) == sum(range(1000))


def test_an_async_join_may_branch() -> None:
    pipeline = task(arange, branch=True, throttle=2) | task(running, branch=True, join=True)
    assert run(collect(pipeline(5))) == [0, 1, 3, 6, 10]


def test_a_sync_join_between_async_tasks() -> None:
    pipeline = task(arange, branch=True) | task(ainc) | task(sum, join=True) | task(ainc)
    assert run(collect(pipeline(100))) == [sum(range(1, 101)) + 1]


def test_a_join_is_called_without_inputs_too() -> None:
    assert run(collect((numbers(0) | task(asum, join=True, workers=3))())) == [0, 0, 0]


def test_a_join_that_has_enough_ends_the_tasks_before() -> None:
    async def ten(data: AsyncIterator[int]) -> list[int]:
        found = []
        async for x in data:
            found.append(x)
            if len(found) == 10:
                break
        return found

    async def endless() -> AsyncIterator[int]:
        x = 0
        while True:
            yield x
            x += 1

    pipeline = task(endless, branch=True, throttle=3) | task(ainc) | task(ten, join=True)
    assert run(collect(pipeline())) == [list(range(1, 11))]


def test_the_inputs_end_with_the_call() -> None:
    kept = []

    async def keep(data: AsyncIterator[int]) -> int:
        kept.append(data)
        async for x in data:
            return x
        return -1

    async def main() -> None:
        assert await collect((numbers(3) | task(keep, join=True))()) == [0]
        with pytest.raises(RuntimeError, match="'keep' that has ended"):
            await anext(kept[0])
        assert isinstance(kept[0], pyper.AsyncInputStream)

    run(main)


def test_a_join_learns_of_a_failure_by_cancellation() -> None:
    seen = []
    reads = threading.Event()

    async def total(data: AsyncIterator[int]) -> int:
        reads.set()
        try:
            return sum([x async for x in data])
        except BaseException as exception:
            seen.append(type(exception))
            raise

    def fails(x: int) -> int:
        if x == 5:
            reads.wait(PATIENCE)
            raise ValueError(x)
        return x

    with pytest.raises(ValueError, match="5"):
        run(collect((numbers(100) | task(fails) | task(total, join=True))()))
    assert seen == [asyncio.CancelledError]


def test_several_readers_share_the_inputs_of_an_async_join() -> None:
    async def shared(data: AsyncIterator[int]) -> list[list[int]]:
        return await asyncio.gather(*(collect(data) for _ in range(3)))

    pipeline = numbers(100) | task(ainc_later, throttle=2) | task(shared, join=True, workers=2)
    parts = run(collect(pipeline()))
    assert sorted(itertools.chain(*itertools.chain(*parts))) == list(range(1, 101))


def test_a_reader_that_gives_up_leaves_the_others_waiting() -> None:
    async def main() -> None:
        gate, waits = gated()

        async def patient(data: AsyncIterator[int]) -> list[int]:
            waiting = asyncio.ensure_future(collect(data))
            await asyncio.sleep(0)
            await give_up(anext(data))
            gate.set()
            return await waiting

        assert await collect((numbers(3) | task(waits) | task(patient, join=True))()) == [[0, 1, 2]]

    run(main)


def test_reads_that_are_given_up_leave_nothing_behind() -> None:
    async def main() -> None:
        gate, waits = gated()

        async def impatient(data: AsyncIterator[int]) -> int:
            waiting = asyncio.ensure_future(collect(data))
            await give_up(anext(data))
            before = futures_alive()
            for _ in range(1000):
                await give_up(anext(data))
            assert futures_alive() - before < 100
            gate.set()
            return len(await waiting)

        assert await collect((numbers(3) | task(waits) | task(impatient, join=True))()) == [3]

    run(main)


@pytest.mark.parametrize("end", ["too early", "complete", "cancelled"])
def test_who_still_waits_for_inputs_when_the_call_ends_is_told_so(end: str) -> None:
    expected = {
        "too early": RuntimeError,
        "complete": StopAsyncIteration,
        "cancelled": asyncio.CancelledError,
    }
    readers: list[asyncio.Future[int]] = []

    async def main() -> None:
        may_end = asyncio.Event()

        async def source() -> AsyncIterator[int]:
            yield 1
            await may_end.wait()

        async def leaves(data: AsyncIterator[int]) -> AsyncIterator[int]:
            assert await anext(data) == 1
            readers.extend(asyncio.ensure_future(anext(data)) for _ in range(3))
            await asyncio.sleep(0)
            yield 1
            if end == "complete":
                may_end.set()
            if end != "too early":
                await asyncio.wait(readers[:1])

        pipeline = task(source, branch=True) | task(leaves, branch=True, join=True)
        async with pipeline() as outputs:
            assert await anext(outputs) == 1
            if end != "cancelled":
                assert await collect(outputs) == []
        told = await asyncio.gather(*readers, return_exceptions=True)
        assert [type(one) for one in told] == [expected[end]] * 3

    run(main)
    readers.clear()


def test_an_async_join_may_emit_while_others_read() -> None:
    async def main() -> None:
        gate, waits = gated()

        async def emits(data: AsyncIterator[int]) -> AsyncIterator[int]:
            reading = asyncio.ensure_future(anext(data))
            await asyncio.sleep(0)
            yield -1
            gate.set()
            yield await reading

        pipeline = numbers(3) | task(waits) | task(emits, branch=True, join=True)
        assert await collect(pipeline()) == [-1, 0]

    run(main)


def test_an_async_join_may_wait_for_room_while_others_read() -> None:
    async def reads_ahead(data: AsyncIterator[int]) -> AsyncIterator[int | None]:
        ahead: asyncio.Queue[int | None] = asyncio.Queue()

        async def read() -> None:
            async for x in data:
                await ahead.put(x)
            await ahead.put(None)

        readers = [asyncio.create_task(read()) for _ in range(3)]
        for _ in readers:
            while (x := await ahead.get()) is not None:
                yield x
        await asyncio.gather(*readers)

    async def main() -> list[int | None]:
        found = []
        first = numbers(100) | task(ainc_later, throttle=2)
        async for x in (first | task(reads_ahead, branch=True, join=True, throttle=1))():
            await asyncio.sleep(0)
            found.append(x)
        return found

    assert sorted(run(main)) == list(range(1, 101))


@pytest.mark.parametrize("what", ["gave up a read", "lets another task read"])
def test_an_async_join_that_awaits_something_else_learns_of_the_end(what: str) -> None:
    seen: list[type[BaseException]] = []

    async def main() -> None:
        awaits = asyncio.Event()

        async def never(x: int) -> int:
            await asyncio.Event().wait()
            return x

        async def reads(data: AsyncIterator[int]) -> None:
            reading = asyncio.ensure_future(anext(data))
            await asyncio.sleep(0)
            if what == "gave up a read":
                reading.cancel()
            awaits.set()
            try:
                await asyncio.Event().wait()
            except BaseException as exception:
                seen.append(type(exception))
                raise
            finally:
                await asyncio.wait([reading])

        async with (numbers(3) | task(never) | task(reads, join=True))() as outputs:
            await give_up(anext(outputs))
            await awaits.wait()

    run(main)
    assert seen == [asyncio.CancelledError]


def test_an_async_join_is_not_cancelled_again_while_it_cleans_up() -> None:
    ended: list[str] = []

    async def main() -> None:
        begun = threading.Event()

        def fails(x: int) -> int:
            begun.wait(PATIENCE)
            raise Boom(x)

        async def total(data: AsyncIterator[int]) -> int:
            begun.set()
            until(lambda: outputs.stats()[1].alive == 0)  # the loop stands still, and knows nothing
            try:
                return sum([x async for x in data])
            finally:
                for _ in range(10):
                    await asyncio.sleep(0)
                ended.append("in its own time")

        outputs = (numbers(3) | task(fails) | task(total, join=True))()
        with pytest.raises(Boom):
            await collect(outputs)

    run(main)
    assert ended == ["in its own time"]


# ------------------------------------------------------------------------------------ nesting


def test_async_pipelines_are_tasks_of_pipelines() -> None:
    inner = task(arange, branch=True) | task(ainc)
    outer = task(range, branch=True) | task(inner, branch=True)
    assert isinstance(outer, AsyncPipeline)
    assert run(collect(outer(4))) == [1, 1, 2, 1, 2, 3]


def test_closing_waits_for_the_runs_within() -> None:
    """Also where the outer run waits for an output of the inner one, which goes on in a thread."""

    async def main() -> None:
        begun, gate = threading.Event(), threading.Event()

        def holds(x: int) -> int:
            begun.set()
            gate.wait(PATIENCE)
            return x

        inner = task(arange, branch=True) | task(holds)
        outer = task(ainc) | task(inner, branch=True)
        outputs = outer(1)
        waiting = asyncio.ensure_future(anext(outputs))
        while not begun.is_set():
            await asyncio.sleep(0)
        closing = asyncio.ensure_future(outputs.aclose())
        for _ in range(100):  # as many turns of the loop as it might want
            await asyncio.sleep(0)
        assert not closing.done()
        gate.set()
        await closing
        assert [t.name for t in threading.enumerate() if t.name.startswith("holds")] == []
        with pytest.raises(pyper.Cancelled):
            await waiting

    run(main)


def waits_and_fails_at_its_end() -> tuple[asyncio.Event, Callable[[int], Awaitable[int]]]:
    """A function that waits until it is cancelled, and fails then; the event says that it waits."""
    begun = asyncio.Event()

    async def fails_at_its_end(x: int) -> int:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            raise Boom("while cleaning up")

    return begun, fails_at_its_end


def test_a_failure_of_a_run_within_that_is_closed_is_told() -> None:
    async def main() -> None:
        begun, fails_at_its_end = waits_and_fails_at_its_end()
        inner = task(arange, branch=True) | task(fails_at_its_end)
        outputs = (task(ainc) | task(inner, branch=True))(1)
        waiting = asyncio.ensure_future(anext(outputs))
        await begun.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        with pytest.raises(Boom, match="while cleaning up") as caught:
            await outputs.aclose()
        assert caught.value.__notes__ == [
            "in task 'fails_at_its_end' (2 of 2)",
            "in task 'arange | fails_at_its_end' (2 of 2)",
        ]

    run(main)


def test_sync_pipelines_are_tasks_of_async_ones() -> None:
    inner = task(range, branch=True) | task(inc)
    outer = task(arange, branch=True) | task(inner, branch=True) | task(ainc)
    assert run(collect(outer(4))) == [2, 2, 3, 2, 3, 4]


def test_consumers() -> None:
    async def total(outputs: AsyncIterator[int]) -> int:
        return sum([x async for x in outputs])

    consumer = task(arange, branch=True) | task(ainc) > total
    assert run(consumer(10)) == 55
    assert run((task(arange, branch=True).consume(total))(3)) == 3
    with pytest.raises(TypeError, match="async function"):
        task(ainc) > sum  # type: ignore[operator]
    with pytest.raises(TypeError, match="chained comparison"):
        bool(consumer)


def test_what_is_merely_marked_as_async_is_a_task_and_a_consumer() -> None:
    mock = AsyncMock(return_value=3)
    assert run((task(mock) > mock)(1)) == 3
    assert run((task(ainc) > functools.partial(mock))(1)) == 3

    class Marked:
        def __call__(self, outputs: AsyncIterator[int]) -> Awaitable[list[int]]:
            return collect(outputs)

    if sys.version_info >= (3, 12):
        assert run((task(ainc) > inspect.markcoroutinefunction(Marked()))(1)) == [2]


def test_refusals() -> None:
    for func in (ainc, arange, Called()):
        with pytest.raises(ValueError, match="multiprocess"):
            task(func, multiprocess=True)
    with pytest.raises(RuntimeError, match="first of the pipeline"):
        task(ainc, workers=2)(1)
    with pytest.raises(RuntimeError, match="first of the pipeline"):
        task(asum, join=True)()
    with pytest.raises(TypeError, match="cannot pipe into"):
        task(ainc) | ainc  # type: ignore[operator]


def test_pickle() -> None:
    pipeline = pickle.loads(pickle.dumps(task(arange, branch=True) | task(ainc, workers=2)))
    assert isinstance(pipeline, AsyncPipeline)
    assert sorted(run(collect(pipeline(3)))) == [1, 2, 3]


# ----------------------------------------------------------------------------------- generator


def test_the_outputs_are_an_asynchronous_generator() -> None:
    async def main() -> None:
        outputs = (numbers(10) | task(ainc))()
        assert isinstance(outputs, AsyncGenerator)
        assert isinstance(outputs, pyper.AsyncOutputs)
        assert aiter(outputs) is outputs
        assert await anext(outputs) == 1
        assert await outputs.asend("ignored") == 2
        with pytest.raises(KeyError):
            await outputs.athrow(KeyError("mine"))
        with pytest.raises(StopAsyncIteration):
            await anext(outputs)
        assert await anext(outputs, "default") == "default"
        await outputs.aclose()

    run(main)


def test_nothing_starts_before_the_first_output_is_asked_for() -> None:
    started = []

    async def main() -> None:
        outputs = task(started.append) | task(ainc)
        awaitable = outputs(1).__anext__()
        await asyncio.sleep(0)
        assert started == []
        awaitable.close()  # type: ignore[attr-defined]
        closed = outputs(1)
        await closed.aclose()
        assert [x async for x in closed] == []
        assert started == []

    run(main)


def test_awaitables_are_awaited_once() -> None:
    async def main() -> None:
        outputs = (numbers(3) | task(ainc))()
        awaitable = outputs.__anext__()
        assert await awaitable == 1
        with pytest.raises(RuntimeError, match="already"):
            await awaitable
        await outputs.aclose()

    run(main)


def test_items_of_every_kind_pass() -> None:
    things = [None, (1, 2), StopIteration(3), ValueError(), asyncio, StopAsyncIteration]

    async def same(x: object) -> object:
        return x

    def produce() -> Iterable[object]:
        return things

    assert run(collect((task(produce, branch=True) | task(same))())) == things


def test_several_readers_share_the_outputs() -> None:
    async def main() -> None:
        outputs = (numbers(500) | task(ainc_later, workers=3))()
        parts = await asyncio.gather(*(collect(outputs) for _ in range(4)))
        assert sorted(itertools.chain(*parts)) == list(range(1, 501))

    run(main)


def test_stats() -> None:
    async def main() -> None:
        outputs = (numbers(10) | task(ainc, workers=2))()
        assert await collect(outputs) == list(range(1, 11))
        stats = outputs.stats()[1]
        assert (stats.name, stats.workers, stats.alive) == ("ainc", 2, 0)
        assert (stats.items_in, stats.items_out, stats.queued) == (10, 10, 0)

    run(main)


def test_context_variables_are_those_of_the_call() -> None:
    variable = contextvars.ContextVar("variable", default="none")

    async def read(_: int) -> str:
        value = variable.get()
        variable.set("changed by a worker")
        return value

    async def main() -> None:
        variable.set("of the call")
        outputs = (numbers(1) | task(read))()
        variable.set("later")
        assert await collect(outputs) == ["of the call"]
        assert variable.get() == "later"

    run(main)


# -------------------------------------------------------------------------------------- errors


class Boom(Exception):
    pass


def boom_at(n: int) -> Callable[[int], Awaitable[int]]:
    async def boom(x: int) -> int:
        await asyncio.sleep(0)
        if x == n:
            raise Boom(x)
        return x

    return boom


def test_the_original_exception_is_raised_with_a_note() -> None:
    with pytest.raises(Boom) as caught:
        run(collect((numbers(100) | task(boom_at(7), workers=4) | task(inc))()))
    assert caught.value.args == (7,)
    assert caught.value.__notes__ == ["in task 'boom' (2 of 3)"]
    frames = [entry.name for entry in caught.traceback]
    assert "boom" in frames


def test_a_failing_thread_cancels_the_async_workers() -> None:
    cancelled = []

    async def main() -> None:
        waiting = asyncio.Event()
        never = asyncio.Event()
        loop = asyncio.get_running_loop()

        async def waits(x: int) -> int:
            waiting.set()
            try:
                await never.wait()
            except asyncio.CancelledError:
                cancelled.append(x)
                await asyncio.sleep(0)  # its clean-up is waited for
                cancelled.append(-x)
                raise
            return x

        def produce() -> Iterator[int]:
            yield 1
            asyncio.run_coroutine_threadsafe(waiting.wait(), loop).result(PATIENCE)
            raise Boom

        with pytest.raises(Boom):
            await collect((task(produce, branch=True) | task(waits))())
        assert cancelled == [1, -1]

    run(main)


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
def test_what_would_end_a_loop_quietly_becomes_a_runtime_error(kind: type[BaseException]) -> None:
    class Raises:
        def __await__(self) -> Any:
            raise kind("quiet")

    class Makes:
        async def __call__(self, x: int) -> int:
            return 0

    def returns(self: Makes, x: int) -> Any:
        return Raises()

    awaits = Makes()
    pipeline = numbers(3) | task(awaits)
    pytest.MonkeyPatch().setattr(Makes, "__call__", returns)
    with pytest.raises(RuntimeError) as caught:
        run(collect(pipeline()))
    assert isinstance(caught.value.__cause__, (kind, RuntimeError))


def test_a_cancelled_future_is_an_exception_like_any_other() -> None:
    async def awaits_cancelled(x: int) -> int:
        future = asyncio.get_running_loop().create_future()
        future.cancel("by its owner")
        return await future

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError):
            await collect((numbers(3) | task(awaits_cancelled))())

    run(main)


async def outlast_a_timeout() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await asyncio.Event().wait()


async def outlast_a_group() -> None:
    async def fails() -> None:
        raise Boom

    with pytest.raises(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(fails())
            await asyncio.Event().wait()


async def outlast_a_cancellation() -> None:
    current = asyncio.current_task()
    assert current is not None
    current.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.sleep(0)


async def await_a_cancelled_future(when: str) -> None:
    future = asyncio.get_running_loop().create_future()
    if when == "before":
        future.cancel()
    else:
        asyncio.get_running_loop().call_soon(future.cancel)
    await future


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize(
    "outlast", [ainc, outlast_a_timeout, outlast_a_group, outlast_a_cancellation]
)
def test_a_cancellation_that_a_call_outlasts_hides_no_failure_of_another(
    outlast: Callable[..., Awaitable[object]], when: str
) -> None:
    async def fails_later(x: int) -> int:
        if x == 0:
            await (ainc(0) if outlast is ainc else outlast())
        if x == 2:
            await await_a_cancelled_future(when)
        return x

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError) as caught:
            await collect((numbers(5) | task(fails_later))())
        assert caught.value.__notes__ == ["in task 'fails_later' (2 of 2)"]

    run(main)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
@pytest.mark.parametrize("outlast", [outlast_a_timeout, outlast_a_group])
def test_a_cancellation_that_a_call_outlasts_hides_no_failure_of_its_own(
    outlast: Callable[..., Awaitable[object]], when: str
) -> None:
    async def fails(x: int) -> int:
        await outlast()
        await await_a_cancelled_future(when)
        return x

    async def main() -> None:
        with pytest.raises(asyncio.CancelledError) as caught:
            await collect((numbers(5) | task(fails))())
        assert caught.value.__notes__ == ["in task 'fails' (2 of 2)"]

    run(main)


def test_a_branch_that_returns_no_iterable() -> None:
    with pytest.raises(TypeError, match="branch=True"):
        run(collect(task(ainc, branch=True)(1)))


def test_generators_are_closed_in_their_worker() -> None:
    closed = []

    async def produce() -> AsyncIterator[int]:
        try:
            for i in range(10**9):
                yield i
        finally:
            await asyncio.sleep(0)
            closed.append(asyncio.current_task().get_name())  # type: ignore[union-attr]

    async def main() -> None:
        async with (task(produce, branch=True, throttle=2) | task(ainc))() as outputs:
            assert await anext(outputs) == 1
        assert closed == ["produce"]

    run(main)


def test_generators_of_other_kinds_are_closed_too() -> None:
    closed = []

    class Endless(Generator[int, Any, None]):
        def send(self, value: Any) -> int:
            return 1

        def throw(self, *args: Any) -> int:
            closed.append(threading.current_thread())
            raise args[0]

    inner_closed = []

    def produce() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            inner_closed.append(threading.current_thread().name)

    inner = task(produce, branch=True, throttle=2)

    async def makes(what: Callable[[], Any]) -> Any:
        return what()

    async def main() -> None:
        async with task(makes, branch=True)(Endless) as outputs:
            assert await anext(outputs) == 1
        assert closed == [threading.current_thread()]
        async with task(makes, branch=True)(inner) as outputs:
            assert await anext(outputs) == 0
        assert inner_closed == ["produce"]

    run(main)


def test_a_failure_while_closing_is_told() -> None:
    async def fails_on_close() -> AsyncIterator[int]:
        try:
            while True:
                yield 1
        finally:
            raise Boom

    async def main() -> None:
        with pytest.raises(Boom):
            async with (task(fails_on_close, branch=True, throttle=1) | task(ainc))() as outputs:
                await anext(outputs)
        outputs = (task(fails_on_close, branch=True, throttle=1) | task(ainc))()
        await anext(outputs)
        with pytest.raises(KeyError) as caught:
            await outputs.athrow(KeyError)
        assert any("Boom" in note for note in caught.value.__notes__)

    run(main)


def test_a_failure_while_closing_is_told_to_who_closes_whoever_else_waits() -> None:
    """A reader that waits meanwhile is told that the run was cancelled, and that may come first."""

    async def main() -> None:
        begun, fails_at_its_end = waits_and_fails_at_its_end()
        outputs = (task(range, branch=True) | task(fails_at_its_end))(3)
        waiting = asyncio.ensure_future(anext(outputs))
        await begun.wait()
        with pytest.raises(Boom):
            await outputs.aclose()
        with pytest.raises(pyper.Cancelled):
            await waiting
        await outputs.aclose()

    run(main)


def test_who_closes_again_is_told_of_a_failure() -> None:
    async def main() -> None:
        gate = threading.Event()

        def fails_on_close(x: int) -> Iterator[int]:
            try:
                yield x
                gate.wait(PATIENCE)
            finally:
                raise Boom

        outputs = (task(ainc) | task(fails_on_close, branch=True))(3)
        assert await anext(outputs) == 4
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(outputs.aclose(), 0.01)
        gate.set()
        for thread in threading.enumerate():
            if thread.name == "fails_on_close":
                thread.join(PATIENCE)
        for _ in range(3):  # the loop learns that everybody has left
            await asyncio.sleep(0)
        with pytest.raises(Boom):
            await outputs.aclose()

    run(main)


# ------------------------------------------------------------------------------------- leaving


async def endless() -> AsyncIterator[Counted]:
    i = 0
    while True:
        yield Counted(i)
        i += 1


async def slow(x: Any) -> Any:
    await asyncio.sleep(0.001)
    return x


def endless_chain(throttle: int) -> Any:
    return (
        task(endless, branch=True, throttle=throttle)
        | task(slow, workers=5, throttle=throttle)
        | task(slow)
        | task(lambda x: x, workers=2, throttle=throttle)
    )


@pytest.mark.parametrize("throttle", [1, 3, 100])
def test_break_leaves_nothing(throttle: int) -> None:
    async def main() -> None:
        async for item in endless_chain(throttle)():
            assert item.value >= 0
            break

    run(main)
    del main
    assert none_alive()


def test_a_loop_that_ends_right_after_a_break() -> None:
    async def main() -> None:
        async for _ in endless_chain(2)():
            return

    asyncio.run(main(), debug=True)
    assert none_alive()


@pytest.mark.skipif(sys.platform != "linux", reason="counts descriptors")
def test_outputs_that_are_over_keep_one_descriptor_each() -> None:
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def main() -> None:
        before = descriptors()
        held = [(task(range, branch=True) | task(ainc))(3) for _ in range(3)]
        assert await collect(held[0]) == [1, 2, 3]
        assert await anext(held[1]) == 1
        await held[1].aclose()
        assert await anext(held[2]) == 1
        await held[2].aclose()
        assert descriptors() == before + len(held)
        held.clear()
        assert descriptors() == before

    run(main())


def test_outputs_that_outlive_their_loop() -> None:
    kept = []

    async def main() -> None:
        outputs = endless_chain(2)()
        await anext(outputs)
        kept.append(outputs)

    asyncio.run(main(), debug=True)

    async def another() -> None:
        with pytest.raises(RuntimeError, match="belong to the event loop"):
            await anext(kept[0])

    asyncio.run(another())
    kept.clear()
    assert none_alive()


@pytest.mark.parametrize("who", ["a worker", "another task"])
def test_a_loop_that_ends_waits_for_workers_that_begin_meanwhile(who: str) -> None:
    """It cancels the tasks that it has; while one of them cleans up, another worker begins."""
    gate = threading.Event()
    begun: list[int] = []
    ended: list[int] = []
    kept = []

    def source() -> Iterator[int]:
        if who == "a worker":
            yield 0
        gate.wait()
        yield 1

    async def slow(x: int) -> AsyncIterator[int]:
        begun.append(x)
        try:
            if x == 0:
                yield x
            await asyncio.Event().wait()
        finally:
            await clean_up(x)
            ended.append(x)

    async def uses_slow(x: int) -> AsyncIterator[int]:  # this one the loop knows of
        async for item in slow(x):
            yield item

    async def clean_up(x: int) -> None:
        gate.set()
        while 1 not in begun:
            await asyncio.sleep(0)
        if x == 1:
            for _ in range(5):
                await asyncio.sleep(0)

    async def another() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await clean_up(2)

    async def main() -> None:
        function = uses_slow if who == "a worker" else slow
        outputs = (task(source, branch=True) | task(function, branch=True, workers=3))()
        kept.append(outputs)
        if who == "a worker":
            assert await anext(outputs) == 0
            await asyncio.sleep(0)  # it goes on, and waits
        else:
            kept.append(asyncio.create_task(another()))
            reading = asyncio.create_task(anext(outputs))  # type: ignore[arg-type]
            await asyncio.sleep(0)
            reading.cancel()

    asyncio.run(main(), debug=True)
    kept.clear()
    assert 1 in begun
    assert sorted(ended) == begun
    assert none_alive()


def test_a_failure_that_leads_to_its_outputs_is_collected_with_its_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(repr(args.exc_value)))
    box: list[AsyncOutputs[int]] = []

    class HoldsOutputs(Exception):
        pass

    async def fail_later(x: int) -> int:
        if x > 0:
            raise HoldsOutputs(box.pop(), asyncio.get_running_loop())
        return x

    async def all_left(outputs: AsyncOutputs[int]) -> None:
        while any(stats.alive for stats in outputs.stats()):
            await asyncio.sleep(0)

    for close in (True, False):
        loop = asyncio.new_event_loop()
        outputs = (task(arange, branch=True) | task(fail_later))(2)
        box.append(outputs)
        assert loop.run_until_complete(anext(outputs)) == 0
        loop.run_until_complete(all_left(outputs))
        if close:
            loop.close()
        reference = weakref.ref(outputs)
        del outputs
        with contextlib.ExitStack() as stack:
            if not close:
                stack.enter_context(pytest.warns(ResourceWarning, match="unclosed event loop"))
            del loop
            gc.collect()
        assert reference() is None
        assert [text[:13] for text in told] == ["HoldsOutputs("]
        told.clear()


def test_a_loop_that_is_closed_early() -> None:
    loop = asyncio.new_event_loop()
    outputs = endless_chain(2)()
    loop.run_until_complete(anext(outputs))
    loop.close()
    del loop, outputs
    assert none_alive()


def test_a_loop_that_is_closed_before_the_outputs_are_dropped() -> None:
    loop = asyncio.new_event_loop()
    outputs = endless_chain(2)()
    loop.run_until_complete(anext(outputs))
    loop.close()
    del loop
    gc.collect()

    async def close(outputs: AsyncGenerator[Any, None]) -> None:
        await outputs.aclose()

    asyncio.run(close(outputs))
    del outputs
    assert none_alive()


def test_cancelling_the_surrounding_task() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            async with endless_chain(3)() as outputs:
                async for _ in outputs:
                    begun.set()

        consumer = asyncio.create_task(consume())
        await begun.wait()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main(), debug=True)
    assert none_alive()


def test_timeout() -> None:
    async def never(x: int) -> int:
        await asyncio.Event().wait()
        return x

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                async for _ in (numbers(100) | task(never, workers=10))():
                    pass

    run(main)


@pytest.mark.parametrize("then", ["reads", "awaits something else"])
def test_a_join_that_has_outlasted_a_timeout_ends_with_its_run(then: str) -> None:
    async def main() -> None:
        ready = asyncio.Event()

        async def never(x: int) -> int:
            await asyncio.Event().wait()
            return x

        async def outlasts(data: AsyncIterator[int]) -> int:
            await outlast_a_timeout()
            ready.set()
            if then == "reads":
                return await anext(data)
            await asyncio.Event().wait()
            return 0

        async with (numbers(3) | task(never) | task(outlasts, join=True))() as outputs:
            await give_up(anext(outputs))
            await ready.wait()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    run(main)


def test_a_timeout_around_one_output_loses_nothing() -> None:
    async def main() -> None:
        gate, waits = gated()

        async with (numbers(3) | task(waits))() as outputs:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(anext(outputs), 0.001)
            gate.set()
            assert await collect(outputs) == [0, 1, 2]

    run(main)


def test_waits_that_are_given_up_leave_nothing_behind() -> None:
    async def main() -> None:
        gate, waits = gated()

        async with (numbers(3) | task(waits))() as outputs:
            waiting = asyncio.ensure_future(collect(outputs))  # who does not give up
            await give_up(anext(outputs))
            before = futures_alive()
            for _ in range(1000):
                await give_up(anext(outputs))
            assert futures_alive() - before < 100
            gate.set()
            assert await waiting == [0, 1, 2]

    run(main)


def test_a_call_that_absorbs_its_cancellation_is_waited_for() -> None:
    async def main() -> None:
        begun, absorbed, gate = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def absorbs(x: int) -> int:
            begun.set()
            try:
                await gate.wait()
            except asyncio.CancelledError:
                absorbed.set()
            await gate.wait()
            return x

        outputs = (task(range, branch=True) | task(absorbs))(3)
        waiting = asyncio.ensure_future(anext(outputs))
        await begun.wait()
        closing = asyncio.ensure_future(outputs.aclose())
        await absorbed.wait()
        with pytest.raises(pyper.Cancelled):
            await waiting
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(asyncio.shield(closing), 0)
        assert outputs.stats()[1].alive == 1
        gate.set()
        await closing
        assert outputs.stats()[1].alive == 0

    run(main)


def test_somebody_cancels_all_tasks() -> None:
    async def main() -> None:
        outputs = endless_chain(3)()
        await anext(outputs)
        for other in asyncio.all_tasks() - {asyncio.current_task()}:
            other.cancel()
        with pytest.raises(pyper.Cancelled):
            while True:
                await anext(outputs)
        await outputs.aclose()

    run(main)
    assert none_alive()


def test_dropping_in_another_thread() -> None:
    async def main() -> None:
        kept = [endless_chain(3)()]
        await anext(kept[0])
        await asyncio.to_thread(kept.clear)

    run(main)
    assert none_alive()


def test_close_waits_for_threads_without_blocking_the_loop() -> None:
    begun, may_go = threading.Event(), threading.Event()

    def blocks(x: int) -> int:
        begun.set()
        may_go.wait(PATIENCE)
        return x

    async def main() -> None:
        outputs = (task(arange, branch=True) | task(ainc) | task(blocks))(5)
        reading = asyncio.create_task(anext(outputs))  # type: ignore[arg-type]
        while not begun.is_set():
            await asyncio.sleep(0)
        closing = asyncio.create_task(outputs.aclose())
        for _ in range(100):
            await asyncio.sleep(0)
        assert not closing.done()
        may_go.set()
        await closing
        with pytest.raises(pyper.Cancelled):
            await reading

    run(main)


def test_of_two_readers_of_a_failing_run_neither_takes_its_outputs_for_all() -> None:
    async def fails_late(x: int) -> int:
        await asyncio.sleep(0)
        if x == 20:
            raise ValueError(x)
        return x

    async def reads(outputs: AsyncIterator[int]) -> type[BaseException] | None:
        try:
            async for _ in outputs:
                pass
        except BaseException as exception:
            return type(exception)
        return None

    async def main() -> None:
        outputs = (task(arange, branch=True) | task(fails_late))(100)
        ends = await asyncio.gather(reads(outputs), reads(outputs))
        assert set(ends) == {ValueError, pyper.Cancelled}

    run(main)


def test_readers_who_wait_when_the_outputs_end_are_told_so() -> None:
    may_end = threading.Event()

    def one(x: int) -> Iterator[int]:
        yield x
        may_end.wait(PATIENCE)

    async def main() -> None:
        outputs = (task(arange, branch=True) | task(one, branch=True))(1)
        assert await anext(outputs) == 0
        readers = [asyncio.create_task(collect(outputs)) for _ in range(2)]
        for _ in range(10):
            await asyncio.sleep(0)
        may_end.set()
        assert await asyncio.gather(*readers) == [[], []]

    run(main)


# --------------------------------------------------------------------------------------- loops


def test_several_runs_on_one_loop() -> None:
    async def main() -> None:
        pipeline = task(range, branch=True) | task(ainc_later, workers=3, ordered=True) | task(inc)
        results = await asyncio.gather(*(collect(pipeline(n)) for n in range(20)))
        assert results == [list(range(2, n + 2)) for n in range(20)]

    run(main)


def test_several_loops_in_several_threads() -> None:
    pipeline = task(range, branch=True) | task(ainc_later, workers=3, ordered=True) | task(inc)
    results: dict[int, list[int]] = {}

    def work(n: int) -> None:
        results[n] = asyncio.run(collect(pipeline(n)))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(100, 106)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == {n: list(range(2, n + 2)) for n in range(100, 106)}


def test_runner() -> None:
    with asyncio.Runner(debug=True) as runner:
        outputs = (numbers(5) | task(ainc))()
        assert runner.run(anext(outputs)) == 1  # type: ignore[arg-type]
        assert runner.run(collect(outputs)) == [2, 3, 4, 5]


def test_uvloop(uvloop: Any) -> None:
    loop = uvloop.new_event_loop()
    try:
        pipeline = task(range, branch=True) | task(ainc_later, workers=3, ordered=True) | task(inc)
        assert loop.run_until_complete(collect(pipeline(500))) == list(range(2, 502))
        outputs = pipeline(10**9)
        assert loop.run_until_complete(anext(outputs)) == 2
        loop.run_until_complete(outputs.aclose())
    finally:
        loop.close()


@pytest.mark.skipif(sys.version_info < (3, 12), reason="eager tasks are new in Python 3.12")
def test_eager_tasks() -> None:
    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        pipeline = task(range, branch=True) | task(ainc, workers=3, ordered=True) | task(inc)
        assert await collect(pipeline(500)) == list(range(2, 502))
        assert await collect(task(ainc)(1)) == [2]
        with pytest.raises(Boom):
            await collect(task(boom_at(1))(1))
        async for _ in endless_chain(2)():
            break

    run(main)
    assert none_alive()


# Whatever the loop is: what it does when its run is left, in each way there is.


@pytest.fixture(params=["asyncio", "asyncio, eager", "uvloop"])  # uvloop and eager: not in 3.13.0
def new_loop(
    request: pytest.FixtureRequest, uvloop_if_any: Any
) -> Callable[[], asyncio.AbstractEventLoop]:
    """Makes a loop of one kind, in debug mode."""
    kind, *eager = request.param.split(", ")
    if eager and sys.version_info < (3, 12):
        pytest.skip("eager tasks are new in Python 3.12")
    module = uvloop_if_any if kind == "uvloop" else asyncio
    if module is None:
        pytest.skip("there is no wheel of uvloop for free-threaded builds")

    def make() -> asyncio.AbstractEventLoop:
        loop: asyncio.AbstractEventLoop = module.new_event_loop()
        loop.set_debug(True)
        if eager:
            loop.set_task_factory(asyncio.eager_task_factory)  # type: ignore[attr-defined]
        return loop

    return make


async def leave_by_break() -> None:
    async for _ in endless_chain(2)():
        break


async def leave_by_closing() -> None:
    outputs = endless_chain(2)()
    await anext(outputs)
    await outputs.aclose()
    with pytest.raises(StopAsyncIteration):
        await anext(outputs)


async def leave_a_context() -> None:
    with pytest.raises(Boom):
        async with endless_chain(2)() as outputs:
            await anext(outputs)
            raise Boom("of the caller")


async def leave_by_throwing() -> None:
    outputs = endless_chain(2)()
    await anext(outputs)
    with pytest.raises(Boom):
        await outputs.athrow(Boom("thrown"))


async def be_cancelled() -> None:
    begun = asyncio.Event()

    async def read() -> None:
        async for _ in endless_chain(2)():
            begun.set()

    reading = asyncio.ensure_future(read())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def run_out_of_time() -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            async with endless_chain(2)() as outputs:
                async for _ in outputs:
                    pass


async def fail_on_the_loop() -> None:
    async def fail(item: Counted) -> Counted:
        if item.value == 7:
            raise Boom("on the loop")
        return item

    with pytest.raises(Boom) as caught:
        await collect((endless_chain(2) | task(fail, workers=3) | task(slow))())
    assert "in task 'fail' (5 of 6)" in caught.value.__notes__


async def fail_in_a_thread() -> None:
    def fail(item: Counted) -> Counted:
        if item.value == 7:
            raise Boom("in a thread")
        return item

    with pytest.raises(Boom) as caught:
        await collect((endless_chain(2) | task(fail, workers=3) | task(slow))())
    assert "in task 'fail' (5 of 6)" in caught.value.__notes__


@pytest.mark.parametrize(
    "leave",
    [
        leave_by_break,
        leave_by_closing,
        leave_a_context,
        leave_by_throwing,
        be_cancelled,
        run_out_of_time,
        fail_on_the_loop,
        fail_in_a_thread,
    ],
)
def test_leaving_on_each_loop(
    new_loop: Callable[[], asyncio.AbstractEventLoop], leave: Callable[[], Awaitable[None]]
) -> None:
    async def main() -> None:
        async with asyncio.timeout(PATIENCE):
            await leave()

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert none_alive()


def test_on_each_loop_a_function_that_closes_its_own_run_is_cancelled(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    seen: list[type[BaseException]] = []

    async def main() -> None:
        async def closes(x: int) -> int:
            try:
                await outputs.aclose()
            except BaseException as exception:
                seen.append(type(exception))
                raise
            return x

        outputs = (task(range, branch=True) | task(closes))(3)
        async with asyncio.timeout(PATIENCE):
            with pytest.raises(pyper.Cancelled):
                await anext(outputs)
            await outputs.aclose()
        assert [stats.alive for stats in outputs.stats()] == [0, 0]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert seen == [asyncio.CancelledError]


def test_on_each_loop_a_function_may_not_ask_for_outputs_of_its_own_run(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        async def asks(x: int) -> int:
            return await anext(outputs) + x

        async def asks_in_vain(x: int) -> AsyncIterator[int]:
            with pytest.raises(RuntimeError, match="of its own run"):
                await anext(outputs)
            yield x

        async with asyncio.timeout(PATIENCE):
            outputs = (task(range, branch=True) | task(asks))(3)
            with pytest.raises(RuntimeError, match="of its own run") as caught:
                await anext(outputs)
            assert caught.value.__notes__ == ["in task 'asks' (2 of 2)"]
            outputs = (task(range, branch=True) | task(asks_in_vain, branch=True))(3)
            assert await collect(outputs) == [0, 1, 2]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_on_each_loop_a_task_that_a_function_begins_may_ask_for_outputs_of_its_run(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    async def main() -> None:
        readers = []

        async def begins(x: int) -> int:
            if x == 1:
                readers.append(asyncio.create_task(collect(outputs)))
            return x

        outputs = (task(range, branch=True) | task(ainc_later) | task(begins))(5)
        async with asyncio.timeout(PATIENCE):
            got = await collect(outputs)
            got += await readers[0]
        assert sorted(got) == [1, 2, 3, 4, 5]

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())


def test_each_loop_may_be_closed_early(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    loop = new_loop()
    outputs, kept = endless_chain(2)(), endless_chain(2)()
    loop.run_until_complete(anext(outputs))
    loop.run_until_complete(anext(kept))
    loop.close()
    del loop, outputs
    gc.collect()
    asyncio.run(kept.aclose())
    del kept
    assert none_alive()


def test_each_loop_that_ends_closes_outputs_that_are_kept(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """As it closes asynchronous generators: asyncio.run() leaves nothing behind."""
    kept = []

    async def main() -> None:
        for outputs in [endless_chain(2)(), (task(arange, branch=True) | task(ainc))(3)]:
            await anext(outputs)
            kept.append(outputs)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert [stats.alive for outputs in kept for stats in outputs.stats()] == [0] * 6
    assert Counted.alive == 0
    asyncio.run(kept[0].aclose())  # once more is no mistake


def test_each_loop_mixes_all_kinds(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    pipeline = (
        task(arange, branch=True, throttle=3)
        | task(inc, workers=2, ordered=True)
        | task(ainc_later, workers=5, ordered=True, throttle=1)
        | task(inc)
        | task(ainc)
    )

    async def main() -> list[Any]:
        return list(await asyncio.gather(*(collect(pipeline(100)) for _ in range(3))))

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(main()) == [list(range(4, 104))] * 3


def test_a_runner_that_is_closed_before_its_outputs() -> None:
    with asyncio.Runner(debug=True) as runner:
        outputs = endless_chain(2)()
        runner.run(anext(outputs))
        waiting = runner.get_loop().create_task(anext(outputs))
    assert waiting.cancelled()
    asyncio.run(outputs.aclose())
    del outputs, waiting
    assert none_alive()


def test_a_task_factory_that_refuses_a_worker() -> None:
    def refuse(loop: Any, coroutine: Any, **options: Any) -> Any:
        raise LookupError

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(refuse)
        outputs = (task(range, branch=True) | task(ainc))(3)
        with pytest.raises(RuntimeError, match="task 'ainc'.*a worker could not") as caught:
            await anext(outputs)
        assert isinstance(caught.value.__cause__, LookupError)
        await outputs.aclose()
        asyncio.get_running_loop().set_task_factory(None)

    asyncio.run(main())


def test_a_task_factory_that_wraps_the_workers() -> None:
    """As tools that trace tasks do: the task's coroutine is theirs, which awaits the worker."""

    def wrap(loop: Any, coroutine: Any, **options: Any) -> asyncio.Task[Any]:
        async def traced() -> Any:
            return await coroutine

        return asyncio.Task(traced(), loop=loop, **options)

    async def asks(x: int) -> int:
        with pytest.raises(RuntimeError, match="of its own run"):
            await anext(outputs[x])
        return x

    async def closes(x: int) -> int:
        await outputs[x].aclose()
        return x

    outputs: list[AsyncGenerator[int, None]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_task_factory(wrap)
        chain = task(arange, branch=True) | task(ainc_later, workers=3, ordered=True)
        assert await collect(chain(5)) == [1, 2, 3, 4, 5]
        async with chain(5) as left:
            assert await anext(left) == 1
        outputs.append(task(asks)(0))
        assert await collect(outputs[0]) == [0]
        outputs.append(task(closes)(1))
        with pytest.raises(pyper.Cancelled):
            await anext(outputs[1])
        await outputs[1].aclose()
        outputs.clear()

    run(main)
    assert none_alive()


def test_without_a_loop() -> None:
    outputs = task(ainc)(1)
    with pytest.raises(RuntimeError, match="no running event loop"):
        outputs.__anext__().send(None)  # type: ignore[attr-defined]


def test_fast_items_give_the_loop_a_turn() -> None:
    async def main() -> None:
        turns = 0
        stop = False

        async def tick() -> None:
            nonlocal turns
            while not stop:
                turns += 1
                await asyncio.sleep(0)

        async def quick() -> AsyncIterator[int]:
            while turns < 20:  # for ever, if the loop gets none
                yield 1

        ticker = asyncio.create_task(tick())
        async for _ in (task(quick, branch=True) | task(ainc) | task(asum, join=True))():
            pass
        stop = True
        await ticker
        assert turns >= 20

    run(main, debug=False)


def test_an_async_function_that_calls_back_into_threads() -> None:
    async def through_a_thread(x: int) -> int:
        return await asyncio.to_thread(inc, x)

    pipeline = task(range, branch=True) | task(through_a_thread, workers=4, ordered=True)
    assert run(collect(pipeline(50))) == list(range(1, 51))


def test_ten_thousand_workers() -> None:
    async def main() -> None:
        everybody = asyncio.Event()
        count = 0

        async def waits(x: int) -> int:
            nonlocal count
            count += 1
            if count == 10_000:
                everybody.set()
            await everybody.wait()
            return x

        outputs = (numbers(10_000) | task(waits, workers=10_000))()
        assert sorted([x async for x in outputs]) == list(range(10_000))

    run(main, debug=False)


# ------------------------------------------------------------------------------ where it runs


def test_sync_generators_and_joins_run_in_their_threads() -> None:
    seen: dict[str, set[int]] = {"generator": set(), "branch": set(), "join": set()}

    def generator(n: int) -> Iterator[int]:
        for i in range(n):
            seen["generator"].add(threading.get_ident())
            yield i

    def branch(x: int) -> Iterator[int]:
        seen["branch"].add(threading.get_ident())
        yield x

    def join(data: Iterable[int]) -> Iterator[int]:
        for x in data:
            seen["join"].add(threading.get_ident())
            yield x

    pipeline = (
        task(generator, branch=True)
        | task(ainc)
        | task(branch, branch=True)
        | task(ainc)
        | task(join, branch=True, join=True)
        | task(ainc)
    )
    assert run(collect(pipeline(50))) == list(range(3, 53))
    threads = [next(iter(one)) for one in seen.values() if len(one) == 1]
    assert len({*threads, threading.get_ident()}) == 4


@pytest.mark.parametrize("branch", [False, True])
def test_asyncio_shows_where_a_worker_stands(branch: bool) -> None:
    """Of a call in progress its function, and what that awaits; before the next call nothing."""
    begun, leave, end = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def source() -> AsyncIterator[int]:
        yield 0
        await end.wait()

    async def wait_inside() -> None:
        begun.set()
        await leave.wait()

    async def work(x: int) -> int:
        await wait_inside()
        return x

    async def generate(x: int) -> AsyncIterator[int]:
        await wait_inside()
        yield x

    async def main() -> None:
        function = generate if branch else work
        outputs = (task(source, branch=True) | task(function, branch=branch))()
        waiting = asyncio.ensure_future(anext(outputs))
        await begun.wait()
        (worker,) = (one for one in asyncio.all_tasks() if one.get_name() == function.__name__)
        assert [frame.f_code for frame in worker.get_stack()] == [function.__code__]
        coroutine: Any = worker.get_coro()
        assert coroutine.cr_await.cr_code is wait_inside.__code__
        if sys.version_info >= (3, 14):
            graph = asyncio.format_call_graph(worker)
            assert f"{function.__name__}()" in graph
            assert "wait_inside()" in graph
        leave.set()
        assert await waiting == 0
        while worker.get_stack():
            await asyncio.sleep(0)
        end.set()
        assert await collect(outputs) == []

    run(main())


class CountingLoop(asyncio.SelectorEventLoop):
    """Counts how often anything goes through it, and how often a descriptor calls."""

    scheduled = 0
    called = 0

    def call_soon(self, callback: Any, *args: Any, **options: Any) -> Any:
        self.scheduled += 1
        return super().call_soon(callback, *args, **options)

    def add_reader(self, fd: Any, callback: Any, *args: Any) -> None:
        def counted(*args: Any) -> None:
            self.called += 1
            callback(*args)

        super().add_reader(fd, counted, *args)


def on_counting_loop(main: Callable[[CountingLoop], Awaitable[None]]) -> None:
    loop = CountingLoop()
    try:
        loop.run_until_complete(main(loop))
    finally:
        loop.close()


def test_an_item_that_is_there_does_not_go_through_the_loop() -> None:
    """10 000 items wait; a worker takes them one after the other, and so does the caller."""

    async def main(loop: CountingLoop) -> None:
        produced = threading.Event()

        def produce() -> Iterator[int]:
            yield from range(10_000)
            produced.set()

        outputs = (task(produce, branch=True) | task(ainc) | task(ainc))()
        assert await anext(outputs) == 2
        produced.wait(PATIENCE)  # which the loop must not do, but a test may
        before = loop.scheduled
        assert await collect(outputs) == list(range(3, 10_002))
        # Two workers and a reader, for each item: 30 000.  What is left are the turns of the loop,
        # one for each millisecond that this takes.
        assert loop.scheduled - before < 10_000

    on_counting_loop(main)


def test_a_thread_wakes_the_loop_once_however_much_it_has() -> None:
    async def main(loop: CountingLoop) -> None:
        waiting, produced = threading.Event(), threading.Event()

        def produce() -> Iterator[int]:
            waiting.wait(PATIENCE)
            yield from range(10_000)
            produced.set()

        outputs = (task(produce, branch=True) | task(ainc))()
        reading = asyncio.create_task(anext(outputs))  # type: ignore[arg-type]
        for _ in range(10):
            await asyncio.sleep(0)
        before = loop.called
        waiting.set()
        produced.wait(PATIENCE)  # nothing goes through the loop meanwhile
        assert await reading == 1
        assert await collect(outputs) == list(range(2, 10_001))
        # Once for the items; the rest is the end of the run, and budgets that were used up.
        assert loop.called - before < 100

    on_counting_loop(main)


# ------------------------------------------------------------------------------------ notebooks


class Notebook:
    """A loop that runs for ever, and cells that are compiled with `await` at the top level.

    That is what IPython and the asyncio REPL do with what is typed in.
    """

    def __init__(self) -> None:
        self.names: dict[str, Any] = {"__builtins__": builtins}
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever)
        self.thread.start()

    def cell(self, source: str) -> Any:
        """Run a cell; returns the value of `_`."""
        flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
        code = compile(textwrap.dedent(source), "<cell>", "exec", flags=flags)

        async def execute() -> Any:
            made = types.FunctionType(code, self.names)()
            if inspect.iscoroutine(made):
                await made
            return self.names.get("_")

        return asyncio.run_coroutine_threadsafe(execute(), self.loop).result(PATIENCE)

    def close(self) -> None:
        async def cancel_all() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(cancel_all(), self.loop).result(PATIENCE)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(PATIENCE)
        self.loop.close()


def test_a_notebook() -> None:
    notebook = Notebook()
    notebook.cell("""
        from pyper import task
        async def ainc(x):
            return x + 1
        def inc(x):
            return x + 1
        pipeline = task(range, branch=True) | task(ainc, workers=2, ordered=True) | task(inc)
    """)
    assert notebook.cell("_ = [x async for x in pipeline(5)]") == [2, 3, 4, 5, 6]
    notebook.cell("outputs = pipeline(10**9)")
    assert notebook.cell("_ = await anext(outputs)") == 2
    assert notebook.cell("_ = await anext(outputs)") == 3
    notebook.cell("await outputs.aclose()")
    notebook.cell("""
        async for x in pipeline(10**9):
            break
        outputs = pipeline(10**9)
        _ = await anext(outputs)
    """)
    notebook.close()
    notebook.names.clear()


def test_closing_in_another_loop_while_the_run_is_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only its own loop can wait for it; but it is cancelled."""
    starting, go_on = threading.Event(), threading.Event()
    start = threading.Thread.start

    def start_slowly(self: threading.Thread) -> None:
        if self.name == "range":
            starting.set()
            assert go_on.wait(PATIENCE)
        start(self)

    outputs = (task(range, branch=True) | task(ainc))(1000)
    ended: list[str] = []

    async def read() -> None:
        try:
            async for _ in outputs:
                pass
        except pyper.Cancelled as error:
            ended.append(repr(error))

    reader = threading.Thread(target=lambda: asyncio.run(read()))
    monkeypatch.setattr(threading.Thread, "start", start_slowly)
    reader.start()
    assert starting.wait(PATIENCE)
    with pytest.raises(RuntimeError, match="belong to the event loop"):
        asyncio.run(outputs.aclose())
    go_on.set()
    reader.join()
    assert len(ended) == 1


def test_the_repl_of_asyncio() -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "asyncio"],
        input=textwrap.dedent("""
            from pyper import task
            async def ainc(x): return x + 1

            pipeline = task(range, branch=True) | task(ainc)
            print([x async for x in pipeline(3)])
            outputs = pipeline(10**9)
            print("first:", await anext(outputs))
        """),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert "[1, 2, 3]" in done.stdout
    assert "first: 1" in done.stdout
    assert done.returncode == 0
    for word in ("Traceback", "Error", "never", "pending"):
        assert word not in done.stderr
