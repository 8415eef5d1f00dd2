"""Records as plain values that are the same in every run, for snapshot tests."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

from otel_audit._util.ids import UUID_PATTERN
from otel_audit.record import NO_CONTENT, AuditRecord

_LEFT_OUT: Final = frozenset({
    "resource", "producer_id", "sequence_number", "trace_id", "span_id", "trace_sampled",
    "schema_version", "duration", "received",
})  # fmt: skip
_OF_REQUEST: Final = ("id", "host", "http_version", "headers")
_UUID: Final = re.compile(UUID_PATTERN)


def snapshot(records: Iterable[AuditRecord]) -> list[dict[str, Any]]:
    """Write records so that two runs of the same test write the same.

    Ids become ``A1``, ``A2`` …, in the order of their first mention: the records' own, and every
    UUID in what they hold. Of times only the order is kept: ``at`` counts the actions from 1, by
    their beginning. Host, process, version, trace and the client's address are left out. Names are
    sorted.

    Example::

        with recorded(app) as records:
            await client.post("/orders")
        assert [one["event_name"] for one in snapshot(records)] == ["order.created"]
    """
    names = _Names()
    found = []
    ordered = sorted(records, key=lambda record: (record.occurred_at, record.record_id))
    for place, record in enumerate(ordered, 1):
        plain: dict[str, Any] = {}
        for name, value in _plain(record).items():
            if name not in _LEFT_OUT and name not in ("occurred_at", "source"):
                plain[name] = names.replace(value)
        request = plain.get("request")
        if isinstance(request, dict):
            for name in _OF_REQUEST:
                request.pop(name, None)
        for side in ("request", "response"):
            body = plain.get(side, {}).get("body")
            if isinstance(body, dict):
                # both follow from the content, which may hold ids and times
                body.pop("sha256", None)
                body.pop("size", None)
        plain.get("response", {}).pop("headers", None)
        found.append(_sorted({"at": place, **plain}))
    return found


class _Names:
    """Gives short names to ids, in the order in which they come."""

    def __init__(self) -> None:
        self._known: dict[str, str] = {}

    def replace(self, value: Any) -> Any:
        if isinstance(value, str):
            return _UUID.sub(lambda at: self._name(at[0].lower()), value)
        if isinstance(value, dict):
            return {self.replace(name): self.replace(one) for name, one in value.items()}
        if isinstance(value, list | tuple):
            return [self.replace(one) for one in value]
        return value

    def _name(self, identity: str) -> str:
        return self._known.setdefault(identity, f"A{len(self._known) + 1}")


def _plain(value: Any) -> Any:
    if isinstance(value, msgspec.Raw):
        return None if value is NO_CONTENT else msgspec.json.decode(value)
    if isinstance(value, msgspec.Struct):
        pairs = ((name, getattr(value, name)) for name in value.__struct_fields__)
        return {
            name: _plain(one)
            for name, one in pairs
            if one is not None and one is not NO_CONTENT and one not in ((), {}, [])
        }
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def _sorted(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _sorted(value[name]) for name in sorted(value)}
    return [_sorted(one) for one in value] if isinstance(value, list) else value
