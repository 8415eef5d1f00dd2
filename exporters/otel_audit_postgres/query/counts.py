"""Counts of the records that match a query: by the hour, by the values of a field, and in total."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_audit._util.ids import time_of
from otel_audit_postgres.connection import Connection, QueryCanceledError
from otel_audit_postgres.query.conditions import Conditions, conditions_of
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.pagination import newest
from otel_audit_postgres.query.queries import resolved

MOST_BARS: Final = 100
"""Bars of a histogram: more are too narrow to see."""
TOP: Final = 10
"""Values of a field that are listed."""
COUNTED: Final = 10_000
"""Records that a count goes up to: beyond, it says that there are more."""
TIMEOUT_MS: Final = 150
"""For the counts by the hour; and for those of the newest `COUNTED` records."""
TOGETHER_MS: Final = 250
"""For all counts of a page; what is left of it, `LEAST_MS` at least, is for those of `FEWER`."""
LEAST_MS: Final = 50
"""Milliseconds that a statement gets at least: in less it would only be cancelled."""
FEWER: Final = 1_000
"""Records that are counted where the time was not enough for `COUNTED`."""

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
_ORIGIN: Final = "1970-01-01 00:00:00+00"
_RETIRED: Final = "SELECT lowest, above FROM audit.ledger_prunings ORDER BY lowest"
_TOTAL: Final = "(all)"
"""Value of the field's column in rows of totals."""
_COUNTED_ALL: Final = f"""
SELECT '{_TOTAL}' AS field, NULL AS value, NULL::timestamptz AS begin, count(*) AS records,
       NULL::bigint AS total, (SELECT width FROM chosen) FROM numbered
"""  # noqa: S608 - constants
_COUNTED_BARS: Final = f"""
SELECT NULL, outcome, date_bin((SELECT width FROM chosen), occurred_at, '{_ORIGIN}'), count(*),
       NULL, NULL
FROM numbered WHERE place <= {{most}} GROUP BY 2, 3
"""  # noqa: S608 - constants
_ROLLED_BARS: Final = """
SELECT NULL AS field, outcome AS value, begin, records, NULL::bigint AS total,
       NULL::interval AS width
FROM added WHERE begin IS NOT NULL
"""
# the narrowest with which there are not too many bars; the widest where there is none
_CHOSEN_WIDTH: Final = f"""
SELECT coalesce(min(fit), max(width)) AS width FROM (
    SELECT least(coalesce({{since}}::timestamptz, min(occurred_at), {{until}}), {{until}}) AS first
    FROM numbered
) AS began
CROSS JOIN LATERAL (
    SELECT width,
           CASE WHEN {{until}}::timestamptz - first <= width * {MOST_BARS - 1} THEN width END AS fit
    FROM unnest({{widths}}::interval[]) AS width
) AS widths
"""  # noqa: S608 - constants
_LONG: Final = timedelta(hours=48)
"""Below, bars of an hour say too little."""
_MOST_WAITING: Final = 10_000
"""Rows without a seal beyond which hourly counts, which the sealer keeps, lag too far behind."""
# each divides a minute, an hour or a day, so that bars begin at round times; then come 3 days, a
# week, 30 days, 90 days and 365 days
_WIDTHS: Final = tuple(
    timedelta(seconds=seconds)
    for seconds in (
        1,
        5,
        15,
        60,
        300,
        900,
        3600,
        10_800,
        21_600,
        43_200,
        86_400,
        259_200,
        604_800,
        2_592_000,
        7_776_000,
        31_536_000,
    )
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
        timed_out: It took too long, and is not known.
    """

    bars: tuple[Bar, ...]
    width: timedelta
    counted: int | None = None
    waiting: int = 0
    timed_out: bool = False


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


@dataclass(frozen=True, slots=True)
class Overview:
    """All counts of the records that match a query.

    Attributes:
        total: How many records, exactly up to ``bound``; one more stands for more. None: it took
            too long, and is not known.
        bound: How many records are counted at most.
        is_searched: Whether the newest records, `bound` of them, were read whole, as no column
            holds what is asked for.
        histogram: Over time.
        facets: By the values of the fields that were asked for, in their order.
    """

    total: int | None
    bound: int
    is_searched: bool
    histogram: Histogram
    facets: tuple[Facet, ...]


async def count(connection: Connection[Any], query: Query) -> int:
    """Count what fits: exactly up to `COUNTED`; one more stands for more.

    Free text is looked for in the newest `COUNTED` records only.
    """
    query, _ = await resolved(connection, query)
    asked = conditions_of(query, datetime.now(UTC))
    sql = f"SELECT count(*) FROM ({newest(asked, (), COUNTED + 1)}) AS found"  # noqa: S608
    found: int = await connection.fetchval(sql, *asked.values)
    return found


async def histogram(connection: Connection[Any], query: Query) -> Histogram:
    """Count what fits over time; see `overview`."""
    query, _ = await resolved(connection, query)
    patience = _Patience()
    rolled = await _of_hours(connection, query, (), patience)
    if rolled.histogram is not None:
        return rolled.histogram
    return (await _of_newest(connection, query, (), patience)).histogram


async def facets(
    connection: Connection[Any], query: Query, fields: Sequence[str]
) -> tuple[Facet, ...]:
    """Count the most frequent values of fields; see `overview`."""
    return (await overview(connection, query, fields)).facets


async def facet(connection: Connection[Any], query: Query, field: str) -> Facet:
    """Count the most frequent values of one field; see `overview`."""
    (found,) = await facets(connection, query, (field,))
    return found


async def overview(connection: Connection[Any], query: Query, fields: Sequence[str]) -> Overview:
    """Count what fits: in all, over time, and by the values of fields.

    The counts by the hour are asked where they know all that is asked and the span is long enough.
    All else is counted of the newest `COUNTED` records that fit, which are read once; where that
    takes longer than `TIMEOUT_MS`, of the newest `FEWER`. All of it takes `TOGETHER_MS` at most.

    Args:
        connection: To the store.
        query: What is looked for.
        fields: Of `FACETS`.
    """
    query, _ = await resolved(connection, query)
    patience = _Patience()
    rolled = await _of_hours(connection, query, fields, patience)
    others = tuple(name for name in fields if name not in rolled.facets)
    read = await _of_newest(connection, query, others, patience)
    known = rolled.facets | read.facets
    found = rolled.histogram or read.histogram
    is_searched = bool(conditions_of(query, datetime.now(UTC)).payload)
    return Overview(
        read.total, read.bound, is_searched, found, tuple(known[name] for name in fields)
    )


@dataclass(frozen=True, slots=True)
class _OfHours:
    """Results from the hourly counts; None and nothing if they lack a field."""

    histogram: Histogram | None
    facets: dict[str, Facet]


@dataclass(frozen=True, slots=True)
class _OfNewest:
    """Counts of the newest records that match."""

    total: int | None
    bound: int
    histogram: Histogram
    facets: dict[str, Facet]


class _Patience:
    """The time that all counts of a page have together."""

    def __init__(self) -> None:
        self._ends = time.monotonic() + TOGETHER_MS / 1000

    def left(self, most: float = TOGETHER_MS) -> int:
        """Milliseconds for the next statement."""
        return max(int(min(most, (self._ends - time.monotonic()) * 1000)), LEAST_MS)


async def _of_hours(
    connection: Connection[Any], query: Query, fields: Sequence[str], patience: _Patience
) -> _OfHours:
    """Ask the counts by the hour, in one pass."""
    now = datetime.now(UTC)
    span = conditions_of(query, now)
    waiting = await _waiting(connection) if _is_rolled(query) else None
    end = min(span.until or now, now + _HOUR)
    if waiting is None:
        return _OfHours(None, {})
    retired = await _retired(connection)
    since = span.since or await _first_hour(connection, retired)
    is_long = end - since >= _LONG
    width = max(_width(end - since), _HOUR)
    # an hour that the span cuts is counted whole: good enough for a bar, not for a number
    is_whole = span.since is span.until is None
    names = [name for name in fields if is_whole and name in _ROLLED]
    if not is_long and not names:
        return _OfHours(None, {})
    sql, values = _rolled(query, now, width, names, retired)
    rows = await _within(connection, patience.left(TIMEOUT_MS), sql, values)
    if rows is None:
        # the newest records say more than nothing
        return _OfHours(None, {})
    bars = _bars([row for row in rows if row["field"] is None])
    facets = {name: _facet_of(name, rows) for name in names}
    return _OfHours(Histogram(bars, width, waiting=waiting) if is_long else None, facets)


async def _of_newest(
    connection: Connection[Any], query: Query, fields: Sequence[str], patience: _Patience
) -> _OfNewest:
    """Read the newest records that fit once, and count them every way."""
    found = await _of_so_many(connection, query, fields, COUNTED, patience.left(TIMEOUT_MS))
    found = found or await _of_so_many(connection, query, fields, FEWER, patience.left())
    if found is not None:
        return found
    facets = {name: Facet(name, timed_out=True) for name in fields}
    return _OfNewest(None, 0, Histogram((), _HOUR, timed_out=True), facets)


async def _of_so_many(
    connection: Connection[Any], query: Query, fields: Sequence[str], most: int, milliseconds: int
) -> _OfNewest | None:
    """Count the newest records, so many at most; None if it took too long."""
    now = datetime.now(UTC)
    asked = conditions_of(query, now)
    end = min(asked.until or now, now + _HOUR)
    columns = dict.fromkeys(("outcome", *(_COLUMNS[name] for name in fields)))
    window = newest(asked, tuple(columns), most + 1)
    # few are soon found along the ids; the planner would read and sort all that fit
    walks = most == FEWER and not asked.entity
    rows = await _within(
        connection, milliseconds, *_counting(asked, window, end, fields, most), walks=walks
    )
    if rows is None:
        return None
    (row,) = (row for row in rows if row["field"] == _TOTAL)
    total, width = int(row["records"]), row["width"]
    counted = min(total, most) if total > most or asked.payload else None
    bars = _bars([row for row in rows if row["field"] is None])
    facets = {name: _facet_of(name, rows, counted) for name in fields}
    return _OfNewest(total, most, Histogram(bars, width, counted), facets)


def _counting(
    asked: Conditions, window: str, end: datetime, fields: Sequence[str], most: int
) -> tuple[str, list[Any]]:
    """Count the records of a window: in all, over time with bars of a fit width, and by values."""
    since = asked.bind(asked.since)
    widths, until = asked.bind(list(_WIDTHS)), asked.bind(end)
    chosen = _CHOSEN_WIDTH.format(since=since, until=until, widths=widths)
    facets = (
        _most_frequent(
            name,
            f"SELECT {_value_of(name)} AS value, count(*) AS records "  # noqa: S608
            f"FROM numbered WHERE place <= {most} GROUP BY 1",
        )
        for name in fields
    )
    sql = (
        # numbered as they come, the newest first
        f"WITH numbered AS MATERIALIZED ("  # noqa: S608
        f"SELECT *, row_number() OVER () AS place FROM ({window}) AS walked), "
        f"chosen AS MATERIALIZED ({chosen}) "
        f"{' UNION ALL '.join((_COUNTED_ALL, _COUNTED_BARS.format(most=most), *facets))}"
    )
    return sql, asked.values


def _most_frequent(field: str, counted: str) -> str:
    return (
        f"(SELECT '{field}' AS field, value, NULL::timestamptz AS begin, records, "  # noqa: S608
        f"(sum(records) OVER ())::bigint AS total, NULL::interval AS width "
        f"FROM ({counted}) AS counted WHERE value <> '' "
        f"ORDER BY records DESC, value LIMIT {TOP})"
    )


async def _within(
    connection: Connection[Any],
    milliseconds: int,
    sql: str,
    values: Sequence[Any],
    *,
    walks: bool = False,
) -> list[Any] | None:
    """Ask within a time, along an index if need be; None if the time was not enough."""
    try:
        async with connection.transaction():
            await connection.execute(f"SET LOCAL statement_timeout = {milliseconds}")
            if walks:
                await connection.execute("SET LOCAL enable_sort = off")
            return await connection.fetch(sql, *values)
    except QueryCanceledError:
        return None


def _facet_of(field: str, rows: Sequence[Any], counted: int | None = None) -> Facet:
    """A facet of what was counted: of so many records, the newest; None: of all."""
    own = [row for row in rows if row["field"] == field]
    total = int(own[0]["total"]) if own else 0
    top = tuple((row["value"], int(row["records"])) for row in own)
    others = total - sum(records for _, records in top)
    return Facet(field, top, others, counted)


def _value_of(field: str) -> str:
    column = _COLUMNS[field]
    return f"left({column}::text, 1) || 'xx'" if field == "status" else f"{column}::text"


def _is_rolled(query: Query) -> bool:
    """Whether the hourly counts have all fields of the query."""
    return all(
        one.field in _ROLLED or (one.field == "time" and not one.negated and len(one.values) == 1)
        for one in query.terms
    )


def _rolled(
    query: Query,
    now: datetime,
    width: timedelta,
    fields: Sequence[str],
    retired: Sequence[tuple[datetime, datetime]],
) -> tuple[str, list[Any]]:
    """Add up the counts by the hour: over time, and by the values of fields."""
    span = conditions_of(query, now)
    asked = conditions_of(Query(tuple(one for one in query.terms if one.field != "time")), now)
    if span.since is not None:
        asked.columns.append(f"hour > {asked.bind(span.since - _HOUR)}::timestamptz")
    if span.until is not None:
        asked.columns.append(f"hour < {asked.bind(span.until)}::timestamptz")
    asked.columns += _not_within(asked, retired)
    where = f"WHERE {' AND '.join(asked.columns)} " if asked.columns else ""
    begin = f"date_bin({asked.bind(width)}::interval, hour, '{_ORIGIN}')"
    columns = [_COLUMNS[name] for name in fields]
    facets = (
        _most_frequent(
            name,
            f"SELECT {_COLUMNS[name]} AS value, records FROM added "  # noqa: S608
            f"WHERE begin IS NULL AND {_COLUMNS[name]} IS NOT NULL",
        )
        for name in fields
    )
    sets = ", ".join(["(begin, outcome)", *(f"({column})" for column in columns)])
    names = ", ".join(dict.fromkeys(["outcome", *columns]))
    sql = (
        f"WITH added AS MATERIALIZED (SELECT begin, {names}, sum(records)::bigint AS records "  # noqa: S608
        f"FROM (SELECT {begin} AS begin, * FROM audit.rollup {where}) AS hours "
        f"GROUP BY GROUPING SETS ({sets})) {' UNION ALL '.join((_ROLLED_BARS, *facets))}"
    )
    return sql, asked.values


async def _waiting(connection: Connection[Any]) -> int | None:
    """The number of records not yet in the hourly counts; None: too many, or nothing is sealed."""
    state = await connection.fetchrow("SELECT waiting, size FROM audit.ledger_state()")
    if state is None or not state["size"] or state["waiting"] > _MOST_WAITING:
        return None
    return int(state["waiting"])


async def _retired(connection: Connection[Any]) -> list[tuple[datetime, datetime]]:
    """The times of months that were retired: the hours still count them, and no row is there."""
    spans: list[tuple[datetime, datetime]] = []
    for row in await connection.fetch(_RETIRED):
        begin, end = time_of(row[0]), time_of(row[1])
        if spans and spans[-1][1] == begin:
            begin = spans.pop()[0]
        spans.append((begin, end))
    return spans


def _not_within(asked: Conditions, spans: Sequence[tuple[datetime, datetime]]) -> list[str]:
    return [
        f"NOT (hour >= {asked.bind(begin)}::timestamptz AND hour < {asked.bind(end)}::timestamptz)"
        for begin, end in spans
    ]


async def _first_hour(
    connection: Connection[Any], retired: Sequence[tuple[datetime, datetime]]
) -> datetime:
    asked = Conditions()
    where = " AND ".join(_not_within(asked, retired)) or "true"
    sql = f"SELECT min(hour) FROM audit.rollup WHERE {where}"  # noqa: S608 - constants
    found: datetime | None = await connection.fetchval(sql, *asked.values)
    return found or datetime.now(UTC)


def _width(span: timedelta) -> timedelta:
    return next((width for width in _WIDTHS if span / width <= MOST_BARS - 1), _WIDTHS[-1])


def _bars(rows: Sequence[Any]) -> tuple[Bar, ...]:
    bars: dict[datetime, dict[str, int]] = {}
    for row in rows:
        bars.setdefault(row["begin"], {})[row["value"]] = int(row["records"])
    return tuple(Bar(begin, outcomes) for begin, outcomes in sorted(bars.items()))
