"""How many records fit a query: by the hour, by the values of a field, and in all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_audit_postgres.connection import Connection, QueryCanceledError
from otel_audit_postgres.query.conditions import Conditions, conditions_of
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.pagination import WINDOW, newest

MOST_BARS: Final = 100
TOP: Final = 10
COUNTED: Final = 10_000
"""Records that a count goes up to: beyond, it says that there are more."""
FACET_TIMEOUT_MS: Final = 200

FACETS: Final = (
    "event", "outcome", "actor", "tenant", "action", "status", "service", "target", "ip", "session",
)  # fmt: skip
_COLUMNS: Final = {
    "event": "event_name", "outcome": "outcome", "actor": "actor_id", "tenant": "tenant_id",
    "action": "action", "status": "status_code", "service": "service_name", "target": "target_type",
    "ip": "source_address", "session": "session_id",
}  # fmt: skip
# what the counts by the hour know
_ROLLED: Final = frozenset({"event", "outcome", "tenant"})
_HOUR: Final = timedelta(hours=1)
_LONG: Final = timedelta(hours=48)
"""Below, bars of an hour say too little."""
_MOST_WAITING: Final = 10_000
_WIDTHS: Final = tuple(
    timedelta(minutes=minutes)
    for minutes in (1, 5, 15, 60, 180, 360, 720, 1440, 4320, 10_080, 43_200, 129_600, 525_600)
)


@dataclass(frozen=True, slots=True)
class Bar:
    """Records of one span of time: how many of each outcome."""

    begin: datetime
    outcomes: dict[str, int]


@dataclass(frozen=True, slots=True)
class Histogram:
    """Records over time.

    Attributes:
        bars: At most `MOST_BARS`, the oldest first; spans without records have none.
        width: How long each span is.
        counted: Of how many records, the newest; None: of all.
        waiting: Records of the store that wait for their seal, and may not be counted yet.
    """

    bars: tuple[Bar, ...]
    width: timedelta
    counted: int | None = None
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class Facet:
    """The most frequent values of a field.

    Attributes:
        field: Its name in a query.
        values: Each with its count, the most frequent first; ``5xx`` for statuses.
        others: How many records have another value.
        counted: Of how many records, the newest; None: of all.
        timed_out: It took too long, and is not known.
    """

    field: str
    values: tuple[tuple[str, int], ...] = ()
    others: int = 0
    counted: int | None = None
    timed_out: bool = False


async def count(connection: Connection[Any], query: Query) -> int:
    """Count what fits: exactly up to `COUNTED`; one more stands for more.

    Free text is looked for in the newest `WINDOW` records only.
    """
    asked = conditions_of(query, datetime.now(UTC))
    sql = f"SELECT count(*) FROM ({newest(asked, (), COUNTED + 1)}) AS found"  # noqa: S608
    found: int = await connection.fetchval(sql, *asked.values)
    return found


async def histogram(
    connection: Connection[Any], query: Query, *, until: datetime | None = None
) -> Histogram:
    """Count what fits over time.

    From the hourly counts if they have all fields of the query and the span is long enough, else
    of the newest `WINDOW` records that fit.

    Args:
        connection: To the store.
        query: What is looked for.
        until: The end of the axis, where the query has none; now by default.
    """
    now = datetime.now(UTC)
    asked = conditions_of(query, now)
    end = min(asked.until or until or now, now + _HOUR)
    since = asked.since
    waiting = await _waiting(connection) if _is_rolled(query) else None
    if waiting is not None and (since is None or end - since >= _LONG):
        since = since or await _first_hour(connection)
        width = max(_width(end - since), _HOUR)
        sql, values = _rolled(query, now, f"{_binned('hour', width)} AS begin, outcome", "1, 2")
        return Histogram(_bars(await connection.fetch(sql, *values)), width, waiting=waiting)
    source = newest(asked, ("occurred_at", "outcome"))
    bound = f"SELECT min(occurred_at) AS first, count(*) AS records FROM ({source}) AS found"  # noqa: S608
    found = await connection.fetchrow(bound, *asked.values)
    assert found is not None  # noqa: S101 - an aggregate has a row
    width = _width(end - min(since or found["first"] or end, end))
    sql = (
        f"SELECT {_binned('occurred_at', width)} AS begin, outcome, count(*) AS records "  # noqa: S608
        f"FROM ({source}) AS found GROUP BY 1, 2 ORDER BY 1"
    )
    rows = await connection.fetch(sql, *asked.values)
    is_part = found["records"] >= WINDOW or bool(asked.payload)
    return Histogram(_bars(rows), width, found["records"] if is_part else None)


async def facets(
    connection: Connection[Any], query: Query, fields: Sequence[str]
) -> tuple[Facet, ...]:
    """Count the most frequent values of fields.

    From the hourly counts if they have all fields of the query, each within `FACET_TIMEOUT_MS`;
    all others from the newest `WINDOW` records that fit, which are read once, within twice that.

    Args:
        connection: To the store, within a transaction.
        query: What is looked for.
        fields: Of `FACETS`.
    """
    # read once for all
    is_counted = _may_be_rolled(query) and await _waiting(connection) is not None
    rolled = [name for name in fields if is_counted and name in _ROLLED]
    found = {name: await _rolled_facet(connection, query, name) for name in rolled}
    others = [name for name in fields if name not in found]
    if others:
        found |= await _window_facets(connection, query, others)
    return tuple(found[name] for name in fields)


async def facet(connection: Connection[Any], query: Query, field: str) -> Facet:
    """As `facets`, of one field."""
    (found,) = await facets(connection, query, (field,))
    return found


async def _rolled_facet(connection: Connection[Any], query: Query, field: str) -> Facet:
    now = datetime.now(UTC)
    inner, values = _rolled(query, now, f"{_value_of(field)} AS value", "1")
    rows = await _within(connection, FACET_TIMEOUT_MS, _most_frequent(field, inner), values)
    return _facet_of(field, rows, None)


async def _window_facets(
    connection: Connection[Any], query: Query, fields: Sequence[str]
) -> dict[str, Facet]:
    asked = conditions_of(query, datetime.now(UTC))
    window = newest(asked, tuple(_COLUMNS[name] for name in fields))
    parts = (
        _most_frequent(
            name,
            f"SELECT {_value_of(name)} AS value, count(*) AS records FROM w GROUP BY 1",  # noqa: S608
        )
        for name in fields
    )
    sql = f"WITH w AS MATERIALIZED ({window}) {' UNION ALL '.join(parts)}"
    rows = await _within(connection, 2 * FACET_TIMEOUT_MS, sql, asked.values)
    return {name: _facet_of(name, rows, asked) for name in fields}


def _most_frequent(field: str, counted: str) -> str:
    return (
        f"(SELECT '{field}' AS field, value, records, sum(records) OVER () AS total "  # noqa: S608
        f"FROM ({counted}) AS counted WHERE value <> '' "
        f"ORDER BY records DESC, value LIMIT {TOP})"
    )


async def _within(
    connection: Connection[Any], milliseconds: int, sql: str, values: Sequence[Any]
) -> list[Any] | None:
    """Query within a time limit; None if it was not enough."""
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
            return await connection.fetch(sql, *values)
    except QueryCanceledError:
        return None


def _facet_of(field: str, rows: Sequence[Any] | None, asked: Conditions | None) -> Facet:
    """A facet of the counted records: the newest that match ``asked``; None: of all."""
    if rows is None:
        return Facet(field, timed_out=True)
    own = [row for row in rows if row["field"] == field]
    total = int(own[0]["total"]) if own else 0
    top = tuple((row["value"], int(row["records"])) for row in own)
    is_part = asked is not None and (total >= WINDOW or bool(asked.payload))
    others = total - sum(records for _, records in top)
    return Facet(field, top, others, total if is_part else None)


def _value_of(field: str) -> str:
    column = _COLUMNS[field]
    return f"left({column}::text, 1) || 'xx'" if field == "status" else f"{column}::text"


def _is_rolled(query: Query) -> bool:
    """Whether the hourly counts have all fields of the query."""
    return all(
        one.field in _ROLLED or (one.field == "time" and not one.negated and len(one.values) == 1)
        for one in query.terms
    )


def _may_be_rolled(query: Query) -> bool:
    """Whether the counts by the hour can say which values are frequent: of all times alone."""
    asked = conditions_of(query, datetime.now(UTC))
    return _is_rolled(query) and asked.since is asked.until is None


def _rolled(query: Query, now: datetime, chosen: str, grouping: str) -> tuple[str, list[Any]]:
    """Read the hourly counts; an hour that the span cuts counts whole."""
    span = conditions_of(query, now)
    asked = conditions_of(Query(tuple(one for one in query.terms if one.field != "time")), now)
    if span.since is not None:
        asked.columns.append(f"hour > {asked.bind(span.since - _HOUR)}::timestamptz")
    if span.until is not None:
        asked.columns.append(f"hour < {asked.bind(span.until)}::timestamptz")
    where = f"WHERE {' AND '.join(asked.columns)} " if asked.columns else ""
    sql = (
        f"SELECT {chosen}, sum(records)::bigint AS records FROM audit.rollup {where}"  # noqa: S608
        f"GROUP BY {grouping} ORDER BY {grouping}"
    )
    return sql, asked.values


async def _waiting(connection: Connection[Any]) -> int | None:
    """How many records are not counted by the hour yet; None: too many, or nothing is sealed."""
    state = await connection.fetchrow("SELECT waiting, size FROM audit.ledger_state()")
    if state is None or not state["size"] or state["waiting"] > _MOST_WAITING:
        return None
    return int(state["waiting"])


async def _first_hour(connection: Connection[Any]) -> datetime:
    found: datetime | None = await connection.fetchval("SELECT min(hour) FROM audit.rollup")
    return found or datetime.now(UTC)


def _width(span: timedelta) -> timedelta:
    return next((width for width in _WIDTHS if span / width <= MOST_BARS - 1), _WIDTHS[-1])


def _binned(column: str, width: timedelta) -> str:
    return f"date_bin('{width.total_seconds():.0f} s', {column}, '1970-01-01 00:00:00+00')"


def _bars(rows: Sequence[Any]) -> tuple[Bar, ...]:
    bars: dict[datetime, dict[str, int]] = {}
    for row in rows:
        outcomes = bars.setdefault(row["begin"], {})
        outcomes[row["outcome"]] = outcomes.get(row["outcome"], 0) + int(row["records"])
    return tuple(Bar(begin, outcomes) for begin, outcomes in sorted(bars.items()))
