-- Room for retention: a month may go, its leaves collapse, and what is left still verifies.

CREATE TABLE audit.ledger_prunings (
    partition    text PRIMARY KEY,
    manifest_id  uuid NOT NULL,
    lowest       uuid NOT NULL,
    above        uuid NOT NULL,
    rows         bigint NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.ledger_prunings IS
    'Partitions that were dropped, each with the sealed record (the manifest) that says what was in '
    'it; the ids of its rows are from lowest up to, and without, above.';

CREATE TABLE audit.ledger_pruned (
    first        bigint PRIMARY KEY CHECK (first >= 0),
    leaves       bigint NOT NULL CHECK (leaves > 0 AND leaves & (leaves - 1) = 0),
    hash         bytea NOT NULL CHECK (octet_length(hash) = 32),
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (first % leaves = 0)
);
COMMENT ON TABLE audit.ledger_pruned IS
    'Leaves of dropped partitions, collapsed: the root of each complete subtree (RFC 9162, 2.1.1) '
    'in place of its leaves; first is the index of the first one, leaves a power of two.';

SELECT audit.guard('audit.ledger_prunings');
SELECT audit.guard('audit.ledger_pruned');
SELECT audit.guard('audit.schema_version');

-- What a partition holds, to be said in its manifest and compared before it goes.
CREATE FUNCTION audit.partition_content(
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
            USING ERRCODE = 'undefined_table';
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
COMMENT ON FUNCTION audit.partition_content(text) IS
    'Bounds, rows, and a SHA-256 over id, content hash and recorded_at of each row in their order.';

CREATE FUNCTION audit.is_sealed(record_id uuid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM audit.ledger_blocks b, generate_series(0, octet_length(b.ids) / 16 - 1) AS n
        WHERE b.lowest <= record_id AND b.highest >= record_id
          AND substr(b.ids, n * 16 + 1, 16) = uuid_send(record_id));
END;

CREATE FUNCTION audit.drop_partition(partition text, manifest uuid) RETURNS bigint
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
            USING ERRCODE = 'insufficient_privilege', HINT =
                'SELECT audit.retire_partition(…) makes one; then let the sealer seal it.';
    END IF;
    IF (said ->> 'partition', said ->> 'rows', said ->> 'digest')
        IS DISTINCT FROM (partition, content.rows::text, content.digest) THEN
        RAISE EXCEPTION 'dropping % is refused: it does not hold what manifest % says',
            partition, manifest USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF manifest >= content.lowest AND manifest < content.above THEN
        RAISE EXCEPTION 'dropping % is refused: its own manifest would go with it', partition
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    IF EXISTS (SELECT FROM audit.ledger_queue WHERE id >= content.lowest AND id < content.above)
    THEN
        RAISE EXCEPTION 'dropping % is refused: rows of it wait to be sealed', partition
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    EXECUTE format('ALTER TABLE audit.audit_logs DETACH PARTITION audit.%I', partition);
    EXECUTE format('DROP TABLE audit.%I', partition);
    INSERT INTO audit.ledger_prunings (partition, manifest_id, lowest, above, rows)
    VALUES (partition, manifest, content.lowest, content.above, content.rows);
    RETURN content.rows;
END
$$;
COMMENT ON FUNCTION audit.drop_partition(text, uuid) IS
    'Drops a month, if a sealed record says exactly what is in it; tells how many rows went.';

-- The hash over count leaves (a power of two) of 32 bytes each (RFC 9162, 2.1.1).
CREATE FUNCTION audit.subtree_hash(leaves bytea) RETURNS bytea
LANGUAGE plpgsql IMMUTABLE STRICT SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    nodes bytea[];
BEGIN
    SELECT array_agg(substr(leaves, n * 32 + 1, 32) ORDER BY n) INTO nodes
    FROM generate_series(0, octet_length(leaves) / 32 - 1) AS n;
    WHILE cardinality(nodes) > 1 LOOP
        SELECT array_agg(sha256('\x01'::bytea || nodes[n * 2 - 1] || nodes[n * 2]) ORDER BY n)
        INTO nodes FROM generate_series(1, cardinality(nodes) / 2) AS n;
    END LOOP;
    RETURN nodes[1];
END
$$;

-- Whether one of these ids, 16 bytes each, is of a month that was not dropped, or has a row.
CREATE FUNCTION audit.holds_live_leaves(ids bytea) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (
        SELECT FROM generate_series(0, octet_length(ids) / 16 - 1) AS n,
            LATERAL (SELECT encode(substr(ids, n * 16 + 1, 16), 'hex')::uuid AS id) AS leaf
        WHERE NOT EXISTS (
                SELECT FROM audit.ledger_prunings p WHERE leaf.id >= p.lowest AND leaf.id < p.above)
           OR EXISTS (SELECT FROM audit.audit_logs a WHERE a.id = leaf.id));
END;

CREATE FUNCTION audit.collapsible_blocks() RETURNS TABLE (first bigint, leaves bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT b.first, octet_length(b.hashes) / 32 FROM audit.ledger_blocks b
    WHERE EXISTS (SELECT FROM audit.ledger_prunings p
                  WHERE b.lowest >= p.lowest AND b.lowest < p.above)
      AND NOT audit.holds_live_leaves(b.ids)
    ORDER BY b.first;
END;
COMMENT ON FUNCTION audit.collapsible_blocks() IS
    'Blocks all of whose rows went with their partitions: the first leaf of each, and how many.';

CREATE FUNCTION audit.collapse_leaves(from_leaf bigint, to_leaf bigint) RETURNS integer
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
    PERFORM pg_advisory_xact_lock(7301962839480014);
    SELECT string_agg(b.hashes, '' ORDER BY b.first), string_agg(b.ids, '' ORDER BY b.first)
    INTO hashes, ids
    FROM audit.ledger_blocks b WHERE b.first >= from_leaf AND b.first < to_leaf;
    IF to_leaf <= from_leaf OR coalesce(octet_length(hashes), 0) <> (to_leaf - from_leaf) * 32
        OR octet_length(ids) <> (to_leaf - from_leaf) * 16
        OR NOT EXISTS (SELECT FROM audit.ledger_blocks b WHERE b.first = from_leaf) THEN
        RAISE EXCEPTION 'leaves % to % are not whole blocks', from_leaf, to_leaf
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    IF audit.holds_live_leaves(ids) THEN
        RAISE EXCEPTION 'leaves % to % are not all of dropped partitions', from_leaf, to_leaf
            USING ERRCODE = 'insufficient_privilege';
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
COMMENT ON FUNCTION audit.collapse_leaves(bigint, bigint) IS
    'Puts subtree hashes in place of whole blocks, all of whose rows went with their partitions.';

-- Upkeep ------------------------------------------------------------------------------------------

CREATE FUNCTION audit.default_partition_months()
RETURNS TABLE (month text, rows bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT to_char(to_timestamp(
               ('x' || left(replace(id::text, '-', ''), 12))::bit(48)::bigint / 1000.0)
               AT TIME ZONE 'UTC', 'YYYY-MM'), count(*)
    FROM audit.audit_logs_default GROUP BY 1 ORDER BY 1;
END;
COMMENT ON FUNCTION audit.default_partition_months() IS
    'Of which months there are rows in the default partition, by the time in their ids.';

CREATE FUNCTION audit.ledger_state(
    OUT waiting bigint, OUT waiting_for double precision, OUT size bigint, OUT note text
)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (SELECT count(*) FROM audit.ledger_queue),
           (SELECT extract(epoch FROM clock_timestamp() - min(recorded_at))
            FROM audit.ledger_queue),
           (SELECT coalesce(max(c.size), 0) FROM audit.ledger_checkpoints c),
           (SELECT c.note FROM audit.ledger_checkpoints c ORDER BY c.size DESC LIMIT 1);
END;
COMMENT ON FUNCTION audit.ledger_state() IS
    'How far sealing is: rows that wait, seconds since the oldest of them, the last checkpoint.';

-- Whoever runs it, its partitions belong to whom the trail belongs to.
CREATE OR REPLACE FUNCTION audit.make_partition(
    month date, OUT partition text, OUT state text, OUT detail text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_first_day date := (date_trunc('month', month) + interval '1 month')::date;
    owner text := (SELECT pg_get_userbyid(relowner) FROM pg_class
                   WHERE oid = 'audit.audit_logs'::regclass);
BEGIN
    partition := 'audit_logs_' || to_char(first_day, 'YYYY_MM');
    IF EXISTS (
        SELECT FROM pg_inherits
        WHERE inhparent = 'audit.audit_logs'::regclass
          AND inhrelid = to_regclass('audit.' || partition)
    ) THEN
        state := 'exists';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM audit.ledger_prunings p WHERE p.partition = make_partition.partition)
    THEN
        state := 'dropped';
        detail := 'this month was retired; what comes late is kept in audit.audit_logs_default';
        RETURN;
    END IF;
    -- ATTACH, unlike CREATE TABLE … PARTITION OF, does not stop those who are inserting
    EXECUTE format(
        'CREATE TABLE audit.%I (LIKE audit.audit_logs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
        partition);
    IF current_user <> owner THEN
        EXECUTE format('ALTER TABLE audit.%I OWNER TO %I', partition, owner);
    END IF;
    PERFORM audit.guard(format('audit.%I', partition)::regclass);
    EXECUTE format(
        'ALTER TABLE audit.audit_logs ATTACH PARTITION audit.%I FOR VALUES FROM (%L) TO (%L)',
        partition,
        audit.uuid_at(first_day::timestamp AT TIME ZONE 'UTC'),
        audit.uuid_at(next_first_day::timestamp AT TIME ZONE 'UTC'));
    state := 'made';
EXCEPTION
    WHEN check_violation THEN
        state := 'blocked';
        detail := 'rows of this month are in audit.audit_logs_default';
    WHEN duplicate_table THEN
        state := 'blocked';
        detail := 'a table of this name is there, but it is no partition of audit.audit_logs';
    WHEN unique_violation THEN
        state := 'exists';  -- somebody else made it just now
    WHEN lock_not_available THEN
        state := 'busy';
        detail := 'a lock could not be had in time; it is tried again';
END
$$;

-- A search reads the whole list of what is not yet in the index proper: 4 MB of it by default, which
-- is tens of milliseconds for each history. Inserting waits while the index is made anew.
DROP INDEX audit.audit_logs_entities;
CREATE INDEX audit_logs_entities ON audit.audit_logs USING gin (entities)
    WITH (gin_pending_list_limit = 256);

-- The store's own records ------------------------------------------------------------------------

-- The actor is the role that logged in: nobody can say that he is another.
CREATE FUNCTION audit.record_event(
    event_name text, action text, target_type text, target_id text, metadata jsonb, behalf_of text
) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    microseconds bigint := (extract(epoch FROM moment) * 1000000)::bigint;
    -- RFC 9562, 5.7: a random UUID with the time in its first 48 bits, and version 7
    record_id uuid := (lpad(to_hex(microseconds / 1000), 12, '0') || '7'
        || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;
    thing text := left(target_id, 200);
    payload text;
BEGIN
    payload := jsonb_strip_nulls(jsonb_build_object(
        'record_id', record_id::text, 'action_id', record_id::text, 'phase', 'completed',
        'schema_version', '1', 'event_name', event_name, 'action', action,
        'outcome', 'success', 'occurred_at', microseconds * 1000, 'transaction', 'none',
        'actor', jsonb_build_object('id', session_user, 'type', 'user', 'verified', true,
            'source', 'database', 'on_behalf_of', left(behalf_of, 1000)),
        'target', CASE WHEN target_type IS NOT NULL THEN
            jsonb_build_object('type', target_type, 'id', thing) END,
        'metadata', metadata))::text;
    INSERT INTO audit.audit_logs (
        id, action_id, phase, occurred_at, duration_ms, event_name, action, outcome, actor_id,
        actor_type, target_type, target_id, transaction_outcome, entities, schema_version, payload,
        content_hash)
    VALUES (
        record_id, record_id::text, 'completed', moment, 0, event_name, action, 'success',
        session_user, 'user', target_type, thing, 'none',
        CASE WHEN target_type IS NULL OR thing IS NULL THEN '{}'::text[]
             ELSE ARRAY[target_type || ':' || thing] END,
        '1', payload::json, sha256(convert_to(payload, 'UTF8')));
    RETURN record_id;
END
$$;

CREATE FUNCTION audit.record_view(
    question text, asked jsonb, records bigint,
    target_type text DEFAULT NULL, target_id text DEFAULT NULL, behalf_of text DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF octet_length(asked::text) > 16384 OR octet_length(question) > 100
        OR target_type !~ '^audit_[a-z]{1,30}$' THEN
        RAISE EXCEPTION 'no view of the audit trail looks like this'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN audit.record_event('audit.viewed', 'READ', target_type, target_id,
        jsonb_build_object('question', question, 'asked', asked, 'records', records), behalf_of);
END
$$;
COMMENT ON FUNCTION audit.record_view(text, jsonb, bigint, text, text, text) IS
    'Records that somebody looked into the trail; the viewer is the role that logged in.';

CREATE FUNCTION audit.retire_partition(partition text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN audit.record_event('audit.partition.retired', 'EXECUTE', 'audit_partition', partition,
        (SELECT jsonb_build_object('partition', partition, 'lowest', content.lowest::text,
            'above', content.above::text, 'rows', content.rows, 'digest', content.digest)
         FROM audit.partition_content(partition) AS content), NULL);
END
$$;
COMMENT ON FUNCTION audit.retire_partition(text) IS
    'Records what a partition holds: the manifest that drop_partition wants, once it is sealed.';

REVOKE ALL ON FUNCTION
    audit.partition_content(text), audit.is_sealed(uuid), audit.drop_partition(text, uuid),
    audit.subtree_hash(bytea), audit.collapse_leaves(bigint, bigint),
    audit.holds_live_leaves(bytea), audit.collapsible_blocks(),
    audit.ledger_state(), audit.default_partition_months(), audit.retire_partition(text),
    audit.record_event(text, text, text, text, jsonb, text),
    audit.record_view(text, jsonb, bigint, text, text, text)
FROM PUBLIC;
