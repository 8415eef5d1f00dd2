"""Queries on the ledger's tables, and the connection for them."""

from __future__ import annotations

import re
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec
from opentelemetry.instrumentation.utils import suppress_instrumentation

from otel_audit.errors import StoreError, StoreUnavailableError
from otel_audit_postgres.connection import Connection, connect, disconnect, translated_errors
from otel_audit_postgres.ledger.leaves import Block, Leaf, Pruned
from otel_audit_postgres.rows import COLUMNS

_HASH: Final = re.compile(r"[0-9a-f]{64}")
BLOCKS_AT_ONCE: Final = 64
"""Blocks that are fetched at once, of up to some thousand leaves each."""

BYTES_AT_ONCE: Final = 16_000_000
"""Bytes of payload that are read in one go, or one row."""

# exact in numeric; a time that has no microseconds form was not recorded by us
_MICROSECONDS: Final = (
    "CASE WHEN isfinite({0}recorded_at) AND {0}recorded_at < '290000-01-01 00:00:00+00' "
    "THEN (extract(epoch FROM {0}recorded_at) * 1000000)::bigint ELSE -1 END AS recorded_us"
)
# a row of an old version may hold times outside datetime's range; they are read as NULL
_READABLE: Final = (
    "CASE WHEN {0} > '0001-01-01 00:00:00+00' "
    "AND {0} < '9999-12-31 23:59:59.999999+00' THEN {0} END"
)
_NAMES: Final = ", ".join(
    f"{_READABLE.format('a.occurred_at')} AS occurred_at" if name == "occurred_at" else f"a.{name}"
    for name, _ in COLUMNS
)
_TRY_LEAD: Final = "SELECT audit.try_to_lead()"
_OUTLOOK: Final = """
SELECT EXISTS (SELECT FROM audit.ledger_queue) AS waits,
       (SELECT coalesce(max(size), 0) FROM audit.ledger_checkpoints) AS size
"""
_RECORD_QUARANTINED: Final = "SELECT audit.record_quarantined()"
_RECORDED_QUARANTINED: Final = """
SELECT a.id, payload -> 'metadata' -> 'content_hashes' AS hashes,
       t.record_id IS NOT NULL AS is_recorded
FROM audit.audit_logs a LEFT JOIN audit.quarantine_records t ON t.record_id = a.id
WHERE a.event_name = 'audit.records.quarantined' ORDER BY a.id
"""
_MISSING_IN_QUARANTINE: Final = "SELECT audit.unkept_quarantine($1::text[])"
_PLACE: Final = "SELECT here, recorded FROM audit.ledger_place()"
_MOVE: Final = "SELECT audit.move_ledger_here()"
_HOLDERS: Final = "SELECT pid, role, application, seconds FROM audit.sealing_holder()"
_INSTALLED: Final = """
SELECT EXISTS (
    SELECT FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = 'audit' AND c.relname = 'quarantine_records')
"""
# a role whose view is limited to some tenants; roles exist where row security is active
_SEES_ALL: Final = """
SELECT CASE WHEN row_security_active('audit.audit_logs')
       THEN pg_has_role('otel_audit_sealer', 'MEMBER')
            OR EXISTS (SELECT FROM audit.reader_tenants WHERE tenant_id IS NULL)
       ELSE true END
"""
_QUEUED: Final = (
    "SELECT position, id, tenant_id, content_hash, columns_hash, "  # noqa: S608 - constants
    f"{_MICROSECONDS.format('')} FROM audit.ledger_queue "
    "WHERE position > $2 ORDER BY position LIMIT $1"
)
_ROWS: Final = (
    f"SELECT {_NAMES}, {_MICROSECONDS.format('a.')} "  # noqa: S608 - constants
    "FROM audit.audit_logs a WHERE a.id = ANY($1::uuid[])"
)
# as they will come; how much they take up on disk says little of that
_SIZES: Final = (
    "SELECT id, sum(octet_length(payload::text))::bigint FROM audit.audit_logs "
    "WHERE id = ANY($1::uuid[]) GROUP BY id"
)
_COLUMN_HASHES: Final = (
    "SELECT id, tenant_id, audit.columns_hash(a) AS columns_hash FROM audit.audit_logs a "
    "WHERE a.id = ANY($1::uuid[])"
)
_BLOCKS: Final = f"""
SELECT first, ids, hashes, {_READABLE.format("recorded_at")} AS recorded_at,
       NULL::bigint AS leaves
FROM audit.ledger_blocks
WHERE first >= $1 AND first < $3
UNION ALL
SELECT first, NULL, hash, NULL, leaves FROM audit.ledger_pruned WHERE first >= $1 AND first < $3
ORDER BY first, leaves LIMIT $2
"""  # noqa: S608 - constants
_PRUNINGS: Final = (
    "SELECT partition, manifest_id, lowest, above, rows FROM audit.ledger_prunings ORDER BY above"
)
_TIME_LIMITS: Final = (
    "idle_in_transaction_session_timeout",
    "transaction_timeout",
    "idle_session_timeout",
)
_UNLIMITED: Final = (
    "SELECT set_config(name, '0', true) FROM pg_settings WHERE name = ANY($1::text[])"
)
_SNAPSHOT: Final = "SELECT pg_export_snapshot()"
_LAST_NOTE: Final = "SELECT note FROM audit.ledger_checkpoints ORDER BY size DESC LIMIT 1"
_NOTES: Final = (
    "SELECT size, note FROM audit.ledger_checkpoints WHERE size > $1 AND size <= $2 ORDER BY size"
)
_IDS_AT_ONCE: Final = 5_000
"""Ids that are fetched together; asyncpg's default is 50, a round trip for each."""
_SIZE: Final = "SELECT coalesce(max(size), 0) FROM audit.ledger_checkpoints"
# one that was recorded at no time at all says nothing about how long it waits; the first of the
# queue wait longest, and all of a long queue are not read after each block that is taken from it
_WAITING_FOR: Final = (
    "SELECT coalesce(extract(epoch FROM clock_timestamp() - min(recorded_at)), 0)::float8 "
    "FROM (SELECT recorded_at FROM audit.ledger_queue WHERE isfinite(recorded_at) "
    "ORDER BY position LIMIT 1000) AS first"
)
_ROW_COUNT: Final = "SELECT count(*) FROM audit.audit_logs"
_STORED_IDS: Final = """
SELECT a.id, bool_and(q.id IS NOT NULL), count(*)
FROM audit.audit_logs a
LEFT JOIN audit.ledger_queue q ON q.id = a.id AND q.tenant_id = a.tenant_id
GROUP BY a.id ORDER BY a.id
"""
# numbers count from 1 in each producer; a producer still at work may have some under way
_GAPS: Final = """
WITH streams AS (
    SELECT producer_id, received_by, max(sequence_number) AS highest,
           max(sequence_number) - count(DISTINCT sequence_number) AS missing,
           -- whoever used a producer's id first is who it is
           rank() OVER (PARTITION BY producer_id ORDER BY min(recorded_at), min(id::text)) AS place
    FROM audit.audit_logs
    WHERE producer_id IS NOT NULL AND sequence_number BETWEEN 1 AND 9007199254740992
    GROUP BY producer_id, received_by
)
SELECT producer_id, received_by, missing, highest, place = 1 FROM streams
WHERE place > 1 OR missing > 0
ORDER BY place = 1, missing DESC LIMIT 100
"""
_CONFLICTS: Final = """
WITH beside AS (
    SELECT id, payload->>'conflict_of' AS conflict_of, received_by, producer_id
    FROM audit.audit_logs
    WHERE entities @> ARRAY['audit.conflict:*'] AND json_typeof(payload) = 'object'
      AND payload->>'conflict_of' ~ '^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$'
)
SELECT beside.id::text, beside.conflict_of, beside.received_by, beside.producer_id,
       other.id IS NOT NULL, other.received_by, other.producer_id, count(*) OVER ()
FROM beside LEFT JOIN LATERAL (
    SELECT id, received_by, producer_id FROM audit.audit_logs
    WHERE id = beside.conflict_of::uuid ORDER BY recorded_at LIMIT 1
) AS other ON true
ORDER BY beside.id LIMIT 1000
"""
_ORIGIN: Final = "SELECT origin FROM audit.ledger_log"
_APPEND_BLOCK: Final = (
    "INSERT INTO audit.ledger_blocks (first, ids, hashes, lowest, highest) "
    "VALUES ($1, $2, $3, $4, $5)"
)
_APPEND_NOTE: Final = "INSERT INTO audit.ledger_checkpoints (size, note) VALUES ($1, $2)"
_APPEND_FLAWS: Final = "INSERT INTO audit.ledger_flaws (first, note) VALUES ($1, $2)"
_FLAWS: Final = "SELECT note FROM audit.ledger_flaws WHERE first = $1"
_ALL_FLAWS: Final = "SELECT first, note FROM audit.ledger_flaws ORDER BY first"
_ROLL_UP: Final = "SELECT audit.roll_up($1::bigint[])"
_TAKE: Final = "DELETE FROM audit.ledger_queue WHERE position = ANY($1::bigint[])"
_BEGIN_LOG: Final = "INSERT INTO audit.ledger_log (origin) VALUES ($1)"
_ABOUT: Final = "SELECT id FROM audit.audit_logs WHERE entities @> ARRAY[$1::text] ORDER BY id"
_CANDIDATES: Final = (
    f"SELECT first, ids, hashes, {_READABLE.format('recorded_at')} "  # noqa: S608 - constants
    "FROM audit.ledger_blocks "
    "WHERE lowest <= $1 AND highest >= $1 ORDER BY first"
)


class Numbered(NamedTuple):
    """A producer's stream by one credential.

    Attributes:
        producer: The producer's id.
        received_by: The credential; None if the application wrote itself.
        missing: Numbers that are not stored.
        highest: The highest number.
        is_first: Whether this credential was the first to use that id.
    """

    producer: str
    received_by: str | None
    missing: int
    highest: int
    is_first: bool


class ConflictingRecord(NamedTuple):
    """A record that is stored under another id than it came under.

    Attributes:
        record_id: Under which it is stored.
        conflict_of: Under which it came.
        received_by, producer: Who wrote it; no credential where the application itself did.
        is_taken: Whether another record has that id; else its time is of the future.
        other_received_by, other_producer: Who wrote that one.
    """

    record_id: str
    conflict_of: str
    received_by: str | None
    producer: str | None
    is_taken: bool
    other_received_by: str | None
    other_producer: str | None


@dataclass(frozen=True, slots=True)
class Queued:
    """A row that waits to be sealed, as it was when it was inserted.

    Attributes:
        position: Its place in the queue.
        tenant_id: The row's tenant, empty where there is none.
        leaf: The leaf that it will be.
        columns_hash: Of its columns, as the database took it when it was inserted; None for a row
            that an earlier version of the store queued.
    """

    position: int
    tenant_id: str
    leaf: Leaf
    columns_hash: bytes | None = None


@dataclass(frozen=True, slots=True)
class Holder:
    """A session that holds the sealing lock.

    Attributes:
        pid: The server's process.
        role: As whom it is logged in.
        application: What it calls itself.
        seconds: How long its transaction lasts already.
    """

    pid: int
    role: str | None
    application: str | None
    seconds: float | None

    def __str__(self) -> str:
        """In words, for a message."""
        return (
            f"process {self.pid} of role {self.role} (application {self.application!r}), "
            f"for {self.seconds or 0:.0f} s; to end it: SELECT pg_terminate_backend({self.pid})"
        )


@dataclass(frozen=True, slots=True)
class DatabaseIdentity:
    """The identity of this database: the server's system identifier, and the database's own id.

    Attributes:
        here: This one; None if the server does not say.
        recorded: The one that the log belongs to; None if not recorded yet.
    """

    here: str | None
    recorded: str | None

    @property
    def is_elsewhere(self) -> bool:
        """Whether the log belongs to another database."""
        return None not in (self.here, self.recorded) and self.here != self.recorded

    def __str__(self) -> str:
        """In words, for a message."""
        return (
            f"the log belongs to database {self.recorded} (system identifier/number), and this is "
            f"{self.here}: a copy, or restored or moved. If this is where the log goes on, run "
            "`otel-audit moved`; a copy beside it needs a key and anchors of its own before that"
        )


@dataclass(frozen=True, slots=True)
class Pruning:
    """A partition that was dropped.

    Attributes:
        partition: Its name.
        manifest_id: The record that says what was in it.
        lowest: The lowest id that it could hold.
        above: The id above the highest one.
        rows: How many rows it had.
    """

    partition: str
    manifest_id: uuid.UUID
    lowest: uuid.UUID
    above: uuid.UUID
    rows: int

    def held(self, record_id: uuid.UUID) -> bool:
        """Whether a record of this id was in it, if it was anywhere."""
        return self.lowest <= record_id < self.above


@asynccontextmanager
async def opened(
    dsn: str,
    doing: str,
    timeout: float = 10.0,  # noqa: ASYNC109
    *,
    asks: bool = False,
) -> AsyncIterator[Connection[Any]]:
    """Open a connection for one piece of work, and say what went wrong in terms of the remedy.

    Args:
        dsn: The audit store.
        doing: What is done, in the infinitive.
        timeout: Seconds that connecting may take.
        asks: As for `otel_audit_postgres.errors.as_store_error`.

    Raises:
        StoreUnavailableError: The store cannot be reached now.
        StoreError: The store is not what it must be.
    """
    with suppress_instrumentation():
        connection = await connect(dsn, timeout)
        try:
            with translated_errors(doing, asks=asks):
                await refuse_without_ledger(connection)
                yield connection
        finally:
            await disconnect(connection)


async def refuse_without_ledger(connection: Connection[Any]) -> None:
    """Raise if the store is older than the ledger.

    Raises:
        StoreError: It is; the message names the remedy.
    """
    if not await connection.fetchval(_INSTALLED):
        raise StoreError(
            "there is no ledger of this version in this database: run `otel-audit migrate` where "
            "there is a store of an earlier version, `otel-audit init` where there is none"
        )


async def refuse_partial_view(connection: Connection[Any]) -> None:
    """Raise if row-level security hides rows from this role: they would seem to be deleted.

    Raises:
        StoreError: It does; the message names the remedy.
    """
    if not await connection.fetchval(_SEES_ALL):
        raise StoreError(
            "this role sees some tenants only, and so cannot see what is missing: verify as one "
            "that sees all (`otel-audit init --roles --reader ROLE`)"
        )


async def outlook(connection: Connection[Any]) -> tuple[bool, int]:
    """Whether rows wait, and the leaves under the latest checkpoint."""
    row = await connection.fetchrow(_OUTLOOK)
    assert row is not None  # noqa: S101 - a SELECT without FROM has a row
    return row["waits"], row["size"]


async def place(connection: Connection[Any]) -> DatabaseIdentity:
    """The identities of this database, and of the log's database."""
    row = await connection.fetchrow(_PLACE)
    assert row is not None  # noqa: S101 - a function without SETOF has a row
    return DatabaseIdentity(row["here"], row["recorded"])


async def move_here(connection: Connection[Any]) -> None:
    """Say that the log belongs to this database from now on."""
    await connection.execute(_MOVE)


async def try_to_lead(connection: Connection[Any]) -> bool:
    """Become the active sealer until the transaction ends, if there is no other."""
    leads: bool = await connection.fetchval(_TRY_LEAD)
    return leads


async def origin(connection: Connection[Any]) -> str | None:
    """The log's name, None if nothing was ever sealed."""
    found: str | None = await connection.fetchval(_ORIGIN)
    return found


async def begin_log(connection: Connection[Any], name: str) -> None:
    """Name the log, once and for all, and say that it belongs to this database."""
    await connection.execute(_BEGIN_LOG, name)
    await move_here(connection)


async def queued(connection: Connection[Any], most: int, after: int = -1) -> list[Queued]:
    """The rows that wait longest, of those after a place in the queue."""
    return [
        Queued(
            row["position"],
            row["tenant_id"],
            Leaf(row["recorded_us"], row["id"].bytes, row["content_hash"]),
            row["columns_hash"],
        )
        for row in await connection.fetch(_QUEUED, most, after)
    ]


async def record_quarantined(connection: Connection[Any]) -> None:
    """Record which rows came into quarantine since, so that they are sealed with the others."""
    while await connection.fetchval(_RECORD_QUARANTINED):
        pass


async def missing_in_quarantine(
    connection: Connection[Any],
) -> AsyncIterator[tuple[uuid.UUID, list[str], bool]]:
    """Records about rows in quarantine that are gone or changed; and whether the store made them.

    Every writer can insert records about rows that never were; such a record is not the store's.
    """
    for row in await connection.fetch(_RECORDED_QUARANTINED):
        try:
            hashes = msgspec.json.decode(row["hashes"] or b"[]", type=list[str])
        except msgspec.MsgspecError:
            continue
        sound = [one for one in hashes if _HASH.fullmatch(one)]
        gone = [found[0] for found in await connection.fetch(_MISSING_IN_QUARANTINE, sound)]
        if gone:
            yield row["id"], gone, row["is_recorded"]


async def holders(connection: Connection[Any]) -> list[Holder]:
    """Sessions that hold the sealing lock now, the longest first."""
    return [Holder(*row.values()) for row in await connection.fetch(_HOLDERS)]


async def rows(
    connection: Connection[Any], ids: Sequence[uuid.UUID]
) -> AsyncIterator[Mapping[str, Any]]:
    """The stored rows of these ids: the columns of a writer, and ``recorded_us``.

    What no Python value can hold is None. No more than `BYTES_AT_ONCE` are held at a time, if who
    asks does not keep them.
    """
    sizes = dict(await connection.fetch(_SIZES, ids))
    part: list[uuid.UUID] = []
    held = 0
    for record_id, size_of_payload in sizes.items():
        if part and held + size_of_payload > BYTES_AT_ONCE:
            for row in await connection.fetch(_ROWS, part):
                yield row
            part, held = [], 0
        part.append(record_id)
        held += size_of_payload
    if part:
        for row in await connection.fetch(_ROWS, part):
            yield row


async def column_hashes(
    connection: Connection[Any], ids: Sequence[uuid.UUID]
) -> dict[tuple[bytes, str], bytes]:
    """Hashes of the rows' current columns, by id and tenant."""
    found = await connection.fetch(_COLUMN_HASHES, ids)
    return {(row["id"].bytes, row["tenant_id"]): row["columns_hash"] for row in found}


async def flaws(connection: Connection[Any], first: int) -> str | None:
    """The note about malformed rows of a block, by its first leaf; None if there is none."""
    note: str | None = await connection.fetchval(_FLAWS, first)
    return note


async def all_flaws(connection: Connection[Any]) -> list[tuple[int, str]]:
    """The notes about malformed rows, each with the first leaf of its block."""
    return [(row[0], row[1]) for row in await connection.fetch(_ALL_FLAWS)]


async def append_flaws(connection: Connection[Any], first: int, note: str) -> None:
    """Say which rows of a block were inserted malformed."""
    await connection.execute(_APPEND_FLAWS, first, note)


async def pieces(
    connection: Connection[Any],
    since: int = 0,
    until: int = sys.maxsize,
    at_once: int = BLOCKS_AT_ONCE,
) -> AsyncIterator[Block | Pruned]:
    """The log's blocks and pruned subtrees that begin in a range, in order."""
    while True:
        found = await connection.fetch(_BLOCKS, since, at_once, until)
        for row in found:
            if row["leaves"] is None:
                yield Block(row["first"], row["ids"], row["hashes"], row["recorded_at"])
            else:
                yield Pruned(row["first"], row["leaves"], row["hashes"])
        if len(found) < at_once:
            return
        since = found[-1]["first"] + 1


async def blocks(
    connection: Connection[Any], since: int = 0, until: int = sys.maxsize
) -> AsyncIterator[Block]:
    """The log's blocks alone, as `pieces`."""
    async for piece in pieces(connection, since, until):
        if isinstance(piece, Block):
            yield piece


async def prunings(connection: Connection[Any]) -> list[Pruning]:
    """The partitions that were dropped, the latest month last."""
    return [Pruning(*row.values()) for row in await connection.fetch(_PRUNINGS)]


async def unlimited(connection: Connection[Any]) -> None:
    """Lift the time limits of role and server for this transaction."""
    await connection.execute(_UNLIMITED, _TIME_LIMITS)


async def keep_open(connection: Connection[Any]) -> None:
    """Run the smallest statement, against limits for idle connections."""
    await connection.execute("SELECT")


async def exported_snapshot(connection: Connection[Any]) -> str:
    """The id by which other transactions see the same snapshot as this one."""
    name: str = await connection.fetchval(_SNAPSHOT)
    return name


async def blocks_about(connection: Connection[Any], record_id: uuid.UUID) -> list[Block]:
    """The blocks that may hold a record."""
    found = await connection.fetch(_CANDIDATES, record_id)
    return [Block(*row.values()) for row in found]


async def last_note(connection: Connection[Any]) -> str | None:
    """The latest checkpoint's note, None if nothing was ever sealed."""
    note: str | None = await connection.fetchval(_LAST_NOTE)
    return note


async def ids_about(connection: Connection[Any], entity: str) -> list[uuid.UUID]:
    """The ids of the records about an entity, such as ``order:123``, in their order."""
    return [row["id"] for row in await connection.fetch(_ABOUT, entity)]


async def notes(connection: Connection[Any], after: int, upto: int) -> dict[int, str]:
    """The notes of the checkpoints of more than ``after`` leaves and of ``upto`` at most."""
    return {row["size"]: row["note"] for row in await connection.fetch(_NOTES, after, upto)}


async def size(connection: Connection[Any]) -> int:
    """Leaves under the latest checkpoint."""
    leaves: int = await connection.fetchval(_SIZE)
    return leaves


async def waiting_for(connection: Connection[Any]) -> float:
    """Seconds since the oldest row in the queue was recorded, 0 where none waits."""
    seconds: float = await connection.fetchval(_WAITING_FOR)
    return max(seconds, 0.0)


async def row_count(connection: Connection[Any]) -> int:
    """Rows in the trail."""
    count: int = await connection.fetchval(_ROW_COUNT)
    return count


async def stored_ids(connection: Connection[Any]) -> AsyncIterator[tuple[uuid.UUID, bool, int]]:
    """Every id in the trail, with its number of rows, and whether they are in the queue."""
    async for row in connection.cursor(_STORED_IDS, prefetch=_IDS_AT_ONCE):
        yield row[0], row[1], row[2]


async def gaps(connection: Connection[Any]) -> list[Numbered]:
    """Streams whose numbers have gaps, or whose producer's id another one used before."""
    return [Numbered(*row.values()) for row in await connection.fetch(_GAPS)]


async def conflicts(connection: Connection[Any]) -> tuple[list[ConflictingRecord], int]:
    """Records that are stored under another id than they came under; the first, and how many."""
    rows = await connection.fetch(_CONFLICTS)
    return [ConflictingRecord(*list(row.values())[:-1]) for row in rows], rows[0][-1] if rows else 0


async def append(
    connection: Connection[Any], block: Block, note: str, positions: Sequence[int]
) -> None:
    """Append a block and its checkpoint, count its rows, and take them from the queue."""
    ids = block.row_ids()
    await connection.execute(
        _APPEND_BLOCK, block.first, block.ids, block.hashes, min(ids), max(ids)
    )
    await connection.execute(_APPEND_NOTE, block.first + block.count, note)
    await connection.execute(_ROLL_UP, positions)
    taken = await connection.execute(_TAKE, positions)
    if taken != f"DELETE {len(positions)}":
        raise StoreUnavailableError("the queue of rows to be sealed changed meanwhile")
