"""Run an example and compare what it prints with what its source says it prints.

    check.py SOURCE PROGRAM [ARGUMENT...]

The expected lines are the comments ``//> text`` of the source, in their order.  Exit status: 0 if
the program ended with 0 and printed exactly these lines, else 1 with the difference.  Meson runs it
once for every example, so that the examples are also checked in sanitizer builds; and says what
runs programs of another machine, if they are (MESON_EXE_WRAPPER).
"""

from __future__ import annotations

import difflib
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

EXPECTED = re.compile(r"^\s*//> ?(.*)$", re.MULTILINE)


def main() -> int:
    source, *command = sys.argv[1:]
    expected = [line.rstrip() for line in EXPECTED.findall(Path(source).read_text("utf-8"))]
    if not expected:
        print(f"{source} does not say what it prints")
        return 1
    wrapper = shlex.split(os.environ.get("MESON_EXE_WRAPPER", ""))
    whole = [*wrapper, *command]
    done = subprocess.run(whole, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, check=False)
    printed = [line.rstrip() for line in done.stdout.decode("utf-8").splitlines()]
    difference = list(difflib.unified_diff(expected, printed, "expected", "printed", lineterm=""))
    print("\n".join(difference))
    if done.returncode != 0:
        print(f"{command[0]} ended with {done.returncode}")
    return 1 if difference or done.returncode != 0 else 0


if __name__ == "__main__":
    sys.exit(main())
