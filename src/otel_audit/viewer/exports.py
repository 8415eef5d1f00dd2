"""Downloads of a query's records as CSV, NDJSON or JSON, with a manifest."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import zipfile
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from otel_audit_postgres.connection import Connection, PostgresError
from otel_audit_postgres.exports.formats import JSON, NDJSON, TextFormat, csv_format
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.query import all_matching
from otel_audit_postgres.query.all_matching import CSV_COLUMNS
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.trail import look_as
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from otel_audit._util.ratelimited_log import log_limited
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.site import Site, parse_query, refused

_logger = logging.getLogger(__name__)

_TYPES: Final = {
    "csv": "text/csv",
    "ndjson": "application/x-ndjson",
    "json": "application/json",
}

_Rows = Sequence[Mapping[str, Any]]


@dataclass
class _Export:
    """One export under way."""

    query: Query
    form: str
    viewer: str
    rows: int = 0
    size: int = 0
    checkpoint: str | None = None

    def manifest(self, digest: str, name: str) -> bytes:
        content = {
            "format": "otel-audit export 1",
            "file": name,
            "query": str(self.query),
            "exported_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "exported_by": self.viewer,
            "rows": self.rows,
            "bytes": self.size,
            "sha256": digest,
            "checkpoint": self.checkpoint,
        }
        return json.dumps(content, indent=2, ensure_ascii=False).encode() + b"\n"


async def export(site: Site, request: Request, viewer: Viewer) -> Response:
    """Stream a query's records. The export is recorded before the first byte."""
    if not viewer.may_do("export"):
        return await refused(request, viewer, "Exports are not among what you may do.")
    query = parse_query(viewer, request.query_params.get("q", ""))
    form = request.query_params.get("format", "csv")
    form = form if form in _TYPES else "csv"
    under_way = _Export(query, form, viewer.name)
    chunks = _chunks(site, viewer, under_way)
    name = f"audit-{datetime.now(UTC):%Y%m%dT%H%M%SZ}.{form}"
    if request.query_params.get("manifest"):
        chunks, name, media = _zipped(chunks, under_way, name), f"{name}.zip", "application/zip"
    else:
        media = _TYPES[form]
    # errors until here are a page, later ones an end without the rest
    first = await anext(chunks)
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return StreamingResponse(_joined(first, chunks), media_type=media, headers=headers)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for chunk in rest:
        yield chunk


async def _chunks(site: Site, viewer: Viewer, under_way: _Export) -> AsyncIterator[bytes]:
    """The bytes of the file, read in one snapshot of the store."""
    write = _WRITERS[under_way.form]
    narrowed = viewer.narrowed(under_way.query)
    async with site.pool.connection(viewer=viewer.name, is_long=True) as connection:
        await _record(connection, site, viewer, under_way)
        async with connection.transaction(isolation="repeatable_read"):
            await look_as(connection, viewer.scope)
            under_way.checkpoint = await ledger_queries.last_note(connection)
            yield write.begin
            read = all_matching.batches(connection, narrowed, texts=write.has_payloads)
            async with aclosing(_ahead(read)) as batches:
                async for rows in batches:
                    # beside the event loop, which has other pages to serve
                    yield await asyncio.to_thread(_written, write, rows, under_way.rows == 0)
                    under_way.rows += len(rows)
        yield write.end


def _written(write: TextFormat, rows: _Rows, first: bool) -> bytes:  # noqa: FBT001 - as `write`
    values = (
        [row["payload"] for row in rows]
        if write.has_payloads
        else [[*row.values()] for row in rows]
    )
    return write.rows(values, first)


async def _ahead(batches: AsyncIterator[_Rows]) -> AsyncGenerator[_Rows]:
    """Read the next batch while the last one is formatted and sent."""
    coming = asyncio.ensure_future(anext(batches, None))
    try:
        while (rows := await coming) is not None:
            coming = asyncio.ensure_future(anext(batches, None))
            yield rows
    finally:
        coming.cancel()
        await asyncio.gather(coming, return_exceptions=True)


async def _record(
    connection: Connection[Any], site: Site, viewer: Viewer, under_way: _Export
) -> None:
    if site.settings.record_views == "off":
        return
    asked_for = {"query": str(under_way.query), "format": under_way.form}
    if viewer.tenants is not None:
        asked_for["tenants"] = ",".join(viewer.tenants)[:1000]
    try:
        await all_matching.record_export(connection, asked_for, viewer.name)
    except PostgresError as error:
        if site.settings.record_views == "required":
            raise
        log_limited(
            _logger, "exported", "An export is not recorded", error=error, level=logging.WARNING
        )


async def _zipped(
    chunks: AsyncIterator[bytes], under_way: _Export, name: str
) -> AsyncIterator[bytes]:
    """A ZIP archive of file and manifest, written while it is sent."""
    target = _Written()
    digest = hashlib.sha256()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open(name, "w", force_zip64=True) as file:
            async for chunk in chunks:
                digest.update(chunk)
                under_way.size += len(chunk)
                file.write(chunk)
                if written := target.taken():
                    yield written
        archive.writestr("manifest.json", under_way.manifest(digest.hexdigest(), name))
    yield target.taken()


class _Written(io.RawIOBase):
    """A buffer for the ZIP writer, without seeking."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._parts.append(bytes(data))
        return len(data)

    def taken(self) -> bytes:
        found = b"".join(self._parts)
        self._parts.clear()
        return found


_WRITERS: Final = {"csv": csv_format(CSV_COLUMNS), "ndjson": NDJSON, "json": JSON}
