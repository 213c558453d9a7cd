"""Leaving early: whoever goes, in whatever way, nothing is left behind.

That no thread is left is checked after every test (see conftest.py).
"""

from __future__ import annotations

import contextlib
import gc
import itertools
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from helpers import PATIENCE, Counted, none_alive, until
from pyper import Cancelled, Outputs, Pipeline, task
from pyper._threads import WorkerThread


def plain(x: int) -> int:
    return x


def paced() -> Iterator[int]:
    """Endless, and not so fast that it fills the memory while the test waits for a processor."""
    for i in itertools.count():
        os.sched_yield()
        yield i


def each(data: Iterable[int]) -> Iterable[int]:
    return data


numbers = task(range, branch=True)
counting = task(itertools.count, branch=True, throttle=100)

numbers_of_one = task(lambda: [0], branch=True)

ENDLESS: dict[str, Callable[[], Pipeline[..., Any]]] = {
    "no bound": lambda: task(paced, branch=True) | task(abs),
    "full queues": lambda: (
        task(itertools.count, branch=True, throttle=1) | task(abs, throttle=1) | task(abs)
    ),
    "many workers": lambda: counting | task(abs, workers=8, throttle=2) | task(abs, workers=3),
    "ordered": lambda: counting | task(abs, workers=4, ordered=True, throttle=3),
    "joined": lambda: counting | task(each, branch=True, join=True, throttle=2),
    "nested": lambda: numbers_of_one | task(counting | task(abs), branch=True),
}

endless = pytest.mark.parametrize("make", ENDLESS.values(), ids=ENDLESS.keys())


# ------------------------------------------------------------------------------ every form


@endless
def test_close(make: Callable[[], Pipeline[..., Any]]) -> None:
    before = threading.active_count()
    outputs = make()()
    assert isinstance(next(outputs), int)
    outputs.close()
    assert threading.active_count() == before
    assert list(outputs) == []


@endless
def test_leaving_the_with(make: Callable[[], Pipeline[..., Any]]) -> None:
    before = threading.active_count()
    with make()() as outputs:
        for count, _ in enumerate(outputs):
            if count == 5:
                break
    assert threading.active_count() == before


@endless
def test_an_exception_in_the_with(make: Callable[[], Pipeline[..., Any]]) -> None:
    before = threading.active_count()
    with pytest.raises(KeyError, match="mine"), make()() as outputs:
        next(outputs)
        raise KeyError("mine")
    assert threading.active_count() == before


@endless
def test_a_bare_break(make: Callable[[], Pipeline[..., Any]]) -> None:
    for _ in make()():
        break


@endless
def test_dropping_the_last_reference(make: Callable[[], Pipeline[..., Any]]) -> None:
    outputs = make()()
    next(outputs)
    del outputs


@endless
def test_throwing(make: Callable[[], Pipeline[..., Any]]) -> None:
    before = threading.active_count()
    outputs = make()()
    next(outputs)
    with pytest.raises(KeyError, match="thrown"):
        outputs.throw(KeyError("thrown"))
    assert threading.active_count() == before


@endless
def test_zip_with_something_shorter(make: Callable[[], Pipeline[..., Any]]) -> None:
    assert len(list(zip(range(10), make()(), strict=False))) == 10


def test_items_are_delivered_or_destroyed() -> None:
    for throttle in (0, 1, 50):
        pipeline = (
            task(range, branch=True, throttle=throttle)
            | task(Counted, workers=2, throttle=throttle)
            | task(lambda item: item, throttle=throttle)
        )
        with pipeline(10_000) as outputs:
            kept = [next(outputs) for _ in range(10)]
        until(lambda: Counted.alive == 10)
        kept.clear()
        assert none_alive()


def test_items_of_dropped_outputs_are_destroyed() -> None:
    outputs = (counting | task(Counted, throttle=10))()
    next(outputs)
    del outputs
    assert none_alive()


def test_arguments_of_a_run_that_never_started_are_given_back() -> None:
    outputs = task(id)(Counted(1))
    outputs.close()
    assert none_alive()
    outputs = task(id)(Counted(1))
    del outputs
    assert none_alive()


# --------------------------------------------------------------------------------- what close does


def test_close_waits_for_calls_in_progress() -> None:
    inside, finish, finished = threading.Event(), threading.Event(), threading.Event()

    def slow(x: int) -> int:
        if x == 1:
            inside.set()
            assert finish.wait(PATIENCE)
            finished.set()
        return x

    outputs = (counting | task(slow))()
    assert next(outputs) == 0
    assert inside.wait(PATIENCE)
    closer = threading.Thread(target=outputs.close)
    closer.start()
    until(lambda: outputs.stats()[0].alive == 0)  # cancelled, while the call goes on
    assert closer.is_alive()
    finish.set()
    closer.join()
    assert finished.is_set()


def test_dropping_does_not_wait_for_calls_in_progress() -> None:
    inside, finish = threading.Event(), threading.Event()

    def slow(x: int) -> int:
        if x == 1:
            inside.set()
            assert finish.wait(PATIENCE)
        return x

    outputs = (counting | task(slow))()
    assert next(outputs) == 0
    assert inside.wait(PATIENCE)
    del outputs  # would wait for ever
    finish.set()


def test_generators_are_closed_before_close_returns() -> None:
    log: list[str] = []

    def produce() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            log.append(threading.current_thread().name)

    with task(produce, branch=True)() as outputs:
        next(outputs)
    assert log == ["produce"]


def test_iterators_that_are_no_generators_are_let_go() -> None:
    closed: list[str] = []

    class File:
        """Something with a close() that is not for us to call."""

        def __iter__(self) -> File:
            return self

        def __next__(self) -> int:
            return 1

        def close(self) -> None:
            closed.append("by us")

    with task(File, branch=True)() as outputs:
        next(outputs)
    assert closed == []


def test_a_generator_that_raises_in_finally_is_heard_by_close() -> None:
    def produce() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise KeyError("in finally")

    outputs = task(produce, branch=True)()
    next(outputs)
    with pytest.raises(KeyError, match="in finally") as caught:
        outputs.close()
    assert caught.value.__notes__ == ["in task 'produce' (1 of 1)"]
    outputs.close()

    with pytest.raises(KeyError, match="in finally"), task(produce, branch=True)() as outputs:
        next(outputs)


def test_a_failure_while_leaving_becomes_a_note_at_what_is_under_way() -> None:
    def produce() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise KeyError("in finally")

    note = "while the outputs were closed, the run failed with: KeyError: 'in finally'"
    with pytest.raises(ValueError, match="mine") as caught, task(produce, branch=True)() as outputs:
        next(outputs)
        raise ValueError("mine")
    assert caught.value.__notes__ == [note]

    outputs = task(produce, branch=True)()
    next(outputs)
    error = ValueError("thrown")
    with pytest.raises(ValueError, match="thrown"):
        outputs.throw(error)
    assert error.__notes__ == [note]


def test_a_failure_that_leaves_the_with_is_not_noted_at_itself() -> None:
    def fail() -> int:
        raise ValueError("one")

    with pytest.raises(ValueError, match="one") as caught, task(fail)() as outputs:
        next(outputs)
    assert caught.value.__notes__ == ["in task 'fail' (1 of 1)"]


def test_a_generator_that_will_not_be_closed() -> None:
    def stubborn() -> Iterator[int]:
        while True:
            try:
                yield 1
            except GeneratorExit:
                yield 2
                return

    outputs = task(stubborn, branch=True)()
    next(outputs)
    with pytest.raises(RuntimeError, match="generator ignored GeneratorExit"):
        outputs.close()


def test_a_failure_that_nobody_can_be_told_goes_to_the_unraisable_hook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[tuple[str, object]] = []
    monkeypatch.setattr(
        sys, "unraisablehook", lambda args: told.append((repr(args.exc_value), args.object))
    )

    def produce() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise KeyError("in finally")

    outputs = task(produce, branch=True)()
    next(outputs)
    del outputs
    until(lambda: told)
    assert told == [("KeyError('in finally')", produce)]


def test_a_function_may_close_its_own_run_but_not_wait_for_it() -> None:
    box: list[Outputs[int]] = []
    errors: list[RuntimeError] = []

    def leave(x: int) -> int:
        if x == 5:
            try:
                box[0].close()
            except RuntimeError as error:
                errors.append(error)
        return x

    box.append((counting | task(leave))())
    with contextlib.suppress(Cancelled):  # it is raised if the caller is just waiting
        for _ in box[0]:
            pass
    box.pop().close()
    assert "it would wait for itself" in str(errors[0])


def test_a_function_may_drop_its_own_run() -> None:
    box: list[Outputs[int]] = []
    dropped = threading.Event()

    def drop(x: int) -> int:
        if x == 1:
            until(lambda: box)
            box.clear()
            dropped.set()
        return x

    outputs = (counting | task(drop))()
    assert next(outputs) == 0
    box.append(outputs)
    del outputs
    assert dropped.wait(PATIENCE)


# ------------------------------------------------------------------------------ other threads


def test_a_next_that_waits_while_another_thread_closes_raises_cancelled() -> None:
    gate = threading.Event()
    raised: list[BaseException] = []

    def produce() -> Iterator[int]:
        yield 0
        assert gate.wait(PATIENCE)

    outputs = task(produce, branch=True)()
    assert next(outputs) == 0

    def ask() -> None:
        try:
            next(outputs)
        except BaseException as error:
            raised.append(error)

    asker = threading.Thread(target=ask)
    asker.start()
    closer = threading.Thread(target=outputs.close)
    until(lambda: asker.is_alive())
    closer.start()
    asker.join()
    gate.set()
    closer.join()
    # It asked before the other closed, or after: it must not look like the end in the first case.
    assert [type(error) for error in raised] in ([Cancelled], [StopIteration])
    assert list(outputs) == []


def test_many_threads_may_close_at_once() -> None:
    for _ in range(20):
        outputs = (counting | task(plain, workers=2))()
        next(outputs)
        barrier = threading.Barrier(4)

        def close(outputs: Outputs[int] = outputs, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            outputs.close()
            assert outputs.stats()[0].alive == 0

        threads = [threading.Thread(target=close) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def test_many_threads_may_start_and_close_at_once() -> None:
    for _ in range(30):
        outputs = (numbers | task(plain))(100)
        barrier = threading.Barrier(6)
        shares: list[list[int]] = []

        def ask(
            outputs: Outputs[int] = outputs,
            barrier: threading.Barrier = barrier,
            shares: list[list[int]] = shares,
        ) -> None:
            barrier.wait(PATIENCE)
            try:
                shares.append(list(outputs))
            except Cancelled:
                shares.append([])

        def close(outputs: Outputs[int] = outputs, barrier: threading.Barrier = barrier) -> None:
            barrier.wait(PATIENCE)
            outputs.close()

        threads = [threading.Thread(target=ask) for _ in range(5)]
        threads.append(threading.Thread(target=close))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seen = list(itertools.chain(*shares))
        assert len(set(seen)) == len(seen)
        assert len(shares) == 5


# ------------------------------------------------------------------------------------- nested


def test_closing_the_outer_run_closes_the_inner_ones() -> None:
    inner_closed = threading.Event()

    def produce(x: int) -> Iterator[int]:
        try:
            yield from itertools.count(x)
        finally:
            inner_closed.set()

    outer = numbers | task(task(produce, branch=True) | task(abs), branch=True)
    with outer(5) as outputs:
        assert next(outputs) == 0
    assert inner_closed.is_set()


def test_closing_the_outer_run_does_not_wait_for_an_output_of_a_silent_inner_one() -> None:
    def none_of_them(data: Iterator[int]) -> Iterator[int]:
        for item in data:
            if item < 0:
                yield item

    silent = counting | task(none_of_them, branch=True, join=True)
    outer = task(lambda: [1, 2], branch=True) | task(_first_then(silent), branch=True)
    with outer() as outputs:
        assert next(outputs) == "ready"
        until(lambda: outputs.stats()[1].items_in == 2)


def _first_then(silent: Pipeline[..., Any]) -> Callable[[int], Any]:
    return lambda x: ["ready"] if x == 1 else silent()


def test_a_failing_outer_run_ends_a_silent_inner_one() -> None:
    inner_runs = threading.Event()

    def endless(x: int) -> Iterator[int]:
        inner_runs.set()
        yield from itertools.count()

    def none_of_them(data: Iterator[int]) -> Iterator[int]:
        for item in data:
            if item < 0:
                yield item

    silent = task(endless, branch=True) | task(none_of_them, branch=True, join=True)

    def fail(x: int) -> Any:
        if x == 0:
            return silent(x)
        assert inner_runs.wait(PATIENCE)
        raise ValueError("outer")

    with pytest.raises(ValueError, match="outer"):
        list((numbers | task(fail, branch=True, workers=2))(2))


def test_a_failure_of_an_inner_run_is_a_failure_of_the_outer_one() -> None:
    def fail(x: int) -> int:
        raise ValueError("inner")

    inner = numbers | task(fail)
    with pytest.raises(ValueError, match="inner") as caught:
        list((numbers | task(inner, branch=True))(3))
    assert caught.value.__notes__ == [
        "in task 'fail' (2 of 2)",
        "in task 'range | fail' (2 of 2)",
    ]


# -------------------------------------------------------------------------------- references


def test_a_finished_run_keeps_nothing_alive() -> None:
    class Function:
        def __call__(self, x: int) -> int:
            return x

    function = Function()
    reference = weakref.ref(function)
    outputs = (numbers | task(function))(10)
    assert list(outputs) == list(range(10))
    del function, outputs
    gc.collect()
    assert reference() is None


def test_cycles_through_a_finished_run_are_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.outputs = (numbers | task(self.work))(10)

        def work(self, x: int) -> int:
            return x

    owner = Owner()
    assert list(owner.outputs) == list(range(10))
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


def test_cycles_through_outputs_that_never_started_are_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.outputs = task(self.work)(self)

        def work(self, x: object) -> object:
            return x

    reference = weakref.ref(Owner())
    gc.collect()
    assert reference() is None


def test_cycles_through_a_closed_run_are_collected() -> None:
    class Owner:
        def __init__(self) -> None:
            self.outputs = (counting | task(self.work))()

        def work(self, x: int) -> int:
            return x

    owner = Owner()
    next(owner.outputs)
    owner.outputs.close()
    reference = weakref.ref(owner)
    del owner
    gc.collect()
    assert reference() is None


class HoldsOutputs(Exception):
    """Leads to the outputs of the run that has failed with it."""

    def __init__(self, outputs: object) -> None:
        super().__init__("holds its outputs")
        self.outputs = outputs


def wait_for_workers(outputs: Outputs[Any]) -> None:
    until(lambda: not any(stats.alive for stats in outputs.stats()))


def test_a_failure_that_leads_to_its_outputs_is_collected(monkeypatch: pytest.MonkeyPatch) -> None:
    """The run holds the exception, which holds the outputs, which hold the run."""
    told: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda args: told.append(repr(args.exc_value)))
    box: list[Outputs[int]] = []

    def fail_later(x: int) -> int:
        if x > 0:
            raise HoldsOutputs(box.pop())
        return x

    outputs = (numbers | task(fail_later))(2)
    box.append(outputs)
    assert next(outputs) == 0
    wait_for_workers(outputs)
    reference = weakref.ref(outputs)
    del outputs
    gc.collect()
    assert reference() is None
    assert told == ["HoldsOutputs('holds its outputs')"]


def test_references_to_items_are_exactly_those_that_are_left() -> None:
    item = object()
    before = sys.getrefcount(item)
    pipeline = task(lambda: itertools.repeat(item, 1000), branch=True) | task(
        lambda x: x, workers=2
    )
    assert len(list(pipeline())) == 1000
    with pipeline() as outputs:
        next(outputs)
    del outputs
    gc.collect()
    assert sys.getrefcount(item) == before


def test_functions_and_arguments_are_given_back() -> None:
    argument, function = object(), lambda x: x
    before = sys.getrefcount(argument), sys.getrefcount(function)
    for _ in range(10):
        pipeline = task(function)
        assert list(pipeline(argument)) == [argument]
    del pipeline
    gc.collect()
    assert (sys.getrefcount(argument), sys.getrefcount(function)) == before


def test_workers_that_are_about_to_begin_are_threads_like_others() -> None:
    for _ in range(20):
        outputs = (counting | task(abs, workers=20))()
        next(outputs)
        workers = [thread for thread in threading.enumerate() if thread.name.startswith("abs-")]
        assert len(workers) == 20
        assert all(worker.is_alive() for worker in workers)
        del outputs  # cancels, and does not wait
        for worker in workers:
            worker.join(PATIENCE)
        assert not any(worker.is_alive() for worker in workers)


class LeadsNowhere:
    """An entry without an engine behind it."""

    thread: WorkerThread

    def begin(self) -> None:
        WorkerThread._bootstrap(self.thread)  # type: ignore[attr-defined]

    def __call__(self) -> None:
        pass


def test_a_worker_that_has_not_begun_can_be_joined() -> None:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(PATIENCE)  # with the GIL it cannot begin while this thread goes on
    try:
        entry = LeadsNowhere()
        worker = entry.thread = WorkerThread("worker", entry)
        worker.start()
        assert worker.is_alive()
        worker.join()
        assert not worker.is_alive()
    finally:
        sys.setswitchinterval(interval)
