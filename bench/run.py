"""make bench: what pyper costs, as ratios against others, all measured in one run.

Each scenario is run in rounds, in each round once by every system, so that the systems see the same
machine; what is printed is the median of the rounds' ratios with their smallest and largest.
Absolute figures depend on the machine and on what else it does: compare ratios.

    python bench/run.py [--fast] [--json FILE] [SCENARIO ...]        (make bench FAST=1)

Python scenarios (bench/scenarios.py) run against python-pyper, the pure Python implementation of
the same interface, in an environment of its own (build/bench/venv).  C scenarios (bench/c) run
against oneTBB, where its headers are installed, a textbook queue, and a plain loop.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / "build" / "bench"
PEER = "python-pyper==0.4.4"
Measure = Callable[[], float]


@dataclass(frozen=True)
class Scenario:
    """One row: the systems to run, ours first, and the ratio that the project has set itself."""

    name: str
    unit: str
    scale: float  # from what the programs print to `unit`
    systems: dict[str, Measure]
    wanted: float | None = None  # the first peer's figure, divided by ours, is to be at least this
    limit: float | None = None  # our figure is to be at most this, in `unit`


def output_of(*command: str) -> float:
    """The first number that a program prints."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr}")
    return float(done.stdout.split()[0])


def peer_python() -> str:
    """The interpreter of an environment that has python-pyper."""
    folder = WORK / "venv"
    python = folder / "bin" / "python"
    if not (folder / "ready").exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([str(python), "-m", "pip", "install", "--quiet", PEER], check=True)
        (folder / "ready").touch()
    return str(python)


# ----------------------------------------------------------------------------------- scenarios

# name, items for us, items for the slow peer, unit, scale, wanted ratio, limit
PYTHON = [
    ("two tasks", 200_000, 50_000, "us/item", 1e6, 25.0, None),
    ("four tasks", 200_000, 50_000, "us/item", 1e6, 30.0, None),
    ("throttle 1", 5_000, 5_000, "us/item", 1e6, 2.0, None),
    ("throttle 10", 20_000, 20_000, "us/item", 1e6, 2.5, None),
    ("throttle 100", 100_000, 50_000, "us/item", 1e6, 6.0, None),
    ("throttle 1000", 200_000, 50_000, "us/item", 1e6, 15.0, None),
    ("8 workers", 200_000, 50_000, "us/item", 1e6, 12.0, None),
    ("one call", 200, 20, "us", 1e6, 50.0, None),
    ("first output", 20_000, 20_000, "ms", 1e3, None, 2.0),
    ("convoy", 5_000, 5_000, "s (ideal 0.25)", 1.0, None, 0.325),
    ("async task", 200_000, 20_000, "us/item", 1e6, 15.0, None),
    ("async, 20 workers", 200_000, 20_000, "us/item", 1e6, 15.0, None),
    ("async, 4 threads", 200_000, 10_000, "us/item", 1e6, 60.0, None),
]

# name, tasks, workers, items, bound, wanted ratio
C = [
    ("C: 3 in a chain", 3, 1, 10_000_000, 1024, 10.0),
    ("C: 8 in a chain", 8, 1, 3_000_000, 1024, None),
    ("C: 4 workers", 3, 4, 2_000_000, 1024, None),
    ("C: 4 workers, ordered", 3, 4, 2_000_000, 1024, None),
    ("C: 3 in a chain, bound 1", 3, 1, 200_000, 1, None),
]


def python_scenarios(divide: int) -> list[Scenario]:
    script = str(ROOT / "bench" / "scenarios.py")
    peer = peer_python()
    scenarios = []
    for name, ours, theirs, unit, scale, wanted, limit in PYTHON:

        def measure(
            python: str, items: int, name: str = name, limit: float | None = limit
        ) -> Measure:
            count = items if limit else max(items // divide, 1)  # a limit is for that many items
            return lambda: output_of(python, script, name, str(count))

        systems = {"pyper": measure(sys.executable, ours), "python-pyper": measure(peer, theirs)}
        scenarios.append(Scenario(name, unit, scale, systems, wanted, limit))
    return scenarios


def c_programs() -> dict[str, str]:
    """Build bench/c against build/: paths of what could be built."""
    programs = {"chain": str(WORK / "chain")}
    include = f"-I{ROOT / 'include'}"
    library = [str(ROOT / "build" / "src" / "libpyper.a"), "-pthread"]
    source = str(ROOT / "bench" / "c" / "chain.c")
    subprocess.run(
        ["cc", "-std=gnu11", "-O2", include, source, "-o", programs["chain"], *library], check=True
    )
    tbb = [str(ROOT / "bench" / "c" / "chain_tbb.cpp"), "-o", str(WORK / "chain_tbb"), "-ltbb"]
    built = shutil.which("c++") and subprocess.run(
        ["c++", "-std=c++17", "-O2", *tbb], capture_output=True, check=False
    )
    if built and built.returncode == 0:
        programs["chain_tbb"] = str(WORK / "chain_tbb")
    else:
        print("oneTBB is not here (Debian: g++ libtbb-dev): its column is left out")
    return programs


def c_scenarios(divide: int) -> list[Scenario]:
    programs = c_programs()
    scenarios = []
    for name, tasks, workers, items, bound, wanted in C:
        shape = [str(tasks), str(workers), str(items // divide), str(bound)]

        def chain(system: str, shape: list[str] = shape) -> Measure:
            return lambda: output_of(programs["chain"], system, *shape)

        systems = {"pyper": chain("pyper-ordered" if "ordered" in name else "pyper")}
        if "chain_tbb" in programs:
            command = [programs["chain_tbb"], *shape]
            systems["oneTBB"] = lambda command=command: output_of(*command)
        systems["textbook"] = chain("textbook")
        systems["plain loop"] = chain("loop")
        scenarios.append(Scenario(name, "ns/item", 1.0, systems, wanted))
    return scenarios


# ------------------------------------------------------------------------------------- running


def measure(scenario: Scenario, rounds: int) -> dict[str, list[float]]:
    figures: dict[str, list[float]] = {system: [] for system in scenario.systems}
    for _ in range(rounds):
        for system, run in scenario.systems.items():
            figures[system].append(run() * scenario.scale)
    return figures


def verdict(scenario: Scenario, ratios: dict[str, list[float]], ours: float) -> str:
    if scenario.limit is not None:
        return f"at most {scenario.limit:g}: {'yes' if ours <= scenario.limit else 'NO'}"
    if scenario.wanted is not None and ratios:
        reached = statistics.median(next(iter(ratios.values()))) >= scenario.wanted
        return f"at least {scenario.wanted:g}x: {'yes' if reached else 'NO'}"
    return ""


def report(scenario: Scenario, figures: dict[str, list[float]]) -> dict[str, object]:
    """Print the row, and return it as what goes into the JSON file."""
    ours = figures["pyper"]
    ratios = {
        system: [theirs / mine for theirs, mine in zip(values, ours, strict=True)]
        for system, values in figures.items()
        if system != "pyper"
    }
    median = statistics.median(ours)
    print(f"{scenario.name:26} {median:10.4g} {scenario.unit:15}", end="")
    for system, values in ratios.items():
        spread = f"{min(values):.3g}..{max(values):.3g}"
        print(f" {system} x{statistics.median(values):.3g} ({spread})", end="")
    print(f"  {verdict(scenario, ratios, median)}", flush=True)
    return {"unit": scenario.unit, "figures": figures, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("scenarios", nargs="*", help="only those whose name contains one of these")
    parser.add_argument("--fast", action="store_true", default=bool(os.environ.get("FAST")))
    parser.add_argument("--json", type=Path, default=WORK / "results.json")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    divide, rounds = (4, 3) if options.fast else (1, 7)
    print("pyper's figure is the median; `x` is how many times as much another takes (min..max)\n")
    results = {}
    for scenario in python_scenarios(divide) + c_scenarios(divide):
        if options.scenarios and not any(part in scenario.name for part in options.scenarios):
            continue
        results[scenario.name] = report(scenario, measure(scenario, rounds))
    options.json.write_text(json.dumps(results, indent=1))
    print(f"\nEvery figure of every round: {options.json.relative_to(Path.cwd())}")


if __name__ == "__main__":
    main()
