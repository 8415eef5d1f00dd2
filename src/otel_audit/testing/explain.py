"""Why a request is not recorded, or not as its author thinks."""

from __future__ import annotations

from collections.abc import Iterator

from otel_audit.config import AuditConfig
from otel_audit.policy import Policy
from otel_audit.policy.rules import MARK, Override
from otel_audit.record import ANONYMOUS, AuditRecord
from otel_audit.testing.routes import TestedRoute, route_of


def reasons(
    requests: list[AuditRecord],
    records: list[AuditRecord],
    routes: list[TestedRoute],
    config: AuditConfig,
) -> Iterator[str]:
    """Say what became of requests that are not recorded, and of changes that are not kept."""
    for request in requests:
        if request.level == "none":
            yield f"{named(request)} is not recorded: {reason(request, routes, config)}"
    for record in records:
        if record.changes_rolled_back or record.transaction == "rolled_back":
            count = record.changes_rolled_back
            changes = f"its {count} changes were" if count > 1 else "what it changed was"
            yield f"{record.event_name} ({named(record)}): {changes} rolled back"
        elif record.transaction == "unknown":
            yield f"{record.event_name} ({named(record)}): whether it was committed is unknown"


def named(record: AuditRecord) -> str:
    """Name what was done: the request with its answer, or that it was recorded by hand."""
    request = record.request
    if request is None or request.method is None:
        return "not within a request"
    status = None if record.response is None else record.response.status_code
    answer = "" if status is None else f" ({status})"
    return f"{request.method} {request.route or request.path}{answer}"


def reason(request: AuditRecord, routes: list[TestedRoute], config: AuditConfig) -> str:
    """Name what decided that a request is not recorded."""
    rule = _rule(request, routes, config)
    if rule == "route":
        return "its route says level none (@audit_route, or x-audit)"
    if "(not the one of" in rule:
        return f"it is sampled, by rule {rule}"
    if rule == "reads":
        return "it is a read that wrote nothing (rule reads): level none"
    return f"excluded by rule {rule}: level none"


def _rule(record: AuditRecord, routes: list[TestedRoute], config: AuditConfig) -> str:
    request = record.request
    if request is None:
        return "unnamed"
    method, path = request.method or "GET", request.path or "/"
    route = route_of(routes, method, request.route, path)
    override = None if route is None else route.override
    decision = Policy.from_config(config).decide(
        method=method,
        path=path,
        route=request.route,
        status=None if record.response is None else record.response.status_code,
        actor=record.actor or ANONYMOUS,
        tenant=record.tenant,
        wrote=False,
        scope={"endpoint": _Marked(override)} if override is not None else None,
        key=record.record_id,
    )
    return decision.rule


class _Marked:
    """Stands for an endpoint, with what it says about itself."""

    def __init__(self, override: Override) -> None:
        setattr(self, MARK, override)
