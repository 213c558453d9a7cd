"""The threads that carry workers, and the end of the interpreter.

The engine's extension makes one `WorkerThread` per worker of a run and joins it when the run
ends.  They are no daemons, so the interpreter waits for them; `leave_at_exit()` sees to it that it
does not wait in vain.
"""

import atexit
import threading
import time
from collections.abc import Callable
from typing import Protocol

__all__ = ["WorkerThread", "breathe", "leave_at_exit"]


def breathe() -> None:
    """What a thread calls now and then, see pyper_python.h: it can be stopped here."""


class Entry(Protocol):
    """How a thread gets into the engine: a `WorkerEntry` of the extension."""

    def begin(self) -> None:
        """Do what `Thread._bootstrap()` does; if that fails, get into the engine all the same."""

    def __call__(self) -> None:
        """Get into the engine, and come back when the worker has left."""


class _Begun(threading.Event):
    """Whether a thread has begun.  `Thread.start()` waits for its sign of life; ours need not.

    That saves two changes between threads for each worker, and a start that never returns when
    the thread has no memory to begin with.
    """

    def wait(self, timeout: float | None = None) -> bool:
        """What `Thread.start()` calls."""
        return True

    def wait_in_earnest(self, timeout: float | None = None) -> bool:
        return super().wait(timeout)


class WorkerThread(threading.Thread):
    """A thread that carries one worker of a run, named after its task."""

    def __init__(self, name: str, entry: Entry) -> None:
        """Make the thread; it calls `entry.begin()`, and in there `entry` itself, once."""
        super().__init__(name=name, daemon=False)
        self._pyper_entry = entry
        self._pyper_begun = self._started = _Begun()
        self.will_begin = False  # or has begun; until start() has returned, or raised, nobody knows
        self._pyper_unknown = False
        self._bootstrap = entry.begin

    def start(self) -> None:
        """As always, but without waiting for the thread to begin."""
        try:
            super().start()
        except (RuntimeError, MemoryError):  # there is no thread to be had
            raise
        except BaseException:  # a signal handler's
            self.will_begin = self in threading.enumerate()
            raise
        self.will_begin = True

    def run(self) -> None:
        """Call the entry, and let go of it: the thread object may live longer than its run."""
        entry = self._pyper_entry
        del self._pyper_entry, self._bootstrap
        entry()

    def join(self, timeout: float | None = None) -> None:
        """As always, also for a thread that is about to begin."""
        begun = self._pyper_begun
        until = None if timeout is None else time.monotonic() + timeout
        if (begun.is_set() or begun.wait_in_earnest(timeout)) and not self._pyper_unknown:
            super().join(None if until is None else max(0.0, until - time.monotonic()))

    def is_alive(self) -> bool:
        """As always, also for a thread that is about to begin."""
        if not self._pyper_begun.is_set():
            return self.will_begin
        return not self._pyper_unknown and super().is_alive()

    def end(self) -> None:
        """What the engine calls when the worker has left: wait until the thread has ended.

        There may have been no memory for `threading` to get to know the thread; then it forgets it.
        """
        if not self._pyper_begun.is_set():
            self._pyper_unknown = True
            getattr(threading, "_limbo", {}).pop(self, None)
            self._pyper_begun.set()
        self.join()
        # Else threading's set of all threads notices when this one goes, in Python code of its own
        # in which a signal handler's exception would be printed and lost.
        getattr(threading, "_dangling", set()).discard(self)


def leave_at_exit(cancel_live: Callable[[], None], may_begin: Callable[[], None]) -> None:
    """Have `cancel_live` called when the interpreter ends, early enough that it can end.

    The interpreter joins all threads that are no daemons before it calls what `atexit` knows, so a
    run that somebody has left behind would keep it for ever.  `threading._register_atexit` knows
    what to call before that.  Threads of the program that still go on may be using their runs
    rightly: then the runs are cancelled when the last of those threads has ended (Python 3.12.0
    and 3.12.1 refuse to start the thread that would wait for that: there they are cancelled now).

    `may_begin` is called when the interpreter has joined all threads: what `atexit` calls after
    that may run pipelines, in threads too.
    """

    def cancel_after_others() -> None:
        while others := _threads_of_the_program():
            for thread in others:
                thread.join()
        cancel_live()

    def leave() -> None:
        atexit.register(may_begin)  # the last to be registered is the first to be called
        if _threads_of_the_program():
            try:
                threading.Thread(target=cancel_after_others, name="pyper-exit").start()
                return
            except RuntimeError:  # no thread can be had any more (always in 3.12.0 and 3.12.1)
                pass
        cancel_live()

    register: Callable[[Callable[[], None]], object]
    register = getattr(threading, "_register_atexit", atexit.register)
    try:
        register(leave)
    except RuntimeError:  # imported while the interpreter ends: the next best place
        atexit.register(leave)


def _threads_of_the_program() -> list[threading.Thread]:
    """The threads that the interpreter waits for and that are neither ours nor the main one.

    One that has no number was about to be started when a signal handler raised: it never will be.
    """
    mine = (threading.main_thread(), threading.current_thread())
    return [
        thread
        for thread in threading.enumerate()
        if not thread.daemon
        and thread.ident is not None
        and thread not in mine
        and not isinstance(thread, WorkerThread)
    ]
