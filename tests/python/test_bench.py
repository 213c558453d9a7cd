"""The benchmark itself: it measures in turn, judges rightly, and the documents show its figures.

The scenarios are only seen to run, never judged here: how long something takes is for `make bench`.
"""

from __future__ import annotations

import json
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from printed import ROOT, run

BENCH = ROOT / "bench"


@pytest.fixture(autouse=True)
def bench_modules(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let its modules be imported by their names, here only."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(BENCH))
    yield
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(BENCH) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


# What stands for a system: it answers with the same figure each time, and logs that it did.
FAKE = """
import sys
name, figure, log = sys.argv[1:]
for line in sys.stdin:
    with open(log, "a") as file:
        file.write(f"{name} {line}")
    print(figure, 0.5, flush=True)
"""


def fake_row(log: Path, figures: dict[str, str], **more: Any) -> Any:
    import model

    systems = [
        model.System.of(
            name,
            sys.executable,
            "-c",
            FAKE,
            name,
            figure,
            log,
            kind="floor" if name == "floor" else "",
        )
        for name, figure in figures.items()
    ]
    more = {"unit": model.US, "items": 10, "whole": True} | more
    return model.Row("a row", "what it is", systems=systems, **more)


def measured(log: Path, figures: dict[str, str], **more: Any) -> Any:
    import measure

    return measure.measure(fake_row(log, figures, **more), measure.Effort(rounds=4, seconds=0.01))


def test_rounds_are_interleaved_and_every_other_one_turns_round(tmp_path: Path) -> None:
    measured(tmp_path / "log", {"pyper": "1e-6", "slow": "2e-6"})
    order = [line.split()[0] for line in (tmp_path / "log").read_text().splitlines()]
    assert order[:2] == ["pyper", "slow"]  # the warm-up
    assert order[2:] == ["pyper", "slow", "slow", "pyper"] * 2


def test_ratios_targets_and_losses(tmp_path: Path) -> None:
    import model
    import report

    targets = [
        model.ahead(3, "slow"),
        model.ahead(5, "slow"),
        model.best(0.4),
        model.best(2),
        model.within(2, "floor"),
        model.within(1.5, "floor"),
        model.at_most(2),
        model.at_most(1.9),
        model.ahead(1, "absent"),
    ]
    figures = {"pyper": "2e-6", "slow": "8e-6", "quick": "1e-6", "floor": "1e-6"}
    result = measured(tmp_path / "log", figures, targets=targets)
    assert result.ratios("slow") == pytest.approx([4.0] * 4)
    assert result.systems["pyper"].median == pytest.approx(2.0)  # in microseconds
    verdicts = [result.met(target) for target in targets]
    assert verdicts == [True, False, True, False, True, False, True, False, None]
    assert report.losses([result]) == ["a row: quick x0.500"]  # a floor is no peer
    text = "\n".join(report.lines(result) + report.summary([result]))
    assert "at least 5x slow: 4.00, NO" in text
    assert "at least 3x slow: 4.00, met" in text
    assert "at least 1x absent: not measured" in text
    assert "Targets: 4 met, 4 not" in text


def test_what_is_nothing_has_no_ratio(tmp_path: Path) -> None:
    import model
    import report

    targets = [model.ahead(3, "other"), model.best(3), model.within(1, "other"), model.at_most(1)]
    result = measured(tmp_path / "log", {"pyper": "0", "other": "1e-6"}, targets=targets)
    assert [result.met(target) for target in targets] == [None, None, None, True]
    assert report.losses([result]) == []
    line = report.lines(result)[3]
    assert line.split()[:2] == ["other", "1.00"]
    assert line.endswith(" MiB")


def test_a_slow_peer_gets_fewer_items_and_ours_does_not(tmp_path: Path) -> None:
    sleeping = "import sys, time\nfor line in sys.stdin:\n"
    sleeping += "    time.sleep(int(line) * 1e-3)\n    print(1e-3, 0, flush=True)\n"
    import measure
    import model

    ours = model.System.of("pyper", sys.executable, "-c", FAKE, "pyper", "1e-6", tmp_path / "log")
    peer = model.System.of("slow", sys.executable, "-c", sleeping)
    row = model.Row("a row", "what", model.US, 100_000, [ours, peer])
    result = measure.measure(row, measure.Effort(rounds=1, seconds=0.02))
    assert result.systems["pyper"].items == 100_000
    assert result.systems["slow"].items == 1000  # one hundredth, and no less


def test_a_peer_that_fails_is_named_and_left_out(tmp_path: Path) -> None:
    import measure
    import model
    import report

    row = fake_row(tmp_path / "log", {"pyper": "1e-6"})
    broken = "import sys\nsys.stdin.readline()\nsys.exit('out of luck')"
    peer = model.System.of("broken", sys.executable, "-c", broken)
    row = model.Row(row.name, row.what, row.unit, 10, [*row.systems, peer], whole=True)
    result = measure.measure(row, measure.Effort(rounds=2, seconds=0.01))
    assert set(result.systems) == {"pyper"}
    assert "broken               out of luck; left out" in "\n".join(report.lines(result))


def test_ours_must_not_fail() -> None:
    import measure
    import model

    ours = model.System.of("pyper", sys.executable, "-c", "import sys; sys.exit('a bug')")
    row = model.Row("a row", "what it is", model.US, 10, [ours])
    with pytest.raises(SystemExit, match="a row: .*a bug"):
        measure.measure(row, measure.Effort(rounds=1, seconds=0.01))


@pytest.mark.timeout(300)
def test_every_scenario_runs() -> None:
    done = run([sys.executable, BENCH / "run.py", "--smoke"], timeout=280)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_documents_show_the_figures_of_bench_json() -> None:
    done = run([sys.executable, BENCH / "publish.py", "--check"])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_documents_tell_what_is_not_met() -> None:
    data = json.loads((ROOT / "docs" / "bench.json").read_text())
    missed = [
        (row["name"], target["wanted"])
        for row in data["rows"]
        for target in row["targets"]
        if target["met"] is False
    ]
    text = (ROOT / "docs" / "performance.md").read_text()
    for name, wanted in missed:
        assert f"- {name}: {wanted}; reached " in text


def test_the_chart_has_a_dot_for_each_figure_it_can_show() -> None:
    data = json.loads((ROOT / "docs" / "bench.json").read_text())
    shown = [s for row in data["rows"] for s in row["systems"].values() if "ratio" in s]
    chart = ElementTree.parse(ROOT / "docs" / "bench.svg").getroot()
    titled = [c for c in chart.iter("{http://www.w3.org/2000/svg}circle") if len(c)]
    assert len(titled) == len(shown) > 0


def test_only_our_own_instructions_are_counted() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "check-instructions"))
    dump = "\n".join(
        [
            "ob=(1) /somewhere/build/bench/paths",
            "fn=(1) main",
            "10 100",
            "+2 20",
            "cob=(2) /lib/libc.so",
            "cfn=(2) malloc",
            "calls=3 0",
            "* 5000",
            "-1 3",
            "ob=(2)",
            "fn=(2)",
            "7 700",
            "ob=(1)",
            "fn=(1)",
            "* 4",
            "fn=(3) pyper__seat_check_token",
            "8 30",
            "fn=(4) pyper__seat_share_token",
            "9 1000",
            "fn=(3)",
            "8 6",
        ]
    )
    assert script["self_cost"](dump) == (1127, 36)
