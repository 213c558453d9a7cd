"""The examples for Python users: each runs as a script and prints what its comments say.

The examples in C are checked by Meson (examples/c/check.py), so that sanitizer builds run them too;
the specification's examples by test_specification.py, the demo by test_demo.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from printed import ROOT, expected_lines, printed_lines, run_python

EXAMPLES = sorted(
    path
    for path in (ROOT / "examples" / "python").glob("*.py")
    if path.name != "demo.py" and not path.name.startswith("spec_")
)


def test_there_are_examples() -> None:
    assert EXAMPLES


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda path: path.stem)
def test_the_example_prints_what_it_says(script: Path) -> None:
    expected = expected_lines(script.read_text("utf-8"))
    assert expected, "the example does not say what it prints"
    assert printed_lines(run_python(script)) == expected
