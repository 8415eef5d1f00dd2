"""A request that takes more instructions than the committed figures fails the build."""

from __future__ import annotations

import json
from typing import Any

from tests.benchmarks.suite import limits


def measured(**counts: int) -> dict[str, Any]:
    found = {name: {"instructions": count} for name, count in counts.items()}
    return {"write": {"variants": found}}


class TestLimits:
    def test_a_figure_is_a_multiple_of_the_same_run(self) -> None:
        """What OpenTelemetry takes on this machine is the measure, whatever it is."""
        assert limits.ratios(measured(contrib=1000, ours=1200)) == {"write ours": 1.2}

    def test_growth_is_told(self) -> None:
        """A twentieth more fails, and says what to do; a fiftieth does not."""
        committed = {"write ours": 1.2}
        assert list(limits.grown({"write ours": 1.2 * 1.02}, committed)) == []
        (line,) = limits.grown({"write ours": 1.2 * 1.05}, committed)
        assert "write ours takes 1.260 x" in line
        assert "make bench-limits" in line

    def test_a_case_without_a_figure_is_told(self) -> None:
        """Nothing passes because nobody has written it down."""
        (line,) = limits.grown({"write new": 1.0}, {})
        assert "write new has no figure" in line

    def test_every_case_has_a_figure(self) -> None:
        """The committed figures are those of the cases."""
        named = {
            f"{scenario} {variant}"
            for scenario, variants in limits.CASES.items()
            for variant in variants
            if variant != "contrib"
        }
        assert json.loads(limits.FIGURES.read_text()).keys() == named
