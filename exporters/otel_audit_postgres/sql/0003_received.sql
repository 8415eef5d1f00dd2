-- What comes in over OTLP: who sent it, and what it was before the receiver redacted it.

ALTER TABLE audit.audit_logs
    ADD COLUMN received_by text,
    ADD COLUMN received_hash bytea CHECK (octet_length(received_hash) = 32);
COMMENT ON COLUMN audit.audit_logs.received_by IS
    'The credential it came with over OTLP; NULL where the application wrote it itself.';
COMMENT ON COLUMN audit.audit_logs.received_hash IS
    'HMAC-SHA-256 of the record as received, under audit.receiving_key: equal for equal records.';

-- Redaction takes secrets out, and a plain hash of what came in would let a reader guess them.
CREATE TABLE audit.receiving_key (
    single  boolean PRIMARY KEY DEFAULT true CHECK (single),
    key     bytea NOT NULL CHECK (octet_length(key) = 32)
);
COMMENT ON TABLE audit.receiving_key IS
    'The key of audit_logs.received_hash. Writers may read it, readers may not.';
INSERT INTO audit.receiving_key (key)
SELECT sha256(convert_to(
    gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
SELECT audit.guard('audit.receiving_key');

-- Who could write before can go on, without waiting for the next `init --roles`.
DO $$
BEGIN
    IF EXISTS (
        SELECT FROM pg_catalog.pg_roles
        WHERE rolname = 'otel_audit_writer'
          AND has_column_privilege(oid, 'audit.audit_logs', 'content_hash', 'INSERT')
    ) THEN
        GRANT INSERT (received_by, received_hash), SELECT (received_hash) ON audit.audit_logs
            TO otel_audit_writer;
        GRANT SELECT ON audit.receiving_key TO otel_audit_writer;
    END IF;
END
$$;
