"""docs/performance.md shows the results that lie beside it, and no others."""

from __future__ import annotations

from tests.benchmarks.suite import render
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
