"""Running: lazy start, the generator's protocol, workers, order, throttle, context, counters."""

from __future__ import annotations

import collections.abc
import contextlib
import contextvars
import functools
import gc
import itertools
import sys
import threading
import weakref
from collections.abc import Generator, Iterable, Iterator
from typing import Any

import pytest

import pyper
from helpers import PATIENCE, until
from pyper import Outputs, TaskStats, task


def same(x: Any) -> Any:
    return x


def one_more(x: int) -> int:
    return x + 1


counting = task(itertools.count, branch=True, throttle=100)
numbers = task(range, branch=True)


# --------------------------------------------------------------------------------- lazy start


def test_calling_starts_nothing() -> None:
    called = threading.Event()
    threads = threading.active_count()
    outputs = task(called.set)()
    assert threading.active_count() == threads
    assert not called.is_set()
    assert list(outputs) == [None]
    assert called.is_set()


def test_outputs_that_nobody_asks_for_start_nothing() -> None:
    def produce() -> None:
        raise AssertionError("must not be called")

    outputs = task(produce)()
    del outputs
    task(produce)().close()
    with task(produce)():
        pass


def test_the_first_output_asked_for_starts_all_tasks() -> None:
    outputs = (counting | task(same) | task(same))()
    before = threading.active_count()
    assert next(outputs) == 0
    assert threading.active_count() == before + 3
    outputs.close()
    assert threading.active_count() == before


# ------------------------------------------------------------------------ the generator's protocol


def test_outputs_are_a_generator() -> None:
    outputs = numbers(3)
    assert isinstance(outputs, collections.abc.Generator)
    assert isinstance(outputs, Outputs)
    assert iter(outputs) is outputs


def test_the_end_is_the_end_for_good() -> None:
    outputs = numbers(2)
    assert list(outputs) == [0, 1]
    assert list(outputs) == []
    assert next(outputs, "none") == "none"
    with pytest.raises(StopIteration):
        next(outputs)
    with pytest.raises(StopIteration):
        outputs.send(1)


def test_send_ignores_what_it_is_given() -> None:
    outputs = numbers(3)
    assert outputs.send("first") == 0
    assert outputs.send(None) == 1
    assert next(outputs) == 2


def test_throw_raises_and_ends() -> None:
    outputs = counting()
    assert next(outputs) == 0
    error = KeyError("mine")
    with pytest.raises(KeyError) as caught:
        outputs.throw(error)
    assert caught.value is error
    assert list(outputs) == []


def test_throw_takes_what_generators_take() -> None:
    outputs = counting()
    with pytest.raises(ValueError, match="text"):
        outputs.throw(ValueError, "text")
    with pytest.raises(ValueError, match="^$"):
        counting().throw(ValueError)
    with pytest.raises(KeyError):
        counting().throw(LookupError, KeyError("sub"))
    try:
        raise ValueError("somewhere")
    except ValueError as error:
        trace = error.__traceback__
    with pytest.raises(OSError, match="there") as caught:
        counting().throw(OSError("there"), None, trace)
    assert trace in list(_traces(caught.value))
    for wrong in ((5,), ("text",), (int,), (ValueError("x"), 5), (ValueError, None, 5), ()):
        outputs = counting()
        with pytest.raises(TypeError):
            outputs.throw(*wrong)
        assert next(outputs) == 0, "what throw() refuses changes nothing"
        outputs.close()


def _traces(error: BaseException) -> Iterator[Any]:
    trace = error.__traceback__
    while trace:
        yield trace
        trace = trace.tb_next


def test_close_is_for_good_and_may_be_repeated() -> None:
    outputs = counting()
    assert next(outputs) == 0
    outputs.close()
    outputs.close()
    assert list(outputs) == []


def test_outputs_can_be_yielded_from() -> None:
    def delegate() -> Generator[int, object, None]:
        yield from counting()

    generator = delegate()
    assert [next(generator) for _ in range(3)] == [0, 1, 2]
    generator.close()
    with pytest.raises(KeyError):
        delegate().throw(KeyError)


def test_outputs_are_a_context_manager() -> None:
    with counting() as outputs:
        assert next(outputs) == 0
    assert list(outputs) == []


def test_outputs_take_weak_references() -> None:
    outputs = counting()
    assert next(outputs) == 0
    reference = weakref.ref(outputs)
    assert reference() is outputs
    del outputs
    assert reference() is None


# ---------------------------------------------------------------------------------------- items


def test_items_are_passed_by_reference() -> None:
    given = [object() for _ in range(100)]
    pipeline = task(lambda: given, branch=True) | task(same) | task(same, workers=3, ordered=True)
    for mine, theirs in zip(pipeline(), given, strict=True):
        assert mine is theirs


def test_none_is_an_item_like_any_other() -> None:
    pipeline = task(lambda: [None, 1, None], branch=True) | task(same)
    assert list(pipeline()) == [None, 1, None]


@pytest.mark.parametrize("item", [StopIteration, StopIteration(), NotImplemented, ..., (), {}])
def test_odd_items_are_items(item: object) -> None:
    pipeline = task(lambda: [item, item], branch=True) | task(same)
    assert [found is item for found in pipeline()] == [True, True]


def test_a_list_without_branch_is_one_item() -> None:
    assert list(task(lambda: [1, 2])()) == [[1, 2]]


@pytest.mark.parametrize(
    ("iterable", "items"),
    [
        ([1, 2], [1, 2]),
        ((1, 2), [1, 2]),
        ("ab", ["a", "b"]),
        ({"a": 1, "b": 2}, ["a", "b"]),
        (range(2), [0, 1]),
        (map(str, [1, 2]), ["1", "2"]),
        (b"ab", [97, 98]),
        ([], []),
        (iter([3]), [3]),
    ],
)
def test_branch_takes_any_iterable(iterable: Iterable[Any], items: list[Any]) -> None:
    assert list(task(lambda: iterable, branch=True)()) == items


def test_branch_takes_objects_with_getitem() -> None:
    class Old:
        def __getitem__(self, index: int) -> int:
            if index > 2:
                raise IndexError
            return index

    old: Any = Old
    assert list(task(old, branch=True)()) == [0, 1, 2]


def test_branch_takes_classes_that_iterate() -> None:
    class Twice:
        def __init__(self, x: int) -> None:
            self.left = [x, x]

        def __iter__(self) -> Twice:
            return self

        def __next__(self) -> int:
            if not self.left:
                raise StopIteration("with a value")
            return self.left.pop()

    assert list((numbers | task(Twice, branch=True))(3)) == [0, 0, 1, 1, 2, 2]


def test_branching_is_lazy() -> None:
    produced: list[int] = []

    def produce() -> Iterator[int]:
        for i in itertools.count():
            produced.append(i)
            yield i

    with task(produce, branch=True, throttle=1)() as outputs:
        assert next(outputs) == 0
    assert len(produced) <= 4  # started + throttle + one in each hand


# --------------------------------------------------------------------------- several threads


def test_several_threads_may_ask_and_each_output_goes_to_one() -> None:
    outputs = (numbers | task(one_more, workers=3))(3000)
    barrier = threading.Barrier(6)
    shares: list[list[int]] = [[] for _ in range(6)]

    def ask(share: list[int]) -> None:
        barrier.wait()
        share.extend(outputs)

    threads = [threading.Thread(target=ask, args=(share,)) for share in shares]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(itertools.chain(*shares)) == list(range(1, 3001))


# -------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("workers", [1, 2, 7, 64])
def test_workers_are_really_that_many(workers: int) -> None:
    barrier = threading.Barrier(workers)

    def meet(x: int) -> int:
        barrier.wait(PATIENCE)
        return x

    pipeline = numbers | task(meet, workers=workers)
    assert sorted(pipeline(workers * 2)) == list(range(workers * 2))


def test_tasks_with_many_workers_and_throttles_do_not_starve_one_another() -> None:
    first, second = threading.Barrier(16), threading.Barrier(16)

    def meet(at: threading.Barrier, x: int) -> int:
        at.wait(PATIENCE)
        return x

    pipeline = (
        task(range, branch=True, throttle=1)
        | task(meet, workers=16, throttle=1, bind=task.bind(first))
        | task(meet, workers=16, throttle=1, bind=task.bind(second))
    )
    assert sorted(pipeline(64)) == list(range(64))


def test_workers_are_threads_named_after_their_task() -> None:
    barrier = threading.Barrier(3)

    def spell(x: int) -> str:
        barrier.wait(PATIENCE)
        me = threading.current_thread()
        assert not me.daemon
        assert me in threading.enumerate()
        assert me is not threading.main_thread()
        return me.name

    names = sorted((numbers | task(spell, workers=3))(3))
    assert len(set(names)) == 3
    assert all(name.startswith("spell-") for name in names)
    assert list(task(lambda: threading.current_thread().name)()) == ["<lambda>"]


def test_names_may_be_any_text() -> None:
    def name() -> str:
        return threading.current_thread().name

    name.__name__ = "naïve 名前"
    assert list(task(name)()) == ["naïve 名前"]


def test_trace_functions_see_the_workers() -> None:
    seen: set[str] = set()
    threading.setprofile(lambda frame, event, arg: seen.add(frame.f_code.co_name))
    try:
        assert list((numbers | task(one_more))(2)) == [1, 2]
    finally:
        threading.setprofile(None)
    assert "one_more" in seen


# ---------------------------------------------------------------------------------------- order


def test_one_worker_keeps_the_order() -> None:
    pipeline = numbers | task(one_more) | task(same) | task(one_more)
    assert list(pipeline(2000)) == list(range(2, 2002))


def test_several_workers_give_completion_order() -> None:
    slow, fast = threading.Event(), threading.Event()

    def wait(x: int) -> int:
        if x == 0:
            assert slow.wait(PATIENCE)
        else:
            fast.set()
        return x

    outputs = (numbers | task(wait, workers=2))(2)
    assert next(outputs) == 1
    slow.set()
    assert next(outputs) == 0


def test_ordered_gives_the_order_of_the_inputs() -> None:
    later = [threading.Event() for _ in range(4)]

    def backwards(x: int) -> int:
        if x < 3:
            assert later[x + 1].wait(PATIENCE)
        later[x].set()
        return x

    assert list((numbers | task(backwards, workers=4, ordered=True))(4)) == [0, 1, 2, 3]


def test_ordered_lets_an_output_leave_as_soon_as_its_turn_comes() -> None:
    last = threading.Event()

    def wait(x: int) -> int:
        if x == 2:
            assert last.wait(PATIENCE)
        return x

    outputs = (numbers | task(wait, workers=3, ordered=True))(3)
    assert [next(outputs), next(outputs)] == [0, 1]
    last.set()
    assert list(outputs) == [2]


def test_ordered_branches_stay_together() -> None:
    def spread(x: int) -> Iterator[tuple[int, int]]:
        for i in range(x % 5):
            yield x, i

    expected = [(x, i) for x in range(200) for i in range(x % 5)]
    pipeline = numbers | task(spread, branch=True, workers=4, ordered=True)
    assert list(pipeline(200)) == expected


def test_ordered_keeps_what_is_ahead_within_bounds() -> None:
    started: list[int] = []
    release = threading.Event()

    def wait(x: int) -> int:
        started.append(x)
        if x == 0:
            assert release.wait(PATIENCE)
        return x

    pipeline = counting | task(wait, workers=2, ordered=True, throttle=10)
    with pipeline() as outputs:
        watcher = threading.Thread(target=_release_when_still, args=(outputs, release))
        watcher.start()
        assert [next(outputs) for _ in range(50)] == list(range(50))
        watcher.join()


def _release_when_still(outputs: Outputs[int], release: threading.Event) -> None:
    """Wait until the second worker of the ordered task has run as far ahead as it may."""
    until(lambda: outputs.stats()[1].items_in >= 10)
    assert outputs.stats()[1].items_in <= 10 + 2
    release.set()


# ------------------------------------------------------------------------------------- throttle


@pytest.mark.parametrize("throttle", [1, 2, 3, 10, 100])
def test_throttle_is_exact_towards_the_caller(throttle: int) -> None:
    generated = 0

    def produce() -> Iterator[int]:
        nonlocal generated
        for i in itertools.count():
            generated = i + 1
            yield i

    with task(produce, branch=True, throttle=throttle)() as outputs:
        for taken in range(1, 3 * throttle + 3):
            next(outputs)
            stats = outputs.stats()[0]
            assert stats.queued <= throttle
            assert generated <= taken + throttle + 1


@pytest.mark.parametrize("throttle", [1, 2, 10])
@pytest.mark.parametrize("workers", [1, 3])
def test_throttle_is_exact_towards_the_next_task(throttle: int, workers: int) -> None:
    lock = threading.Lock()
    generated = started = 0
    worst = 0

    def produce() -> Iterator[int]:
        nonlocal generated, worst
        for i in range(300):
            with lock:
                generated += 1
                worst = max(worst, generated - started)
            yield i

    def consume(x: int) -> int:
        nonlocal started
        with lock:
            started += 1
        return x

    pipeline = task(produce, branch=True, throttle=throttle) | task(consume, workers=workers)
    assert sorted(pipeline()) == list(range(300))
    assert worst <= throttle + workers + 1


def test_a_full_queue_stops_the_producer_and_a_place_lets_it_go_on() -> None:
    reached = threading.Event()

    def produce() -> Iterator[int]:
        for i in itertools.count():
            if i == 5:
                reached.set()
            yield i

    with task(produce, branch=True, throttle=2)() as outputs:
        assert next(outputs) == 0
        assert not reached.is_set()
        assert [next(outputs) for _ in range(5)] == [1, 2, 3, 4, 5]
        assert reached.is_set()


# ------------------------------------------------------------------------------------- nested runs


def test_a_tasks_function_may_run_pipelines() -> None:
    inner = numbers | task(one_more, workers=2)

    def total(n: int) -> int:
        return sum(inner(n))

    assert list((numbers | task(total, workers=2, ordered=True))(5)) == [0, 1, 3, 6, 10]


def test_runs_inside_runs_inside_runs() -> None:
    level = numbers
    for _ in range(4):
        level = numbers | task(level, branch=True)

    def model(n: int, depth: int) -> list[int]:
        return list(range(n)) if depth == 0 else [y for x in range(n) for y in model(x, depth - 1)]

    assert list(level(6)) == model(6, 4)


def test_a_function_may_not_ask_for_outputs_of_its_own_run() -> None:
    box: list[Outputs[Any]] = []

    def ask(x: int) -> Any:
        return next(box[0])

    box.append((numbers | task(ask))(3))
    with pytest.raises(RuntimeError, match="it would wait for itself"):
        list(box[0])


# ------------------------------------------------------------------------------------- context

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_workers_see_the_context_of_the_call() -> None:
    pipeline = numbers | task(lambda x: variable.get(), workers=3)
    token = variable.set("caller's")
    try:
        outputs = pipeline(5)
        variable.set("later")
        assert list(outputs) == ["caller's"] * 5
    finally:
        variable.reset(token)
    assert list(pipeline(1)) == ["unset"]


def test_each_worker_has_a_copy_of_its_own() -> None:
    barrier = threading.Barrier(2)

    def change(x: int) -> tuple[str, str]:
        before = variable.get()
        variable.set(f"set by {x}")
        barrier.wait(PATIENCE)
        return before, variable.get()

    found = sorted((numbers | task(change, workers=2))(2))
    assert found == [("unset", "set by 0"), ("unset", "set by 1")]
    assert variable.get() == "unset"


def test_calls_of_one_worker_share_its_context() -> None:
    def change(x: int) -> str:
        before = variable.get()
        variable.set(str(x))
        return before

    assert list((numbers | task(change))(3)) == ["unset", "0", "1"]


# ------------------------------------------------------------------------------------- counters


def test_counters_before_during_and_after_the_run() -> None:
    outputs = (task(range, branch=True, throttle=2) | task(one_more, workers=2))(10)
    before = outputs.stats()
    assert [(s.name, s.workers, s.alive, s.items_in) for s in before] == [
        ("range", 1, 0, 0),
        ("one_more", 2, 0, 0),
    ]
    assert next(outputs) in (1, 2)
    during = outputs.stats()
    assert during[1].items_out >= 1
    assert len(list(outputs)) == 9
    after = outputs.stats()
    assert [(s.name, s.alive, s.items_in, s.items_out, s.queued) for s in after] == [
        ("range", 0, 1, 10, 0),
        ("one_more", 0, 10, 10, 0),
    ]
    assert all(s.busy > 0 for s in after)


def test_counters_are_frozen_records() -> None:
    (record,) = numbers(3).stats()
    assert isinstance(record, TaskStats)
    with pytest.raises(AttributeError):
        record.alive = 5  # type: ignore[misc]
    assert record._fields == (
        "name", "workers", "alive", "items_in", "items_out", "queued", "busy", "starved", "blocked",
    )  # fmt: skip
    assert repr(record).startswith("TaskStats(name='range', workers=1, alive=0, ")


def test_counters_show_who_waits() -> None:
    gate = threading.Event()

    def wait(x: int) -> int:
        assert gate.wait(PATIENCE)
        return x

    with (task(itertools.count, branch=True, throttle=1) | task(wait))() as outputs:
        asker = threading.Thread(target=next, args=(outputs,))
        asker.start()
        until(lambda: outputs.stats()[0].queued == 1)
        assert outputs.stats()[1].alive == 1
        gate.set()
        asker.join()
        assert next(outputs) == 1
    (producer, waiter) = outputs.stats()
    assert producer.alive == waiter.alive == 0
    assert producer.blocked > 0
    assert waiter.busy > 0


def test_other_threads_get_their_turn_while_functions_run_no_bytecode() -> None:
    # str() and count() run no bytecode, so only the engine can let go of the GIL.
    turns = 0
    with (counting | task(str))() as outputs:
        assert next(outputs) == "0"
        thread = threading.Thread(target=lambda: None)
        thread.start()
        thread.join()
        turns += 1
    assert turns == 1


@pytest.mark.parametrize("throttle", [0, 100])
def test_garbage_is_collected_while_functions_run_no_bytecode(throttle: int) -> None:
    """Without the GIL all threads are stopped for that, though these hardly ever wait."""
    source = task(itertools.repeat, branch=True, throttle=throttle)
    outputs = (source | task(abs, throttle=throttle))(0)
    assert next(outputs) == 0
    for _ in range(3):
        cycle: list[Any] = []
        cycle.append(cycle)
        del cycle
        assert gc.collect() > 0
    outputs.close()


@pytest.mark.parametrize("reader", ["task", "caller"])
def test_and_while_many_items_are_read(reader: str) -> None:
    """Whoever reads them, in C as well, does not wait while there are any."""
    count = 200_000
    full, begun = threading.Event(), threading.Event()

    def read(data: Iterator[int]) -> int:
        next(data)
        full.wait()
        next(data)
        begun.set()
        collections.deque(map(functools.partial(pow, 3), data), maxlen=0)
        return 0

    def run() -> None:
        with contextlib.suppress(pyper.Cancelled):
            outputs = next(joined) if reader == "task" else read(numbers)
            assert outputs == 0

    source = task(itertools.repeat, branch=True)
    numbers, joined = source(20_000, count), (source | task(read, join=True))(20_000, count)
    outputs = joined if reader == "task" else numbers
    thread = threading.Thread(target=run)
    thread.start()
    until(lambda: outputs.stats()[0].items_out == count)
    full.set()
    begun.wait()
    gc.collect()
    assert outputs.stats()[0].queued > 0
    outputs.close()
    thread.join()


@pytest.mark.skipif(not hasattr(sys, "_is_gil_enabled"), reason="asks what 3.13 and newer tell")
def test_importing_pyper_leaves_the_gil_off() -> None:
    import subprocess

    code = "import sys; before = sys._is_gil_enabled(); import pyper; "
    code += "print(before == sys._is_gil_enabled())"
    found = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, timeout=50
    )
    assert (found.stdout.strip(), found.stderr) == ("True", "")
