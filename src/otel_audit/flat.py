"""What attributes say of a record, side by side in one struct, and the record made of it.

One conversion checks all of it, and no dictionaries are made on the way: half of what it costs to
sort the attributes into the record's parts first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import msgspec

from otel_audit.record import (
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
)

SchemaQualifiers = Mapping[str, tuple[str, str]]
"""Attribute names to a record's part (empty for the record itself) and the field in it."""

Headers = tuple[tuple[str, str], ...]
"""Attribute names and the headers' names."""

_STRUCTS: Final[dict[str, type[msgspec.Struct]]] = {
    "": AuditRecord, "actor": Actor, "tenant": Tenant, "target": Target, "source": Source,
    "request": Request, "response": Response, "error": ErrorInfo,
    "request body": Body, "response body": Body,
}  # fmt: skip
_USUAL_SOURCE: Final = Source().type


@dataclass(frozen=True, slots=True)
class Parts:
    """Which parts a record with certain attributes has.

    Attributes:
        tenant, target, source, error, request, response, request_body, response_body: Whether it
            has them.
        request_headers, response_headers: Which.
        complete: Whether each part has what it cannot be without.
    """

    tenant: bool
    target: bool
    source: bool
    error: bool
    request: bool
    response: bool
    request_body: bool
    response_body: bool
    request_headers: Headers
    response_headers: Headers
    complete: bool


def parts_of(
    names: tuple[str, ...],
    places: SchemaQualifiers,
    request_headers: Headers,
    response_headers: Headers,
) -> Parts:
    """Say which parts the attributes of these names make."""
    placed = {places[name] for name in names if name in places}
    found = {part for part, _ in placed}
    wanted = {("tenant", "id"), ("target", "type"), ("error", "type")}
    return Parts(
        tenant="tenant" in found,
        target="target" in found,
        source="source" in found,
        error="error" in found,
        request=bool(found & {"request", "request body"} or request_headers),
        response=bool(found & {"response", "response body"} or response_headers),
        request_body="request body" in found,
        response_body="response body" in found,
        request_headers=request_headers,
        response_headers=response_headers,
        complete=all((part, field) in placed for part, field in wanted if part in found),
    )


def struct_of(places: SchemaQualifiers, usual: Mapping[str, Any]) -> type[msgspec.Struct]:
    """Make the struct into which attributes are converted.

    Args:
        places: Where each attribute belongs.
        usual: Fields of the record itself to what they are where no attribute says it.

    Returns:
        A struct with a field ``part_field`` for each attribute, ``record_field`` for those of the
        record itself; by default what the record's own field is, None where it must be said.
    """
    fields: list[tuple[str, Any, Any]] = []
    spelled: dict[str, str] = {}
    for attribute, (part, field) in places.items():
        name = f"{part.replace(' ', '_') or 'record'}_{field}"
        spelled[name] = attribute
        if field == "content":
            fields.append((name, str, msgspec.UNSET))
            continue
        known = {one.name: one for one in msgspec.structs.fields(_STRUCTS[part])}[field]
        default = None if known.default is msgspec.NODEFAULT else known.default
        fields.append((name, known.type, usual.get(field, default) if not part else default))
    return msgspec.defstruct("Told", fields, rename=spelled)


class Facts(msgspec.Struct, frozen=True):
    """What of the record itself no attribute says, or not it alone; see `AuditRecord`."""

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


class Details(NamedTuple):
    """What attributes say of the bodies and in several of them."""

    request_headers: dict[str, str]
    response_headers: dict[str, str]
    request_body: msgspec.Raw
    response_body: msgspec.Raw


def as_record(told: Any, parts: Parts, details: Details, facts: Facts) -> AuditRecord:
    """Build the record.

    Args:
        told: The struct of `struct_of`, all of whose parts are complete.
        parts: Which parts it has.
        details: Headers and bodies.
        facts: What else there is to it.
    """
    return AuditRecord(
        record_id=facts.record_id,
        action_id=facts.action_id,
        event_name=facts.event_name,
        occurred_at=facts.occurred_at,
        duration=facts.duration,
        trace_id=facts.trace_id,
        span_id=facts.span_id,
        changes=facts.changes,
        metadata=facts.metadata,
        resource=facts.resource,
        parent_action_id=told.record_parent_action_id,
        phase=told.record_phase,
        schema_version=told.record_schema_version,
        action=told.record_action,
        outcome=told.record_outcome,
        transaction=told.record_transaction,
        changes_total=told.record_changes_total,
        changes_rolled_back=told.record_changes_rolled_back,
        trace_sampled=told.record_trace_sampled,
        producer_id=told.record_producer_id,
        sequence_number=told.record_sequence_number,
        level=told.record_level,
        actor=Actor(
            id=told.actor_id,
            type=told.actor_type,
            role=told.actor_role,
            roles=told.actor_roles,
            email=told.actor_email,
            verified=told.actor_verified,
            on_behalf_of=told.actor_on_behalf_of,
            reason=told.actor_reason,
            source=told.actor_source,
        ),
        tenant=Tenant(id=told.tenant_id, slug=told.tenant_slug) if parts.tenant else None,
        target=Target(type=told.target_type, id=told.target_id) if parts.target else None,
        source=_source(told) if parts.source else None,
        error=ErrorInfo(type=told.error_type, message=told.error_message) if parts.error else None,
        request=_request(told, parts, details) if parts.request else None,
        response=_response(told, parts, details) if parts.response else None,
    )


def _source(told: Any) -> Source:
    kind = told.source_type
    return Source(
        address=told.source_address,
        # the default itself is left out of the record's text
        type=_USUAL_SOURCE if kind == _USUAL_SOURCE else kind,
        user_agent=told.source_user_agent,
        session_id=told.source_session_id,
    )


def _request(told: Any, parts: Parts, details: Details) -> Request:
    return Request(
        id=told.request_id,
        method=told.request_method,
        route=told.request_route,
        path=told.request_path,
        query=told.request_query,
        headers=details.request_headers,
        http_version=told.request_http_version,
        host=told.request_host,
        body=Body(
            content=details.request_body,
            size=told.request_body_size,
            content_type=told.request_body_content_type,
            sha256=told.request_body_sha256,
            absent=told.request_body_absent,
        )
        if parts.request_body
        else None,
    )


def _response(told: Any, parts: Parts, details: Details) -> Response:
    return Response(
        status_code=told.response_status_code,
        headers=details.response_headers,
        body=Body(
            content=details.response_body,
            size=told.response_body_size,
            content_type=told.response_body_content_type,
            sha256=told.response_body_sha256,
            absent=told.response_body_absent,
        )
        if parts.response_body
        else None,
    )
