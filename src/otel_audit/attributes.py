"""The record on a span: one mapping to span attributes, and one back.

Sources: the draft OpenTelemetry audit data model (``audit.*``, in development), the stable
semantic conventions for HTTP, URL, client, user agent and errors, and only then names of our own
under ``audit.``. JSON values travel as text, because a span knows no nested attributes.

Reading is one conversion of all attributes into one flat struct, which checks every type, and one
constructor call a part. Sorting the attributes into a dictionary for each part first takes twice
the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, format_span_id, format_trace_id
from opentelemetry.util.types import AttributeValue

from otel_audit import audit_signal
from otel_audit._util.cache import KINDS, Memo, are_few_names
from otel_audit._util.ids import derived_uuid7
from otel_audit.errors import InvalidAuditSpanError
from otel_audit.record import (
    NO_CONTENT,
    SCHEMA_VERSION,
    Actor,
    AuditRecord,
    Body,
    Change,
    ErrorInfo,
    Request,
    Response,
    Source,
    Target,
    Tenant,
    to_json,
)

SCOPE_NAME: Final = "otel_audit"
"""Instrumentation scope of the audit spans we make ourselves."""

FLAG: Final = "audit.flagged"
RECORD_ID: Final = "audit.record.id"
ACTION_ID: Final = "audit.action.id"
PARENT_ACTION_ID: Final = "audit.action.parent_id"
PHASE: Final = "audit.phase"
SCHEMA_VERSION_ATTRIBUTE: Final = "audit.schema.version"
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
SEQUENCE_NUMBER: Final = audit_signal.NUMBER
DECISION: Final = audit_signal.DECISION
METADATA: Final = "audit.metadata"

MANDATORY: Final = (ACTOR_ID, ACTOR_TYPE, ACTION, OUTCOME)
"""Attributes that another program's flagged span must have."""

_check_json = msgspec.json.Decoder(msgspec.Raw).decode
_decode_changes = msgspec.json.Decoder(tuple[Change, ...]).decode
_decode_change = msgspec.json.Decoder(Change).decode
_decode_pieces = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_mapping = msgspec.json.Decoder(dict[str, Any]).decode

_LONG_CHANGES: Final = 65_536
"""Characters of changes that are decoded in one call, in which no other thread runs."""

_PLAIN: Final = (
    (RECORD_ID, "record_id"),
    (ACTION_ID, "action_id"),
    (PARENT_ACTION_ID, "parent_action_id"),
    (PHASE, "phase"),
    (SCHEMA_VERSION_ATTRIBUTE, "schema_version"),
    (EVENT_NAME, "event_name"),
    (ACTION, "action"),
    (OUTCOME, "outcome"),
    (DECISION, "decision"),
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
_STREAM_ENDED: Final = "audit.stream.ended"
"""The event of a producer's last record, if it ends in order: of `delivery.producer_records`."""
_USUAL: Final = {"phase": "completed", "schema_version": SCHEMA_VERSION, "transaction": "none"}


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
    _spell_stream(found, record)
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
    """Return whether a span carries a record."""
    return span.attributes is not None and span.attributes.get(FLAG) is True


def record_from_span(
    span: ReadableSpan, attributes: Mapping[str, Any] | None = None, name: str | None = None
) -> AuditRecord:
    """Read the record that an ended span carries.

    Args:
        span: A span that is flagged, ours or anyone's. One that is not ours has its own ids as the
            record's trace and span id, and a record id derived from them.
        attributes: Its attributes after redaction; None: as they are.
        name: Its name after redaction; None: as it is.

    Returns:
        The record.

    Raises:
        InvalidAuditSpanError: A mandatory attribute is missing, or one has the wrong type or
            value; the message names it.
    """
    context = span.get_span_context()
    if context is None or span.start_time is None:
        raise InvalidAuditSpanError(f"audit span {span.name!r} has no context or was never started")
    found = (span.attributes or {}) if attributes is None else attributes
    ours = span.instrumentation_scope is not None and span.instrumentation_scope.name == SCOPE_NAME
    # an audit span of ours only carries the record: the action's own span is its parent
    link = span.parent if ours else context
    if not ours:
        found = {**found, TRACE_SAMPLED: context.trace_flags.sampled}
    return record_from_attributes(
        found,
        name=span.name if name is None else name,
        start_time=span.start_time,
        end_time=span.start_time if span.end_time is None else span.end_time,
        trace=None if link is None else span_ids(link),
        own_ids=span_ids(context),
        resource=dict(span.resource.attributes),
    )


def span_ids(context: SpanContext) -> tuple[str, str]:
    """Spell the trace and span id of a span in hex."""
    return format_trace_id(context.trace_id), format_span_id(context.span_id)


def missing_attributes(attributes: Mapping[str, Any]) -> list[str]:
    """Name the mandatory attributes that are missing or empty."""
    return [name for name in MANDATORY if attributes.get(name) in (None, "")]


def what_is_wrong(attributes: Mapping[str, Any], what: str) -> str:
    """Say why attributes make no record, without any of their values.

    Args:
        attributes: Those that `record_from_attributes` has refused.
        what: What carries them: ``audit span``, ``audit log record``.
    """
    missing = missing_attributes(attributes)
    if missing:
        return f"the {what} lacks {', '.join(missing)}"
    return f"an attribute of the {what} has a wrong type or value"


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
    missing = missing_attributes(attributes)
    if missing:
        raise InvalidAuditSpanError(
            f"audit span {name!r} lacks {', '.join(missing)}; "
            f"a span with {FLAG}=true must carry {', '.join(MANDATORY)}"
        )
    shape = _SHAPES[tuple(attributes)]
    if shape.incomplete is not None:
        raise InvalidAuditSpanError(f"audit span {name!r} lacks {shape.incomplete}")
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
        if CHANGES in attributes:
            facts["changes"] = decode_changes(attributes[CHANGES])
        if METADATA in attributes:
            facts["metadata"] = _decode_mapping(attributes[METADATA])
        return _record(
            msgspec.convert(attributes, _Flat),
            msgspec.convert(facts, _Facts),
            shape,
            _headers(attributes, shape.request_headers),
            _headers(attributes, shape.response_headers),
        )
    except (msgspec.MsgspecError, TypeError) as error:
        raise InvalidAuditSpanError(f"audit span {name!r}: {error}") from error


class _Facts(msgspec.Struct, frozen=True):
    """Parts of the record that are not one attribute each; see `AuditRecord`."""

    record_id: str
    action_id: str
    event_name: str
    occurred_at: int
    duration: int
    resource: dict[str, Any]
    trace_id: str | None = None
    span_id: str | None = None
    changes: tuple[Change, ...] = ()
    metadata: dict[str, Any] = {}


def _record(
    flat: Any,
    facts: _Facts,
    shape: _Shape,
    request_headers: dict[str, str],
    response_headers: dict[str, str],
) -> AuditRecord:
    # each field by its name: a generic loop over the tables takes six times as long; in steps, as
    # for a call with more than 15 names CPython builds a dictionary first
    record = AuditRecord(
        record_id=facts.record_id,
        action_id=facts.action_id,
        event_name=facts.event_name,
        occurred_at=facts.occurred_at,
        duration=facts.duration,
        trace_id=facts.trace_id,
        span_id=facts.span_id,
        changes=facts.changes,
        metadata=facts.metadata,
        phase=flat.record_phase,
        schema_version=flat.record_schema_version,
        action=flat.record_action,
        outcome=flat.record_outcome,
        transaction=flat.record_transaction,
        actor=Actor(
            id=flat.actor_id,
            type=flat.actor_type,
            role=flat.actor_role,
            roles=flat.actor_roles,
            email=flat.actor_email,
            verified=flat.actor_verified,
            on_behalf_of=flat.actor_on_behalf_of,
            reason=flat.actor_reason,
            source=flat.actor_source,
        ),
    )
    record = _replace(
        record,
        resource=facts.resource,
        parent_action_id=flat.record_parent_action_id,
        decision=flat.record_decision,
        changes_total=flat.record_changes_total,
        changes_rolled_back=flat.record_changes_rolled_back,
        trace_sampled=flat.record_trace_sampled,
        producer_id=flat.record_producer_id,
        sequence_number=flat.record_sequence_number,
        level=flat.record_level,
    )
    return _replace(
        record,
        tenant=Tenant(id=flat.tenant_id, slug=flat.tenant_slug) if shape.tenant else None,
        target=Target(type=flat.target_type, id=flat.target_id) if shape.target else None,
        source=_source(flat) if shape.source else None,
        # a message without a type: the semantic conventions' word for an unnamed type
        error=ErrorInfo(
            type="_OTHER" if flat.error_type is None else flat.error_type,
            message=flat.error_message,
        )
        if shape.error
        else None,
        request=_request(flat, shape, request_headers) if shape.request else None,
        response=_response(flat, shape, response_headers) if shape.response else None,
    )


def _source(flat: Any) -> Source:
    kind = flat.source_type
    return Source(
        address=flat.source_address,
        # the very object of the default: JSON text leaves out what is identical to it
        type=_USUAL_SOURCE if kind == _USUAL_SOURCE else kind,
        user_agent=flat.source_user_agent,
        session_id=flat.source_session_id,
    )


def _request(flat: Any, shape: _Shape, headers: dict[str, str]) -> Request:
    return Request(
        id=flat.request_id,
        method=flat.request_method,
        route=flat.request_route,
        path=flat.request_path,
        query=flat.request_query,
        headers=headers,
        http_version=flat.request_http_version,
        host=flat.request_host,
        body=Body(
            content=_content(flat.request_body_content),
            size=flat.request_body_size,
            content_type=flat.request_body_content_type,
            sha256=flat.request_body_sha256,
            absent=flat.request_body_absent,
        )
        if shape.request_body
        else None,
    )


def _response(flat: Any, shape: _Shape, headers: dict[str, str]) -> Response:
    return Response(
        status_code=flat.response_status_code,
        headers=headers,
        body=Body(
            content=_content(flat.response_body_content),
            size=flat.response_body_size,
            content_type=flat.response_body_content_type,
            sha256=flat.response_body_sha256,
            absent=flat.response_body_absent,
        )
        if shape.response_body
        else None,
    )


def _content(text: str | msgspec.UnsetType) -> msgspec.Raw:
    return NO_CONTENT if text is msgspec.UNSET else raw_json(text)


def _headers(attributes: Mapping[str, Any], names: _HeaderNames) -> dict[str, str]:
    return {header: _header_text(attributes[name]) for name, header in names}


def _spell(
    found: dict[str, AttributeValue], part: msgspec.Struct, names: tuple[tuple[str, str], ...]
) -> None:
    for attribute, field in names:
        value = getattr(part, field)
        if value is not None and value != ():
            found[attribute] = value


def _spell_stream(found: dict[str, AttributeValue], record: AuditRecord) -> None:
    """Say in the draft's words, too, to which stream a record belongs, and that it is the last."""
    if record.producer_id is not None:
        found[audit_signal.STREAM_ID] = record.producer_id
    if record.event_name == _STREAM_ENDED:
        found[audit_signal.END] = True


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


def _header_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(map(_header_text, value))
    return to_json(value).decode()


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


_replace: Final = msgspec.structs.replace
_PLACES: Final = _placed()
_STRUCTS: Final[dict[str, type[msgspec.Struct]]] = {
    "": AuditRecord, "actor": Actor, "tenant": Tenant, "target": Target, "source": Source,
    "request": Request, "response": Response, "error": ErrorInfo,
    "request body": Body, "response body": Body,
}  # fmt: skip
_NEEDED: Final = {
    "tenant": (TENANT_ID, "an id"),
    "target": (TARGET_TYPE, "a type"),
}
"""Parts that are nothing without one attribute, and what that gives them."""

_HeaderNames = tuple[tuple[str, str], ...]
"""Attribute names and the headers' names."""


@dataclass(frozen=True, slots=True)
class _Shape:
    """Which parts a record has whose attributes have certain names.

    Attributes:
        tenant, target, source, error, request, response, request_body, response_body: Whether it
            has them.
        request_headers, response_headers: Which.
        incomplete: What a part lacks that it cannot be without; None: nothing.
    """

    tenant: bool
    target: bool
    source: bool
    error: bool
    request: bool
    response: bool
    request_body: bool
    response_body: bool
    request_headers: _HeaderNames
    response_headers: _HeaderNames
    incomplete: str | None


def _shape(names: tuple[str, ...]) -> _Shape:
    request_headers, response_headers = (
        tuple((name, name[len(prefix) :]) for name in names if name.startswith(prefix))
        for prefix in (REQUEST_HEADER, RESPONSE_HEADER)
    )
    parts = {_PLACES[name][0] for name in names if name in _PLACES}
    lacking = [
        f"{needed}: the {part} needs {what}"
        for part, (needed, what) in _NEEDED.items()
        if part in parts and needed not in names
    ]
    return _Shape(
        tenant="tenant" in parts,
        target="target" in parts,
        source="source" in parts,
        error="error" in parts,
        request=bool(parts & {"request", "request body"} or request_headers),
        response=bool(parts & {"response", "response body"} or response_headers),
        request_body="request body" in parts,
        response_body="response body" in parts,
        request_headers=request_headers,
        response_headers=response_headers,
        incomplete=lacking[0] if lacking else None,
    )


def _flat_struct() -> type[msgspec.Struct]:
    """Make the struct of all attributes, each a field ``part_field``; the record is a part, too.

    Its defaults are those of the record's own fields; None if an attribute must say it.
    """
    fields: list[tuple[str, Any, Any]] = []
    spelled: dict[str, str] = {}
    for attribute, (part, field) in _PLACES.items():
        name = f"{part.replace(' ', '_') or 'record'}_{field}"
        # an error of conversion names the attribute, not the field
        spelled[name] = attribute
        if field == "content":
            fields.append((name, str, msgspec.UNSET))
            continue
        known = {one.name: one for one in msgspec.structs.fields(_STRUCTS[part])}[field]
        default = None if known.default is msgspec.NODEFAULT else known.default
        fields.append((name, known.type, default if part else _USUAL.get(field, default)))
    return msgspec.defstruct("AuditSpan", fields, rename=spelled)


_SHAPES: Final = Memo(_shape, KINDS, are_few_names)
_Flat: Final = _flat_struct()


def raw_json(text: str) -> msgspec.Raw:
    """Keep a text that is JSON as it is; quote one that is not, so that it becomes JSON."""
    try:
        _check_json(text)
    except (msgspec.DecodeError, RecursionError):
        return msgspec.Raw(to_json(text))
    return msgspec.Raw(text.encode())


def decode_changes(text: str | bytes) -> tuple[Change, ...]:
    """Decode changes; many of them one by one, so that other threads run in between.

    Raises:
        msgspec.MsgspecError: They are none.
        TypeError: It is not a text.
    """
    if len(text) <= _LONG_CHANGES:
        return _decode_changes(text)
    return tuple(map(_decode_change, _decode_pieces(text)))


def plain_values(resource: Mapping[str, Any]) -> dict[str, Any]:
    """Turn resource attributes into what JSON knows."""
    return {
        key: list(value) if isinstance(value, tuple) else value for key, value in resource.items()
    }
