"""The latest records: sealed, and waiting for their seal."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries

_BEGIN: Final = "SELECT coalesce(max(position), 0) FROM audit.ledger_queue"
_IS_SEEN: Final = "SELECT EXISTS (SELECT FROM audit.audit_logs WHERE id = $1)"
_WAITING: Final = (
    "SELECT position, id FROM audit.ledger_queue WHERE position > $1 ORDER BY position LIMIT $2"
)


@dataclass(frozen=True, slots=True)
class SealedPart:
    """The next part of the log, for one who follows it.

    Attributes:
        ids: Of its records, in the log's order; leaves of a month that was dropped have none.
        end: The place behind it, where the next part begins.
        size: The log's size, in leaves.
    """

    ids: list[uuid.UUID]
    end: int
    size: int

    @property
    def is_last(self) -> bool:
        """Whether nothing is sealed behind it."""
        return self.end >= self.size


async def read_sealed(connection: Connection[Any], begin: int, most: int) -> SealedPart:
    """Read on in the log.

    Args:
        connection: To the store.
        begin: The place where to begin; where the log is shorter, its end.
        most: How many leaves, 1 or more.
    """
    size = await ledger_queries.size(connection)
    end = min(begin + most, size)
    # by the leaves, not by their ids: behind collapsed ones it would stay, or go back
    return SealedPart(await sealed_ids(connection, begin, end), end, size)


async def sealed_ids(connection: Connection[Any], begin: int, end: int) -> list[uuid.UUID]:
    """The ids of leaves ``begin`` to ``end``, in the log's order, without collapsed ones."""
    if begin >= end:
        return []
    first = await connection.fetchval(
        "SELECT max(first) FROM audit.ledger_blocks WHERE first <= $1", begin
    )
    ids: list[uuid.UUID] = []
    async for block in ledger_queries.blocks(connection, begin if first is None else first, end):
        at = max(begin - block.first, 0)
        ids += block.row_ids()[at : end - block.first]
    return ids


async def place_behind(connection: Connection[Any], record_id: uuid.UUID) -> int | None:
    """The place behind a record; None if it is not sealed, or this reader may not see it."""
    if not await connection.fetchval(_IS_SEEN, record_id):
        return None
    places = [
        block.first + place + 1
        for block in await ledger_queries.blocks_about(connection, record_id)
        for place in block.places(record_id.bytes)
    ]
    return min(places, default=None)


async def end_of_queue(connection: Connection[Any]) -> int:
    """The last place in the queue of rows that wait for their seal."""
    place: int = await connection.fetchval(_BEGIN)
    return place


async def waiting_ids(
    connection: Connection[Any], after: int, most: int
) -> list[tuple[int, uuid.UUID]]:
    """The rows that wait for their seal, behind a place in the queue: place and id of each.

    A reader of some tenants only sees none of them.
    """
    found = await connection.fetch(_WAITING, after, most)
    return [(row["position"], row["id"]) for row in found]
