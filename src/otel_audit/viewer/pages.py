"""The pages: search, record, entity, actor."""

from __future__ import annotations

import hashlib
import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final

from otel_audit_postgres.archive.search import archived_record
from otel_audit_postgres.connection import Connection
from otel_audit_postgres.ledger import ledger_queries
from otel_audit_postgres.ledger.record_proof import RecordProof, check_record
from otel_audit_postgres.pseudonyms import searchable
from otel_audit_postgres.query import counts, display, payloads, queries
from otel_audit_postgres.query.counts import Facet
from otel_audit_postgres.query.grammar import Query, QueryError, QueryValue, Term, term
from otel_audit_postgres.query.queries import Found, Page, Shown
from starlette.requests import Request
from starlette.responses import Response

from otel_audit.errors import OtelAuditError
from otel_audit.record import AuditRecord
from otel_audit.viewer.charts import Chart, draw
from otel_audit.viewer.identity import Viewer
from otel_audit.viewer.rendering import render, stream
from otel_audit.viewer.site import Site, hide_own_events, missing, parse_query

ROWS: Final = 50
"""Records on a page, as on the command line."""
_THING: Final = re.compile(r"[A-Za-z][\w.]*:[^\s:]+")
_FEW: Final = 10
"""The most frequent values that a page lists of a field."""
_ERASED: Final = "[ERASED"
_MOST_STATES: Final = 2_000
"""Records from which a state is computed: the newest ones up to it."""
_LAST_ID: Final = uuid.UUID(int=2**128 - 1)
_AROUND: Final = timedelta(minutes=5)
"""Before and after a record: what else its actor did."""
_STATE_PAGE: Final = 500
"""Records of it that are fetched at once."""
_FACETS: Final = ("event", "outcome", "actor", "tenant", "action", "status", "service", "target")
_ACTOR_FACETS: Final = ("event", "outcome", "status", "tenant", "ip", "session", "target")


@dataclass(frozen=True, slots=True)
class Choice:
    """A value of a facet, with the query that it narrows to."""

    value: str
    records: int
    query: str
    is_chosen: bool


@dataclass(frozen=True, slots=True)
class FacetList:
    """A facet with its links."""

    facet: Facet
    choices: tuple[Choice, ...]


@dataclass(frozen=True, slots=True)
class Chip:
    """A term of the query, and the query without it."""

    text: str
    without: str


@dataclass(frozen=True, slots=True)
class Counted:
    """Counts beside the rows; ``problem`` says why they are missing."""

    chart: Chart | None = None
    facets: tuple[FacetList, ...] = ()
    total: int | None = 0
    bound: int = counts.COUNTED
    is_searched: bool = False
    archived: tuple[str, ...] = ()
    problem: str = ""

    @property
    def total_text(self) -> str:
        """The number of records, as text; a lower bound if counting stopped."""
        if self.total is None:
            return "?"
        return f"{self.bound:,}+" if self.total > self.bound else f"{self.total:,}"


@dataclass(frozen=True, slots=True)
class EntityRecord:
    """A record in an entity's history, with what it did to the entity."""

    found: Found
    changes: tuple[display.EntityChange, ...]


@dataclass(frozen=True, slots=True)
class EntityState:
    """An entity's state as of a record.

    Attributes:
        columns: What is known of each; None if it is deleted, or nothing is known.
        bound: How many records were read, if those before were not; None: all were read.
    """

    columns: Mapping[str, display.Cell] | None
    bound: int | None


@dataclass(frozen=True, slots=True)
class Look:
    """A recorded view of a record."""

    found: Found
    who: str


@dataclass(frozen=True, slots=True)
class ArchivedProof:
    """The proof of a record that is only in the archive."""

    month: str
    state: str = "archived"
    checkpoint: None = None
    bundle: None = None
    malformed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _RecordPage:
    shown: Shown
    others: tuple[Shown, ...]
    record: AuditRecord | None
    proof: RecordProof | ArchivedProof | None
    request: tuple[Found, ...]
    action: tuple[Found, ...]
    actor: tuple[Found, ...]
    views: tuple[Look, ...]
    session: str | None
    names: Mapping[payloads.RecordKey, payloads.DisplayNames]
    has_erased: bool


async def search(site: Site, request: Request, viewer: Viewer) -> Response:
    """The search page: rows first, then what is counted."""
    text = request.query_params.get("q", "")
    try:
        query = parse_query(viewer, text)
    except QueryError as error:
        context = {
            "viewer": viewer,
            "query": text,
            "error": error,
            "title": "Search",
            "thing": text if _THING.fullmatch(text) else None,
        }
        return await render(request, "query_error.html", context, 400)
    after = request.query_params.get("after")
    wanted = hide_own_events(request, viewer, query)
    narrowed = viewer.narrowed(wanted)

    async def answer(
        connection: Connection[Any],
    ) -> tuple[Page, Mapping[payloads.RecordKey, payloads.DisplayNames]]:
        page = await queries.search(connection, narrowed, limit=ROWS, after=after)
        return page, await site.names(connection, page.records)

    async with site.trail(viewer) as trail:
        page, names = await trail.ask(
            "search",
            {"query": str(narrowed), "limit": ROWS, "after": after, "oldest_first": False},
            answer,
            lambda found: len(found[0].records),
        )

    async def counted() -> Counted:
        return await _count(site, viewer, query, narrowed)

    context = {
        "title": str(query) or "Newest records",
        "viewer": viewer,
        "query": str(query),
        "exported": str(wanted),
        "hides_own": wanted != query,
        "names": names,
        "people": _display_names(page.records, names),
        "chips": _chips(query),
        "page": page,
        "after": after,
        "counted": counted,
        "outcomes": ("success", "unknown", "failure"),
    }
    return stream(request, "search.html", context)


async def record(site: Site, request: Request, viewer: Viewer) -> Response:
    """The page of one record, with its proof, related records, and earlier views."""
    record_id = request.path_params["record_id"]
    tenant = request.query_params.get("tenant")
    parsed = _uuid(record_id)
    if parsed is None:
        return await missing(request, viewer, f"{record_id} is not a record's id, which is a UUID.")

    async def answer(connection: Connection[Any]) -> _RecordPage | str:
        found = await _read_record(site, viewer, connection, parsed, tenant)
        return found or await _missing_reason(connection, viewer, parsed)

    async with site.trail(viewer) as trail:
        found: _RecordPage | str = await trail.ask(
            "show",
            {"id": str(parsed), "tenant": tenant},
            answer,
            lambda page: 0 if isinstance(page, str) else 1,
            ("audit_record", str(parsed)),
        )
    if isinstance(found, str):
        archived = await _archived(site, viewer, parsed, tenant)
        if not isinstance(archived, _RecordPage):
            return await missing(request, viewer, found + archived)
        found = archived
    context = _record_context(site, viewer, found)
    return await render(request, "record.html", context)


async def entity(site: Site, request: Request, viewer: Viewer) -> Response:
    """An entity's history, newest first, and its state as of one of its records."""
    name = request.query_params.get("e", "")
    field = request.query_params.get("field") or None
    after, until = request.query_params.get("after"), _uuid(request.query_params.get("at", ""))
    oldest_first = request.query_params.get("order") == "oldest"
    # two tenants may have an order 1 each
    of = request.query_params.get("of", "")
    if not name.partition(":")[2]:
        return await missing(
            request, viewer, f"{name!r} names no entity: name:key, such as order:123."
        )
    query = Query((term("entity", name), *([term("changed", field)] if field else [])))
    narrowed = viewer.narrowed(query)

    async def answer(
        connection: Connection[Any],
    ) -> tuple[
        Page,
        Mapping[payloads.RecordKey, str],
        Mapping[payloads.RecordKey, payloads.DisplayNames],
        EntityState | None,
    ]:
        page = await queries.search(
            connection, narrowed, limit=ROWS, after=after, oldest_first=oldest_first
        )
        texts = await _readable(site, await payloads.payload_texts(connection, page.records))
        state = None if until is None else await _state(site, connection, viewer, name, until, of)
        return page, texts, await site.names(connection, page.records), state

    async with site.trail(viewer) as trail:
        page, texts, names, state = await trail.ask(
            "history",
            {"entity": name, "changed": field, "after": after, "until": until},
            answer,
            lambda found: len(found[0].records),
            ("audit_history", name),
        )
    rows = [EntityRecord(one, _changes_in(texts, one, name, viewer)) for one in page.records]
    columns = sorted({c.column for row in rows for change in row.changes for c in change.columns})
    context = {
        "title": name,
        "viewer": viewer,
        "query": str(query),
        "name": name,
        "field": field,
        "columns": columns,
        "names": names,
        "of": of,
        # whoever else tried something with a thing of this name has no state of it
        "owners": {row.found.tenant_id for row in rows if row.changes},
        "rows": rows,
        "page": page,
        "state": state,
        "until": until,
        "oldest_first": oldest_first,
    }
    return await render(request, "entity.html", context, 200 if rows or after else 404)


async def actor(site: Site, request: Request, viewer: Viewer) -> Response:
    """The page of an actor: activity, addresses, sessions, targets and failures."""
    name = request.query_params.get("id", "")
    if not name:
        return await missing(request, viewer, "Which actor? Give its id: /actor?id=user-1.")
    query = Query((term("actor", name),))
    narrowed = viewer.narrowed(query)

    async def answer(
        connection: Connection[Any],
    ) -> tuple[
        Page,
        Page,
        Chart | None,
        tuple[Facet, ...],
        Mapping[payloads.RecordKey, payloads.DisplayNames],
    ]:
        page = await queries.search(connection, narrowed, limit=ROWS)
        failed = narrowed.with_term(term("outcome", "failure"))
        failures = await queries.search(connection, failed, limit=_FEW)
        counted = await counts.overview(connection, narrowed, _ACTOR_FACETS)
        chart = draw(counted.histogram, query, sees_store=viewer.sees_store)
        names = await site.names(connection, (*page.records, *failures.records))
        return page, failures, chart, counted.facets, names

    async with site.trail(viewer) as trail:
        page, failures, chart, facets, names = await trail.ask(
            "actor",
            {"actor": name},
            answer,
            lambda found: len(found[0].records),
            ("audit_actor", name),
        )
    context = {
        "title": name,
        "viewer": viewer,
        "query": str(query),
        "name": name,
        "page": page,
        "failures": failures.records,
        "names": names,
        "people": (people := _display_names(page.records, names)),
        "called": people.get(("actor", name)),
        "chart": chart,
        "facets": [_facet_list(one, query) for one in facets],
        "outcomes": ("success", "unknown", "failure"),
    }
    return await render(request, "actor.html", context, 200 if page.records else 404)


async def help_page(_: Site, request: Request, viewer: Viewer) -> Response:
    """The help page: fields of queries, and keyboard shortcuts."""
    from otel_audit_postgres.query.fields import FIELDS

    context = {"title": "Help", "viewer": viewer, "fields": list(FIELDS.values())}
    return await render(request, "help.html", context)


async def _count(site: Site, viewer: Viewer, query: Query, narrowed: Query) -> Counted:
    """Count for the side panel. The view is recorded already."""

    async def answer(connection: Connection[Any]) -> Counted:
        found = await counts.overview(connection, narrowed, _FACETS)
        chart = draw(found.histogram, query, sees_store=viewer.sees_store)
        facets = tuple(_facet_list(one, query) for one in found.facets)
        gone = await ledger_queries.prunings(connection) if viewer.sees_store else []
        months = tuple(one.partition.removeprefix("audit_logs_").replace("_", "-") for one in gone)
        return Counted(chart, facets, found.total, found.bound, found.is_searched, months)

    try:
        async with site.trail(viewer, views="off") as trail:
            return await trail.ask("counts", {}, answer, lambda _: 0)
    except OtelAuditError as error:
        # the rows are there already
        return Counted(problem=str(error))


def _facet_list(facet: Facet, query: Query) -> FacetList:
    choices = []
    for value, records in facet.values:
        wanted = term(facet.field, value)
        chosen = wanted in query.terms
        changed = query.without(wanted) if chosen else query.with_term(wanted)
        choices.append(Choice(value, records, str(changed), chosen))
    return FacetList(facet, tuple(choices))


def _chips(query: Query) -> tuple[Chip, ...]:
    return tuple(Chip(str(Query((one,))), str(query.without(one))) for one in query.terms)


def _display_names(
    records: Sequence[Found], names: Mapping[payloads.RecordKey, payloads.DisplayNames]
) -> dict[tuple[str, str], str]:
    """Display names for values of facets, from the records on the page."""
    found = {}
    for one in records:
        named = names.get((one.id, one.tenant_id))
        if named is not None and named.actor:
            found["actor", one.actor_id] = named.actor
        if named is not None and named.tenant:
            found["tenant", one.tenant_id] = named.tenant
    return found


async def _read_record(
    site: Site,
    viewer: Viewer,
    connection: Connection[Any],
    record_id: uuid.UUID,
    tenant: str | None,
) -> _RecordPage | None:
    found = await queries.show(connection, str(record_id))
    shown = next((one for one in found if tenant in (None, one.found.tenant_id)), None)
    if shown is None:
        return None
    readable = await site.readable(shown.payload)
    record = display.read_record(readable, bodies=viewer.sees_bodies)
    short = shown.found
    proof = await check_record(connection, short.id, short.tenant_id, site.tree, site.settings.keys)
    same_request = await _neighbours(connection, viewer, _request_terms(short), short)
    around = await _neighbours(connection, viewer, _around_terms(short), short)
    same_action = (
        () if record is None else await payloads.same_action(connection, short, record.action_id)
    )
    views = await _views(connection, viewer, short)
    others = tuple(one for one in found if one is not shown)
    names = await site.names(connection, (short, *same_request, *same_action, *around))
    return _RecordPage(
        shown, others, record, proof, same_request, same_action, around, views, _session_of(shown),
        names, _has_erased(shown.payload, readable),
    )  # fmt: skip


def _has_erased(stored: str, readable: str) -> bool:
    """Whether a value's key was destroyed. A text that only looks like it does not count."""
    return readable.count(_ERASED) > stored.count(_ERASED)


def _session_of(shown: Shown) -> str | None:
    """The session in the form for queries: for an encrypted one its pseudonym."""
    record = display.read_record(shown.payload, bodies=False)
    source = None if record is None else record.source
    return None if source is None else searchable(source.session_id)


async def _archived(
    site: Site, viewer: Viewer, record_id: uuid.UUID, tenant: str | None
) -> _RecordPage | str:
    """A record from the archive; otherwise a note about it, or an empty text."""
    archive = site.settings.archive
    if archive is None:
        return ""
    try:
        async with site.trail(viewer) as trail:
            hits = await archived_record(trail, archive, record_id)
    except OtelAuditError as error:
        return f" The archive could not be asked: {error}."
    hit = next((one for one in hits if tenant in (None, one.found.tenant_id)), None)
    if hit is None:
        return ""
    readable = await site.readable(hit.payload)
    record = display.read_record(readable, bodies=viewer.sees_bodies)
    shown = Shown(hit.found, hit.payload, hashlib.sha256(hit.payload.encode()).digest())
    proof = ArchivedProof(f"{hit.month:%Y-%m}")
    return _RecordPage(
        shown, (), record, proof, (), (), (), (), _session_of(shown), {},
        _has_erased(hit.payload, readable),
    )  # fmt: skip


async def _missing_reason(connection: Connection[Any], viewer: Viewer, record_id: uuid.UUID) -> str:
    """A sentence about the month that was retired, if the record can be of it."""
    gone = await ledger_queries.prunings(connection) if viewer.sees_store else []
    month = next((one for one in gone if one.held(record_id)), None)
    if month is None:
        return f"There is no record {record_id}, or none that you may see."
    return (
        f"There is no record {record_id} here. Archived: its month, {month.partition}, was "
        f"retired; record {month.manifest_id} says what was in it."
    )


async def _neighbours(
    connection: Connection[Any], viewer: Viewer, terms: Sequence[Term], own: Found
) -> tuple[Found, ...]:
    if not terms:
        return ()
    query = viewer.narrowed(Query(tuple(terms)))
    page = await queries.search(connection, query, limit=_FEW + 1)
    return tuple(one for one in page.records if one.id != own.id)[:_FEW]


def _request_terms(short: Found) -> tuple[Term, ...]:
    return (term("request", short.request_id),) if short.request_id else ()


def _around_terms(short: Found) -> tuple[Term, ...]:
    try:
        begin, end = short.occurred_at - _AROUND, short.occurred_at + _AROUND
    except OverflowError:
        return ()
    span = QueryValue(begin.isoformat(), "..", end.isoformat())
    return term("actor", short.actor_id), Term("time", (span,))


async def _views(connection: Connection[Any], viewer: Viewer, short: Found) -> tuple[Look, ...]:
    """Earlier views of a record. They belong to no tenant, so a tenant sees none."""
    if not viewer.sees_store:
        return ()
    query = Query((term("entity", f"audit_record:{short.id}"),))
    found = (await queries.search(connection, query, limit=_FEW)).records
    texts = await payloads.payload_texts(connection, found)
    return tuple(Look(one, _on_behalf_of(texts.get((one.id, one.tenant_id)))) for one in found)


def _on_behalf_of(payload: str | None) -> str:
    record = None if payload is None else display.read_record(payload, bodies=False)
    return "" if record is None else record.actor.on_behalf_of or ""


async def _readable(
    site: Site, texts: Mapping[payloads.RecordKey, str]
) -> Mapping[payloads.RecordKey, str]:
    return {key: await site.readable(text) for key, text in texts.items()}


async def _state(  # noqa: PLR0913, PLR0917 - of whom, of what, until when
    site: Site,
    connection: Connection[Any],
    viewer: Viewer,
    entity_name: str,
    until: uuid.UUID,
    tenant: str,
) -> EntityState:
    """An entity's state after one of its records, computed from the newest ones up to it."""
    of = term("tenant", *dict.fromkeys((tenant, "")))
    query = viewer.narrowed(Query((term("entity", entity_name), of)))
    newest_first: list[AuditRecord] = []
    read = 0
    # before the next id there is this one, of whatever tenant
    after = None if until.int == _LAST_ID.int else f"{uuid.UUID(int=until.int + 1)}/"
    while True:
        page = await queries.search(
            connection, query, limit=min(_STATE_PAGE, _MOST_STATES - read), after=after
        )
        read += len(page.records)
        texts = await _readable(site, await payloads.payload_texts(connection, page.records))
        for one in page.records:
            record = display.read_record(texts.get((one.id, one.tenant_id), ""), bodies=False)
            if record is not None:
                newest_first.append(record)
        after = page.next
        if after is None or read >= _MOST_STATES:
            break
    columns = display.state_after(reversed(newest_first), entity_name)
    return EntityState(columns, None if after is None else read)


def _changes_in(
    texts: Mapping[payloads.RecordKey, str], one: Found, entity_name: str, viewer: Viewer
) -> tuple[display.EntityChange, ...]:
    text = texts.get((one.id, one.tenant_id))
    record = None if text is None else display.read_record(text, bodies=viewer.sees_bodies)
    return () if record is None else display.entity_changes(record, entity_name)


def _record_context(site: Site, viewer: Viewer, found: _RecordPage) -> dict[str, Any]:
    record, short = found.record, found.shown.found
    request = None if record is None else record.request
    response = None if record is None else record.response
    session = None
    if found.session is not None:
        session = str(Query((term("session", found.session),)))
    around = _around_terms(short)
    return {
        "title": f"{short.event_name} {short.id}",
        "viewer": viewer,
        "query": "",
        "short": short,
        "record": record,
        "shown": found.shown,
        "others": found.others,
        "proof": found.proof,
        "has_erased": found.has_erased,
        "changes": () if record is None else display.entity_changes(record),
        "request_body": display.content_of(None if request is None else request.body),
        "response_body": display.content_of(None if response is None else response.body),
        "text": display.laid_out(found.shown.payload) if viewer.sees_bodies else None,
        "metadata": [] if record is None else _listed(record.metadata),
        "resource": [] if record is None else _listed(record.resource),
        "names": found.names,
        "trace_link": site.settings.trace_link(short.trace_id) if short.trace_id else None,
        "same_request": found.request,
        "same_action": found.action,
        "around": found.actor,
        "around_query": str(Query(around)) if around else "",
        "session_query": session,
        "looks": found.views,
    }


def _listed(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [
        (key, value if isinstance(value, str) else display.as_cell(value).text)
        for key, value in record.items()
    ]


def _uuid(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None
