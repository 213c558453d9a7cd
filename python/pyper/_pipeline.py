"""Pipelines: chains of tasks, to be composed, called and pickled.

A `Pipeline` never changes.  At its first call it makes a plan, the engine's form of it, and keeps
that; whatever a call executes is the extension's business.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import operator
import pickle
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, NoReturn, ParamSpec, Protocol, TypeVar, overload

from pyper._pyper import AsyncOutputs, Outputs, Plan

__all__ = ["AsyncConsumer", "AsyncPipeline", "Consumer", "Pipeline", "Task"]

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)
S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
C = TypeVar("C")
C_co = TypeVar("C_co", covariant=True)

Bound = tuple[tuple[Any, ...], dict[str, Any]]

WORKERS_MAX = 1_000_000
THROTTLE_MAX = 2**63 - 1


@dataclass(frozen=True)
class Task:
    """A function and how to run it.

    Made by `task(...)`, listed by `Pipeline.tasks`.  Making one checks it: TypeError, ValueError or
    RuntimeError name the task and what to do.
    """

    func: Callable[..., Any]
    """The function, or any other callable."""
    branch: bool = False
    """A call has any number of outputs: the items of what it returns."""
    join: bool = False
    """A call gets an iterator over its inputs, not one of them."""
    workers: int = 1
    """How many workers call the function at once."""
    throttle: int = 0
    """At most this many outputs wait for the next task; 0: any number."""
    multiprocess: bool = False
    """Workers are processes."""
    bind: Bound | None = field(default=None, hash=False)
    """Further arguments of the function: (args, kwargs)."""
    ordered: bool = False
    """Outputs leave in the order of the inputs, whatever the workers' order."""
    is_async: bool = field(default=False, init=False)
    """The function is asynchronous: its workers are tasks of the event loop."""
    is_gen: bool = field(default=False, init=False)
    """The function is a generator function."""

    def __post_init__(self) -> None:
        set_field = functools.partial(object.__setattr__, self)
        if not callable(self.func):
            raise TypeError(
                f"task() needs a function or another callable, not {_kind(self.func)}: "
                f"{_short(self.func)}"
            )
        for option in ("branch", "join", "multiprocess", "ordered"):
            set_field(option, bool(getattr(self, option)))
        set_field("workers", self._count("workers", self.workers, 1, WORKERS_MAX))
        set_field("throttle", self._count("throttle", self.throttle, 0, THROTTLE_MAX))
        self._check_bind()
        plain = _plain_function(self.func)
        set_field("is_gen", inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain))
        set_field("is_async", _is_async(self.func))
        self._check_kind()

    @property
    def name(self) -> str:
        """The function's name, for messages, threads and statistics."""
        return _name_of(self.func)

    def _count(self, option: str, value: object, least: int, most: int) -> int:
        """The int that `value` is; bool is refused, which is an int by accident only."""
        if isinstance(value, bool):
            raise TypeError(f"task {self.name!r}: {option} must be an int, not bool")
        try:
            count = operator.index(value)  # type: ignore[arg-type]
        except TypeError:
            raise TypeError(
                f"task {self.name!r}: {option} must be an int, not {_kind(value)}: {_short(value)}"
            ) from None
        if count < least:
            raise ValueError(f"task {self.name!r}: {option} must be at least {least}, not {count}")
        if count > most:
            hint = "; 0 means no bound" if option == "throttle" else ""
            raise ValueError(f"task {self.name!r}: {option} must be at most {most}{hint}")
        return count

    def _check_bind(self) -> None:
        """TypeError if `bind` is not None or what `task.bind()` returns."""
        match self.bind:
            case None:
                return
            case (args, kwargs) if isinstance(self.bind, tuple):
                named = isinstance(kwargs, dict) and all(isinstance(name, str) for name in kwargs)
                if isinstance(args, tuple) and named:
                    return
        raise TypeError(
            f"task {self.name!r}: bind must be what task.bind(...) returns, a tuple of arguments "
            f"and a dict of keyword arguments, not {_short(self.bind)}"
        )

    def _check_kind(self) -> None:
        if self.multiprocess and self.is_async:
            raise ValueError(
                f"task {self.name!r}: an async function cannot have multiprocess=True; leave it out"
            )
        if self.multiprocess and sys.platform != "linux":
            raise RuntimeError(
                f"task {self.name!r}: multiprocess=True needs Linux; leave it out here"
            )
        if self.ordered and self.join and self.workers > 1:
            raise ValueError(
                f"task {self.name!r}: with join=True and {self.workers} workers there is no order "
                f"to keep; leave ordered=True out, or use one worker"
            )

    def _check_crossing(self, *, decorates: bool) -> None:
        """RuntimeError if a process worker's function cannot be pickled, whatever pickle raises.

        While it is being decorated its name does not yet mean anything: then only what can never be
        found by its name is refused, and the rest when the pipeline is called.
        """
        if not self.multiprocess:
            return
        name = getattr(self.func, "__qualname__", None)
        if decorates and isinstance(name, str):
            if "<" not in name:
                return
            why = "it is not found under its name"
        else:
            try:
                pickle.dumps(_Hidden.of(self.func) or self.func)
                return
            except Exception as error:
                why = f"{_kind(error)}: {error}"
        raise RuntimeError(
            f"task {self.name!r}: with multiprocess=True the function must be one that pickle can "
            f"send to another process, and it cannot ({why}); define it at the top level of a "
            f"module: lambdas and functions inside functions will not do"
        )

    def __reduce__(self) -> tuple[Any, ...]:
        func = _Hidden.of(self.func) or self.func
        options = (self.branch, self.join, self.workers, self.throttle, self.multiprocess)
        return (_load_task, (func, *options, self.bind, self.ordered))

    def __repr__(self) -> str:
        default = {"workers": 1, "throttle": 0, "bind": None}
        shown = []
        for option in ("branch", "join", "workers", "throttle", "multiprocess", "ordered", "bind"):
            value = getattr(self, option)
            if value != default.get(option, False):
                shown.append(f"{option}={value!r}")
        return f"{self.name}({', '.join(shown)})"

    def _child_step(self) -> tuple[Any, ...]:
        """What the engine needs to know in the process of a worker."""
        return (*self._step()[:5], 1, 0, False, False, self)

    def _step(self) -> tuple[Callable[..., Any], str, bool, bool, bool, int, int, bool, bool, Task]:
        """What the engine needs to know."""
        func = self.func
        if self.bind is not None:
            func = functools.partial(func, *self.bind[0], **self.bind[1])
        return (
            func, self.name, self.branch, self.join, self.ordered, self.workers, self.throttle,
            self.is_async, self.multiprocess, self,
        )  # fmt: skip


class Pipeable(Protocol[S_co]):
    """What type checkers see in a pipeline that is piped into: its output, not its parameters.

    With `Pipeline[..., S]` instead, mypy would infer the argument from it: refuse the lambda in
    `p | task(lambda x: 5)`, and take sum for an async function in `p | task(sum, join=True)`.
    """

    @property
    def _output(self) -> S_co: ...


class AsyncPipeable(Pipeable[S_co], Protocol[S_co]):
    """The same of an `AsyncPipeline`."""

    @property
    def _async_output(self) -> S_co: ...


class Pipeline(Generic[P, R_co]):
    """A chain of tasks.

    `P` are the parameters of the first task's function, `R` is the type of one output.  Immutable;
    may be called any number of times, from any thread, several times at once.  With an asynchronous
    task it is an `AsyncPipeline`.
    """

    if TYPE_CHECKING:

        @property
        def _output(self) -> R_co: ...

    def __new__(cls, tasks: tuple[Task, ...]) -> Pipeline[P, R_co]:
        """A pipeline of this class, or an `AsyncPipeline` where one is needed."""
        if not isinstance(tasks, (tuple, list)):  # what can be gone through only once will not do
            raise TypeError(f"a pipeline is made of a tuple of tasks, not of {_kind(tasks)}")
        is_async = any(isinstance(item, Task) and item.is_async for item in tasks)
        return object.__new__(AsyncPipeline if is_async and cls is Pipeline else cls)

    def __init__(self, tasks: tuple[Task, ...]) -> None:
        """Make a pipeline of at least one task; `task(...)` and `|` are the usual way."""
        tasks = tuple(tasks)
        if not tasks:
            raise ValueError("a pipeline needs at least one task")
        for item in tasks:
            if not isinstance(item, Task):
                raise TypeError(f"a pipeline is made of tasks, not of {_kind(item)}")
        self.__dict__["_tasks"] = tasks
        self.__dict__["_plan"] = None
        if isinstance(self, AsyncPipeline) != any(item.is_async for item in tasks):
            raise TypeError("a pipeline is an AsyncPipeline if, and only if, a task of it is async")
        if len(tasks) == 1:
            self._look_like(tasks[0].func)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, from the first to the last."""
        tasks: tuple[Task, ...] = self.__dict__["_tasks"]
        return tasks

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Outputs[R_co]:
        """The outputs of the pipeline for these arguments of the first task's function.

        Starts nothing: the first output asked for does.  Raises RuntimeError if the first task has
        `join=True` or several workers, or if a function cannot be pickled that must be.
        """
        plan: Plan | None = self.__dict__["_plan"]
        outputs: Outputs[R_co] = (plan or self._make_plan()).run(args, kwargs)
        return outputs

    @overload
    def pipe(self, other: AsyncPipeable[S], /) -> AsyncPipeline[P, S]: ...
    @overload
    def pipe(self, other: Pipeable[S], /) -> Pipeline[P, S]: ...
    def pipe(self, other: Pipeable[S], /) -> Pipeline[P, S]:
        """The pipeline that hands each output of this one to `other`; the same as `self | other`.

        Raises TypeError if `other` is not a pipeline.
        """
        return Pipeline(self.tasks + _tasks_of(other))

    @overload
    def __or__(self, other: AsyncPipeable[S], /) -> AsyncPipeline[P, S]: ...
    @overload
    def __or__(self, other: Pipeable[S], /) -> Pipeline[P, S]: ...
    def __or__(self, other: Pipeable[S], /) -> Pipeline[P, S]:
        return self.pipe(other)

    def consume(self, consumer: Callable[[Outputs[R_co]], C], /) -> Consumer[P, C]:
        """The function that calls `consumer` with the outputs; the same as `self > consumer`.

        Raises TypeError if `consumer` is not callable.
        """
        return Consumer(self, consumer)

    def __gt__(self, consumer: Callable[[Outputs[R_co]], C], /) -> Consumer[P, C]:
        return self.consume(consumer)

    def __repr__(self) -> str:
        return f"<{_kind(self)} {' | '.join(map(repr, self.tasks))}>"

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"a pipeline cannot be changed: {name!r} cannot be set")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"a pipeline cannot be changed: {name!r} cannot be deleted")

    def __reduce__(self) -> str | tuple[Any, ...]:
        """By name, if the pipeline bears the name of a function it decorates; else by its tasks."""
        name = self.__dict__.get("__qualname__")
        if name and _look_up(self.__dict__.get("__module__"), name) is self:
            return str(name)
        return (_load_pipeline, (self.tasks,))

    def _look_like(self, func: Callable[..., Any]) -> None:
        """Take over what describes the function: __wrapped__, __name__, __doc__ and so on."""
        for name in functools.WRAPPER_ASSIGNMENTS:
            with contextlib.suppress(AttributeError):
                self.__dict__[name] = getattr(func, name)
        self.__dict__["__wrapped__"] = func

    def _make_plan(self) -> Plan:
        """The engine's form of this pipeline.  Two threads may both make one: either will do."""
        first = self.tasks[0]
        if first.join:
            raise RuntimeError(
                f"task {first.name!r} is the first of the pipeline, so there is nothing for it to "
                f"join; leave join=True out, or pipe another task into it"
            )
        if first.workers > 1:
            raise RuntimeError(
                f"task {first.name!r} is the first of the pipeline and called once, so it cannot "
                f"have {first.workers} workers; leave workers out, or pipe another task into it"
            )
        for item in self.tasks:
            item._check_crossing(decorates=False)
        plan = Plan(tuple(item._step() for item in self.tasks))
        self.__dict__["_plan"] = plan
        return plan


class AsyncPipeline(Pipeline[P, R_co]):
    """A chain of tasks of which at least one is asynchronous.

    Its outputs are an asynchronous generator, and belong to the event loop that asks for the first
    of them; synchronous tasks run in threads or processes, as ever.
    """

    if TYPE_CHECKING:

        @property
        def _async_output(self) -> R_co: ...

    def __call__(  # type: ignore[override]
        self, /, *args: P.args, **kwargs: P.kwargs
    ) -> AsyncOutputs[R_co]:
        """The outputs of the pipeline for these arguments of the first task's function.

        Starts nothing: the first output asked for does.  Raises RuntimeError if the first task has
        `join=True` or several workers, or if a function cannot be pickled that must be.
        """
        plan: Plan | None = self.__dict__["_plan"]
        outputs: Any = (plan or self._make_plan()).run(args, kwargs)
        return outputs  # type: ignore[no-any-return]  # the plan of asynchronous tasks makes these

    def pipe(self, other: Pipeable[S], /) -> AsyncPipeline[P, S]:
        """The pipeline that hands each output of this one to `other`; the same as `self | other`.

        Raises TypeError if `other` is not a pipeline.
        """
        return AsyncPipeline(self.tasks + _tasks_of(other))

    def __or__(self, other: Pipeable[S], /) -> AsyncPipeline[P, S]:
        return self.pipe(other)

    def consume(  # type: ignore[override]
        self, consumer: Callable[[AsyncOutputs[R_co]], Awaitable[C]], /
    ) -> AsyncConsumer[P, C]:
        """The async function that awaits `consumer` with the outputs; the same as
        `self > consumer`.

        Raises TypeError if `consumer` is not an async function.
        """
        return AsyncConsumer(self, consumer)

    def __gt__(  # type: ignore[override]
        self, consumer: Callable[[AsyncOutputs[R_co]], Awaitable[C]], /
    ) -> AsyncConsumer[P, C]:
        return self.consume(consumer)


class Consumer(Generic[P, C_co]):
    """A pipeline and what consumes its outputs, as one function; made by `pipeline > consumer`."""

    def __init__(self, pipeline: Pipeline[P, S], consumer: Callable[[Outputs[S]], C_co]) -> None:
        """Bring the two together.  Raises TypeError if `consumer` is not callable."""
        if not callable(consumer):
            raise TypeError(
                f"the outputs of a pipeline can only go to a function or another callable, not to "
                f"{_kind(consumer)}: {_short(consumer)}"
            )
        self.pipeline: Pipeline[P, Any] = pipeline
        self.consumer = consumer

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C_co:
        """Call the pipeline, and return what the consumer makes of its outputs."""
        return self.consumer(self.pipeline(*args, **kwargs))

    def __bool__(self) -> NoReturn:
        raise TypeError(
            "a > b > c means (a > b) and (b > c) in Python (a chained comparison), so only one "
            "consumer can follow a pipeline; write c(...) around the call: "
            "c((pipeline > consumer)(...))"
        )

    def __repr__(self) -> str:
        return f"<Consumer {self.pipeline!r} > {_name_of(self.consumer)}>"


class AsyncConsumer(Generic[P, C_co]):
    """An asynchronous pipeline and what consumes its outputs, as one async function."""

    def __init__(
        self,
        pipeline: AsyncPipeline[P, S],
        consumer: Callable[[AsyncOutputs[S]], Awaitable[C_co]],
    ) -> None:
        """Bring the two together.  Raises TypeError if `consumer` is not an async function."""
        if not callable(consumer) or not any(
            map(inspect.iscoroutinefunction, _candidates(consumer))
        ):
            raise TypeError(
                f"the outputs of an asynchronous pipeline can only go to an async function, not to "
                f"{_kind(consumer)}: {_short(consumer)}; write it with async def"
            )
        self.pipeline: AsyncPipeline[P, Any] = pipeline
        self.consumer = consumer

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C_co:
        """Call the pipeline, and return what the consumer makes of its outputs."""
        return await self.consumer(self.pipeline(*args, **kwargs))

    __bool__ = Consumer.__bool__

    def __repr__(self) -> str:
        return f"<AsyncConsumer {self.pipeline!r} > {_name_of(self.consumer)}>"


class _Hidden:
    """A function that cannot be found under its own name, because its pipeline bears it."""

    def __init__(self, module: str, name: str) -> None:
        self.module = module
        self.name = name

    @classmethod
    def of(cls, func: Callable[..., Any]) -> _Hidden | None:
        """What stands for `func`, if it is hidden behind its own decorator."""
        module = getattr(func, "__module__", None)
        name = getattr(func, "__qualname__", None)
        found = _look_up(module, name) if name else None
        if module and isinstance(found, Pipeline) and found.__dict__.get("__wrapped__") is func:
            return cls(module, str(name))
        return None

    def load(self) -> Callable[..., Any]:
        """The function."""
        importlib.import_module(self.module)
        found = _look_up(self.module, self.name)
        if not isinstance(found, Pipeline):
            raise AttributeError(f"{self.module}.{self.name} is not a pipeline any more")
        return found.tasks[0].func


def _load_task(func: Callable[..., Any] | _Hidden, *options: Any) -> Task:
    return Task(func.load() if isinstance(func, _Hidden) else func, *options)


def _load_pipeline(tasks: tuple[Task, ...]) -> Pipeline[..., Any]:
    return Pipeline(tasks)


def _tasks_of(pipeline: object) -> tuple[Task, ...]:
    """The tasks of what is piped into.  Raises TypeError if it is not a pipeline."""
    if isinstance(pipeline, Pipeline):
        return pipeline.tasks
    mend = f"; write task({_name_of(pipeline)})" if callable(pipeline) else ""
    raise TypeError(f"cannot pipe into {_short(pipeline)}, which is not a pipeline{mend}")


def _look_up(module: str | None, name: str) -> object:
    """What `name` means in an imported module; None if it means nothing."""
    found: object = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _unwrapped(func: object) -> object:
    """What partials and static methods call."""
    while isinstance(func, functools.partial | staticmethod):
        func = func.func if isinstance(func, functools.partial) else func.__func__
    return func


def _plain_function(func: object) -> object:
    """The function behind partials, static methods and objects with `__call__`."""
    func = _unwrapped(func)
    if inspect.isroutine(func) or isinstance(func, type):
        return func
    return getattr(type(func), "__call__", func)  # noqa: B004


def _candidates(func: object) -> tuple[object, object]:
    """What may be marked as asynchronous: the callable itself, or the function behind it."""
    return _unwrapped(func), _plain_function(func)


def _is_async(func: object) -> bool:
    """Is it an async function, an async generator function, or an object that is called as one?"""
    func = _unwrapped(func)
    if isinstance(func, AsyncPipeline):
        return True
    return any(
        inspect.iscoroutinefunction(one) or inspect.isasyncgenfunction(one)
        for one in _candidates(func)
    )


def _name_of(func: object) -> str:
    """A name for a callable."""
    func = _unwrapped(func)
    if isinstance(func, Pipeline) and len(func.tasks) > 1:
        return " | ".join(item.name for item in func.tasks)
    name = getattr(func, "__name__", None)
    return name if isinstance(name, str) else type(func).__name__


def _kind(value: object) -> str:
    return type(value).__name__


def _short(value: object) -> str:
    """A repr that does not fill the screen, whatever the value's own does."""
    try:
        text = repr(value)
    except Exception:
        text = object.__repr__(value)
    return text if len(text) <= 80 else text[:77] + "..."
