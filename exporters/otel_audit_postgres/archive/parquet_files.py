"""Rows as Parquet: every column, the exact text, each row's leaf; same rows, same bytes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import MissingExtraError
from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.rows import ADDED_IN, COLUMNS, versions_with

ROWS_IN_GROUP: Final = 20_000
"""Rows of a row group: a question that finds one row of it reads all of them."""
BYTES_IN_GROUP: Final = 16_000_000
"""Bytes of texts in a row group, so that large records do not make it large in memory."""
_ZSTD_LEVEL: Final = 1
"""The quickest level: writing a month is CPU."""
_ROWS_IN_BATCH: Final = 2000
"""Rows that a reader has in memory at once."""

# of few different values, or of the same few in a row
_REPEATED: Final = (
    "phase", "tenant_id", "event_name", "action", "outcome", "actor_id", "actor_type",
    "actor_role", "target_type", "source_address", "user_agent", "session_id", "error_type",
    "service_name", "http_method", "http_route", "url_path", "transaction_outcome",
    "producer_id", "schema_version", "received_by",
)  # fmt: skip
_OWN: Final = (("recorded_at", "timestamptz"), ("leaf", "int8"), ("leaf_hash", "bytea"))
NAMES: Final = (*(name for name, _ in COLUMNS), *(name for name, _ in _OWN))
"""The columns of a file, in their order."""


def parquet() -> tuple[Any, Any]:
    """`pyarrow` and `pyarrow.parquet`.

    Raises:
        MissingExtraError: They are not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as missing:
        raise MissingExtraError("an archive", "archive") from missing
    return pa, pq


def row_schema() -> Any:
    """The types of a file's columns, in their order.

    Raises:
        MissingExtraError: `pyarrow` is not installed.
    """
    arrow, _ = parquet()
    kinds = {
        "uuid": arrow.binary(16), "text": arrow.string(), "json": arrow.string(),
        "timestamptz": arrow.timestamp("us", "UTC"), "float8": arrow.float64(),
        "int4": arrow.int32(), "int8": arrow.int64(), "text[]": arrow.list_(arrow.string()),
        "bytea": arrow.binary(32),
    }  # fmt: skip
    return arrow.schema([(name, kinds[kind]) for name, kind in (*COLUMNS, *_OWN)])


class RowFile:
    """One file that is being written, a group of rows at a time.

    Where a group ends depends on the rows alone, and not on how many of them come at once: the same
    rows make the same bytes.
    """

    def __init__(self, path: Path) -> None:
        """Open the file for writing.

        Args:
            path: The Parquet file.

        Raises:
            MissingExtraError: `pyarrow` is not installed.
        """
        arrow, files = parquet()
        self._arrow, self.path = arrow, path
        self._schema = row_schema()
        self._writer = files.ParquetWriter(
            path, self._schema, compression="zstd", compression_level=_ZSTD_LEVEL,
            use_dictionary=list(_REPEATED), write_statistics=True, store_schema=False,
        )  # fmt: skip
        self._held: list[Any] = []
        self._held_rows = self._held_bytes = 0
        self.rows, self.first, self.last = 0, -1, -1

    def add(self, rows: Any) -> None:
        """Add rows: a table with the columns of `NAMES`, in this order."""
        if not rows.num_rows:
            return
        leaves = rows.column("leaf")
        self.rows += rows.num_rows
        self.last = leaves[-1].as_py()
        self.first = leaves[0].as_py() if self.first < 0 else self.first
        ends = self._ends_of(rows)
        begin = 0
        while begin < rows.num_rows:
            before = ends[begin - 1] if begin else 0
            full = before + BYTES_IN_GROUP - self._held_bytes
            # the row with which the group is full is in it
            end = min(
                begin + ROWS_IN_GROUP - self._held_rows, bisect_left(ends, full, begin) + 1,
                rows.num_rows,
            )  # fmt: skip
            self._held.append(rows.slice(begin, end - begin))
            self._held_rows += end - begin
            self._held_bytes += ends[end - 1] - before
            if self._held_rows >= ROWS_IN_GROUP or self._held_bytes >= BYTES_IN_GROUP:
                self._write()
            begin = end

    def _ends_of(self, rows: Any) -> list[int]:
        """The cumulative sizes of payloads, in bytes."""
        from pyarrow import compute

        lengths = compute.binary_length(rows.column("payload")).cast(self._arrow.int64())
        ends: list[int] = compute.cumulative_sum(lengths).to_pylist()
        return ends

    def close(self) -> None:
        """Write what is held, and the file's end."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if not self._held:
            return
        group = self._arrow.concat_tables(self._held)
        self._held = []
        group = group.combine_chunks()
        self._writer.write_table(group, row_group_size=self._held_rows)
        self._held_rows = self._held_bytes = 0


def column_names(path: Path) -> list[str]:
    """The names of a file's columns, in its order.

    Raises:
        ArchiveError: It is not such a file.
    """
    arrow, files = parquet()
    try:
        with files.ParquetFile(path) as file:
            names: list[str] = file.schema_arrow.names
            return names
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ArchiveError(f"the file cannot be read ({type(error).__name__})") from None


def read_batches(path: Path, columns: Sequence[str] = NAMES) -> Iterator[Any]:
    """The rows of a file as record batches, in its order.

    A file that is older than a column (`ADDED_IN`) has no such column: it is read as NULL.

    Raises:
        ArchiveError: It is not such a file, or it lacks a column that its rows have by their
            version.
    """
    arrow, files = parquet()
    try:
        with files.ParquetFile(path) as file:
            names = file.schema_arrow.names
            lacking = [name for name in columns if name not in names]
            if any(name not in ADDED_IN for name in lacking):
                raise ArchiveError(f"the file lacks columns: {', '.join(lacking)}")
            # the rows' version says whether the column was there when they were archived
            read = [name for name in columns if name in names]
            read += ["schema_version"] if lacking and "schema_version" not in read else []
            for batch in file.iter_batches(batch_size=_ROWS_IN_BATCH, columns=read):
                yield _with_nulls(batch, columns, lacking) if lacking else batch
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ArchiveError(f"the file cannot be read ({type(error).__name__})") from None


def _with_nulls(batch: Any, columns: Sequence[str], lacking: Sequence[str]) -> Any:
    arrow, _ = parquet()
    versions = {*batch.column("schema_version").to_pylist()}
    for name in lacking:
        if versions.intersection(versions_with(name)):
            raise ArchiveError(f"the file lacks the column {name}, which rows of its version have")
    schema = row_schema()
    return arrow.RecordBatch.from_arrays(
        [
            arrow.nulls(batch.num_rows, schema.field(name).type)
            if name in lacking
            else batch.column(name)
            for name in columns
        ],
        names=list(columns),
    )


def read_rows(path: Path, columns: Sequence[str] = NAMES) -> Iterator[Mapping[str, Any]]:
    """The rows of a file, in its order, few at a time; ``recorded_at`` in microseconds since 1970.

    Raises:
        ArchiveError: It is not such a file.
    """
    arrow, _ = parquet()
    for batch in read_batches(path, columns):
        values = [
            batch.column(name).cast(arrow.int64()).to_pylist()
            if name == "recorded_at"
            else batch.column(name).to_pylist()
            for name in columns
        ]
        for row in zip(*values, strict=True):
            yield dict(zip(columns, row, strict=True))


def read_leaves(path: Path) -> dict[int, bytes]:
    """The leaf hashes of a file by their places.

    Raises:
        ArchiveError: It is not such a file.
    """
    return {row["leaf"]: row["leaf_hash"] for row in read_rows(path, ("leaf", "leaf_hash"))}
