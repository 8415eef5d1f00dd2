"""Elastic Common Schema 8: what an Elasticsearch or a Kibana security app reads."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Any, Final

from otel_audit.record import AuditRecord
from otel_audit.shapes.event import Event
from otel_audit.shapes.times import rfc3339

ECS_VERSION: Final = "8.17.0"

# event.category and event.type take these words only
_TYPES: Final = {
    "CREATE": ("creation",),
    "READ": ("access",),
    "UPDATE": ("change",),
    "DELETE": ("deletion",),
    "LOGIN": ("start",),
    "LOGOUT": ("end",),
    "EXPORT": ("access",),
    "GRANT": ("change",),
    "REVOKE": ("change",),
}
_IAM_ACTIONS: Final = frozenset({"GRANT", "REVOKE"})
_LOGINS: Final = frozenset({"LOGIN", "LOGOUT"})
_DENIED: Final = frozenset({401, 403})
"""Unauthorized, Forbidden."""


def to_ecs(event: Event) -> dict[str, Any]:
    """Show an event in the Elastic Common Schema.

    Args:
        event: An event of ours.

    Raises:
        UnshapeableError: The payload is not a record of ours.
    """
    record = event.typed()
    found = {
        "@timestamp": rfc3339(record.occurred_at),
        "ecs": {"version": ECS_VERSION},
        "message": f"{record.event_name} by {record.actor.id}: {record.outcome}",
        "event": _event(event, record),
        "user": _user(record),
        "source": _source(record),
        "user_agent": {"original": None if record.source is None else record.source.user_agent},
        "http": _http(record),
        "url": _url(record),
        "error": _error(record),
        "trace": {"id": record.trace_id},
        "span": {"id": record.span_id},
        "organization": {} if record.tenant is None else {
            "id": record.tenant.id, "name": record.tenant.slug
        },
        "service": {"name": record.resource.get("service.name")},
        "related": _related(record),
        "otel_audit": {
            "log": event.log, "is_as_sealed": event.is_as_sealed, "record": event.document
        },
    }  # fmt: skip
    pruned: dict[str, Any] = _pruned(found)
    return pruned


def _event(event: Event, record: AuditRecord) -> dict[str, Any]:
    return {
        "kind": "event",
        "category": list(_categories(record)),
        "type": list(_types(record)),
        "action": record.event_name,
        "outcome": record.outcome,
        "id": record.record_id,
        "created": rfc3339(record.observed_at),
        "duration": record.duration,
        "sequence": event.leaf,
        "hash": event.content_hash,
        "provider": "otel-audit",
        "dataset": "otel_audit.record",
        "module": "otel_audit",
        "reason": record.actor.reason,
    }


def _categories(record: AuditRecord) -> Iterable[str]:
    if record.action in _LOGINS:
        yield "authentication"
    elif record.action in _IAM_ACTIONS:
        yield "iam"
    elif record.request is not None:
        yield "web"
    if record.changes:
        yield "database"
    elif record.request is None and record.action not in _LOGINS | _IAM_ACTIONS:
        # nothing else fits what a process says of itself
        yield "configuration"


def _types(record: AuditRecord) -> Iterable[str]:
    yield from _TYPES.get(record.action, ("info",))
    if record.response is not None and record.response.status_code in _DENIED:
        yield "denied"
    if record.outcome == "failure" and record.error is not None:
        yield "error"


def _user(record: AuditRecord) -> dict[str, Any]:
    actor = record.actor
    roles = [*([actor.role] if actor.role else []), *actor.roles]
    user: dict[str, Any] = {
        "id": actor.id,
        "email": actor.email,
        "roles": list(dict.fromkeys(roles)),
    }
    if actor.on_behalf_of:
        # who is really behind it is the user, and as whom it was done is the effective one
        return {"id": actor.on_behalf_of, "effective": user}
    return user


def _source(record: AuditRecord) -> dict[str, Any]:
    address = None if record.source is None else record.source.address
    return {"address": address, "ip": _ip(address)}


def _ip(address: str | None) -> str | None:
    """An address that Elasticsearch takes for one: a pseudonym is none."""
    try:
        return None if address is None else str(ipaddress.ip_address(address.partition("%")[0]))
    except ValueError:
        return None


def _http(record: AuditRecord) -> dict[str, Any]:
    request, response = record.request, record.response
    if request is None:
        return {}
    body = request.body
    return {
        "version": request.http_version,
        "request": {
            "id": request.id,
            "method": request.method,
            "body": {"bytes": None if body is None else body.size},
            "mime_type": None if body is None else body.content_type,
        },
        "response": {
            "status_code": None if response is None else response.status_code,
            "body": {
                "bytes": None if response is None or response.body is None else response.body.size
            },
        },
    }


def _url(record: AuditRecord) -> dict[str, Any]:
    request = record.request
    if request is None:
        return {}
    return {"path": request.path, "query": request.query, "domain": request.host}


def _error(record: AuditRecord) -> dict[str, Any]:
    error = record.error
    return {} if error is None else {"type": error.type, "message": error.message}


def _related(record: AuditRecord) -> dict[str, Any]:
    users = [record.actor.id, record.actor.on_behalf_of, record.actor.email]
    ip = _ip(None if record.source is None else record.source.address)
    return {
        "user": list(dict.fromkeys(one for one in users if one)),
        "ip": [] if ip is None else [ip],
        "hosts": [record.request.host] if record.request and record.request.host else [],
    }


def _pruned(value: Any, *, is_ours: bool = False) -> Any:
    """Remove empty values, but not inside the record itself."""
    if is_ours or not isinstance(value, dict):
        return value
    kept = {name: _pruned(inner, is_ours=name == "otel_audit") for name, inner in value.items()}
    return {
        name: inner for name, inner in kept.items() if inner is not None and inner not in ({}, [])
    }
