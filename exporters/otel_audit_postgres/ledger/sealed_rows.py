"""Rows of the trail in the ledger's order, a page at a time, from a leaf on.

A leaf's number is the one order without a gap: a row that commits late is sealed late, so a reader
that continues from a leaf misses none. Exports use it. Only sealed rows are read, and only those
that the role may see: row-level security applies as for any other query.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

from otel_audit.errors import ConfigurationError, StoreError
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.leaves import ID_SIZE, Leaf, content_hash
from otel_audit_postgres.ledger.ledger_queries import BYTES_AT_ONCE
from otel_audit_postgres.ledger.merkle import HASH_SIZE
from otel_audit_postgres.query.conditions import Conditions, conditions_of
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.pagination import selected
from otel_audit_postgres.query.queries import resolved
from otel_audit_postgres.rows import COLUMNS

PAGE: Final = 1_000
"""Leaves on a page."""
LARGEST_PAGE: Final = 5_000
"""Leaves on a page at most: a page is in memory as a whole."""

_HORIZON: Final = """
SELECT (SELECT origin FROM audit.ledger_log) AS origin, c.size, c.note
FROM audit.ledger_checkpoints c ORDER BY c.size DESC LIMIT 1
"""
# only the requested slices: blocks are stored uncompressed, so that substr reads no more
_SLICES: Final = f"""
SELECT b.first + greatest($1 - b.first, 0) AS first,
       substr(b.ids, (greatest($1 - b.first, 0) * {ID_SIZE} + 1)::int,
              (($2 - b.first - greatest($1 - b.first, 0)) * {ID_SIZE})::int) AS ids,
       substr(b.hashes, (greatest($1 - b.first, 0) * {HASH_SIZE} + 1)::int,
              (($2 - b.first - greatest($1 - b.first, 0)) * {HASH_SIZE})::int) AS hashes
FROM audit.ledger_blocks b
WHERE b.first < $2
  AND b.first >= coalesce(
      (SELECT max(e.first) FROM audit.ledger_blocks e WHERE e.first <= $1), 0)
ORDER BY b.first
"""  # noqa: S608 - constants
_PRUNED: Final = (
    "SELECT first, leaves FROM audit.ledger_pruned "
    "WHERE first < $2 AND first + leaves > $1 ORDER BY first"
)
_HASH: Final = f"""
SELECT substr(hashes, (($1 - first) * {HASH_SIZE} + 1)::int, {HASH_SIZE})
FROM audit.ledger_blocks WHERE first <= $1 ORDER BY first DESC LIMIT 1
"""  # noqa: S608 - constants
_RECORDED_US: Final = (
    "CASE WHEN isfinite(recorded_at) AND recorded_at < '290000-01-01 00:00:00+00' "
    "THEN (extract(epoch FROM recorded_at) * 1000000)::bigint ELSE -1 END AS recorded_us"
)
# the text is made once, as each look at a large one reads and expands it anew; what is beyond the
# bound never leaves the server, but for the first row
_BOUNDED: Final = """
WITH found AS MATERIALIZED (
    SELECT {names}, payload::text || '' AS payload_text FROM audit.audit_logs WHERE {where}
)
SELECT * FROM (
    SELECT found.*, asked.place, count(*) OVER () AS rows,
           sum(octet_length(payload_text)) OVER (ORDER BY asked.place) AS held
    FROM found JOIN unnest({ids}::uuid[]) WITH ORDINALITY AS asked (id, place) USING (id)
) AS placed
WHERE held - octet_length(payload_text) <= {bound}
"""
_ALWAYS: Final = ("id", "tenant_id", "content_hash")
_READABLE: Final = frozenset({name for name, _ in COLUMNS} | {"recorded_at"})


@dataclass(frozen=True, slots=True)
class Horizon:
    """The end of the sealed part of the log.

    Attributes:
        origin: The log's name; empty where nothing was ever sealed.
        size: Leaves under the latest checkpoint; the next leaf to be sealed has this number.
        checkpoint: The checkpoint, a C2SP signed note.
    """

    origin: str = ""
    size: int = 0
    checkpoint: str = ""


@dataclass(frozen=True, slots=True)
class SealedRow:
    """One row of the trail at its place in the log.

    Attributes:
        leaf: The number of its leaf, from 0.
        id: The record's id.
        tenant_id: Its tenant, empty where there is none.
        payload: Its complete text, as it is stored.
        content_hash: SHA-256 of the text as it was stored, 32 bytes.
        leaf_hash: Of the leaf, as it was sealed, 32 bytes.
        is_as_sealed: Whether the row, hashed afresh, is what was sealed.
        columns: More columns, if requested.
        recorded_us: When the database took it, Unix microseconds; -1 if that is not a time.
    """

    leaf: int
    id: uuid.UUID
    tenant_id: str
    payload: str
    content_hash: bytes
    leaf_hash: bytes
    is_as_sealed: bool
    columns: Mapping[str, Any] = field(default_factory=dict)
    recorded_us: int = -1


@dataclass(frozen=True, slots=True)
class SealedPage:
    """Some leaves, and the rows of them that may be seen and fit.

    Attributes:
        rows: In the order of their leaves.
        first: The leaf at which the page begins.
        next: The leaf at which the next page begins.
        horizon: How far the log was sealed when the page was read; ``next`` is never beyond it.
        absent: Leaves without a row here: dropped with its month, of a tenant that the role may not
            see, or deleted, which `verify` finds. 0 where a query left rows out.
        leaf_hash: Of the last leaf before ``next``; None if it is collapsed, or there is none.
    """

    rows: tuple[SealedRow, ...]
    first: int
    next: int
    horizon: Horizon
    absent: int = 0
    leaf_hash: bytes | None = None

    @property
    def is_last(self) -> bool:
        """Whether all is read that was sealed."""
        return self.next >= self.horizon.size


async def horizon(connection: Connection[Any]) -> Horizon:
    """Read the end of the sealed part of the log."""
    row = await connection.fetchrow(_HORIZON)
    return Horizon() if row is None else Horizon(row["origin"] or "", row["size"], row["note"])


async def leaf_hash_at(connection: Connection[Any], leaf: int) -> bytes | None:
    """The hash of a leaf as it was sealed; None if it is collapsed, or there is none."""
    found: bytes | None = await connection.fetchval(_HASH, leaf)
    return found or None


async def find_leaf(connection: Connection[Any], leaf: Leaf) -> tuple[int, bool] | None:
    """Find a row's place in the log.

    Args:
        connection: To the store, as a reader.
        leaf: The row as it is now.

    Returns:
        The number of its leaf, and whether the row is what was sealed; None: it is not sealed yet,
        or its leaf is collapsed.
    """
    another: int | None = None
    for block in await ledger_queries.blocks_about(connection, uuid.UUID(bytes=leaf.id)):
        for number, (row_id, found) in enumerate(
            zip(block.id_bytes(), block.leaf_hashes(), strict=False), block.first
        ):
            if row_id == leaf.id and found == leaf.hash():
                return number, True
            if row_id == leaf.id and another is None:
                another = number
    return None if another is None else (another, False)


async def read_page(  # noqa: PLR0913 - each a choice of its own
    connection: Connection[Any],
    start: int,
    *,
    limit: int = PAGE,
    upto: int | None = None,
    query: Query | None = None,
    columns: Sequence[str] = (),
    now: datetime | None = None,
) -> SealedPage:
    """Read rows in the order of their leaves.

    Args:
        connection: To the store, as a reader; within a transaction of repeatable reads where
            several pages are to show one state.
        start: The first leaf that is wanted.
        limit: Leaves on the page at most, up to `LARGEST_PAGE`; a page of large rows has fewer.
        upto: Stop before this leaf, as at a checkpoint's size; None: at the horizon.
        query: Which rows are wanted; None: all.
        columns: Columns of ``audit_logs`` that each row is to have besides.
        now: What relative times of the query are counted from; by default, now.

    Returns:
        The page. A page without rows may still have a next one: see ``next``.

    Raises:
        ConfigurationError: ``start``, ``limit`` or ``columns`` is unfit.
        StoreError: ``start`` lies beyond what is sealed.
    """
    if not 1 <= limit <= LARGEST_PAGE:
        raise ConfigurationError(f"limit: from 1 to {LARGEST_PAGE}, not {limit}")
    unknown = [name for name in columns if name not in _READABLE]
    if unknown or start < 0:
        what = f"columns: no {unknown[0]}" if unknown else f"start: a leaf's number, not {start}"
        raise ConfigurationError(what)
    sealed = await horizon(connection)
    if start > sealed.size:
        raise StoreError(
            f"leaf {start:,} lies ahead of the log, which has {sealed.size:,} leaves: was the "
            "store restored from a backup?"
        )
    bound = sealed.size if upto is None else min(upto, sealed.size)
    begin, end = await _beyond_pruned(connection, start, limit, bound)
    leaves = await _leaves(connection, begin, end) if begin < end else []
    is_filtered = query is not None and bool(query.terms)
    asked = Query() if query is None else (await resolved(connection, query))[0]
    wanted = conditions_of(asked, now or datetime.now(UTC))
    rows, leaves = await _rows(connection, leaves, wanted, columns)
    after = max(leaves[-1][0] + 1 if leaves else max(begin, end), start)
    return SealedPage(
        tuple(rows),
        start,
        after,
        sealed,
        0 if is_filtered else after - start - len(rows),
        leaves[-1][2] if leaves else None,
    )


async def _beyond_pruned(
    connection: Connection[Any], start: int, limit: int, end: int
) -> tuple[int, int]:
    """The first leaf after the collapsed ones, and the end of its page."""
    begin = start
    for row in await connection.fetch(_PRUNED, start, end):
        if row["first"] > begin:
            end = min(end, row["first"])
            break
        begin = max(begin, row["first"] + row["leaves"])
    return min(begin, end), min(begin + limit, end)


_Leaf = tuple[int, uuid.UUID, bytes]
"""A leaf's number, the record's id, and the leaf's hash."""


async def _leaves(connection: Connection[Any], begin: int, end: int) -> list[_Leaf]:
    found: list[_Leaf] = []
    for row in await connection.fetch(_SLICES, begin, end):
        ids, hashes, first = row["ids"], row["hashes"], row["first"]
        found.extend(
            (
                first + place,
                uuid.UUID(bytes=ids[place * ID_SIZE : (place + 1) * ID_SIZE]),
                hashes[place * HASH_SIZE : (place + 1) * HASH_SIZE],
            )
            for place in range(len(hashes) // HASH_SIZE)
        )
    return found


async def _rows(
    connection: Connection[Any], leaves: list[_Leaf], asked: Conditions, columns: Sequence[str]
) -> tuple[list[SealedRow], list[_Leaf]]:
    """The rows of leaves, and the leaves that this is about: the first ones, if rows are large."""
    if not leaves:
        return [], leaves
    ids = asked.bind([record_id for _, record_id, _ in leaves])
    sql = _BOUNDED.format(
        names=", ".join([*_ALWAYS, _RECORDED_US, *([selected(columns)] if columns else [])]),
        where=" AND ".join([f"id = ANY({ids}::uuid[])", *asked.columns, *asked.payload]),
        ids=ids,
        bound=asked.bind(BYTES_AT_ONCE) + "::bigint",
    )
    found: dict[bytes, Mapping[str, Any]] = {}
    last = 0
    answer = await connection.fetch(sql, *asked.values)
    for row in answer:
        leaf = Leaf(row["recorded_us"], row["id"].bytes, content_hash(row["payload_text"]))
        found[leaf.hash()] = row
        last = max(last, row["place"])
    if answer and len(answer) < answer[0]["rows"]:
        leaves = leaves[:last]
    changed = await _changed(connection, found, leaves)
    rows: list[SealedRow] = []
    for number, record_id, sealed in leaves:
        same = found.get(sealed)
        row = changed.pop(record_id, None) if same is None else same
        if row is not None:
            values = {name: row[name] for name in columns}
            rows.append(
                SealedRow(
                    number, record_id, row["tenant_id"], row["payload_text"], row["content_hash"],
                    sealed, same is not None, values, row["recorded_us"],
                )
            )  # fmt: skip
    return rows, leaves


async def _changed(
    connection: Connection[Any], found: Mapping[bytes, Mapping[str, Any]], leaves: list[_Leaf]
) -> dict[uuid.UUID, Mapping[str, Any]]:
    """Rows that match no leaf any more; they are shown, and marked as changed.

    Tenants may share an id: a row whose leaf is on another page is not taken for one of this page.
    """
    sealed = {leaf_hash for _, _, leaf_hash in leaves}
    changed: dict[uuid.UUID, Mapping[str, Any]] = {}
    for leaf_hash in found.keys() - sealed:
        row = found[leaf_hash]
        blocks = await ledger_queries.blocks_about(connection, row["id"])
        if not any(leaf_hash in block.leaf_hashes() for block in blocks):
            changed[row["id"]] = row
    return changed
