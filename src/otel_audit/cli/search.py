"""`otel-audit search`, `history`, `show` and `stats`: questions to the trail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from otel_audit._util.loop_thread import run_lasting
from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.terminal import echo, echo_columns, echo_document, echo_json
from otel_audit.cli.verify import moment
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.query.counts import Facet, Histogram
    from otel_audit_postgres.query.grammar import Query
    from otel_audit_postgres.query.queries import Found, Page
    from otel_audit_postgres.query.trail import Trail

T = TypeVar("T")

_COLUMNS = ("time", "event", "outcome", "actor", "tenant", "target", "status", "id")
_NOTHING_ABOUT = (
    "nothing that this role may see is recorded about {entity}; an entity is named by the noun of "
    "its class or route (OrderRow and /orders/123: order:123; earlier records: order_row:123)"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, a line each.")
_limit_option = click.option("--limit", default=50, show_default=True, help="Records on a page.")
_after_option = click.option("--after", help="Continue after an earlier page.")


def _named(_context: click.Context, _parameter: click.Parameter, entity: str) -> str:
    """Refuse what can be no entity: nothing would be found, whatever happened to it."""
    name, _, key = entity.partition(":")
    if not name or not key:
        raise click.BadParameter(f"{entity!r} names no entity: name:key, such as order:123")
    return entity


def query_of(text: tuple[str, ...], options: dict[str, tuple[str, ...]]) -> Query:
    """Read the arguments and the options as one query; an option that is repeated means: any of."""
    from otel_audit_postgres.query.fields import FIELDS
    from otel_audit_postgres.query.grammar import Query, Term, Value, parse

    unknown = next((word for word in text if word.startswith("--")), None)
    if unknown is not None:
        raise click.NoSuchOption(unknown)
    terms = list(parse(" ".join(text)).terms)
    for name, values in options.items():
        if values:
            chosen = (
                Value(value[:-1], "prefix")
                if value.endswith("*") and FIELDS[name].takes_prefix
                else Value(value)
                for value in values
            )
            terms.append(Term(name, tuple(chosen)))
    return Query(tuple(terms))


def _within(query: Query, since: str | None, until: str | None) -> Query:
    """Bound a query by the options of time."""
    from otel_audit_postgres.query.grammar import Term, Value

    begin, end = moment(since), moment(until)
    if begin is not None:
        query = query.with_term(Term("time", (Value(begin.isoformat(), ">="),)))
    if end is not None:
        query = query.with_term(Term("time", (Value(end.isoformat(), "<"),)))
    return query


query_argument = click.argument("text", metavar="[QUERY]...", nargs=-1, type=click.UNPROCESSED)
# -field:value is a part of the query
QUERY_SETTINGS = {"ignore_unknown_options": True}


@click.command(context_settings=QUERY_SETTINGS)
@query_argument
@dsn_option
@click.option("--since", metavar="TIME", help="At or after: ISO 8601, or how long ago: 12h, 7d.")
@click.option("--until", metavar="TIME", help="Before: as for --since.")
@click.option("--actor", multiple=True, help="The actor's id, or else e-mail.")
@click.option("--tenant", multiple=True, help="The tenant's id.")
@click.option("--event", multiple=True, help="The event's name: order.created, or order.*.")
@click.option("--outcome", multiple=True, type=click.Choice(["success", "failure", "unknown"]))
@click.option("--target", multiple=True, help="type:id, or type.")
@click.option("--request-id", "request", multiple=True, help="The request's id.")
@click.option("--trace-id", "trace", multiple=True, help="The trace's id.")
@_limit_option
@_after_option
@_json_option
def search(  # noqa: PLR0913, PLR0917 - one for each option
    text: tuple[str, ...],
    dsn: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
    **wanted: tuple[str, ...],
) -> None:
    """Look for records, the newest first.

    QUERY has terms such as actor:ada status:5xx -event:order.* time:7d changed:price, and free
    text. Options say the same; one that is repeated means any of its values.

    That somebody looked is recorded, too, as audit.viewed; see OTEL_AUDIT_RECORD_VIEWS.
    """
    query = _within(query_of(text, wanted), since, until)
    page = _ask(dsn, lambda trail: trail.search(query, limit=limit, after=after))
    _print_page(page, as_json, "No matching records (your role may not see all tenants).")


@click.command()
@dsn_option
@click.argument("entity", callback=_named)
@_limit_option
@_after_option
@_json_option
def history(dsn: str | None, entity: str, limit: int, after: str | None, as_json: bool) -> None:
    """Show everything that happened to ENTITY, such as order:123, the oldest first."""
    page = _ask(dsn, lambda trail: trail.history(entity, limit=limit, after=after))
    _print_page(page, as_json, _NOTHING_ABOUT.format(entity=entity))


@click.command()
@dsn_option
@click.argument("record_id")
def show(dsn: str | None, record_id: str) -> None:
    """Show the record RECORD_ID in full, as JSON."""
    found = _ask(dsn, lambda trail: trail.show(record_id))
    if not found:
        raise click.ClickException(f"there is no record {record_id} in the store")
    for shown in found:
        echo_document(shown.payload)
        echo(
            f"recorded at {shown.found.recorded_at.isoformat()}, "
            f"content hash {shown.content_hash.hex()}",
            err=True,
        )


@click.command(context_settings=QUERY_SETTINGS)
@query_argument
@dsn_option
@click.option("--since", metavar="TIME", default="7d", show_default=True, help="Count from here.")
@click.option("--by", multiple=True, metavar="FIELD", help="Count the most frequent of event, …")
@_json_option
def stats(
    text: tuple[str, ...], dsn: str | None, since: str, by: tuple[str, ...], as_json: bool
) -> None:
    """Show volume per day and event, and the size of tables and indexes.

    With QUERY or --by, show what fits over time, and the most frequent values of each FIELD: event,
    outcome, actor, tenant, action, status, service, target.
    """
    if text or by:
        _print_counts(dsn, _within(query_of(text, {}), since, None), by, as_json)
        return
    begin = moment(since) or datetime.now(UTC) - timedelta(days=7)
    volume = _ask(dsn, lambda trail: trail.volume(begin))
    sizes = _ask(dsn, lambda trail: trail.sizes())
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
        ],
    )


def _print_counts(dsn: str | None, query: Query, by: tuple[str, ...], as_json: bool) -> None:
    async def answer(trail: Trail) -> tuple[Histogram, tuple[Facet, ...]]:
        return await trail.histogram(query), await trail.facets(query, by)

    histogram, facets = _ask(dsn, answer)
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
        echo(f"of the newest {max(counted):,} records that fit", err=True)
    if histogram.waiting:
        echo(f"{histogram.waiting:,} records wait for their seal", err=True)


def _ask(dsn: str | None, question: Callable[[Trail], Awaitable[T]]) -> T:
    from otel_audit_postgres.query.trail import open_trail

    async def answer() -> T:
        async with open_trail(chosen_dsn(dsn), views=AuditConfig().record_views) as trail:
            return await question(trail)

    return run_lasting(answer())


def _print_page(page: Page, as_json: bool, nothing: str) -> None:
    if as_json:
        for record in page.records:
            echo_json(asdict(record))
    elif not page.records:
        echo(nothing)
    else:
        echo_columns(_COLUMNS, [_row(record) for record in page.records])
    if page.notice is not None:
        echo(page.notice, err=True)
    if page.searched_to is not None:
        echo(f"searched back to {page.searched_to.isoformat(timespec='seconds')}", err=True)
    if page.next is not None:
        echo(f"more: --after '{page.next}'", err=True)


def _row(record: Found) -> tuple[Any, ...]:
    target = ":".join(part for part in (record.target_type, record.target_id) if part)
    reason = f" ({record.actor_reason})" if record.actor_reason else ""
    return (
        record.occurred_at.isoformat(timespec="milliseconds"), record.event_name, record.outcome,
        f"{record.actor_id}{reason}", record.tenant_id, target, record.status_code, record.id,
    )  # fmt: skip
