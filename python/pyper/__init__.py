"""Concurrent data pipelines: write functions, join them with `|`, say how many workers each has.

    from pyper import task
    pipeline = task(range, branch=True) | task(hex, workers=4, ordered=True)
    print(list(pipeline(3)))  # ['0x0', '0x1', '0x2']

The options are in help(pyper.task); the guide is docs/python.md in the repository, the examples are
in examples/python, and what is promised at the end of a run is in docs/guarantees.md.
"""

# Layout: `_task.py` makes a pipeline of a function, `_pipeline.py` composes and calls pipelines,
# `_types.py` has the exceptions and records, `_threads.py` the worker threads and the end of the
# interpreter, `_processes.py` the workers that are processes, `_typing.py` what type checkers are
# told about `task`; `_pyper` is the extension that runs everything, built on the engine's C
# interface.  What is public is imported here.

import os as _os

from pyper._pipeline import AsyncConsumer as AsyncConsumer
from pyper._pipeline import AsyncPipeline as AsyncPipeline
from pyper._pipeline import Consumer as Consumer
from pyper._pipeline import Pipeline as Pipeline
from pyper._pipeline import Task as Task
from pyper._pyper import AsyncInputStream as AsyncInputStream
from pyper._pyper import AsyncOutputs as AsyncOutputs
from pyper._pyper import InputStream as InputStream
from pyper._pyper import Outputs as Outputs
from pyper._pyper import __version__ as __version__
from pyper._pyper import cancel_live as _cancel_live
from pyper._pyper import forget_live as _forget_live
from pyper._pyper import may_begin as _may_begin
from pyper._task import task as task
from pyper._threads import leave_at_exit as _leave_at_exit
from pyper._types import Cancelled as Cancelled
from pyper._types import Error as Error
from pyper._types import RemoteError as RemoteError
from pyper._types import TaskStats as TaskStats
from pyper._types import WorkerDied as WorkerDied

__all__ = [
    "AsyncConsumer",
    "AsyncInputStream",
    "AsyncOutputs",
    "AsyncPipeline",
    "Cancelled",
    "Consumer",
    "Error",
    "InputStream",
    "Outputs",
    "Pipeline",
    "RemoteError",
    "Task",
    "TaskStats",
    "WorkerDied",
    "__version__",
    "task",
]

_leave_at_exit(_cancel_live, _may_begin)
if hasattr(_os, "register_at_fork"):
    _os.register_at_fork(after_in_child=_forget_live)
