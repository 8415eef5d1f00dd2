-- The ledger: a queue of rows to be sealed, the sealed leaves in blocks, signed checkpoints.

-- No row is made, sealed or changed while this is installed: those after it are queued by trigger.
LOCK TABLE audit.audit_logs IN SHARE ROW EXCLUSIVE MODE;

CREATE TABLE audit.ledger_log (
    single       boolean PRIMARY KEY DEFAULT true CHECK (single),
    origin       text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.ledger_log IS 'The name of the log in its checkpoints, from its first on.';

CREATE SEQUENCE audit.ledger_position;
CREATE TABLE audit.ledger_queue (
    position      bigint PRIMARY KEY DEFAULT nextval('audit.ledger_position'),
    id            uuid NOT NULL,
    tenant_id     text NOT NULL,
    content_hash  bytea NOT NULL,
    recorded_at   timestamptz NOT NULL
);
COMMENT ON TABLE audit.ledger_queue IS 'Rows of audit_logs that are not sealed yet.';

CREATE TABLE audit.ledger_blocks (
    first        bigint PRIMARY KEY CHECK (first >= 0),
    ids          bytea NOT NULL,
    hashes       bytea NOT NULL,
    lowest       uuid NOT NULL,
    highest      uuid NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
-- hashes do not compress
ALTER TABLE audit.ledger_blocks
    ALTER COLUMN ids SET STORAGE EXTERNAL, ALTER COLUMN hashes SET STORAGE EXTERNAL;
COMMENT ON TABLE audit.ledger_blocks IS
    'Sealed leaves, packed: first is the index of a block''s first leaf in the log, ids are 16 and '
    'hashes (RFC 9162 leaf hashes) 32 bytes each; lowest and highest of the ids are for finding.';

CREATE TABLE audit.ledger_checkpoints (
    size         bigint PRIMARY KEY CHECK (size > 0),
    note         text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.ledger_checkpoints IS
    'After each block the tree''s size and root, as a C2SP signed note.';

SELECT audit.guard('audit.ledger_log');
SELECT audit.guard('audit.ledger_blocks');
SELECT audit.guard('audit.ledger_checkpoints');

-- From the queue rows are taken once they are sealed; nothing else is done to it.
CREATE TRIGGER refuse_change BEFORE UPDATE OR TRUNCATE ON audit.ledger_queue
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.ledger_queue ENABLE ALWAYS TRIGGER refuse_change;

-- With its owner's rights, so that a writer needs none on the queue.
CREATE FUNCTION audit.queue_for_sealing() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at)
    SELECT id, tenant_id, content_hash, recorded_at FROM inserted;
    RETURN NULL;
END
$$;
REVOKE ALL ON FUNCTION audit.queue_for_sealing() FROM PUBLIC;

CREATE TRIGGER queue_for_sealing AFTER INSERT ON audit.audit_logs
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION audit.queue_for_sealing();
ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER queue_for_sealing;

-- What an earlier version stored is sealed from here on.
INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at)
SELECT id, tenant_id, content_hash, recorded_at FROM audit.audit_logs ORDER BY recorded_at, id;

-- Who reads which tenants, where there are roles (the policies come with the grants).
CREATE TABLE audit.reader_tenants (
    role_name  name NOT NULL,
    tenant_id  text,
    UNIQUE NULLS NOT DISTINCT (role_name, tenant_id)
);
COMMENT ON TABLE audit.reader_tenants IS
    'The tenants whose records a reading role sees; tenant_id NULL is all of them.';

-- Who could read before goes on reading everything.
INSERT INTO audit.reader_tenants (role_name)
SELECT member.rolname
FROM pg_catalog.pg_roles reader
JOIN pg_catalog.pg_auth_members m ON m.roleid = reader.oid
JOIN pg_catalog.pg_roles member ON member.oid = m.member
WHERE reader.rolname = 'otel_audit_reader'
  AND has_table_privilege(reader.oid, 'audit.audit_logs', 'SELECT')
ON CONFLICT DO NOTHING;
