"""Questions to the audit trail: typed, asynchronous, a page at a time."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import ConfigurationError, InvalidInputError
from otel_audit.record import ANONYMOUS
from otel_audit_postgres.connection import (
    Connection,
    TimeLimits,
    connect,
    disconnect,
    translated_errors,
)
from otel_audit_postgres.query.conditions import EITHER, READABLE, conditions_of
from otel_audit_postgres.query.grammar import Query, QueryValue, Term, term
from otel_audit_postgres.query.pagination import (
    WINDOW,
    Order,
    filtered,
    selected,
    standing_alone,
    walk,
    within,
)
from otel_audit_postgres.rows import bounded_key

PAGE: Final = 50
"""Records on a page by default: a few screens."""
LARGEST_PAGE: Final = 10_000
"""Records on a page at most: a page is in memory as a whole."""
SHORTEST_ID: Final = 8
"""Digits of an id that can stand for it; fewer are of hours."""
_ID_DIGITS: Final = 32
_MOST_NAMED: Final = 10
"""Ids that an error lists."""
_HEX: Final = re.compile("[0-9a-f]+")

# a plan for any values at all does not know how few they select; compiling takes longer than asking
PLANS: Final = ("plan_cache_mode = force_custom_plan", "jit = off")

_CONNECT_TIMEOUT: Final = 10.0
"""Seconds until a store that does not answer is reported."""
FOUND_COLUMNS: Final = (
    "id", "tenant_id", "occurred_at", "recorded_at", "event_name", "outcome", "actor_id",
    "target_type", "target_id", "status_code", "request_id", "trace_id", "action_id", "phase",
    "service_name", "transaction_outcome",
)  # fmt: skip
_REASON: Final = (
    f"CASE WHEN actor_id = 'anonymous' AND {READABLE} THEN payload -> 'actor' ->> 'reason' END"
)
_REASONS: Final = (
    f"SELECT id, tenant_id, {_REASON} FROM audit.audit_logs "  # noqa: S608 - constants
    "WHERE id = ANY($1::uuid[])"
)
_ACTORS: Final = (
    "SELECT one FROM unnest($1::text[]) AS one "
    "WHERE EXISTS (SELECT FROM audit.audit_logs WHERE actor_id = one)"
)
_SHOWN: Final = (
    f"SELECT {selected(FOUND_COLUMNS)}, {_REASON}, payload, content_hash "  # noqa: S608 - constants
    "FROM audit.audit_logs WHERE id = $1 ORDER BY tenant_id"
)
# one more than are named, so that it is known whether there are more
_BEGINNING: Final = (
    "SELECT DISTINCT id FROM audit.audit_logs "  # noqa: S608 - constants
    f"WHERE id BETWEEN $1 AND $2 ORDER BY id LIMIT {_MOST_NAMED + 1}"
)
_VOLUME: Final = f"""
SELECT to_char({within("occurred_at")} AT TIME ZONE 'UTC', 'YYYY-MM-DD') AS day,
       event_name, count(*) AS records
FROM audit.audit_logs WHERE occurred_at >= $1
GROUP BY 1, 2 ORDER BY 1 DESC, 3 DESC, 2
"""  # noqa: S608 - constants
_SIZES: Final = """
SELECT c.relname AS name,
       CASE WHEN pg_relation_size(c.oid) = 0 THEN 0
            WHEN c.reltuples > 0 THEN c.reltuples::bigint END AS rows,
       pg_table_size(c.oid) AS table_bytes, pg_indexes_size(c.oid) AS index_bytes
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = 'audit' AND c.relkind = 'r' ORDER BY 1
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Criteria:
    """Search criteria; None matches everything.

    Attributes:
        since: At this time or later, aware.
        until: Before this time, aware.
        actor: The actor's id.
        tenant: The tenant's id; empty for records without one.
        event: The event's name, such as ``order.created``.
        outcome: ``success``, ``failure`` or ``unknown``.
        target: The target, as ``type:id`` or ``type``.
        entity: What it is about, as target or by a change: ``order:123``.
        request_id: The request's id.
        trace_id: The trace's id, 32 hex digits.

    Example::

        async with open_trail(dsn) as trail:
            page = await trail.search(Criteria(actor="clerk-1", outcome="failure"))
    """

    since: datetime | None = None
    until: datetime | None = None
    actor: str | None = None
    tenant: str | None = None
    event: str | None = None
    outcome: str | None = None
    target: str | None = None
    entity: str | None = None
    request_id: str | None = None
    trace_id: str | None = None

    def as_query(self) -> Query:
        """Say the same as a query."""
        texts = (
            ("actor", self.actor), ("tenant", self.tenant), ("event", self.event),
            ("outcome", self.outcome), ("target", self.target), ("entity", self.entity),
            ("request", self.request_id), ("trace", self.trace_id),
        )  # fmt: skip
        terms = [term(name, text) for name, text in texts if text is not None]
        if self.since is not None:
            terms.append(Term("time", (QueryValue(self.since.isoformat(), ">="),)))
        if self.until is not None:
            terms.append(Term("time", (QueryValue(self.until.isoformat(), "<"),)))
        return Query(tuple(terms))


@dataclass(frozen=True, slots=True)
class Found:
    """One record, in short.

    Attributes:
        id: The record's id.
        tenant_id: The tenant's id, empty where there is none.
        occurred_at: When it happened; the beginning of the year 1 or the end of 9999 for what is
            beyond.
        recorded_at: When the database took it.
        event_name: What happened.
        outcome: How it ended.
        actor_id: Who did it.
        target_type: To what kind of thing.
        target_id: To which one.
        status_code: The response's status.
        request_id: The request's id.
        trace_id: The trace's id.
        action_id: The action's id, which all its records share.
        phase: Which part of the action it tells.
        service_name: Which service recorded it.
        transaction_outcome: How the transactions that wrote ended, such as ``rolled_back``.
        actor_reason: Why no actor was identified, such as ``bad_signature``; None if ``actor_id``
            is not ``anonymous``.

    Example::

        async with open_trail(dsn) as trail:
            for one in (await trail.search(parse("event:order.*"))).records:
                print(one.occurred_at, one.actor_id, one.event_name, one.outcome)
    """

    id: uuid.UUID
    tenant_id: str
    occurred_at: datetime
    recorded_at: datetime
    event_name: str
    outcome: str
    actor_id: str
    target_type: str | None
    target_id: str | None
    status_code: int | None
    request_id: str | None
    trace_id: str | None
    action_id: str
    phase: str
    service_name: str | None
    transaction_outcome: str
    actor_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of what was found.

    Attributes:
        records: In the requested order.
        next: Where the next page begins; None if there is none.
        searched_to: Where the search stopped before the page was full, as `WINDOW` records had
            been read whole; ``next`` continues there. None: nothing was left out.
        notice: How the query was understood, where it could be understood otherwise.

    Example::

        async with open_trail(dsn) as trail:
            page = await trail.search(parse("outcome:failure"), limit=100)
            while page.next is not None:
                page = await trail.search(parse("outcome:failure"), limit=100, after=page.next)
    """

    records: tuple[Found, ...]
    next: str | None
    searched_to: datetime | None = None
    notice: str | None = None


@dataclass(frozen=True, slots=True)
class Shown:
    """One record in full.

    Attributes:
        found: The record, in short.
        payload: Its complete text, as it was hashed.
        content_hash: SHA-256 of that text, 32 bytes.

    Example::

        async with open_trail(dsn) as trail:
            for shown in await trail.show("01929e3a-5a00-7000-8000-000000000001"):
                print(record_from_payload(shown.payload).actor.id, shown.content_hash.hex())
    """

    found: Found
    payload: str
    content_hash: bytes


@dataclass(frozen=True, slots=True)
class Volume:
    """The number of records of one event on one day (UTC)."""

    day: str
    event_name: str
    records: int


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a table.

    Attributes:
        name: The table's, within schema audit.
        rows: As last estimated by the database, None if it was never analyzed.
        table_bytes: With TOAST.
        index_bytes: Of all its indexes.
    """

    name: str
    rows: int | None
    table_bytes: int
    index_bytes: int


@asynccontextmanager
async def opened(dsn: str, answer: float = 0.0) -> AsyncIterator[Connection[Any]]:
    """Open a connection for questions.

    Args:
        dsn: The audit store, as a role that may read it.
        answer: Seconds that one answer may take; 0: any.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The schema is missing, or the role lacks a right.
    """
    with suppress_instrumentation():
        connection = await connect(dsn, _CONNECT_TIMEOUT, TimeLimits(settings=PLANS, answer=answer))
        try:
            with translated_errors("read the audit store", asks=True):
                yield connection
        finally:
            await disconnect(connection)


async def search(
    connection: Connection[Any],
    wanted: Criteria | Query,
    *,
    limit: int = PAGE,
    after: str | None = None,
    oldest_first: bool = False,
) -> Page:
    """Look for records, by the order of their ids, which is that of their time.

    Args:
        connection: To the store.
        wanted: What to look for.
        limit: Records on a page, from 1 to `LARGEST_PAGE`.
        after: The ``next`` of the page before.
        oldest_first: Begin with the oldest, not with the newest.

    Returns:
        The page. Records that arrive meanwhile shift none of the pages that follow.

    Raises:
        ConfigurationError: ``limit`` or ``after`` is unfit.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise ConfigurationError(f"limit: from 1 to {LARGEST_PAGE}, not {limit}")
    query = wanted.as_query() if isinstance(wanted, Criteria) else wanted
    query, notice = await resolved(connection, query)
    asked = conditions_of(query, datetime.now(UTC))
    order = Order(oldest_first=oldest_first)
    if after is not None:
        asked.columns.append(order.beyond(asked, *_place(after)))
    if asked.payload:
        # bounded, before any payload is read
        whole = walk(asked, FOUND_COLUMNS, f"{order} LIMIT {WINDOW}", payloads=True)
        sql = filtered(whole, asked.payload, FOUND_COLUMNS, f"{order} LIMIT {limit + 1}")
    else:
        sql = walk(asked, FOUND_COLUMNS, f"{order} LIMIT {limit + 1}")
    rows = [Found(*row.values()) for row in await connection.fetch(sql, *asked.values)]
    found = await _with_reasons(connection, rows[:limit])
    if len(rows) > limit:
        last = rows[limit - 1]
        return Page(found, f"{last.id}/{last.tenant_id}", notice=notice)
    if asked.payload:
        window = walk(asked, FOUND_COLUMNS, f"{order} LIMIT {WINDOW}")
        alone, values = standing_alone(window, asked.values)
        end = await connection.fetchrow(order.end_of(alone), *values)
        if end is not None and end["records"] >= WINDOW:
            at = f"{end['id']}/{end['tenant_id']}"
            return Page(found, at, searched_to=end["occurred_at"], notice=notice)
    return Page(found, None, notice=notice)


async def history(
    connection: Connection[Any], entity: str, *, limit: int = PAGE, after: str | None = None
) -> Page:
    """Everything that happened to an entity, the oldest first.

    Args:
        connection: To the store.
        entity: Such as ``order:123``.
        limit: As for `search`.
        after: As for `search`.

    Returns:
        The page.

    Raises:
        ConfigurationError: As for `search`.
    """
    return await search(
        connection, Criteria(entity=entity), limit=limit, after=after, oldest_first=True
    )


async def show(connection: Connection[Any], record_id: str) -> tuple[Shown, ...]:
    """One record in full.

    Args:
        connection: To the store.
        record_id: Its id.

    Returns:
        The record; none if there is none, several only where tenants share an id.

    Raises:
        ConfigurationError: ``record_id`` is not a UUID.
    """
    try:
        wanted = uuid.UUID(record_id)
    except ValueError:
        raise ConfigurationError(f"{record_id} is not a record's id, which is a UUID") from None
    rows = await connection.fetch(_SHOWN, wanted)
    return tuple(
        Shown(Found(*tuple(row.values())[:-2]), row["payload"], row["content_hash"]) for row in rows
    )


async def full_id(connection: Connection[Any], beginning: str) -> uuid.UUID:
    """Find the record's id that begins so.

    Args:
        connection: To the store.
        beginning: At least `SHORTEST_ID` hexadecimal digits, with or without hyphens; a whole id is
            given back as it is, whether there is such a record or not.

    Raises:
        InvalidInputError: It is not a beginning of an id.
        ConfigurationError: There is no such record, or there are several.
    """
    digits = beginning.replace("-", "").lower()
    if not _HEX.fullmatch(digits) or not SHORTEST_ID <= len(digits) <= _ID_DIGITS:
        raise InvalidInputError(
            f"{beginning[:100]} is not a record's id, which is a UUID, or the first {SHORTEST_ID} "
            "digits of one, or more"
        )
    first, last = (uuid.UUID(digits.ljust(_ID_DIGITS, filler)) for filler in "0f")
    if first == last:
        return first
    found = [row["id"] for row in await connection.fetch(_BEGINNING, first, last)]
    if not found:
        raise ConfigurationError(f"no record has an id that begins with {beginning}")
    if len(found) > 1:
        several = ", ".join(map(str, found[:_MOST_NAMED]))
        more = " and more" if len(found) > _MOST_NAMED else ""
        raise ConfigurationError(
            f"several records have ids that begin with {beginning}: {several}{more}; give more "
            "digits"
        )
    one: uuid.UUID = found[0]
    return one


async def among(
    connection: Connection[Any], query: Query, ids: Sequence[uuid.UUID], now: datetime
) -> list[Found]:
    """The given records that match a query, in the order of ``ids``.

    Args:
        connection: To the store.
        query: What is looked for.
        ids: Of the records; few enough to be read whole.
        now: What relative times are counted from, aware.
    """
    if not ids:
        return []
    query, _ = await resolved(connection, query)
    asked = conditions_of(query, now)
    asked.columns.append(f"id = ANY({asked.bind(list(ids))}::uuid[])")
    where = " AND ".join([*asked.columns, *asked.payload])
    sql = f"SELECT {selected(FOUND_COLUMNS)} FROM audit.audit_logs WHERE {where}"  # noqa: S608
    found = [Found(*row.values()) for row in await connection.fetch(sql, *asked.values)]
    place = {record_id: number for number, record_id in enumerate(ids)}
    return sorted(found, key=lambda record: place[record.id])


async def volume(connection: Connection[Any], since: datetime) -> tuple[Volume, ...]:
    """Count records by day and event.

    Args:
        connection: To the store.
        since: From this time on, aware.

    Returns:
        The newest day first, on each day the most frequent event first.
    """
    rows = await connection.fetch(_VOLUME, since)
    return tuple(Volume(row["day"], row["event_name"], row["records"]) for row in rows)


async def sizes(connection: Connection[Any]) -> tuple[Size, ...]:
    """The sizes of the store's tables and their indexes."""
    return tuple(Size(*row.values()) for row in await connection.fetch(_SIZES))


async def resolved(connection: Connection[Any], query: Query) -> tuple[Query, str | None]:
    """Take what looks like an e-mail for the actor's id, where it is one: that has an index.

    Args:
        connection: To the store.
        query: What is looked for.

    Returns:
        The query as it can be asked, and how it was understood where it could be otherwise.
    """
    terms, notice = list(query.terms), None
    for place, one in enumerate(terms):
        addresses = {value.text for value in one.values if _is_address(value)}
        if one.field != "actor" or not addresses:
            continue
        keys = {bounded_key(address): address for address in addresses}
        rows = await connection.fetch(_ACTORS, list(keys))
        emails = addresses - {keys[row["one"]] for row in rows}
        if not emails:
            notice = "actor: taken for an id; for the e-mail of actors with other ids, ask email:"
        elif len(emails) == len(one.values):
            terms[place] = replace(one, field="email")
        else:
            terms[place] = replace(one, field=EITHER)
    return Query(tuple(terms)), notice


def _is_address(value: QueryValue) -> bool:
    return value.operator == "=" and "@" in value.text


async def _with_reasons(connection: Connection[Any], found: list[Found]) -> tuple[Found, ...]:
    """Read why no actor was identified; not for all searched records, to spare their texts."""
    anonymous = [record.id for record in found if record.actor_id == ANONYMOUS.id]
    if not anonymous:
        return tuple(found)
    rows = await connection.fetch(_REASONS, anonymous)
    reasons = {(record_id, tenant_id): reason for record_id, tenant_id, reason in rows}
    return tuple(
        replace(record, actor_reason=reasons.get((record.id, record.tenant_id))) for record in found
    )


def _place(after: str) -> tuple[uuid.UUID, str]:
    record_id, separator, tenant_id = after.partition("/")
    try:
        return uuid.UUID(record_id if separator else ""), tenant_id
    except ValueError:
        raise InvalidInputError("after: not a place that a page before gave") from None
