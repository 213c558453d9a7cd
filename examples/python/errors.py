"""Errors: the first exception of any task ends the run and is raised where the outputs are taken.

It is the original exception with its own traceback, and a note says which task it came from.  Who
would rather go on makes the task a branch that has no output for a bad item.
"""

from collections.abc import Iterator

from pyper import task

LINES = ["12", "7", "eleven", "30"]


def each_line(lines: list[str]) -> Iterator[str]:
    yield from lines


def parse_or_skip(line: str) -> Iterator[int]:
    try:
        yield int(line)
    except ValueError as error:
        print("skipped:", error)


if __name__ == "__main__":
    strict = task(each_line, branch=True) | task(int)
    try:
        for number in strict(LINES):
            print(number)
        #> 12
        #> 7
    except ValueError as error:
        print("failed:", error)
        #> failed: invalid literal for int() with base 10: 'eleven'
        print("noted:", *error.__notes__)
        #> noted: in task 'int' (2 of 2)

    lenient = task(each_line, branch=True) | task(parse_or_skip, branch=True)
    print(sorted(lenient(LINES)))
    #> skipped: invalid literal for int() with base 10: 'eleven'
    #> [7, 12, 30]
