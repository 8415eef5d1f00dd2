"""The audit store in PostgreSQL."""

from otel_audit_postgres.queries import Criteria, Found, Page, Shown
from otel_audit_postgres.query.grammar import Query, QueryError, parse
from otel_audit_postgres.rows import record_from_payload
from otel_audit_postgres.schema import InitReport, init, migrate, schema_sql
from otel_audit_postgres.sink import PostgresSink
from otel_audit_postgres.trail import Trail, open_trail
from otel_audit_postgres.upkeep import Upkeep, maintain

__all__ = [
    "Criteria",
    "Found",
    "InitReport",
    "Page",
    "PostgresSink",
    "Query",
    "QueryError",
    "Shown",
    "Trail",
    "Upkeep",
    "init",
    "maintain",
    "migrate",
    "open_trail",
    "parse",
    "record_from_payload",
    "schema_sql",
]
