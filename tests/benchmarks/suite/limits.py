"""Fails where a request costs more instructions than the figures that are committed.

A figure is the ratio to the same request under OpenTelemetry alone, counted in the same run: so it
depends neither on the machine's load nor, but for hundredths, on its processor.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from tests.benchmarks.suite import instructions
from tests.benchmarks.suite.postgres import Databases

FIGURES: Final = Path(__file__).with_name("instruction_ratios.json")

GROWTH: Final = 0.03
"""Of the committed figure."""

CASES: Final = {
    "write": ("contrib", "audit:metadata", "audit:request_response"),
    "read": ("contrib", "audit:none", "audit:metadata"),
    "json": ("contrib", "audit:none", "audit:metadata"),
}


def check(databases: Databases, *, update: bool = False) -> int:
    """Count, and compare with the committed figures.

    Args:
        databases: Where the shops keep their rows and trails.
        update: Write the figures down instead, to be committed.

    Returns:
        The exit status: 1 where a figure has grown by more than `GROWTH`.
    """
    found = instructions.measure(databases, CASES)
    if found is None:
        return 0
    seen = ratios(found)
    if update:
        FIGURES.write_text(json.dumps(seen, indent=1) + "\n")
        return 0
    committed = json.loads(FIGURES.read_text())
    if any(grown(seen, committed)):
        # on a busy machine the delivery thread wakes up more often, which costs up to a hundredth
        print("A figure has grown: all are counted once more, and the lower one counts.")
        again = ratios(instructions.measure(databases, CASES) or {})
        seen = {name: min(ratio, again.get(name, ratio)) for name, ratio in seen.items()}
    for name, ratio in seen.items():
        print(f"{name}: {ratio:.3f} x OpenTelemetry")
    too_much = list(grown(seen, committed))
    for line in too_much:
        print(line, file=sys.stderr)
    return 1 if too_much else 0


def ratios(found: Mapping[str, Any]) -> dict[str, float]:
    """Return each case as a multiple of the same request under OpenTelemetry alone."""
    seen: dict[str, float] = {}
    for scenario, result in found.items():
        counts = {key: one["instructions"] for key, one in result["variants"].items()}
        base = counts.pop("contrib")
        for key, count in counts.items():
            seen[f"{scenario} {key}"] = round(count / base, 4)
    return seen


def grown(seen: Mapping[str, float], committed: Mapping[str, float]) -> Iterator[str]:
    """Say which figures have grown too much, or were never written down."""
    again = "make bench-limits writes the figures down, where that is meant"
    for name, ratio in seen.items():
        before = committed.get(name)
        if before is None:
            yield f"{name} has no figure in {FIGURES.name}: {again}"
        elif ratio > before * (1 + GROWTH):
            yield (
                f"{name} takes {ratio:.3f} x the instructions of OpenTelemetry, and took "
                f"{before:.3f} x: more than {GROWTH:.0%} above it; {again}"
            )
