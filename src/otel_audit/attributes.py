"""The record on a span: one mapping to span attributes, and one back.

Sources: the draft OpenTelemetry audit data model (``audit.*``, in development), the stable
semantic conventions for HTTP, URL, client, user agent and errors, and only then names of our own
under ``audit.``. JSON values travel as text, because a span knows no nested attributes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import format_span_id, format_trace_id
from opentelemetry.util.types import AttributeValue

from otel_audit import flat
from otel_audit._util.cache import Memo, are_few_names
from otel_audit._util.ids import derived_uuid7
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.record import NO_CONTENT, AuditRecord, Body, Change, Source, to_json
from otel_audit.record import SCHEMA_VERSION as SCHEMA

SCOPE_NAME: Final = "otel_audit"
"""Instrumentation scope of the audit spans we make ourselves."""

FLAG: Final = "audit.flagged"
RECORD_ID: Final = "audit.record.id"
ACTION_ID: Final = "audit.action.id"
PARENT_ACTION_ID: Final = "audit.action.parent_id"
PHASE: Final = "audit.phase"
SCHEMA_VERSION: Final = "audit.schema.version"
EVENT_NAME: Final = "audit.event.name"
ACTION: Final = "audit.action"
OUTCOME: Final = "audit.outcome"
LEVEL: Final = "audit.level"

ACTOR_ID: Final = "audit.actor.id"
ACTOR_TYPE: Final = "audit.actor.type"
ACTOR_ROLE: Final = "audit.actor.role"
ACTOR_ROLES: Final = "user.roles"
ACTOR_EMAIL: Final = "user.email"
ACTOR_VERIFIED: Final = "audit.actor.verified"
ACTOR_ON_BEHALF_OF: Final = "audit.actor.on_behalf_of"
ACTOR_REASON: Final = "audit.actor.reason"
ACTOR_SOURCE: Final = "audit.actor.source"
USER_ID: Final = "user.id"

TENANT_ID: Final = "audit.tenant.id"
TENANT_SLUG: Final = "audit.tenant.slug"
TARGET_TYPE: Final = "audit.target.type"
TARGET_ID: Final = "audit.target.id"
SOURCE_ID: Final = "audit.source.id"
SOURCE_TYPE: Final = "audit.source.type"
CLIENT_ADDRESS: Final = "client.address"
USER_AGENT: Final = "user_agent.original"
SESSION_ID: Final = "session.id"

REQUEST_ID: Final = "audit.request.id"
HTTP_METHOD: Final = "http.request.method"
HTTP_ROUTE: Final = "http.route"
URL_PATH: Final = "url.path"
URL_QUERY: Final = "url.query"
HTTP_VERSION: Final = "network.protocol.version"
HTTP_HOST: Final = "server.address"
HTTP_STATUS: Final = "http.response.status_code"
REQUEST_HEADER: Final = "http.request.header."
RESPONSE_HEADER: Final = "http.response.header."
REQUEST_BODY: Final = "audit.request.body"
RESPONSE_BODY: Final = "audit.response.body"
REQUEST_SIZE: Final = "http.request.body.size"
RESPONSE_SIZE: Final = "http.response.body.size"

CHANGES: Final = "audit.changes"
CHANGES_COUNT: Final = "audit.changes.count"
CHANGES_TOTAL: Final = "audit.changes.total"
CHANGES_ROLLED_BACK: Final = "audit.changes.rolled_back"
CHANGES_PROVISIONAL: Final = "audit.changes.provisional"
ENTITIES: Final = "audit.entities"
TRANSACTION: Final = "audit.transaction.outcome"
ERROR_TYPE: Final = "error.type"
ERROR_MESSAGE: Final = "audit.error.message"
TRACE_SAMPLED: Final = "audit.trace.sampled"
PRODUCER_ID: Final = "audit.producer.id"
SEQUENCE_NUMBER: Final = "audit.sequence.number"
METADATA: Final = "audit.metadata"

MANDATORY: Final = (ACTOR_ID, ACTOR_TYPE, ACTION, OUTCOME)
"""What a span that someone else flags must carry."""

_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_changes = msgspec.json.Decoder(tuple[Change, ...]).decode
_decode_change = msgspec.json.Decoder(Change).decode
_decode_pieces = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_mapping = msgspec.json.Decoder(dict[str, Any]).decode

_LONG_CHANGES: Final = 65_536

_PLAIN: Final = (
    (RECORD_ID, "record_id"),
    (ACTION_ID, "action_id"),
    (PARENT_ACTION_ID, "parent_action_id"),
    (PHASE, "phase"),
    (SCHEMA_VERSION, "schema_version"),
    (EVENT_NAME, "event_name"),
    (ACTION, "action"),
    (OUTCOME, "outcome"),
    (TRANSACTION, "transaction"),
    (CHANGES_TOTAL, "changes_total"),
    (CHANGES_ROLLED_BACK, "changes_rolled_back"),
    (TRACE_SAMPLED, "trace_sampled"),
    (PRODUCER_ID, "producer_id"),
    (SEQUENCE_NUMBER, "sequence_number"),
    (LEVEL, "level"),
)
_ACTOR: Final = (
    (ACTOR_ID, "id"),
    (ACTOR_TYPE, "type"),
    (ACTOR_ROLE, "role"),
    (ACTOR_ROLES, "roles"),
    (ACTOR_EMAIL, "email"),
    (ACTOR_VERIFIED, "verified"),
    (ACTOR_ON_BEHALF_OF, "on_behalf_of"),
    (ACTOR_REASON, "reason"),
    (ACTOR_SOURCE, "source"),
)
_TENANT: Final = ((TENANT_ID, "id"), (TENANT_SLUG, "slug"))
_TARGET: Final = ((TARGET_TYPE, "type"), (TARGET_ID, "id"))
_SOURCE: Final = (
    (CLIENT_ADDRESS, "address"),
    (SOURCE_TYPE, "type"),
    (USER_AGENT, "user_agent"),
    (SESSION_ID, "session_id"),
)
_REQUEST: Final = (
    (REQUEST_ID, "id"),
    (HTTP_METHOD, "method"),
    (HTTP_ROUTE, "route"),
    (URL_PATH, "path"),
    (URL_QUERY, "query"),
    (HTTP_VERSION, "http_version"),
    (HTTP_HOST, "host"),
)
_RESPONSE: Final = ((HTTP_STATUS, "status_code"),)
_ERROR: Final = ((ERROR_TYPE, "type"), (ERROR_MESSAGE, "message"))
_BODY_PARTS: Final = ("content_type", "sha256", "absent")
_USUAL_SOURCE: Final = Source().type
_USUAL: Final = {"phase": "completed", "schema_version": SCHEMA, "transaction": "none"}


def to_attributes(record: AuditRecord) -> dict[str, AttributeValue]:
    """Spell a record as span attributes.

    Args:
        record: The record. Its times, ids of the trace and resource are the span's own and are
            not among the attributes.

    Returns:
        Attribute names to values; what the record does not know is absent.
    """
    found: dict[str, AttributeValue] = {FLAG: True}
    _spell(found, record, _PLAIN)
    _spell(found, record.actor, _ACTOR)
    if record.tenant is not None:
        _spell(found, record.tenant, _TENANT)
    if record.target is not None:
        _spell(found, record.target, _TARGET)
    if record.source is not None:
        _spell(found, record.source, _SOURCE)
        if record.source.address is not None:
            found[SOURCE_ID] = record.source.address
    if record.request is not None:
        _spell(found, record.request, _REQUEST)
        _spell_headers(found, REQUEST_HEADER, record.request.headers)
        _spell_body(found, REQUEST_BODY, REQUEST_SIZE, record.request.body)
    if record.response is not None:
        _spell(found, record.response, _RESPONSE)
        _spell_headers(found, RESPONSE_HEADER, record.response.headers)
        _spell_body(found, RESPONSE_BODY, RESPONSE_SIZE, record.response.body)
    if record.error is not None:
        _spell(found, record.error, _ERROR)
    if record.changes:
        found[CHANGES] = to_json(record.changes).decode()
        found[CHANGES_COUNT] = len(record.changes)
    if record.metadata:
        found[METADATA] = to_json(record.metadata).decode()
    return found


def is_flagged(span: ReadableSpan) -> bool:
    """Tell whether a span carries a record."""
    return span.attributes is not None and span.attributes.get(FLAG) is True


def record_from_span(span: ReadableSpan) -> AuditRecord:
    """Read the record that an ended span carries.

    Args:
        span: A span that is flagged, ours or anyone's. One that is not ours has its own ids as the
            record's trace and span id, and a record id derived from them.

    Returns:
        The record.

    Raises:
        InvalidAuditSpanError: A mandatory attribute is missing, or one has the wrong type or
            value; the message names it.
    """
    context = span.get_span_context()
    if context is None or span.start_time is None:
        raise InvalidAuditSpanError(f"audit span {span.name!r} has no context or was never started")
    ours = span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE_NAME
    link = span.parent if ours else context
    trace = (
        (format_trace_id(link.trace_id), format_span_id(link.span_id)) if link is not None else None
    )
    return record_from_attributes(
        span.attributes or {},
        name=span.name,
        start_time=span.start_time,
        end_time=span.end_time if span.end_time is not None else span.start_time,
        trace=trace,
        own_ids=(format_trace_id(context.trace_id), format_span_id(context.span_id)),
        resource=dict(span.resource.attributes),
    )


def record_from_attributes(  # noqa: PLR0913 - each fact by its name
    attributes: Mapping[str, Any],
    *,
    name: str,
    start_time: int,
    end_time: int,
    trace: tuple[str, str] | None,
    own_ids: tuple[str, str],
    resource: Mapping[str, Any],
) -> AuditRecord:
    """Read a record from attributes, wherever they came from.

    Args:
        attributes: Attribute names to values.
        name: The span's name, the event name where no attribute says it.
        start_time: Unix nanoseconds.
        end_time: Unix nanoseconds; not before ``start_time``, else the duration is 0.
        trace: Trace and span id (hex) that the record points to, if any.
        own_ids: Trace and span id (hex) of the carrying span, to derive a record id from.
        resource: Resource attributes of the sender.

    Returns:
        The record.

    Raises:
        InvalidAuditSpanError: As for `record_from_span`.
    """
    if type(attributes) is not dict:
        attributes = dict(attributes)  # reading a span's own is slow, each time
    missing = [wanted for wanted in MANDATORY if attributes.get(wanted) in (None, "")]
    if missing:
        raise InvalidAuditSpanError(
            f"audit span {name!r} lacks {', '.join(missing)}; "
            f"a span with {FLAG}=true must carry {', '.join(MANDATORY)}"
        )
    record_id = attributes.get(RECORD_ID) or derived_uuid7(start_time, *own_ids)
    facts: dict[str, Any] = {
        "record_id": record_id,
        "action_id": attributes.get(ACTION_ID) or record_id,
        "event_name": attributes.get(EVENT_NAME) or name,
        "occurred_at": start_time,
        "duration": max(end_time - start_time, 0),
        "resource": plain_values(resource),
    }
    if trace is not None:
        facts["trace_id"], facts["span_id"] = trace
    try:
        return _at_once(attributes, facts)
    except (msgspec.MsgspecError, TypeError):
        # the slow way says what is wrong, and where
        return _part_by_part(attributes, facts, name)


def _at_once(attributes: Mapping[str, Any], facts: dict[str, Any]) -> AuditRecord:
    """Make the record; raise where anything may be wrong with it."""
    parts = _SHAPES[tuple(attributes)]
    if not parts.complete:
        raise TypeError
    told: Any = msgspec.convert(attributes, _Told)
    content = [
        NO_CONTENT if text is msgspec.UNSET else json_text(text)
        for text in (told.request_body_content, told.response_body_content)
    ]
    if CHANGES in attributes:
        facts = {**facts, "changes": decode_changes(attributes[CHANGES])}
    if METADATA in attributes:
        facts = {**facts, "metadata": _decode_mapping(attributes[METADATA])}
    return flat.as_record(
        told,
        parts,
        flat.Details(
            {header: _header_text(attributes[name]) for name, header in parts.request_headers},
            {header: _header_text(attributes[name]) for name, header in parts.response_headers},
            *content,
        ),
        msgspec.convert(facts, flat.Facts),
    )


def _part_by_part(
    attributes: Mapping[str, Any], facts: Mapping[str, Any], name: str
) -> AuditRecord:
    parts = _sorted_out(attributes)
    fields: dict[str, Any] = {**_USUAL, **parts[""], **facts, "actor": parts["actor"]}
    for key in ("tenant", "target", "error"):
        if parts[key]:
            fields[key] = parts[key]
    source = parts["source"]
    if source:
        if source.get("type") == _USUAL_SOURCE:
            # the default itself, which is left out of the record's text as it was before
            source["type"] = _USUAL_SOURCE
        fields["source"] = source
    try:
        request, response = parts["request"], parts["response"]
        _complete(request, parts["request headers"], parts["request body"])
        _complete(response, parts["response headers"], parts["response body"])
        if request:
            fields["request"] = request
        if response:
            fields["response"] = response
        if CHANGES in attributes:
            fields["changes"] = decode_changes(attributes[CHANGES])
        if METADATA in attributes:
            fields["metadata"] = _decode_mapping(attributes[METADATA])
        return msgspec.convert(fields, AuditRecord)
    except (msgspec.MsgspecError, TypeError) as error:
        raise InvalidAuditSpanError(f"audit span {name!r}: {error}") from error


def _spell(
    found: dict[str, AttributeValue], part: msgspec.Struct, names: tuple[tuple[str, str], ...]
) -> None:
    for attribute, field in names:
        value = getattr(part, field)
        if value is not None and value != ():
            found[attribute] = value


def _spell_headers(
    found: dict[str, AttributeValue], prefix: str, headers: Mapping[str, str]
) -> None:
    for key, value in headers.items():
        found[prefix + key] = [value]


def _spell_body(
    found: dict[str, AttributeValue], name: str, size_name: str, body: Body | None
) -> None:
    if body is None:
        return
    if body.content is not NO_CONTENT:
        found[name] = bytes(body.content).decode()
    if body.size is not None:
        found[size_name] = body.size
    for part in _BODY_PARTS:
        value = getattr(body, part)
        if value is not None:
            found[f"{name}.{part}"] = value


def _sorted_out(attributes: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Put each attribute where it belongs, in one pass; what belongs nowhere is left out."""
    parts: dict[str, dict[str, Any]] = {name: {} for name in _PARTS}
    for name, value in attributes.items():
        place = _PLACES.get(name)
        if place is not None:
            parts[place[0]][place[1]] = value
        elif name.startswith(REQUEST_HEADER):
            parts["request headers"][name[len(REQUEST_HEADER) :]] = _header_text(value)
        elif name.startswith(RESPONSE_HEADER):
            parts["response headers"][name[len(RESPONSE_HEADER) :]] = _header_text(value)
    return parts


def _header_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(_header_text, value))
    return to_json(value).decode()


def _complete(exchange: dict[str, Any], headers: dict[str, str], body: dict[str, Any]) -> None:
    """Add headers and body, where there are any."""
    if headers:
        exchange["headers"] = headers
    if body:
        content = json_text(body.pop("content")) if "content" in body else NO_CONTENT
        exchange["body"] = msgspec.structs.replace(msgspec.convert(body, Body), content=content)


def _placed() -> dict[str, tuple[str, str]]:
    found = {
        attribute: (part, field)
        for part, names in (
            ("", _PLAIN), ("actor", _ACTOR), ("tenant", _TENANT), ("target", _TARGET),
            ("source", _SOURCE), ("request", _REQUEST), ("response", _RESPONSE), ("error", _ERROR),
        )
        for attribute, field in names
    }  # fmt: skip
    for part, body, size in (
        ("request body", REQUEST_BODY, REQUEST_SIZE),
        ("response body", RESPONSE_BODY, RESPONSE_SIZE),
    ):
        found[size] = (part, "size")
        found[body] = (part, "content")
        found.update({f"{body}.{name}": (part, name) for name in _BODY_PARTS})
    return found


_PLACES: Final = _placed()
_PARTS: Final = (
    *dict.fromkeys(part for part, _ in _PLACES.values()), "request headers", "response headers",
)  # fmt: skip


def _parts(names: tuple[str, ...]) -> flat.Parts:
    sent, answered = (
        tuple((name, name[len(prefix) :]) for name in names if name.startswith(prefix))
        for prefix in (REQUEST_HEADER, RESPONSE_HEADER)
    )
    return flat.parts_of(names, _PLACES, sent, answered)


_SHAPES: Final = Memo(_parts, 128, are_few_names)
_Told: Final = flat.struct_of(_PLACES, _USUAL)


def json_text(text: str) -> msgspec.Raw:
    """Keep a text that is JSON as it is; quote one that is not, so that it becomes JSON."""
    try:
        _check_json(text)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.Raw(to_json(text))
    return msgspec.Raw(text.encode())


def decode_changes(text: str | bytes) -> tuple[Change, ...]:
    """Decode changes; many of them one by one, so that other threads are heard meanwhile.

    Raises:
        msgspec.MsgspecError: They are none.
        TypeError: It is no text.
    """
    if len(text) <= _LONG_CHANGES:
        return _decode_changes(text)
    return tuple(map(_decode_change, _decode_pieces(text)))


def plain_values(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Turn resource attributes into what JSON knows."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in resource.items()
    }
