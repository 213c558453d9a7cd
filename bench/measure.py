"""Measuring a row: in each round every system does the scenario once, in turn.

So all of them see the same machine, and what is compared are ratios within a round; the median over
the rounds is what counts, the smallest and the largest tell how far to trust it.
"""

import contextlib
import os
import selectors
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from model import OURS, Row, System, Target

STRANGERS = str(Path(__file__).with_name("strangers.py"))

# Seconds for one round; who takes longer hangs, or is not worth the wait.
PATIENCE = {"ours": 300.0, "peer": 30.0, "floor": 30.0}


class ProgramError(Exception):
    """A program ended, or said nothing for too long."""


class Program:
    """A running program of a system; see `System`.  `busy`: its rounds are beside strangers."""

    def __init__(self, system: System, busy: bool):
        self.system = system
        self.busy = busy
        self.peak = 0  # bytes of memory; known after close()
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115, closed with the program
        self._strangers: list[int] = []
        command, numbers, whoever = system.command, -1, -1
        if busy:
            numbers, whoever = os.pipe()
            command = (sys.executable, STRANGERS, str(whoever), *command)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            start_new_session=True,  # so that a hanging one can be ended with its children
            pass_fds=[whoever] if busy else [],
        )
        if busy:
            os.close(whoever)
            with os.fdopen(numbers) as line:
                self._strangers = [int(number) for number in line.readline().split()]

    def round(self, count: int) -> tuple[float, float]:
        """One round: its figure, and the processor seconds it took."""
        self._tell_strangers(signal.SIGCONT)
        try:
            return self._round(count)
        finally:
            self._tell_strangers(signal.SIGSTOP)

    def _tell_strangers(self, what: signal.Signals) -> None:
        for number in self._strangers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, what)

    def _round(self, count: int) -> tuple[float, float]:
        assert self._process.stdin
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"%d\n" % count)
            self._process.stdin.flush()
        words = self._answer().split()
        if len(words) != 2:
            raise ProgramError(self._why())
        return float(words[0]), float(words[1])

    def _answer(self) -> bytes:
        assert self._process.stdout
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            patience = PATIENCE[self.system.kind]
            if not selector.select(patience):
                self.kill()
                raise ProgramError(f"gave no answer in {patience:g} seconds")
        return self._process.stdout.readline()

    def _why(self) -> str:
        self.kill()
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"ended with exit status {self._process.returncode}"

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, 9)
        self._process.wait()

    def close(self) -> None:
        """Let it end, and note how much memory it had at its peak."""
        self._tell_strangers(signal.SIGKILL)
        if self._process.poll() is None:
            with contextlib.suppress(OSError):
                for line in Path(f"/proc/{self._process.pid}/status").read_text().splitlines():
                    if line.startswith("VmHWM:"):
                        self.peak = int(line.split()[1]) * 1024
        for stream in (self._process.stdin, self._process.stdout, self._errors):
            assert stream
            with contextlib.suppress(BrokenPipeError):
                stream.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self.kill()


@dataclass
class Measured:
    """What one system reached in a row."""

    items: int = 0  # of a round
    figures: list[float] = field(default_factory=list)  # of the rounds, in the row's unit
    cpu: list[float] = field(default_factory=list)  # processor seconds of the rounds
    peak: int = 0  # bytes
    spent: float = 0.0  # seconds in rounds

    @property
    def median(self) -> float:
        return statistics.median(self.figures)


@dataclass
class Effort:
    """How long to measure."""

    rounds: int
    seconds: float  # of a round, about
    fast: bool = False

    @property
    def budget(self) -> float:
        """After so many seconds in one row a peer has had its rounds."""
        return 3 * self.rounds * self.seconds

    def items(self, row: Row) -> int:
        """How many a round of ours has."""
        if not self.fast or (row.whole and not row.fast_items):
            return row.items
        return row.fast_items or -(-row.items // 4)


@dataclass
class Result:
    """A row and what its systems reached; who failed and why."""

    row: Row
    systems: dict[str, Measured]
    failed: dict[str, str]

    def ratios(self, name: str) -> list[float]:
        """How many times as much (of time, say) the other takes as ours, round by round.

        What is nothing (memory that stays, say) has no ratio.
        """
        both = zip(self.systems[name].figures, self.systems[OURS].figures, strict=False)
        pairs = [(theirs, ours) for theirs, ours in both if theirs > 0 and ours > 0]
        if self.row.unit.more_is_better:
            return [ours / theirs for theirs, ours in pairs]
        return [theirs / ours for theirs, ours in pairs]

    def ratio(self, name: str) -> float | None:
        """The median of the ratios, if there is one."""
        ratios = self.ratios(name) if name in self.systems else []
        return statistics.median(ratios) if ratios else None

    def peers(self) -> list[str]:
        return [s.name for s in self.row.systems if s.kind == "peer" and s.name in self.systems]

    def reached(self, target: Target) -> float | None:
        """What is to be compared with the target's value; None if the other was not measured."""
        if target.kind == "at most":
            return self.systems[OURS].median
        if target.kind == "best":
            each = [r for r in map(self.ratio, self.peers()) if r is not None]
            return min(each) if each else None
        ratio = self.ratio(target.against)
        return 1 / ratio if ratio and target.kind == "within" else ratio

    def met(self, target: Target) -> bool | None:
        reached = self.reached(target)
        if reached is None:
            return None
        return (
            reached <= target.value
            if target.kind in ("at most", "within")
            else (reached >= target.value)
        )


def warm_up(program: Program, row: Row, effort: Effort) -> int:
    """Rounds that do not count: how many items a round of this system is to have."""
    most = effort.items(row)
    if program.system.kind == "ours" or row.whole:
        if row.warm:
            program.round(most)
        return most
    # So many at least, or starting would be most of what is measured.
    least = items = max(1, most // 100)
    while True:
        # The better of two: a moment in which the machine did something else is not the cost.
        seconds = min(_seconds(program, items) for _ in range(2))
        if seconds * 3 >= effort.seconds or items == most:
            return max(least, min(most, int(items * effort.seconds / seconds)))
        items = min(items * 4, most)


def _seconds(program: Program, items: int) -> float:
    started = time.perf_counter()
    program.round(items)
    return time.perf_counter() - started


def measure(row: Row, effort: Effort) -> Result:
    """Do the rounds of a row.  A peer that fails is left out, and why is kept; ours must not."""
    result = Result(row, {}, {})
    programs: dict[str, Program] = {s.name: Program(s, row.busy) for s in row.systems}

    def attempt(system: System, do: Callable[[Program, Measured], None]) -> None:
        """Do something with a system's program; a peer that cannot is out of the row."""
        try:
            do(programs[system.name], result.systems[system.name])
        except ProgramError as failure:
            if system.kind == "ours":
                raise SystemExit(f"{row.name}: {' '.join(system.command)}: {failure}") from None
            result.failed[system.name] = str(failure)
            del result.systems[system.name]

    def prepare(program: Program, measured: Measured) -> None:
        measured.items = warm_up(program, row, effort)

    def round_of(program: Program, measured: Measured) -> None:
        if row.fresh:
            program = _renewed(program, programs, measured)
        started = time.perf_counter()
        figure, cpu = program.round(measured.items)
        measured.spent += time.perf_counter() - started
        measured.figures.append(figure * row.unit.scale)
        measured.cpu.append(cpu)

    try:
        for system in row.systems:
            result.systems[system.name] = Measured()
            attempt(system, prepare)
        for number in range(min(effort.rounds, row.rounds)):
            # Every other round the other way round: nobody always runs behind the same one.
            for system in row.systems if number % 2 == 0 else reversed(row.systems):
                measured = result.systems.get(system.name)
                if measured and (system.kind == "ours" or measured.spent < effort.budget):
                    attempt(system, round_of)
    finally:
        for name, program in programs.items():
            program.close()
            if name in result.systems:
                result.systems[name].peak = max(result.systems[name].peak, program.peak)
    return result


def _renewed(program: Program, programs: dict[str, Program], measured: Measured) -> Program:
    """Another process in place of this one."""
    program.close()
    measured.peak = max(measured.peak, program.peak)
    programs[program.system.name] = Program(program.system, program.busy)
    return programs[program.system.name]


def smoke(rows: Sequence[Row]) -> None:
    """Run ours, once and with few items, only to see that every scenario works."""
    for row in rows:
        for system in row.systems:
            if system.kind != "ours":
                continue
            program = Program(system, row.busy)
            try:
                program.round(min(row.items, 20))
            except ProgramError as failure:
                raise SystemExit(f"{row.name}: {' '.join(system.command)}: {failure}") from None
            finally:
                program.close()
