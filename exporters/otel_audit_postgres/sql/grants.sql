-- The writer appends, and may see of a row only what a receipt or a conflict needs.
GRANT USAGE ON SCHEMA audit TO otel_audit_writer, otel_audit_reader;
GRANT SELECT ON audit.schema_version TO otel_audit_writer, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.exceptional_rows() TO otel_audit_writer, otel_audit_reader;

GRANT INSERT ({columns}) ON audit.audit_logs TO otel_audit_writer;
GRANT SELECT (id, content_hash, recorded_at) ON audit.audit_logs TO otel_audit_writer;
GRANT INSERT (content_hash, record_id, received, reason) ON audit.quarantine TO otel_audit_writer;
GRANT EXECUTE ON FUNCTION audit.ensure_partitions(integer) TO otel_audit_writer;

GRANT SELECT ON audit.audit_logs TO otel_audit_reader;
