"""What type checkers are told about `task`; not imported at run time.

Overloads, because the type of an output depends on `branch`, and the parameters on `bind`: what is
bound need not be given any more, so with `bind` any parameters are accepted.

The order matters: checkers take the first form that fits.  A function of which nobody knows what it
returns (a lambda, one without annotations) fits all of them, and must become a synchronous task, or
a loop over the outputs is called a mistake.  With `branch` the first form is for an `Iterable`,
which no coroutine is.  Without, the first form is for what returns `Never`, which fits unknown
types only; the second is for what returns a type variable (max), which mypy would take for a
coroutine.  Where several forms fit a type with `Any` in it, and differ in their result, mypy says
`Any`.
"""

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from itertools import count
from typing import Any, Literal, Never, ParamSpec, Protocol, TypeVar, overload

from pyper._pipeline import AsyncPipeline, Bound, Pipeline

__all__ = ["TaskMaker"]

P = ParamSpec("P")
R = TypeVar("R")
N = TypeVar("N", bound=Never)


class PlainDecorator(Protocol):
    """`@task(...)`."""

    @overload
    def __call__(self, func: Callable[P, N], /) -> Pipeline[P, N]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, Never], /) -> Pipeline[..., Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Pipeline[P, R]: ...


class BranchDecorator(Protocol):
    """`@task(branch=True, ...)`."""

    @overload
    def __call__(self, func: Callable[P, Iterable[R]], /) -> Pipeline[P, R]: ...
    @overload
    def __call__(self, func: type[Iterable[Any]], /) -> Pipeline[..., Any]: ...
    @overload
    def __call__(self, func: Callable[P, AsyncIterable[R]], /) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, AsyncIterable[R]]], /
    ) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(
        self, func: Callable[P, Coroutine[Any, Any, Iterable[R]]], /
    ) -> AsyncPipeline[P, R]: ...


class BoundDecorator(Protocol):
    """`@task(bind=..., ...)`."""

    @overload
    def __call__(self, func: Callable[P, Never], /) -> Pipeline[..., Any]: ...  # type: ignore[overload-overlap]
    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Pipeline[..., R]: ...


class BoundBranchDecorator(Protocol):
    """`@task(branch=True, bind=..., ...)`."""

    @overload
    def __call__(self, func: Callable[..., Iterable[R]], /) -> Pipeline[..., R]: ...
    @overload
    def __call__(self, func: Callable[..., AsyncIterable[R]], /) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(
        self, func: Callable[..., Coroutine[Any, Any, AsyncIterable[R]]], /
    ) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(
        self, func: Callable[..., Coroutine[Any, Any, Iterable[R]]], /
    ) -> AsyncPipeline[..., R]: ...


class AnyDecorator(Protocol):
    """`@task(branch=flag, ...)`: who knows what an output is."""

    def __call__(self, func: Callable[P, Iterable[Any]], /) -> Pipeline[P, Any]: ...


class TaskMaker(Protocol):
    """The type of `task`: makes a pipeline of one function, or a decorator that does."""

    @overload  # of an overloaded callable, type checkers take the first form; range is worth it
    def __call__(
        self,
        func: type[range],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound | None = None,
        ordered: bool = False,
    ) -> Pipeline[..., int]: ...
    @overload  # the same of count
    def __call__(
        self,
        func: type[count[Any]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound | None = None,
        ordered: bool = False,
    ) -> Pipeline[..., Any]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, Iterable[R]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: None = None,
        ordered: bool = False,
    ) -> Pipeline[P, R]: ...
    @overload  # pyright fits no class with an overloaded, generic __new__ into the form above
    def __call__(
        self,
        func: type[Iterable[Any]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: None = None,
        ordered: bool = False,
    ) -> Pipeline[..., Any]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, AsyncIterable[R]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: None = None,
        ordered: bool = False,
    ) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, Coroutine[Any, Any, AsyncIterable[R]]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: None = None,
        ordered: bool = False,
    ) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, Coroutine[Any, Any, Iterable[R]]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: None = None,
        ordered: bool = False,
    ) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(
        self,
        func: Callable[..., Iterable[R]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound,
        ordered: bool = False,
    ) -> Pipeline[..., R]: ...
    @overload
    def __call__(
        self,
        func: Callable[..., AsyncIterable[R]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: Bound,
        ordered: bool = False,
    ) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(
        self,
        func: Callable[..., Coroutine[Any, Any, AsyncIterable[R]]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: Bound,
        ordered: bool = False,
    ) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(
        self,
        func: Callable[..., Coroutine[Any, Any, Iterable[R]]],
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: Bound,
        ordered: bool = False,
    ) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # see the top
        self,
        func: Callable[P, N],
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: None = None,
        ordered: bool = False,
    ) -> Pipeline[P, N]: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # see the top
        self,
        func: Callable[P, Never],
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound | None = None,
        ordered: bool = False,
    ) -> Pipeline[..., Any]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, Coroutine[Any, Any, R]],
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: None = None,
        ordered: bool = False,
    ) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, R],
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: None = None,
        ordered: bool = False,
    ) -> Pipeline[P, R]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, Coroutine[Any, Any, R]],
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: Literal[False] = False,
        bind: Bound,
        ordered: bool = False,
    ) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, R],
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound,
        ordered: bool = False,
    ) -> Pipeline[..., R]: ...
    @overload
    def __call__(
        self,
        func: Callable[P, Iterable[Any]],
        /,
        *,
        branch: bool,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound | None = None,
        ordered: bool = False,
    ) -> Pipeline[P, Any]: ...
    @overload
    def __call__(
        self,
        func: None = None,
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: None = None,
        ordered: bool = False,
    ) -> BranchDecorator: ...
    @overload
    def __call__(
        self,
        func: None = None,
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: None = None,
        ordered: bool = False,
    ) -> PlainDecorator: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a known branch says more
        self,
        func: None = None,
        /,
        *,
        branch: Literal[True],
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound,
        ordered: bool = False,
    ) -> BoundBranchDecorator: ...
    @overload
    def __call__(  # type: ignore[overload-overlap]  # a known branch says more
        self,
        func: None = None,
        /,
        *,
        branch: Literal[False] = False,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound,
        ordered: bool = False,
    ) -> BoundDecorator: ...
    @overload
    def __call__(
        self,
        func: None = None,
        /,
        *,
        branch: bool,
        join: bool = False,
        workers: int = 1,
        throttle: int = 0,
        multiprocess: bool = False,
        bind: Bound | None = None,
        ordered: bool = False,
    ) -> AnyDecorator: ...
    @staticmethod
    def bind(*args: Any, **kwargs: Any) -> Bound: ...
