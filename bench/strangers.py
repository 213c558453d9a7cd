"""A busy machine: processes that have nothing to do with what is measured, and only compute.

    python bench/strangers.py DESCRIPTOR COMMAND...

becomes COMMAND, after starting one such process on each processor.  They belong to its session, so
that Linux, which shares processors out among sessions first, has them compete with its threads.
Their numbers are written to the descriptor, as a line.  They are stopped: whoever wants them to
compute has them go on (SIGCONT), and kills them in the end.
"""

import os
import signal
import sys


def start(processor: int) -> int:
    """Start one, stopped; returns the number of the process."""
    parent = os.getpid()
    if child := os.fork():
        os.waitpid(child, os.WUNTRACED)
        return child
    os.sched_setaffinity(0, {processor})
    os.kill(os.getpid(), signal.SIGSTOP)
    while os.getppid() == parent:
        for _ in range(1_000_000):
            pass
    os._exit(0)


def main() -> None:
    numbers = [start(processor) for processor in os.sched_getaffinity(0)]
    with os.fdopen(int(sys.argv[1]), "w") as whoever:
        print(*numbers, file=whoever)
    os.execv(sys.argv[2], sys.argv[2:])


if __name__ == "__main__":
    main()
