"""`otel-audit history` and `show`: what happened to a thing, and one record in full."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import click

from otel_audit.cli.listing import Line, OutputFormat, form_option, ndjson_option, printing
from otel_audit.cli.options import dsn_option, json_option, local_option
from otel_audit.cli.query_commands import after_option, all_option, ask, limit_option, lines_of
from otel_audit.cli.record_panel import change_lines, rolled_back_line, rows_of
from otel_audit.cli.search import print_next_page_hint
from otel_audit.cli.terminal import echo, echo_document, echo_panel
from otel_audit.config import AuditConfig
from otel_audit.policy.entity_names import entity_noun

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection
    from otel_audit_postgres.query.queries import Found, Page, Shown
    from otel_audit_postgres.query.trail import Trail

_NOTHING_ABOUT: Final = (
    "nothing that this role may see is recorded about {entity}; an entity is named by the noun of "
    "its class or route (OrderRow and /orders/123: order:123; earlier records: order_row:123)"
)
_PAGE: Final = 200
"""Records that --all reads at once, texts and all."""


def _named(_context: click.Context, _parameter: click.Parameter, entity: str) -> str:
    """Refuse a text that names no entity; it would always find nothing."""
    name, _, key = entity.partition(":")
    if not name or not key:
        raise click.BadParameter(f"{entity!r} names no entity: name:key, such as order:123")
    return entity


@click.command()
@dsn_option
@click.argument("entity", callback=_named)
@all_option
@limit_option
@after_option
@local_option
@form_option
@ndjson_option
def history(  # noqa: PLR0913, PLR0917 - one for each option
    dsn: str | None,
    entity: str,
    shows_all: bool,
    limit: int,
    after: str | None,
    is_local: bool,
    form: OutputFormat,
    as_json: bool,
) -> None:
    """Show what happened to ENTITY, such as order:123.

    The oldest record comes first. Below each stands what changed: before -> after. JSON has the
    record's exact text as payload.
    """
    form = "ndjson" if as_json else form
    with printing(form, is_local=is_local) as show_lines:
        is_empty = True
        while True:
            limit = _PAGE if shows_all else limit
            page, lines = ask(dsn, _history(entity, limit, after, with_text=form != "csv"))
            show_lines(lines)
            is_empty = is_empty and not lines
            after = page.next
            if not shows_all or after is None:
                break
    if is_empty and form == "table":
        echo(_NOTHING_ABOUT.format(entity=entity))
        name, _, key = entity.partition(":")
        if (noun := entity_noun(name)) != name:
            echo(f"did you mean {noun}:{key}?", err=True)
    print_next_page_hint(page)


@click.command()
@dsn_option
@click.argument("record_id")
@local_option
@json_option
def show(dsn: str | None, record_id: str, is_local: bool, as_json: bool) -> None:
    """Show one record in full: who, what, before -> after.

    RECORD_ID may be the first digits of an id, as search shows it. --json prints the record's
    exact text.
    """
    config = AuditConfig()
    found = ask(dsn, lambda trail: _show(trail, record_id))
    if not found:
        raise click.ClickException(f"there is no record {record_id} in the store")
    for shown, others in found:
        if as_json:
            echo_document(shown.payload)
            echo(
                f"recorded at {shown.found.recorded_at.isoformat()}, "
                f"content hash {shown.content_hash.hex()}",
                err=True,
            )
            continue
        link = _trace_link(config.trace_url, shown.found)
        from otel_audit_postgres.query.display import read_record

        record = read_record(shown.payload, bodies=True)
        rows = rows_of(shown, record, others, link=link, is_local=is_local)
        echo_panel(shown.found.event_name, rows)


def _history(entity: str, limit: int, after: str | None, *, with_text: bool) -> Any:
    from otel_audit_postgres.query import queries
    from otel_audit_postgres.query.display import entity_changes, read_record
    from otel_audit_postgres.query.payloads import payload_texts

    async def answer(connection: Connection[Any]) -> tuple[Page, Sequence[Line]]:
        page = await queries.history(connection, entity, limit=limit, after=after)
        lines = await lines_of(connection, page)
        if not with_text:
            return page, lines
        known = await payload_texts(connection, page.records)
        return page, [_with_text(line, known.get((line.found.id, line.found.tenant_id)))
                      for line in lines]  # fmt: skip

    def _with_text(line: Line, text: str | None) -> Line:
        record = None if text is None else read_record(text, bodies=False)
        if record is None:
            return replace(line, payload=text)
        details = [*change_lines(entity_changes(record, entity), entity), *rolled_back_line(record)]
        return replace(line, payload=text, details=details)

    asked = {"entity": entity, "limit": limit, "after": after}
    return lambda trail: trail.ask(
        "history", asked, answer, lambda found: len(found[1]), ("audit_history", entity)
    )


async def _show(trail: Trail, beginning: str) -> list[tuple[Shown, Sequence[Found]]]:
    """The record, and further records of its action."""
    from otel_audit_postgres.query import payloads, queries
    from otel_audit_postgres.query.display import read_record

    record_id = await trail.full_id(beginning)

    async def answer(connection: Connection[Any]) -> list[tuple[Shown, Sequence[Found]]]:
        found = []
        for shown in await queries.show(connection, record_id):
            record = read_record(shown.payload, bodies=False)
            others: Sequence[Found] = ()
            if record is not None:
                async with connection.transaction():
                    others = await payloads.same_action(connection, shown.found, record.action_id)
            found.append((shown, others))
        return found

    return await trail.ask("show", {"id": record_id}, answer, len, ("audit_record", record_id))


def _trace_link(pattern: str | None, found: Found) -> str:
    if pattern is None or not found.trace_id:
        return ""
    return pattern.replace("{trace_id}", quote(found.trace_id, safe=""))
