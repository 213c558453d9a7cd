"""Workers that are processes.

Imported when the first pipeline with `multiprocess=True` is called.  The extension calls `start()`
for each worker when a run begins and `join()` when its process has ended; `_main()` is what such a
process does.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import enum
import functools
import multiprocessing
import multiprocessing.process
import operator
import os
import pickle
import signal
import sys
import threading
import traceback
from copyreg import __newobj__ as newobj  # type: ignore[attr-defined]
from copyreg import dispatch_table
from multiprocessing import connection, forkserver, popen_fork, reduction, resource_tracker, util
from multiprocessing.process import BaseProcess
from pickle import dumps, loads
from typing import Any, NoReturn

from pyper._pipeline import Task
from pyper._pyper import Plan, attach
from pyper._types import RemoteError

__all__ = [
    "dispatch_table",
    "dump_failure",
    "dumps",
    "harmless",
    "join",
    "load_failure",
    "loads",
    "newobj",
    "start",
]


@dataclasses.dataclass(frozen=True, slots=True)
class _Frozen:
    """Has the methods that dataclasses makes for pickle."""


_FieldsOnly = collections.namedtuple("_FieldsOnly", "")

#: Code that pickle runs to take an object to pieces, and that changes nothing (see small.c): that
#: of named tuples, frozen dataclasses with slots, and enumerations.
harmless = (
    _FieldsOnly.__getnewargs__.__code__,  # type: ignore[attr-defined]
    _Frozen.__getstate__.__code__,  # type: ignore[attr-defined]
    enum.Enum.__reduce_ex__.__code__,
)

_Fds = tuple[int, int, int, int]

_SPARE_FDS = 8  # more than any start method opens at once

_SERVER_ENDED = (
    "task {!r}: multiprocessing's fork server has ended instead of starting a worker's process; it "
    "has said why on stderr (if it imports the main module, what the program does belongs under "
    '`if __name__ == "__main__":`)'
)


# ----------------------------------------------------------------------------- starting


def _start_method() -> tuple[str, bool]:
    """The start method that the user chose; if none, the default one, but no fork beside threads.

    Returns it, and whether the user chose it.
    """
    chosen: str | None = multiprocessing.get_start_method(allow_none=True)
    if chosen is not None:
        return chosen, True
    default = multiprocessing.get_all_start_methods()[0]
    if default == "fork" and threading.active_count() > 1:
        return "forkserver", False
    return default, False


def _nothing_chosen() -> None:
    """Undo that multiprocessing takes the default for the user's choice whenever it is used.

    Until then another thread that starts a process would take it for that, too.
    """
    multiprocessing.set_start_method(None, force=True)


class _Descriptors:
    """Descriptors that a process started by spawn or forkserver gets duplicates of."""

    def __init__(self, fds: _Fds) -> None:
        self.fds = fds

    def __reduce__(self) -> tuple[Any, ...]:
        return (_received, tuple(reduction.DupFd(fd) for fd in self.fds))


def _received(*duplicates: Any) -> _Descriptors:
    first, second, third, fourth = (duplicate.detach() for duplicate in duplicates)
    return _Descriptors((first, second, third, fourth))


def start(
    task: Task,
    name: str,
    place: int,
    count: int,
    index: int,
    worker: int,
    fds: _Fds,
) -> tuple[BaseProcess, int]:
    """Start a worker's process; returns it and its number.

    The task is the `place`-th (from 1 on) of the `count` tasks of the run; `index` and `worker` say
    who this is, as the engine counts them (from 0 on).  The descriptors are borrowed.  A forked
    process inherits the task, any other gets it pickled.  Raises what pickle and multiprocessing
    raise.  Signal handlers wait meanwhile (see interrupt.c).
    """
    _insist_on_a_guard(task)
    with _starting:
        _insist_on_descriptors(fds[0])
        method, chosen = _start_method()
        context = multiprocessing.get_context(method)
        forked = method == "fork"
        what: Any = task if forked else _Pickled(task)
        kind = (task.name, task.branch, task.join)
        if method == "forkserver":
            name = _DeafName(name)
        process = context.Process(  # type: ignore[attr-defined]
            target=_main,
            args=(what, kind, forked, chosen, place, count, index, worker, _Descriptors(fds)),
            name=name,
            daemon=False,
        )
        process._Popen = _launched
        before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
        try:
            _ensure_helpers(method)
            # Ctrl-C is the caller's: the process begins with SIGINT blocked and unblocks it in
            # _main().  (That of a fork server: see _DeafName.)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            process.start()
        except Exception as error:
            _close_pipes_left_by(error)
            if method == "forkserver" and isinstance(error, (ConnectionError, EOFError)):
                raise RuntimeError(_SERVER_ENDED.format(task.name)) from error
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if not chosen:
                _nothing_chosen()
    return process, process.pid


def _ensure_helpers(method: str) -> None:
    """Start multiprocessing's own helpers, if they do not run yet, while no signal is blocked.

    The processes that a fork server starts for the program have the mask with which it began.  And
    a start of the resource tracker unblocks SIGINT.
    """
    if method != "fork":
        resource_tracker.ensure_running()
    if method == "forkserver":
        forkserver.ensure_running()


def _launched(process: BaseProcess) -> Any:
    """What multiprocessing makes to start a process, but polled by one thread at a time."""
    del process._Popen  # type: ignore[attr-defined]  # what is pickled is as it was
    popen = process._Popen(process)  # type: ignore[attr-defined]
    popen.__class__ = _polled_alone(type(popen))
    return popen


@functools.cache
def _polled_alone(kind: Any) -> Any:
    """This kind of Popen, with a lock.

    Whenever multiprocessing starts a process, in any thread, it polls all others.  Whoever polls
    one that has ended takes its exit code from the system and then keeps it; another thread that
    polls between the two would find neither.

    Who waits for one (the program may, which finds it with multiprocessing.active_children()) does
    so without the lock: meanwhile others may end, and the run must be told of their end.

    At the end of a process that multiprocessing has started it waits for that one's children before
    the interpreter joins threads, which is when runs that somebody has left behind are cancelled:
    it would wait in vain.  From then on only a run waits for its workers.
    """

    class Popen(kind):  # type: ignore[misc]
        of_a_worker = True

        def poll(self, flag: int = os.WNOHANG) -> int | None:
            if flag != os.WNOHANG:
                if util.is_exiting():
                    return self.returncode
                _wait_in_earnest(self)
            with _polling:
                code: int | None = super().poll(flag)
                return code

    return Popen


def _wait_in_earnest(popen: Any) -> int | None:
    """Wait for a process, also at the end of this one, and leave its exit code to others.

    Returns it if this process can see it, and nobody has waited for it before: else None.
    """
    if popen.returncode is not None:
        return None
    if popen.method == "forkserver":
        connection.wait([popen.sentinel])
        return None
    return _exit_code(popen.pid)


def _renew_locks() -> None:
    """Locks that a finalizer may take again in the middle of what they are for.

    `_starting`: one thread at a time starts a process, see _nothing_chosen().  Also multiprocessing
    flushes sys.stdout and others when it starts one.  A fork in the middle of that would copy them
    locked, without the GIL.
    """
    global _polling, _starting
    _polling, _starting = threading.RLock(), threading.RLock()


def _after_fork() -> None:
    """Whoever had the locks does not exist in a forked process; and the workers are its parent's.

    At its end multiprocessing would wait for them, which it may not.
    """
    _renew_locks()
    children: set[Any] = multiprocessing.process._children  # type: ignore[attr-defined]
    children -= {child for child in children if hasattr(child._popen, "of_a_worker")}


_renew_locks()
os.register_at_fork(after_in_child=_after_fork)


def _insist_on_a_guard(task: Task) -> None:
    """Raise RuntimeError in a process that is only about to begin: it imports the main module.

    Without that each worker would run the whole program once more.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise RuntimeError(
            f"task {task.name!r}: a worker's process runs the pipeline again, for it imports the "
            'main module; put what the program does under `if __name__ == "__main__":`'
        )


def _insist_on_descriptors(fd: int) -> None:
    """Raise OSError if descriptors run out: multiprocessing would leave some open when they do."""
    spare: list[int] = []
    try:
        for _ in range(_SPARE_FDS):
            spare.append(os.dup(fd))
    finally:
        for duplicate in spare:
            os.close(duplicate)


def _close_pipes_left_by(error: Exception) -> None:
    """Close the pipes that multiprocessing has made, and forgets, if it cannot fork.

    Nor if a fork that has succeeded raises: Python 3.15 warns of it beside other threads, and
    warnings may be errors.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code is popen_fork.Popen._launch.__code__:  # type: ignore[attr-defined]
            for name in ("parent_r", "child_w", "child_r", "parent_w"):
                if name in frame.f_locals:
                    os.close(frame.f_locals[name])


class _DeafName(str):
    """The name of a process that blocks SIGINT as soon as it is told its name.

    A fork server's processes do not begin with the mask of who asks for them.  But they are told
    their name before they import the main module, which may take long.  What is done there must be
    in the standard library: they cannot import pyper yet.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        return (operator.itemgetter(0), ((str.__str__(self), _BlockSigint()),))


class _BlockSigint:
    """Is pickled as a call, which is made where it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (signal.pthread_sigmask, (int(signal.SIG_BLOCK), (int(signal.SIGINT),)))


class _Pickled:
    """A task that goes to a process which does not inherit it; there it is bytes.

    It is pickled when multiprocessing pickles this: only then do its locks, queues and connections
    allow it.
    """

    def __init__(self, task: Task) -> None:
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            return (bytes, (bytes(reduction.ForkingPickler.dumps(self.task)),))
        except Exception as error:
            raise RuntimeError(
                f"task {self.task.name!r}: its function or what is bound to it cannot be pickled, "
                f"so it cannot go to another process: {error}"
            ) from error


def join(process: BaseProcess) -> int | None:
    """Wait for a process that is ending; returns its exit code, or minus the signal.

    None if that cannot be known: SIGCHLD is ignored, or another part of the program has waited for
    it.  multiprocessing would never call such a process ended.  The program may also have closed
    it, which it can find with multiprocessing.active_children(): closed it says nothing any more.
    """
    popen = process._popen  # type: ignore[attr-defined]  # None: it is closed
    try:
        seen = _wait_in_earnest(popen)
        process.join()
        if process.exitcode is None:
            popen.returncode = 0 if seen is None else seen
        else:
            seen = process.exitcode
        process.close()
    except (AttributeError, ValueError):  # it is closed by now, so its end has been seen
        return popen.returncode if popen else None
    return seen


def _exit_code(pid: int) -> int | None:
    """Wait for a child and leave it to others to be waited for; None if it is no child any more."""
    try:
        info = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    except ChildProcessError:
        return None
    assert info is not None
    return info.si_status if info.si_code == os.CLD_EXITED else -info.si_status


# ------------------------------------------------------------------------ in the process


def _nothing(number: int, frame: object) -> None:
    """A handler for SIGINT; SIG_IGN would be inherited by what the function starts."""


def _main(
    what: Any,
    kind: tuple[str, bool, bool],
    forked: bool,
    chosen: bool,
    place: int,
    count: int,
    index: int,
    worker: int,
    descriptors: _Descriptors,
) -> None:
    """What a worker's process does."""
    # A forked one has its parent's: an event loop there would take our signals for its own.
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGINT, _nothing)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    if not chosen:
        _nothing_chosen()
    try:
        task: Task = what if forked else pickle.loads(what)
    except Exception as error:
        task = _one_that_cannot_be_loaded(*kind, error)
    plan = Plan((task._child_step(),))
    pid = os.getpid()
    attach(plan, place, count, task.branch, task.join, index, worker, descriptors.fds)
    if os.getpid() != pid:
        _end_fork()


def _one_that_cannot_be_loaded(name: str, branch: bool, join: bool, error: Exception) -> Task:
    """A task in the place of one that pickle cannot make here: it raises what pickle has raised."""

    def raise_it(*args: object, **kwargs: object) -> NoReturn:
        raise error

    error.add_note(
        f"the process of a worker cannot load the function of task {name!r}: define it at the top "
        f"level of a module that other processes can import"
    )
    raise_it.__name__ = raise_it.__qualname__ = name
    return Task(raise_it, branch, join)


def _end_fork() -> None:
    """End a child that the function has forked: what is to be done at the end is its parent's."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):  # None, or closed
            stream.flush()
    os._exit(0)


# ------------------------------------------------------------------------------ failures


class _RemoteTraceback(Exception):  # noqa: N818 - shown by its name
    """Shows the traceback of another process as the cause of an exception."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'

    def __reduce__(self) -> tuple[Any, ...]:
        return (_RemoteTraceback, (self.text,))


def _traceback_of(exception: BaseException) -> str:
    """The traceback as text: without lines of source if to find those raises.

    They may come from a module's own loader, and there may be warnings, which may be errors.
    """
    try:
        return "".join(traceback.format_exception(exception))
    except BaseException:
        places = [
            f'  File "{frame.f_code.co_filename}", line {line}, in {frame.f_code.co_name}\n'
            for frame, line in traceback.walk_tb(exception.__traceback__)
        ]
        return "".join(["Traceback (most recent call last):\n", *places])


def dump_failure(exception: BaseException) -> bytes:
    """An exception as bytes: itself if pickle can, its words in any case, and its traceback.

    Whatever its own methods raise, SystemExit too: it is the exception that somebody must be told.
    """
    process = f"in process {multiprocessing.current_process().name} ({os.getpid()})"
    text = f"{process}:\n{_traceback_of(exception)}"
    try:
        message = str(exception)
    except BaseException:
        message = "(its str() raises)"
    try:
        notes = [str.__str__(str(note)) for note in getattr(exception, "__notes__", ())]
    except BaseException:
        notes = []
    words = (type(exception).__qualname__, str.__str__(message), text, notes)
    try:
        pickled = dumps(exception, protocol=5)
        if type(loads(pickled)) is not type(exception):
            pickled = b""
    except BaseException:
        pickled = b""
    return dumps((pickled, *words), protocol=5)


def load_failure(data: bytes) -> BaseException:
    """The exception that dump_failure() was given, or a RemoteError with its words."""
    pickled, kind, message, text, notes = loads(data)
    exception: BaseException | None = None
    why = ""
    if pickled:
        try:
            exception = loads(pickled)
        except Exception as error:
            why = f" (it cannot be unpickled here: {error!r})"
    else:
        why = " (it cannot be pickled)"
    if not isinstance(exception, BaseException):
        exception = RemoteError(f"{kind}: {message}{why}")
    with contextlib.suppress(Exception):  # it may refuse notes, or any change (a frozen dataclass)
        known = getattr(exception, "__notes__", ())
        for note in notes:
            if note not in known:
                exception.add_note(note)
    vars(BaseException)["__cause__"].__set__(exception, _RemoteTraceback(text))
    return exception
