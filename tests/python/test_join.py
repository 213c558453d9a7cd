"""Tasks with join: streams of inputs, one and many workers, and what ends them."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterable, Iterator
from typing import Any

import pytest

from helpers import PATIENCE, Counted, none_alive, until
from pyper import Cancelled, InputStream, task


def each(data: Iterable[int]) -> Iterable[int]:
    return data


numbers = task(range, branch=True)
counting = task(itertools.count, branch=True, throttle=100)


def test_a_joined_task_gets_an_iterator_over_its_inputs() -> None:
    kinds = []

    def total(data: Iterable[int]) -> int:
        kinds.append(type(data))
        assert iter(data) is data
        return sum(data)

    assert list((numbers | task(total, join=True))(101)) == [5050]
    assert kinds == [InputStream]


def test_join_and_branch() -> None:
    def running(data: Iterable[int]) -> Iterator[int]:
        yield from itertools.accumulate(data)

    pipeline = numbers | task(running, branch=True, join=True)
    assert list(pipeline(5)) == [0, 1, 3, 6, 10]
    assert list((pipeline | task(sum, join=True))(5)) == [20]


def test_a_branching_join_may_return_its_stream() -> None:
    assert list((numbers | task(each, branch=True, join=True))(5)) == [0, 1, 2, 3, 4]


def test_a_joined_task_is_called_once_per_worker_also_when_there_is_nothing() -> None:
    calls = []

    def count(data: Iterable[int]) -> int:
        calls.append(threading.current_thread().name)
        return len(list(data))

    assert list((numbers | task(count, join=True, workers=5))(0)) == [0] * 5
    assert len(set(calls)) == 5


def test_workers_share_the_inputs_and_each_goes_to_one() -> None:
    barrier = threading.Barrier(4)

    def collect(data: Iterable[int]) -> list[int]:
        barrier.wait(PATIENCE)
        return list(data)

    shares = list((numbers | task(collect, join=True, workers=4))(2000))
    assert len(shares) == 4
    assert sorted(itertools.chain(*shares)) == list(range(2000))
    for share in shares:
        assert share == sorted(share)


def test_the_end_of_a_stream_is_the_end_for_good() -> None:
    def read(data: Iterator[int]) -> list[Any]:
        return [list(data), list(data), next(data, "none")]

    assert list((numbers | task(read, join=True))(2)) == [[[0, 1], [], "none"]]


def test_none_in_a_stream() -> None:
    assert list((task(lambda: [None, None], branch=True) | task(list, join=True))()) == [
        [None, None]
    ]


def test_join_of_join() -> None:
    pipeline = numbers | task(each, branch=True, join=True) | task(sum, join=True)
    assert list(pipeline(10)) == [45]


# ------------------------------------------------------------------------------ leaving early


def test_returning_early_cancels_the_tasks_before() -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            closed.set()

    def first(data: Iterator[int]) -> Iterator[int]:
        yield from itertools.islice(data, 10)

    pipeline = task(endless, branch=True) | task(abs, workers=2, ordered=True)
    assert list((pipeline | task(first, join=True, branch=True))()) == list(range(10))
    assert closed.is_set()


def test_returning_early_is_no_error_and_what_was_emitted_is_delivered() -> None:
    def some(data: Iterator[int]) -> Iterator[int]:
        for _ in range(3):
            yield next(data)

    pipeline = counting | task(some, branch=True, join=True) | task(lambda x: x * 10)
    assert list(pipeline()) == [0, 10, 20]


def test_the_others_go_on_when_one_worker_returns_early() -> None:
    barrier = threading.Barrier(2)

    def one_leaves(data: Iterator[int]) -> int:
        if barrier.wait(PATIENCE) == 0:
            return 0
        return len(list(data))

    pipeline = numbers | task(one_leaves, join=True, workers=2)
    assert sorted(pipeline(1000)) == [0, 1000]


def test_never_reading_is_allowed() -> None:
    assert list((counting | task(lambda data: "read nothing", join=True))()) == ["read nothing"]


# --------------------------------------------------------------------- failure and cancellation


def test_a_failure_before_raises_cancelled_in_the_joined_function() -> None:
    raised: list[BaseException] = []
    reading = threading.Event()

    def produce() -> Iterator[int]:
        yield 1
        assert reading.wait(PATIENCE)
        raise ValueError("half of it")

    def total(data: Iterator[int]) -> int:
        try:
            next(data)
            reading.set()
            return sum(data)
        except BaseException as error:
            raised.append(error)
            raise

    with pytest.raises(ValueError, match="half of it"):
        list((task(produce, branch=True) | task(total, join=True))())
    assert [type(error) for error in raised] == [Cancelled]
    assert "has not got all its inputs" in str(raised[0])


def test_closing_raises_cancelled_in_the_joined_function() -> None:
    raised: list[BaseException] = []
    reading = threading.Event()

    def produce() -> Iterator[int]:
        yield 1
        reading.wait(PATIENCE)

    def total(data: Iterator[int]) -> Iterator[int]:
        try:
            for item in data:
                yield item
        except BaseException as error:
            raised.append(error)
            raise

    outputs = (task(produce, branch=True) | task(total, branch=True, join=True))()
    assert next(outputs) == 1
    closer = threading.Thread(target=outputs.close)
    closer.start()
    until(lambda: raised)
    reading.set()
    closer.join()
    assert [type(error) for error in raised] == [Cancelled]


def test_a_function_that_survives_cancelled_is_stopped_at_its_next_output() -> None:
    def stubborn(data: Iterator[int]) -> Iterator[int]:
        while True:
            try:
                yield next(data)
            except Cancelled:
                yield -1

    with (counting | task(stubborn, branch=True, join=True))() as outputs:
        assert next(outputs) == 0


def test_cancelled_that_a_function_raises_of_itself_is_a_failure() -> None:
    def pretend(data: Iterator[int]) -> int:
        raise Cancelled("not at all")

    with pytest.raises(Cancelled, match="not at all"):
        list((numbers | task(pretend, join=True))(3))


def test_a_total_over_half_of_the_data_never_looks_like_a_total() -> None:
    totals: list[int] = []

    def boom(x: int) -> int:
        if x == 500:
            raise ValueError(x)
        return x

    def total(data: Iterator[int]) -> int:
        totals.append(sum(data))
        return totals[-1]

    for workers in (1, 3):
        pipeline = numbers | task(boom, workers=workers) | task(total, join=True, workers=workers)
        with pytest.raises(ValueError, match="500"):
            list(pipeline(1000))
    assert totals == []


# ------------------------------------------------------------------------- the stream outlives


def test_a_stream_belongs_to_its_call() -> None:
    def keep(data: Iterator[int]) -> Iterator[int]:
        next(data)
        return data

    (stream,) = (numbers | task(keep, join=True))(10)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="belong to a call of task 'keep' that has ended"):
            next(stream)


def test_a_generator_function_without_branch_is_told_what_it_needs() -> None:
    def forgot(data: Iterable[int]) -> Iterator[int]:
        yield from data

    (generator,) = (numbers | task(forgot, join=True))(3)
    with pytest.raises(RuntimeError, match="a generator function needs branch=True"):
        next(generator)


def test_a_stream_that_was_read_to_its_end_stays_at_its_end() -> None:
    kept: list[Iterator[int]] = []

    def keep(data: Iterator[int]) -> int:
        kept.append(data)
        return len(list(data))

    assert list((numbers | task(keep, join=True))(3)) == [3]
    assert list(kept[0]) == []


def test_a_stream_of_a_cancelled_call_says_so() -> None:
    kept: list[Iterator[int]] = []

    def keep(data: Iterator[int]) -> Iterator[int]:
        kept.append(data)
        yield from data

    with (counting | task(keep, branch=True, join=True))() as outputs:
        assert next(outputs) == 0
    with pytest.raises(Cancelled):
        next(kept[0])


def test_one_thread_at_a_time_may_read_a_stream() -> None:
    refused_one = threading.Event()
    refused: list[str] = []

    def produce() -> Iterator[int]:
        assert refused_one.wait(PATIENCE)
        yield 7

    def two_readers(data: Iterator[int]) -> list[int]:
        found: list[int] = []

        def read() -> None:
            try:
                found.append(next(data))
            except ValueError as error:
                refused.append(str(error))
                refused_one.set()

        other = threading.Thread(target=read)
        other.start()
        read()
        other.join()
        return found + list(data)

    assert list((task(produce, branch=True) | task(two_readers, join=True))()) == [[7]]
    assert len(refused) == 1
    assert refused[0].startswith("another thread is reading the inputs")


def test_a_call_waits_for_another_thread_that_reads_its_stream() -> None:
    gate, read_by_other = threading.Event(), []
    threads: list[threading.Thread] = []

    def produce() -> Iterator[int]:
        yield 1
        assert gate.wait(PATIENCE)
        yield 2

    def hand_over(data: Iterator[int]) -> Iterator[int]:
        yield next(data)
        thread = threading.Thread(target=lambda: read_by_other.append(next(data)))
        threads.append(thread)
        thread.start()
        yield from []

    with (task(produce, branch=True) | task(hand_over, branch=True, join=True))() as outputs:
        assert next(outputs) == 1
        gate.set()
        rest = list(outputs)
    assert rest == []
    threads[0].join()
    assert read_by_other in ([2], [])


def test_items_that_nobody_reads_are_destroyed() -> None:
    def some(data: Iterator[Counted]) -> int:
        return next(data).value

    pipeline = numbers | task(Counted) | task(some, join=True)
    assert list(pipeline(1000)) == [0]
    assert none_alive()
