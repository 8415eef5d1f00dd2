"""The objects of OCSF that a record fills, each by the version of the schema."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final

from otel_audit.record import AuditRecord

_METHODS: Final = frozenset({"OPTIONS", "GET", "HEAD", "POST", "PUT", "DELETE", "TRACE", "CONNECT"})
_USER_TYPES: Final = {"user": 1, "system": 3}
"""OCSF's ``type_id`` of a user."""
_SERVICE: Final = 4
"""The same of a service; there since 1.8.0."""
_LONGEST_HOST: Final = 253
"""Characters of a host's name in DNS (RFC 1035, section 2.3.4, without the root)."""
_PORT_DIGITS: Final = 6
"""One more than the highest port has."""
_LABEL: Final = "[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?"
_HOST: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
# what the schema takes for an e-mail address: a pseudonym is none
_EMAIL: Final = re.compile(r"[a-zA-Z0-9_.+-]+@[a-zA-Z0-9-]+\.[a-zA-Z0-9-.]+")


def _user(record: AuditRecord, version: str) -> dict[str, Any]:
    actor = record.actor
    kind = _USER_TYPES.get(actor.type, _SERVICE if version == "1.8.0" else 99)
    email = actor.email if actor.email and _EMAIL.fullmatch(actor.email) else None
    found = {"uid": actor.id, "name": actor.id, "type_id": kind, "email_addr": email}
    return {key: value for key, value in found.items() if value is not None}


def _account(record: AuditRecord, version: str) -> dict[str, Any]:
    target = record.target
    if record.action in ("LOGIN", "LOGOUT") or target is None:
        return _user(record, version)
    return {"uid": target.id or "unknown", "name": target.id or "unknown", "type_id": 1}


def _actor(record: AuditRecord, version: str) -> dict[str, Any]:
    source = record.source
    found: dict[str, Any] = {"user": _user(record, version)}
    if source is not None and source.session_id:
        found["session"] = {"uid": source.session_id}
    if record.actor.on_behalf_of:
        found["invoked_by"] = record.actor.on_behalf_of
    return found


def _endpoint(record: AuditRecord, _: str) -> dict[str, Any]:
    address = (None if record.source is None else record.source.address) or "unknown"
    try:
        return {"ip": str(ipaddress.ip_address(address.partition("%")[0]))}
    except ValueError:
        return {"name": address}


def _http_request(record: AuditRecord, version: str) -> dict[str, Any] | None:
    request = record.request
    if request is None:
        return None
    host, _, port = (request.host or "").partition(":")
    url: dict[str, Any] = {
        "path": request.path or request.route or "/",
        "query_string": request.query,
        "hostname": host if len(host) <= _LONGEST_HOST and _HOST.fullmatch(host) else None,
        "port": int(port) if len(port) < _PORT_DIGITS and port.isascii() and port.isdigit() else 0,
    }
    takes = request.method in _METHODS or (request.method == "PATCH" and version == "1.8.0")
    found = {
        "http_method": request.method if takes else None,
        "url": {key: value for key, value in url.items() if value},
        "uid": request.id,
        "user_agent": None if record.source is None else record.source.user_agent,
        "version": request.http_version,
        "http_headers": [{"name": key, "value": value} for key, value in request.headers.items()],
    }
    return {key: value for key, value in found.items() if value}


def _http_response(record: AuditRecord, _: str) -> dict[str, Any] | None:
    status = None if record.response is None else record.response.status_code
    return None if status is None else {"code": status}


def _entity(record: AuditRecord, _: str) -> dict[str, Any]:
    target = record.target
    if target is None:
        return {"name": "unknown"}
    return {"name": target.id or target.type, "uid": target.id or target.type, "type": target.type}


def _group(record: AuditRecord, _: str) -> dict[str, Any]:
    target = record.target
    name = "unknown" if target is None else target.id or target.type
    return {"name": name, "uid": name}


def _table(record: AuditRecord, _: str) -> dict[str, Any]:
    return {"name": record.changes[0].table if record.changes else "unknown"}


def _api(record: AuditRecord, _: str) -> dict[str, Any]:
    request = record.request
    found: dict[str, Any] = {"operation": record.event_name or record.action or "unnamed"}
    if request is not None and request.id:
        found["request"] = {"uid": request.id}
    if record.response is not None and record.response.status_code is not None:
        found["response"] = {"code": record.response.status_code}
    return found


def _service(record: AuditRecord, _: str) -> dict[str, Any]:
    return {"name": str(record.resource.get("service.name") or "unknown")}


def _session(record: AuditRecord, _: str) -> dict[str, Any] | None:
    source = record.source
    return {"uid": source.session_id} if source is not None and source.session_id else None


def _app(record: AuditRecord, _: str) -> dict[str, Any]:
    name = str(record.resource.get("service.name") or "otel-audit")
    return {"name": name, "vendor_name": "otel-audit"}


PARTS: Final[Mapping[str, Any]] = {
    "actor": _actor,
    "api": _api,
    "app": _app,
    "entity": _entity,
    "group": _group,
    "http_request": _http_request,
    "http_response": _http_response,
    "service": _service,
    "session": _session,
    "src_endpoint": _endpoint,
    "table": _table,
    "user": _account,
}
"""By the key in the event; None where the record says nothing of it."""
