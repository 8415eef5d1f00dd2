-- Everything in the schema belongs to otel_audit_owner, as whom nobody works.
DO $$
DECLARE
    statement text;
BEGIN
    FOR statement IN
        SELECT 'ALTER SCHEMA audit OWNER TO otel_audit_owner'
        FROM pg_catalog.pg_namespace
        WHERE nspname = 'audit' AND nspowner <> 'otel_audit_owner'::pg_catalog.regrole
        UNION ALL
        SELECT pg_catalog.format('ALTER TABLE %s OWNER TO otel_audit_owner', oid::pg_catalog.regclass)
        FROM pg_catalog.pg_class
        WHERE relnamespace = 'audit'::pg_catalog.regnamespace AND relkind IN ('r', 'p', 'v', 'm', 'S')
          AND relowner <> 'otel_audit_owner'::pg_catalog.regrole
        UNION ALL
        SELECT pg_catalog.format(
            'ALTER FUNCTION %s OWNER TO otel_audit_owner', oid::pg_catalog.regprocedure)
        FROM pg_catalog.pg_proc
        WHERE pronamespace = 'audit'::pg_catalog.regnamespace
          AND pg_catalog.pg_get_userbyid(proowner)
              NOT IN ('otel_audit_owner', 'otel_audit_maintainer')
    LOOP
        EXECUTE statement;
    END LOOP;
END
$$;
