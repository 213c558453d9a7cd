"""make bench: what pyper costs, as ratios against others, all measured in one run.

Each scenario is run in rounds, in each round once by every system, so that the systems see the same
machine; what counts is the median of the rounds' ratios, printed with their smallest and largest.
Absolute figures depend on the machine and on what else it does: compare ratios.

    python bench/run.py [--fast] [--json FILE] [--fastflow FOLDER] [ROW ...]

    make bench                     everything
    make bench FAST=1              a first look: fewer rows, fewer and shorter rounds
    make bench ROWS="'C: 3 in'"    only rows whose names contain one of these

docs/performance.md tells how to read what it prints; rows/ holds the scenarios.
"""

import argparse
import json
import os
import subprocess
import time
from pathlib import Path

import report
from machine import ROOT, WORK, Machine
from measure import Effort, Result, measure, smoke
from rows import GROUPS

FULL = Effort(rounds=7, seconds=0.5)
FAST = Effort(rounds=3, seconds=0.06, fast=True)


def commit() -> str:
    """The commit that was measured, with a `+` if there are changes."""
    describe = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(describe, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("rows", nargs="*", help="only those whose name contains one of these")
    parser.add_argument("--fast", action="store_true", help="a first look")
    parser.add_argument("--json", type=Path, default=WORK / "results.json")
    parser.add_argument("--fastflow", default="", help="the folder that has FastFlow's ff/ff.hpp")
    parser.add_argument("--list", action="store_true", help="the names of the rows")
    parser.add_argument("--smoke", action="store_true", help="only see that ours run; no figures")
    options = parser.parse_args()
    effort = FAST if options.fast else FULL

    started = time.monotonic()
    peers = not (options.smoke or options.list)
    machine = Machine(peers, options.fastflow, effort.fast)
    groups = [
        (group.TITLE, [row for row in group.rows(machine) if wanted(row.name, options.rows)])
        for group in GROUPS
    ]
    if options.list:
        for title, rows in groups:
            print("\n".join([title, *(f"    {row.name}: {row.what}" for row in rows)]))
        return
    if options.smoke:
        smoke([row for _, rows in groups for row in rows])
        return

    for name, why in machine.missing.items():
        print(f"{name} is left out: {why}")
    if max(os.getloadavg()) > 0.5:
        print(f"the machine is busy (load {os.getloadavg()[0]:.1f}): ratios will spread")
    print(f"pyper's figure is the median of up to {effort.rounds} rounds;", end=" ")
    print("xN is how many times as much another takes")
    measured = commit()
    results: list[Result] = []
    output = []
    for title, rows in groups:
        chosen = [row for row in rows if row.fast or not effort.fast or options.rows]
        if not chosen:
            continue
        print(f"\n== {title}", flush=True)
        for row in chosen:
            began = time.monotonic()
            result = measure(row, effort)
            results.append(result)
            took = {"group": title, "seconds": round(time.monotonic() - began, 1)}
            output.append(took | report.as_json(result))
            print("\n" + "\n".join(report.lines(result)), flush=True)
    left_out = sum(len(rows) for _, rows in groups) - len(results)
    print()
    print("\n".join(report.summary(results)))
    if left_out:
        print(f"Rows that this run left out: {left_out}")
    seconds = time.monotonic() - started
    whole = {
        "commit": measured,
        "date": time.strftime("%Y-%m-%d"),
        "fast": effort.fast,
        "rounds": effort.rounds,
        "seconds": round(seconds),
        "machine": machine.facts(),
        "missing": machine.missing,
        "rows": output,
    }
    options.json.write_text(json.dumps(whole, indent=1) + "\n")
    print(f"\nEvery figure of every round: {os.path.relpath(options.json)} ({seconds:.0f} s)")


def wanted(name: str, parts: list[str]) -> bool:
    return not parts or any(part in name for part in parts)


if __name__ == "__main__":
    main()
