-- Refusals of our own are known by their SQLSTATE, whatever language the server speaks: class OA
-- (classes from I on are free for implementations), 001 for what may not be done, 002 for what there
-- is not. And what is in quarantine is recorded in the trail: so it is sealed, and can be released.

-- Rows that wait for the sealer to record them; emptied when that record is made.
CREATE TABLE audit.quarantine_queue (
    content_hash  bytea PRIMARY KEY
);
COMMENT ON TABLE audit.quarantine_queue IS
    'Rows of audit.quarantine that no record of the trail names yet.';
INSERT INTO audit.quarantine_queue SELECT content_hash FROM audit.quarantine;

CREATE TABLE audit.quarantine_records (
    record_id  uuid PRIMARY KEY
);
COMMENT ON TABLE audit.quarantine_records IS
    'Records of the trail that name rows of audit.quarantine, by the hashes of their texts.';
SELECT audit.guard('audit.quarantine_records');

CREATE FUNCTION audit.queue_for_recording() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO audit.quarantine_queue SELECT content_hash FROM inserted ON CONFLICT DO NOTHING;
    RETURN NULL;
END
$$;
CREATE TRIGGER queue_for_recording AFTER INSERT ON audit.quarantine
    REFERENCING NEW TABLE AS inserted
    FOR EACH STATEMENT EXECUTE FUNCTION audit.queue_for_recording();
ALTER TABLE audit.quarantine ENABLE ALWAYS TRIGGER queue_for_recording;

-- One record for up to 500 rows: it names their hashes, which the table's check binds to the texts.
CREATE FUNCTION audit.record_quarantined() RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    hashes text[];
BEGIN
    IF NOT EXISTS (SELECT FROM audit.quarantine_queue) THEN
        RETURN 0;
    END IF;
    WITH taken AS (
        DELETE FROM audit.quarantine_queue WHERE content_hash IN (
            SELECT content_hash FROM audit.quarantine_queue LIMIT 500 FOR UPDATE SKIP LOCKED)
        RETURNING content_hash
    )
    SELECT array_agg(encode(content_hash, 'hex') ORDER BY content_hash) INTO hashes FROM taken;
    IF hashes IS NULL THEN
        RETURN 0;
    END IF;
    INSERT INTO audit.quarantine_records (record_id) VALUES (
        audit.record_event('audit.records.quarantined', 'CREATE', 'audit_quarantine', NULL,
            jsonb_build_object('content_hashes', to_jsonb(hashes)), NULL));
    RETURN cardinality(hashes);
END
$$;
COMMENT ON FUNCTION audit.record_quarantined() IS
    'Records in the trail which rows came into quarantine, so that they are sealed.';

CREATE FUNCTION audit.unkept_quarantine(hashes text[]) RETURNS SETOF text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT hash FROM unnest(hashes) AS hash
    WHERE NOT EXISTS (
        SELECT FROM audit.quarantine q WHERE q.content_hash = decode(hash, 'hex')
          AND sha256(convert_to(q.received, 'UTF8')) = q.content_hash);
END;
COMMENT ON FUNCTION audit.unkept_quarantine(text[]) IS
    'Which of these rows are not in quarantine, or not as they were.';

CREATE TABLE audit.quarantine_releases (
    content_hash  bytea PRIMARY KEY,
    became        text NOT NULL CHECK (became IN ('stored', 'dismissed')),
    reason        text NOT NULL CHECK (octet_length(reason) <= 8192),
    released_at   timestamptz NOT NULL DEFAULT clock_timestamp(),
    released_by   text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE audit.quarantine_releases IS
    'Rows of audit.quarantine that ask for attention no more: stored since, or looked at.';
SELECT audit.guard('audit.quarantine_releases');

CREATE FUNCTION audit.quarantined()
RETURNS TABLE (content_hash bytea, record_id text, received text, reason text,
               recorded_at timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT q.content_hash, q.record_id, q.received, q.reason, q.recorded_at
    FROM audit.quarantine q
    WHERE NOT EXISTS (
        SELECT FROM audit.quarantine_releases r WHERE r.content_hash = q.content_hash)
    ORDER BY q.recorded_at;
END;
COMMENT ON FUNCTION audit.quarantined() IS 'What is in quarantine and was not released.';

CREATE FUNCTION audit.release_quarantined(content_hash bytea, became text, reason text)
RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM audit.quarantine q
                   WHERE q.content_hash = release_quarantined.content_hash) THEN
        RAISE EXCEPTION 'nothing of this hash is in quarantine' USING ERRCODE = 'OA002';
    END IF;
    INSERT INTO audit.quarantine_releases (content_hash, became, reason)
    VALUES (release_quarantined.content_hash, release_quarantined.became,
            release_quarantined.reason);
    RETURN audit.record_event('audit.record.released', 'UPDATE', 'audit_quarantine',
        encode(release_quarantined.content_hash, 'hex'), jsonb_build_object(
            'became', release_quarantined.became, 'reason', release_quarantined.reason), NULL);
END
$$;
COMMENT ON FUNCTION audit.release_quarantined(bytea, text, text) IS
    'Marks a row of the quarantine as stored since, or dismissed; told in the trail.';

CREATE OR REPLACE FUNCTION audit.exceptional_rows(OUT in_default bigint, OUT in_quarantine bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (SELECT count(*) FROM audit.audit_logs_default),
           (SELECT count(*) FROM audit.quarantine q WHERE NOT EXISTS (
                SELECT FROM audit.quarantine_releases r WHERE r.content_hash = q.content_hash));
END;

CREATE OR REPLACE FUNCTION audit.partition_content(
    partition text, OUT lowest uuid, OUT above uuid, OUT rows bigint, OUT digest text
)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first_day date;
BEGIN
    IF partition !~ '^audit_logs_\d{4}_\d{2}$' OR NOT EXISTS (
        SELECT FROM pg_inherits
        WHERE inhparent = 'audit.audit_logs'::regclass
          AND inhrelid = to_regclass('audit.' || partition)
    ) THEN
        RAISE EXCEPTION '% is no partition of audit.audit_logs', partition
            USING ERRCODE = 'OA002';
    END IF;
    first_day := to_date(right(partition, 7), 'YYYY_MM');
    lowest := audit.uuid_at(first_day::timestamp AT TIME ZONE 'UTC');
    above := audit.uuid_at((first_day + interval '1 month') AT TIME ZONE 'UTC');
    EXECUTE format(
        'SELECT count(*), encode(sha256(coalesce(string_agg(uuid_send(id) || content_hash '
        '|| int8send((extract(epoch FROM recorded_at) * 1000000)::bigint), '''' '
        'ORDER BY id, tenant_id), '''')), ''hex'') FROM audit.%I', partition)
    INTO rows, digest;
END
$$;

CREATE OR REPLACE FUNCTION audit.record_view(
    question text, asked jsonb, records bigint,
    target_type text DEFAULT NULL, target_id text DEFAULT NULL, behalf_of text DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF octet_length(asked::text) > 16384 OR octet_length(question) > 100
        OR target_type !~ '^audit_[a-z]{1,30}$' THEN
        RAISE EXCEPTION 'no view of the audit trail looks like this'
            USING ERRCODE = 'OA002',
                  HINT = 'A question has up to 100 bytes, what was asked up to 16,384, '
                         'a target''s type begins with audit_.';
    END IF;
    RETURN audit.record_event('audit.viewed', 'READ', target_type, target_id,
        jsonb_build_object(
            'question', question, 'records', greatest(records, 0),
            'asked', CASE WHEN audit.json_flaw('[' || asked::text || ']') IS NULL THEN asked
                          ELSE to_jsonb(left(asked::text, 4096)) END),
        behalf_of);
END
$$;

REVOKE ALL ON FUNCTION audit.queue_for_recording(), audit.record_quarantined(), audit.quarantined(),
    audit.unkept_quarantine(text[]), audit.release_quarantined(bytea, text, text) FROM PUBLIC;

-- The functions that need DDL belong to otel_audit_maintainer where the event trigger is, and only a
-- superuser, who then migrates, may replace them.
SELECT set_config('otel_audit.migrates_as', current_user, true);
DO $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT proowner FROM pg_proc
                                      WHERE oid = 'audit.collapse_leaves(bigint, bigint)'::regprocedure),
                       'USAGE') THEN
        PERFORM set_config('role', 'none', true);
    END IF;
END
$$;
CREATE OR REPLACE FUNCTION audit.drop_partition(partition text, manifest uuid) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    content record;
    said json;
BEGIN
    LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE;
    content := audit.partition_content(partition);
    SELECT payload -> 'metadata' INTO said FROM audit.audit_logs
    WHERE id = manifest AND event_name = 'audit.partition.retired';
    IF said IS NULL OR NOT audit.is_sealed(manifest) THEN
        RAISE EXCEPTION 'dropping % is refused: its manifest % is not sealed', partition, manifest
            USING ERRCODE = 'OA001', HINT =
                'SELECT audit.retire_partition(…) makes one; then let the sealer seal it.';
    END IF;
    IF (said ->> 'partition', said ->> 'rows', said ->> 'digest')
        IS DISTINCT FROM (partition, content.rows::text, content.digest) THEN
        RAISE EXCEPTION 'dropping % is refused: it does not hold what manifest % says',
            partition, manifest USING ERRCODE = 'OA001';
    END IF;
    IF manifest >= content.lowest AND manifest < content.above THEN
        RAISE EXCEPTION 'dropping % is refused: its own manifest would go with it', partition
            USING ERRCODE = 'OA001';
    END IF;
    IF EXISTS (SELECT FROM audit.ledger_queue WHERE id >= content.lowest AND id < content.above)
    THEN
        RAISE EXCEPTION 'dropping % is refused: rows of it wait to be sealed', partition
            USING ERRCODE = 'OA001';
    END IF;
    EXECUTE format('ALTER TABLE audit.audit_logs DETACH PARTITION audit.%I', partition);
    EXECUTE format('DROP TABLE audit.%I', partition);
    INSERT INTO audit.ledger_prunings (partition, manifest_id, lowest, above, rows)
    VALUES (partition, manifest, content.lowest, content.above, content.rows);
    RETURN content.rows;
END
$$;

CREATE OR REPLACE FUNCTION audit.collapse_leaves(from_leaf bigint, to_leaf bigint) RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    hashes bytea;
    ids bytea;
    place bigint := from_leaf;
    size bigint;
    made integer := 0;
BEGIN
    -- one at a time seals or collapses (the sealer's own lock)
    LOCK TABLE audit.ledger_log IN SHARE UPDATE EXCLUSIVE MODE;
    SELECT string_agg(b.hashes, '' ORDER BY b.first), string_agg(b.ids, '' ORDER BY b.first)
    INTO hashes, ids
    FROM audit.ledger_blocks b WHERE b.first >= from_leaf AND b.first < to_leaf;
    IF to_leaf <= from_leaf OR coalesce(octet_length(hashes), 0) <> (to_leaf - from_leaf) * 32
        OR octet_length(ids) <> (to_leaf - from_leaf) * 16
        OR NOT EXISTS (SELECT FROM audit.ledger_blocks b WHERE b.first = from_leaf) THEN
        RAISE EXCEPTION 'leaves % to % are not whole blocks', from_leaf, to_leaf
            USING ERRCODE = 'OA002';
    END IF;
    IF audit.holds_live_leaves(ids) THEN
        RAISE EXCEPTION 'leaves % to % are not all of dropped partitions', from_leaf, to_leaf
            USING ERRCODE = 'OA001';
    END IF;
    WHILE place < to_leaf LOOP
        size := 1;
        WHILE place % (size * 2) = 0 AND place + size * 2 <= to_leaf LOOP
            size := size * 2;
        END LOOP;
        INSERT INTO audit.ledger_pruned (first, leaves, hash) VALUES (place, size,
            audit.subtree_hash(substr(hashes, ((place - from_leaf) * 32 + 1)::integer,
                                      (size * 32)::integer)));
        place := place + size;
        made := made + 1;
    END LOOP;
    ALTER TABLE audit.ledger_blocks DISABLE TRIGGER refuse_change;
    DELETE FROM audit.ledger_blocks b WHERE b.first >= from_leaf AND b.first < to_leaf;
    ALTER TABLE audit.ledger_blocks ENABLE ALWAYS TRIGGER refuse_change;
    RETURN made;
END
$$;

SELECT set_config('role', current_setting('otel_audit.migrates_as'), true)
WHERE current_user <> current_setting('otel_audit.migrates_as');
