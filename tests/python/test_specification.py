"""The examples of the specification, verbatim: examples/python/spec_*.py.

Each runs as a script in a fresh interpreter, and what it prints is compared with the comments
``#>`` of the specification.
"""

from __future__ import annotations

import runpy
import time

import pytest

from printed import ROOT, expected_lines, printed_lines, run_python
from pyper import task

EXAMPLES = ROOT / "examples" / "python"


@pytest.mark.parametrize("name", ["branch", "branch_lazy", "join", "bind"])
def test_the_example_prints_what_it_says(name: str) -> None:
    script = EXAMPLES / f"spec_{name}.py"
    expected = expected_lines(script.read_text("utf-8"))
    assert expected
    assert printed_lines(run_python(script)) == expected


def test_a_task_is_made_by_decorating_or_by_calling() -> None:
    source = (EXAMPLES / "spec_task.py").read_text("utf-8")
    decorated, _, called = source.partition("# OR")
    assert called
    names: dict[str, object] = {}
    exec(decorated, names)
    assert list(names["add_one"](1)) == [2]  # type: ignore[operator]
    exec(source, names)
    assert list(names["pipeline"](1)) == [2]  # type: ignore[operator]
    assert names["add_one"](1) == 2  # type: ignore[operator]


def test_twenty_workers_sleep_at_once() -> None:
    # One after the other the twenty calls of two seconds would take longer than the timeout.
    done = run_python(EXAMPLES / "spec_workers.py", timeout=30)
    assert sorted(map(int, printed_lines(done))) == list(range(20))


def test_a_throttled_producer_stops_at_its_bound() -> None:
    names = runpy.run_path(str(EXAMPLES / "spec_throttle.py"))
    pipeline = names["fast_producer"] | names["slow_consumer"]
    assert [t.throttle for t in pipeline.tasks] == [5000, 0]

    with names["fast_producer"]() as outputs:
        assert next(outputs) == 0
        queued = 0
        # Until the queue is full, and never more than that.  If it was full before the first output
        # was taken, one place stays free: a paused producer resumes when half of them are.
        while queued < 4999:
            (producer,) = outputs.stats()
            queued = producer.queued
            assert queued <= 5000
            assert producer.items_out <= 1 + 5000
            time.sleep(0)
        assert [next(outputs) for _ in range(10_000)] == list(range(1, 10_001))


@pytest.mark.timeout(300)  # 200 million steps of Python
def test_twenty_processes_work() -> None:
    done = run_python(EXAMPLES / "spec_multiprocess.py", timeout=280)
    assert done.stderr == ""
    assert sorted(map(int, done.stdout.split())) == list(range(20))


def test_the_default_of_each_option_is_that_of_the_specification() -> None:
    (only,) = task(len).tasks
    assert (only.func, only.branch, only.join) == (len, False, False)
    assert (only.workers, only.throttle, only.multiprocess) == (1, 0, False)
