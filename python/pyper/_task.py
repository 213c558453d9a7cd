"""`task`: makes a pipeline of one function."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pyper._pipeline import Bound, Pipeline, Task

__all__ = ["task"]

if TYPE_CHECKING:
    # Type checkers take what __new__ returns for an instance of its class, so they are shown a
    # callable object instead of a class; it says the same.
    from pyper._typing import TaskMaker

    task: TaskMaker
else:

    class task:  # noqa: N801 - used like a function
        """Make a pipeline of one task.

        `task(func, **options)` returns a `Pipeline`; without a function, `task(**options)` returns
        a decorator, and `@task` alone decorates as well.

        func:         any callable (positional only)
        branch:       a call has any number of outputs, the items of the iterable it returns
        join:         a call gets an iterator over its inputs, not one of them
        workers:      how many workers call the function at once
        throttle:     at most this many outputs wait for the next task; 0 means any number
        multiprocess: workers are processes
        bind:         further arguments of the function, from `task.bind(...)`
        ordered:      outputs leave in the order of the inputs, whatever the workers' order

        Raises TypeError, ValueError or RuntimeError, which name the task and what to do, for
        options that are wrong or do not go together.
        """

        def __new__(
            cls,
            func: Callable[..., Any] | None = None,
            /,
            *,
            branch: bool = False,
            join: bool = False,
            workers: int = 1,
            throttle: int = 0,
            multiprocess: bool = False,
            bind: Bound | None = None,
            ordered: bool = False,
        ):
            def make(func: Callable[..., Any], /) -> Pipeline[..., Any]:
                item = Task(func, branch, join, workers, throttle, multiprocess, bind, ordered)
                item._check_crossing(decorates=True)
                return Pipeline((item,))

            if func is not None:
                made = make(func)
                made.tasks[0]._check_crossing(decorates=False)
                return made
            Task(_placeholder, branch, join, workers, throttle, multiprocess, bind, ordered)
            return make

        @staticmethod
        def bind(*args: Any, **kwargs: Any) -> Bound:
            """Arguments for the option `bind`: the function gets them beside its input.

            As with `functools.partial`, positional ones come before the input.
            """
            return args, kwargs


def _placeholder() -> None:
    """Stands for the function to be decorated, so that wrong options are refused at their line."""


_placeholder.__name__ = "@task(...)"  # for messages
