"""The audit store in PostgreSQL."""

from otel_audit_postgres.rows import record_from_payload
from otel_audit_postgres.schema import InitReport, init, migrate, schema_sql
from otel_audit_postgres.sink import PostgresSink
from otel_audit_postgres.upkeep import Upkeep, maintain

__all__ = [
    "InitReport",
    "PostgresSink",
    "Upkeep",
    "init",
    "maintain",
    "migrate",
    "record_from_payload",
    "schema_sql",
]
