"""What is missing from the numbered streams of records, as far as the store can tell."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.pipeline.stream import ENDED, STARTED
from otel_audit_postgres.connecting import connect, disconnect
from otel_audit_postgres.failures import as_store_error

_CONNECT_TIMEOUT: Final = 5.0

# no producer counts from below 1 or beyond what a double holds exactly; older stores may have such
# numbers, and times that are none
_NUMBERED: Final = """
WITH numbered AS (
    SELECT id, producer_id, service_name, event_name,
           CASE WHEN sequence_number BETWEEN 1 AND 9007199254740992 THEN sequence_number END
               AS sequence_number,
           sequence_number IS NULL AS is_unnumbered,
           least(greatest(recorded_at, '0001-01-01 00:00:01+00'), now()) AS recorded_at
    FROM audit.audit_logs
)
"""
_PRODUCERS: Final = f"""
{_NUMBERED}
SELECT producer_id, max(service_name) AS service, max(sequence_number) AS highest,
       count(*) FILTER (WHERE is_unnumbered) AS unnumbered,
       bool_or(event_name = $2) AS started,
       max(sequence_number) FILTER (WHERE event_name = $3) AS ended,
       max(recorded_at) AS heard,
       extract(epoch FROM now() - max(recorded_at))::float8 AS silent_for
FROM numbered
WHERE producer_id IS NOT NULL AND ($1::timestamptz IS NULL OR id >= audit.uuid_at($1))
GROUP BY producer_id ORDER BY min(recorded_at), producer_id
"""  # noqa: S608 - constants
_MISSING: Final = f"""
{_NUMBERED}
SELECT producer_id, before + 1 AS first, sequence_number - 1 AS last
FROM (
    SELECT producer_id, sequence_number,
           lag(sequence_number) OVER (PARTITION BY producer_id ORDER BY sequence_number) AS before
    FROM numbered
    WHERE sequence_number IS NOT NULL AND producer_id IS NOT NULL
      AND ($1::timestamptz IS NULL OR id >= audit.uuid_at($1))
    UNION ALL
    -- every stream begins at 1; of a time that begins later nobody knows
    SELECT producer_id, min(sequence_number), 0 FROM numbered
    WHERE sequence_number IS NOT NULL AND producer_id IS NOT NULL AND $1::timestamptz IS NULL
    GROUP BY producer_id
) AS neighbours
WHERE sequence_number - before > 1 ORDER BY producer_id, first
"""  # noqa: S608 - constants


@dataclass(frozen=True, slots=True)
class Stream:
    """One producer's stream, as the store knows it.

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

    @property
    def missing_count(self) -> int:
        """Numbers that are not stored."""
        return sum(last - first + 1 for first, last in self.missing)

    @property
    def lost_at_least(self) -> int:
        """Records that must be missing: a number may be that of an action that was cut down."""
        return max(self.missing_count - self.unnumbered, 0)


async def find_gaps(dsn: str, *, since: datetime | None = None) -> list[Stream]:
    """Look through the streams of all producers.

    Args:
        dsn: The audit store, for a role that may read all of ``audit.audit_logs``.
        since: Only records whose action began after this; then what is missing before a stream's
            first number in that time is not known.

    Returns:
        One entry for each producer, in the order of their first records.

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
    except Exception as error:  # noqa: BLE001 - each becomes one of ours
        raise as_store_error(error, "read the audit store", asks=True) from None
    finally:
        await disconnect(connection)
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for row in missing:
        ranges[row["producer_id"]].append((row["first"], row["last"]))
    return [_stream(row, tuple(ranges[row["producer_id"]])) for row in producers]


def _stream(row: Any, missing: tuple[tuple[int, int], ...]) -> Stream:
    highest = row["highest"] or 0
    return Stream(
        producer_id=row["producer_id"],
        service=row["service"],
        highest=highest,
        missing=missing,
        unnumbered=row["unnumbered"],
        started=row["started"],
        ended=row["ended"] is not None and row["ended"] == highest,
        heard=row["heard"],
        silent_for=row["silent_for"],
    )
