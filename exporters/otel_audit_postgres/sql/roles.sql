-- The group roles. Nobody logs in as one; people and services are made members of one.
DO $$
DECLARE
    wanted text;
BEGIN
    FOREACH wanted IN ARRAY
        ARRAY['otel_audit_owner', 'otel_audit_writer', 'otel_audit_reader', 'otel_audit_sealer',
              'otel_audit_retention', 'otel_audit_streamer']
    LOOP
        IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = wanted) THEN
            EXECUTE pg_catalog.format('CREATE ROLE %I NOLOGIN', wanted);
        END IF;
    END LOOP;
END
$$;
