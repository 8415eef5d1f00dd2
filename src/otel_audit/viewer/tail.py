"""The live tail: new records in the order of the log, so none is lost."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any, Final

from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.latest_records import SealedPart, place_behind, read_sealed
from otel_audit_postgres.query import queries
from otel_audit_postgres.query.grammar import Query
from otel_audit_postgres.query.payloads import DisplayNames, RecordKey
from otel_audit_postgres.query.queries import Found
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from otel_audit._util.printable import visible
from otel_audit.errors import OtelAuditError
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.rendering import links_of, moment, render
from otel_audit.viewer.site import Site, hide_own_events, parse_query, refused
from otel_audit.viewer.tail_cursor import TailPosition

MOST: Final = 20
"""Tails at once in one process."""
_BATCH: Final = 200
"""Leaves that are looked at in one turn."""
_EVERY: Final = 1.0
"""Seconds between two turns: a sealer seals about once a second."""
_HEARTBEAT: Final = 15.0
"""Seconds of silence after which a comment is sent: proxies close silent connections."""
_RECORDED_EVERY: Final = 60.0
"""Seconds between two records of the same look."""
_ASKED_EVERY: Final = 15.0
"""Seconds between two questions whether the user may still look."""
_GAP: Final = (
    "The viewer was restarted meanwhile: what was sealed in between is not shown here, but in the "
    "search."
)


async def page(_: Site, request: Request, viewer: Viewer) -> Response:
    """The page of the live tail."""
    if not viewer.may_do("tail"):
        return await refused(request, viewer, "The live tail is not among what you may do.")
    query = parse_query(viewer, request.query_params.get("q", ""))
    wanted = hide_own_events(request, viewer, query)
    context = {
        "title": "Live", "viewer": viewer, "query": str(query), "wanted": str(wanted),
        "hides_own": wanted != query,
    }  # fmt: skip
    return await render(request, "tail.html", context)


async def events(site: Site, request: Request, viewer: Viewer) -> Response:
    """Server-sent events with batches of records; an event's id is the place after its batch."""
    if not viewer.may_do("tail"):
        return await refused(request, viewer, "The live tail is not among what you may do.")
    query = viewer.narrowed(parse_query(viewer, request.query_params.get("q", "")))
    if site.tails >= MOST:
        return PlainTextResponse(
            f"{MOST} live tails run already: close one, or try again later.\n",
            503,
            headers={"retry-after": "30"},
        )
    given = request.headers.get("last-event-id") or request.query_params.get("from")
    tailing = _Tail(site, request, viewer, query)
    # before the store is asked: others come meanwhile
    tailing.count()
    try:
        await tailing.begin(given)
    except BaseException:
        tailing.leave()
        raise
    # a proxy that buffers would hold back every event
    headers = {"x-accel-buffering": "no"}
    return _TailResponse(tailing, media_type="text/event-stream", headers=headers)


class _Tail:
    """The tail of one connection."""

    def __init__(self, site: Site, request: Request, viewer: Viewer, query: Query) -> None:
        self._site, self._request, self._viewer, self._query = site, request, viewer, query
        self._link = links_of(request)
        self._place = TailPosition()
        self._is_behind = False
        self._recorded = self._asked = time.monotonic()
        self._names: dict[RecordKey, DisplayNames] = {}
        self._is_counted = False

    def count(self) -> None:
        """Count it among those that run, until it is left."""
        self._is_counted = True
        self._site.tails += 1

    def leave(self) -> None:
        """Count it no more; a second call does nothing."""
        if self._is_counted:
            self._is_counted = False
            self._site.tails -= 1

    async def begin(self, given: str | None) -> None:
        """Find the start, and record the view."""
        self._place = self._site.cursors.read(given, plain=self._viewer.sees_store)
        lacked = given is not None and self._place.position is None

        async def place(connection: Connection[Any]) -> None:
            size = await ledger_queries.size(connection)
            position, record = self._place.position, self._place.record
            if position is None and record is not None:
                position = await place_behind(connection, record)
            self._is_behind = lacked and position is None
            self._place = TailPosition(size if position is None else min(position, size), record)

        async with self._site.trail(self._viewer) as trail:
            await trail.ask("tail", {"query": str(self._query)}, place, lambda _: 0)

    async def stream(self) -> AsyncIterator[bytes]:
        """The events, until the connection or the user's right ends."""
        try:
            yield b"retry: 2000\n" + self._event(
                "begin", {"problem": _GAP} if self._is_behind else {}
            )
            last_sent = time.monotonic()
            while await self._is_allowed():
                try:
                    found, is_more = await self._read()
                except OtelAuditError as error:
                    yield self._event("problem", {"problem": visible(str(error))})
                    last_sent = time.monotonic()
                    # a store that is away is not asked each second by each open page
                    await asyncio.sleep(_EVERY * 5)
                    continue
                if found:
                    yield self._event("records", {"records": [self._row(one) for one in found]})
                    last_sent = time.monotonic()
                elif time.monotonic() - last_sent > _HEARTBEAT:
                    yield b": still here\n\n"
                    last_sent = time.monotonic()
                await asyncio.sleep(0 if is_more else _EVERY)
        finally:
            self.leave()

    async def _is_allowed(self) -> bool:
        """Check the user's right again from time to time: sessions and tokens end."""
        if time.monotonic() - self._asked < _ASKED_EVERY:
            return True
        self._asked = time.monotonic()
        return await self._site.viewer_of(self._request) == self._viewer

    async def _read(self) -> tuple[list[Found], bool]:
        """The next matching records, and whether more are waiting."""
        due = time.monotonic() - self._recorded > _RECORDED_EVERY
        begin = self._place.position or 0

        async def answer(connection: Connection[Any]) -> tuple[list[Found], SealedPart]:
            part = await read_sealed(connection, begin, _BATCH)
            found = await queries.among(connection, self._query, part.ids, datetime.now(UTC))
            self._names = await self._site.names(connection, found)
            return found, part

        async with self._site.trail(self._viewer, views=None if due else "off") as trail:
            found, part = await trail.ask(
                "tail", {"query": str(self._query)}, answer, lambda answered: len(answered[0])
            )
        if due:
            self._recorded = time.monotonic()
        self._place = TailPosition(part.end, found[-1].id if found else self._place.record)
        return found, not part.is_last

    def _event(self, kind: str, data: object) -> bytes:
        # the id behind the data: who has read it has the data, too
        where = self._site.cursors.make(self._place, plain=self._viewer.sees_store)
        return f"event: {kind}\ndata: {json.dumps(data)}\nid: {where}\n\n".encode()

    def _row(self, one: Found) -> dict[str, str]:
        target = ":".join(part for part in (one.target_type, one.target_id) if part)
        named = self._names.get((one.id, one.tenant_id), DisplayNames(None, None))
        row = {
            "time": moment(one.occurred_at),
            "event": one.event_name,
            "outcome": one.outcome,
            "actor": named.actor or one.actor_id,
            "tenant": named.tenant or one.tenant_id,
            "target": target,
            "status": "" if one.status_code is None else str(one.status_code),
            "kind": one.outcome if one.outcome in ("success", "failure") else "unknown",
        }
        shown = {name: visible(text) for name, text in row.items()}
        return shown | {"href": self._link(f"/record/{one.id}")}


class _TailResponse(StreamingResponse):
    """The answer with a tail's events; it leaves the tail also where no event was asked for."""

    def __init__(self, tailing: _Tail, **options: Any) -> None:
        super().__init__(tailing.stream(), **options)
        self._tailing = tailing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events until the client goes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._tailing.leave()
