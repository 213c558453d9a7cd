"""The rows of the benchmark, one module for each group.

A group is a module with `TITLE` and `rows(machine)`, which gives a list of `Row`s; the order of
GROUPS is that of the table.  To add a row, add it to the list of its group; a scenario in Python
also needs a function in scenarios.py (and in peers.py, for the packages that can do it).
"""

from rows import asynchronous, c, free_threaded, processes, threads

GROUPS = [threads, asynchronous, processes, free_threaded, c]
