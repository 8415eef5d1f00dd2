"""The live tail: records as they are sealed, by their place in the log, so that none is lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import store
from otel_audit_postgres.ledger.tail import sealed_ids
from otel_audit_postgres.query import queries
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.payloads import Key, Names
from otel_audit_postgres.query.queries import Found
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse

from otel_audit._util.printable import visible
from otel_audit.errors import OtelAuditError
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.rendering import Links, links_of, render
from otel_audit.viewer.site import Site, asked, refused

MOST: Final = 20
"""Tails at once in one process."""
_BATCH: Final = 200
_EVERY: Final = 1.0
_HEARTBEAT: Final = 15.0
_RECORDED_EVERY: Final = 60.0


async def page(_: Site, request: Request, viewer: Viewer) -> Response:
    """The page on which they appear."""
    if not viewer.may_do("tail"):
        return await refused(request, viewer, "The live tail is not among what you may do.")
    query = asked(viewer, request.query_params.get("q", ""))
    context = {"title": "Live", "viewer": viewer, "query": str(query)}
    return await render(request, "tail.html", context)


async def events(site: Site, request: Request, viewer: Viewer) -> Response:
    """Server-sent events: batches of records; the id is the place in the log behind the batch."""
    if not viewer.may_do("tail"):
        return await refused(request, viewer, "The live tail is not among what you may do.")
    query = viewer.narrowed(asked(viewer, request.query_params.get("q", "")))
    if site.tails >= MOST:
        return PlainTextResponse(
            f"{MOST} live tails run already: close one, or try again later.\n",
            503,
            headers={"retry-after": "30"},
        )
    began = _place(request.headers.get("last-event-id") or request.query_params.get("from"))
    tailing = _Tail(site, viewer, query, links_of(request))
    position = await tailing.begin(began)
    # a proxy that buffers would hold back every event
    headers = {"x-accel-buffering": "no"}
    return StreamingResponse(
        tailing.stream(position), media_type="text/event-stream", headers=headers
    )


class _Tail:
    """One person's tail."""

    def __init__(self, site: Site, viewer: Viewer, query: Query, link: Links) -> None:
        self._site, self._viewer, self._query, self._link = site, viewer, query, link
        self._recorded = 0.0
        self._names: dict[Key, Names] = {}

    async def begin(self, position: int | None) -> int:
        """Record that somebody looks; where it begins."""
        _, position = await self._read(position, most=0)
        return position

    async def stream(self, position: int) -> AsyncIterator[bytes]:
        """The events, until nobody listens."""
        self._site.tails += 1
        try:
            yield f"retry: 2000\nid: {position}\nevent: begin\ndata: {{}}\n\n".encode()
            said = time.monotonic()
            while True:
                try:
                    found, position = await self._read(position)
                except OtelAuditError as error:
                    yield _event("problem", position, {"message": visible(str(error))})
                    said = time.monotonic()
                    await asyncio.sleep(_EVERY * 5)
                    continue
                if found:
                    yield _event("records", position, [self._told(one) for one in found])
                    said = time.monotonic()
                elif time.monotonic() - said > _HEARTBEAT:
                    yield b": still here\n\n"
                    said = time.monotonic()
                await asyncio.sleep(0 if found else _EVERY)
        finally:
            self._site.tails -= 1

    async def _read(self, position: int | None, most: int = _BATCH) -> tuple[list[Found], int]:
        """The next records of the log that fit, and the place behind what was looked at."""
        due = time.monotonic() - self._recorded > _RECORDED_EVERY or not self._recorded

        async def answer(connection: Connection[Any]) -> tuple[list[Found], int]:
            size = await store.size(connection)
            begin = size if position is None else min(position, size)
            ids = await sealed_ids(connection, begin, min(begin + most, size))
            found = await queries.among(connection, self._query, ids, datetime.now(UTC))
            self._names = await self._site.names(connection, found)
            return found, begin + len(ids)

        async with self._site.trail(self._viewer, views=None if due else "off") as trail:
            answered: tuple[list[Found], int] = await trail.ask(
                "tail", {"query": str(self._query)}, answer, lambda found: len(found[0])
            )
        if due:
            self._recorded = time.monotonic()
        return answered

    def _told(self, one: Found) -> dict[str, str]:
        target = ":".join(part for part in (one.target_type, one.target_id) if part)
        named = self._names.get((one.id, one.tenant_id), Names(None, None))
        told = {
            "time": one.occurred_at.isoformat(timespec="milliseconds"),
            "event": one.event_name,
            "outcome": one.outcome,
            "actor": named.actor or one.actor_id,
            "tenant": named.tenant or one.tenant_id,
            "target": target,
            "status": "" if one.status_code is None else str(one.status_code),
        }
        shown = {name: visible(text) for name, text in told.items()}
        return shown | {"href": self._link(f"/record/{one.id}")}


def _place(text: str | None) -> int | None:
    return int(text) if text and text.isdecimal() and len(text) < 19 else None  # noqa: PLR2004


def _event(kind: str, position: int, data: object) -> bytes:
    text = json.dumps(data)
    return f"id: {position}\nevent: {kind}\ndata: {text}\n\n".encode()
