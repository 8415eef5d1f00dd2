"""`otel-audit search`: records that fit a query."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from otel_audit.cli.follow import follow
from otel_audit.cli.listing import Line, OutputFormat, form_option, ndjson_option, printing
from otel_audit.cli.options import chosen_dsn, dsn_option, local_option
from otel_audit.cli.query_commands import (
    QUERY_SETTINGS,
    after_option,
    all_option,
    ask,
    limit_option,
    lines_of,
    query_argument,
    query_of,
    within,
)
from otel_audit.cli.terminal import echo

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection
    from otel_audit_postgres.query.grammar import Query
    from otel_audit_postgres.query.queries import Page
    from otel_audit_postgres.query.trail import Trail

_NOTHING: Final = "No matching records (your role may not see all tenants)."
_HIDDEN: Final = "audit.* events (looks, starts and ends of processes) are hidden: --audit-events"
_TENANT: Final = "tenant: is the tenant's id; for its readable name ask slug: or --slug"
_PAGE: Final = 500
"""Records that --all reads at once."""
_OPTIONS: Final = (
    ("--actor", "actor", "Who did it: id, or else e-mail."),
    ("--email", "email", "The actor's e-mail."),
    ("--role", "role", "The actor's role."),
    ("--tenant", "tenant", "The tenant's id."),
    ("--slug", "slug", "The tenant's readable name."),
    ("--event", "event", "order.created, or order.*."),
    ("--action", "action", "Kind of action: UPDATE."),
    ("--outcome", "outcome", "success, failure or unknown."),
    ("--status", "status", "404, 5xx, >=400 or 400..499."),
    ("--target", "target", "type:id, or type."),
    ("--entity", "entity", "Target or changed: order:123."),
    ("--changed", "changed", "A column that changed."),
    ("--service", "service", "Who recorded it."),
    ("--method", "method", "GET, POST, ..."),
    ("--path", "path", "Path or route: /orders/*."),
    ("--ip", "ip", "The client's address."),
    ("--session", "session", "The session's id."),
    ("--request-id", "request", "The request's id."),
    ("--trace-id", "trace", "The trace's id."),
    ("--phase", "phase", "completed, intent, ..."),
    ("--error", "error", "The error's type."),
)


def _field_options(command: Callable[..., None]) -> Callable[..., None]:
    """An option for each field of a query that people look for."""
    for name, field, help_text in reversed(_OPTIONS):
        kind = click.Choice(["success", "failure", "unknown"]) if field == "outcome" else None
        metavar = None if kind is None else "OUTCOME"
        command = click.option(
            name, field, multiple=True, type=kind, metavar=metavar, help=help_text
        )(command)
    return command


@click.command(context_settings=QUERY_SETTINGS)
@query_argument
@dsn_option
@click.option("--since", metavar="TIME", help="At or after: 15m, 7d, yesterday, ISO 8601.")
@click.option("--until", metavar="TIME", help="Before: as for --since.")
@_field_options
@click.option("--audit-events", "shows_own", is_flag=True, help="Show audit.* events, too.")
@click.option("--oldest-first", is_flag=True, help="Begin with the oldest.")
@click.option("--follow", "follows", is_flag=True, help="Show records on arrival, until Ctrl-C.")
@all_option
@limit_option
@after_option
@local_option
@form_option
@ndjson_option
def search(  # noqa: PLR0913, PLR0917 - one for each option
    text: tuple[str, ...],
    dsn: str | None,
    since: str | None,
    until: str | None,
    shows_own: bool,
    oldest_first: bool,
    follows: bool,
    shows_all: bool,
    limit: int,
    after: str | None,
    is_local: bool,
    form: OutputFormat,
    as_json: bool,
    **wanted: tuple[str, ...],
) -> None:
    """Search records, newest first.

    QUERY has terms such as actor:ada status:5xx -event:order.* time:7d changed:price, and free
    text, which is searched in the newest 10,000 records. Options do the same; a repeated option
    means any of its values.

    On a screen the table fits its width, the records of one action share a line, and ids are
    short. Elsewhere nothing is cut. JSON and CSV have each record.

    Each search is recorded as audit.viewed; see OTEL_AUDIT_RECORD_VIEWS.
    """
    from otel_audit_postgres.query.own_events import asks_for_own, without_own

    form = "ndjson" if as_json else form
    query = query_of(text, wanted)
    shows_own = shows_own or asks_for_own(query)
    query = within(query if shows_own else without_own(query), since, until)
    if follows:
        if shows_all or after or until or oldest_first or form == "json":
            raise click.UsageError(
                "--follow goes with --since and with --format table, ndjson or csv alone"
            )
        follow(chosen_dsn(dsn), query, form, shows_past=since is not None, is_local=is_local)
        return
    with printing(form, is_local=is_local) as show:
        is_empty = True
        while True:
            page, lines = ask(dsn, _question(query, _PAGE if shows_all else limit, after,
                                             oldest_first=oldest_first))  # fmt: skip
            show(lines)
            is_empty = is_empty and not lines
            if page.notice is not None and after is None:
                echo(page.notice, err=True)
            after = page.next
            if not shows_all or after is None:
                break
    if is_empty and form in {"table", "csv"}:
        # in a file of CSV the heading alone is the answer
        echo(_NOTHING, err=form == "csv")
        if not shows_own:
            echo(_HIDDEN, err=True)
        if any(one.field == "tenant" for one in query.terms):
            echo(_TENANT, err=True)
    print_next_page_hint(page)


def print_next_page_hint(page: Page) -> None:
    """Say on standard error where a page ends that is not the last one."""
    if page.searched_to is not None:
        echo(f"searched back to {page.searched_to.isoformat(timespec='seconds')}", err=True)
    if page.next is not None:
        echo(f"more: --after '{page.next}', or --all", err=True)


def _question(
    query: Query, limit: int, after: str | None, *, oldest_first: bool
) -> Callable[[Trail], Any]:
    from otel_audit_postgres.query import queries
    from otel_audit_postgres.query.trail import looked_at

    async def answer(connection: Connection[Any]) -> tuple[Page, Sequence[Line]]:
        page = await queries.search(
            connection, query, limit=limit, after=after, oldest_first=oldest_first
        )
        return page, await lines_of(connection, page)

    asked = {"query": str(query), "limit": limit, "after": after, "oldest_first": oldest_first}
    return lambda trail: trail.ask(
        "search", asked, answer, lambda found: len(found[1]), looked_at(query)
    )
