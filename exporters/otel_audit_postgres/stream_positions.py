"""Positions of streams in the store: how far each destination has acknowledged the trail."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, NamedTuple

from otel_audit._util.printable import visible
from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.sealed_rows import Horizon, horizon, leaf_hash_at

_COLUMNS: Final = (
    "name, settings::text AS settings, origin, next_leaf, leaf_hash, turn, sent, parked, "
    "is_paused, moved_at"
)
_OPEN: Final = f"SELECT {_COLUMNS} FROM audit.open_stream($1, $2::jsonb, $3)"  # noqa: S608 - constants
_READ: Final = f"SELECT {_COLUMNS} FROM audit.streams WHERE name = $1"  # noqa: S608 - constants
_ALL: Final = f"SELECT {_COLUMNS} FROM audit.streams ORDER BY name"  # noqa: S608 - constants
_HOLD: Final = f"SELECT {_COLUMNS} FROM audit.hold_stream($1)"  # noqa: S608 - constants
_IS_STREAMER: Final = (
    "SELECT has_function_privilege('audit.open_stream(text, jsonb, bigint)', 'EXECUTE') "
    "AND has_table_privilege('audit.audit_logs', 'SELECT')"
)
# one that is gone without a word holds the lock no longer than this; its peers take over then
_PATIENCE: Final = """
SELECT set_config(name, CASE name WHEN 'transaction_timeout' THEN '0'
                                  WHEN 'tcp_keepalives_idle' THEN '60' ELSE '900000' END, true)
FROM pg_settings
WHERE name IN ('idle_in_transaction_session_timeout', 'transaction_timeout', 'tcp_keepalives_idle')
"""
_ADVANCE: Final = "SELECT audit.advance_stream($1, $2, $3, $4, $5, $6, $7, $8::jsonb)"
_PARKED: Final = (
    "SELECT leaf, record_id, reason, recorded_at FROM audit.stream_parked WHERE stream = $1 "
    "ORDER BY turn, leaf LIMIT $2"
)
_COUNT_PARKED: Final = "SELECT count(*) FROM audit.stream_parked WHERE stream = $1 AND turn = $2"
_SEALED_AT: Final = """
SELECT extract(epoch FROM clock_timestamp() - b.recorded_at)::float8 FROM audit.ledger_blocks b
WHERE b.first <= $1 ORDER BY b.first DESC LIMIT 1
"""


class PositionError(StoreError):
    """A position contradicts the log. The stream waits for a decision."""


class Refusal(NamedTuple):
    """An event that a destination refuses.

    Attributes:
        leaf: Its leaf.
        id: The record's id.
        reason: Why, in the destination's words or ours.
    """

    leaf: int
    id: uuid.UUID
    reason: str


class Parked(NamedTuple):
    """A refused event, as the store remembers it."""

    leaf: int
    record_id: uuid.UUID
    reason: str
    parked_at: datetime


@dataclass(frozen=True, slots=True)
class StreamPosition:
    """The position of a stream.

    Attributes:
        name: The stream's.
        settings: Where it goes to and what, without secrets.
        origin: The log's name; empty before anything was sealed.
        next_leaf: The first leaf that is not acknowledged.
        leaf_hash: Of the leaf before; None at the beginning and after a rewind.
        turn: Counts from 1, one more with each rewind.
        sent: Events that were acknowledged.
        parked: Events that were refused.
        is_paused: Whether it is to wait.
        moved_at: When it moved last.
    """

    name: str
    settings: Mapping[str, Any]
    origin: str
    next_leaf: int
    leaf_hash: bytes | None
    turn: int
    sent: int
    parked: int
    is_paused: bool
    moved_at: datetime


async def refuse_others(connection: Connection[Any]) -> None:
    """Raise if this role may send no stream.

    Raises:
        StoreError: It may not; the message names the remedy.
    """
    if not await connection.fetchval(_IS_STREAMER):
        raise StoreError(
            "this role may send no stream: let it be a member of otel_audit_streamer "
            "(`otel-audit init --roles --streamer ROLE`), and name it in --dsn or OTEL_AUDIT_DSN"
        )


async def open_stream(
    connection: Connection[Any], name: str, settings: Mapping[str, Any], start: int | None
) -> StreamPosition:
    """Make a stream, or update its settings; both are recorded.

    Args:
        connection: As a member of otel_audit_streamer.
        name: The stream's.
        settings: Where it goes to, without secrets.
        start: For a new one: its first leaf; None: what is sealed from now on.
    """
    text = json.dumps(settings, sort_keys=True)
    return _position(await connection.fetchrow(_OPEN, name, text, start))


async def position(connection: Connection[Any], name: str) -> StreamPosition:
    """The current position of a stream.

    Raises:
        StoreError: There is no such stream.
    """
    row = await connection.fetchrow(_READ, name)
    if row is None:
        raise StoreError(f"there is no stream {name} in this store")
    return _position(row)


async def positions(connection: Connection[Any]) -> list[StreamPosition]:
    """All streams, by name."""
    return [_position(row) for row in await connection.fetch(_ALL)]


async def hold(connection: Connection[Any], name: str) -> StreamPosition | None:
    """Become the one who sends a stream until the transaction ends, if nobody else is.

    Returns:
        Its position as it is now; None if another process sends it.
    """
    row = await connection.fetchrow(_HOLD, name)
    if row is None or row["name"] is None:
        return None
    # while a destination answers nothing is asked here, for longer than many servers allow
    await connection.execute(_PATIENCE)
    return _position(row)


async def advance(  # noqa: PLR0913, PLR0917 - what a position is
    connection: Connection[Any],
    at: StreamPosition,
    next_leaf: int,
    leaf_hash: bytes | None,
    origin: str,
    sent: int,
    refused: Sequence[Refusal],
) -> None:
    """Move a position forward from where it was.

    Raises:
        StoreUnavailableError: It is not there any more: somebody rewound it meanwhile. Whoever
            sends reads it again, and goes on from there.
    """
    refusals = json.dumps([
        # a destination's words: the store's JSON takes no NUL
        {"leaf": one.leaf, "id": str(one.id), "reason": visible(one.reason[:2000])}
        for one in refused
    ])  # fmt: skip
    if not await connection.fetchval(
        _ADVANCE, at.name, at.turn, at.next_leaf, next_leaf, leaf_hash, origin, sent, refusals
    ):
        raise StoreUnavailableError(
            f"stream {at.name}: its position is not leaf {at.next_leaf:,} any more: another "
            "process moved it, or it was rewound"
        )


async def check_position(connection: Connection[Any], at: StreamPosition) -> Horizon:
    """Compare a position with the log; returns how far the log is sealed.

    Raises:
        PositionError: It lies ahead of the log, or is of another one.
    """
    sealed = await horizon(connection)
    where = await ledger_queries.place(connection)
    if where.is_elsewhere:
        raise PositionError(f"stream {at.name}: {where}")
    if at.next_leaf > sealed.size:
        raise PositionError(ahead(at.name, at.next_leaf, sealed.size))
    if at.origin and sealed.origin and at.origin != sealed.origin:
        raise PositionError(
            f"stream {at.name}: its position is of log {at.origin!r}, and this is "
            f"{sealed.origin!r}: if the stream is to go on from here, "
            f"`otel-audit stream rewind {at.name} --to-leaf LEAF`"
        )
    if at.next_leaf and at.leaf_hash is not None:
        await check_leaf(connection, at.name, at.next_leaf, at.leaf_hash)
    return sealed


async def check_leaf(
    connection: Connection[Any], name: str, next_leaf: int, leaf_hash: bytes
) -> None:
    """See whether the last leaf that was sent is the log's.

    Raises:
        PositionError: The log has another leaf there.
    """
    found = await leaf_hash_at(connection, next_leaf - 1)
    if found is not None and found != leaf_hash:
        raise PositionError(
            f"stream {name}: leaf {next_leaf - 1:,} was sent, and the log has another one there "
            f"now: {_RESTORED.format(name=name)}"
        )


_RESTORED: Final = (
    "the store was restored from a backup, or replaced. Records that were sent may be missing in "
    "it. Nothing is sent until you choose the position: `otel-audit stream rewind "
    "{name} --to-leaf LEAF`"
)


def ahead(name: str, next_leaf: int, size: int) -> str:
    """Say that a position lies ahead of the log."""
    return (
        f"stream {name}: its position lies ahead: leaves up to {next_leaf - 1:,} were sent, and "
        f"the log has {size:,}: {_RESTORED.format(name=name)}"
    )


async def waiting_for(connection: Connection[Any], next_leaf: int, sealed: Horizon) -> float:
    """Seconds since the oldest leaf that is not sent was sealed; 0 where there is none."""
    if next_leaf >= sealed.size:
        return 0.0
    seconds: float | None = await connection.fetchval(_SEALED_AT, next_leaf)
    return max(seconds or 0.0, 0.0)


async def parked(connection: Connection[Any], name: str, most: int = 1000) -> list[Parked]:
    """The events that a stream's destination refused, in order."""
    return [Parked(*row.values()) for row in await connection.fetch(_PARKED, name, most)]


async def count_parked(connection: Connection[Any], at: StreamPosition) -> int:
    """The number of refused events since the last rewind, or since the start."""
    number: int = await connection.fetchval(_COUNT_PARKED, at.name, at.turn)
    return number


async def pause(connection: Connection[Any], name: str, *, paused: bool) -> bool:
    """Pause or resume a stream; whether it was otherwise before."""
    return await connection.fetchval("SELECT audit.pause_stream($1, $2)", name, paused) is not None


async def rewind(connection: Connection[Any], name: str, to_leaf: int, reason: str) -> None:
    """Rewind a stream, so that it sends again from a leaf on."""
    await connection.fetchval("SELECT audit.rewind_stream($1, $2, $3)", name, to_leaf, reason)


async def record_test(connection: Connection[Any], name: str) -> uuid.UUID:
    """Record a test event; its id."""
    found: uuid.UUID = await connection.fetchval("SELECT audit.test_stream($1)", name)
    return found


def _position(row: Any) -> StreamPosition:
    assert row is not None  # noqa: S101 - a function without SETOF has a row
    values = dict(row.items())
    return StreamPosition(**{**values, "settings": json.loads(values["settings"])})
