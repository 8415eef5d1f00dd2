"""The trail under one checkpoint, in one period, within the reader's rights."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from otel_audit._util.months import next_month
from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger.checkpoints import read_checkpoint
from otel_audit_postgres.ledger.leaves import ID_SIZE, TAG
from otel_audit_postgres.ledger.merkle import HASH_SIZE
from otel_audit_postgres.query.conditions import Conditions, conditions_of
from otel_audit_postgres.query.grammar import Query, parse
from otel_audit_postgres.query.queries import resolved
from otel_audit_postgres.query.trail import ReaderScope
from otel_audit_postgres.reports.found_evidence import Evidence
from otel_audit_postgres.reports.options import Options

_CHECKPOINT: Final = (
    "SELECT size, note, recorded_at FROM audit.ledger_checkpoints "
    "WHERE $1::bigint IS NULL OR size = $1 ORDER BY size DESC LIMIT 1"
)
_NEAREST: Final = (
    "SELECT array_agg(size ORDER BY size) FROM (SELECT size FROM audit.ledger_checkpoints "
    "ORDER BY abs(size - $1), size LIMIT 3) AS near"
)
_SCOPE: Final = """
SELECT row_security_active('audit.audit_logs') AND NOT EXISTS (
           SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL) AS is_part,
       ARRAY(SELECT DISTINCT t.tenant_id FROM audit.reader_tenants t
             WHERE t.tenant_id IS NOT NULL ORDER BY 1) AS tenants
"""
_LATER: Final = f"""
WITH later AS MATERIALIZED (
    SELECT id FROM audit.ledger_queue
    UNION ALL
    SELECT encode(substr(b.ids, (n * {ID_SIZE} + 1)::int, {ID_SIZE}), 'hex')::uuid
    FROM audit.ledger_blocks b
    CROSS JOIN generate_series(0, octet_length(b.ids) / {ID_SIZE} - 1) AS n
    WHERE b.first + n >= $1 AND b.first + octet_length(b.ids) / {ID_SIZE} > $1
),
sealed AS (
    SELECT encode(substr(b.ids, (n * {ID_SIZE} + 1)::int, {ID_SIZE}), 'hex')::uuid AS id,
           substr(b.hashes, (n * {HASH_SIZE} + 1)::int, {HASH_SIZE}) AS hash
    FROM (SELECT first, ids || ''::bytea AS ids, hashes || ''::bytea AS hashes
          FROM audit.ledger_blocks
          WHERE first < $1 AND highest >= (SELECT id FROM later ORDER BY id LIMIT 1)
            AND lowest <= (SELECT id FROM later ORDER BY id DESC LIMIT 1) OFFSET 0) AS b
    CROSS JOIN generate_series(0, octet_length(b.ids) / {ID_SIZE} - 1) AS n
    WHERE b.first + n < $1
),
twice AS MATERIALIZED (SELECT DISTINCT s.hash FROM sealed s WHERE s.id IN (SELECT id FROM later))
SELECT (SELECT array_agg(id) FROM later) AS ids, (SELECT array_agg(hash) FROM twice) AS sealed
"""  # noqa: S608 - constants
_US: Final = (
    "CASE WHEN isfinite(recorded_at) AND recorded_at < '290000-01-01 00:00:00+00' "
    "THEN (extract(epoch FROM recorded_at) * 1000000)::bigint ELSE -1 END"
)
LEAF: Final = (
    f"sha256('\\x{(chr(0).encode() + TAG).hex()}'::bytea || uuid_send(id) || content_hash "
    f"|| int8send({_US}))"
)
"""The leaf hash of a row of ``audit.audit_logs``, by its columns."""
# each block is read once; else it is, twice for each of its leaves, from where long values lie
_BLOCKS: Final = """
    (SELECT first, ids || ''::bytea AS ids, hashes || ''::bytea AS hashes
     FROM audit.ledger_blocks WHERE first < {size} OFFSET 0) AS b
    CROSS JOIN generate_series(0, octet_length(b.ids) / 16 - 1) AS n
    WHERE b.first + n < {size}
"""
_ID: Final = f"encode(substr(b.ids, (n * {ID_SIZE} + 1)::int, {ID_SIZE}), 'hex')::uuid"
SEALED: Final = f"SELECT {_ID} AS id FROM {_BLOCKS}"  # noqa: S608 - constants
LEAVES: Final = (
    f"SELECT {_ID} AS id, substr(b.hashes, (n * {HASH_SIZE} + 1)::int, {HASH_SIZE}) AS hash "  # noqa: S608
    f"FROM {_BLOCKS}"
)
"""Ids, and leaf hashes, of what is under a checkpoint."""
_DROPPED: Final = "SELECT partition FROM audit.ledger_prunings ORDER BY partition"
_GAPS: Final = """
SELECT count(*) FILTER (WHERE missing > 0) AS producers, coalesce(sum(missing), 0) AS numbers
FROM (
    SELECT greatest(max(sequence_number) - min(sequence_number) + 1
                    - count(DISTINCT sequence_number), 0)::bigint AS missing
    FROM ({numbered}) AS numbered GROUP BY producer_id, received_by
) AS streams
"""
# to find a place in a text, or to cut it there, the server counts the characters before it: to
# split the text takes half as long. A blank is added because something has to follow
HAS_CHANGES: Final = """split_part((payload::text || ' ') COLLATE "C", '"changes"', 2) <> ''"""
"""Whether a payload's text has changes, or something of that name."""
BEHIND_CHANGES: Final = (
    "array_to_string("
    """(string_to_array(payload::text COLLATE "C", '"changes"'))[2:], '"changes"')"""
)
"""The payload's text from its changes on, or from something of that name; empty without any."""
OF_THE_STORE: Final = "received_by IS NULL"
"""What the store's own functions record no sender may state: a sign-off, a policy, a hold."""
_DAY: Final = re.compile(r"audit_logs_(\d{4})_(\d{2})")
TAMPERED: Final = "TAMPERED: "
_AT_ONCE: Final = 1_000
"""Rows that are fetched at once; the next ones are fetched meanwhile."""
_MOST_LATER: Final = 2_000_000
"""Ids of records sealed after the checkpoint that are held in memory."""
_MOST_SIEVED: Final = 50_000
"""Records that a sieve finds which are read by their ids."""


class _Changes(msgspec.Struct):
    """A record's changes, without its other fields."""

    changes: Any = None


_decode_changes: Final = msgspec.json.Decoder(_Changes).decode


@dataclass(slots=True)
class Snapshot:
    """One state of the trail.

    Attributes:
        connection: Within a transaction of repeatable reads.
        options: What is asked for.
        origin: The log's name.
        size: Leaves under the checkpoint.
        note: The checkpoint, as a signed note.
        root: Its root hash, in hex.
        sealed_at: When the checkpoint was made.
        tenants: The tenants in the scope; None for all.
        unreadable: Records whose text could not be read, and that are left out.
        evidence: What was found of the period's records.
    """

    connection: Connection[Any]
    options: Options
    origin: str
    size: int
    note: str
    root: str
    sealed_at: datetime
    tenants: tuple[str, ...] | None
    unreadable: int = 0
    evidence: Evidence | None = None
    _query: Query = field(default_factory=Query)
    _later: list[Any] | None = None
    _sealed: list[bytes] | None = None

    @property
    def is_part(self) -> bool:
        """Whether records of the store are left out: of other tenants, or by a query.

        What is counted over all of them would then be wrong, or tell of the others.
        """
        return bool(
            self._query.terms or self.options.tenant is not None or self.tenants is not None
        )

    @property
    def is_narrow(self) -> bool:
        """Whether the report is for some tenants: it shows nothing of others, not even counts."""
        return self.options.tenant is not None or self.tenants is not None

    def whole(self) -> Snapshot:
        """The same state without query and tenant: all that the reader may see."""
        return replace(self, options=replace(self.options, tenant=None), _query=Query())

    def asked(self, *, in_period: bool = True) -> Conditions:
        """Conditions for rows of the report: period, tenant, query, and under the checkpoint.

        Args:
            in_period: Whether rows of other times are left out.
        """
        options = self.options
        found = conditions_of(self._query, options.end)
        if in_period:
            found.columns.append(f"occurred_at >= {found.bind(options.begin)}::timestamptz")
            found.columns.append(f"occurred_at < {found.bind(options.end)}::timestamptz")
        if options.tenant is not None:
            found.columns.append(f"tenant_id = {found.bind(options.tenant)}::text")
        if self._later is None:
            sealed = SEALED.format(size=int(self.size))
            found.columns.append(f"id IN ({sealed})")
        elif self._later:
            waits = f"id <> ALL({found.bind(self._later)}::uuid[])"
            if self._sealed:
                # of another tenant, or said to wait: a record with a leaf of its own is sealed
                waits = f"({waits} OR {LEAF} = ANY({found.bind(self._sealed)}::bytea[]))"
            found.columns.append(waits)
        return found

    async def rows(
        self, columns: str, *conditions: str, tail: str = "", in_period: bool = True
    ) -> AsyncIterator[Mapping[str, Any]]:
        """Ask for what rows of ``audit.audit_logs`` that belong to the report add up to.

        All in one answer, so that the server may have several processes at it.

        Args:
            columns: What to select.
            conditions: Which, besides; without any value of somebody else's.
            tail: GROUP BY, ORDER BY.
            in_period: As for `asked`.
        """
        asked = self.asked(in_period=in_period)
        sql = selected(columns, asked, conditions, tail)
        for row in await self.connection.fetch(sql, *asked.values):
            yield row

    async def run(self, sql: str, values: Sequence[Any]) -> AsyncIterator[Mapping[str, Any]]:
        """Run a statement; its rows, one at a time."""
        async for rows in self.fetched(sql, values):
            for row in rows:
                yield row

    async def fetched(
        self, sql: str, values: Sequence[Any], *, along_index: bool = False
    ) -> AsyncIterator[list[Any]]:
        """Run a statement; its rows, some at a time.

        The server reads the next rows while these are worked at: until the last one is there, it
        answers nothing else.

        Args:
            sql: The statement.
            values: Its values.
            along_index: Whether the server reads rows in the order of an index, where it can. To
                sort most rows of a store it would write all of them to its disk first.
        """
        if along_index:
            await self.connection.execute("SET LOCAL enable_sort = off")
        cursor = await self.connection.cursor(sql, *values)
        if along_index:  # it was planned when it was opened
            await self.connection.execute("SET LOCAL enable_sort TO DEFAULT")
        following = asyncio.ensure_future(cursor.fetch(_AT_ONCE))
        try:
            while rows := await following:
                following = asyncio.ensure_future(cursor.fetch(_AT_ONCE))
                await asyncio.sleep(0)  # so that it is asked for now
                yield rows
        finally:
            if not following.done():
                following.cancel()
                with contextlib.suppress(asyncio.CancelledError, Exception):
                    await following

    async def records(
        self, *conditions: str, in_period: bool = True
    ) -> AsyncIterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """Rows with their payloads, in the order of their ids; one that cannot be read is counted.

        Yields:
            The row, and what its payload says.
        """
        sql, values = self.of_records(*conditions, in_period=in_period)
        async for row, record in self.decoded(sql, values):
            yield row, record

    async def sieved(
        self, looked_at: Mapping[str, str], sieve: str, *conditions: str
    ) -> AsyncIterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """As `records`, where to look at a row costs more than to read it, and few are found.

        Of rows that are fetched some at a time the server has one process look; several find ids.

        Args:
            looked_at: What the sieve looks at, by names; worked out once for a row.
            sieve: The condition, with these names. Rows of an id that it lets pass are read.
            conditions: As for `records`.
        """
        asked = self.asked()
        where = " AND ".join([*asked.columns, *asked.payload, *conditions, sieve])
        # joined to a function: a subquery, or LIMIT, is for one process only
        texts = ", ".join(f'ARRAY[({text}) COLLATE "C"]' for text in looked_at.values())
        some = (
            "SELECT id FROM audit.audit_logs CROSS JOIN LATERAL "  # noqa: S608 - as `selected`
            f"unnest({texts}) AS each({', '.join(looked_at)}) WHERE {where}"
        )
        sql = f"SELECT (array_agg(id))[1:{_MOST_SIEVED + 1}] FROM ({some}) AS found"  # noqa: S608
        found = await self.connection.fetchval(sql, *asked.values) or []
        if len(found) <= _MOST_SIEVED:
            some = f"SELECT unnest({asked.bind(found)}::uuid[])"
        sql = selected(_RECORD, asked, (*conditions, f"id IN ({some})"), "ORDER BY id, tenant_id")
        async for row, record in self.decoded(sql, asked.values):
            yield row, record

    def of_records(
        self, *conditions: str, in_period: bool = True, columns: str = ""
    ) -> tuple[str, Sequence[Any]]:
        """The statement of `records`, and its values; only some columns where speed counts."""
        asked = self.asked(in_period=in_period)
        sql = selected(columns or _RECORD, asked, conditions, "ORDER BY id, tenant_id")
        return sql, asked.values

    async def decoded(
        self, sql: str, values: Sequence[Any]
    ) -> AsyncIterator[tuple[Mapping[str, Any], dict[str, Any]]]:
        """Run a statement whose rows have a ``payload``, and read it; see `records`."""
        async for row in self.run(sql, values):
            record = self._read(row["payload"])
            if record is not None:
                yield row, record

    def changes_in(self, payload: str) -> list[dict[str, Any]]:
        """Read only the changes of a payload, in a third of the time; one without is counted."""
        try:
            changes = _decode_changes(payload).changes
        except (msgspec.MsgspecError, RecursionError):
            self.unreadable += 1
            return []
        if not isinstance(changes, list):
            return []
        return [one for one in changes if isinstance(one, dict)]

    def _read(self, payload: str) -> dict[str, Any] | None:
        try:
            record = msgspec.json.decode(payload)
        except (msgspec.MsgspecError, RecursionError):
            record = None
        if not isinstance(record, dict):
            self.unreadable += 1
            return None
        return record

    @property
    def leaves(self) -> str:
        """The checkpoint's size; not for some tenants, as it says how much all others record."""
        return "leaves of all tenants" if self.is_narrow else f"{self.size} leaves"

    async def notes(self) -> list[str]:
        """Notes for the reader: gaps, missing months, the scope."""
        found = []
        if self.evidence is not None:
            found += [f"{TAMPERED}{problem}" for problem in self.evidence.problems]
        if not self.is_part:
            found += await self._gaps()
        if self.options.end > self.sealed_at:
            found.append(
                f"NOT COVERED: nothing after {utc_text(self.sealed_at)} is under this checkpoint"
            )
        found += await self._dropped()
        if self.tenants is not None:
            named = ", ".join(self.tenants) or "none"
            found.append(
                f"SCOPE: who made this sees records of these tenants only: {named}; records of "
                "others, and without a tenant, are hidden"
            )
        return found

    async def recorded(self) -> tuple[int, str | None]:
        """The number of records in the period, and the time of the latest one."""
        plain = Snapshot(
            self.connection, self.options, self.origin, self.size, self.note, self.root,
            self.sealed_at, self.tenants, 0, None, Query(), self._later, self._sealed,
        )  # fmt: skip
        count = [row async for row in plain.rows("count(*) AS found")]
        latest = [
            row["latest"] async for row in plain.rows("max(occurred_at) AS latest", in_period=False)
        ]
        return int(count[0]["found"]), None if latest[0] is None else utc_text(latest[0])

    async def _gaps(self) -> list[str]:
        asked = self.asked()
        numbered = selected(
            "producer_id, received_by, sequence_number", asked,
            ("producer_id IS NOT NULL", "sequence_number BETWEEN 1 AND 9007199254740992"),
        )  # fmt: skip
        gaps = await self.connection.fetchrow(_GAPS.format(numbered=numbered), *asked.values)
        if gaps is None or not gaps["numbers"]:
            return []
        record = (
            f"GAPS: {gaps['numbers']} numbers are missing between the first and the last record "
            f"that {gaps['producers']} producer{'' if gaps['producers'] == 1 else 's'} made in "
            "this period; `otel-audit gaps` names them"
        )
        return [record]

    async def _dropped(self) -> list[str]:
        months = []
        for row in await self.connection.fetch(_DROPPED):
            found = _DAY.fullmatch(row["partition"])
            if found is None:
                continue
            begin = datetime(int(found[1]), int(found[2]), 1, tzinfo=UTC)
            end = next_month(begin)
            if begin < self.options.end and end > self.options.begin:
                months.append(f"{found[1]}-{found[2]}")
        if not months:
            return []
        return [f"NOT HERE: records of {', '.join(months)} were dropped; see the archive"]


_RECORD: Final = (
    "id, tenant_id, occurred_at, event_name, action, outcome, actor_id, actor_role, target_type, "
    "target_id, source_address, request_id, http_method, http_route, status_code, "
    "transaction_outcome, content_hash, payload::text AS payload"
)


async def taken(
    connection: Connection[Any], options: Options, scope: ReaderScope | None = None
) -> Snapshot:
    """Choose the checkpoint, and read the reader's scope.

    Args:
        connection: Within a transaction of repeatable reads.
        options: What is asked for.
        scope: On whose behalf.

    Raises:
        ConfigurationError: There is no such checkpoint, it may not be chosen, or the query cannot
            be understood.
        StoreError: Nothing was ever sealed.
    """
    query = (await resolved(connection, parse(options.query)))[0]
    tenants = await _tenants(connection, scope)
    if options.checkpoint is not None and scope is not None and scope.tenants is not None:
        raise ConfigurationError(
            "--checkpoint: it is named by its size, which tells how much all tenants record, so "
            "that some of them cannot choose one; leave it out"
        )
    row = await connection.fetchrow(_CHECKPOINT, options.checkpoint)
    if row is None:
        raise await _no_checkpoint(connection, options, tenants)
    checkpoint = read_checkpoint(row["note"])
    later = sealed = None
    if tenants is None:
        found = await connection.fetchrow(_LATER, row["size"])
        assert found is not None  # noqa: S101 - it has one row
        later, sealed = found["ids"] or [], found["sealed"]
    if later is not None and len(later) > _MOST_LATER:
        later = None
    return Snapshot(
        connection, options, checkpoint.origin, row["size"], row["note"], checkpoint.root.hex(),
        row["recorded_at"], tenants, 0, None, query, later, sealed,
    )  # fmt: skip


async def _tenants(
    connection: Connection[Any], scope: ReaderScope | None
) -> tuple[str, ...] | None:
    """The tenants in the scope; None for all."""
    row = await connection.fetchrow(_SCOPE)
    assert row is not None  # noqa: S101 - it has one row
    own = frozenset(row["tenants"]) if row["is_part"] else None
    narrowed = None if scope is None or scope.tenants is None else frozenset(scope.tenants)
    if own is None or narrowed is None:
        found = own if narrowed is None else narrowed
    else:
        found = own & narrowed
    return None if found is None else tuple(sorted(found))


async def _no_checkpoint(
    connection: Connection[Any], options: Options, tenants: tuple[str, ...] | None
) -> Exception:
    if options.checkpoint is None:
        return StoreError(
            "nothing was ever sealed in this store, so there is no checkpoint to report as of: "
            "run `otel-audit seal`, or let the application seal"
        )
    if tenants is not None:
        # sizes of others would tell how much all tenants record
        return ConfigurationError(f"--checkpoint: none has size {options.checkpoint}")
    near = await connection.fetchval(_NEAREST, options.checkpoint)
    hint = f"; near are {', '.join(map(str, near))}" if near else ": nothing was ever sealed"
    return ConfigurationError(f"--checkpoint: none has size {options.checkpoint}{hint}")


def selected(
    columns: str, asked: Conditions, conditions: Sequence[str] = (), tail: str = ""
) -> str:
    """A SELECT of rows that belong to a report."""
    where = " AND ".join([*asked.columns, *asked.payload, *conditions]) or "true"
    return f"SELECT {columns} FROM audit.audit_logs WHERE {where} {tail}"  # noqa: S608


def utc_text(value: datetime) -> str:
    """A time in UTC, to the millisecond."""
    record = (value if value.tzinfo is UTC else value.astimezone(UTC)).isoformat(
        timespec="milliseconds"
    )
    return f"{record[:23]}Z"
