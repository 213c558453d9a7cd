"""The engine of pyper, for the package pyper; public types are `Outputs`, `AsyncOutputs` and the
input streams."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator, Iterator
from types import GenericAlias, TracebackType
from typing import Any, Final, Literal, TypeVar, final, overload

from pyper._types import TaskStats

_T_co = TypeVar("_T_co", covariant=True)
_Step = (
    tuple[Callable[..., Any], str, bool, bool, bool, int, int]
    | tuple[Callable[..., Any], str, bool, bool, bool, int, int, bool]
    | tuple[Callable[..., Any], str, bool, bool, bool, int, int, bool, bool]
    | tuple[Callable[..., Any], str, bool, bool, bool, int, int, bool, bool, object]
)

__version__: Final[str]

def attach(
    plan: Plan,
    place: int,
    count: int,
    branch: bool,
    join: bool,
    task: int,
    worker: int,
    fds: tuple[int, int, int, int],
    /,
) -> None:
    """Be a worker of another process's run: returns when it is done.

    `plan` has one step, for the `place`-th (from 1 on) of the `count` tasks of the run; `task` and
    `worker` say who this is, as the engine counts them (from 0 on).  Takes the descriptors.  Raises
    RuntimeError for what the engine refuses, and SystemExit if there was too little of something:
    then the run says of what.
    """

def cancel_live() -> None:
    """Cancel every run that goes on, without waiting, and those that are started later.

    For the end of the interpreter.  The main thread may still run pipelines.
    """

def may_begin() -> None:
    """Undo of cancel_live() that runs which are started later are cancelled."""

def forget_live() -> None:
    """Forget the runs of the parent process, in a forked child, and give it back the signal
    handlers that were put aside there.
    """

@final
class Plan:
    """The engine's form of a pipeline.

    `steps` holds (func, name, branch, join, ordered, workers, throttle, is_async, multiprocess,
    task) for each task; the last three may be left out.  A plan never changes; any number of
    threads may run it.  Raises ValueError for what the engine refuses.
    """

    def __new__(cls, steps: tuple[_Step, ...], /) -> Plan: ...
    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any], /) -> Outputs[Any]:
        """The outputs of `func(*args, **kwargs)` of the first task, sent through the others."""

@final
class Outputs(Generator[_T_co, Any]):
    """The outputs of one call of a pipeline: a generator and a context manager.

    The run starts when the first output is asked for.  Several threads may ask: each output goes to
    one of them.  Dropping the last reference cancels the run and does not wait for it.
    """

    def __iter__(self) -> Outputs[_T_co]: ...
    def __next__(self) -> _T_co:
        """The next output.

        Raises StopIteration at the end, whatever a task's function has raised (once), RuntimeError
        in a forked child or in a function of the run itself, and pyper.Cancelled if another thread
        closes the outputs meanwhile.
        """

    def send(self, value: object, /) -> _T_co:
        """The next output; the value is ignored."""

    @overload
    def throw(
        self,
        kind: type[BaseException],
        value: object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> _T_co:
        """Cancel the run, wait until nothing of it is left, and raise the exception."""

    @overload
    def throw(
        self,
        exception: BaseException,
        value: None = None,
        traceback: TracebackType | None = None,
        /,
    ) -> _T_co: ...
    def close(self) -> None:
        """Cancel the run and wait until nothing of it is left.

        Calls in progress are waited for.  Raises what the run has failed with, if nobody was told
        yet; RuntimeError in a function of the run itself.
        """

    def stats(self) -> tuple[TaskStats, ...]:
        """The counters of every task at this moment; also before the run and after it."""

    def __enter__(self) -> Outputs[_T_co]: ...
    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Literal[False]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@final
class InputStream(Iterator[_T_co]):
    """The inputs of one call of a task with `join=True`, as an iterator.

    It ends when the inputs are complete, and raises pyper.Cancelled when the run was cancelled or
    has failed, so that part of the inputs never looks like all of them.  One thread at a time may
    read; the others get a ValueError.
    """

    def __iter__(self) -> InputStream[_T_co]: ...
    def __next__(self) -> _T_co: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@final
class AsyncOutputs(AsyncGenerator[_T_co, Any]):
    """The outputs of one call of an asynchronous pipeline: an asynchronous generator and context
    manager.

    The run starts when the first output is asked for, and belongs to the event loop that runs then;
    in another loop it is a RuntimeError.  Dropping the last reference, in any thread, cancels the
    run and does not wait for it.
    """

    def __aiter__(self) -> AsyncOutputs[_T_co]: ...
    def __anext__(self) -> Coroutine[Any, Any, _T_co]:
        """The next output; one that is there is had without the event loop.

        Raises StopAsyncIteration at the end, whatever a task's function has raised (once), and
        pyper.Cancelled if the outputs are closed meanwhile, or somebody cancels a worker's task.
        RuntimeError in a forked child, in a function of the run itself and in another loop.  To be
        cancelled loses no output.
        """

    def asend(self, value: object, /) -> Coroutine[Any, Any, _T_co]:
        """The next output; the value is ignored."""

    @overload
    def athrow(
        self,
        kind: type[BaseException],
        value: object = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Coroutine[Any, Any, _T_co]:
        """Cancel the run, wait until nothing of it is left, and raise the exception."""

    @overload
    def athrow(
        self,
        exception: BaseException,
        value: None = None,
        traceback: TracebackType | None = None,
        /,
    ) -> Coroutine[Any, Any, _T_co]: ...
    def aclose(self) -> Coroutine[Any, Any, None]:
        """Cancel the run and wait until nothing of it is left.

        Calls in progress are waited for.  Raises what the run has failed with, if nobody was told
        yet.
        """

    def stats(self) -> tuple[TaskStats, ...]:
        """The counters of every task at this moment; also before the run and after it."""

    def __aenter__(self) -> Coroutine[Any, Any, AsyncOutputs[_T_co]]: ...
    def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
        /,
    ) -> Coroutine[Any, Any, Literal[False]]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...

@final
class AsyncInputStream(AsyncIterator[_T_co]):
    """The inputs of one call of an asynchronous task with `join=True`, as an asynchronous iterator.

    It ends when the inputs are complete, and raises asyncio.CancelledError when the run was
    cancelled or has failed, so that part of the inputs never looks like all of them.  Several tasks
    of the event loop may read: each input goes to one of them.
    """

    def __aiter__(self) -> AsyncInputStream[_T_co]: ...
    def __anext__(self) -> Coroutine[Any, Any, _T_co]: ...
    def __class_getitem__(cls, item: Any, /) -> GenericAlias: ...
