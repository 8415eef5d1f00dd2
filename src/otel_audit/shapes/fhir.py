"""FHIR R4B AuditEvent: what a hospital's audit repository reads."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any, Final

from otel_audit.record import AuditRecord
from otel_audit.shapes.event import Event
from otel_audit.shapes.times import rfc3339

_REST: Final = {
    "system": "http://terminology.hl7.org/CodeSystem/audit-event-type", "code": "rest",
    "display": "RESTful Operation",
}  # fmt: skip
_DCM: Final = "http://dicom.nema.org/resources/ontology/DCM"
_TYPES: Final = {
    "LOGIN": {"system": _DCM, "code": "110114", "display": "User Authentication"},
    "LOGOUT": {"system": _DCM, "code": "110114", "display": "User Authentication"},
    "EXPORT": {"system": _DCM, "code": "110106", "display": "Export"},
    "GRANT": {"system": _DCM, "code": "110113", "display": "Security Alert"},
    "REVOKE": {"system": _DCM, "code": "110113", "display": "Security Alert"},
}
_APPLICATION: Final = {"system": _DCM, "code": "110100", "display": "Application Activity"}
_ACTIONS: Final = {"CREATE": "C", "READ": "R", "UPDATE": "U", "DELETE": "D"}
# 0 success, 4 minor failure, 8 serious failure: the client's fault, and ours
_SERVER_ERROR: Final = 500
_SOURCE_ROLES: Final = "http://terminology.hl7.org/CodeSystem/security-source-type"
_ENTITY_TYPES: Final = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
_LARGEST_ENTITIES: Final = 100
"""Entities of one event; further ones are left out."""


def to_fhir(event: Event) -> dict[str, Any]:
    """Show an event as a FHIR R4B AuditEvent.

    Args:
        event: An event of ours.

    Raises:
        UnshapeableError: The payload is not a record of ours.
    """
    record = event.typed()
    found: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": record.record_id,
        "type": _type(record),
        "subtype": [{"system": "urn:otel-audit:event", "code": _code(record.event_name)}],
        "action": _ACTIONS.get(record.action, "E"),
        "recorded": rfc3339(record.occurred_at),
        "outcome": _outcome(record),
        "outcomeDesc": _line(_outcome_text(record)),
        "agent": list(_agents(record)),
        "source": _source(event, record),
        "entity": list(_entities(event, record)),
    }
    return found


def _type(record: AuditRecord) -> dict[str, str]:
    if record.action in _TYPES:
        return _TYPES[record.action]
    return _REST if record.request is not None else _APPLICATION


def _outcome(record: AuditRecord) -> str:
    if record.outcome == "success":
        return "0"
    status = None if record.response is None else record.response.status_code
    if record.outcome == "unknown" or status is None or status >= _SERVER_ERROR:
        return "8"
    return "4"


def _outcome_text(record: AuditRecord) -> str:
    status = None if record.response is None else record.response.status_code
    parts = [record.outcome, record.error.type if record.error else "", str(status or "")]
    return ", ".join(part for part in parts if part)


def _agents(record: AuditRecord) -> Iterator[dict[str, Any]]:
    actor, source = record.actor, record.source
    agent: dict[str, Any] = {
        "who": {"identifier": {"value": _line(actor.id)}},
        "altId": _line(actor.email) if actor.email else None,
        "requestor": True,
        "role": [{"text": _line(actor.role)}] if actor.role else None,
    }
    if source is not None and source.address:
        # 2: an IP address; 5: a URI, for what is none
        agent["network"] = {
            "address": _line(source.address), "type": "2" if source.type == "ip" else "5"
        }  # fmt: skip
    yield _pruned(agent)
    if actor.on_behalf_of:
        yield {"who": {"identifier": {"value": _line(actor.on_behalf_of)}}, "requestor": False}


def _source(event: Event, record: AuditRecord) -> dict[str, Any]:
    service = record.resource.get("service.name") or event.log or "otel-audit"
    return _pruned({
        "site": _line(record.tenant.id) if record.tenant else None,
        "observer": {"display": _line(str(service))},
        "type": [{"system": _SOURCE_ROLES, "code": "4", "display": "Application Server"}],
    })  # fmt: skip


def _entities(event: Event, record: AuditRecord) -> Iterator[dict[str, Any]]:
    for reference in record.entities[:_LARGEST_ENTITIES]:
        yield {
            "what": {"identifier": {"value": _line(reference)}},
            "type": {"system": _ENTITY_TYPES, "code": "2", "display": "System Object"},
        }
    ledger = {"leaf": event.leaf, "log": event.log, "content_hash": event.content_hash}
    details = [
        {"type": f"ledger.{name}", "valueString": str(value)}
        for name, value in ledger.items()
        if value not in (None, "")
    ]
    if record.request is not None and record.request.id:
        details.append({"type": "request.id", "valueString": _line(record.request.id)})
    if not event.is_as_sealed:
        details.append({"type": "ledger.altered", "valueString": "true"})
    # the whole record, so that nothing is lost in a shape that has no room for it
    text = json.dumps(event.document, separators=(",", ":")).encode()
    details.append({"type": "record", "valueBase64Binary": base64.b64encode(text).decode()})
    yield {
        "what": {"identifier": {"system": "urn:ietf:rfc:3986", "value": f"urn:uuid:{event.id}"}},
        "type": {"system": _ENTITY_TYPES, "code": "4", "display": "Other"},
        "detail": details,
    }


def _code(text: str) -> str:
    """A FHIR code: no space at its ends, and no two in a row."""
    return " ".join(text.split()) or "unnamed"


def _line(text: str) -> str:
    """A FHIR string: not empty, and without control characters, which it forbids."""
    found = "".join(char if char.isprintable() else "\ufffd" for char in text).strip()
    return found or "\ufffd"


def _pruned(value: dict[str, Any]) -> dict[str, Any]:
    return {name: inner for name, inner in value.items() if inner is not None}
