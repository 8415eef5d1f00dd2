"""Rows as Parquet: every column, the exact text, each row's leaf; same rows, same bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from otel_audit.errors import MissingExtraError
from otel_audit_postgres.archive.objects import ArchiveError
from otel_audit_postgres.rows import COLUMNS

ROWS_IN_GROUP: Final = 20_000
BYTES_IN_GROUP: Final = 32_000_000
_ZSTD_LEVEL: Final = 3

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


def _schema(arrow: Any) -> Any:
    kinds = {
        "uuid": arrow.binary(16), "text": arrow.string(), "json": arrow.string(),
        "timestamptz": arrow.timestamp("us", "UTC"), "float8": arrow.float64(),
        "int4": arrow.int32(), "int8": arrow.int64(), "text[]": arrow.list_(arrow.string()),
        "bytea": arrow.binary(32),
    }  # fmt: skip
    return arrow.schema([(name, kinds[kind]) for name, kind in (*COLUMNS, *_OWN)])


class RowFile:
    """One file that is being written, a group of rows at a time."""

    def __init__(self, path: Path) -> None:
        """Open the file.

        Raises:
            MissingExtraError: `pyarrow` is not installed.
        """
        arrow, files = parquet()
        self._arrow, self.path = arrow, path
        self._schema = _schema(arrow)
        self._writer = files.ParquetWriter(
            path, self._schema, compression="zstd", compression_level=_ZSTD_LEVEL,
            use_dictionary=list(_REPEATED), write_statistics=True, store_schema=False,
        )  # fmt: skip
        self._held: list[tuple[Any, ...]] = []
        self._bytes = 0
        self.rows, self.first, self.last = 0, -1, -1

    def add(self, row: tuple[Any, ...], payload_bytes: int) -> None:
        """Add a row, its values in the order of `NAMES`."""
        self._held.append(row)
        self._bytes += payload_bytes
        self.rows += 1
        self.last = row[-2]
        self.first = self.last if self.first < 0 else self.first
        if len(self._held) >= ROWS_IN_GROUP or self._bytes >= BYTES_IN_GROUP:
            self._write()

    def close(self) -> None:
        """Write what is held, and the file's end."""
        self._write()
        self._writer.close()

    def _write(self) -> None:
        if not self._held:
            return
        columns = [
            self._arrow.array(values, field.type)
            for values, field in zip(zip(*self._held, strict=True), self._schema, strict=True)
        ]
        self._writer.write_table(
            self._arrow.Table.from_arrays(columns, schema=self._schema),
            row_group_size=len(self._held),
        )
        self._held, self._bytes = [], 0


def read_rows(path: Path, columns: Sequence[str] = NAMES) -> Iterator[Mapping[str, Any]]:
    """The rows of a file, in its order, few at a time; ``recorded_at`` in microseconds since 1970.

    Raises:
        ArchiveError: It is no such file.
    """
    arrow, files = parquet()
    try:
        with files.ParquetFile(path) as file:
            names = file.schema_arrow.names
            if any(name not in names for name in columns):
                raise ArchiveError("the file lacks columns")
            for batch in file.iter_batches(batch_size=2000, columns=list(columns)):
                values = [
                    batch.column(name).cast(arrow.int64()).to_pylist()
                    if name == "recorded_at"
                    else batch.column(name).to_pylist()
                    for name in columns
                ]
                for row in zip(*values, strict=True):
                    yield dict(zip(columns, row, strict=True))
    except (arrow.ArrowException, OSError, ValueError) as error:
        raise ArchiveError(f"the file cannot be read ({type(error).__name__})") from None


def read_leaves(path: Path) -> dict[int, bytes]:
    """The leaf hashes of a file by their places.

    Raises:
        ArchiveError: It is no such file.
    """
    return {row["leaf"]: row["leaf_hash"] for row in read_rows(path, ("leaf", "leaf_hash"))}
