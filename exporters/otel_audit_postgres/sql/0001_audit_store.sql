-- The audit store: append-only records, partitioned by month, guarded against every change.
-- Everything is named in full, so that no search_path and no temporary table can stand in its way.

CREATE TABLE audit.schema_version (
    version     integer PRIMARY KEY,
    name        text NOT NULL,
    applied_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    applied_by  text NOT NULL DEFAULT session_user
);
COMMENT ON TABLE audit.schema_version IS 'Which migrations were applied, by whom, and when.';

CREATE TABLE audit.audit_logs (
    id                   uuid NOT NULL,
    action_id            text NOT NULL,
    phase                text NOT NULL,
    tenant_id            text NOT NULL DEFAULT '',
    recorded_at          timestamptz NOT NULL DEFAULT clock_timestamp(),
    occurred_at          timestamptz NOT NULL,
    duration_ms          double precision NOT NULL,
    event_name           text NOT NULL,
    action               text NOT NULL,
    outcome              text NOT NULL,
    actor_id             text NOT NULL,
    actor_type           text NOT NULL,
    actor_role           text,
    target_type          text,
    target_id            text,
    source_address       text,
    user_agent           text,
    session_id           text,
    error_type           text,
    service_name         text,
    http_method          text,
    http_route           text,
    url_path             text,
    status_code          integer,
    request_id           text,
    trace_id             text,
    span_id              text,
    transaction_outcome  text NOT NULL,
    entities             text[] NOT NULL DEFAULT '{}',
    producer_id          text,
    sequence_number      bigint,
    schema_version       text NOT NULL,
    payload              json NOT NULL,
    content_hash         bytea NOT NULL CHECK (octet_length(content_hash) = 32),
    PRIMARY KEY (id, tenant_id)
) PARTITION BY RANGE (id);

COMMENT ON TABLE audit.audit_logs IS
    'The audit trail. payload is the whole record, as the exact text that content_hash covers; '
    'the other columns are projections of it, for searching.';
COMMENT ON COLUMN audit.audit_logs.id IS 'UUIDv7 of the record: its first 48 bits are the time.';
COMMENT ON COLUMN audit.audit_logs.recorded_at IS 'When the database took it; the database''s own.';
COMMENT ON COLUMN audit.audit_logs.content_hash IS 'SHA-256 of the payload''s text in UTF-8.';
COMMENT ON COLUMN audit.audit_logs.entities IS 'What it is about: order:123.';

-- time goes by the primary key (UUIDv7), or by these two: rows arrive nearly in their order
CREATE INDEX audit_logs_time ON audit.audit_logs USING brin (occurred_at, recorded_at);
CREATE INDEX audit_logs_actor ON audit.audit_logs (actor_id, id);
CREATE INDEX audit_logs_tenant ON audit.audit_logs (tenant_id, id);
CREATE INDEX audit_logs_event ON audit.audit_logs (event_name, id);
CREATE INDEX audit_logs_target ON audit.audit_logs (target_type, target_id, id)
    WHERE target_id IS NOT NULL;
CREATE INDEX audit_logs_request ON audit.audit_logs (request_id) WHERE request_id IS NOT NULL;
CREATE INDEX audit_logs_trace ON audit.audit_logs (trace_id) WHERE trace_id IS NOT NULL;
CREATE INDEX audit_logs_entities ON audit.audit_logs USING gin (entities);

CREATE TABLE audit.quarantine (
    content_hash  bytea PRIMARY KEY CHECK (octet_length(content_hash) = 32),
    record_id     text,
    received      text NOT NULL,
    reason        text NOT NULL,
    recorded_at   timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.quarantine IS
    'Records that audit_logs could not take, as received, each with the reason.';

-- Guards ------------------------------------------------------------------------------------------

CREATE FUNCTION audit.refuse_change() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RAISE EXCEPTION '% on %.% is refused: the audit trail is append-only',
        TG_OP, TG_TABLE_SCHEMA, TG_TABLE_NAME
        USING ERRCODE = 'insufficient_privilege',
              HINT = 'Record a correction as a new event; what was recorded stays.';
END
$$;

-- Statement triggers are not inherited and TRUNCATE knows no others: every partition gets its own.
CREATE FUNCTION audit.guard(relation regclass) RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    EXECUTE format(
        'CREATE TRIGGER refuse_change BEFORE UPDATE OR DELETE OR TRUNCATE ON %s '
        'FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change()', relation);
    -- ALWAYS: else session_replication_role = replica and logical replication walk past it
    EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER refuse_change', relation);
END
$$;

SELECT audit.guard('audit.audit_logs');
SELECT audit.guard('audit.quarantine');

-- A row trigger is cloned to every partition, also to one that somebody attaches by hand.
CREATE TRIGGER refuse_row_change BEFORE UPDATE OR DELETE ON audit.audit_logs
    FOR EACH ROW EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.audit_logs ENABLE ALWAYS TRIGGER refuse_row_change;

-- Partitions --------------------------------------------------------------------------------------

CREATE FUNCTION audit.uuid_at(moment timestamptz) RETURNS uuid
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
RETURN (lpad(to_hex(floor(extract(epoch FROM moment) * 1000)::bigint), 12, '0')
        || repeat('0', 20))::uuid;
COMMENT ON FUNCTION audit.uuid_at(timestamptz) IS
    'The smallest UUIDv7 of that time, for conditions on audit_logs.id.';

-- What belongs to no month's partition is kept here, and reported: a record is never refused.
CREATE TABLE audit.audit_logs_default PARTITION OF audit.audit_logs DEFAULT;
SELECT audit.guard('audit.audit_logs_default');

CREATE FUNCTION audit.make_partition(
    month date, OUT partition text, OUT state text, OUT detail text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_first_day date := (date_trunc('month', month) + interval '1 month')::date;
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
    -- ATTACH, unlike CREATE TABLE … PARTITION OF, does not stop those who are inserting
    EXECUTE format(
        'CREATE TABLE audit.%I (LIKE audit.audit_logs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
        partition);
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

CREATE FUNCTION audit.ensure_partitions(ahead integer DEFAULT 2)
RETURNS TABLE (partition text, state text, detail text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    this_month date := date_trunc('month', now() AT TIME ZONE 'UTC')::date;
BEGIN
    -- from last month on, for what is delivered late
    FOR away IN -1 .. least(greatest(ahead, 0), 12) LOOP
        RETURN QUERY SELECT made.partition, made.state, made.detail
            FROM audit.make_partition((this_month + make_interval(months => away))::date) AS made;
    END LOOP;
END
$$;
COMMENT ON FUNCTION audit.ensure_partitions(integer) IS
    'Makes the partitions of last month, this month and the months ahead; says what became of each.';

CREATE FUNCTION audit.exceptional_rows(OUT in_default bigint, OUT in_quarantine bigint)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT (SELECT count(*) FROM audit.audit_logs_default),
           (SELECT count(*) FROM audit.quarantine);
END;
COMMENT ON FUNCTION audit.exceptional_rows() IS
    'How many rows ask for attention, without showing them.';

REVOKE ALL ON FUNCTION
    audit.refuse_change(), audit.guard(regclass), audit.make_partition(date),
    audit.ensure_partitions(integer), audit.exceptional_rows()
FROM PUBLIC;
