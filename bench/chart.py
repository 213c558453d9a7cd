"""The chart of a run: how many times as much the others take, as an SVG of our own making.

A row is a scenario, a dot a system: right of the line at 1 it takes more than pyper, left of it
less.  The whiskers are the smallest and the largest ratio of the rounds.
"""

import math
from html import escape
from textwrap import wrap
from typing import Any

WIDTH, LEFT, RIGHT, ROW, HEAD = 900, 250, 24, 19, 64
FONT = "font-family='system-ui, sans-serif'"
INK, GREY, FAINT = "#1f2328", "#6e7781", "#d8dee4"

COLOURS = {
    "python-pyper": "#0969da",
    "pypeln": "#bf3989",
    "SPDL": "#8250df",
    "futures": "#9a6700",
    "ThreadPool": "#1b7c83",
    "Pool": "#1b7c83",
    "joblib": "#cf222e",
    "mpire": "#57606a",
    "oneTBB": "#0969da",
    "FastFlow": "#8250df",
    "FastFlow, no bound": "#bf3989",
    "textbook": "#9a6700",
}
OTHER = "#953800"


def colour(name: str, kind: str) -> str:
    return GREY if kind == "floor" else COLOURS.get(name, OTHER)


class Axis:
    """A logarithmic axis over the powers of ten that hold all values."""

    def __init__(self, values: list[float]):
        self.low, self.high = 0, 1
        while 10.0**self.low > min(values):
            self.low -= 1
        while 10.0**self.high < max(values):
            self.high += 1

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def ticks(self) -> list[tuple[float, str]]:
        labels = []
        for power in range(self.low, self.high + 1):
            text = f"{10**power:,}x".replace(",", " ") if power >= 0 else f"1/{10**-power:,}"
            labels.append((self.x(10.0**power), text))
        return labels


def line(start: tuple[float, float], end: tuple[float, float], ink: str, style: str = "") -> str:
    (x1, y1), (x2, y2) = start, end
    place = f"x1='{x1:.1f}' y1='{y1:.1f}' x2='{x2:.1f}' y2='{y2:.1f}'"
    return f"<line {place} stroke='{ink}' {style}/>"


def text(x: float, y: float, words: str, size: int = 12, fill: str = INK, anchor: str = "start"):
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' fill='{fill}' "
        f"text-anchor='{anchor}'>{escape(words)}</text>"
    )


def dot(axis: Axis, y: float, system: dict[str, Any], name: str) -> list[str]:
    """A system in a row: a whisker and a dot, hollow for a floor."""
    ink, kind = colour(name, system["kind"]), system["kind"]
    low, middle, high = (axis.x(system[part]) for part in ("low", "ratio", "high"))
    fill = "white" if kind == "floor" else ink
    title = f"<title>{escape(name)}: {system['ratio']:.3g}x</title>"
    circle = f"<circle cx='{middle:.1f}' cy='{y}' r='3.6' fill='{fill}' stroke='{ink}'>"
    whisker = line((low, y), (high, y), ink, "opacity='0.45'")
    return [whisker, f"{circle}{title}</circle>"]


def chart(data: dict[str, Any], note: str) -> str:
    """The SVG of condensed results (publish.py)."""
    shown = []
    for row in data["rows"]:
        others = {name: system for name, system in row["systems"].items() if "ratio" in system}
        if others:
            shown.append((row, others))
    ratios = [s[part] for _, others in shown for s in others.values() for part in ("low", "high")]
    axis = Axis([*ratios, 1.0])

    body, y, group = [], float(HEAD), ""
    for row, others in shown:
        if row["group"] != group:
            group = row["group"]
            y += 10
            body.append(text(12, y + 4, group, 13))
            y += ROW
        body.append(text(24, y + 4, row["name"], 12))
        body.append(line((LEFT, y), (WIDTH - RIGHT, y), FAINT, "stroke-dasharray='1 3'"))
        for name, system in others.items():
            body += dot(axis, y, system, name)
        y += ROW
    bottom = y

    grid = []
    for x, label in axis.ticks():
        grid.append(line((x, HEAD), (x, bottom), FAINT))
        grid.append(text(x, HEAD - 6, label, 11, GREY, "middle"))
    one = axis.x(1.0)
    grid.append(line((one, HEAD), (one, bottom), INK, "stroke-width='1.5'"))

    legend, x, y = [], 24.0, bottom + 24
    systems = {n: s["kind"] for _, others in shown for n, s in others.items()}
    for name, kind in systems.items():
        width = 26 + 6.6 * len(name)
        if x + width > WIDTH - RIGHT:
            x, y = 24.0, y + 18
        fill = "white" if kind == "floor" else colour(name, kind)
        legend.append(
            f"<circle cx='{x}' cy='{y - 4}' r='3.6' fill='{fill}' stroke='{colour(name, kind)}'/>"
        )
        legend.append(text(x + 9, y, name, 11, GREY))
        x += width
    y += 8
    for words in ["hollow: a floor, what can be had without any library", *wrap(note, 135)]:
        y += 16
        legend.append(text(24, y, words, 11, GREY))
    height = y + 14

    title = (
        "How many times as much the others take as pyper (log scale; right of 1: pyper is ahead)"
    )
    size = f"width='{WIDTH}' height='{height:.0f}' viewBox='0 0 {WIDTH} {height:.0f}'"
    return "\n".join(
        [
            f"<svg xmlns='http://www.w3.org/2000/svg' {size} role='img'>",
            f"<title>{escape(title)}</title>",
            "<rect width='100%' height='100%' fill='white'/>",
            text(12, 24, title, 14),
            *grid,
            *body,
            *legend,
            "</svg>",
            "",
        ]
    )
