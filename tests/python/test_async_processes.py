"""Asynchronous tasks, threads and processes in one pipeline.

The functions of process tasks stand at the top level of this module: a worker finds them by name.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Iterable, Iterator
from typing import Any

import pytest

import pyper
from helpers import PATIENCE, Program
from on_loop import ainc, ainc_later, arange, collect, nothing_said, run
from pyper import AsyncPipeline, task
from test_multiprocess import (
    badly_at_two,
    caller,
    fork,
    interrupting_at_two,
    method,
    nothing_is_left,
    nothing_stays,
    servers,
)

__all__ = ["caller", "fork", "method", "nothing_is_left", "nothing_said", "servers"]  # fixtures

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="process workers need Linux"),
    # We fork beside pytest's own threads; Python says so from 3.12 on.
    pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning"),
]
forked = pytest.mark.usefixtures("fork")


# --------------------------------------------------------------------------- functions of tasks


async def aendless() -> AsyncIterator[int]:
    i = 0
    while True:
        yield i
        i += 1


async def asum(data: AsyncIterator[int]) -> int:
    return sum([x async for x in data])


async def aten(data: AsyncIterator[int]) -> list[int]:
    found: list[int] = []
    async for x in data:
        found.append(x)
        if len(found) == 10:
            break
    return found


async def never(x: int) -> int:
    await asyncio.Event().wait()
    return x


def inc(x: int) -> int:
    return x + 1


def total(data: Iterable[int]) -> int:
    return sum(data)


def ten(data: Iterator[int]) -> list[int]:
    return [next(data) for _ in range(10)]


def fails_at_7(x: int) -> int:
    if x == 7:
        raise ValueError("seven is bad")
    return x


def dies_at_7(x: int) -> int:
    if x == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return x


def stays(x: int) -> int:
    time.sleep(1000)
    return x


def with_asyncio(x: int) -> int:
    """Runs a loop of its own, where its parent's process had one running."""
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()

    async def main() -> int:
        await asyncio.sleep(0)
        return await ainc(x)

    return asyncio.run(main())


def read_one(pipe: tuple[int, int]) -> bytes:
    return os.read(pipe[0], 1)


def own_process(_: object) -> int:
    return os.getpid()


def processes() -> Any:
    """A pipeline of synchronous tasks with processes, to be nested."""
    return task(range, branch=True) | task(inc, multiprocess=True, workers=2, ordered=True)


# ------------------------------------------------------------------------------------ mixtures


async def wait(n: int) -> int:
    await asyncio.sleep(0.01)
    return n


def block(n: int) -> int:
    time.sleep(0.01)
    return n


def compute(n: int) -> tuple[int, int]:
    return sum(i * i for i in range(n)), os.getpid()


@pytest.mark.usefixtures("method")
def test_wait_block_and_compute() -> None:
    """The specification's three kinds of work: on the loop, in threads, in processes."""
    pipeline = (
        task(range, branch=True)
        | task(wait, workers=10)
        | task(block, workers=10)
        | task(compute, workers=2, multiprocess=True)
    )
    assert isinstance(pipeline, AsyncPipeline)
    results = run(collect(pipeline(1, 40)))
    assert sorted(value for value, _ in results) == [
        sum(i * i for i in range(n)) for n in range(1, 40)
    ]
    pids = {pid for _, pid in results}
    assert len(pids) <= 2
    assert os.getpid() not in pids


@forked
@pytest.mark.parametrize("throttle", [0, 3])
def test_all_kinds_in_any_order(throttle: int) -> None:
    for mix in range(27):
        chain: Any = task(range, branch=True, throttle=throttle)
        for place, kind in enumerate((mix % 3, mix // 3 % 3, mix // 9)):
            chain |= task(
                ainc_later if kind == 0 else inc,
                workers=1 + place,
                multiprocess=kind == 2,
                ordered=True,
                throttle=throttle,
            )
        chain |= task(ainc)
        assert run(collect(chain(50))) == list(range(4, 54))


@pytest.mark.usefixtures("method")
def test_each_start_method() -> None:
    pipeline = (
        task(arange, branch=True, throttle=10)
        | task(inc, multiprocess=True, workers=2, ordered=True, throttle=10)
        | task(ainc_later, workers=5, ordered=True, throttle=10)
        | task(inc, workers=2, ordered=True)
        | task(inc, multiprocess=True)
    )
    for _ in range(2):
        assert run(collect(pipeline(200))) == list(range(4, 204))


@forked  # which restores what was before
def test_the_default_start_method() -> None:
    """Nothing is chosen, and nothing is chosen by us."""
    multiprocessing.set_start_method(None, force=True)  # type: ignore[arg-type]
    pipeline = task(arange, branch=True) | task(own_process, multiprocess=True) | task(ainc)
    assert len(set(run(collect(pipeline(10))))) == 1
    assert multiprocessing.get_start_method(allow_none=True) is None


@forked
def test_a_process_does_not_block_the_loop() -> None:
    """It waits for what the loop does meanwhile."""
    pipe = os.pipe()

    async def main() -> list[bytes]:
        pipeline = task(read_one, multiprocess=True) | task(ainc_bytes)
        reading = asyncio.create_task(collect(pipeline(pipe)))
        for _ in range(100):
            await asyncio.sleep(0)
        assert not reading.done()
        os.write(pipe[1], b"x")
        return await reading

    async def ainc_bytes(x: bytes) -> bytes:
        return x + b"!"

    assert run(main) == [b"x!"]
    for fd in pipe:
        os.close(fd)


@forked
def test_a_process_may_have_a_loop_of_its_own() -> None:
    pipeline = task(arange, branch=True) | task(with_asyncio, multiprocess=True) | task(ainc)
    assert run(collect(pipeline(5))) == [2, 3, 4, 5, 6]


@forked
def test_items_of_every_size() -> None:
    async def grow(n: int) -> bytes:
        return bytes(n * n)

    pipeline = (
        task(range, branch=True, throttle=5)
        | task(grow, workers=5, ordered=True, throttle=5)
        | task(bytes, multiprocess=True, throttle=5)
        | task(alen)
    )
    assert run(collect(pipeline(0, 1500, 10))) == [n * n for n in range(0, 1500, 10)]


async def alen(data: bytes) -> int:
    return len(data)


@forked
@pytest.mark.parametrize("throttle", [0, 2])
@pytest.mark.parametrize("workers", [1, 3])
def test_joins(workers: int, throttle: int) -> None:
    options: Any = {"join": True, "workers": workers}
    on_the_loop = (
        task(range, branch=True, throttle=throttle)
        | task(inc, multiprocess=True, throttle=throttle)
        | task(asum, **options)
    )
    in_processes = (
        task(arange, branch=True, throttle=throttle)
        | task(ainc, throttle=throttle)
        | task(total, multiprocess=True, **options)
    )
    for pipeline in (on_the_loop, in_processes):
        sums: list[Any] = run(collect(pipeline(300)))
        assert len(sums) == workers
        assert sum(sums) == sum(range(301))


@forked
def test_a_join_that_has_enough_ends_the_tasks_before() -> None:
    on_the_loop = (
        task(aendless, branch=True, throttle=3)
        | task(inc, multiprocess=True, throttle=3)
        | task(aten, join=True)
    )
    in_a_process = (
        task(aendless, branch=True, throttle=3)
        | task(ainc, throttle=3)
        | task(ten, join=True, multiprocess=True)
    )
    for pipeline in (on_the_loop, in_a_process):
        assert run(collect(pipeline())) == [list(range(1, 11))]


@forked
def test_nesting() -> None:
    outer = task(arange, branch=True) | task(processes(), branch=True) | task(ainc)
    assert run(collect(outer(4))) == [2, 2, 3, 2, 3, 4]
    inner = task(arange, branch=True) | task(inc, multiprocess=True)
    assert run(collect((task(range, branch=True) | task(inner, branch=True))(3))) == [1, 1, 2]


@forked
def test_a_consumer() -> None:
    async def add(outputs: AsyncIterator[int]) -> int:
        return sum([x async for x in outputs])

    assert run((task(arange, branch=True) | task(inc, multiprocess=True) > add)(10)) == 55


@forked
def test_stats() -> None:
    async def main() -> None:
        outputs = (task(arange, branch=True) | task(inc, multiprocess=True, workers=2))(10)
        assert sorted(await collect(outputs)) == list(range(1, 11))
        stats = outputs.stats()[1]
        assert (stats.name, stats.workers, stats.alive) == ("inc", 2, 0)
        assert (stats.items_in, stats.items_out, stats.queued) == (10, 10, 0)

    run(main)


# -------------------------------------------------------------------------------------- errors


@forked
def test_a_failure_in_a_process() -> None:
    cleaned_up = []

    async def waits(x: int) -> int:
        try:
            return await never(x)
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(x)

    async def main() -> None:
        some_wait = asyncio.Event()

        async def up_to_7(n: int) -> AsyncIterator[int]:
            yield 1
            await some_wait.wait()
            yield 7

        async def waits_for_1(x: int) -> int:
            some_wait.set()
            return await waits(x)

        pipeline = (
            task(up_to_7, branch=True)
            | task(fails_at_7, multiprocess=True)
            | task(waits_for_1, workers=5)
        )
        with pytest.raises(ValueError, match="seven is bad") as caught:
            await collect(pipeline(100))
        assert caught.value.__notes__ == ["in task 'fails_at_7' (2 of 3)"]
        assert "in fails_at_7" in "".join(traceback.format_exception(caught.value.__cause__))
        assert cleaned_up == [1]

    run(main)


@forked
def test_a_failure_on_the_loop() -> None:
    async def fails(x: int) -> int:
        await asyncio.sleep(0)
        return fails_at_7(x)

    for chain in (
        task(aendless, branch=True, throttle=3) | task(fails) | task(inc, multiprocess=True),
        task(aendless, branch=True, throttle=3) | task(inc, multiprocess=True) | task(fails),
    ):
        with pytest.raises(ValueError, match="seven is bad"):
            run(collect(chain()))


@forked
def test_a_worker_that_dies() -> None:
    pipeline = (
        task(aendless, branch=True, throttle=3)
        | task(dies_at_7, multiprocess=True, workers=2)
        | task(never, workers=100)
    )
    with pytest.raises(pyper.WorkerDied, match="'dies_at_7'.*signal 9"):
        run(collect(pipeline()))


@forked
def test_an_item_that_cannot_be_pickled() -> None:
    async def lock(_: int) -> Any:
        return threading.Lock()

    pipeline = task(range, branch=True) | task(lock) | task(id, multiprocess=True)
    with pytest.raises(RuntimeError, match="'lock'.*cannot be pickled"):
        run(collect(pipeline(3)))


@forked
@pytest.mark.parametrize("options", [{}, {"workers": 3, "ordered": True}])
def test_outputs_end_at_the_one_that_cannot_be_unpickled(options: Any) -> None:
    async def main() -> None:
        chain = task(arange, branch=True) | task(badly_at_two, multiprocess=True, **options)
        outputs = chain(8)
        assert await anext(outputs) == 0
        while any(counters.alive for counters in outputs.stats()):
            await asyncio.sleep(0)
        assert await anext(outputs) == 1  # all the others are there
        with pytest.raises(RuntimeError, match="cannot be unpickled"):
            await anext(outputs)
        assert await collect(outputs) == []

    run(main)


# ------------------------------------------------------------------------------------- leaving


def endless_chain() -> Any:
    return (
        task(aendless, branch=True, throttle=3)
        | task(ainc_later, workers=3, throttle=3)
        | task(inc, multiprocess=True, workers=2, throttle=3)
        | task(inc, workers=2, throttle=3)
        | task(ainc_later, throttle=3)
    )


@forked
def test_closing_waits_for_the_processes() -> None:
    async def main() -> None:
        async with endless_chain()() as outputs:
            assert await anext(outputs) >= 4
        assert multiprocessing.active_children() == []

    run(main)


@forked
def test_a_process_that_stays_is_killed() -> None:
    async def main() -> None:
        pipeline = task(arange, branch=True) | task(stays, multiprocess=True) | task(ainc)
        outputs = pipeline(3)
        reading = asyncio.create_task(anext(outputs))  # type: ignore[arg-type]
        while not multiprocessing.active_children():
            await asyncio.sleep(0)
        await outputs.aclose()
        with pytest.raises(pyper.Cancelled):
            await reading
        assert multiprocessing.active_children() == []

    run(main)


@forked
def test_break() -> None:
    async def main() -> None:
        async for item in endless_chain()():
            assert item >= 4
            break

    with nothing_stays():
        run(main)


@forked
def test_cancelling_and_timeouts() -> None:
    async def main() -> None:
        begun = asyncio.Event()

        async def consume() -> None:
            async with endless_chain()() as outputs:
                async for _ in outputs:
                    begun.set()

        consumer = asyncio.create_task(consume())
        await begun.wait()
        consumer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await consumer
        assert multiprocessing.active_children() == []
        pipeline = task(arange, branch=True) | task(inc, multiprocess=True) | task(never, workers=9)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05), pipeline(100) as outputs:
                await anext(outputs)
        assert multiprocessing.active_children() == []

    run(main)


@forked
def test_a_loop_that_is_closed_early() -> None:
    with nothing_stays():
        loop = asyncio.new_event_loop()
        outputs = endless_chain()()
        loop.run_until_complete(anext(outputs))
        loop.close()
        del loop, outputs
        gc.collect()


def test_ctrl_c() -> None:
    program = Program("""
        import asyncio, itertools, multiprocessing
        from pyper import task

        async def count():
            for i in itertools.count():
                yield i

        async def main():
            multiprocessing.set_start_method("fork")
            chain = task(count, branch=True, throttle=5) | task(abs, multiprocess=True, workers=2)
            async with chain() as outputs:
                await anext(outputs)
                print("begun", flush=True)
                async for _ in outputs:
                    pass

        try:
            asyncio.run(main())
        except KeyboardInterrupt:
            print("interrupted", multiprocessing.active_children())
    """)
    program.wait_for("begun")
    program.interrupt()
    assert program.end() == ("interrupted []", "", 0)


def signal_itself(x: int) -> int:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGUSR1)
    return x


@forked
@pytest.mark.usefixtures("caller")
def test_a_loop_does_not_hear_the_signals_of_its_workers() -> None:
    chain = task(arange, branch=True) | task(signal_itself, multiprocess=True)

    async def turns_of_the_loop() -> None:
        for _ in range(3):
            await asyncio.sleep(0)

    async def main() -> tuple[list[int], list[int]]:
        heard: list[int] = []
        for number in (signal.SIGINT, signal.SIGUSR1):
            asyncio.get_running_loop().add_signal_handler(number, heard.append, number)
        assert [x async for x in chain(3)] == [0, 1, 2]
        await turns_of_the_loop()
        of_workers = heard.copy()
        signal.raise_signal(signal.SIGUSR1)
        await turns_of_the_loop()
        return of_workers, heard

    assert on_a_loop_without_handlers(main()) == ([], [signal.SIGUSR1])


# --------------------------------------------------------------------------------------- loops


class InterruptsItsPickling:
    def __reduce__(self) -> Any:
        signal.raise_signal(signal.SIGINT)
        return (int, ())


async def interrupts_its_pickling(x: int) -> Any:
    return InterruptsItsPickling() if x == 2 else x


def on_a_loop_without_handlers(coroutine: Any) -> Any:
    """As asyncio.run(), but Ctrl-C stays KeyboardInterrupt: a Runner would cancel the task."""
    loop = asyncio.new_event_loop()
    try:
        return loop.run_until_complete(asyncio.wait_for(coroutine, PATIENCE))
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


@forked
@pytest.mark.usefixtures("caller")
@pytest.mark.parametrize("where", ["pickled", "unpickled"])
def test_ctrl_c_while_an_item_crosses(where: str) -> None:
    chain: Any = task(arange, branch=True)
    if where == "pickled":
        chain |= task(interrupts_its_pickling)
        chain |= task(inc, multiprocess=True)
    else:
        chain |= task(interrupting_at_two, multiprocess=True)

    async def main() -> str:
        outputs = chain(100)
        try:
            async for _ in outputs:
                pass
        except KeyboardInterrupt:
            await outputs.aclose()
            return "interrupted"
        return "not interrupted"

    assert on_a_loop_without_handlers(main()) == "interrupted"


@forked
def test_several_runs_on_one_loop() -> None:
    async def main() -> None:
        pipeline = (
            task(arange, branch=True)
            | task(inc, multiprocess=True, workers=2, ordered=True)
            | task(ainc_later, workers=2, ordered=True)
        )
        results = await asyncio.gather(*(collect(pipeline(n)) for n in range(0, 50, 10)))
        assert results == [list(range(2, n + 2)) for n in range(0, 50, 10)]

    run(main)


def test_several_loops_in_several_threads() -> None:
    pipeline = task(arange, branch=True) | task(inc, multiprocess=True) | task(ainc_later)
    results: dict[int, list[int]] = {}

    def work(n: int) -> None:
        results[n] = asyncio.run(collect(pipeline(n)))

    threads = [threading.Thread(target=work, args=(n,)) for n in (10, 20, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert results == {n: list(range(2, n + 2)) for n in (10, 20, 30)}


@forked
def test_uvloop(uvloop: Any) -> None:
    loop = uvloop.new_event_loop()
    try:
        pipeline = task(arange, branch=True) | task(inc, multiprocess=True) | task(ainc_later)
        assert loop.run_until_complete(collect(pipeline(200))) == list(range(2, 202))
        outputs = pipeline(10**9)
        assert loop.run_until_complete(anext(outputs)) == 2
        loop.run_until_complete(outputs.aclose())
    finally:
        loop.close()
