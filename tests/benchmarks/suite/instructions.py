"""How many instructions a request takes in its own thread: counted by callgrind, so without noise.

Time on a shared machine varies by half; what the processor is told to do varies by hundredths. It
is not time: code that runs rarely takes longer for each instruction than a loop does.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.suite.postgres import Databases
from tests.benchmarks.suite.request_cost import SCENARIOS, TOKEN, Scenario
from tests.benchmarks.suite.shops import VARIANTS, Shop, Variant, a_load, a_shop

WARMING = 60
"""Requests: the interpreter specializes what runs often, and caches fill."""

WINDOWS, COUNTED = 5, 20
"""Turns of counting, and requests in each: so many, not so long, or a busy machine would count
fewer. The median is taken, as other threads get in the way of some."""

_SUMMARY = re.compile(r"^summary: (\d+)", re.MULTILINE)

CASES = {
    "write": ("plain", "contrib", "audit:metadata", "audit:request_response"),
    "read": ("plain", "contrib", "audit:none", "audit:metadata"),
    "json": ("plain", "contrib", "audit:none", "audit:metadata"),
}


@dataclass(frozen=True)
class Case:
    """One way to run the shop, and what is asked of it."""

    scenario: Scenario
    variant: Variant

    @property
    def name(self) -> str:
        return f"{self.scenario.key}_{self.variant.key}"


def measure(
    databases: Databases, cases: Mapping[str, tuple[str, ...]] = CASES
) -> dict[str, Any] | None:
    """Count for each scenario and variant; None where there is no valgrind.

    Args:
        databases: Where the shops keep their rows and trails.
        cases: Variants of each scenario.
    """
    if shutil.which("valgrind") is None:
        print("  valgrind is not installed: nothing is counted", file=sys.stderr)
        return None
    scenarios = {one.key: one for one in SCENARIOS}
    variants = {one.key: one for one in VARIANTS}
    chosen = [
        Case(scenarios[key], variants[name]) for key, names in cases.items() for name in names
    ]
    with (
        tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch,
        ThreadPoolExecutor(2) as two,
    ):
        counted = list(two.map(lambda one: _count(databases, one, Path(scratch)), chosen))
    found: dict[str, Any] = {}
    for case, instructions in zip(chosen, counted, strict=True):
        result = found.setdefault(case.scenario.key, {"title": case.scenario.title, "variants": {}})
        result["variants"][case.variant.key] = {
            "title": case.variant.title,
            "instructions": instructions,
        }
    return found


def _count(databases: Databases, case: Case, scratch: Path) -> float:
    """Count the instructions of the main thread for one request."""
    place = scratch / f"{case.name.replace(':', '_')}"
    place.mkdir()
    shop = asyncio.run(a_shop(databases, case.variant, place, f"i_{case.scenario.key}"))
    try:
        shop.start(
            freeze=True,
            under=(
                "valgrind", "--quiet", "--tool=callgrind", "--separate-threads=yes",
                "--instr-atstart=no", f"--callgrind-out-file={place / 'counts'}",
            ),
        )  # fmt: skip
        shop.wait_until_up()
        with a_load() as load:
            asked: dict[str, Any] = {
                "port": shop.port, "method": case.scenario.method, "path": case.scenario.path,
                "status": case.scenario.status, "connections": 1, "body": case.scenario.body,
                "headers": {
                    "Content-Type": case.scenario.content_type, "Authorization": f"Bearer {TOKEN}",
                },
            }  # fmt: skip
            load.make(requests=WARMING, **asked)
            shop.meter()
            _tell(shop, "--instr=on")
            for _ in range(WINDOWS):
                load.make(requests=COUNTED, **asked)
                _tell(shop, "--dump")
            _tell(shop, "--instr=off")
    finally:
        shop.end()
    counts = [
        int(found[1])
        for turn in range(1, WINDOWS + 1)
        for found in [_SUMMARY.search((place / f"counts.{turn}-01").read_text())]
        if found is not None
    ]
    if not counts:
        raise SystemExit(f"callgrind has counted nothing for {case.name}:\n{shop.output()}")
    return statistics.median(counts) / COUNTED


def _tell(shop: Shop, what: str) -> None:
    subprocess.run(
        ["callgrind_control", what, str(shop.pid)], check=True, stdout=subprocess.DEVNULL
    )
