"""What type checkers know about pipelines: each line says what an expression's type is.

Not run, but checked by tests/python/test_typing.py with mypy, and with pyright where it is
installed.
A line that must be refused ends in `# type: ignore[code]`; the checkers say if it is not.
"""

from __future__ import annotations

import functools
import itertools
import json
import operator
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Iterable, Iterator
from typing import Any, NoReturn, TypeVar, assert_type

from pyper import AsyncOutputs, Consumer, InputStream, Outputs, Pipeline, Task, TaskStats, task

T = TypeVar("T")


def parse(text: str, *, strict: bool = False) -> int:
    return int(text)


def lines(path: str, limit: int = 0) -> Iterator[str]:
    yield path


def show(x: float) -> str:
    return str(x)


def total(data: Iterable[int]) -> int:
    return sum(data)


def scale(x: int, by: float) -> float:
    return x * by


# ------------------------------------------------------------------------------------- one task

one = task(parse)
assert_type(one("5", strict=True), Outputs[int])
one(5)  # type: ignore[arg-type]
one("5", strict="no")  # type: ignore[arg-type]
one()  # type: ignore[call-arg]
one("5", other=1)  # type: ignore[call-arg]
assert_type(next(one("5")), int)
assert_type(list(one("5")), list[int])
assert_type(one("5").stats(), tuple[TaskStats, ...])
assert_type(one.tasks, tuple[Task, ...])
with one("5") as outputs:
    assert_type(outputs, Outputs[int])
generator: Generator[int, Any, None] = one("5")

# ---------------------------------------------------------------------------------------- branch

branching = task(lines, branch=True, throttle=100)
assert_type(branching("a", limit=3), Outputs[str])
assert_type(task(lines)("a"), Outputs[Iterator[str]])
task(parse, branch=True)  # type: ignore[arg-type]
assert_type(task(range, branch=True)(1, 4), Outputs[int])
flag = bool(input())
assert_type(task(lines, branch=flag)("a"), Outputs[Any])

# ------------------------------------------------------------------------------------- decorators


@task
def plain(x: int) -> str:
    return str(x)


@task(workers=3, ordered=True)
def with_options(x: int) -> str:
    return str(x)


@task(branch=True)
def with_branch(x: int) -> list[str]:
    return [str(x)]


@task(branch=True, join=True)
def joined(data: Iterable[int]) -> Iterator[bytes]:
    for x in data:
        yield bytes(x)


@task(bind=task.bind(by=2.0))
def bound(x: int, by: float) -> float:
    return x * by


@task(branch=True, bind=task.bind(by=2))
def bound_branch(x: int, by: int) -> list[int]:
    return [x] * by


assert_type(plain(5), Outputs[str])
plain("5")  # type: ignore[arg-type]
assert_type(with_options(5), Outputs[str])
assert_type(with_branch(5), Outputs[str])
assert_type(bound(5), Outputs[float])
assert_type(bound_branch(5), Outputs[int])

# ---------------------------------------------------------------------------------------- chains

chain = task(lines, branch=True) | task(parse, workers=4) | task(show)
assert_type(chain("a", 5), Outputs[str])
assert_type(chain("a", limit=5), Outputs[str])
chain(5)  # type: ignore[arg-type]
chain("a", unknown=5)  # type: ignore[call-arg]
assert_type((task(lines, branch=True) | task(parse) | task(total, join=True))("a"), Outputs[int])
assert_type((task(lines, branch=True) | task(parse) | joined)("a"), Outputs[bytes])
assert_type(task(lines, branch=True).pipe(task(parse)).pipe(task(show))("a"), Outputs[str])
assert_type((one | task(scale, bind=task.bind(by=2.0)))("5"), Outputs[float])
one | parse  # type: ignore[operator]
one.pipe(parse)  # type: ignore[call-overload]
parse | one  # type: ignore[operator]


# -------------------------------------------- functions of which nobody knows what they return


def anything(text: str) -> Any:
    return text


def never(text: str) -> NoReturn:
    raise ValueError(text)


def same(x: T) -> T:
    return x


def of_lambdas() -> None:
    list((one | task(lambda x: x + 1))("5"))
    list((one | task(lambda x: x + 1) | task(show))("5"))
    list((one | task(lambda x, y: x + y, bind=task.bind(5)))("5"))
    list((task(lambda: [1], branch=True) | task(lambda x: [x], branch=True, workers=2))())
    list((one | task(lambda x: x.items, branch=True))("5"))
    assert_type((one | task(lambda x: 5))("5"), Outputs[int])


def of_builtins() -> None:
    assert_type((chain | task(len) | task(sum, join=True))("a"), Outputs[int])
    for highest in (chain | task(max, join=True))("a"):
        print(highest)
    list((one | task(pow, bind=task.bind(2)))("5"))
    list((one | task(operator.add, bind=task.bind(2)))("5"))
    list((one | task(json.loads))("5"))
    list((task(itertools.count, branch=True, throttle=100) | task(str))(5))
    list(task(zip, branch=True, bind=task.bind("a"))("b"))
    list((one | task(branch=True)(itertools.repeat))("5"))


def of_any(function: Callable[..., Any]) -> None:
    list(task(anything)("a"))
    list((chain | task(anything, branch=True))("a"))
    list(task(workers=1)(anything)("a"))
    list(task(function)("a"))
    list(task(function, bind=task.bind(5))("a"))
    list(task(functools.partial(anything, "a"))())
    assert_type(task(same)("a").stats(), tuple[TaskStats, ...])
    list((one | task(same))("5"))
    list(task(never)("a"))


# ---------------------------------------------------------------------------------------- nested

assert_type(task(chain, branch=True)("a"), Outputs[str])
assert_type((task(lines, branch=True) | task(chain, branch=True))("a"), Outputs[str])
assert_type(task(chain)("a"), Outputs[Outputs[str]])

# -------------------------------------------------------------------------------------- consuming


def count(outputs: Iterable[str]) -> int:
    return len(list(outputs))


consumer = chain > count
assert_type(consumer("a", 5), int)
assert_type(chain.consume(count)("a"), int)
assert_type((one > total)("5"), int)
consumer(5)  # type: ignore[arg-type]
one > count  # type: ignore[operator]
one > 5  # type: ignore[operator]
assert_type(task(consumer)("a"), Outputs[int])

# ---------------------------------------------------------------------- names to annotate with


def takes(
    pipeline: Pipeline[[int], str],
    outputs: Outputs[str],
    stream: InputStream[str],
    consumer: Consumer[[int], bytes],
) -> None:
    assert_type(pipeline(5), Outputs[str])
    assert_type(next(outputs), str)
    assert_type(outputs.send(None), str)
    assert_type(next(stream), str)
    assert_type(consumer(5), bytes)
    function: Callable[[int], Iterable[str]] = pipeline
    wider: Pipeline[[int], object] = pipeline
    any_of_them: Pipeline[..., Any] = pipeline
    pipeline.tasks = ()  # type: ignore[misc]
    print(function, wider, any_of_them)


# --------------------------------------------------------------------------------- wrong options

task(parse, workers="3")  # type: ignore[call-overload]
task(parse, wokers=3)  # type: ignore[call-overload]
task(parse, bind=5)  # type: ignore[call-overload]
task(5)  # type: ignore[call-overload]
task(parse, True)  # type: ignore[call-overload]


# ---------------------------------------------------------------------------------------- async


async def fetch(url: str, retries: int = 3) -> bytes:
    return url.encode()


async def pages(n: int) -> AsyncIterator[str]:
    yield str(n)


async def words(text: str) -> list[str]:
    return text.split()


@task(workers=3)
async def decorated(x: int) -> str:
    return str(x)


@task(branch=True)
async def decorated_branch(x: int) -> AsyncIterator[str]:
    yield str(x)


class Fetch:
    async def __call__(self, url: str) -> bytes:
        return await fetch(url)

    async def pages(self, n: int) -> AsyncIterator[str]:
        yield str(n)


async def fetch_anything(url: str) -> Any:
    return url


def calls_async(url: str) -> Coroutine[Any, Any, bytes]:
    return fetch(url)


assert_type(task(fetch)("a", retries=5), AsyncOutputs[bytes])
task(fetch)(5)  # type: ignore[arg-type]
assert_type(task(pages, branch=True)(5), AsyncOutputs[str])
assert_type(task(words, branch=True)("a"), AsyncOutputs[str])
assert_type(decorated(5), AsyncOutputs[str])
assert_type(decorated_branch(5), AsyncOutputs[str])
assert_type(task(Fetch())("a"), AsyncOutputs[bytes])
assert_type(task(Fetch().pages, branch=True)(5), AsyncOutputs[str])
assert_type(task(functools.partial(fetch, retries=5))("a"), AsyncOutputs[bytes])
assert_type(task(functools.partial(pages), branch=True)(5), AsyncOutputs[str])
assert_type(task(fetch, bind=task.bind(retries=5))("a"), AsyncOutputs[bytes])
assert_type(task(fetch_anything)("a"), AsyncOutputs[Any])
assert_type(task(calls_async)("a"), AsyncOutputs[bytes])
assert_type(task(lambda: fetch("a"))(), AsyncOutputs[bytes])
asynchronous = task(lines, branch=True) | task(fetch, workers=4) | task(len)
assert_type(asynchronous("a", limit=5), AsyncOutputs[int])


async def count_async(outputs: AsyncIterator[int]) -> int:
    return sum([x async for x in outputs])


async def use() -> None:
    async for x in asynchronous("a"):
        assert_type(x, int)
    async with asynchronous("a") as outputs:
        assert_type(await anext(outputs), int)
    assert_type(await (asynchronous > count_async)("a"), int)
