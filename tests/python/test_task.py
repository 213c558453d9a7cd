"""`task(...)`: what it makes, what it refuses, and what a `Task` says."""

from __future__ import annotations

import dataclasses
import functools
import inspect
from typing import Any

import pytest

import pyper
from pyper import Pipeline, Task, task


def double(x: int) -> int:
    """Twice x."""
    return 2 * x


def several(x: int) -> Any:
    yield x
    yield x + 1


async def sleepy(x: int) -> int:
    return x


async def sleepy_gen(x: int) -> Any:
    yield x


# ------------------------------------------------------------------------------------- forms


def test_task_of_a_function_is_a_pipeline_of_one_task() -> None:
    pipeline = task(double)
    assert isinstance(pipeline, Pipeline)
    assert pipeline.tasks == (Task(double),)
    assert list(pipeline(4)) == [8]


def test_plain_decorator() -> None:
    @task
    def triple(x: int) -> int:
        return 3 * x

    assert list(triple(4)) == [12]


def test_decorator_with_options() -> None:
    @task(branch=True, throttle=3)
    def pair(x: int) -> list[int]:
        return [x, x]

    assert list(pair(4)) == [4, 4]
    assert pair.tasks[0].branch
    assert pair.tasks[0].throttle == 3


def test_decorator_with_empty_parentheses() -> None:
    assert list(task()(double)(4)) == [8]


def test_func_is_positional_only() -> None:
    with pytest.raises(TypeError):
        task(func=double)  # type: ignore[call-overload]


def test_options_are_keyword_only() -> None:
    with pytest.raises(TypeError):
        task(double, True)  # type: ignore[call-overload]


def test_unknown_option_is_refused() -> None:
    with pytest.raises(TypeError, match="wokers"):
        task(double, wokers=3)  # type: ignore[call-overload]


def test_decorated_function_keeps_what_describes_it() -> None:
    pipeline = task(double)
    assert pipeline.__wrapped__ is double  # type: ignore[attr-defined]
    assert pipeline.__name__ == "double"  # type: ignore[attr-defined]
    assert pipeline.__qualname__ == "double"  # type: ignore[attr-defined]
    assert pipeline.__module__ == __name__
    assert pipeline.__doc__ == "Twice x."
    assert inspect.signature(pipeline) == inspect.signature(double)
    assert inspect.unwrap(pipeline) is double


def test_attributes_of_a_function_do_not_get_into_the_pipeline() -> None:
    def marked(x: int) -> int:
        return x

    marked.tasks = "not yours"  # type: ignore[attr-defined]
    marked._plan = "nor this"  # type: ignore[attr-defined]
    assert list(task(marked)(1)) == [1]


# ------------------------------------------------------------------------- callables of every kind


class Callable5:
    def __call__(self, x: int) -> int:
        return x + 5

    def method(self, x: int) -> int:
        return x + 6

    @classmethod
    def on_class(cls, x: int) -> int:
        return x + 7

    @staticmethod
    def static(x: int) -> int:
        return x + 8


@pytest.mark.parametrize(
    ("func", "value", "name"),
    [
        (double, 2, "double"),
        (lambda x: x + 1, 2, "<lambda>"),
        (Callable5(), 6, "Callable5"),
        (Callable5().method, 7, "method"),
        (Callable5.on_class, 8, "on_class"),
        (Callable5.static, 9, "static"),
        (functools.partial(pow, 2), 2, "pow"),
        (functools.partial(functools.partial(max, 9), 3), 9, "max"),
        (str, "1", "str"),
        (abs, 1, "abs"),
        ("a%s".__mod__, "a1", "__mod__"),
        (functools.lru_cache(double), 2, "double"),
    ],
)
def test_any_callable_will_do(func: Any, value: object, name: str) -> None:
    pipeline = task(func)
    assert list(pipeline(1)) == [value]
    assert pipeline.tasks[0].func is func
    assert pipeline.tasks[0].name == name
    second = task(lambda: [1], branch=True) | pipeline
    assert list(second()) == [value]


def test_a_pipeline_is_a_callable_too() -> None:
    inner = task(several, branch=True) | task(double)
    outer = task(range, branch=True) | task(inner, branch=True)
    assert list(outer(3)) == [0, 2, 2, 4, 4, 6]
    assert outer.tasks[1].name == "several | double"


def test_a_pipeline_without_branch_gives_its_outputs_as_an_item() -> None:
    outer = task(task(several, branch=True))
    (outputs,) = outer(1)
    assert list(outputs) == [1, 2]


# -------------------------------------------------------------------------------------- bind


def test_bind_gives_keyword_arguments() -> None:
    def scale(x: int, by: int) -> int:
        return x * by

    pipeline = task(range, branch=True) | task(scale, bind=task.bind(by=10))
    assert list(pipeline(1, 4)) == [10, 20, 30]


def test_bound_positional_arguments_come_before_the_input() -> None:
    pipeline = task(range, branch=True) | task(pow, bind=task.bind(2))
    assert list(pipeline(4)) == [1, 2, 4, 8]


def test_bind_on_the_first_task() -> None:
    assert list(task(range, branch=True, bind=task.bind(2))(5)) == [2, 3, 4]


def test_bind_shares_what_is_bound() -> None:
    seen: list[int] = []
    pipeline = task(range, branch=True) | task(lambda into, x: into.append(x), bind=task.bind(seen))
    assert list(pipeline(3)) == [None, None, None]
    assert seen == [0, 1, 2]


def test_bind_returns_arguments_and_keyword_arguments() -> None:
    assert task.bind(1, 2, a=3) == ((1, 2), {"a": 3})


# ---------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize("option", ["workers", "throttle"])
@pytest.mark.parametrize("value", [1.0, "3", None, [], True, False, 2.5, 1j])
def test_counts_must_be_ints(option: str, value: Any) -> None:
    with pytest.raises(TypeError, match=f"'double': {option} must be an int"):
        task(double, **{option: value})


@pytest.mark.parametrize("value", [0, -1, -(2**31), -(2**63), -(2**100)])
def test_at_least_one_worker(value: int) -> None:
    with pytest.raises(ValueError, match="'double': workers must be at least 1, not"):
        task(double, workers=value)


@pytest.mark.parametrize("value", [1_000_001, 2**31, 2**63, 2**100])
def test_absurd_numbers_of_workers_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="'double': workers must be at most 1000000"):
        task(double, workers=value)


@pytest.mark.parametrize("value", [-1, -(2**63), -(2**100)])
def test_throttle_is_not_negative(value: int) -> None:
    with pytest.raises(ValueError, match="'double': throttle must be at least 0, not"):
        task(double, throttle=value)


@pytest.mark.parametrize("value", [2**63, 2**64, 2**100])
def test_absurd_throttles_are_refused(value: int) -> None:
    with pytest.raises(ValueError, match="throttle must be at most .*0 means no bound"):
        task(double, throttle=value)


@pytest.mark.parametrize("value", [1, 2**31, 2**32 + 1, 2**62, 2**63 - 1])
def test_huge_throttles_are_bounds_like_any_other(value: int) -> None:
    pipeline = task(range, branch=True, throttle=value) | task(double, throttle=value)
    assert list(pipeline(100)) == list(range(0, 200, 2))


def test_objects_with_an_index_are_counts() -> None:
    class Three:
        def __index__(self) -> int:
            return 3

    three: Any = Three()
    (only,) = task(double, workers=three, throttle=three).tasks
    assert (only.workers, only.throttle) == (3, 3)
    assert type(only.workers) is int


@pytest.mark.parametrize("func", [5, "double", [double], object(), ...])
def test_what_cannot_be_called_is_refused(func: Any) -> None:
    with pytest.raises(TypeError, match=r"task\(\) needs a function or another callable, not"):
        task(func)


def test_what_cannot_be_shown_is_refused_all_the_same() -> None:
    class Shy:
        def __repr__(self) -> str:
            raise LookupError

    with pytest.raises(TypeError, match="not Shy: <"):
        task(Shy())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="task 'len': workers must be an int, not Shy"):
        task(len, workers=Shy())  # type: ignore[call-overload]


@pytest.mark.parametrize("func", [5, None])
def test_a_decorator_refuses_what_cannot_be_called(func: Any) -> None:
    with pytest.raises(TypeError, match=r"task\(\) needs a function"):
        task(workers=3)(func)


@pytest.mark.parametrize(
    "bind",
    [5, (), ((),), ((), {}, 1), [(), {}], ((), ()), ({}, ()), ([], {}), ((), []), ((), {1: 2})],
)
def test_bind_must_be_what_bind_returns(bind: Any) -> None:
    with pytest.raises(TypeError, match=r"'double': bind must be what task.bind\(...\) returns"):
        task(double, bind=bind)


@pytest.mark.parametrize(
    "func", [sleepy, sleepy_gen, functools.partial(sleepy, 1), staticmethod(sleepy)]
)
def test_async_functions_make_async_tasks(func: Any) -> None:
    (only,) = task(func).tasks
    assert only.is_async


def test_objects_with_an_async_call_make_async_tasks() -> None:
    class Caller:
        async def __call__(self) -> None: ...

    (only,) = task(Caller()).tasks
    assert only.is_async


def test_multiprocess_on_an_async_function_never_goes_together() -> None:
    with pytest.raises(ValueError, match="'sleepy': an async function cannot have multiprocess"):
        task(sleepy, multiprocess=True)


def test_ordered_with_join_and_several_workers_is_refused() -> None:
    with pytest.raises(
        ValueError, match="'double': with join=True and 2 workers there is no order"
    ):
        task(double, join=True, workers=2, ordered=True)
    task(double, join=True, ordered=True)


def test_a_decorator_refuses_its_options_at_once() -> None:
    with pytest.raises(ValueError, match=r"^task '@task\(\.\.\.\)': workers must be at least 1"):
        task(workers=0)
    with pytest.raises(ValueError, match="throttle must be at least 0"):
        task(multiprocess=True, throttle=-1)


def test_flags_are_taken_by_their_truth() -> None:
    flag: Any = "yes"
    none: Any = None
    (only,) = task(double, branch=flag, join=none, ordered=flag).tasks
    assert only.branch is True
    assert only.join is False
    assert only.ordered is True


# -------------------------------------------------------------------------------------- Task


def test_a_task_lists_what_it_is() -> None:
    options: dict[str, Any] = {
        "branch": True,
        "join": True,
        "workers": 1,
        "throttle": 7,
        "bind": task.bind(1),
        "ordered": True,
    }
    (only,) = task(several, **options).tasks
    assert only.func is several
    assert only.is_gen
    assert not only.is_async
    assert not only.multiprocess
    assert {name: getattr(only, name) for name in options} == options


def test_is_gen_sees_through_partials_methods_and_objects() -> None:
    class Producer:
        def __call__(self) -> Any:
            yield 1

        def method(self) -> Any:
            yield 1

    assert task(functools.partial(several, 1)).tasks[0].is_gen
    assert task(staticmethod(several)).tasks[0].is_gen
    assert task(Producer()).tasks[0].is_gen
    assert task(Producer().method).tasks[0].is_gen
    assert not task(double).tasks[0].is_gen
    assert not task(Producer).tasks[0].is_gen


def test_tasks_are_frozen_and_hashable() -> None:
    (only,) = task(double, bind=task.bind(a=1)).tasks
    with pytest.raises(dataclasses.FrozenInstanceError):
        only.workers = 3  # type: ignore[misc]
    assert len({only, only}) == 1


def test_a_task_made_by_hand_is_checked_as_well() -> None:
    with pytest.raises(ValueError, match="workers must be at least 1"):
        Task(double, workers=0)


def test_repr_says_what_differs_from_the_default() -> None:
    pipeline = task(range, branch=True, throttle=5) | task(double, workers=3, ordered=True)
    expected = "<Pipeline range(branch=True, throttle=5) | double(workers=3, ordered=True)>"
    assert repr(pipeline) == expected


def test_what_is_public_can_be_seen() -> None:
    for name in pyper.__all__:
        assert getattr(pyper, name) is not None
    seen = {name for name in vars(pyper) if not name.startswith("_")}
    assert seen == {name for name in pyper.__all__ if not name.startswith("_")}
    assert issubclass(pyper.Error, Exception)
    assert issubclass(pyper.Cancelled, BaseException)
    assert not issubclass(pyper.Cancelled, Exception)
    assert pyper.Error.__module__ == pyper.Cancelled.__module__ == "pyper"
    assert pyper.__version__.count(".") == 2
