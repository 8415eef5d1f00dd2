-- What retention did, what waits for it, and who wanted it: for metrics, for a look, and for proof.

-- A second person ----------------------------------------------------------------------------------

CREATE TABLE audit.retention_approvals (
    step         integer NOT NULL,
    digest       bytea NOT NULL CHECK (octet_length(digest) = 32),
    approved_by  text NOT NULL DEFAULT session_user,
    record_id    uuid NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (step, digest, approved_by)
);
COMMENT ON TABLE audit.retention_approvals IS
    'Policies that somebody wants, too, to come after the one of that step: by SHA-256 of their text.';
SELECT audit.guard('audit.retention_approvals');

-- True unless each number is at least what it was, and nothing else differs: what a rule that is
-- gone, new or elsewhere means for each record that there can be is not to be guessed here.
CREATE FUNCTION audit.keeps_less(before jsonb, after jsonb) RETURNS boolean
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT coalesce(
        (after ->> 'floor')::numeric < (before ->> 'floor')::numeric
        OR after -> 'two_persons' IS DISTINCT FROM before -> 'two_persons'
        OR jsonb_array_length(after -> 'rules') <> jsonb_array_length(before -> 'rules')
        OR EXISTS (
            SELECT FROM jsonb_array_elements(before -> 'rules') WITH ORDINALITY AS b (rule, place)
            JOIN jsonb_array_elements(after -> 'rules') WITH ORDINALITY AS a (rule, place)
                ON a.place = b.place
            WHERE a.rule - ARRAY['min', 'max', 'hot', 'archive']
                <> b.rule - ARRAY['min', 'max', 'hot', 'archive']
                OR EXISTS (
                    SELECT FROM unnest(ARRAY['min', 'hot', 'archive']) AS day
                    WHERE (a.rule ? day) <> (b.rule ? day)
                        -- one that is JSON's null keeps nothing
                        OR a.rule ? day AND coalesce(
                            (a.rule ->> day)::numeric < (b.rule ->> day)::numeric, true))), true);
END;

CREATE FUNCTION audit.approve_retention_policy(policy jsonb) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before audit.retention_policies;
    wanted bytea := sha256(convert_to(policy::text, 'UTF8'));
    event uuid;
BEGIN
    SELECT * INTO before FROM audit.retention_policies p ORDER BY p.step DESC LIMIT 1;
    IF before.step IS NULL OR before.policy = policy THEN
        RAISE EXCEPTION 'there is nothing to approve: this policy is in force, or none is'
            USING ERRCODE = 'OA002';
    END IF;
    SELECT a.record_id INTO event FROM audit.retention_approvals a
    WHERE a.step = before.step AND a.digest = wanted
      AND a.approved_by = session_user;
    IF event IS NOT NULL THEN
        RETURN event;
    END IF;
    event := audit.record_event('audit.retention.approved', 'EXECUTE', 'audit_policy',
        'retention', jsonb_build_object('policy_sha256', encode(wanted, 'hex'),
            'keeps_less', audit.keeps_less(before.policy, policy)), NULL);
    INSERT INTO audit.retention_approvals (step, digest, record_id)
    VALUES (before.step, wanted, event);
    RETURN event;
END
$$;
COMMENT ON FUNCTION audit.approve_retention_policy(jsonb) IS
    'Says that this role, too, wants a policy to come after the one in force; a record tells it.';

CREATE OR REPLACE FUNCTION audit.set_retention_policy(policy jsonb) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    before audit.retention_policies;
    approved text;
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
    IF before.policy -> 'two_persons' = 'true'::jsonb
        AND audit.keeps_less(before.policy, policy) THEN
        SELECT a.approved_by INTO approved FROM audit.retention_approvals a
        WHERE a.step = before.step AND a.digest = sha256(convert_to(policy::text, 'UTF8'))
          AND a.approved_by <> session_user LIMIT 1;
        IF approved IS NULL THEN
            RAISE EXCEPTION 'the new retention policy may keep less than the one in force, which '
                'says two_persons: nobody but % wants it', session_user USING ERRCODE = 'OA001',
                HINT = 'Another role approves it: otel-audit retention approve --file FILE.';
        END IF;
    END IF;
    record_id := audit.record_event('audit.retention.changed', 'UPDATE', 'audit_policy', 'retention',
        jsonb_build_object('policy', policy, 'before', before.policy, 'approved_by', approved), NULL);
    INSERT INTO audit.retention_policies (step, policy, record_id)
    VALUES (coalesce(before.step, 0) + 1, policy, record_id);
    RETURN record_id;
END
$$;

-- Runs and verifications ---------------------------------------------------------------------------

CREATE TABLE audit.retention_runs (
    record_id    uuid PRIMARY KEY,
    done         jsonb NOT NULL,
    months       jsonb NOT NULL,
    recorded_by  text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.retention_runs IS
    'What each run of retention did, and from which day on each month that it left may go.';
SELECT audit.guard('audit.retention_runs');

CREATE FUNCTION audit.record_retention_run(done jsonb, months jsonb) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    record_id uuid;
BEGIN
    IF jsonb_typeof(done) IS DISTINCT FROM 'object' OR octet_length(done::text) > 262144
        OR jsonb_typeof(months) IS DISTINCT FROM 'object' OR octet_length(months::text) > 262144 THEN
        RAISE EXCEPTION 'no run of retention looks like this' USING ERRCODE = 'OA002';
    END IF;
    record_id := audit.record_event('audit.retention.ran', 'EXECUTE', 'audit_policy', 'retention',
        done, NULL);
    INSERT INTO audit.retention_runs (record_id, done, months)
    VALUES (record_id, record_retention_run.done, record_retention_run.months);
    RETURN record_id;
END
$$;

CREATE TABLE audit.archive_verifications (
    record_id    uuid PRIMARY KEY,
    months       integer NOT NULL,
    rows         bigint NOT NULL,
    problems     integer NOT NULL,
    deep         boolean NOT NULL,
    verified_by  text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.archive_verifications IS
    'When archives were verified, by whom, and how many problems were found.';
SELECT audit.guard('audit.archive_verifications');

-- By who sees all: what somebody found who sees some tenants only says nothing about the archives.
CREATE FUNCTION audit.record_archive_verification(
    months integer, rows bigint, problems integer, deep boolean
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    record_id uuid;
BEGIN
    IF NOT EXISTS (
        SELECT FROM pg_roles r WHERE r.rolname IN
            ('otel_audit_retention', 'otel_audit_sealer', pg_get_userbyid((
                SELECT nspowner FROM pg_namespace WHERE nspname = 'audit')))
          AND pg_has_role(session_user, r.oid, 'MEMBER')
    ) AND NOT EXISTS (
        SELECT FROM audit.reader_tenants t JOIN pg_roles r ON r.rolname = t.role_name
        WHERE t.tenant_id IS NULL AND pg_has_role(session_user, r.oid, 'MEMBER')
    ) THEN
        RAISE EXCEPTION 'only who sees all tenants can say that archives were verified'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    record_id := audit.record_event('audit.archive.verified', 'EXECUTE', 'audit_archive', NULL,
        jsonb_build_object('months', months, 'rows', rows, 'problems', problems, 'deep', deep),
        NULL);
    INSERT INTO audit.archive_verifications (record_id, months, rows, problems, deep)
    VALUES (record_id, record_archive_verification.months, record_archive_verification.rows,
            record_archive_verification.problems, record_archive_verification.deep);
    RETURN record_id;
END
$$;

-- Holds on objects ---------------------------------------------------------------------------------

CREATE TABLE audit.hold_applications (
    hold_id      uuid NOT NULL,
    is_release   boolean NOT NULL,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (hold_id, is_release)
);
COMMENT ON TABLE audit.hold_applications IS
    'Holds that were put on all objects of the archive to which they apply, or taken off again.';
SELECT audit.guard('audit.hold_applications');

CREATE FUNCTION audit.note_hold_applied(hold uuid, is_release boolean) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO audit.hold_applications (hold_id, is_release)
    VALUES (hold, note_hold_applied.is_release) ON CONFLICT DO NOTHING;
END;

-- Holds that were interrupted before the object store had them, or were placed without an archive.
CREATE FUNCTION audit.holds_to_apply() RETURNS SETOF audit.holds
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT h.* FROM audit.active_holds() h
    WHERE NOT EXISTS (SELECT FROM audit.hold_applications a
                      WHERE a.hold_id = h.id AND NOT a.is_release)
    ORDER BY h.number;
END;

CREATE FUNCTION audit.holds_to_lift() RETURNS SETOF audit.holds
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT h.* FROM audit.holds h JOIN audit.hold_releases r ON r.hold_id = h.id
    WHERE NOT EXISTS (SELECT FROM audit.hold_applications a
                      WHERE a.hold_id = h.id AND a.is_release)
    ORDER BY h.number;
END;

-- All of it at a glance ----------------------------------------------------------------------------

CREATE FUNCTION audit.retention_state(
    OUT lag float8, OUT blocked integer, OUT waiting integer, OUT last_run timestamptz,
    OUT holds bigint, OUT archived_rows bigint, OUT archived_until date,
    OUT last_verification timestamptz, OUT problems integer
)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    ran audit.retention_runs;
BEGIN
    SELECT * INTO ran FROM audit.retention_runs r ORDER BY r.recorded_at DESC LIMIT 1;
    last_run := ran.recorded_at;
    blocked := (SELECT count(*) FROM jsonb_object_keys(coalesce(ran.done -> 'blocked', '{}')));
    waiting := (SELECT count(*) FROM jsonb_object_keys(coalesce(ran.done -> 'waiting', '{}')));
    SELECT coalesce(max(extract(epoch FROM now() - (m.first_day::date::timestamp AT TIME ZONE 'UTC'))), 0)
    INTO lag
    FROM jsonb_each_text(coalesce(ran.months, '{}')) AS m (partition, first_day)
    JOIN pg_class c ON c.relname = m.partition AND c.relnamespace = 'audit'::regnamespace
    JOIN pg_inherits i ON i.inhrelid = c.oid AND i.inhparent = 'audit.audit_logs'::regclass
    WHERE m.first_day::date <= (now() AT TIME ZONE 'UTC')::date
      -- what a hold keeps is not late
      AND NOT coalesce(ran.done -> 'blocked' ? replace(right(m.partition, 7), '_', '-'), false);
    holds := (SELECT count(*) FROM audit.active_holds());
    SELECT coalesce(sum(latest.rows), 0), max(latest.month) INTO archived_rows, archived_until
    FROM (SELECT DISTINCT ON (a.month) a.month, a.rows FROM audit.archives a
          ORDER BY a.month, a.step DESC) AS latest;
    SELECT v.recorded_at, v.problems INTO last_verification, problems
    FROM audit.archive_verifications v ORDER BY v.recorded_at DESC LIMIT 1;
END
$$;
COMMENT ON FUNCTION audit.retention_state() IS
    'How retention is doing: seconds that the month longest due is overdue, if nothing keeps it, '
    'months that stay or wait, holds, archived rows, and the last run and verification.';

REVOKE ALL ON FUNCTION audit.keeps_less(jsonb, jsonb), audit.approve_retention_policy(jsonb),
    audit.record_retention_run(jsonb, jsonb),
    audit.record_archive_verification(integer, bigint, integer, boolean),
    audit.note_hold_applied(uuid, boolean), audit.holds_to_apply(), audit.holds_to_lift(),
    audit.retention_state() FROM PUBLIC;
