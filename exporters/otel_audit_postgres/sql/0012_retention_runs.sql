-- Months go by a policy, archived first; what is held stays; what was done is a record.

-- Policy -------------------------------------------------------------------------------------------

CREATE TABLE audit.retention_policies (
    step         integer PRIMARY KEY,
    policy       jsonb NOT NULL,
    record_id    uuid NOT NULL,
    recorded_by  text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.retention_policies IS
    'The retention policies that were in force; the last step counts. Days are counted from the end '
    'of a record''s month.';
SELECT audit.guard('audit.retention_policies');

CREATE FUNCTION audit.set_retention_policy(policy jsonb) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before audit.retention_policies;
    record_id uuid;
BEGIN
    LOCK TABLE audit.retention_policies IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO before FROM audit.retention_policies p ORDER BY p.step DESC LIMIT 1;
    IF before.policy = policy THEN
        RETURN NULL;
    END IF;
    IF jsonb_typeof(policy -> 'floor') IS DISTINCT FROM 'number'
        OR (policy ->> 'floor')::numeric NOT BETWEEN 0 AND 36500
        OR jsonb_typeof(policy -> 'rules') IS DISTINCT FROM 'array'
        OR octet_length(policy::text) > 262144 THEN
        RAISE EXCEPTION 'no retention policy looks like this: it has a floor and rules'
            USING ERRCODE = 'OA002';
    END IF;
    record_id := audit.record_event('audit.retention.changed', 'UPDATE', 'audit_policy', 'retention',
        jsonb_build_object('policy', policy, 'before', before.policy), NULL);
    INSERT INTO audit.retention_policies (step, policy, record_id)
    VALUES (coalesce(before.step, 0) + 1, policy, record_id);
    RETURN record_id;
END
$$;
COMMENT ON FUNCTION audit.set_retention_policy(jsonb) IS
    'Puts a retention policy in force; a record tells what it was and is. NULL: it was already.';

CREATE FUNCTION audit.retention_policy() RETURNS jsonb
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT p.policy FROM audit.retention_policies p ORDER BY p.step DESC LIMIT 1;
END;

CREATE FUNCTION audit.pattern_matches(pattern text, value text) RETURNS boolean
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT pattern IS NULL OR value = pattern
        OR right(pattern, 1) = '*' AND starts_with(value, left(pattern, -1));
END;

CREATE FUNCTION audit.partition_month(partition text) RETURNS date
LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT to_date(right(partition, 7), 'YYYY_MM');
END;

-- Until when the policy in force keeps what is in a partition; NULL where there is no policy.
CREATE FUNCTION audit.kept_until(partition text) RETURNS timestamptz
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    policy jsonb := audit.retention_policy();
    days integer;
BEGIN
    IF policy IS NULL THEN
        RETURN NULL;
    END IF;
    EXECUTE format(
        'SELECT max(coalesce((SELECT (r.rule ->> ''min'')::integer '
        'FROM jsonb_array_elements($1 -> ''rules'') WITH ORDINALITY AS r (rule, place) '
        'WHERE r.rule ? ''min'' AND audit.pattern_matches(r.rule ->> ''tenant'', g.tenant_id) '
        'AND audit.pattern_matches(r.rule ->> ''event'', g.event_name) '
        'AND audit.pattern_matches(r.rule ->> ''action'', g.action) '
        'AND (r.rule ->> ''level'' IS NULL OR r.rule ->> ''level'' = g.level) '
        'ORDER BY r.place LIMIT 1), 0)) '
        'FROM (SELECT DISTINCT tenant_id, event_name, action, '
        'CASE WHEN payload::text !~ ''\\u(0000|[dD][89a-fA-F])'' THEN payload ->> ''level'' END '
        'AS level FROM audit.%I) AS g', partition)
    INTO days USING policy;
    RETURN ((audit.partition_month(partition) + interval '1 month') AT TIME ZONE 'UTC')
        + make_interval(days => greatest(coalesce(days, 0), (policy ->> 'floor')::integer));
END
$$;

-- Holds --------------------------------------------------------------------------------------------

CREATE TABLE audit.holds (
    number     bigint PRIMARY KEY,
    id         uuid NOT NULL UNIQUE DEFAULT gen_random_uuid(),
    matter     text NOT NULL CHECK (matter <> '' AND octet_length(matter) <= 1024),
    reason     text NOT NULL CHECK (reason <> '' AND octet_length(reason) <= 8192),
    tenant     text,
    actor      text,
    entity     text,
    event      text,
    since      timestamptz,
    until      timestamptz,
    placed_by  text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    CHECK (since < until),
    CHECK (num_nonnulls(tenant, actor, entity, event, since, until) > 0)
);
COMMENT ON TABLE audit.holds IS
    'Legal holds: what all the conditions of one apply to is not deleted while it is not released.';
CREATE TABLE audit.hold_releases (
    hold_id      uuid PRIMARY KEY,
    reason       text NOT NULL CHECK (reason <> '' AND octet_length(reason) <= 8192),
    released_by  text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE audit.hold_overrides (
    hold_id        uuid NOT NULL,
    target         text NOT NULL CHECK (target <> '' AND octet_length(target) <= 1024),
    reason         text NOT NULL CHECK (reason <> '' AND octet_length(reason) <= 8192),
    overridden_by  text NOT NULL DEFAULT session_user,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (hold_id, target)
);
COMMENT ON TABLE audit.hold_overrides IS
    'What may go in spite of a hold: a partition, an object of the archive, or a subject.';
SELECT audit.guard('audit.holds');
SELECT audit.guard('audit.hold_releases');
SELECT audit.guard('audit.hold_overrides');

CREATE FUNCTION audit.active_holds() RETURNS SETOF audit.holds
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT h.* FROM audit.holds h
    WHERE NOT EXISTS (SELECT FROM audit.hold_releases r WHERE r.hold_id = h.id) ORDER BY h.number;
END;

-- One at a time, so that the numbers are in the order in which holds can be seen.
CREATE FUNCTION audit.place_hold(
    matter text, reason text, tenant text, actor text, entity text, event text,
    since timestamptz, until timestamptz
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s' AS $$
DECLARE
    placed audit.holds;
BEGIN
    LOCK TABLE audit.holds IN SHARE ROW EXCLUSIVE MODE;
    INSERT INTO audit.holds (number, matter, reason, tenant, actor, entity, event, since, until)
    VALUES ((SELECT coalesce(max(h.number), 0) + 1 FROM audit.holds h), place_hold.matter,
            place_hold.reason, place_hold.tenant, place_hold.actor, place_hold.entity,
            place_hold.event, place_hold.since, place_hold.until)
    RETURNING * INTO placed;
    -- the record names the matter; whom it is about is in audit.holds, for those who may read that
    PERFORM audit.record_event('audit.hold.placed', 'CREATE', 'audit_hold', placed.id::text,
        jsonb_build_object('matter', placed.matter, 'conditions_sha256', encode(sha256(convert_to(
            jsonb_build_array(placed.tenant, placed.actor, placed.entity, placed.event,
                placed.since, placed.until)::text, 'UTF8')), 'hex')), NULL);
    RETURN placed.id;
END
$$;

CREATE FUNCTION audit.release_hold(hold uuid, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NOT EXISTS (SELECT FROM audit.active_holds() h WHERE h.id = hold) THEN
        RAISE EXCEPTION 'there is no active hold %', hold USING ERRCODE = 'OA002';
    END IF;
    INSERT INTO audit.hold_releases (hold_id, reason) VALUES (hold, release_hold.reason);
    PERFORM audit.record_event('audit.hold.released', 'DELETE', 'audit_hold', hold::text,
        jsonb_build_object('reason', release_hold.reason), NULL);
EXCEPTION WHEN unique_violation THEN
    RAISE EXCEPTION 'there is no active hold %', hold USING ERRCODE = 'OA002';
END
$$;

CREATE FUNCTION audit.override_hold(hold uuid, target text, reason text) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held audit.holds;
BEGIN
    SELECT * INTO held FROM audit.active_holds() h WHERE h.id = hold;
    IF held.id IS NULL THEN
        RAISE EXCEPTION 'there is no active hold %', hold USING ERRCODE = 'OA002';
    END IF;
    -- two persons: who wants something kept does not also say that it may go
    IF held.placed_by = session_user THEN
        RAISE EXCEPTION 'overriding hold % is refused: % placed it, and another role must', hold,
            session_user USING ERRCODE = 'OA001',
            HINT = 'Who placed a hold releases it; an override is by somebody else.';
    END IF;
    INSERT INTO audit.hold_overrides (hold_id, target, reason)
    VALUES (hold, override_hold.target, override_hold.reason) ON CONFLICT DO NOTHING;
    PERFORM audit.record_event('audit.hold.overridden', 'UPDATE', 'audit_hold', hold::text,
        jsonb_build_object('target', override_hold.target, 'reason', override_hold.reason), NULL);
END
$$;

CREATE FUNCTION audit.hold_overridden(hold uuid, target text) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM audit.hold_overrides o
                   WHERE o.hold_id = hold AND o.target = hold_overridden.target);
END;

-- The first hold, of those placed after a number, that applies to a row of a partition.
CREATE FUNCTION audit.hold_on(partition text, after_number bigint) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held audit.holds;
    found boolean;
BEGIN
    FOR held IN SELECT * FROM audit.active_holds() h WHERE h.number > after_number LOOP
        IF audit.hold_overridden(held.id, partition) THEN
            CONTINUE;
        END IF;
        EXECUTE format(
            'SELECT EXISTS (SELECT FROM audit.%I l WHERE ($1 IS NULL OR l.tenant_id = $1) '
            'AND ($2 IS NULL OR l.actor_id = $2) AND ($3 IS NULL OR l.entities @> ARRAY[$3]) '
            'AND ($4 IS NULL OR audit.pattern_matches($4, l.event_name)) '
            'AND ($5 IS NULL OR l.occurred_at >= $5) AND ($6 IS NULL OR l.occurred_at < $6))',
            partition)
        INTO found USING held.tenant, held.actor, held.entity, held.event, held.since, held.until;
        IF found THEN
            RETURN format('hold %s (matter %s)', held.id, held.matter);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- Archives -----------------------------------------------------------------------------------------

CREATE TABLE audit.archives (
    step         integer PRIMARY KEY,
    month        date NOT NULL CHECK (extract(day FROM month) = 1),
    manifest     text NOT NULL CHECK (octet_length(manifest) <= 1000000),
    digest       bytea NOT NULL CHECK (digest = sha256(convert_to(manifest, 'UTF8'))),
    rows         bigint NOT NULL CHECK (rows >= 0),
    record_id    uuid NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.archives IS
    'Months that were archived: each manifest, a signed note that names the one before; of two for '
    'one month the later counts.';
SELECT audit.guard('audit.archives');

CREATE TABLE audit.archive_removals (
    key          text PRIMARY KEY,
    step         integer NOT NULL,
    record_id    uuid NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.archive_removals IS
    'Objects of the archive that were due to go: told here first, then deleted.';
SELECT audit.guard('audit.archive_removals');

CREATE FUNCTION audit.record_archive(month date, manifest text, rows bigint, objects jsonb)
RETURNS integer
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before audit.archives;
    digest bytea := sha256(convert_to(manifest, 'UTF8'));
    record_id uuid;
BEGIN
    LOCK TABLE audit.archives IN SHARE ROW EXCLUSIVE MODE;
    SELECT * INTO before FROM audit.archives a ORDER BY a.step DESC LIMIT 1;
    IF before.digest = digest THEN
        RETURN before.step;
    END IF;
    IF strpos(manifest, E'\nprevious: ' || coalesce(encode(before.digest, 'hex'), 'none') || E'\n')
        = 0 THEN
        RAISE EXCEPTION 'the manifest of % does not name the one before it', month
            USING ERRCODE = 'OA001', HINT = 'Another run archived meanwhile: run it again.';
    END IF;
    record_id := audit.record_event('audit.month.archived', 'CREATE', 'audit_archive',
        to_char(month, 'YYYY-MM'), jsonb_build_object('step', coalesce(before.step, 0) + 1,
            'manifest_sha256', encode(digest, 'hex'), 'rows', rows, 'objects', objects), NULL);
    INSERT INTO audit.archives (step, month, manifest, digest, rows, record_id)
    VALUES (coalesce(before.step, 0) + 1, record_archive.month, record_archive.manifest,
            digest, record_archive.rows, record_id);
    RETURN coalesce(before.step, 0) + 1;
END
$$;
COMMENT ON FUNCTION audit.record_archive(date, text, bigint, jsonb) IS
    'Tells in the trail that a month was archived, by its manifest, which must name the one before.';

-- holds_seen: up to which hold the caller has looked into the object itself
CREATE FUNCTION audit.record_archive_removal(step integer, key text, holds_seen bigint) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    archive audit.archives;
    line text[];
    held audit.holds;
    record_id uuid;
BEGIN
    -- none is placed until this is told
    LOCK TABLE audit.holds IN SHARE MODE;
    SELECT r.record_id INTO record_id FROM audit.archive_removals r
    WHERE r.key = record_archive_removal.key;
    IF record_id IS NOT NULL THEN
        RETURN record_id;
    END IF;
    SELECT * INTO archive FROM audit.archives a WHERE a.step = record_archive_removal.step;
    SELECT string_to_array(one, ' ') INTO line
    FROM unnest(string_to_array(archive.manifest, E'\n')) AS one
    WHERE split_part(one, ' ', 1) = 'object:' AND split_part(one, ' ', 2) = key;
    IF line IS NULL THEN
        RAISE EXCEPTION 'manifest % names no object %', step, key USING ERRCODE = 'OA002';
    END IF;
    IF line[10] = '-' OR line[10]::date > (now() AT TIME ZONE 'UTC')::date THEN
        RAISE EXCEPTION 'removing % is refused: it is kept until %', key,
            CASE line[10] WHEN '-' THEN 'further notice' ELSE line[10] END
            USING ERRCODE = 'OA001';
    END IF;
    FOR held IN SELECT * FROM audit.active_holds() h WHERE h.number > holds_seen
        AND coalesce(h.since < (archive.month + interval '1 month') AT TIME ZONE 'UTC', true)
        AND coalesce(h.until > archive.month::timestamp AT TIME ZONE 'UTC', true)
        AND NOT audit.hold_overridden(h.id, key)
    LOOP
        RAISE EXCEPTION 'removing % is refused: hold % (matter %) may apply to it', key, held.id,
            held.matter USING ERRCODE = 'OA001';
    END LOOP;
    record_id := audit.record_event('audit.archive.removed', 'DELETE', 'audit_archive',
        to_char(archive.month, 'YYYY-MM'), jsonb_build_object('key', key, 'step', step,
            'sha256', line[6], 'rows', line[4]::bigint), NULL);
    INSERT INTO audit.archive_removals (key, step, record_id)
    VALUES (record_archive_removal.key, record_archive_removal.step,
            record_id);
    RETURN record_id;
END
$$;

-- Retiring and dropping ----------------------------------------------------------------------------

CREATE TABLE audit.retirements (
    record_id    uuid PRIMARY KEY,
    partition    text NOT NULL,
    lowest       uuid NOT NULL,
    above        uuid NOT NULL,
    rows         bigint NOT NULL,
    digest       text NOT NULL,
    size         bigint NOT NULL,
    holds_seen   bigint NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.retirements IS
    'What a partition held when it was retired, with so many leaves in the log, and by which record.';
SELECT audit.guard('audit.retirements');

-- Whether a row came into a stretch of ids since the log had so many leaves: whatever was inserted
-- is in the queue, in the same transaction, or in a later block. No row is read for it.
CREATE FUNCTION audit.grew_since(lowest uuid, above uuid, size bigint) RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT EXISTS (SELECT FROM audit.ledger_queue q
                   WHERE q.id >= grew_since.lowest AND q.id < grew_since.above)
        OR EXISTS (
            SELECT FROM audit.ledger_blocks b,
                generate_series(0, octet_length(b.ids) / 16 - 1) AS n,
                LATERAL (SELECT substr(b.ids, n * 16 + 1, 16) AS id) AS leaf
            WHERE b.first >= grew_since.size AND b.lowest < grew_since.above
              AND b.highest >= grew_since.lowest
              AND leaf.id >= uuid_send(grew_since.lowest)
              AND leaf.id < uuid_send(grew_since.above));
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
    -- by quarters of an hour first: one value cannot hold all of a large month
    EXECUTE format(
        'SELECT coalesce(sum(part.rows), 0)::bigint, '
        'encode(sha256(coalesce(string_agg(part.digest, '''' ORDER BY part.begin), '''')), ''hex'') '
        'FROM (SELECT left(id::text, 8) AS begin, count(*) AS rows, '
        'sha256(string_agg(uuid_send(id) || content_hash '
        '|| int8send((extract(epoch FROM recorded_at) * 1000000)::bigint), '''' '
        'ORDER BY id, tenant_id)) AS digest FROM audit.%I GROUP BY 1) AS part', partition)
    INTO rows, digest;
END
$$;
COMMENT ON FUNCTION audit.partition_content(text) IS
    'Bounds, rows, and a SHA-256 over those of each stretch of ids that begin alike (8 digits): over '
    'id, content hash and recorded_at of each row in their order.';

CREATE OR REPLACE FUNCTION audit.retire_partition(partition text) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    -- first: whatever comes after these were read is found when the partition is to be dropped
    leaves bigint := (SELECT coalesce(max(c.size), 0) FROM audit.ledger_checkpoints c);
    seen bigint := (SELECT coalesce(max(h.number), 0) FROM audit.holds h);
    content record;
    kept timestamptz;
    held text;
    record_id uuid;
BEGIN
    content := audit.partition_content(partition);
    kept := audit.kept_until(partition);
    IF kept > now() THEN
        RAISE EXCEPTION 'retiring % is refused: by the retention policy it is kept until %',
            partition, to_char(kept AT TIME ZONE 'UTC', 'YYYY-MM-DD') USING ERRCODE = 'OA001';
    END IF;
    held := audit.hold_on(partition, 0);
    IF held IS NOT NULL THEN
        RAISE EXCEPTION 'retiring % is refused: % applies to it', partition, held
            USING ERRCODE = 'OA001';
    END IF;
    record_id := audit.record_event('audit.partition.retired', 'EXECUTE', 'audit_partition',
        partition, jsonb_build_object('partition', partition, 'lowest', content.lowest::text,
            'above', content.above::text, 'rows', content.rows, 'digest', content.digest), NULL);
    INSERT INTO audit.retirements
        (record_id, partition, lowest, above, rows, digest, size, holds_seen)
    VALUES (record_id, retire_partition.partition, content.lowest, content.above,
            content.rows, content.digest, leaves, seen);
    RETURN record_id;
END
$$;

CREATE FUNCTION audit.retired_rows(manifest uuid) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT r.rows FROM audit.retirements r WHERE r.record_id = manifest;
END;

-- Who may run it holds this lock, for as long as it takes.
CREATE FUNCTION audit.try_to_retain() RETURNS boolean
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE audit.retirements IN SHARE UPDATE EXCLUSIVE MODE NOWAIT;
    RETURN true;
EXCEPTION WHEN lock_not_available THEN
    RETURN false;
END
$$;
COMMENT ON FUNCTION audit.try_to_retain() IS
    'Makes this transaction the one that retires months, if no other one is.';

-- Restored rows ------------------------------------------------------------------------------------

CREATE TABLE audit.restored_logs (LIKE audit.audit_logs INCLUDING DEFAULTS);
ALTER TABLE audit.restored_logs ADD COLUMN month date NOT NULL,
    ADD PRIMARY KEY (id, tenant_id);
COMMENT ON TABLE audit.restored_logs IS
    'Archived months, for some days again to be read; the trail itself is the archive.';
CREATE INDEX restored_logs_month ON audit.restored_logs (month);
CREATE INDEX restored_logs_actor ON audit.restored_logs (actor_id, id);
CREATE INDEX restored_logs_entities ON audit.restored_logs USING gin (entities);
CREATE TRIGGER refuse_change BEFORE UPDATE OR TRUNCATE ON audit.restored_logs
    FOR EACH STATEMENT EXECUTE FUNCTION audit.refuse_change();
ALTER TABLE audit.restored_logs ENABLE ALWAYS TRIGGER refuse_change;

CREATE TABLE audit.restorations (
    month        date NOT NULL,
    until        timestamptz NOT NULL,
    rows         bigint NOT NULL,
    record_id    uuid PRIMARY KEY,
    restored_by  text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
SELECT audit.guard('audit.restorations');

CREATE FUNCTION audit.record_restoration(month date, days integer, rows bigint) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    record_id uuid;
BEGIN
    IF days NOT BETWEEN 1 AND 90 THEN
        RAISE EXCEPTION 'a month is restored for 1 to 90 days' USING ERRCODE = 'OA002';
    END IF;
    record_id := audit.record_event('audit.month.restored', 'READ', 'audit_archive',
        to_char(month, 'YYYY-MM'), jsonb_build_object('days', days, 'rows', rows), NULL);
    INSERT INTO audit.restorations (month, until, rows, record_id)
    VALUES (record_restoration.month, now() + make_interval(days => days),
            record_restoration.rows, record_id);
    RETURN record_id;
END
$$;

CREATE FUNCTION audit.end_restorations(only_month date) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ended bigint;
BEGIN
    DELETE FROM audit.restored_logs l
    WHERE l.month = only_month OR only_month IS NULL AND NOT EXISTS (
        SELECT FROM audit.restorations r WHERE r.month = l.month AND r.until > now());
    GET DIAGNOSTICS ended = ROW_COUNT;
    RETURN ended;
END
$$;
COMMENT ON FUNCTION audit.end_restorations(date) IS
    'Takes the rows of a restored month away again; NULL: of all whose time is over.';

REVOKE ALL ON FUNCTION
    audit.set_retention_policy(jsonb), audit.retention_policy(), audit.pattern_matches(text, text),
    audit.partition_month(text), audit.kept_until(text), audit.active_holds(),
    audit.place_hold(text, text, text, text, text, text, timestamptz, timestamptz),
    audit.release_hold(uuid, text), audit.override_hold(uuid, text, text),
    audit.hold_overridden(uuid, text), audit.hold_on(text, bigint),
    audit.record_archive(date, text, bigint, jsonb),
    audit.record_archive_removal(integer, text, bigint), audit.grew_since(uuid, uuid, bigint),
    audit.retired_rows(uuid), audit.try_to_retain(), audit.record_restoration(date, integer, bigint),
    audit.end_restorations(date)
FROM PUBLIC;

-- The functions that need DDL belong to otel_audit_maintainer where the event trigger is, and only a
-- superuser, who then migrates, may replace them.
SELECT set_config('otel_audit.migrates_as', current_user, true);
DO $$
BEGIN
    IF NOT pg_has_role(current_user, (SELECT proowner FROM pg_proc
                                      WHERE oid = 'audit.drop_partition(text, uuid)'::regprocedure),
                       'USAGE') THEN
        PERFORM set_config('role', 'none', true);
    END IF;
END
$$;
-- Nothing is read under the lock that those who insert wait for but a few rows of the ledger.
CREATE OR REPLACE FUNCTION audit.drop_partition(partition text, manifest uuid) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '2s' AS $$
DECLARE
    retired audit.retirements;
    held text;
BEGIN
    SELECT * INTO retired FROM audit.retirements r
    WHERE r.record_id = manifest AND r.partition = drop_partition.partition;
    IF retired.record_id IS NULL OR NOT audit.is_sealed(manifest) THEN
        RAISE EXCEPTION 'dropping % is refused: its manifest % is not sealed', partition, manifest
            USING ERRCODE = 'OA001', HINT =
                'SELECT audit.retire_partition(…) makes one; then let the sealer seal it.';
    END IF;
    IF manifest >= retired.lowest AND manifest < retired.above THEN
        RAISE EXCEPTION 'dropping % is refused: its own manifest would go with it', partition
            USING ERRCODE = 'OA001';
    END IF;
    -- a hold that is being placed is waited for; the next one waits until this is done
    LOCK TABLE audit.holds IN SHARE MODE;
    held := audit.hold_on(partition, retired.holds_seen);
    IF held IS NOT NULL THEN
        RAISE EXCEPTION 'dropping % is refused: % applies to it', partition, held
            USING ERRCODE = 'OA001';
    END IF;
    LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE;
    IF NOT EXISTS (SELECT FROM pg_inherits WHERE inhparent = 'audit.audit_logs'::regclass
                   AND inhrelid = to_regclass('audit.' || partition)) THEN
        RAISE EXCEPTION '% is no partition of audit.audit_logs', partition
            USING ERRCODE = 'OA002';
    END IF;
    IF audit.grew_since(retired.lowest, retired.above, retired.size) THEN
        RAISE EXCEPTION
            'dropping % is refused: it does not hold what manifest % says, rows came since',
            partition, manifest USING ERRCODE = 'OA001';
    END IF;
    EXECUTE format('ALTER TABLE audit.audit_logs DETACH PARTITION audit.%I', partition);
    EXECUTE format('DROP TABLE audit.%I', partition);
    INSERT INTO audit.ledger_prunings (partition, manifest_id, lowest, above, rows)
    VALUES (partition, manifest, retired.lowest, retired.above, retired.rows);
    RETURN retired.rows;
END
$$;
SELECT set_config('role', current_setting('otel_audit.migrates_as'), true)
WHERE current_user <> current_setting('otel_audit.migrates_as');
