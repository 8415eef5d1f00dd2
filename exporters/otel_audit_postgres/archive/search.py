"""Searches in archives, within the trail's scopes, and recorded like any search."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any, Final

from otel_audit_postgres.archive.catalog import ListedObject, listed_objects
from otel_audit_postgres.archive.objects import ArchiveStore
from otel_audit_postgres.archive.query import ArchivedHit, query_archives
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.queries import PAGE
from otel_audit_postgres.query.trail import Trail

_RIGHTS: Final = """
SELECT NOT row_security_active('audit.audit_logs'),
       EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL),
       ARRAY(SELECT t.tenant_id FROM audit.reader_tenants t WHERE t.tenant_id IS NOT NULL)
"""
_SCOPE: Final = "SELECT everything, tenants FROM audit.scope()"


async def search_archives(
    trail: Trail,
    archive: ArchiveStore,
    query: Query,
    *,
    limit: int = PAGE,
    before: uuid.UUID | None = None,
) -> list[ArchivedHit]:
    """Search archived records, newest first. The search is recorded.

    Args:
        trail: Who looks, and how far: only tenants that he would be shown in the trail.
        archive: Where archives are.
        query: What is looked for, in the language of the trail's search.
        limit: Records at the most.
        before: Only records with lower ids: the last one's of the page before.

    Raises:
        ArchiveError: An object is gone or cannot be read.
        StoreError: The look cannot be recorded, or the scope does not hold here.
        MissingExtraError: `duckdb` is not installed.
    """
    objects, tenants = await trail.ask_unrecorded(_visible_objects)
    found = await asyncio.to_thread(
        query_archives, archive, objects, query, limit=limit, tenants=tenants, before=before
    )
    asked = {"query": str(query), "before": None if before is None else str(before)}
    await trail.looked("archive query", asked, len(found))
    return found


async def archived_record(
    trail: Trail, archive: ArchiveStore, record_id: uuid.UUID
) -> list[ArchivedHit]:
    """The archived records with an id: usually one or none. The view is recorded.

    Args:
        trail: As for `search_archives`.
        archive: Where archives are.
        record_id: The id.

    Raises:
        ArchiveError: An object is gone or cannot be read.
        StoreError: The look cannot be recorded, or the scope does not hold here.
        MissingExtraError: `duckdb` is not installed.
    """
    objects, tenants = await trail.ask_unrecorded(_visible_objects)
    found = await asyncio.to_thread(
        query_archives, archive, objects, Query(()), tenants=tenants, record_id=record_id
    )
    await trail.looked("archive show", {"id": str(record_id)}, len(found))
    return found


async def _visible_objects(
    connection: Connection[Any],
) -> tuple[list[ListedObject], frozenset[str] | None]:
    """The files, and the tenants that row level security would show; None: of all."""
    objects = await listed_objects(connection)
    row = await connection.fetchrow(_RIGHTS)
    assert row is not None  # noqa: S101 - a query without FROM has a row
    is_unlimited, is_of_all, own = row.values()
    if is_unlimited:
        return objects, None
    mine = None if is_of_all else frozenset(own)
    scope = await connection.fetchrow(_SCOPE)
    assert scope is not None  # noqa: S101 - a function without SETOF has a row
    if scope["everything"]:
        return objects, mine
    narrowed = frozenset(scope["tenants"] or ())
    return objects, narrowed if mine is None else mine & narrowed
