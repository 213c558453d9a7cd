"""How results are shown: as lines in the terminal, and as what goes into the JSON file."""

import statistics
from typing import Any

from measure import Measured, Result
from model import OURS


def number(value: float) -> str:
    """Three digits that mean something."""
    if value == 0:
        return "0"
    if abs(value) >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:#.3g}".rstrip(".")


def ratio_number(value: float) -> str:
    """The same, and near 1 one digit more: a target of 1.02 may be missed by 0.001."""
    return f"{value:#.4g}" if 1 < value < 1.1 else number(value)


def _cpu(result: Result, measured: Measured) -> str:
    """Processor time: for each item where the figure is, else of a round."""
    cpu = statistics.median(measured.cpu)
    unit = result.row.unit
    if unit.per_item and unit.scale > 1:
        return f"{number(cpu / measured.items * unit.scale)} {unit.name}"
    return f"{number(cpu)} s"


def lines(result: Result) -> list[str]:
    """A row: its title, a line for each system, a line for each target."""
    row = result.row
    text = [f"{row.name}: {row.what}"]
    head = f"    {'':20} {row.unit.name:>12} {'processor':>18} {'peak':>10}   ratio (min..max)"
    text.append(head)
    for system in row.systems:
        measured = result.systems.get(system.name)
        if not measured:
            text.append(f"    {system.name:20} {result.failed[system.name]}; left out")
            continue
        line = f"    {system.name:20} {number(measured.median):>12} {_cpu(result, measured):>18}"
        line += f" {measured.peak / 2**20:6.0f} MiB"
        if system.name == OURS:
            line += f"   ({number(min(measured.figures))}..{number(max(measured.figures))})"
        elif ratios := result.ratios(system.name):
            spread = f"({number(min(ratios))}..{number(max(ratios))})"
            line += f"   x{number(statistics.median(ratios))} {spread}"
        text.append(line)
    for target in row.targets:
        text.append(f"    {verdict(result, target)}")
    return text


def verdict(result: Result, target: Any) -> str:
    reached, met = result.reached(target), result.met(target)
    if reached is None:
        return f"{target.text(result.row.unit)}: not measured"
    return f"{target.text(result.row.unit)}: {ratio_number(reached)}, {'met' if met else 'NO'}"


def as_json(result: Result) -> dict[str, Any]:
    """Everything that was measured in a row."""
    row = result.row
    systems = {}
    for system in row.systems:
        if measured := result.systems.get(system.name):
            systems[system.name] = {
                "kind": system.kind,
                "items": measured.items,
                "figures": measured.figures,
                "processor_seconds": measured.cpu,
                "peak_bytes": measured.peak,
                "ratios": [] if system.name == OURS else result.ratios(system.name),
            }
    targets = [
        {
            "wanted": target.text(row.unit),
            "reached": result.reached(target),
            "met": result.met(target),
            "stretch": target.remark == "stretch",
        }
        for target in row.targets
    ]
    return {
        "name": row.name,
        "what": row.what,
        "unit": row.unit.name,
        "systems": systems,
        "failed": result.failed,
        "targets": targets,
    }


def losses(results: list[Result]) -> list[str]:
    """Where a peer needs less than we do."""
    found = []
    for result in results:
        for name in result.peers():
            ratio = result.ratio(name)
            if ratio is not None and ratio < 1:
                found.append(f"{result.row.name}: {name} x{number(ratio)}")
    return found


def summary(results: list[Result]) -> list[str]:
    """The targets that were not reached, the rows that we lose, and how many there are."""
    verdicts = [
        (result.row.name, verdict(result, target), result.met(target), target.remark == "stretch")
        for result in results
        for target in result.row.targets
    ]
    text: list[str] = []
    for title, stretch in (("Targets", False), ("Stretches", True)):
        these = [v for v in verdicts if v[3] == stretch and v[2] is not None]
        missed = [v for v in these if not v[2]]
        if these:
            text.append(f"{title}: {len(these) - len(missed)} met, {len(missed)} not")
            text += [f"    {name}: {words}" for name, words, _, _ in missed]
    unmeasured = [f"    {name}: {words}" for name, words, met, _ in verdicts if met is None]
    if unmeasured:
        text += [f"Not measured: {len(unmeasured)}", *unmeasured]
    lost = losses(results)
    text.append(f"Faster than us, by the median: {len(lost)}")
    return text + [f"    {words}" for words in lost]
