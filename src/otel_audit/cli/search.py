"""`otel-audit search`, `history`, `show` and `stats`: questions to the trail."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import click

from otel_audit.cli.options import chosen_dsn, dsn_option
from otel_audit.cli.terminal import echo, echo_columns, echo_document, echo_json
from otel_audit.cli.verify import moment
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.queries import Found, Page
    from otel_audit_postgres.trail import Trail

T = TypeVar("T")

_COLUMNS = ("time", "event", "outcome", "actor", "tenant", "target", "status", "id")
_NOTHING_ABOUT = (
    "nothing that this role may see is recorded about {entity}; an entity is named by the noun of "
    "its class or route (OrderRow and /orders/123: order:123; earlier records: order_row:123)"
)
_json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, a line each.")
_limit_option = click.option("--limit", default=50, show_default=True, help="Records on a page.")
_after_option = click.option("--after", help="Go on where a page before ended.")


def _named(_context: click.Context, _parameter: click.Parameter, entity: str) -> str:
    """Refuse what can be no entity: nothing would be found, whatever happened to it."""
    name, _, key = entity.partition(":")
    if not name or not key:
        raise click.BadParameter(f"{entity!r} names no entity: name:key, such as order:123")
    return entity


@click.command()
@dsn_option
@click.option("--since", metavar="TIME", help="At or after: ISO 8601, or how long ago: 12h, 7d.")
@click.option("--until", metavar="TIME", help="Before: as for --since.")
@click.option("--actor", help="The actor's id.")
@click.option("--tenant", help="The tenant's id.")
@click.option("--event", help="The event's name, such as order.created.")
@click.option("--outcome", type=click.Choice(["success", "failure", "unknown"]))
@click.option("--target", help="type:id, or type.")
@click.option("--request-id", help="The request's id.")
@click.option("--trace-id", help="The trace's id.")
@_limit_option
@_after_option
@_json_option
def search(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    since: str | None,
    until: str | None,
    limit: int,
    after: str | None,
    as_json: bool,
    **wanted: str | None,
) -> None:
    """Look for records, the newest first.

    That somebody looked is recorded, too, as audit.viewed; see OTEL_AUDIT_RECORD_VIEWS.
    """
    from otel_audit_postgres import queries

    criteria = queries.Criteria(since=moment(since), until=moment(until), **wanted)
    page = _ask(dsn, lambda trail: trail.search(criteria, limit=limit, after=after))
    _print_page(page, as_json, "no record that this role may see fits")


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


@click.command()
@dsn_option
@click.option("--since", metavar="TIME", default="7d", show_default=True, help="Count from here.")
@_json_option
def stats(dsn: str | None, since: str, as_json: bool) -> None:
    """Show volume per day and event, and the size of tables and indexes."""
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


def _ask(dsn: str | None, question: Callable[[Trail], Awaitable[T]]) -> T:
    from otel_audit_postgres.trail import open_trail

    async def answer() -> T:
        async with open_trail(chosen_dsn(dsn), views=AuditConfig().record_views) as trail:
            return await question(trail)

    return asyncio.run(answer())


def _print_page(page: Page, as_json: bool, nothing: str) -> None:
    if as_json:
        for record in page.records:
            echo_json(asdict(record))
    elif not page.records:
        echo(nothing)
    else:
        echo_columns(_COLUMNS, [_row(record) for record in page.records])
    if page.next is not None:
        echo(f"more: --after '{page.next}'", err=True)


def _row(record: Found) -> tuple[Any, ...]:
    target = ":".join(part for part in (record.target_type, record.target_id) if part)
    reason = f" ({record.actor_reason})" if record.actor_reason else ""
    return (
        record.occurred_at.isoformat(timespec="milliseconds"), record.event_name, record.outcome,
        f"{record.actor_id}{reason}", record.tenant_id, target, record.status_code, record.id,
    )  # fmt: skip
