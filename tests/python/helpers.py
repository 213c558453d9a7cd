"""What several tests need: items that are counted, waiting for what must come, other processes."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable

PATIENCE = 60  # seconds; only a test that fails waits that long


def until(condition: Callable[[], object]) -> None:
    """Wait for what must come and tells nobody when; fail if it does not come."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it has not come"
        os.sched_yield()


class Counted:
    """An item that knows how many of its kind are alive."""

    alive = 0
    _lock = threading.RLock()  # reentrant: the collector may run a __del__ in the middle of another

    def __init__(self, value: int) -> None:
        self.value = value
        with Counted._lock:
            Counted.alive += 1

    def __del__(self) -> None:
        with Counted._lock:
            Counted.alive -= 1


def none_alive() -> bool:
    """Whether all counted items are gone; waits for workers that are about to let go of theirs."""
    deadline = time.monotonic() + PATIENCE
    while True:
        gc.collect()
        if Counted.alive == 0:
            return True
        if time.monotonic() > deadline:
            return False
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join(0.1)


class Program:
    """A Python program in a process of its own, with warnings as errors."""

    def __init__(self, source: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-X", "faulthandler", "-c", textwrap.dedent(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_for(self, line: str) -> None:
        """Wait until the program prints this line."""
        assert self._process.stdout
        printed = self._process.stdout.readline()
        if printed.strip() != line:
            raise AssertionError(f"printed {printed!r}, not {line!r}; {self._kill()}")

    def interrupt(self) -> None:
        """Ctrl-C."""
        self._process.send_signal(signal.SIGINT)

    def _kill(self) -> str:
        """End it and its children; faulthandler says where each of them was."""
        os.killpg(self._process.pid, signal.SIGABRT)
        _, errors = self._process.communicate()
        return errors

    def end(self) -> tuple[str, str, int]:
        """Wait for the end: what it has printed, its errors, its exit status."""
        try:
            printed, errors = self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"the program does not end:\n{self._kill()}") from None
        return printed.strip(), errors.strip(), self._process.returncode


def run_program(source: str) -> str:
    """Run a program that must end well and say nothing on stderr; what it has printed."""
    printed, errors, status = Program(source).end()
    assert (errors, status) == ("", 0)
    return printed
