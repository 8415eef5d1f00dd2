"""The archives that the store records: their manifests, in order."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from datetime import date, datetime
from typing import Any, Final, NamedTuple

from otel_audit_postgres.archive.manifest import ArchivedObject, ArchiveManifest, read_manifest
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries

_ARCHIVES: Final = (
    "SELECT step, month, manifest, rows, record_id, recorded_at FROM audit.archives ORDER BY step"
)
_RECORD: Final = "SELECT audit.record_archive($1, $2, $3, $4::text::jsonb)"
_RECORD_VERIFICATION: Final = "SELECT audit.record_archive_verification($1, $2, $3, $4)"
_REMOVED: Final = "SELECT key, record_id FROM audit.archive_removals"
_REMOVE: Final = "SELECT audit.record_archive_removal($1, $2, $3)"


class RecordedArchive(NamedTuple):
    """A manifest that the trail names."""

    sequence_number: int
    month: date
    note: str
    rows: int
    record_id: uuid.UUID
    recorded_at: datetime


async def recorded_archives(connection: Connection[Any]) -> list[RecordedArchive]:
    """All manifests, the first one first."""
    return [RecordedArchive(*row.values()) for row in await connection.fetch(_ARCHIVES)]


def latest(archives: Sequence[RecordedArchive]) -> dict[date, RecordedArchive]:
    """The one of each month that counts."""
    return {one.month: one for one in archives}


async def record_archive(connection: Connection[Any], note: str, manifest: ArchiveManifest) -> int:
    """Record that a month was archived; return the manifest's sequence number."""
    objects = [{"key": one.key, "rows": one.rows, "sha256": one.sha256} for one in manifest.objects]
    number: int = await connection.fetchval(
        _RECORD, manifest.month, note, manifest.rows, json.dumps(objects)
    )
    return number


async def removed_keys(connection: Connection[Any]) -> set[str]:
    """Objects that were due for removal, and that a record names."""
    return {row["key"] for row in await connection.fetch(_REMOVED)}


async def recorded_removals(connection: Connection[Any]) -> dict[str, uuid.UUID]:
    """The removed keys, each with the record of the removal."""
    return {row["key"]: row["record_id"] for row in await connection.fetch(_REMOVED)}


async def record_removal(
    connection: Connection[Any], number: int, key: str, holds_seen: int
) -> None:
    """Record the removal of an object before it; the database refuses one not due, or held."""
    await connection.fetchval(_REMOVE, number, key, holds_seen)


async def record_verification(
    dsn: str, *, months: int, rows: int, problems: int, deep: bool
) -> None:
    """Tell in the trail that archives were verified, and what came of it.

    Args:
        dsn: The audit store, as a role that sees all of it.
        months: That were looked at.
        rows: That the manifests tell of.
        problems: That were found.
        deep: Whether every row was read and hashed again.

    Raises:
        StoreError: The role may not say so, or the server is read-only.
    """
    async with ledger_queries.opened(dsn, "record a verification", asks=True) as connection:
        await connection.fetchval(_RECORD_VERIFICATION, months, rows, problems, deep)


class ListedObject(NamedTuple):
    """A file of an archived month, and whether it was due to go."""

    month: date
    entry: ArchivedObject
    is_removed: bool

    def as_json(self) -> dict[str, Any]:
        """The values for JSON."""
        one = self.entry
        return {
            "month": f"{self.month:%Y-%m}", "class": one.kind, "key": one.key, "rows": one.rows,
            "bytes": one.size, "sha256": one.sha256, "first_leaf": one.first,
            "last_leaf": one.last, "removed": self.is_removed,
            "locked_until": None if one.locked_until is None else one.locked_until.isoformat(),
            "expires": None if one.expires is None else one.expires.isoformat(),
        }  # fmt: skip


async def archived_objects(dsn: str) -> list[ListedObject]:
    """The files of all archived months, the first month first.

    Args:
        dsn: The audit store, as a reader or its retention role.

    Raises:
        StoreError: The store cannot be read.
    """
    async with ledger_queries.opened(dsn, "list archives", asks=True) as connection:
        return await listed_objects(connection)


async def listed_objects(connection: Connection[Any]) -> list[ListedObject]:
    """As `archived_objects`, on an open connection."""
    removed = await removed_keys(connection)
    counting = latest(await recorded_archives(connection))
    return [
        ListedObject(month, entry, entry.key in removed)
        for month, one in sorted(counting.items())
        for entry in read_manifest(one.note).objects
    ]
