"""Put the figures of a run into the documents: make bench-publish [REMARK="what run it was"].

    python bench/publish.py [--remark TEXT] [--refresh | --check] [RESULTS]

Reads what `make bench` has written (build/bench/results.json) and writes docs/bench.json (medians
and spreads), docs/bench.svg (the chart), and the tables between the marks `<!-- bench: ... -->` in
README.md and docs/performance.md.  --refresh writes the documents anew from docs/bench.json and
bench/instructions.json; --check writes nothing: the documents must agree with these two.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path
from typing import Any

from chart import chart
from machine import ROOT, WORK
from report import number, ratio_number

DATA = ROOT / "docs" / "bench.json"
INSTRUCTIONS = ROOT / "bench" / "instructions.json"

OTHERS = "others take so many times as much"

# What README shows of it.
README_ROWS = [
    "two tasks",
    "four tasks",
    "throttle 1000",
    "8 workers",
    "one call",
    "first output",
    "500 sleepers",
    "small files",
    "async task",
    "async, 4 threads",
    "2 processes",
    "8 MiB, bytes",
    "no GIL: 50 us, 2 workers",
    "C: 3 in a chain",
    "C: 8 in a chain",
    "C: 4 workers",
    "C: 4 workers, ordered",
    "C: bound 1",
    "C: start and end",
]


def condense(results: dict[str, Any], remark: str) -> dict[str, Any]:
    """Medians and spreads of a run."""
    rows = []
    for row in results["rows"]:
        systems: dict[str, Any] = {}
        for name, system in row["systems"].items():
            figures, ratios = system["figures"], system["ratios"]
            cpu = statistics.median(system["processor_seconds"])
            systems[name] = {
                "kind": system["kind"],
                "median": figure(statistics.median(figures)),
                "rounds": len(figures),
                "items": system["items"],
                "processor_seconds": figure(cpu),
                "peak_mib": round(system["peak_bytes"] / 2**20),
                "low": figure(min(ratios or figures)),
                "high": figure(max(ratios or figures)),
            }
            if ratios:
                systems[name]["ratio"] = figure(statistics.median(ratios))
        rows.append({key: row[key] for key in ("group", "name", "what", "unit", "targets")})
        for target in rows[-1]["targets"]:
            if target["reached"] is not None:
                target["reached"] = figure(target["reached"])
        rows[-1]["systems"] = systems
    keys = ("commit", "date", "fast", "rounds", "machine", "missing")
    return {"remark": remark} | {key: results[key] for key in keys} | {"rows": rows}


def figure(value: float) -> float:
    """Four digits are more than it is worth."""
    return float(f"{value:.4g}")


def provenance(data: dict[str, Any]) -> str:
    """Which run, on what machine."""
    machine = data["machine"]
    kind = "FAST=1, a first look" if data["fast"] else "a full run"
    compiler = machine["compiler"].split(" ")
    words = (
        f"{kind}, {data['rounds']} rounds, {data['date']}, commit {data['commit']}; "
        f"{machine['processors']} processors ({machine['processor']}), {machine['kernel']}, "
        f"CPython {machine['python']}, {compiler[0]} {compiler[-1]}"
    )
    return f"{words}. {data['remark']}" if data["remark"] else words


# --------------------------------------------------------------------------------- the tables


def others(row: dict[str, Any]) -> str:
    """The other systems of a row, with their ratios."""
    parts = [
        f"{name} {number(s['ratio'])} ({number(s['low'])}..{number(s['high'])})"
        for name, s in row["systems"].items()
        if "ratio" in s
    ]
    return ", ".join(parts) or "-"


def wanted(row: dict[str, Any]) -> str:
    """The targets of a row and whether they are met."""
    verdicts = {True: "met", False: "**NO**", None: "not measured"}
    parts = []
    for target in row["targets"]:
        reached = "" if target["reached"] is None else f" {ratio_number(target['reached'])},"
        parts.append(f"{target['wanted']}:{reached} {verdicts[target['met']]}")
    return "<br>".join(parts) or "-"


def table(rows: list[dict[str, Any]]) -> str:
    """All that a reader of docs/performance.md is told of some rows."""
    lines = [
        f"| scenario | pyper (min..max) | processor s | peak MiB | {OTHERS} (min..max) | wanted |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        ours = row["systems"]["pyper"]
        spread = f"({number(ours['low'])}..{number(ours['high'])})"
        cells = [
            f"**{row['name']}**: {row['what']}",
            f"{number(ours['median'])} {spread} {row['unit']}",
            number(ours["processor_seconds"]),
            str(ours["peak_mib"]),
            others(row),
            wanted(row),
        ]
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def groups(data: dict[str, Any]) -> str:
    """A table for each group."""
    titles = list(dict.fromkeys(row["group"] for row in data["rows"]))
    parts = []
    for title in titles:
        rows = [row for row in data["rows"] if row["group"] == title]
        parts.append(f"### {title}\n\n{table(rows)}")
    return "\n\n".join(parts)


def misses(data: dict[str, Any]) -> str:
    """What is not reached, and where another is ahead."""
    lines = []
    for stretch in (False, True):
        targets = [
            (row, target)
            for row in data["rows"]
            for target in row["targets"]
            if target["stretch"] == stretch and target["met"] is not None
        ]
        missed = [(row, target) for row, target in targets if not target["met"]]
        what = "stretches" if stretch else "targets"
        lines.append(
            f"Of {len(targets)} {what} that could be measured {len(targets) - len(missed)} are met."
            + (" Not met:\n" if missed else "")
        )
        lines += [
            f"- {row['name']}: {target['wanted']}; reached {ratio_number(target['reached'])}"
            for row, target in missed
        ]
        lines.append("")
    ahead = [
        f"- {row['name']}: {name}, {number(system['ratio'])}"
        for row in data["rows"]
        for name, system in row["systems"].items()
        if system["kind"] == "peer" and system.get("ratio", 1) < 1
    ]
    lines.append("Where a peer is ahead of pyper (it takes so many times as much):\n")
    lines += ahead or ["- nowhere"]
    return "\n".join(lines)


# What nobody can do without: a system's figure in a row, and what it is.
LIMITS = [
    ("two tasks", "plain loop", "the call of `inc` by a plain loop"),
    ("two tasks", "by hand", "two threads and two `queue.SimpleQueue`s by hand"),
    ("one call", "bare threads", "starting and joining a `threading.Thread`"),
    ("latency, p50", "by hand", "an item through two idle threads by hand"),
    ("C: 3 in a chain", "loop", "an indirect call in a loop"),
    ("C: 3 in a chain", "cache line", "a cache line from one processor to the other"),
    ("C: wake-up", "raw futex", "waking a thread, from the system call to its first instruction"),
    ("C: start and end", "bare threads", "creating and joining three bare threads"),
]


def limits(data: dict[str, Any]) -> str:
    """What the machine and CPython charge."""
    by_name = {row["name"]: row for row in data["rows"]}
    lines = ["| what | measured | in the row |", "| --- | --- | --- |"]
    for name, system, what in LIMITS:
        row = by_name.get(name)
        if row and system in row["systems"]:
            value = number(row["systems"][system]["median"])
            lines.append(f"| {what} | {value} {row['unit']} | {name} |")
    return "\n".join(lines)


def instructions() -> str:
    """What bench/instructions.json says."""
    known = json.loads(INSTRUCTIONS.read_text("utf-8"))
    lines = ["| path, one item | instructions | budget |", "| --- | --- | --- |"]
    for name, path in known["instructions an item"].items():
        lines.append(f"| {name} | {path['counted']} | {path['budget']} |")
    return "\n".join([*lines, "", f"Compiler: {known['compiler']}."])


def short(data: dict[str, Any]) -> str:
    """The table of README."""
    lines = [f"| scenario | pyper | {OTHERS} |", "| --- | --- | --- |"]
    by_name = {row["name"]: row for row in data["rows"]}
    for name in README_ROWS:
        if row := by_name.get(name):
            ours = row["systems"]["pyper"]
            peers = ", ".join(
                f"{other} {number(s['ratio'])}"
                for other, s in row["systems"].items()
                if s["kind"] == "peer" and "ratio" in s
            )
            what = f"{row['name']}: {row['what']}".replace("|", "\\|")
            lines.append(f"| {what} | {number(ours['median'])} {row['unit']} | {peers} |")
    return "\n".join(lines)


# ------------------------------------------------------------------------------ the documents


def render(data: dict[str, Any]) -> dict[Path, str]:
    """The documents as they are to be, by their paths."""
    source = f"{provenance(data)}"
    blocks = {
        "run": f"Measured: {source}",
        "short": short(data),
        "groups": groups(data),
        "misses": misses(data),
        "limits": limits(data),
        "instructions": instructions(),
    }
    documents = {ROOT / "docs" / "bench.svg": chart(data, source)}
    for path in (ROOT / "README.md", ROOT / "docs" / "performance.md"):
        documents[path] = filled(path.read_text("utf-8"), blocks)
    return documents


def filled(text: str, blocks: dict[str, str]) -> str:
    """Put each block between its marks."""

    def replaced(match: re.Match[str]) -> str:
        return f"{match[1]}\n{blocks[match[2]]}\n{match[3]}"

    return re.sub(r"(<!-- bench: (\w+) -->)\n.*?(<!-- end -->)", replaced, text, flags=re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("results", nargs="?", type=Path, default=WORK / "results.json")
    parser.add_argument("--remark", default="", help="a sentence about the run")
    parser.add_argument("--refresh", action="store_true", help="no new run, only the documents")
    parser.add_argument("--check", action="store_true", help="only compare")
    options = parser.parse_args()
    if options.check:
        documents = render(json.loads(DATA.read_text("utf-8")))
        stale = [path for path, text in documents.items() if path.read_text("utf-8") != text]
        for path in stale:
            print(f"{path.relative_to(ROOT)} does not show what docs/bench.json says")
        sys.exit(1 if stale else 0)
    if options.refresh:
        data = json.loads(DATA.read_text("utf-8"))
    else:
        data = condense(json.loads(options.results.read_text("utf-8")), options.remark)
        DATA.write_text(json.dumps(data, indent=1) + "\n", "utf-8")
    for path, text in render(data).items():
        path.write_text(text, "utf-8")
        print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
