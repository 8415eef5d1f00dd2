"""docs/performance.md shows the results that lie beside it, and no others."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks.suite import measures, render, targets
from tests.benchmarks.suite.__main__ import PAGE, RESULTS


def test_the_page_is_what_the_results_say() -> None:
    """After a change of either: python -m tests.benchmarks.suite render."""
    results = render.read(RESULTS)
    assert set(render.PARTS) <= results.keys()
    page = PAGE.read_text()
    for name, block in render.blocks(results).items():
        assert f"<!-- {name}: begin -->\n\n{block}\n\n<!-- {name}: end -->" in page


def test_the_plots_are_what_the_results_say() -> None:
    for name, plot in render._plots(render.read(RESULTS)):
        assert (RESULTS / f"{name}.svg").read_text() == plot


class TestVerdicts:
    def test_a_spread_below_the_bound_is_met(self) -> None:
        assert targets._within(0.9, 1.1, 1.15) is True

    def test_a_spread_above_the_bound_is_missed(self) -> None:
        assert targets._within(1.2, 1.7, 1.15) is False

    def test_a_spread_around_the_bound_decides_nothing(self) -> None:
        assert targets._within(1.1, 1.9, 1.15) is None


class TestRatios:
    def test_rounds_are_compared_with_their_own(self) -> None:
        """A machine that slows down between two rounds changes no ratio."""
        compared = measures.ratio([12.0, 24.0, 120.0], [10.0, 20.0, 100.0])
        assert all(abs(value - 1.2) < 1e-9 for value in compared.values())

    def test_the_interval_holds_the_median(self) -> None:
        compared = measures.ratio([1.0, 1.1, 1.2, 1.3, 2.0], [1.0] * 5)
        assert compared["low"] <= compared["ratio"] == 1.2 <= compared["high"]
        assert compared["low"] < compared["high"]


def test_the_clock_of_another_process_counts_what_it_computes() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "sum(range(10**7)); print(flush=True); input()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        busy = measures.cpu_seconds(process.pid)
        process.stdin.close()  # type: ignore[union-attr]
    assert busy > 0.05


def test_a_page_without_a_place_is_named(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing")
    with pytest.raises(SystemExit, match="no place for machine"):
        render.into_page(page, render.read(RESULTS))
