-- What retention refuses, and why: late rows by a code of their own, what is overdue though it is no
-- hold that keeps it, and an erasure where nobody looked into the archives.

-- A month that may grow is archived again, and all else that refuses to drop it is not: OA003 says which.
-- The function that needs DDL belongs to otel_audit_maintainer where the event trigger is, and only a
-- superuser, who then migrates, may replace it.
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
            partition, manifest USING ERRCODE = 'OA003';
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

-- As two_persons is documented: a change that does nothing but raise numbers, each of them.
CREATE OR REPLACE FUNCTION audit.keeps_less(before jsonb, after jsonb) RETURNS boolean
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
                    SELECT FROM unnest(ARRAY['min', 'max', 'hot', 'archive']) AS day
                    WHERE (a.rule ? day) <> (b.rule ? day)
                        -- one that is JSON's null keeps nothing
                        OR a.rule ? day AND coalesce(
                            (a.rule ->> day)::numeric < (b.rule ->> day)::numeric, true))), true);
END;

CREATE OR REPLACE FUNCTION audit.retention_state(
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
      -- what a hold keeps is not late; what waits for its seal, or was refused, is
      AND NOT coalesce(ran.done -> 'held_months' ? replace(right(m.partition, 7), '_', '-'), false);
    holds := (SELECT count(*) FROM audit.active_holds());
    SELECT coalesce(sum(latest.rows), 0), max(latest.month) INTO archived_rows, archived_until
    FROM (SELECT DISTINCT ON (a.month) a.month, a.rows FROM audit.archives a
          ORDER BY a.month, a.step DESC) AS latest;
    SELECT v.recorded_at, v.problems INTO last_verification, problems
    FROM audit.archive_verifications v ORDER BY v.recorded_at DESC LIMIT 1;
END
$$;
COMMENT ON FUNCTION audit.retention_state() IS
    'How retention is doing: seconds that the month longest due is overdue, if no hold keeps it, '
    'months that stay or wait, holds, archived rows, and the last run and verification.';

-- A hold that names somebody or something else applies to records of this subject, too, and the ones
-- in archives cannot be seen from here.
-- holds_seen, archives_seen: up to which hold, and which manifest, the caller has looked into archives
CREATE FUNCTION audit.record_checked_erasure(
    tenant text, subject text, keys text[], basis text, reason text,
    holds_seen bigint, archives_seen integer
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s' AS $$
DECLARE
    held text;
    unseen audit.holds;
    record_id uuid;
BEGIN
    LOCK TABLE audit.holds IN SHARE MODE;
    -- before the archives: what is dropped in between is in one that was not looked into
    held := audit.hold_on_subject(tenant, subject);
    IF held IS NOT NULL THEN
        RAISE EXCEPTION 'erasing is refused: % applies to records of this subject', held
            USING ERRCODE = 'OA001',
                  HINT = 'Release it, or let somebody else override it for subject:ID.';
    END IF;
    FOR unseen IN
        SELECT h.* FROM audit.active_holds() h
        WHERE coalesce(h.tenant = record_checked_erasure.tenant, true)
          AND NOT audit.hold_overridden(h.id, 'subject:' || subject)
          -- somebody else's record is about this subject only if that is the name of an entity
          AND (h.entity IS NOT NULL OR strpos(subject, ':') > 0)
          AND EXISTS (SELECT FROM audit.archives a
                      WHERE strpos(a.manifest, E'\nobject: ') > 0
                        AND (h.number > holds_seen OR a.step > archives_seen))
    LOOP
        RAISE EXCEPTION 'erasing is refused: hold % (matter %) may apply to archived records of this '
            'subject, where nobody looked: name the archive, and try again', unseen.id, unseen.matter
            USING ERRCODE = 'OA001';
    END LOOP;
    record_id := audit.record_event('audit.subject.erased', 'DELETE', 'audit_subject', NULL,
        jsonb_build_object('keys', to_jsonb(keys), 'basis', basis, 'reason', reason), NULL);
    INSERT INTO audit.erasures (record_id, keys, basis)
    VALUES (record_id, record_checked_erasure.keys, record_checked_erasure.basis);
    RETURN record_id;
END
$$;
COMMENT ON FUNCTION audit.record_checked_erasure(text, text, text[], text, text, bigint, integer) IS
    'Tells that keys are destroyed, in the transaction that destroys them; a hold refuses it.';

-- An earlier version of the command looks into no archive.
CREATE OR REPLACE FUNCTION audit.record_erasure(
    tenant text, subject text, keys text[], basis text, reason text
) RETURNS uuid
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s'
AS $$ SELECT audit.record_checked_erasure(tenant, subject, keys, basis, reason, 0, 0) $$;

REVOKE ALL ON FUNCTION
    audit.record_checked_erasure(text, text, text[], text, text, bigint, integer) FROM PUBLIC;
