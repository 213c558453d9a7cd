"""Any chain of tasks gives what a plain loop gives.

Hypothesis makes chains of tasks with random options and inputs.  A model computes with loops what
must come out: the same items, and in the same order where order is promised (one worker or
`ordered` in every task).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers import Counted, none_alive
from pyper import Pipeline, task

settings.register_profile(
    "pyper",
    deadline=None,  # the time that threads take is nobody's to promise
    max_examples=150,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    database=None,
    print_blob=True,
)
settings.load_profile("pyper")


def add(x: int) -> int:
    return x + 1


def produce(count: int) -> Iterator[Counted]:
    return map(Counted, range(count))


def same(item: Counted) -> Counted:
    return item


def mirror(x: int) -> int:
    return -x


def none_or_more(x: int) -> list[int]:
    return list(range(x, x + abs(x) % 4))


def lazily(x: int) -> Iterator[int]:
    for i in range(abs(x) % 3):
        yield x * 2 + i


def each(data: Iterable[int]) -> Iterator[int]:
    for x in data:
        yield x + 10


def some_of_each(data: Iterable[int]) -> Iterator[int]:
    for x in data:
        if x % 2:
            yield x
            yield x


@dataclass(frozen=True)
class Step:
    """A task, and what a loop makes of a list of inputs."""

    func: Callable[..., Any]
    loop: Callable[[list[int]], list[int]]
    branch: bool = False
    join: bool = False


STEPS = [
    Step(add, lambda xs: [add(x) for x in xs]),
    Step(mirror, lambda xs: [mirror(x) for x in xs]),
    Step(none_or_more, lambda xs: [y for x in xs for y in none_or_more(x)], branch=True),
    Step(lazily, lambda xs: [y for x in xs for y in lazily(x)], branch=True),
    Step(each, lambda xs: list(each(xs)), branch=True, join=True),
    Step(some_of_each, lambda xs: list(some_of_each(xs)), branch=True, join=True),
]

throttles = st.sampled_from([0, 0, 1, 2, 3, 10, 1000])


@dataclass(frozen=True)
class Link:
    """A step with the options to run it with."""

    step: Step
    workers: int
    throttle: int
    ordered: bool

    def task(self) -> Pipeline[..., Any]:
        return task(
            self.step.func,
            branch=self.step.branch,
            join=self.step.join,
            workers=self.workers,
            throttle=self.throttle,
            ordered=self.ordered,
        )

    def keeps_order(self) -> bool:
        return self.workers == 1 or self.ordered


@st.composite
def links(draw: st.DrawFn) -> Link:
    step = draw(st.sampled_from(STEPS))
    workers = draw(st.sampled_from([1, 1, 2, 3, 5]))
    ordered = draw(st.booleans()) and not (step.join and workers > 1)
    return Link(step, workers, draw(throttles), ordered)


chains = st.lists(links(), max_size=5)
inputs = st.lists(st.integers(-100, 100), max_size=60)


def build(source: list[int], throttle: int, chain: list[Link]) -> Pipeline[[], Any]:
    pipeline: Pipeline[[], Any] = task(lambda: source, branch=True, throttle=throttle)
    for link in chain:
        pipeline = pipeline | link.task()
    return pipeline


def model(source: list[int], chain: list[Link]) -> list[int]:
    for link in chain:
        source = link.step.loop(source)
    return source


@given(inputs, throttles, chains)
def test_a_chain_gives_what_a_loop_gives(source: list[int], throttle: int, chain: Any) -> None:
    found = list(build(source, throttle, chain)())
    expected = model(source, chain)
    if all(link.keeps_order() for link in chain):
        assert found == expected
    else:
        assert Counter(found) == Counter(expected)


@given(inputs, throttles, chains)
def test_the_counters_add_up(source: list[int], throttle: int, chain: Any) -> None:
    outputs = build(source, throttle, chain)()
    found = list(outputs)
    first, *rest = outputs.stats()
    assert first.items_in == 1
    assert first.items_out == len(source)
    before = len(source)
    for stats in rest:
        assert stats.items_in == before
        assert stats.queued == stats.alive == 0
        before = stats.items_out
    assert before == len(found)


@given(inputs, throttles, chains, st.integers(0, 30))
def test_a_part_of_a_chain_is_a_part_of_what_a_loop_gives(
    source: list[int], throttle: int, chain: Any, count: int
) -> None:
    expected = model(source, chain)
    with build(source, throttle, chain)() as outputs:
        found = [item for item, _ in zip(outputs, range(count), strict=False)]
    if all(link.keeps_order() for link in chain):
        assert found == expected[: len(found)]
    else:
        assert not Counter(found) - Counter(expected)
    assert len(found) == min(count, len(expected))


@given(inputs, throttles, chains, st.integers(0, 40))
def test_a_chain_with_a_failure_gives_a_part_and_then_the_failure(
    source: list[int], throttle: int, chain: Any, at: int
) -> None:
    calls = 0

    def fail(x: int) -> int:
        nonlocal calls
        calls += 1
        if calls > at:
            raise ValueError(x)
        return x

    expected = model(source, chain)
    pipeline = build(source, throttle, chain) | task(fail, throttle=throttle)
    found: list[int] = []
    if len(expected) > at:
        with pytest.raises(ValueError, match=r"-?\d"):
            found.extend(pipeline())
        assert len(found) <= at
    else:
        found.extend(pipeline())
        assert len(found) == len(expected)
    if all(link.keeps_order() for link in chain):
        assert found == expected[: len(found)]
    else:
        assert not Counter(found) - Counter(expected)


@given(
    st.integers(0, 80),
    st.lists(st.tuples(st.sampled_from([1, 2, 4]), throttles, st.booleans()), max_size=3),
    st.one_of(st.none(), st.integers(0, 30)),
)
def test_each_item_is_delivered_or_destroyed_exactly_once(
    count: int, options: list[tuple[int, int, bool]], leave_after: int | None
) -> None:
    pipeline: Pipeline[..., Any] = task(produce, branch=True)
    for workers, throttle, ordered in options:
        last = task(same, workers=workers, throttle=throttle, ordered=ordered)
        pipeline = pipeline | last
    found = 0
    with pipeline(count) as outputs:
        for item in outputs:
            found += 1
            assert isinstance(item, Counted)
            if found == leave_after:
                break
        item = None
    assert found == (count if leave_after in (None, 0) else min(count, leave_after or 0))
    assert none_alive()
