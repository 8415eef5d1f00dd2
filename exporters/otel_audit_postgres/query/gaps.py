"""Missing sequence numbers in the producers' streams."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.delivery.producer_records import ENDED, STARTED
from otel_audit_postgres.connection import connect, disconnect
from otel_audit_postgres.errors import as_store_error

_CONNECT_TIMEOUT: Final = 5.0
"""Seconds: a person waits for the answer."""

# no producer counts from below 1 or beyond what a double holds exactly; older stores may have such
# numbers, and times that are none
_NUMBERED: Final = """
WITH numbered AS (
    SELECT id, producer_id, received_by, service_name, event_name,
           entities @> ARRAY['audit.conflict:*'] AS is_beside,
           CASE WHEN sequence_number BETWEEN 1 AND 9007199254740992 THEN sequence_number END
               AS sequence_number,
           sequence_number IS NULL AS is_unnumbered,
           least(greatest(recorded_at, '0001-01-01 00:00:01+00'), now()) AS recorded_at
    FROM audit.audit_logs
)
"""
_PRODUCERS: Final = f"""
{_NUMBERED}
SELECT producer_id, received_by, max(service_name) AS service, max(sequence_number) AS highest,
       count(*) FILTER (WHERE is_unnumbered) AS unnumbered,
       bool_or(event_name = $2) AS started,
       max(sequence_number) FILTER (WHERE event_name = $3) AS ended,
       count(*) FILTER (WHERE is_beside) AS conflicts,
       max(recorded_at) AS heard,
       extract(epoch FROM now() - max(recorded_at))::float8 AS silent_for
FROM numbered
WHERE producer_id IS NOT NULL AND ($1::timestamptz IS NULL OR id >= audit.uuid_at($1))
GROUP BY producer_id, received_by ORDER BY min(recorded_at), producer_id, received_by
"""  # noqa: S608 - constants
_MISSING: Final = f"""
{_NUMBERED}
SELECT producer_id, received_by, before + 1 AS first, sequence_number - 1 AS last
FROM (
    SELECT producer_id, received_by, sequence_number,
           lag(sequence_number) OVER (
               PARTITION BY producer_id, received_by ORDER BY sequence_number
           ) AS before
    FROM numbered
    WHERE sequence_number IS NOT NULL AND producer_id IS NOT NULL
      AND ($1::timestamptz IS NULL OR id >= audit.uuid_at($1))
    UNION ALL
    -- every stream begins at 1; of a time that begins later nobody knows
    SELECT producer_id, received_by, min(sequence_number), 0 FROM numbered
    WHERE sequence_number IS NOT NULL AND producer_id IS NOT NULL AND $1::timestamptz IS NULL
    GROUP BY producer_id, received_by
) AS neighbours
WHERE sequence_number - before > 1 ORDER BY producer_id, first
"""  # noqa: S608 - constants
# the first user of a producer's id is the producer; read only if several have used one
_FIRST_USERS: Final = """
SELECT DISTINCT ON (producer_id) producer_id, received_by FROM audit.audit_logs
WHERE producer_id = ANY($1::text[]) ORDER BY producer_id, recorded_at, id
"""

StreamKey = tuple[str, str | None]
"""A producer, and by which credential its records came."""


@dataclass(frozen=True, slots=True)
class ProducerStream:
    """One producer's stream, as the store knows it.

    A stream is all records under a producer's id by one credential. So no other sender can fill
    another's gap, or make one, by its id and numbers.

    Attributes:
        producer_id: The producer.
        service: Its service's name, where known.
        highest: The highest number that is stored; 0 where none is.
        missing: Ranges of numbers that are not stored, each as first and last.
        unnumbered: Records of actions that were cut down before they were given a number.
        started: Whether the record that it began is stored.
        ended: Whether its last record says that it ended in order.
        heard: When the database took its latest record.
        silent_for: Seconds since then.
        received_by: By which credential the records came; None if the application wrote them.
        is_first: Whether this credential was the first to use the producer's id. A later one is
            another producer, or the same by another way: its numbers say nothing.
        conflicts: Records of it that are stored under another id than they came under.
    """

    producer_id: str
    service: str | None
    highest: int
    missing: tuple[tuple[int, int], ...]
    unnumbered: int
    started: bool
    ended: bool
    heard: datetime
    silent_for: float
    received_by: str | None = None
    is_first: bool = True
    conflicts: int = 0

    @property
    def missing_count(self) -> int:
        """Numbers that are not stored."""
        return sum(last - first + 1 for first, last in self.missing)

    @property
    def lost_at_least(self) -> int:
        """Records that must be missing: a number may be that of an action that was cut down."""
        return max(self.missing_count - self.unnumbered, 0)


async def find_gaps(dsn: str, *, since: datetime | None = None) -> list[ProducerStream]:
    """Look through the streams of all producers.

    Args:
        dsn: The audit store, for a role that may read all of ``audit.audit_logs``.
        since: Only records whose action began after this; then what is missing before a stream's
            first number in that time is not known.

    Returns:
        One entry for each producer and credential, in the order of their first records.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The schema is missing, or the role may not read.
    """
    connection = await connect(dsn, _CONNECT_TIMEOUT)
    try:
        with suppress_instrumentation():
            async with connection.transaction(isolation="repeatable_read", readonly=True):
                producers = await connection.fetch(_PRODUCERS, since, STARTED, ENDED)
                missing = await connection.fetch(_MISSING, since)
                users = Counter(row["producer_id"] for row in producers)
                shared = [producer for producer, count in users.items() if count > 1]
                first = await connection.fetch(_FIRST_USERS, shared) if shared else []
    except Exception as error:  # noqa: BLE001 - each becomes one of ours
        raise as_store_error(error, "read the audit store", asks=True) from None
    finally:
        await disconnect(connection)
    ranges: dict[StreamKey, list[tuple[int, int]]] = defaultdict(list)
    for row in missing:
        ranges[_key(row)].append((row["first"], row["last"]))
    first_users = {row["producer_id"]: row["received_by"] for row in first}
    return [
        _stream(
            row,
            tuple(ranges[_key(row)]),
            is_first=first_users.get(row["producer_id"], row["received_by"]) == row["received_by"],
        )
        for row in producers
    ]


def _key(row: Any) -> StreamKey:
    return row["producer_id"], row["received_by"]


def _stream(row: Any, missing: tuple[tuple[int, int], ...], *, is_first: bool) -> ProducerStream:
    highest = row["highest"] or 0
    return ProducerStream(
        producer_id=row["producer_id"],
        service=row["service"],
        highest=highest,
        missing=missing,
        unnumbered=row["unnumbered"],
        started=row["started"],
        ended=row["ended"] is not None and row["ended"] == highest,
        heard=row["heard"],
        silent_for=row["silent_for"],
        received_by=row["received_by"],
        is_first=is_first,
        conflicts=row["conflicts"],
    )
