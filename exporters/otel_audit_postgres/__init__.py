"""The audit store in PostgreSQL."""

from otel_audit_postgres.query.grammar import Query, QueryError, parse
from otel_audit_postgres.query.queries import Criteria, Found, Page, Shown
from otel_audit_postgres.query.trail import Trail, open_trail
from otel_audit_postgres.rows import record_from_payload
from otel_audit_postgres.schema.install import InitReport, init, migrate, schema_sql
from otel_audit_postgres.schema.partitions import MaintenanceReport, maintain
from otel_audit_postgres.sink import PostgresSink

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
