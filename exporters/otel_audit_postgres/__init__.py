"""The audit store in PostgreSQL."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from otel_audit_postgres.query.grammar import Query, QueryError, parse
    from otel_audit_postgres.query.queries import Criteria, Found, Page, Shown
    from otel_audit_postgres.query.trail import Trail, open_trail
    from otel_audit_postgres.rows import record_from_payload
    from otel_audit_postgres.schema.install import InitReport, init, migrate, schema_sql
    from otel_audit_postgres.schema.partitions import MaintenanceReport, maintain
    from otel_audit_postgres.sink import PostgresSink

_PLACES: Final = {
    "query.grammar": ("Query", "QueryError", "parse"),
    "query.queries": ("Criteria", "Found", "Page", "Shown"),
    "query.trail": ("Trail", "open_trail"),
    "rows": ("record_from_payload",),
    "schema.install": ("InitReport", "init", "migrate", "schema_sql"),
    "schema.partitions": ("MaintenanceReport", "maintain"),
    "sink": ("PostgresSink",),
}
_MODULE_OF: Final = {name: module for module, names in _PLACES.items() for name in names}

__all__ = [
    "Criteria",
    "Found",
    "InitReport",
    "MaintenanceReport",
    "Page",
    "PostgresSink",
    "Query",
    "QueryError",
    "Shown",
    "Trail",
    "init",
    "maintain",
    "migrate",
    "open_trail",
    "parse",
    "record_from_payload",
    "schema_sql",
]


def __getattr__(name: str) -> Any:
    """Import a name where it is first asked for: who writes has no use for queries."""
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)
    globals()[name] = found
    return found
