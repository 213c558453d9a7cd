"""What a run needs is refused: threads, processes, descriptors, shared memory, memory.

Each program sets a limit that leaves nothing over, then a higher one, until a run succeeds; on the
way every run must fail with an error that says what ran out, leave nothing behind, and the program
must be able to go on.
"""

from __future__ import annotations

import os
import sys
import textwrap

import pytest

from helpers import Program, run_program

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="these are limits of Linux")

BEGIN = """
import asyncio, atexit, contextlib, gc, itertools, multiprocessing, os, resource, threading, time
import warnings
import pyper
from pyper import task

warnings.filterwarnings("ignore", ".*multi-threaded, use of fork", DeprecationWarning)
multiprocessing.set_start_method("fork")

def inc(x):
    return x + 1

async def ainc(x):
    return x + 1

def produce(n):
    yield from range(n)

numbers = task(produce, branch=True, throttle=3)
PIPELINES = {
    "thread": numbers | task(inc, workers=3) | task(inc),
    "process": numbers | task(inc, workers=2, multiprocess=True) | task(inc),
    "async": numbers | task(ainc, workers=3) | task(inc),
    "async and process": numbers | task(inc, multiprocess=True) | task(ainc, workers=2),
}
loop = asyncio.new_event_loop()
atexit.register(loop.close)

async def collect(outputs):
    return [x async for x in outputs]

def run(kind):
    outputs = PIPELINES[kind](20)
    if "async" in kind:
        return sorted(loop.run_until_complete(collect(outputs)))
    return sorted(outputs)

def everything():
    files = len(os.listdir("/proc/self/fd"))
    # A thread that has ended is still there if there was no memory to strike it out.
    threads = {thread for thread in threading.enumerate() if thread.is_alive()}
    return threads, files, multiprocessing.active_children()

def until_nothing_is_left(before):
    deadline = time.monotonic() + 40
    while everything() != before:
        assert time.monotonic() < deadline, (everything(), before)
        time.sleep(0.001)

def until_all_have_begun():
    "What has no memory to begin is tried elsewhere."
    deadline = time.monotonic() + 40
    while any("_pyper_entry" in vars(thread) for thread in threading.enumerate()):
        assert time.monotonic() < deadline, threading.enumerate()
        time.sleep(0.001)

def said(error):
    "All that an error says."
    texts = []
    while error:
        texts += [f"{type(error).__name__}: {error}", *getattr(error, "__notes__", ())]
        error = error.__cause__
    return " ".join(texts)

def raise_limit(kind, limit, values):
    "Run under higher and higher limits, until that succeeds; what the errors have said."
    for _ in range(3):
        assert run(kind) == list(range(2, 22))  # what is kept for later runs is there now
    gc.freeze()  # what is there already need not be gone through each time
    before = everything()
    soft, hard = resource.getrlimit(limit)
    errors = []
    for value in itertools.islice(values, 300):
        resource.setrlimit(limit, (value, hard))
        try:
            found = run(kind)
            error = None
        except Exception as caught:
            error = said(caught)
        resource.setrlimit(limit, (soft, hard))
        gc.collect()
        until_nothing_is_left(before)
        assert run(kind) == list(range(2, 22))  # it can go on
        if error is None:
            assert found == list(range(2, 22))
            return errors
        errors.append(error)
    raise AssertionError(f"never enough: {errors[-1]}")
"""


def limited(source: str) -> str:
    return run_program(BEGIN + textwrap.dedent(source))


@pytest.mark.skipif(os.getuid() != 0, reason="takes on a user of its own, to count its threads")
@pytest.mark.parametrize("kind", ["thread", "process", "async", "async and process"])
def test_threads_and_processes_are_refused(kind: str) -> None:
    """Each of them once; a thread that has just ended may still count, and be refused as well."""
    least = {"thread": 5, "process": 5, "async": 2, "async and process": 3}[kind]
    printed = limited(f"""
        run({kind!r})  # what it imports may be out of that user's reach
        os.setuid(61234)
        errors = raise_limit({kind!r}, resource.RLIMIT_NPROC, itertools.count(1))
        assert len(errors) >= {least}, errors
        for error in errors:
            assert "thread" in error or "process could not be started" in error, error
        print("done")
    """)
    assert printed == "done"


@pytest.mark.parametrize("kind", ["thread", "process", "async", "async and process"])
def test_descriptors_are_refused(kind: str) -> None:
    """A run of threads alone needs none."""
    least = {"thread": 0, "process": 4, "async": 1, "async and process": 4}[kind]
    printed = limited(f"""
        first = len(os.listdir("/proc/self/fd")) - 1
        errors = raise_limit({kind!r}, resource.RLIMIT_NOFILE, itertools.count(first))
        assert len(errors) >= {least}, errors
        for error in errors:
            assert "no file descriptors" in error or "Too many open files" in error, error
        print("done")
    """)
    assert printed == "done"


@pytest.mark.parametrize("kind", ["process", "async and process"])
def test_shared_memory_is_refused(kind: str) -> None:
    """A limit on the size of files is one on that of shared memory."""
    printed = limited(f"""
        errors = raise_limit({kind!r}, resource.RLIMIT_FSIZE, itertools.count(0, 1 << 20))
        assert len(errors) >= 2, errors
        for error in errors:
            assert error.startswith("MemoryError: "), error
            assert "out of memory" in error
        print("done")
    """)
    assert printed == "done"


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "pickled", "with buffers"])
def test_an_item_is_larger_than_the_memory(kind: str) -> None:
    printed = limited(f"""
        class Pickled:
            def __init__(self, data):
                self.data = data

        class WithBuffers(Pickled):
            def __reduce_ex__(self, protocol):
                import pickle
                return WithBuffers, (pickle.PickleBuffer(self.data),)

        KIND = {{"bytes": bytes, "bytearray": bytearray, "pickled": lambda n: Pickled(bytes(n)),
                 "with buffers": lambda n: WithBuffers(bytearray(n))}}[{kind!r}]

        def make(n):
            return KIND(n)

        def size(x):
            return len(memoryview(getattr(x, "data", x)))

        def some_of_it(n):
            yield KIND(10)
            yield KIND(n)

        pipelines = [
            task(some_of_it, branch=True) | task(size, multiprocess=True),
            task(some_of_it, branch=True, multiprocess=True) | task(size),
            task(some_of_it, branch=True, multiprocess=True) | task(size, multiprocess=True),
        ]
        limit = resource.RLIMIT_FSIZE
        soft, hard = resource.getrlimit(limit)
        before = None
        for pipeline in pipelines:
            assert list(pipeline(1000)) == [10, 1000]
            before = before or everything()
            resource.setrlimit(limit, (32 << 20, hard))
            got = []
            try:
                got += list(pipeline(64 << 20))
                error = None
            except MemoryError as caught:
                error = said(caught)
            resource.setrlimit(limit, (soft, hard))
            assert got in ([], [10]), got
            assert "task 'some_of_it' (1 of 2)" in error, error
            assert "out of memory" in error, error
            gc.collect()
            until_nothing_is_left(before)
            assert list(pipeline(64 << 20)) == [10, 64 << 20]
        print("done")
    """)
    assert printed == "done"


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_an_allocation_fails_during_a_run(kind: str) -> None:
    """Each in turn, once and for some that follow; for a run that begins see below.

    Items have slots: since Python 3.13 an object with a dictionary of its own may need memory to
    go, and says so on stderr, past every hook, when there is none.
    """
    pytest.importorskip("_testcapi")
    printed = limited(f"""
        import _testcapi, sys

        class Item:
            __slots__ = ("value",)

            def __init__(self, value):
                self.value = value

        def items():
            for i in itertools.count():
                yield Item(i)

        def same(x):
            return x

        # By itself, because handling what it raises may need the memory that is refused, too.
        def without_memory(outputs, got, first, following):
            try:
                _testcapi.set_nomemory(first, first + following)
                for i in range(6):
                    got.append(next(outputs).value)
            finally:
                _testcapi.remove_mem_hooks()

        unraisable = []
        sys.unraisablehook = lambda args: unraisable.append(type(args.exc_value))

        processes = {kind == "process"}
        pipeline = (
            task(items, branch=True, throttle=1)
            | task(same, workers=2, ordered=True, throttle=1, multiprocess=processes)
            | task(same, throttle=1)
        )
        gc.freeze()  # what is there already need not be gone through 500 times
        before = None
        failed = 0
        for first in range(60 if processes else 250):
            for following in (1, 4):
                with pipeline() as outputs:
                    got = [next(outputs).value, next(outputs).value]
                    until_all_have_begun()
                    error = None
                    try:
                        without_memory(outputs, got, first, following)
                    except BaseException as caught:
                        error = caught
                    _testcapi.remove_mem_hooks()
                    assert got == list(range(len(got))), got
                    if error:
                        failed += 1
                        assert "emory" in said(error), said(error)
                    error = None
                    with contextlib.suppress(MemoryError):
                        outputs.close()
                del outputs
                gc.collect()
                before = before or everything()
                until_nothing_is_left(before)
        assert failed > 10, failed
        assert set(unraisable) <= {{MemoryError}}, unraisable
        print("done")
    """)
    assert printed == "done"


@pytest.mark.skipif(
    sys.version_info >= (3, 12),
    reason="a threading.Thread that has no memory to begin with ends CPython 3.12.1 and 3.13.0",
)
def test_an_allocation_fails_while_a_run_begins() -> None:
    """Each in turn, once, for some that follow, and from there on.

    The standard library's own threads do not survive that: Thread.start() waits for ever.  What
    they leave undone they say on stderr and to sys.unraisablehook.
    """
    pytest.importorskip("_testcapi")
    program = """
        import _testcapi, sys

        sys.unraisablehook = lambda args: None
        pipeline = numbers | task(inc, workers=2, ordered=True, throttle=1) | task(inc, throttle=1)
        for _ in range(3):
            assert list(pipeline(20)) == list(range(2, 22))
        gc.freeze()  # what is there already need not be gone through 700 times
        before = everything()

        def attempt(outputs, got, first, last):
            "What it has raised.  In a function: a global name may need memory."
            _testcapi.set_nomemory(first, last)
            try:
                for x in outputs:
                    got.append(x)
            except BaseException as caught:
                return caught
            finally:
                _testcapi.remove_mem_hooks()

        failed = succeeded = 0
        for first in range(0, 700, 3):
            for following in (1, 4, 1000):
                outputs, got = pipeline(20), []
                error = attempt(outputs, got, first, first + following)
                assert got == list(range(2, 2 + len(got))), got
                if error is None:
                    succeeded += 1
                    assert len(got) == 20
                else:
                    failed += 1
                    words = ("emory", "allocate lock", "start new thread")
                    assert any(word in said(error) for word in words), said(error)
                error = None
                with contextlib.suppress(MemoryError):
                    outputs.close()
                del outputs
                gc.collect()
                until_nothing_is_left(before)
        assert failed > 100 and succeeded > 10, (failed, succeeded)
        print("done")
    """
    printed, errors, status = Program(BEGIN + textwrap.dedent(program)).end()
    assert (printed, status) == ("done", 0), errors
