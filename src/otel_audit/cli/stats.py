"""`otel-audit stats`: how many records there are, of what, and how large the tables."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import click

from otel_audit.cli.asking import QUERY_SETTINGS, ask, query_argument, query_of, within
from otel_audit.cli.options import dsn_option, json_option, moment
from otel_audit.cli.terminal import echo, echo_columns, echo_json

if TYPE_CHECKING:
    from otel_audit_postgres.query.counts import Facet, Histogram
    from otel_audit_postgres.query.grammar import Query
    from otel_audit_postgres.query.trail import Trail


@click.command(context_settings=QUERY_SETTINGS)
@query_argument
@dsn_option
@click.option("--since", metavar="TIME", default="7d", show_default=True, help="Count from here.")
@click.option("--by", multiple=True, metavar="FIELD", help="Count the most frequent of event, …")
@json_option
def stats(
    text: tuple[str, ...], dsn: str | None, since: str, by: tuple[str, ...], as_json: bool
) -> None:
    """Count records by day and event, and show table sizes.

    With QUERY or --by, show what fits over time, and the most frequent values of each FIELD: event,
    outcome, actor, tenant, action, status, service, target.
    """
    if text or by:
        _print_counts(dsn, within(query_of(text, {}), since, None), by, as_json)
        return
    begin = moment(since) or datetime.now(UTC) - timedelta(days=7)
    volume = ask(dsn, lambda trail: trail.volume(begin))
    sizes = ask(dsn, lambda trail: trail.sizes())
    if as_json:
        echo_json(
            {"volume": [asdict(row) for row in volume], "sizes": [asdict(row) for row in sizes]}
        )
        return
    echo_columns(
        ("day", "event", "records"), [(row.day, row.event_name, row.records) for row in volume]
    )
    echo_columns(
        ("table", "rows (estimated)", "table bytes", "index bytes"),
        [
            (row.name, "?" if row.rows is None else row.rows, row.table_bytes, row.index_bytes)
            for row in sizes
            # of those that are empty there are many, and --json has them
            if row.rows != 0
        ],
    )


def _print_counts(dsn: str | None, query: Query, by: tuple[str, ...], as_json: bool) -> None:
    async def answer(trail: Trail) -> tuple[Histogram, tuple[Facet, ...]]:
        return await trail.histogram(query), await trail.facets(query, by)

    histogram, facets = ask(dsn, answer)
    if as_json:
        echo_json({
            "width_seconds": histogram.width.total_seconds(),
            "counted": histogram.counted,
            "bars": [asdict(bar) for bar in histogram.bars],
            "facets": [asdict(facet) for facet in facets],
        })  # fmt: skip
        return
    outcomes = ("success", "failure", "unknown")
    echo_columns(
        ("from", *outcomes),
        [
            (bar.begin.isoformat(timespec="minutes"), *(bar.outcomes.get(o, 0) for o in outcomes))
            for bar in histogram.bars
        ],
    )
    for facet in facets:
        rows = [*facet.values, *([("(others)", facet.others)] if facet.others else [])]
        echo_columns((facet.field, "records"), rows)
        if facet.timed_out:
            echo(f"{facet.field}: not counted, as it took too long", err=True)
    counted = [histogram.counted or 0, *(facet.counted or 0 for facet in facets)]
    if any(counted):
        echo(f"counted: the newest {max(counted):,} matching records", err=True)
    if histogram.timed_out:
        echo("over time: not counted, as it took too long", err=True)
    if histogram.waiting:
        echo(f"{histogram.waiting:,} records wait for their seal", err=True)
