-- The guard against DDL, which only a superuser can install: nobody else may then alter, drop or
-- add anything in the schema, its owner included.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_catalog.pg_roles WHERE rolname = 'otel_audit_maintainer') THEN
        CREATE ROLE otel_audit_maintainer NOLOGIN;
    END IF;
END
$$;
COMMENT ON ROLE otel_audit_maintainer IS
    'Runs the functions of otel-audit that make and drop partitions; nobody is a member.';
GRANT otel_audit_owner TO otel_audit_maintainer;

ALTER FUNCTION audit.ensure_partitions(integer) OWNER TO otel_audit_maintainer;
ALTER FUNCTION audit.ensure_month(date) OWNER TO otel_audit_maintainer;
ALTER FUNCTION audit.drop_partition(text, uuid) OWNER TO otel_audit_maintainer;
ALTER FUNCTION audit.collapse_leaves(bigint, bigint) OWNER TO otel_audit_maintainer;

-- apart from the schema that it guards: else dropping that would drop the guard first
CREATE SCHEMA IF NOT EXISTS audit_guard;
CREATE OR REPLACE FUNCTION audit_guard.refuse_ddl() RETURNS event_trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    touched text;
BEGIN
    -- our own functions, and a superuser who says that he means it
    IF current_user = 'otel_audit_maintainer' OR (
        coalesce(current_setting('otel_audit.permit_ddl', true), '') = 'on'
        AND EXISTS (SELECT FROM pg_roles WHERE rolname = session_user AND rolsuper)
    ) THEN
        RETURN;
    END IF;
    IF TG_EVENT = 'sql_drop' THEN
        SELECT object_type || ' ' || object_identity INTO touched
        FROM pg_event_trigger_dropped_objects() WHERE address_names[1] = 'audit' LIMIT 1;
    ELSE
        -- by the catalogs: whoever runs DDL elsewhere may lack the right to look names up here
        SELECT object_type || ' ' || object_identity INTO touched
        FROM pg_event_trigger_ddl_commands() c
        WHERE command_tag NOT IN ('COMMENT', 'REINDEX', 'CREATE STATISTICS', 'SECURITY LABEL')
          AND classid IS NOT NULL AND (
            (pg_identify_object_as_address(classid, objid, objsubid)).object_names[1] = 'audit'
            OR EXISTS (
                SELECT FROM pg_inherits i JOIN pg_class p ON p.oid = i.inhparent
                JOIN pg_namespace n ON n.oid = p.relnamespace
                WHERE i.inhrelid = c.objid AND p.relname = 'audit_logs' AND n.nspname = 'audit')
            -- What was moved out of the schema still has its owner, who changes only together with
            -- the schema's: by REASSIGN OWNED, which fires no event trigger.
            OR command_tag LIKE 'ALTER %' AND EXISTS (
                SELECT FROM pg_shdepend o JOIN pg_roles r ON r.oid = o.refobjid
                WHERE o.dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
                  AND o.classid = c.classid AND o.objid = c.objid
                  AND o.deptype = 'o' AND o.refclassid = 'pg_authid'::regclass
                  AND (r.rolname IN ('otel_audit_owner', 'otel_audit_maintainer')
                    OR NOT r.rolsuper
                      AND r.oid = (SELECT nspowner FROM pg_namespace WHERE nspname = 'audit'))))
        LIMIT 1;
        IF touched IS NULL AND TG_TAG = 'ALTER SCHEMA'
            AND NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = 'audit') THEN
            touched := 'schema audit';
        END IF;
    END IF;
    IF touched IS NOT NULL THEN
        RAISE EXCEPTION '% on % is refused: the audit trail keeps its tables, triggers and functions',
            TG_TAG, touched
            USING ERRCODE = 'OA001',
                  HINT = 'The schema is changed by `otel-audit migrate`, run as a superuser.';
    END IF;
END
$$;
REVOKE ALL ON FUNCTION audit_guard.refuse_ddl() FROM PUBLIC;

DROP EVENT TRIGGER IF EXISTS otel_audit_refuse_ddl;
DROP EVENT TRIGGER IF EXISTS otel_audit_refuse_drop;
CREATE EVENT TRIGGER otel_audit_refuse_ddl ON ddl_command_end
    EXECUTE FUNCTION audit_guard.refuse_ddl();
CREATE EVENT TRIGGER otel_audit_refuse_drop ON sql_drop
    EXECUTE FUNCTION audit_guard.refuse_ddl();
-- ALWAYS: else session_replication_role = replica walks past them
ALTER EVENT TRIGGER otel_audit_refuse_ddl ENABLE ALWAYS;
ALTER EVENT TRIGGER otel_audit_refuse_drop ENABLE ALWAYS;
