"""Tasks in processes."""

from machine import Machine
from model import Row

TITLE = "processes"


def rows(machine: Machine) -> list[Row]:
    return []
