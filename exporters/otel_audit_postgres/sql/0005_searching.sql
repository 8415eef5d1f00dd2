-- Searching by time walks the ids, which are in the order of time: UUIDv7, made when the action began.
-- Nobody is forced to make them so, and what takes long tells of its beginning later. So records whose
-- id tells another time than theirs, by more than a second, have an index of their own, or a search by
-- time would have to look at all. `otel_audit_postgres.queries` spells the condition the same.
CREATE INDEX audit_logs_astray ON audit.audit_logs (occurred_at, id) WHERE
    CASE WHEN isfinite(occurred_at) THEN
        abs(('x' || left(id::text, 8) || substr(id::text, 10, 4))::bit(48)::bigint
            - (extract(epoch FROM occurred_at - '1970-01-01 00:00:00+00'::timestamptz) * 1000)::bigint
        ) > 1000
    ELSE true END;

-- What a tenant's reader may not see must be taken away before any condition that could tell of it is
-- looked at, and so the index on entities is of no use to him. This function looks first: it gives
-- the ids of records that the session's own roles may see, and the query that wants the rows is
-- subject to the policies as ever.
CREATE FUNCTION audit.about(entity text) RETURNS TABLE (id uuid, tenant_id text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp ROWS 50 AS $$
    WITH mine AS MATERIALIZED (
        SELECT t.tenant_id FROM audit.reader_tenants t JOIN pg_roles r ON r.rolname = t.role_name
        WHERE pg_has_role(session_user, r.oid, 'MEMBER')
    ), everything AS MATERIALIZED (
        SELECT EXISTS (SELECT FROM mine WHERE mine.tenant_id IS NULL)
            OR EXISTS (
                SELECT FROM pg_class c
                WHERE c.oid = 'audit.audit_logs'::regclass
                  AND (NOT c.relrowsecurity OR pg_has_role(session_user, c.relowner, 'MEMBER')))
            OR EXISTS (
                SELECT FROM pg_roles r
                WHERE r.rolname = session_user AND (r.rolsuper OR r.rolbypassrls)
                   OR r.rolname = 'otel_audit_sealer' AND pg_has_role(session_user, r.oid, 'MEMBER'))
            AS seen
    ), found AS MATERIALIZED (
        SELECT l.id, l.tenant_id FROM audit.audit_logs l WHERE l.entities @> ARRAY[about.entity]
    )
    SELECT found.id, found.tenant_id FROM found
    WHERE (SELECT seen FROM everything) OR found.tenant_id IN (SELECT mine.tenant_id FROM mine)
$$;
COMMENT ON FUNCTION audit.about(text) IS
    'Ids of the records about an entity, such as order:123, that this session may see.';
REVOKE ALL ON FUNCTION audit.about(text) FROM PUBLIC;
