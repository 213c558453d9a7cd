"""What type checkers are told about `task`; not imported at run time.

Overloads, because the type of an output depends on `branch`, and the parameters on `bind`: what is
bound need not be given any more, so with `bind` any parameters are accepted.
"""

from collections.abc import AsyncIterable, Callable, Coroutine, Iterable
from typing import Any, Literal, ParamSpec, Protocol, TypeVar, overload

from pyper._pipeline import AsyncPipeline, Bound, Pipeline

__all__ = ["TaskMaker"]

P = ParamSpec("P")
R = TypeVar("R")


class PlainDecorator(Protocol):
    """`@task(...)`."""

    @overload
    def __call__(self, func: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncPipeline[P, R]: ...
    @overload
    def __call__(self, func: Callable[P, R], /) -> Pipeline[P, R]: ...


class BranchDecorator(Protocol):
    """`@task(branch=True, ...)`."""

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
    @overload
    def __call__(self, func: Callable[P, Iterable[R]], /) -> Pipeline[P, R]: ...


class BoundDecorator(Protocol):
    """`@task(bind=..., ...)`."""

    @overload
    def __call__(self, func: Callable[..., Coroutine[Any, Any, R]], /) -> AsyncPipeline[..., R]: ...
    @overload
    def __call__(self, func: Callable[..., R], /) -> Pipeline[..., R]: ...


class BoundBranchDecorator(Protocol):
    """`@task(branch=True, bind=..., ...)`."""

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
    @overload
    def __call__(self, func: Callable[..., Iterable[R]], /) -> Pipeline[..., R]: ...


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
    def __call__(
        self,
        func: Callable[..., Coroutine[Any, Any, R]],
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
        func: Callable[..., R],
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
