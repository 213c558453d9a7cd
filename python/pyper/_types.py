"""Exceptions and records: what the other modules and the extension share.

This module imports nothing of the package, so that the extension can import it.
"""

from typing import NamedTuple

__all__ = ["Cancelled", "Error", "RemoteError", "TaskStats", "WorkerDied"]


class Error(Exception):
    """The base of the exceptions that are pyper's own."""

    __module__ = "pyper"


class WorkerDied(Error):  # noqa: N818 - what happened, as Cancelled
    """A worker's process has died: of a signal, by `os._exit()`, for lack of memory.

    The message names the task, the worker, and the signal or the exit code.
    """

    __module__ = "pyper"

    task: int
    """The place of the task in `Pipeline.tasks`."""
    exitcode: int
    """The exit code, or minus the number of the signal; -2**31 if that is not known."""

    def __init__(self, message: str, task: int = -1, exitcode: int = 0) -> None:
        """Make it of its message, the task's place and how the process ended."""
        super().__init__(message, task, exitcode)
        self.task = task
        self.exitcode = exitcode

    def __str__(self) -> str:
        return str(self.args[0])


class RemoteError(Error):
    """A task's function has raised in another process what cannot be brought here.

    The message has the type and the words of the original; the cause shows its traceback.
    """

    __module__ = "pyper"


class Cancelled(BaseException):
    """The run was cancelled, so what was got of it so far is not everything.

    Raised inside a task's function that reads its inputs (`join=True`), and to whoever waits for an
    output when another thread closes the outputs, or somebody cancels a worker's `asyncio` task.
    Not an `Exception`, so that `except Exception` in a task's function does not take it for a
    failure of its own; let it pass.
    """

    __module__ = "pyper"


class TaskStats(NamedTuple):
    """The counters of one task at one moment, as `Outputs.stats()` returns them."""

    name: str
    """The task's name."""
    workers: int
    """How many workers the task has."""
    alive: int
    """How many of them have started and not left yet."""
    items_in: int
    """Inputs handed to a call, or to a reader of a joined task."""
    items_out: int
    """Outputs emitted."""
    queued: int
    """Outputs emitted that nobody has started on."""
    busy: float
    """Seconds in which workers were not waiting for the pipeline, summed over them."""
    starved: float
    """Seconds in which workers waited for an input, summed over them."""
    blocked: float
    """Seconds in which workers waited for room in the output queue, summed over them."""


TaskStats.__module__ = "pyper"
