"""The report: tables between markers of a page, and plots beside the results."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.benchmarks.suite import svg, tables, targets
from tests.benchmarks.suite.tables import Results

PARTS = (
    "own", "own_rows", "writing", "sink", "instructions", "delivery", "profile", "micro",
    "request", "orm", "loss", "growth", "viewer",
)  # fmt: skip


def read(directory: Path) -> Results:
    """All results that are there; the machine is that of the newest."""
    results: Results = {}
    for part in PARTS:
        file = directory / f"{part}.json"
        if file.exists():
            stored = json.loads(file.read_text())
            results[part] = stored["results"]
            machine = stored["machine"]
            results.setdefault("measured", {})[part] = machine
            if (
                "machine" not in results
                or machine["measured_at"] > results["machine"]["measured_at"]
            ):
                results["machine"] = machine
    return results


def blocks(results: Results) -> dict[str, str]:
    """What stands between which markers."""
    made = {"machine": tables.machine(results), "targets": targets.judged(results)}
    writers: dict[str, Callable[[Results], Iterator[str]]] = {
        "request": tables.requests, "orm": tables.orm, "writing": tables.writing,
        "micro": tables.micro, "instructions": tables.instructions, "profile": tables.profile,
        "loss": tables.loss, "growth": tables.growth, "own": tables.own,
        "own_rows": tables.own_rows, "sink": tables.sink, "delivery": tables.delivery,
        "viewer": tables.viewer,
    }  # fmt: skip
    for part, write in writers.items():
        if part in results:
            made[part] = "\n\n".join(write(results))
    return made


def into_page(page: Path, results: Results) -> None:
    """Put the tables between ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``."""
    text = page.read_text()
    for name, block in blocks(results).items():
        begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
        pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
        if not pattern.search(text):
            raise SystemExit(f"{page}: no place for {name}; write {begin} and {end} into it")
        text = pattern.sub(lambda _, b=begin, t=block, e=end: f"{b}\n\n{t}\n\n{e}", text)
    page.write_text(text)


def plots(results: Results, directory: Path) -> None:
    """Write the plots beside the results."""
    for name, text in _plots(results):
        (directory / f"{name}.svg").write_text(text)


def _plots(results: Results) -> Iterator[tuple[str, str]]:
    if "request" in results:
        for key, name in (("write/32", "request-write"), ("read/32", "request-read")):
            case = results["request"]["scenarios"].get(key)
            if case is None:
                continue
            shown = [
                svg.Bar(
                    seen["title"],
                    seen["to_plain"]["cpu_us"]["ratio"] if "to_plain" in seen else 1.0,
                    seen["to_plain"]["cpu_us"]["low"] if "to_plain" in seen else 1.0,
                    seen["to_plain"]["cpu_us"]["high"] if "to_plain" in seen else 1.0,
                    _kind(variant),
                )
                for variant, seen in case["variants"].items()
            ]
            title = f"{case['title']}, {case['connections']} connections: CPU of a request"
            yield name, svg.bars(title, "times the plain application; 95 % intervals", shown, 1.0)
    if "orm" in results:
        name, case = next(iter(results["orm"]["cases"].items()))
        shown = [
            svg.Bar(
                way["title"], way["thread_us"]["median"], way["thread_us"]["low"],
                way["thread_us"]["high"],
                "base" if key == "plain" else "ours" if key in ("observed", "transactional")
                else "peer",
            )
            for key, way in case["ways"].items()
        ]  # fmt: skip
        yield (
            "orm",
            svg.bars(
                f"One row of {case['rows']:,} that a transaction inserts: CPU of its thread",
                "µs a row; quartiles",
                shown,
            ),
        )
    if "growth" in results:
        steps = results["growth"]["growth"]
        series = {
            name: [(step["rows"], step["query_ms"][name]) for step in steps]
            for name in steps[0]["query_ms"]
        }
        yield "growth", svg.lines("Questions as the store grows", "ms", "rows", series)
        rates = {
            what: [(step["rows"], step[name]) for step in steps]
            for name, what in (("insert_rows_per_s", "written"), ("seal_rows_per_s", "sealed"))
        }
        yield "growth-rates", svg.lines("Rates as the store grows", "rows a second", "rows", rates)


def _kind(variant: str) -> str:
    if variant.startswith("peer:"):
        return "peer"
    return "ours" if variant.startswith(("audit:", "alone:")) else "base"
