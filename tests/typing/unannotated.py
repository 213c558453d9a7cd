# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators
"""Functions without annotations are what they look like: synchronous, or else `async`.

Not run, but checked as pipelines.py is.  What type checkers know of the outputs differs.
"""

from pyper import task


def numbers(limit):
    yield from range(limit)


def square(n):
    return n * n


def total(squares):
    return sum(squares)


def words(text):
    if text:
        return text.split()
    return []


@task
def plain(n):
    return n.real


@task(workers=4)
def with_options(n):
    return n.real


@task(branch=True)
def with_branch(n):
    return n.items


@task(bind=task.bind(by=2))
def bound(n, by):
    return n * by


@task(branch=True, bind=task.bind(by=2))
def bound_branch(n, by):
    return n.items[by]


async def fetch(n):
    return n.real


async def pages(n):
    yield n


def synchronous():
    pipeline = task(numbers, branch=True, throttle=1000) | task(square, workers=4)
    for output in (pipeline | task(total, join=True))(101):
        print(output)
    list(pipeline.pipe(task(words, branch=True))(5))
    list((plain | with_options | with_branch | bound | bound_branch)(5))
    list(task(square)(5))
    list(task(square, bind=task.bind(5))())
    list(task(square, branch=True)(5))
    print((pipeline > total)(5))


async def asynchronous():
    pipeline = task(numbers, branch=True) | task(square) | task(fetch, workers=4) | task(square)
    async for output in pipeline(101):
        print(output)
    async for output in (pipeline | task(pages, branch=True))(5):
        print(output)
    async for output in task(workers=1)(fetch)(5):
        print(output)
