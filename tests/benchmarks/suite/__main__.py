"""Measures what otel-audit costs, against what a user would pick instead, and writes it down.

python -m tests.benchmarks.suite run [--quick] [--own] [--only request,orm] [--results DIRECTORY]
python -m tests.benchmarks.suite render [--results DIRECTORY]
python -m tests.benchmarks.suite limits [--update]
python -m tests.benchmarks.suite install
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.suite import (
    delivery,
    environments,
    growth,
    instructions,
    limits,
    loss,
    machine,
    micro,
    orm_cost,
    postgres,
    profile,
    render,
    request_cost,
    shops,
    sink_rate,
    viewer_pages,
    writing,
)

DOCS = Path(__file__).parents[3] / "docs"
RESULTS = DOCS / "performance"
PAGE = DOCS / "performance.md"

OWN = ("own", "own_rows", "writing", "sink", "micro", "profile")
"""Parts that depend on the machine's load, and compare with no other library."""

SHOWN_OF_OWN = frozenset({*OWN, "machine", "measured"})

Measure = Callable[[postgres.Databases], dict[str, Any] | None]


def measurements(asked: argparse.Namespace) -> dict[str, Measure]:
    """What there is to measure, at the size that was asked for."""
    quick: bool = asked.quick
    rows: int = asked.growth_rows or (5_000 if quick else 50_000)
    if quick:
        request = request_cost.Plan(
            rounds=3,
            seconds=0.3,
            variants=(
                "plain", "contrib", "audit:none", "audit:metadata", "audit:request_response",
                "peer:fastapi-audit",
            ),
        )  # fmt: skip
        orm = orm_cost.Plan(rows=200, singles=10, rounds=3)
        write = writing.Plan(rows=1024, rounds=3, batches=(100, 512))
        lost = loss.Plan(seconds=1, outage=2, patience=8)
        viewed = viewer_pages.Plan(20_000, 3, asked.viewer_store)
    else:
        request = request_cost.Plan(rounds=asked.rounds, seconds=asked.seconds)
        orm = orm_cost.Plan(rounds=asked.rounds)
        write = writing.Plan(rounds=max(asked.rounds - 2, 3))
        lost = loss.Plan()
        viewed = viewer_pages.Plan(1_000_000, 20, asked.viewer_store)
    if asked.own:
        write = writing.Plan(rows=1024, rounds=4, batches=(100, 512))
    ways = [way for way in orm_cost.WAYS if way.peer is None or not asked.without_peers]
    compared = [key for key in loss.COMPARED if not _is_left_out(key, asked)]
    chosen = request.variants or tuple(variant.key for variant in shops.VARIANTS)
    request = dataclasses.replace(
        request, variants=tuple(key for key in chosen if not _is_left_out(key, asked))
    )
    return {
        "request": lambda databases: request_cost.measure(databases, request),
        "own": lambda databases: request_cost.measure(databases, _own(asked)),
        "orm": lambda databases: orm_cost.measure(databases, orm, ways),
        "own_rows": lambda databases: orm_cost.measure(
            databases, orm, [way for way in orm_cost.WAYS if way.peer is None]
        ),
        "writing": lambda databases: writing.measure(databases, write),
        "sink": lambda _: sink_rate.measure(
            sink_rate.Plan(records=4_000, rounds=1) if quick else sink_rate.Plan()
        ),
        "micro": lambda _: micro.measure(0.1 if quick or asked.own else 0.5),
        "instructions": instructions.measure,
        "delivery": delivery.measure,
        "profile": lambda databases: profile.measure(databases, 4 if quick else 15),
        "loss": lambda databases: loss.measure(databases, lost, compared),
        "growth": lambda databases: growth.measure(databases, rows, 2 if quick else 5),
        "viewer": lambda databases: viewer_pages.measure(databases, viewed),
    }


def _own(asked: argparse.Namespace) -> request_cost.Plan:
    """Requests beside OpenTelemetry alone, long enough that the slowest of a hundred says much."""
    return request_cost.Plan(
        rounds=3 if asked.quick else 7,
        seconds=0.3 if asked.quick else 1.0,
        variants=("contrib", "audit:none", "audit:metadata", "audit:request_response"),
        cases=("write/1", "write/32", "read/1", "json/1", "stream/1"),
    )


def _is_left_out(variant: str, asked: argparse.Namespace) -> bool:
    return asked.without_peers and variant.startswith("peer:")


def run(asked: argparse.Namespace) -> None:
    directory: Path = asked.results
    directory.mkdir(parents=True, exist_ok=True)
    for part, measure in measurements(asked).items():
        if (asked.only and part not in asked.only) or (asked.own and part not in OWN):
            continue
        print(f"{part} …", file=sys.stderr)
        began, where = time.monotonic(), machine.describe()
        with postgres.a_server() as databases:
            results = measure(databases)
        if results is None:
            continue
        result = {"machine": where, "quick": asked.quick, "results": results}
        (directory / f"{part}.json").write_text(json.dumps(_rounded(result), indent=1) + "\n")
        print(f"{part}: {time.monotonic() - began:.0f} s", file=sys.stderr)
    write(asked)


def write(asked: argparse.Namespace) -> None:
    """Tables and plots; into the page only where the results are those of the page."""
    results = render.read(asked.results)
    if not results:
        raise SystemExit(f"no results in {asked.results}: measure first, with run")
    render.plots(results, asked.results)
    if asked.results.resolve() == RESULTS.resolve():
        render.into_page(PAGE, results)
        print(f"written: {PAGE.relative_to(DOCS.parent)}", file=sys.stderr)
        if getattr(asked, "own", False):
            print(_report({part: results[part] for part in results if part in SHOWN_OF_OWN}))
        return
    report = asked.results / "report.md"
    report.write_text(_report(results) + "\n")
    print(report.read_text())


def _report(results: render.Results) -> str:
    return "\n\n".join(f"## {name}\n\n{block}" for name, block in render.blocks(results).items())


def limit(asked: argparse.Namespace) -> None:
    if shutil.which("valgrind") is None:
        print("instructions are not counted: valgrind is not installed", file=sys.stderr)
        return
    with postgres.a_server() as databases:
        sys.exit(limits.check(databases, update=asked.update))


def install(_: argparse.Namespace) -> None:
    for peer in (*environments.PEERS, profile.PY_SPY):
        environments.python_of(peer)


def _rounded(result: Any) -> Any:
    """Four digits are more than any of this is good for."""
    if isinstance(result, dict):
        return {name: _rounded(value) for name, value in result.items()}
    if isinstance(result, list):
        return [_rounded(value) for value in result]
    return float(f"{result:.4g}") if isinstance(result, float) else result


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    parts = commands.add_parser("run", help="measure, and write the report")
    parts.add_argument("--quick", action="store_true", help="a few minutes, coarse figures")
    parts.add_argument(
        "--only", type=lambda text: set(text.split(",")), help=f"some of {','.join(render.PARTS)}"
    )
    parts.add_argument(
        "--own", action="store_true",
        help="only what depends on the machine's load and compares with no other library: six "
        "minutes; written into the page",
    )  # fmt: skip
    parts.add_argument("--rounds", type=int, default=5, help="turns of each measurement")
    parts.add_argument("--seconds", type=float, default=0.8, help="of load in one measurement")
    parts.add_argument("--growth-rows", type=int, help="let the store grow to so many rows")
    parts.add_argument(
        "--viewer-store", type=Path, metavar="DIRECTORY",
        help="keep the viewer's store there, or find it there",
    )  # fmt: skip
    parts.add_argument(
        "--without-peers", action="store_true", help="install and measure nothing of others"
    )
    parts.add_argument("--results", type=Path, help="where JSON and plots go")
    parts.set_defaults(act=run)
    again = commands.add_parser("render", help="write the report again, from the results")
    again.add_argument("--results", type=Path, default=RESULTS)
    again.set_defaults(act=write)
    limited = commands.add_parser("limits", help="fail where a request takes more instructions")
    limited.add_argument("--update", action="store_true", help="write the figures down instead")
    limited.set_defaults(act=limit)
    commands.add_parser("install", help="make the environments of the peers").set_defaults(
        act=install
    )
    asked = parser.parse_args(arguments)
    if getattr(asked, "only", None) and not asked.only <= set(render.PARTS):
        parser.error(f"--only: choose from {', '.join(render.PARTS)}")
    if asked.act is run and asked.results is None:
        # a quick look does not replace the figures that are published
        asked.results = (
            Path(tempfile.mkdtemp(prefix="otel-audit-bench-")) if asked.quick else RESULTS
        )
    asked.act(asked)


if __name__ == "__main__":
    main()
