"""SQL that walks along records in the order of their ids, which is that of their time."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from otel_audit._util import ids
from otel_audit_postgres.query.conditions import Conditions

WINDOW: Final = 10_000
"""Records that one question reads whole, for free text and what has no column: about 0.1 s."""

# word for word the condition of the index audit_logs_astray, or the index is of no use
ID_TIME_DIFFERS: Final = (
    "CASE WHEN isfinite(occurred_at) THEN "
    "abs(('x' || left(id::text, 8) || substr(id::text, 10, 4))::bit(48)::bigint"
    " - (extract(epoch FROM occurred_at - '1970-01-01 00:00:00+00'::timestamptz) * 1000)::bigint"
    ") > 1000 ELSE true END"
)
_LARGEST_ID_OFFSET: Final = 1002
"""Milliseconds that an id may be from its record's time and still count as equal, with rounding."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
# a row of when nothing was checked may be of any time; no datetime is before 1 or after 9999
_EARLIEST: Final = "'0001-01-01 00:00:01+00'::timestamptz"
_LATEST: Final = "'9999-12-31 23:59:59+00'::timestamptz"
_TIMES: Final = frozenset({"occurred_at", "recorded_at"})
_KEY: Final = ("id", "tenant_id", "occurred_at")


@dataclass(frozen=True, slots=True)
class Order:
    """The order of ids; ``str`` is the clause."""

    oldest_first: bool = False

    def __str__(self) -> str:
        direction = "ASC" if self.oldest_first else "DESC"
        return f"ORDER BY id {direction}, tenant_id {direction}"

    def beyond(self, asked: Conditions, record_id: uuid.UUID, tenant_id: str) -> str:
        """The condition that a record comes behind this one."""
        place = f"({asked.bind(record_id)}::uuid, {asked.bind(tenant_id)}::text)"
        return f"(id, tenant_id) {'>' if self.oldest_first else '<'} {place}"

    def end_of(self, window: str) -> str:
        """Make the query for the last record of a window, and its number of records."""
        backwards = Order(oldest_first=not self.oldest_first)
        return (
            f"SELECT id, tenant_id, occurred_at, count(*) OVER () AS records "  # noqa: S608
            f"FROM ({window}) AS walked {backwards} LIMIT 1"
        )


def within(column: str) -> str:
    """A time that a datetime can hold."""
    return f"least(greatest({column}, {_EARLIEST}), {_LATEST})"


def selected(names: Sequence[str]) -> str:
    """Columns of audit_logs, as they can be read."""
    return ", ".join(f"{within(name)} AS {name}" if name in _TIMES else name for name in names)


def walk(asked: Conditions, names: Sequence[str], order: str, *, payloads: bool = False) -> str:
    """Ask for records by conditions on columns.

    Args:
        asked: The conditions; those on payloads are left out.
        names: Columns of the answer; the first two are ``id`` and ``tenant_id``.
        order: `Order`, with a LIMIT behind it.
        payloads: With the payloads as a further column; only of the records of the answer.

    Returns:
        The SELECT; its values are those of ``asked``.
    """
    if asked.entity:
        # all, then ordered: their index knows no order, another one leads past too many
        found = f"WITH found AS MATERIALIZED ({_selecting(names, asked.columns)})"
        walked = f"SELECT {selected(names)} FROM found {order}"  # noqa: S608 - constants
        return f"{found} {_with_payloads(walked) if payloads else walked}"
    if asked.since is not None or asked.until is not None:
        return _by_time(asked, names, order, payloads=payloads)
    # as they are passed: a join would go by estimates, and read far too many
    columns = (*names, "payload") if payloads else names
    return f"{_selecting(columns, asked.columns)} {order}"


def filtered(window: str, conditions: Sequence[str], names: Sequence[str], order: str) -> str:
    """Keep those records of a window that fit.

    Args:
        window: A SELECT of some records with their payloads, bounded.
        conditions: Conditions on the payload.
        names: Columns of the answer; the window has them.
        order: As for `walk`.
    """
    return (
        f"SELECT {', '.join(names)} FROM ({window}) AS whole "  # noqa: S608 - constants
        f"WHERE {' AND '.join(conditions)} {order}"
    )


def newest(asked: Conditions, names: Sequence[str], most: int = WINDOW) -> str:
    """Make the query for the newest matching records, so many at most, with or without payloads."""
    columns = tuple(dict.fromkeys((*_KEY, *names)))
    window = walk(asked, columns, f"{Order()} LIMIT {most}", payloads=bool(asked.payload))
    return filtered(window, asked.payload, columns, "") if asked.payload else window


def standing_alone(sql: str, values: Sequence[Any]) -> tuple[str, list[Any]]:
    """A part of a query with its own values only: the server knows no type for the others."""
    numbers = sorted({int(number) for number in re.findall(r"\$(\d+)", sql)})
    renamed = {number: place for place, number in enumerate(numbers, 1)}
    text = re.sub(r"\$(\d+)", lambda found: f"${renamed[int(found[1])]}", sql)
    return text, [values[number - 1] for number in numbers]


def _selecting(names: Sequence[str], conditions: Sequence[str]) -> str:
    where = f" WHERE {' AND '.join(conditions)}" if conditions else ""
    return f"SELECT {selected(names)} FROM audit.audit_logs{where}"  # noqa: S608 - constants


def _with_payloads(walked: str) -> str:
    """The same records with their payloads, each read by its id."""
    return (
        f"SELECT walked.*, l.payload FROM ({walked}) AS walked CROSS JOIN LATERAL ("  # noqa: S608
        "SELECT whole.payload FROM audit.audit_logs AS whole WHERE whole.id = walked.id "
        "AND whole.tenant_id = walked.tenant_id LIMIT 1) AS l"
    )


def _by_time(asked: Conditions, names: Sequence[str], order: str, *, payloads: bool) -> str:
    """Scan the ids of the time span, and the index of records whose ids have another time."""
    between = [*asked.columns, f"NOT ({ID_TIME_DIFFERS})"]
    if asked.since is not None:
        between.append(f"id >= {asked.bind(_id_at(asked.since, -_LARGEST_ID_OFFSET))}::uuid")
    if asked.until is not None:
        between.append(f"id <= {asked.bind(_id_at(asked.until, _LARGEST_ID_OFFSET))}::uuid")
    columns = (*names, "payload") if payloads else names
    mismatched = f"SELECT {selected(names)} FROM mismatched {order}"  # noqa: S608 - constants
    return (
        f"WITH mismatched AS MATERIALIZED ({_selecting(names, [*asked.columns, ID_TIME_DIFFERS])}) "  # noqa: S608
        f"SELECT {selected(columns)} FROM (({_selecting(columns, between)} {order}) "
        f"UNION ALL ({_with_payloads(mismatched) if payloads else mismatched})) AS found {order}"
    )


def lowest_id(moment: datetime) -> uuid.UUID:
    """The lowest UUID of a time."""
    return _id_at(moment, 0)


def _id_at(moment: datetime, milliseconds: int) -> uuid.UUID:
    """The lowest UUID of a millisecond, so many after a moment."""
    found = (moment - _EPOCH) // timedelta(milliseconds=1) + milliseconds
    return ids.lowest_id(found)
