"""What every Python test is held to: whatever it starts, nothing of it is left when it ends.

Threads, operating-system threads and open files are counted before and after each test, in the
process of the tests.  Dropping outputs does not wait, so the check waits for threads to end, and
fails if they do not.
"""

from __future__ import annotations

import asyncio
import gc
import signal
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.register_assert_rewrite("helpers", "on_loop")

from helpers import PATIENCE, until  # noqa: E402

# A shell ignores SIGINT on behalf of what it runs in the background, and programs inherit that; the
# tests and their programs are to see Ctrl-C in any case.
signal.signal(signal.SIGINT, signal.default_int_handler)


def threads_of_the_system() -> int | None:
    """How many threads the operating system sees in this process, if it says.

    By the number of links: a list ends early when the thread that it has come to ends meanwhile.
    """
    tasks = Path("/proc/self/task")
    return tasks.stat().st_nlink - 2 if tasks.exists() else None


def open_files() -> set[str]:
    """What the descriptors of this process refer to, one entry for each."""
    folder = Path("/proc/self/fd")
    if not folder.exists():
        return set()
    found = set()
    for entry in folder.iterdir():
        try:
            found.add(f"{entry.name} -> {entry.readlink()}")
        except FileNotFoundError:  # the descriptor that lists the folder
            continue
    return found


@pytest.fixture(scope="session", autouse=True)
def quick_collections() -> None:
    """Let the collector pass over what was there before: it is asked after every test."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left(quick_collections: None) -> Iterator[None]:
    """Fail a test that leaves a thread or an open file behind."""
    gc.collect()
    threads_before = set(threading.enumerate())
    system_before = threads_of_the_system()
    files_before = open_files()
    yield
    gc.collect()
    for thread in set(threading.enumerate()) - threads_before:
        thread.join(PATIENCE)
        assert not thread.is_alive(), f"{thread} is left"
    if system_before is not None:
        until(lambda: (threads_of_the_system() or 0) <= system_before)
    assert open_files() <= files_before


@pytest.fixture(scope="session")
def uvloop_if_any() -> Any:
    """The module uvloop, with what its first loop opens for good; None: there is no wheel of it."""
    if sysconfig.get_config_var("Py_GIL_DISABLED"):
        return None
    import uvloop as module

    loop = module.new_event_loop()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    return module


@pytest.fixture
def uvloop(uvloop_if_any: Any) -> Any:
    """The module uvloop."""
    if uvloop_if_any is None:
        pytest.skip("there is no wheel of uvloop for free-threaded builds")
    return uvloop_if_any


@pytest.fixture(scope="session")
def numpy() -> Any:
    """The module numpy, with the threads that its import starts (and a fork ends)."""
    return pytest.importorskip("numpy")
