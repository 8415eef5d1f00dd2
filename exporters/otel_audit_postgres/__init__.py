"""The audit store in PostgreSQL."""

from otel_audit_postgres.rows import record_from_payload
from otel_audit_postgres.schema import InitReport, init, schema_sql
from otel_audit_postgres.sink import PostgresSink

__all__ = ["InitReport", "PostgresSink", "init", "record_from_payload", "schema_sql"]
