"""Pipelines: composing, consuming, calling, and what they are besides."""

from __future__ import annotations

import copy
import itertools
import pickle
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from pyper import Consumer, Outputs, Pipeline, task


def add_one(x: int) -> int:
    return x + 1


@task(branch=True)
def numbers(n: int) -> Iterable[int]:
    """The numbers from 0 to n - 1."""
    yield from range(n)


@task(workers=2, ordered=True)
def doubled(x: int) -> int:
    return 2 * x


class Place:
    @task
    @staticmethod
    def inside(x: int) -> int:
        return x + 100


chain = numbers | doubled


# ----------------------------------------------------------------------------------- composing


def test_the_bar_and_pipe_are_the_same() -> None:
    assert (numbers | doubled).tasks == numbers.pipe(doubled).tasks
    assert list((numbers | doubled)(3)) == list(numbers.pipe(doubled)(3)) == [0, 2, 4]


def test_composing_leaves_its_parts_alone() -> None:
    before = numbers.tasks
    assert (numbers | doubled).tasks == (*numbers.tasks, *doubled.tasks)
    assert numbers.tasks is before
    assert list(numbers(2)) == [0, 1]


def test_composing_is_associative() -> None:
    a, b, c = numbers, doubled, task(add_one)
    assert ((a | b) | c).tasks == (a | (b | c)).tasks
    assert list((a | (b | c))(3)) == [1, 3, 5]


def test_a_pipeline_may_be_piped_into_itself() -> None:
    one = task(add_one)
    assert list((one | one)(0)) == [2]
    three = numbers | one | one | one
    assert list((three | one)(2)) == [4, 5]
    twice = numbers | numbers
    assert list(twice(4)) == [0, 0, 1, 0, 1, 2]


def test_a_long_chain() -> None:
    pipeline: Pipeline[[int], int] = numbers
    for _ in range(40):
        pipeline = pipeline | task(add_one)
    assert list(pipeline(5)) == [40, 41, 42, 43, 44]


@pytest.mark.parametrize("other", [add_one, len, lambda x: x])
def test_piping_into_a_function_says_how_to_mend_it(other: Any) -> None:
    with pytest.raises(TypeError, match=r"is not a pipeline; write task\("):
        numbers | other
    with pytest.raises(TypeError, match=r"is not a pipeline; write task\("):
        numbers.pipe(other)


@pytest.mark.parametrize("other", [None, 5, "text", [doubled], object()])
def test_piping_into_what_is_not_a_pipeline(other: Any) -> None:
    with pytest.raises(TypeError, match="which is not a pipeline$"):
        numbers | other
    with pytest.raises(TypeError, match="which is not a pipeline$"):
        numbers.pipe(other)


def test_what_is_no_pipeline_cannot_be_piped_into_one() -> None:
    with pytest.raises(TypeError):
        add_one | numbers  # type: ignore[operator]


# ----------------------------------------------------------------------------------- consuming


def test_the_sign_and_consume_are_the_same() -> None:
    assert (chain > list)(3) == chain.consume(list)(3) == [0, 2, 4]
    assert (chain > sum)(4) == 12


def test_a_consumer_gets_the_outputs() -> None:
    def first(outputs: Outputs[int]) -> int:
        with outputs:
            return next(outputs)

    def count(start: int) -> Iterator[int]:
        return itertools.count(start)

    run = task(count, branch=True) > first
    assert run(7) == 7
    assert run(start=8) == 8


def test_a_consumer_can_be_a_task() -> None:
    outer = numbers | task(chain > sum)
    assert list(outer(4)) == [0, 0, 2, 6]


@pytest.mark.parametrize("consumer", [None, 5, "text", [print]])
def test_a_consumer_must_be_callable(consumer: Any) -> None:
    with pytest.raises(TypeError, match="can only go to a function or another callable"):
        _ = chain > consumer
    with pytest.raises(TypeError, match="can only go to a function or another callable"):
        chain.consume(consumer)


def test_two_consumers_in_a_row_are_a_chained_comparison() -> None:
    with pytest.raises(TypeError, match="chained comparison"):
        _ = chain > list > len  # type: ignore[operator]


def test_a_consumer_shows_what_it_is() -> None:
    consumer = chain > sum
    assert isinstance(consumer, Consumer)
    assert consumer.pipeline is chain
    assert consumer.consumer is sum
    shown = "<Consumer <Pipeline numbers(branch=True) | doubled(workers=2, ordered=True)> > sum>"
    assert repr(consumer) == shown


# ------------------------------------------------------------------------------------- calling


def test_an_argument_may_be_called_self() -> None:
    def same(self: int) -> int:
        return self

    assert list(task(same)(self=1)) == [1]
    assert (task(same) > list)(self=2) == [2]


def test_arguments_go_to_the_first_task() -> None:
    def args(*args: int, **kwargs: int) -> tuple[tuple[int, ...], dict[str, int]]:
        return args, kwargs

    assert list(task(args)()) == [((), {})]
    assert list(task(args)(1, 2, a=3)) == [((1, 2), {"a": 3})]
    assert list((task(args) | task(lambda item: item))(1, b=2)) == [((1,), {"b": 2})]


def test_a_signature_that_does_not_fit_is_an_error_from_the_stream() -> None:
    outputs = numbers()  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'n'") as caught:
        next(outputs)
    assert caught.value.__notes__ == ["in task 'numbers' (1 of 1)"]

    def two(a: int, b: int) -> int:
        return a + b

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'b'") as caught:
        list((numbers | task(two))(2))
    assert caught.value.__notes__[0] == "in task 'two' (2 of 2)"


def test_the_first_task_cannot_join() -> None:
    with pytest.raises(
        RuntimeError, match="task 'add_one' is the first of the pipeline.*join=True"
    ):
        task(add_one, join=True)(1)
    assert task(add_one, join=True).tasks[0].join


def test_the_first_task_cannot_have_several_workers() -> None:
    with pytest.raises(RuntimeError, match="task 'doubled' is the first.*cannot have 2 workers"):
        doubled(1)
    with pytest.raises(RuntimeError, match="cannot have 2 workers"):
        (doubled | numbers)(1)


def test_a_pipeline_may_be_called_again_and_again() -> None:
    for n in (0, 1, 5, 100):
        assert list(chain(n)) == list(range(0, 2 * n, 2))


def test_a_pipeline_may_run_several_times_at_once() -> None:
    outputs = [chain(50) for _ in range(8)]
    assert [list(row) for row in zip(*outputs, strict=True)] == [[2 * i] * 8 for i in range(50)]


def test_a_pipeline_may_be_called_by_several_threads_at_once() -> None:
    pipeline = numbers | task(add_one) | doubled
    barrier = threading.Barrier(8)
    results: list[list[int]] = []

    def call() -> None:
        barrier.wait()
        results.append(list(pipeline(200)))

    threads = [threading.Thread(target=call) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [list(range(2, 402, 2))] * 8


# -------------------------------------------------------------------------------- immutability


def test_a_pipeline_cannot_be_changed() -> None:
    with pytest.raises(AttributeError, match="a pipeline cannot be changed: 'tasks'"):
        chain.tasks = ()  # type: ignore[misc]
    with pytest.raises(AttributeError, match="'other'"):
        chain.other = 5
    with pytest.raises(AttributeError, match="'tasks' cannot be deleted"):
        del chain.tasks
    assert isinstance(chain.tasks, tuple)


def test_a_pipeline_is_made_of_tasks() -> None:
    with pytest.raises(ValueError, match="at least one task"):
        Pipeline(())
    with pytest.raises(TypeError, match="made of tasks, not of function"):
        Pipeline((add_one,))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made of a tuple of tasks, not of generator"):
        Pipeline(item for item in chain.tasks)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="made of a tuple of tasks, not of Pipeline"):
        Pipeline(chain)  # type: ignore[arg-type]
    same: Pipeline[[int], int] = Pipeline(list(chain.tasks))  # type: ignore[arg-type]
    assert list(same(3)) == [0, 2, 4]


def test_pipelines_are_compared_by_identity_and_hashable() -> None:
    assert task(add_one) != task(add_one)
    assert len({chain, chain, numbers}) == 2


# ------------------------------------------------------------------------------------ pickling

PROTOCOLS = range(pickle.HIGHEST_PROTOCOL + 1)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_pipeline_pickles_with_its_functions(protocol: int) -> None:
    pipeline = task(range, branch=True, throttle=3) | task(add_one, workers=2, ordered=True)
    loaded = pickle.loads(pickle.dumps(pipeline, protocol))
    assert loaded.tasks == pipeline.tasks
    assert list(loaded(3)) == [1, 2, 3]


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_decorated_pipeline_pickles_by_its_name(protocol: int) -> None:
    assert pickle.loads(pickle.dumps(numbers, protocol)) is numbers
    if protocol >= 4:  # older protocols have no names with dots
        assert pickle.loads(pickle.dumps(Place.inside, protocol)) is Place.inside


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_functions_behind_their_own_decorator_pickle(protocol: int) -> None:
    pipeline = numbers | doubled | task(add_one, bind=task.bind())
    loaded = pickle.loads(pickle.dumps(pipeline, protocol))
    assert loaded.tasks == pipeline.tasks
    assert list(loaded(3)) == [1, 3, 5]


def test_a_pipeline_that_has_run_pickles() -> None:
    pipeline = numbers | task(add_one)
    assert list(pipeline(2)) == [1, 2]
    assert list(pickle.loads(pickle.dumps(pipeline))(2)) == [1, 2]


def test_a_consumer_pickles() -> None:
    assert pickle.loads(pickle.dumps(chain > sum))(4) == 12


def test_what_pickle_refuses_is_pickles_to_say() -> None:
    function: Callable[[int], int] = lambda x: x  # noqa: E731
    with pytest.raises((pickle.PicklingError, AttributeError)):
        pickle.dumps(task(function))


def test_a_pickle_is_loaded_in_another_process(tmp_path: Any) -> None:
    (tmp_path / "elsewhere.py").write_text(
        "from pyper import task\n"
        "@task(branch=True)\n"
        "def numbers(n):\n"
        "    return range(n)\n"
        "@task\n"
        "def square(x):\n"
        "    return x * x\n"
        "chain = numbers | square\n"
    )
    dump = "import sys, pickle, elsewhere; sys.stdout.buffer.write(pickle.dumps(elsewhere.chain))"
    load = "import sys, pickle; print(list(pickle.load(sys.stdin.buffer)(4)))"
    pickled = subprocess.run(
        [sys.executable, "-c", dump], cwd=tmp_path, capture_output=True, check=True, timeout=50
    )
    loaded = subprocess.run(
        [sys.executable, "-c", load],
        cwd=tmp_path,
        input=pickled.stdout,
        capture_output=True,
        check=True,
        timeout=50,
    )
    assert loaded.stdout.split() == b"[0, 1, 4, 9]".split()


def test_copies() -> None:
    assert copy.copy(numbers) is numbers
    assert copy.deepcopy(numbers) is numbers
    assert list(copy.deepcopy(chain)(3)) == [0, 2, 4]


# -------------------------------------------------------------------------------- the engine's own


def test_a_plan_refuses_what_the_engine_refuses() -> None:
    from pyper import _pyper

    with pytest.raises(ValueError, match="workers"):
        _pyper.Plan(((add_one, "bad", False, False, False, -1, 0, False, None),))
    with pytest.raises(ValueError, match="pipeline"):
        _pyper.Plan(())
    too_many = (add_one, "x", False, False, False, 2**70, 0, False, None)
    wrongs: list[Any] = [5, [], ((add_one,),), (5,), (too_many,)]
    for wrong in wrongs:
        with pytest.raises((TypeError, OverflowError)):
            _pyper.Plan(wrong)
    plan = _pyper.Plan(((add_one, "fine", False, False, False, 1, 0, False, None),))
    assert list(plan.run((1,), {})) == [2]
    with pytest.raises(TypeError, match="a tuple and a dict"):
        plan.run([1], {})  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        plan.run()  # type: ignore[call-arg]


def test_the_engines_types_are_not_made_by_hand() -> None:
    from pyper import InputStream

    for kind in (Outputs, InputStream):
        with pytest.raises(TypeError, match="cannot create"):
            kind()
        with pytest.raises(TypeError, match="not an acceptable base type"):
            type("Sub", (kind,), {})
        assert kind[int].__origin__ is kind
