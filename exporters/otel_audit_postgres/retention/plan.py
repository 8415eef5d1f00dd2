"""The retention plan: the effect of the policy by month and class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final

from otel_audit._util.ids import time_of
from otel_audit._util.months import next_month
from otel_audit_postgres.archive.catalog import RecordedArchive, latest, recorded_archives
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.retention.policy import (
    LONGEST_MONTH,
    PolicyError,
    RecordKind,
    RetentionClass,
    RetentionPolicy,
)

_PARTITIONS: Final = """
SELECT part.relname, pg_total_relation_size(part.oid)
FROM pg_inherits i JOIN pg_class part ON part.oid = i.inhrelid
WHERE i.inhparent = 'audit.audit_logs'::regclass AND part.relname ~ '^audit_logs_\\d{4}_\\d{2}$'
ORDER BY 1
"""
_LEVEL: Final = (
    r"CASE WHEN payload::text !~ '\\u(0000|[dD][89a-fA-F])' THEN payload ->> 'level' END"
)
_KINDS: Final = """
SELECT tenant_id, event_name, action, {level} AS level, count(*),
       sum(octet_length(payload::text))::bigint
FROM audit.audit_logs WHERE id >= audit.uuid_at($1) AND id < audit.uuid_at($2)
GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
"""
_WAITING: Final = (
    "SELECT count(*) FROM audit.ledger_queue "
    "WHERE id >= audit.uuid_at($1) AND id < audit.uuid_at($2)"
)
_MAY_ASK: Final = "SELECT has_function_privilege('audit.hold_on(text, bigint)', 'EXECUTE')"
_HELD: Final = "SELECT audit.hold_on($1, 0)"
_KIND_OF: Final = """
SELECT tenant_id, event_name, action, {level} AS level, id, occurred_at
FROM audit.audit_logs WHERE id = $1
"""
_NOW: Final = "SELECT now()"
CLOCKS_APART: Final = timedelta(minutes=5)
"""Largest difference between this machine's clock and the database's; above it nothing is done."""


@dataclass(frozen=True, slots=True)
class PlannedClass:
    """The records of one class in a month.

    Attributes:
        says: What the policy says of it.
        events: Of which events.
        rows: How many.
        size: Bytes of their payloads.
        leaves_on: From which day on it may leave the database; None: never.
        expires_on: From which day on its archive may go; None: never.
    """

    says: RetentionClass
    events: frozenset[str]
    rows: int
    size: int
    leaves_on: date | None
    expires_on: date | None

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            "class": self.says.name, "rows": self.rows, "bytes": self.size,
            "min": self.says.min, "max": self.says.max, "hot": self.says.hot,
            "archive": self.says.archive,
            "leaves_on": _iso(self.leaves_on), "expires_on": _iso(self.expires_on),
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class PlannedMonth:
    """The plan for a month.

    Attributes:
        month: Its first day.
        partition: Its table.
        size: Bytes of the table with its indexes.
        classes: What is in it.
        is_archived: Whether there is a manifest of it.
        first_day: The first day on which it may leave the database; None: never.
        blocked_by: What keeps it there, in words.
        is_held: Whether a legal hold does.
    """

    month: date
    partition: str
    size: int
    classes: tuple[PlannedClass, ...]
    is_archived: bool
    first_day: date | None
    blocked_by: tuple[str, ...]
    is_held: bool = False

    @property
    def rows(self) -> int:
        """The number of rows."""
        return sum(one.rows for one in self.classes)

    def is_due(self, today: date) -> bool:
        """Whether the month is due."""
        return self.first_day is not None and self.first_day <= today and not self.blocked_by

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        return {
            "month": f"{self.month:%Y-%m}", "partition": self.partition, "rows": self.rows,
            "bytes": self.size, "archived": self.is_archived, "first_day": _iso(self.first_day),
            "blocked_by": list(self.blocked_by),
            "classes": [one.as_json() for one in self.classes],
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class RetentionPlan:
    """The plan of a run.

    Attributes:
        today: The day for which it is.
        months: Those in the database, the first one first.
        archives: Those that were archived.
    """

    today: date
    months: tuple[PlannedMonth, ...]
    archives: tuple[RecordedArchive, ...]

    @property
    def due(self) -> list[PlannedMonth]:
        """The months that are due now, in their order."""
        return [one for one in self.months if one.is_due(self.today)]


async def plan(dsn: str, policy: RetentionPolicy, today: date | None = None) -> RetentionPlan:
    """Return what a run would do, without a change.

    Args:
        dsn: The audit store, as a role that sees all of it.
        policy: The policy.
        today: For which day; by default for the database's.

    Raises:
        PolicyError: The policy contradicts itself for records that are there.
        StoreError: The store cannot be read, or the clocks are apart.
    """
    async with ledger_queries.opened(dsn, "plan retention", asks=True) as connection:
        return await planned(connection, policy, today)


async def planned(
    connection: Connection[Any], policy: RetentionPolicy, today: date | None = None
) -> RetentionPlan:
    """As `plan`, on an open connection."""
    await ledger_queries.unlimited(connection)
    await ledger_queries.refuse_partial_view(connection)
    day = await trusted_day(connection) if today is None else today
    archives = await recorded_archives(connection)
    archived = latest(archives)
    may_ask = await connection.fetchval(_MAY_ASK)
    months = []
    for name, size in await connection.fetch(_PARTITIONS):
        month = date(int(name[-7:-3]), int(name[-2:]), 1)
        if next_month(month) > day:
            continue
        classes = await _classes(connection, policy, month)
        blocked = []
        waiting = await connection.fetchval(_WAITING, *_span(month))
        if waiting:
            blocked.append(f"{waiting} rows wait to be sealed")
        held = await connection.fetchval(_HELD, name) if may_ask else None
        if held is not None:
            blocked.append(held)
        months.append(
            PlannedMonth(
                month, name, size, classes, month in archived,
                _first_day(month, classes, policy), tuple(blocked), held is not None,
            )
        )  # fmt: skip
    return RetentionPlan(day, tuple(months), tuple(archives))


async def explain(
    dsn: str, policy: RetentionPolicy, record_id: Any
) -> tuple[RecordKind, RetentionClass, date | None]:
    """Return the rules for a record, and the day from which it may leave the database."""
    async with ledger_queries.opened(dsn, "explain retention", asks=True) as connection:
        row = await connection.fetchrow(_KIND_OF.format(level=_LEVEL), record_id)
    if row is None:
        raise PolicyError(f"there is no record {record_id} in the store")
    kind = RecordKind(*list(row.values())[:4])
    says = policy.explain(kind)
    moment = time_of(row["id"])
    month = date(moment.year, moment.month, 1)
    return kind, says, None if says.hot is None else next_month(month) + timedelta(days=says.hot)


async def trusted_day(connection: Connection[Any]) -> date:
    """Today, by the database's clock, if this machine's clock is close to it.

    Raises:
        PolicyError: They are apart: one of them jumped, and nothing may go by a wrong clock.
    """
    there: datetime = await connection.fetchval(_NOW)
    here = datetime.now(UTC)
    if abs(there - here) > CLOCKS_APART:
        raise PolicyError(
            f"the database's clock says {there:%Y-%m-%d %H:%M}, this machine's "
            f"{here:%Y-%m-%d %H:%M} (UTC): nothing goes by a wrong clock; set it right"
        )
    return there.astimezone(UTC).date()


def _span(month: date) -> tuple[datetime, datetime]:
    return _midnight(month), _midnight(next_month(month))


def _midnight(day: date) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=UTC)


async def _classes(
    connection: Connection[Any], policy: RetentionPolicy, month: date
) -> tuple[PlannedClass, ...]:
    level = _LEVEL if policy.reads_level else "NULL::text"
    counted: dict[str, tuple[RetentionClass, frozenset[str], int, int]] = {}
    for *values, rows, size in await connection.fetch(_KINDS.format(level=level), *_span(month)):
        kind = RecordKind(*values)
        says = policy.explain(kind)
        _, events, known_rows, known_size = counted.get(says.name, (says, frozenset(), 0, 0))
        counted[says.name] = (says, events | {kind.event}, known_rows + rows, known_size + size)
    end = next_month(month)
    return tuple(
        PlannedClass(
            says, events, rows, size,
            None if says.hot is None else end + timedelta(days=says.hot),
            None if says.expires_after is None else end + timedelta(days=says.expires_after),
        )
        for _, (says, events, rows, size) in sorted(counted.items())
    )  # fmt: skip


def _first_day(
    month: date, classes: Sequence[PlannedClass], policy: RetentionPolicy
) -> date | None:
    """The day when the month's last class may leave the database. A month leaves as a whole."""
    end = next_month(month)
    if not classes:
        return end + timedelta(days=policy.floor)
    stays = [one for one in classes if one.says.hot is None]
    longest = max(classes, key=lambda one: one.says.hot or 0)
    for one in classes:
        most = one.says.max
        if most is None:
            continue
        for other in [*stays, longest]:
            days = other.says.hot
            if days is None or days > most - LONGEST_MONTH:
                raise PolicyError(
                    f"{month:%Y-%m}: by rule {one.says.rules['max']!r} records must be gone after "
                    f"{most} days, and by rule {other.says.rules.get('hot', 'default')!r} others "
                    f"of the same month stay in the database "
                    f"{'for ever' if days is None else f'{days} days'}: a month goes as a whole"
                )
    return None if stays else end + timedelta(days=longest.says.hot or 0)


def _iso(day: date | None) -> str | None:
    return None if day is None else day.isoformat()
