"""Errors: one exception stops the run and reaches the caller as it is."""

from __future__ import annotations

import itertools
import threading
import traceback
from collections.abc import Iterator
from typing import Any

import pytest

from helpers import PATIENCE, Counted, none_alive, until
from pyper import Cancelled, task

numbers = task(range, branch=True)
counting = task(itertools.count, branch=True, throttle=100)


class SpecialError(Exception):
    """An exception whose __init__ cannot be called with its args."""

    def __init__(self, a: int, *, b: int) -> None:
        super().__init__(f"{a} and {b}")
        self.b = b


def fail_at(x: int, at: int, error: BaseException) -> int:
    if x == at:
        raise error
    return x


def failing(at: int, error: BaseException, **options: Any) -> Any:
    return task(fail_at, bind=task.bind(at=at, error=error), **options)


# ----------------------------------------------------------------------------- what is raised


@pytest.mark.parametrize(
    "error",
    [
        ValueError("bad"),
        SpecialError(1, b=2),
        KeyboardInterrupt("from a task"),
        SystemExit(3),
        BaseException("base"),
        ExceptionGroup("several", [ValueError(1), KeyError(2)]),
        Cancelled("raised by hand"),
    ],
)
def test_the_original_exception_is_raised(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught:
        list((numbers | failing(3, error))(10))
    assert caught.value is error
    assert caught.value.__notes__ == ["in task 'fail_at' (2 of 2)"]


def test_the_traceback_shows_the_function() -> None:
    def deep(x: int) -> int:
        return deeper(x)

    def deeper(x: int) -> int:
        raise ValueError("down here")

    with pytest.raises(ValueError, match="down here") as caught:
        list((numbers | task(deep))(1))
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-2:] == ["deep", "deeper"]
    assert "in task 'deep' (2 of 2)" in "".join(traceback.format_exception(caught.value))


def test_context_and_cause_are_kept() -> None:
    def chained(x: int) -> int:
        try:
            raise KeyError("first")
        except KeyError as error:
            raise ValueError("second") from error

    with pytest.raises(ValueError, match="second") as caught:
        list((numbers | task(chained))(1))
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_any_task_may_fail(place: int) -> None:
    def fail(x: object) -> None:
        raise ValueError("anywhere")

    tasks: list[Any] = [numbers, task(abs), task(abs)]
    tasks[place] = task(fail)
    with pytest.raises(ValueError, match="anywhere") as caught:
        list((tasks[0] | tasks[1] | tasks[2])(5))
    assert caught.value.__notes__ == [f"in task 'fail' ({place + 1} of 3)"]


def test_after_the_exception_comes_the_end() -> None:
    outputs = (numbers | failing(0, ValueError("once")))(3)
    with pytest.raises(ValueError, match="once"):
        next(outputs)
    assert list(outputs) == []
    with pytest.raises(StopIteration):
        next(outputs)
    outputs.close()


def test_outputs_that_had_reached_the_callers_queue_come_first() -> None:
    def fail_later(x: int) -> int:
        if x == 3:
            raise ValueError("later")
        return x

    got: list[int] = []
    outputs = (numbers | task(fail_later))(10)
    with pytest.raises(ValueError, match="later"):
        got.extend(outputs)
    assert got == [0, 1, 2]


def test_the_same_pipeline_may_fail_again_and_again() -> None:
    def fail(x: int) -> int:
        raise ValueError(x)

    pipeline = numbers | task(fail)
    for _ in range(20):
        with pytest.raises(ValueError, match="0") as caught:
            list(pipeline(3))
        assert caught.value.__notes__ == ["in task 'fail' (2 of 2)"]


# ---------------------------------------------------------------------------- a quiet end, never


@pytest.mark.parametrize("kind", [StopIteration, StopAsyncIteration, GeneratorExit])
@pytest.mark.parametrize("join", [False, True])
def test_what_would_end_the_callers_loop_becomes_a_runtime_error(
    kind: type[BaseException], join: bool
) -> None:
    original = kind("quiet")

    def quiet(x: Any) -> Any:
        raise original

    with pytest.raises(RuntimeError, match=f"task 'quiet' raised {kind.__name__}") as caught:
        list((numbers | task(quiet, join=join))(3))
    assert caught.value.__cause__ is original
    assert caught.value.__notes__ == ["in task 'quiet' (2 of 2)"]


def test_a_next_that_finds_nothing_in_a_task_is_loud() -> None:
    with pytest.raises(RuntimeError, match="raised StopIteration"):
        list((numbers | task(lambda x: next(iter([]))))(3))


def test_generator_exit_out_of_an_iterator_is_loud() -> None:
    class Odd:
        def __iter__(self) -> Odd:
            return self

        def __next__(self) -> int:
            raise GeneratorExit

    with pytest.raises(RuntimeError, match="raised GeneratorExit"):
        list(task(Odd, branch=True)())


# ------------------------------------------------------------------------------------- bad tasks


@pytest.mark.parametrize("value", [5, None, 1.5, object(), len])
def test_a_branching_task_must_return_an_iterable(value: Any) -> None:
    outputs = (numbers | task(lambda x: value, branch=True))(3)
    with pytest.raises(TypeError, match="'<lambda>' has branch=True, so it must return an itera"):
        list(outputs)


def test_a_branching_task_that_returns_something_async_is_told_so() -> None:
    async def agen() -> Any:
        yield 1

    with pytest.raises(TypeError, match="async_generator .what is asynchronous has to come from"):
        list(task(lambda: agen(), branch=True)())


def test_an_iter_that_raises() -> None:
    class Bad:
        def __iter__(self) -> Iterator[int]:
            raise KeyError("no iteration today")

    with pytest.raises(KeyError, match="no iteration today") as caught:
        list(task(Bad, branch=True)())
    assert caught.value.__notes__ == ["in task 'Bad' (1 of 1)"]


def test_an_iter_that_returns_no_iterator() -> None:
    class Bad:
        def __iter__(self) -> Any:
            return 5

    with pytest.raises(TypeError, match="iterator"):
        list(task(Bad, branch=True)())


def test_a_generator_that_raises_after_some_outputs() -> None:
    def some() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("no third")

    got: list[int] = []
    with pytest.raises(ValueError, match="no third"):
        got.extend(task(some, branch=True)())
    assert got == [1, 2]


def test_a_signature_that_does_not_fit() -> None:
    with pytest.raises(TypeError, match="takes 0 positional arguments but 1 was given"):
        list((numbers | task(lambda: 1))(3))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_an_item_whose_del_raises_stops_nothing() -> None:
    class Bad:
        def __init__(self, x: int) -> None:
            self.x = x

        def __del__(self) -> None:
            raise ValueError("in __del__")

    pipeline = numbers | task(Bad) | task(lambda bad: bad.x)
    assert list(pipeline(20)) == list(range(20))
    with (counting | task(Bad, throttle=5))() as outputs:
        assert next(outputs).x == 0


def test_an_exception_that_cannot_be_shown_or_noted() -> None:
    class HiddenError(Exception):
        def __str__(self) -> str:
            raise RuntimeError("not to be shown")

    with pytest.raises(HiddenError) as caught:
        list((numbers | failing(0, HiddenError()))(1))
    assert caught.value.__notes__ == ["in task 'fail_at' (2 of 2)"]


# ----------------------------------------------------------------------------- more than one


def test_further_failures_are_noted_at_the_first() -> None:
    together = threading.Barrier(3)

    def fail(x: int) -> int:
        together.wait(PATIENCE)
        raise ValueError(f"number {x}")

    with pytest.raises(ValueError, match="number") as caught:
        list((numbers | task(fail, workers=3))(3))
    notes = caught.value.__notes__
    assert notes[0] == "in task 'fail' (2 of 2)"
    others = {0, 1, 2} - {int(str(caught.value)[-1])}
    expected = {f"also raised in task 'fail' (2 of 2): ValueError: number {x}" for x in others}
    assert set(notes[1:]) == expected


def test_not_more_than_eight_of_them() -> None:
    together = threading.Barrier(20)

    def fail(x: int) -> int:
        together.wait(PATIENCE)
        raise ValueError

    with pytest.raises(ValueError, match="^\\n") as caught:
        list((numbers | task(fail, workers=20))(20))
    assert len(caught.value.__notes__) == 1 + 8
    assert caught.value.__notes__[1] == "also raised in task 'fail' (2 of 2): ValueError"


def test_the_same_exception_from_several_workers() -> None:
    together = threading.Barrier(3)
    error = ValueError("shared")

    def fail(x: int) -> int:
        together.wait(PATIENCE)
        raise error

    with pytest.raises(ValueError, match="shared") as caught:
        list((numbers | task(fail, workers=3))(3))
    assert caught.value is error


def test_only_one_of_several_askers_is_told_why() -> None:
    waiting = threading.Barrier(4)
    told: list[BaseException | None] = []

    def fail(x: int) -> int:
        waiting.wait(PATIENCE)
        raise ValueError("for one")

    outputs = (numbers | task(fail))(1)

    def ask() -> None:
        waiting.wait(PATIENCE)
        try:
            next(outputs)
        except BaseException as error:
            told.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    # The run needs somebody to start it before the barrier can open.
    with pytest.raises((ValueError, StopIteration, Cancelled)) as mine:
        next(outputs)
    for thread in threads:
        thread.join()
    kinds = sorted(type(error).__name__ for error in [*told, mine.value])
    assert kinds.count("ValueError") == 1
    assert set(kinds) <= {"ValueError", "StopIteration", "Cancelled"}


# --------------------------------------------------------------------------------- what stops


def test_no_new_call_starts_after_a_failure() -> None:
    started: list[int] = []

    def fail(x: int) -> int:
        if x == 5:
            until(lambda: started == [0])  # the call in progress
            raise ValueError("stop")
        return x

    def after(x: int) -> int:
        started.append(x)
        until(
            lambda: [task.alive for task in outputs.stats()][1:2] == [0]
        )  # it has failed, and left
        return x

    outputs = (counting | task(fail) | task(after))()
    with pytest.raises(ValueError, match="stop"):
        list(outputs)
    assert started in ([], [0])


def test_calls_in_progress_are_waited_for() -> None:
    inside, finish, finished = threading.Event(), threading.Event(), threading.Event()

    def two(x: int) -> int:
        if x == 0:
            assert inside.wait(PATIENCE)
            finish.set()
            raise ValueError("first")
        inside.set()
        assert finish.wait(PATIENCE)
        finished.set()
        return x

    with pytest.raises(ValueError, match="first"):
        list((numbers | task(two, workers=2))(2))
    assert finished.is_set()


def test_generators_are_closed_in_their_own_worker() -> None:
    opened: list[str] = []
    closed: list[str] = []

    def produce(x: int) -> Iterator[int]:
        opened.append(threading.current_thread().name)
        try:
            yield from itertools.count()
        finally:
            closed.append(threading.current_thread().name)

    pipeline = (
        numbers | task(produce, branch=True, workers=2, throttle=1) | failing(7, ValueError("end"))
    )
    with pytest.raises(ValueError, match="end"):
        list(pipeline(2))
    assert sorted(opened) == sorted(closed)
    assert all(name.startswith("produce") for name in closed)


def test_a_full_queue_does_not_keep_a_failure_back() -> None:
    pipeline = (
        task(itertools.count, branch=True, throttle=1)
        | task(abs, throttle=1)
        | failing(20, ValueError("through"))
    )
    with pytest.raises(ValueError, match="through"):
        list(pipeline())


def test_a_generator_that_raises_in_finally_while_the_run_fails() -> None:
    def produce() -> Iterator[int]:
        try:
            yield from itertools.count()
        finally:
            raise KeyError("in finally")

    pipeline = task(produce, branch=True, throttle=1) | failing(3, ValueError("first"))
    with pytest.raises(ValueError, match="first") as caught:
        list(pipeline())
    assert caught.value.__notes__ == [
        "in task 'fail_at' (2 of 2)",
        "also raised in task 'produce' (1 of 2): KeyError: 'in finally'",
    ]


def test_items_of_a_failed_run_are_destroyed() -> None:
    def look(item: Counted) -> int:
        if item.value == 300:
            raise ValueError(item.value)
        return item.value

    with pytest.raises(ValueError, match="300"):
        list((counting | task(Counted, workers=2) | task(look))())
    assert none_alive()


def test_memory_of_the_exception_is_given_back() -> None:
    def fail(x: int) -> int:
        mine = Counted(x)
        raise ValueError(mine.value)

    for _ in range(5):
        with pytest.raises(ValueError, match="0"):
            list((numbers | task(fail))(1))
    assert none_alive()
