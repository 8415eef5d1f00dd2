-- Erasing a person: the keys of the personal values are destroyed elsewhere, and recorded here.

CREATE TABLE audit.erasures (
    record_id    uuid PRIMARY KEY,
    keys         text[] NOT NULL,
    basis        text NOT NULL CHECK (basis <> '' AND octet_length(basis) <= 1024),
    erased_by    text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.erasures IS
    'Ids of keys that were destroyed, so that they are destroyed again where a backup of the database '
    'of keys brings them back. Nothing here tells whom they were about.';
SELECT audit.guard('audit.erasures');

CREATE FUNCTION audit.hold_on_subject(tenant text, subject text) RETURNS text
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    held audit.holds;
BEGIN
    FOR held IN
        SELECT * FROM audit.active_holds() h WHERE coalesce(h.tenant = hold_on_subject.tenant, true)
    LOOP
        IF audit.hold_overridden(held.id, 'subject:' || subject) THEN
            CONTINUE;
        END IF;
        -- what the hold names, and what it leaves open, may be archived; so that counts, too
        IF coalesce(held.actor = subject, held.entity IS NULL)
            OR coalesce(held.entity = subject, held.actor IS NULL)
            OR EXISTS (
                SELECT FROM audit.audit_logs l
                WHERE (l.actor_id = subject OR l.entities @> ARRAY[subject])
                  AND l.tenant_id = hold_on_subject.tenant
                  AND (held.actor IS NULL OR l.actor_id = held.actor)
                  AND (held.entity IS NULL OR l.entities @> ARRAY[held.entity])
                  AND audit.pattern_matches(held.event, l.event_name)
                  AND (held.since IS NULL OR l.occurred_at >= held.since)
                  AND (held.until IS NULL OR l.occurred_at < held.until))
        THEN
            RETURN format('hold %s (matter %s)', held.id, held.matter);
        END IF;
    END LOOP;
    RETURN NULL;
END
$$;

-- In the transaction in which it is called the keys are destroyed: no hold is placed meanwhile.
CREATE FUNCTION audit.record_erasure(
    tenant text, subject text, keys text[], basis text, reason text
) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '30s' AS $$
DECLARE
    held text;
    record_id uuid;
BEGIN
    LOCK TABLE audit.holds IN SHARE MODE;
    held := audit.hold_on_subject(tenant, subject);
    IF held IS NOT NULL THEN
        RAISE EXCEPTION 'erasing is refused: % applies to records of this subject', held
            USING ERRCODE = 'OA001',
                  HINT = 'Release it, or let somebody else override it for subject:ID.';
    END IF;
    record_id := audit.record_event('audit.subject.erased', 'DELETE', 'audit_subject', NULL,
        jsonb_build_object('keys', to_jsonb(keys), 'basis', basis, 'reason', reason), NULL);
    INSERT INTO audit.erasures (record_id, keys, basis)
    VALUES (record_id, record_erasure.keys, record_erasure.basis);
    RETURN record_id;
END
$$;

CREATE FUNCTION audit.subject_rows(tenant text, names text[])
RETURNS TABLE (rows bigint, first timestamptz, last timestamptz)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT count(*), min(l.occurred_at), max(l.occurred_at) FROM audit.audit_logs l
    WHERE l.tenant_id = subject_rows.tenant
      AND (l.actor_id = ANY (subject_rows.names) OR l.entities && subject_rows.names);
END;

REVOKE ALL ON FUNCTION audit.hold_on_subject(text, text),
    audit.record_erasure(text, text, text[], text, text), audit.subject_rows(text, text[])
    FROM PUBLIC;
