-- What a row may be is for the database to say: whoever may insert can add records, and nothing that
-- stops or misleads who reads them. Rows of before stay as they are.

-- Why a text of JSON is more than a reader can bear, NULL where it is not. Without a backslash-u, a
-- large number, or many brackets nothing can be wrong, and that is seen in a few microseconds.
CREATE FUNCTION audit.json_flaw(document text) RETURNS text
LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    has_escapes boolean := strpos(document, '\u') > 0;
    has_large boolean := document ~ '[:,[]\s*-?[0-9.]+[eE][+-]?[0-9]{3}';
    is_deep boolean := cardinality(string_to_array(document, '['))
                       + cardinality(string_to_array(document, '{')) > 256;
    octets bytea := convert_to(document, 'UTF8');
    bare text;
    found text;
BEGIN
    -- more than 4,000 digits in a row fill a whole window; a regular expression takes far longer
    FOR window_at IN 0 .. octet_length(octets) / 2000 LOOP
        IF encode(substr(octets, window_at * 2000 + 1, 64), 'escape') ~ '^[0-9.]{64}$' THEN
            has_large := true;
            EXIT;
        END IF;
    END LOOP;
    IF has_escapes THEN
        BEGIN
            PERFORM document::jsonb;  -- refuses NUL and halves of characters
        EXCEPTION WHEN data_exception OR program_limit_exceeded THEN
            RETURN 'has an escape that stands for no character, or a number beyond all bounds';
        END;
    END IF;
    IF NOT (has_large OR is_deep) THEN
        RETURN NULL;
    END IF;
    -- without texts, and with one kind of bracket
    bare := translate(regexp_replace(document, '"(?:[^"\\]|\\.)*"', '', 'g'), '{}', '[]');
    IF has_large THEN
        BEGIN
            FOR found IN
                SELECT m[1] FROM regexp_matches(
                    bare, '([0-9.]+[eE][+-]?[0-9]{3,}|[0-9.]{255,}(?:[eE][+-]?[0-9]+)?)', 'g') AS m
            LOOP
                IF strpos(lower(found), 'e') > 0 THEN
                    PERFORM found::float8;
                ELSIF length(found) > 4000 THEN
                    RETURN 'has a number of more than 4,000 digits';
                END IF;
            END LOOP;
        EXCEPTION WHEN data_exception THEN
            RETURN 'has a number beyond what a double can hold';
        END;
    END IF;
    IF is_deep THEN
        bare := regexp_replace(bare, '[^][]', '', 'g');
        FOR level IN 1 .. 256 LOOP
            EXIT WHEN bare = '';
            bare := replace(bare, '[]', '');
        END LOOP;
        IF bare <> '' THEN
            RETURN 'is nested deeper than 256 levels';
        END IF;
    END IF;
    RETURN NULL;
END
$$;
COMMENT ON FUNCTION audit.json_flaw(text) IS
    'Why a text of JSON is more than readers can bear: escapes, numbers, depth; NULL where it is not.';

-- What of a row its leaf does not cover, as it is on the wire: settings of a session change nothing.
CREATE FUNCTION audit.columns_hash(stored audit.audit_logs) RETURNS bytea
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp SET client_encoding = 'UTF8' AS $$
    SELECT sha256(record_send(ROW(
        stored.action_id, stored.phase, stored.tenant_id, stored.occurred_at, stored.duration_ms,
        stored.event_name, stored.action, stored.outcome, stored.actor_id, stored.actor_type,
        stored.actor_role, stored.target_type, stored.target_id, stored.source_address,
        stored.user_agent, stored.session_id, stored.error_type, stored.service_name,
        stored.http_method, stored.http_route, stored.url_path, stored.status_code,
        stored.request_id, stored.trace_id, stored.span_id, stored.transaction_outcome,
        stored.entities, stored.producer_id, stored.sequence_number, stored.schema_version,
        stored.content_hash, stored.received_by, stored.received_hash)))
$$;
COMMENT ON FUNCTION audit.columns_hash(audit.audit_logs) IS
    'SHA-256 of the columns beside payload, id and time: whether they are as they were inserted.';

ALTER TABLE audit.ledger_queue ADD COLUMN columns_hash bytea;
COMMENT ON COLUMN audit.ledger_queue.columns_hash IS
    'Of the row as it was inserted; NULL for one that an earlier version queued.';

-- For what waits already this is the first look.
ALTER TABLE audit.ledger_queue DISABLE TRIGGER refuse_change;
UPDATE audit.ledger_queue q SET columns_hash = audit.columns_hash(a)
FROM audit.audit_logs a WHERE a.id = q.id AND a.tenant_id = q.tenant_id;
ALTER TABLE audit.ledger_queue ENABLE ALWAYS TRIGGER refuse_change;

CREATE TABLE audit.ledger_flaws (
    first        bigint PRIMARY KEY CHECK (first >= 0),
    note         text NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.ledger_flaws IS
    'Rows of a block, by its first leaf, that were inserted malformed and not changed since: '
    'a signed note that the sealer wrote when it sealed them.';
SELECT audit.guard('audit.ledger_flaws');

CREATE OR REPLACE FUNCTION audit.queue_for_sealing() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET client_encoding = 'UTF8' AS $$
DECLARE
    -- the clock of a producer may be a little ahead, and no more
    too_late uuid := audit.uuid_at(clock_timestamp() + interval '1 day');
    faulty uuid;
    flaw text;
BEGIN
    SELECT i.id, checked.flaw INTO faulty, flaw
    FROM inserted i CROSS JOIN LATERAL (SELECT CASE
        WHEN i.id >= too_late
            THEN 'id: its time is more than a day ahead of the database''s clock'
        WHEN NOT (i.occurred_at > '0001-01-01 00:00:00+00'::timestamptz
                  AND i.occurred_at < '9999-12-31 23:59:59.999999+00'::timestamptz)
            THEN 'occurred_at: is not within the years 1 to 9999'
        WHEN NOT (i.duration_ms > '-Infinity'::float8 AND i.duration_ms < 'Infinity'::float8)
            THEN 'duration_ms: is not finite'
        WHEN NOT (i.sequence_number BETWEEN 0 AND 9007199254740992)
            THEN 'sequence_number: is not within 0 to 2^53'
        WHEN array_ndims(i.entities) > 1 OR array_lower(i.entities, 1) <> 1
             OR array_position(i.entities, NULL) IS NOT NULL
            THEN 'entities: is not a plain list of texts'
        WHEN pg_column_size(i.entities) > 16777216 THEN 'entities: is larger than 16 MiB'
        WHEN octet_length(i.producer_id) > 1024 THEN 'producer_id: is longer than 1,024 bytes'
        WHEN octet_length(i.action_id) + octet_length(i.phase) + octet_length(i.tenant_id)
             + octet_length(i.event_name) + octet_length(i.action) + octet_length(i.outcome)
             + octet_length(i.actor_id) + octet_length(i.actor_type)
             + octet_length(i.transaction_outcome) + octet_length(i.schema_version)
             + coalesce(octet_length(i.actor_role), 0) + coalesce(octet_length(i.target_type), 0)
             + coalesce(octet_length(i.target_id), 0) + coalesce(octet_length(i.source_address), 0)
             + coalesce(octet_length(i.user_agent), 0) + coalesce(octet_length(i.session_id), 0)
             + coalesce(octet_length(i.error_type), 0) + coalesce(octet_length(i.service_name), 0)
             + coalesce(octet_length(i.http_method), 0) + coalesce(octet_length(i.http_route), 0)
             + coalesce(octet_length(i.url_path), 0) + coalesce(octet_length(i.request_id), 0)
             + coalesce(octet_length(i.trace_id), 0) + coalesce(octet_length(i.span_id), 0)
             + coalesce(octet_length(i.received_by), 0) > 4194304
            THEN 'texts: are longer than 4 MiB together'
        WHEN octet_length(i.payload::text) > 33554432 THEN 'payload: is longer than 32 MiB'
        WHEN json_typeof(i.payload) <> 'object' THEN 'payload: is no JSON object'
        WHEN i.content_hash <> sha256(convert_to(i.payload::text, 'UTF8'))
            THEN 'content_hash: is not the SHA-256 of the payload'
        -- a look that costs a few microseconds, and finds every suspicion of json_flaw
        WHEN octet_length(i.payload::text) > 4000
             OR i.payload::text ~ '\\u|[:,[]\s*-?[0-9.]+[eE][+-]?[0-9]{3}'
             OR cardinality(string_to_array(i.payload::text, '['))
                + cardinality(string_to_array(i.payload::text, '{')) > 256
            THEN 'payload: ' || audit.json_flaw(i.payload::text)
    END AS flaw OFFSET 0) AS checked
    WHERE checked.flaw IS NOT NULL LIMIT 1;
    IF flaw IS NOT NULL THEN
        -- of class 23, by which an application knows that the record is at fault, not the store
        RAISE EXCEPTION 'audit record % is refused: %', faulty, flaw
            USING ERRCODE = 'check_violation', SCHEMA = 'audit', TABLE = 'audit_logs',
                  COLUMN = split_part(flaw, ':', 1),
                  CONSTRAINT = 'well_formed_' || split_part(flaw, ':', 1),
                  HINT = 'A row is what docs/ledger.md says of one. otel-audit keeps what is refused '
                         'in audit.quarantine.';
    END IF;
    INSERT INTO audit.ledger_queue (id, tenant_id, content_hash, recorded_at, columns_hash)
    SELECT id, tenant_id, content_hash, recorded_at,
        -- audit.columns_hash, written out: a call for each row would cost more than all else here
        sha256(record_send(ROW(
        i.action_id, i.phase, i.tenant_id, i.occurred_at, i.duration_ms,
        i.event_name, i.action, i.outcome, i.actor_id, i.actor_type,
        i.actor_role, i.target_type, i.target_id, i.source_address,
        i.user_agent, i.session_id, i.error_type, i.service_name,
        i.http_method, i.http_route, i.url_path, i.status_code,
        i.request_id, i.trace_id, i.span_id, i.transaction_outcome,
        i.entities, i.producer_id, i.sequence_number, i.schema_version,
        i.content_hash, i.received_by, i.received_hash)))
    FROM inserted i;
    RETURN NULL;
END
$$;

-- A digest that is not of the text would keep the true text out.
ALTER TABLE audit.quarantine
    ADD CONSTRAINT quarantine_hash
        CHECK (content_hash = sha256(convert_to(received, 'UTF8'))) NOT VALID,
    ADD CONSTRAINT quarantine_texts
        CHECK (coalesce(octet_length(record_id), 0) <= 8192 AND octet_length(reason) <= 8192
               AND octet_length(received) <= 268435456) NOT VALID;

-- What was asked is recorded whatever it is: as text, where readers could not bear it as JSON.
CREATE OR REPLACE FUNCTION audit.record_view(
    question text, asked jsonb, records bigint,
    target_type text DEFAULT NULL, target_id text DEFAULT NULL, behalf_of text DEFAULT NULL
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF octet_length(asked::text) > 16384 OR octet_length(question) > 100
        OR target_type !~ '^audit_[a-z]{1,30}$' THEN
        RAISE EXCEPTION 'no view of the audit trail looks like this'
            USING ERRCODE = 'invalid_parameter_value',
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

-- Who seals ------------------------------------------------------------------------------------------

-- A lock on a table, which only its owner can take, and this function for the sealer: an advisory
-- lock could be taken, and kept, by whoever can connect. It ends with the transaction, so also behind
-- a pooler. The second lock keeps collapsing out.
CREATE FUNCTION audit.try_to_lead() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE audit.ledger_log IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    LOCK TABLE audit.ledger_blocks IN ROW EXCLUSIVE MODE NOWAIT;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION audit.try_to_lead() IS
    'Makes this transaction the one that seals, if no other one is.';

CREATE FUNCTION audit.sealing_holder(
    OUT pid integer, OUT role name, OUT application text, OUT seconds double precision
) RETURNS SETOF record
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT l.pid, a.usename, a.application_name,
           extract(epoch FROM clock_timestamp() - a.xact_start)::float8
    FROM pg_locks l JOIN pg_stat_activity a ON a.pid = l.pid
    WHERE l.granted AND l.locktype = 'relation' AND l.pid <> pg_backend_pid()
      AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND (l.relation = 'audit.ledger_log'::regclass AND l.mode IN (
               'ShareUpdateExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
               'AccessExclusiveLock')
           OR l.relation = 'audit.ledger_blocks'::regclass AND l.mode IN (
               'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock'))
    ORDER BY a.xact_start LIMIT 5;
END;
COMMENT ON FUNCTION audit.sealing_holder() IS
    'Who keeps others from sealing now: the sealer at work, or whoever holds its lock.';

REVOKE ALL ON FUNCTION audit.json_flaw(text), audit.columns_hash(audit.audit_logs),
    audit.try_to_lead(), audit.sealing_holder() FROM PUBLIC;

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
SELECT set_config('role', current_setting('otel_audit.migrates_as'), true)
WHERE current_user <> current_setting('otel_audit.migrates_as');
