"""Rows of the store as Arrow tables: by COPY, column by column; no object is made for a row."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from struct import Struct
from sys import byteorder
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit_postgres.archive.parquet_files import NAMES, parquet, row_schema
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger.leaves import leaf_hash_of
from otel_audit_postgres.rows import COLUMNS

# control characters, so that next to nothing in a record needs quoting; NULL is an empty field
# without quotes, an empty text one with them
_DELIMITER: Final = "\x02"
_QUOTE: Final = "\x01"
# of 2000-01-01, from where PostgreSQL counts, in microseconds since 1970
_POSTGRES_EPOCH: Final = 946_684_800_000_000
_UNREADABLE: Final = -1

# as PostgreSQL sends them in binary: exact, and quicker than what a text would need
_SENT: Final = {
    "uuid": "encode(uuid_send({0}), 'hex')",
    "bytea": "encode({0}, 'hex')",
    "float8": "encode(float8send({0}), 'hex')",
    "timestamptz": "encode(timestamptz_send({0}), 'hex')",
    "text[]": "array_to_json({0})",
}
_BYTES: Final = {"uuid": 16, "bytea": 32, "float8": 8, "timestamptz": 8}
"""Bytes of a value of a fixed size; `bytea` is always a SHA-256 here."""
# a time that no datetime can hold, stored before times were checked, is read as NULL
_READABLE: Final = {
    "occurred_at": "CASE WHEN occurred_at > '0001-01-01 00:00:00+00' "
    "AND occurred_at < '9999-12-31 23:59:59.999999+00' THEN occurred_at END",
    "recorded_at": "CASE WHEN isfinite(recorded_at) AND recorded_at < '290000-01-01 00:00:00+00' "
    "THEN recorded_at END",
}
_COPIED: Final = (*COLUMNS, ("recorded_at", "timestamptz"))
_PAYLOAD: Final = "payload"
_FIELDS: Final = [(name, kind) for name, kind in _COPIED if name != _PAYLOAD]
_SELECTED: Final = ", ".join(
    _SENT.get(kind, "{0}").format(_READABLE.get(name, name)) for name, kind in _FIELDS
)
# the same order twice, of what one transaction sees
_CHOSEN: Final = "FROM audit.audit_logs WHERE id = ANY('{{{}}}'::uuid[]) ORDER BY id, tenant_id"
# of COPY's binary format: a signature, flags, and the length of an extension, which is 0; then for
# each row how many fields it has and, before each of them, how long that is; an end of two bytes
_HEAD_SIZE: Final = 19
_END_SIZE: Final = 2
_FIELD: Final = Struct(">hi")
_decode_texts: Final = msgspec.json.Decoder(list[str] | None).decode


class CopiedRows(NamedTuple):
    """Rows as PostgreSQL sent them.

    The payloads, the greater part, come by themselves: nothing in them is looked at on the way.

    Attributes:
        fields: All columns but the payload, as CSV.
        payloads: The payloads, in COPY's binary format.
    """

    fields: bytearray
    payloads: bytearray


async def copied_rows(
    connection: Connection[Any], ids: Sequence[bytes], most: int | None = None
) -> CopiedRows | None:
    """The stored rows of these ids, as `arrow_table` reads them.

    Args:
        connection: To the store, in a transaction that sees one moment.
        ids: 16 bytes each.
        most: So many bytes of payloads, and little more, are kept in memory; None: all.

    Returns:
        The rows; None if their payloads make up more than that.
    """
    chosen = _CHOSEN.format(",".join(one.hex() for one in ids))
    found = CopiedRows(bytearray(), bytearray())
    size = 0

    async def taken(part: bytes) -> None:
        found.fields.extend(part)

    async def kept(part: bytes) -> None:
        nonlocal size
        size += len(part)
        # to its end: a statement that is cut off takes the transaction with it
        if most is None or size <= most:
            found.payloads.extend(part)

    await connection.copy_from_query(
        f"SELECT {_SELECTED} {chosen}",
        output=taken, format="csv", delimiter=_DELIMITER, quote=_QUOTE,
    )  # fmt: skip
    await connection.copy_from_query(
        f"SELECT {_PAYLOAD} {chosen}",
        output=kept, format="binary",
    )  # fmt: skip
    return found if most is None or size <= most else None


def arrow_table(copied: CopiedRows) -> Any:
    """The copied rows as a table, without the leaf's columns.

    Raises:
        MissingExtraError: `pyarrow` is not installed.
    """
    arrow, _ = parquet()
    schema = row_schema()
    schema = arrow.schema([schema.field(name) for name, _ in _COPIED])
    if not copied.fields:
        return schema.empty_table()
    from pyarrow import csv

    read_as = {"int4": arrow.int32(), "int8": arrow.int64()}
    table = csv.read_csv(
        arrow.BufferReader(arrow.py_buffer(copied.fields)),
        # one block, as a row may be of any size; the file is read elsewhere meanwhile
        csv.ReadOptions(
            column_names=[name for name, _ in _FIELDS],
            block_size=len(copied.fields) + 1, use_threads=False,
        ),
        csv.ParseOptions(delimiter=_DELIMITER, quote_char=_QUOTE, newlines_in_values=True),
        csv.ConvertOptions(
            column_types={name: read_as.get(kind, arrow.string()) for name, kind in _FIELDS},
            null_values=[""], strings_can_be_null=True, quoted_strings_can_be_null=False,
        ),
    )  # fmt: skip
    columns = [
        _payloads(arrow, copied.payloads)
        if name == _PAYLOAD
        else _converted(arrow, _whole(arrow, table.column(name)), name, kind)
        for name, kind in _COPIED
    ]
    return arrow.Table.from_arrays(columns, schema=schema)


def _payloads(arrow: Any, copied: bytearray) -> Any:
    """The one column of what was copied in the binary format."""
    whole, texts, ends = memoryview(copied), list[memoryview](), array("i", [0])
    at, end, total = _HEAD_SIZE, len(copied) - _END_SIZE, 0
    read, before = _FIELD.unpack_from, _FIELD.size
    while at < end:
        size = max(read(copied, at)[1], 0)
        at += before
        texts.append(whole[at : at + size])
        at += size
        total += size
        ends.append(total)
    return arrow.Array.from_buffers(
        arrow.string(), len(texts), [None, arrow.py_buffer(ends), arrow.py_buffer(b"".join(texts))]
    )


def leaf_hashes(rows: Any) -> Iterator[bytes]:
    """The leaf that each row of a table or batch is now; content is hashed afresh.

    Args:
        rows: With ``id``, ``recorded_at`` and ``payload``, as a file has them.
    """
    arrow, _ = parquet()
    ids, recorded, payloads = (
        _whole(arrow, rows.column(name)) for name in ("id", "recorded_at", "payload")
    )
    times = recorded.cast(arrow.int64()).to_pylist()
    id_bytes = ids.to_pylist()
    for row_id, moment, payload in zip(id_bytes, times, texts_of(payloads), strict=True):
        yield leaf_hash_of(moment, row_id, payload)


def with_leaves(
    table: Any, rows: Sequence[int], leaves: Sequence[int], digests: Sequence[bytes]
) -> Any:
    """Rows of a table in a given order, each with its leaf."""
    arrow, _ = parquet()
    is_all = len(rows) == table.num_rows and [*rows] == [*range(table.num_rows)]
    chosen = table if is_all else table.take(arrow.array(rows, arrow.int64()))
    return arrow.Table.from_arrays(
        [
            *chosen.columns,
            arrow.array(leaves, arrow.int64()),
            arrow.array(digests, arrow.binary(32)),
        ],
        schema=row_schema(),
    )


def texts_of(column: Any) -> Iterator[memoryview]:
    """The texts of a column without NULL as they lie in memory, in UTF-8."""
    count = len(column)
    if not count:
        return
    _, places, data = column.buffers()
    ends = memoryview(places).cast("i")
    whole = memoryview(data) if data is not None else memoryview(b"")
    for number in range(column.offset, column.offset + count):
        yield whole[ends[number] : ends[number + 1]]


def _all_of(column: Any) -> memoryview:
    """The texts of a column without NULL, one after the other."""
    _, places, data = column.buffers()
    ends = memoryview(places).cast("i")
    return memoryview(data)[ends[column.offset] : ends[column.offset + len(column)]]


def _whole(arrow: Any, column: Any) -> Any:
    """A column in one piece; it is copied only if it is in several."""
    if not isinstance(column, arrow.ChunkedArray):
        return column
    return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()


def _converted(arrow: Any, column: Any, name: str, kind: str) -> Any:
    if kind == "text[]":
        lists = [None if text is None else _decode_texts(text) for text in column.to_pylist()]
        return arrow.array(lists, arrow.list_(arrow.string()))
    if kind not in _BYTES:
        return column
    size, count = _BYTES[kind], len(column)
    # the validity alone says what is NULL
    raw = bytes.fromhex(str(_all_of(column.fill_null("00" * size)), "ascii"))
    validity = column.is_valid().buffers()[1] if column.null_count else None
    if kind in {"uuid", "bytea"}:
        return arrow.Array.from_buffers(arrow.binary(size), count, [validity, arrow.py_buffer(raw)])
    numbers = array("d" if kind == "float8" else "q", raw)
    if byteorder == "little":
        numbers.byteswap()
    if kind == "float8":
        return arrow.Array.from_buffers(
            arrow.float64(), count, [validity, arrow.py_buffer(numbers)]
        )
    from pyarrow import compute

    times = arrow.Array.from_buffers(arrow.int64(), count, [validity, arrow.py_buffer(numbers)])
    times = compute.add(times, _POSTGRES_EPOCH)
    if name == "recorded_at":
        times = times.fill_null(_UNREADABLE)
    return times.cast(arrow.timestamp("us", "UTC"))


assert [name for name, _ in _COPIED] == list(NAMES[:-2])  # noqa: S101 - the files' own order
