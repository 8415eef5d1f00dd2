-- The writer appends, and may see of a row only what a receipt or a conflict needs.
GRANT USAGE ON SCHEMA audit TO otel_audit_writer, otel_audit_reader;
GRANT SELECT ON audit.schema_version TO otel_audit_writer, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.exceptional_rows() TO otel_audit_writer, otel_audit_reader;

GRANT INSERT ({columns}) ON audit.audit_logs TO otel_audit_writer;
GRANT SELECT (id, content_hash, recorded_at, received_hash) ON audit.audit_logs
    TO otel_audit_writer;
GRANT SELECT ON audit.receiving_key TO otel_audit_writer;
GRANT INSERT (content_hash, record_id, received, reason) ON audit.quarantine TO otel_audit_writer;
GRANT EXECUTE ON FUNCTION audit.ensure_partitions(integer) TO otel_audit_writer;

GRANT SELECT ON audit.audit_logs TO otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.about(text) TO otel_audit_reader, otel_audit_sealer;

-- The sealer reads the rows, appends to the ledger, and takes from the queue what it has sealed.
GRANT USAGE ON SCHEMA audit TO otel_audit_sealer;
GRANT SELECT ON audit.schema_version, audit.audit_logs, audit.ledger_log, audit.ledger_queue,
    audit.ledger_blocks, audit.ledger_checkpoints TO otel_audit_sealer;
GRANT INSERT (origin) ON audit.ledger_log TO otel_audit_sealer;
GRANT INSERT (first, ids, hashes, lowest, highest) ON audit.ledger_blocks TO otel_audit_sealer;
GRANT INSERT (size, note) ON audit.ledger_checkpoints TO otel_audit_sealer;
GRANT DELETE ON audit.ledger_queue TO otel_audit_sealer;
GRANT SELECT ON audit.ledger_flaws TO otel_audit_sealer, otel_audit_reader;
GRANT INSERT (first, note) ON audit.ledger_flaws TO otel_audit_sealer;
GRANT EXECUTE ON FUNCTION audit.try_to_lead(), audit.roll_up(bigint[]) TO otel_audit_sealer;
GRANT SELECT ON audit.rollup TO otel_audit_sealer, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.move_ledger_here() TO otel_audit_sealer;
GRANT EXECUTE ON FUNCTION audit.ledger_place() TO otel_audit_sealer, otel_audit_reader,
    otel_audit_writer, otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.columns_hash(audit.audit_logs) TO otel_audit_sealer, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.sealing_holder() TO otel_audit_sealer, otel_audit_reader,
    otel_audit_writer, otel_audit_retention;

-- What is in quarantine: the sealer tells it, who keeps the store releases it, who verifies compares.
GRANT EXECUTE ON FUNCTION audit.record_quarantined() TO otel_audit_sealer;
GRANT EXECUTE ON FUNCTION audit.quarantined(), audit.release_quarantined(bytea, text, text)
    TO otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.unkept_quarantine(text[]) TO otel_audit_reader, otel_audit_sealer;
GRANT SELECT ON audit.quarantine_records TO otel_audit_reader, otel_audit_sealer;

-- Who reads may verify: the ledger holds ids and hashes, no content.
GRANT SELECT ON audit.ledger_log, audit.ledger_queue, audit.ledger_blocks,
    audit.ledger_checkpoints TO otel_audit_reader;

GRANT SELECT ON audit.ledger_prunings, audit.ledger_pruned
    TO otel_audit_reader, otel_audit_sealer, otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.ledger_state(), audit.default_partition_months()
    TO otel_audit_writer, otel_audit_reader, otel_audit_sealer, otel_audit_retention;
-- Who reads leaves a record of it, and can make no other.
GRANT EXECUTE ON FUNCTION audit.record_view(text, jsonb, bigint, text, text, text)
    TO otel_audit_reader;

GRANT EXECUTE ON FUNCTION audit.record_export(jsonb, text), audit.look_as(text[])
    TO otel_audit_reader;
-- asked by the policies, whoever reads
GRANT EXECUTE ON FUNCTION audit.scope() TO otel_audit_reader, otel_audit_sealer, otel_audit_writer;

-- Retention: months go, and only as the functions let them.
GRANT USAGE ON SCHEMA audit TO otel_audit_retention;
GRANT SELECT ON audit.schema_version TO otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.exceptional_rows(), audit.ensure_partitions(integer),
    audit.retire_partition(text), audit.drop_partition(text, uuid),
    audit.collapse_leaves(bigint, bigint), audit.collapsible_blocks(), audit.ensure_month(date)
    TO otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.rows_in_default(bigint) TO otel_audit_writer, otel_audit_retention;

-- A policy, holds and archives: retention acts by functions alone, and each leaves a record.
GRANT EXECUTE ON FUNCTION audit.set_retention_policy(jsonb), audit.retention_policy(),
    audit.kept_until(text), audit.hold_on(text, bigint), audit.active_holds(),
    audit.place_hold(text, text, text, text, text, text, timestamptz, timestamptz),
    audit.release_hold(uuid, text), audit.override_hold(uuid, text, text),
    audit.hold_overridden(uuid, text),
    audit.record_archive(date, text, bigint, jsonb),
    audit.record_archive_removal(integer, text, bigint), audit.grew_since(uuid, uuid, bigint),
    audit.retired_rows(uuid), audit.is_sealed(uuid), audit.try_to_retain(),
    audit.record_restoration(date, integer, bigint), audit.end_restorations(date)
    TO otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.keeps_less(jsonb, jsonb), audit.approve_retention_policy(jsonb),
    audit.record_retention_run(jsonb, jsonb), audit.note_hold_applied(uuid, boolean),
    audit.holds_to_apply(), audit.holds_to_lift() TO otel_audit_retention;
GRANT EXECUTE ON FUNCTION audit.record_archive_verification(integer, bigint, integer, boolean)
    TO otel_audit_retention, otel_audit_sealer, otel_audit_reader;
GRANT SELECT ON audit.retention_runs, audit.archive_verifications
    TO otel_audit_retention, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.retention_state()
    TO otel_audit_retention, otel_audit_sealer, otel_audit_reader;
GRANT SELECT ON audit.archives, audit.archive_removals, audit.retirements, audit.restorations
    TO otel_audit_retention, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.retention_policy() TO otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.hold_on_subject(text, text), audit.subject_rows(text, text[]),
    audit.record_erasure(text, text, text[], text, text), audit.lock_erasures(),
    audit.record_checked_erasure(text, text, text[], text, text, bigint, integer)
    TO otel_audit_retention;
GRANT SELECT ON audit.erasures TO otel_audit_retention, otel_audit_reader;
GRANT INSERT ON audit.restored_logs TO otel_audit_retention;
GRANT SELECT ON audit.restored_logs TO otel_audit_reader;

-- Streams: positions move as the functions let them; rows are read as any reader does.
GRANT USAGE ON SCHEMA audit TO otel_audit_streamer;
GRANT SELECT ON audit.streams, audit.stream_parked TO otel_audit_streamer, otel_audit_reader;
GRANT EXECUTE ON FUNCTION audit.open_stream(text, jsonb, bigint),
    audit.advance_stream(text, bigint, bigint, bigint, bytea, text, bigint, jsonb),
    audit.pause_stream(text, boolean), audit.rewind_stream(text, bigint, text),
    audit.test_stream(text), audit.hold_stream(text)
    TO otel_audit_streamer;

-- A reader sees the tenants that it is entered for, and who has no entry sees none. A transaction
-- that looks on somebody's behalf sees of those the tenants that it was narrowed to.
ALTER TABLE audit.reader_tenants ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.audit_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.ledger_queue ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.rollup ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.restored_logs ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.streams ENABLE ROW LEVEL SECURITY;
ALTER TABLE audit.stream_parked ENABLE ROW LEVEL SECURITY;
DROP POLICY IF EXISTS own ON audit.reader_tenants;
DROP POLICY IF EXISTS appending ON audit.audit_logs;
DROP POLICY IF EXISTS receipts ON audit.audit_logs;
DROP POLICY IF EXISTS reading ON audit.audit_logs;
DROP POLICY IF EXISTS reading ON audit.ledger_queue;
DROP POLICY IF EXISTS sealing ON audit.ledger_queue;
DROP POLICY IF EXISTS reading ON audit.rollup;
DROP POLICY IF EXISTS reading ON audit.restored_logs;
DROP POLICY IF EXISTS restoring ON audit.restored_logs;
DROP POLICY IF EXISTS sealing ON audit.rollup;
DROP POLICY IF EXISTS reading ON audit.streams;
DROP POLICY IF EXISTS sending ON audit.streams;
DROP POLICY IF EXISTS reading ON audit.stream_parked;
DROP POLICY IF EXISTS sending ON audit.stream_parked;

GRANT SELECT ON audit.reader_tenants TO otel_audit_reader;
CREATE POLICY own ON audit.reader_tenants FOR SELECT TO otel_audit_reader USING (
    role_name IN (SELECT rolname FROM pg_catalog.pg_roles WHERE pg_has_role(oid, 'MEMBER')));
CREATE POLICY appending ON audit.audit_logs FOR INSERT TO otel_audit_writer WITH CHECK (true);
CREATE POLICY receipts ON audit.audit_logs FOR SELECT TO otel_audit_writer, otel_audit_sealer
    USING (true);
CREATE POLICY reading ON audit.audit_logs FOR SELECT TO otel_audit_reader USING (
    (EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
     OR tenant_id IN (SELECT t.tenant_id FROM audit.reader_tenants t))
    AND ((SELECT s.everything FROM audit.scope() s)
         OR tenant_id = ANY ((SELECT s.tenants FROM audit.scope() s)::text[])));
CREATE POLICY reading ON audit.ledger_queue FOR SELECT TO otel_audit_reader USING (
    EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
    AND (SELECT s.everything FROM audit.scope() s));
CREATE POLICY sealing ON audit.ledger_queue TO otel_audit_sealer USING (true);
CREATE POLICY reading ON audit.rollup FOR SELECT TO otel_audit_reader USING (
    (EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
     OR tenant_id IN (SELECT t.tenant_id FROM audit.reader_tenants t))
    AND ((SELECT s.everything FROM audit.scope() s)
         OR tenant_id = ANY ((SELECT s.tenants FROM audit.scope() s)::text[])));
CREATE POLICY sealing ON audit.rollup FOR SELECT TO otel_audit_sealer USING (true);
-- where streams go, for which tenants, and what a destination said of a record, is not one tenant's
CREATE POLICY reading ON audit.streams FOR SELECT TO otel_audit_reader USING (
    EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
    AND (SELECT s.everything FROM audit.scope() s));
CREATE POLICY sending ON audit.streams FOR SELECT TO otel_audit_streamer USING (true);
CREATE POLICY reading ON audit.stream_parked FOR SELECT TO otel_audit_reader USING (
    EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
    AND (SELECT s.everything FROM audit.scope() s));
CREATE POLICY sending ON audit.stream_parked FOR SELECT TO otel_audit_streamer USING (true);
CREATE POLICY reading ON audit.restored_logs FOR SELECT TO otel_audit_reader USING (
    (EXISTS (SELECT FROM audit.reader_tenants t WHERE t.tenant_id IS NULL)
     OR tenant_id IN (SELECT t.tenant_id FROM audit.reader_tenants t))
    AND ((SELECT s.everything FROM audit.scope() s)
         OR tenant_id = ANY ((SELECT s.tenants FROM audit.scope() s)::text[])));
CREATE POLICY restoring ON audit.restored_logs FOR INSERT TO otel_audit_retention
    WITH CHECK (true);
