"""Shared parts of the commands that query the trail."""

# imports in functions: every call loads all commands, see otel_audit.cli
from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from otel_audit._util.loop_thread import run_coroutine
from otel_audit.cli.listing import Line
from otel_audit.cli.options import chosen_dsn, read_time
from otel_audit.config import AuditConfig

if TYPE_CHECKING:
    from otel_audit_postgres.connection import Connection
    from otel_audit_postgres.query.grammar import Query
    from otel_audit_postgres.query.queries import Page
    from otel_audit_postgres.query.trail import Trail

T = TypeVar("T")

query_argument = click.argument("text", metavar="[QUERY]...", nargs=-1, type=click.UNPROCESSED)
# -field:value is a part of the query
QUERY_SETTINGS: Final[dict[str, Any]] = {"ignore_unknown_options": True}
limit_option = click.option("--limit", default=50, show_default=True, help="Records on a page.")
after_option = click.option("--after", metavar="PLACE", help="Continue after an earlier page.")
all_option = click.option("--all", "shows_all", is_flag=True, help="Show all pages, not one.")


def query_of(text: tuple[str, ...], options: Mapping[str, tuple[str, ...]]) -> Query:
    """Read the arguments and the options as one query; an option that is repeated means: any of."""
    from otel_audit_postgres.query.fields import FIELDS
    from otel_audit_postgres.query.grammar import Query, QueryValue, Term, parse

    unknown = next((word for word in text if word.startswith("--")), None)
    if unknown is not None:
        raise click.NoSuchOption(unknown)
    terms = list(parse(" ".join(text)).terms)
    for name, values in options.items():
        if not values:
            continue
        if FIELDS[name].is_ordered:
            # 5xx and >=400 are checked as in a query
            terms += parse(f"{name}:{','.join(values)}").terms
            continue
        chosen = (
            QueryValue(value[:-1], "prefix")
            if value.endswith("*") and FIELDS[name].takes_prefix
            else QueryValue(value)
            for value in values
        )
        terms.append(Term(name, tuple(chosen)))
    return Query(tuple(terms))


def within(query: Query, since: str | None, until: str | None) -> Query:
    """Bound a query by the options of time."""
    from otel_audit_postgres.query.grammar import QueryValue, Term

    begin, end = read_time(since), read_time(until)
    if begin is not None:
        query = query.with_term(Term("time", (QueryValue(begin.isoformat(), ">="),)))
    if end is not None:
        query = query.with_term(Term("time", (QueryValue(end.isoformat(), "<"),)))
    return query


def ask(dsn: str | None, question: Callable[[Trail], Awaitable[T]]) -> T:
    """Query the store of ``--dsn`` or of the settings."""
    from otel_audit_postgres.query.trail import open_trail

    async def answer() -> T:
        async with open_trail(chosen_dsn(dsn), views=AuditConfig().record_views) as trail:
            return await question(trail)

    return run_coroutine(answer())


async def lines_of(connection: Connection[Any], page: Page) -> list[Line]:
    """The records of a page, with e-mail addresses and slugs."""
    from otel_audit_postgres.query.payloads import DisplayNames, names, says_who

    known = await names(connection, page.records)
    lines = []
    for one in page.records:
        called = known.get((one.id, one.tenant_id), DisplayNames(None, None))
        email = called.actor if called.actor and says_who(called.actor) else None
        slug = called.tenant if called.tenant and says_who(called.tenant) else None
        lines.append(Line(one, email, slug))
    return lines
