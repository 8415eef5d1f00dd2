"""Open Cybersecurity Schema Framework: what security lakes and most SIEMs read.

A key that a version does not know fails its event there, so each class has an allow-list.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from otel_audit.record import AuditRecord
from otel_audit.shapes.event import Event
from otel_audit.shapes.ocsf_objects import PARTS
from otel_audit.shapes.times import rfc3339

OCSF_VERSIONS: Final = ("1.1.0", "1.5.0", "1.8.0")
"""What is made: 1.1.0 for AWS Security Lake, 1.8.0 by default."""


@dataclass(frozen=True, slots=True)
class Entities:
    """Types of targets that are users or groups.

    Attributes:
        users: Accounts of people.
        groups: What gives rights to several.
        administrative: What else is administered.
    """

    users: frozenset[str] = frozenset({"user", "account"})
    groups: frozenset[str] = frozenset({"group", "role", "team"})
    administrative: frozenset[str] = frozenset({
        "api_key", "organization", "permission", "policy", "setting", "tenant",
    })  # fmt: skip


DEFAULT_ENTITIES: Final = Entities()

_CLASSES: Final = {
    3001: ("Account Change", 3, {"CREATE": 1, "DELETE": 6, "GRANT": 7, "REVOKE": 8}),
    3002: ("Authentication", 3, {"LOGIN": 1, "LOGOUT": 2}),
    3004: ("Entity Management", 3, {"CREATE": 1, "READ": 2, "UPDATE": 3, "DELETE": 4}),
    3006: ("Group Management", 3, {"GRANT": 1, "REVOKE": 2, "DELETE": 5, "CREATE": 6}),
    6002: ("Application Lifecycle", 6, {"START": 3, "STOP": 4}),
    6003: ("API Activity", 6, {"CREATE": 1, "READ": 2, "UPDATE": 3, "DELETE": 4}),
    6005: ("Datastore Activity", 6, {"READ": 1, "UPDATE": 2, "CREATE": 6, "DELETE": 7}),
}
_CATEGORIES: Final = {3: "Identity & Access Management", 6: "Application Activity"}
"""OCSF's numbers of the categories that are used here."""
_WEB: Final = frozenset({"actor", "src_endpoint", "http_request", "http_response"})
_KEYS: Final = {
    3001: _WEB | {"user"},
    3002: _WEB | {"user", "service", "session"},
    3004: _WEB | {"entity"},
    3006: _WEB | {"group"},
    6002: frozenset({"app"}),
    6003: _WEB | {"api"},
    6005: _WEB | {"table"},
}
# what a version does not know of those
_UNKNOWN: Final = {
    "1.1.0": {
        **dict.fromkeys(_KEYS, frozenset({"http_response"})),
        3004: _WEB,
    },
    "1.5.0": {},
    "1.8.0": {},
}
_WITH_HASHES: Final = frozenset({"1.8.0"})
_DENIED: Final = frozenset({401, 403})
"""Unauthorized, Forbidden."""
_STATUS: Final = {"success": (1, "Success"), "failure": (2, "Failure"), "unknown": (0, "Unknown")}
_SEVERITIES: Final = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}
_SHA_256: Final = 3
"""OCSF's ``algorithm_id``."""
_MAPPED: Final = frozenset({"actor", "source", "request", "response", "event_name", "occurred_at"})


def to_ocsf(
    event: Event, version: str = OCSF_VERSIONS[-1], entities: Entities = DEFAULT_ENTITIES
) -> dict[str, Any]:
    """Show an event in OCSF.

    Args:
        event: An event of ours.
        version: Of the schema, one of `OCSF_VERSIONS`.
        entities: Which targets are users, groups, or administered otherwise.

    Raises:
        UnshapeableError: The payload is not a record of ours.
    """
    record = event.typed()
    number = _class_of(record, version, entities)
    name, category, activities = _CLASSES[number]
    activity = activities.get(_activity_name(record), 99)
    severity = _severity(record)
    status_id, status = _STATUS[record.outcome]
    found: dict[str, Any] = {
        "activity_id": activity,
        "activity_name": record.action.capitalize() or "Other",
        "category_uid": category,
        "category_name": _CATEGORIES[category],
        "class_uid": number,
        "class_name": name,
        "type_uid": number * 100 + activity,
        "time": record.occurred_at // 1_000_000,
        "duration": record.duration // 1_000_000,
        "message": f"{record.event_name} by {record.actor.id}: {record.outcome}",
        "metadata": _metadata(event, record, version),
        "severity_id": severity,
        "severity": _SEVERITIES[severity],
        "status_id": status_id,
        "status": status,
        "status_code": _status_code(record),
        "status_detail": record.error.type if record.error else None,
        "unmapped": {"otel_audit": _rest(event)},
    }
    if event.is_exact:
        found["raw_data"] = event.payload
    if version in _WITH_HASHES:
        # of the text in the store, so that a row in a SIEM can be compared with our proof
        found["raw_data_hash"] = {
            "algorithm": "SHA-256", "algorithm_id": _SHA_256, "value": event.content_hash
        }  # fmt: skip
    keys = _KEYS[number] - _UNKNOWN[version].get(number, frozenset())
    found |= {key: PARTS[key](record, version) for key in keys}
    return {key: value for key, value in found.items() if value is not None}


def _class_of(  # noqa: PLR0911 - one for each class
    record: AuditRecord, version: str, entities: Entities
) -> int:
    kind = "" if record.target is None else record.target.type
    if record.action in ("LOGIN", "LOGOUT"):
        return 3002
    if record.event_name.startswith("audit."):
        return 6002
    if record.action != "READ" and kind in entities.users:
        return 3001
    if record.action != "READ" and kind in entities.groups:
        # 1.1.0 wants the privileges or the member, which a record does not tell apart
        return 3004 if version == "1.1.0" else 3006
    if kind in entities.administrative and record.changes:
        return 3004
    if record.request is None and record.changes:
        return 6005
    return 6003


def _activity_name(record: AuditRecord) -> str:
    last = record.event_name.rpartition(".")[2]
    words = {"started": "START", "stopped": "STOP", "ended": "STOP"}
    return (
        words.get(last, record.action) if record.event_name.startswith("audit.") else record.action
    )


def _severity(record: AuditRecord) -> int:
    if record.transaction == "rolled_back":
        return 4
    if record.response is not None and record.response.status_code in _DENIED:
        return 3
    return 1 if record.outcome == "success" else 2


def _status_code(record: AuditRecord) -> str | None:
    status = None if record.response is None else record.response.status_code
    return None if status is None else str(status)


def _metadata(event: Event, record: AuditRecord, version: str) -> dict[str, Any]:
    request = record.request
    found = {
        "version": version,
        "product": {"name": "otel-audit", "vendor_name": "otel-audit"},
        "uid": record.record_id,
        "event_code": record.event_name,
        "correlation_uid": request.id if request and request.id else record.action_id,
        "tenant_uid": record.tenant.id if record.tenant else None,
        "log_name": event.log or None,
        "logged_time": None if event.recorded_ns is None else event.recorded_ns // 1_000_000,
        "original_time": rfc3339(record.occurred_at),
        "sequence": event.leaf,
    }
    return {key: value for key, value in found.items() if value is not None}


def _rest(event: Event) -> dict[str, Any]:
    """The fields without a place in the schema; the whole record if its text cannot be included."""
    rest = {
        key: value
        for key, value in event.document.items()
        if key not in _MAPPED or not event.is_exact
    }
    return {
        **rest, "leaf": event.leaf, "content_hash": event.content_hash,
        "is_as_sealed": event.is_as_sealed,
    }  # fmt: skip
