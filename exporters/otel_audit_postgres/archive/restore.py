"""An archived month back in the database, to be read for some days."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from otel_audit_postgres.archive.catalog import latest, recorded_archives, removed_keys
from otel_audit_postgres.archive.manifest import read_manifest
from otel_audit_postgres.archive.objects import ArchiveError, ArchiveStore, digest_of
from otel_audit_postgres.archive.parquet_files import NAMES, read_rows
from otel_audit_postgres.ledger import ledger_queries

_RECORD: Final = "SELECT audit.record_restoration($1, $2, $3)"
_END: Final = "SELECT audit.end_restorations($1)"
_LEAF: Final = frozenset({"leaf", "leaf_hash"})
_COLUMNS: Final = (*(name for name in NAMES if name not in _LEAF), "month")
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


async def restore_month(
    dsn: str,
    archive: ArchiveStore,
    month: date,
    days: int,
    progress: Callable[[int], None] | None = None,
) -> int:
    """Put an archived month into ``audit.restored_logs``, which its readers may read.

    Args:
        dsn: The audit store, as its retention role.
        archive: Where the month is.
        month: Its first day.
        days: After so many the next run of retention takes it away again; 1 to 90.
        progress: Called with the rows that were restored so far.

    Returns:
        How many rows.

    Raises:
        ArchiveError: It is not archived, or its files are not what the manifest says.
        StoreError: The store refuses it.
    """
    async with ledger_queries.opened(dsn, "restore a month") as connection:
        found = latest(await recorded_archives(connection)).get(month)
        if found is None:
            raise ArchiveError(f"{month:%Y-%m} is not archived: otel-audit archive list")
        removed = await removed_keys(connection)
        objects = [one for one in read_manifest(found.note).objects if one.key not in removed]
        rows = sum(one.rows for one in objects)
        done = 0
        async with connection.transaction():
            await connection.fetchval(_END, month)
            await connection.fetchval(_RECORD, month, days, rows)
            for one in objects:
                with archive.fetch(one.key) as file:
                    if digest_of(file) != one.sha256:
                        raise ArchiveError(f"{one.key} is not what was archived: nothing restored")
                    await connection.copy_records_to_table(
                        "restored_logs", schema_name="audit", columns=_COLUMNS,
                        records=_records(file, month),
                    )  # fmt: skip
                done += one.rows
                if progress is not None:
                    progress(done)
    return rows


async def end_restoration(dsn: str, month: date) -> int:
    """Take a restored month away again before its time; how many rows that were."""
    async with ledger_queries.opened(dsn, "end a restoration") as connection:
        rows: int = await connection.fetchval(_END, month)
    return rows


def _records(file: Path, month: date) -> Iterator[tuple[Any, ...]]:
    for row in read_rows(file):
        values = dict(row)
        values["id"] = uuid.UUID(bytes=row["id"])
        values["recorded_at"] = _EPOCH + timedelta(microseconds=max(row["recorded_at"], 0))
        values["occurred_at"] = row["occurred_at"] or _EPOCH
        values["month"] = month
        yield tuple(values[name] for name in _COLUMNS)
