"""`otel-audit stats`: how many records there are, of what, and how large the tables."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from otel_audit.cli.options import dsn_option, json_option, read_time
from otel_audit.cli.query_commands import (
    QUERY_SETTINGS,
    ask,
    lines_of,
    query_argument,
    query_of,
    within,
)
from otel_audit.cli.terminal import echo, echo_columns, echo_json

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection
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

    With QUERY or --by, show matching records over time, and the most frequent values of each
    FIELD: event, outcome, actor, tenant, action, status, service, target.
    """
    if text or by:
        _print_counts(dsn, within(query_of(text, {}), since, None), by, as_json)
        return
    begin = read_time(since)
    assert begin is not None  # noqa: S101 - the option has a default
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
    # of those that are empty, or were never counted, there are many; --json has them
    shown = [row for row in sizes if row.rows or (row.rows is None and _is_of_the_trail(row.name))]
    echo_columns(
        ("table", "rows (estimated)", "table bytes", "index bytes"),
        [
            (row.name, "-" if row.rows is None else row.rows, row.table_bytes, row.index_bytes)
            for row in shown
        ],
    )
    if any(row.rows is None for row in shown):
        echo("-: PostgreSQL has no estimate yet (ANALYZE, or autovacuum, makes one)", err=True)


def _is_of_the_trail(table: str) -> bool:
    return table.startswith("audit_logs")


def _print_counts(dsn: str | None, query: Query, by: tuple[str, ...], as_json: bool) -> None:
    async def answer(trail: Trail) -> tuple[Histogram, tuple[Facet, ...], Mapping[str, str]]:
        facets = await trail.facets(query, by)
        return await trail.histogram(query), facets, await _emails(trail, facets)

    histogram, facets, emails = ask(dsn, answer)
    if as_json:
        echo_json({
            "width_seconds": histogram.width.total_seconds(),
            "counted": histogram.counted,
            "bars": [asdict(bar) for bar in histogram.bars],
            "facets": [asdict(facet) for facet in facets],
            "emails": emails,
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
        rows = [
            (f"{value} ({emails[value]})" if facet.field == "actor" and value in emails else value,
             count)
            for value, count in facet.values
        ]  # fmt: skip
        rows += [("(others)", facet.others)] if facet.others else []
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


async def _emails(trail: Trail, facets: Sequence[Facet]) -> Mapping[str, str]:
    """E-mail addresses of the most frequent actors, from their latest records."""
    actors = [value for facet in facets if facet.field == "actor" for value, _ in facet.values]
    if not actors:
        return {}
    from otel_audit_postgres.query import queries
    from otel_audit_postgres.query.grammar import Query, term

    async def answer(connection: Connection[Any]) -> Mapping[str, str]:
        found: dict[str, str] = {}
        for actor in actors:
            page = await queries.search(connection, Query((term("actor", actor),)), limit=1)
            for line in await lines_of(connection, page):
                if line.email and line.email != actor:
                    found[actor] = line.email
        return found

    return await trail.ask("names", {"actors": actors}, answer, len)
