-- Looks on behalf of others: a service such as the viewer logs in as one role and shows each person
-- some tenants only. Which ones holds for one transaction, and row level security obeys it.

ALTER TABLE audit.reader_tenants ADD COLUMN is_scoped boolean NOT NULL DEFAULT false;
COMMENT ON COLUMN audit.reader_tenants.is_scoped IS
    'The role sees nothing before audit.look_as has said on whose behalf it looks.';

-- Any reader may set any setting: only this key proves that ours was made by audit.look_as.
CREATE TABLE audit.scope_key (
    single       boolean PRIMARY KEY DEFAULT true CHECK (single),
    key          bytea NOT NULL CHECK (octet_length(key) = 32),
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.scope_key IS
    'The key of scopes. Nobody reads it but the functions of the store.';
INSERT INTO audit.scope_key (key)
SELECT sha256(convert_to(
    gen_random_uuid()::text || gen_random_uuid()::text || gen_random_uuid()::text, 'UTF8'));
SELECT audit.guard('audit.scope_key');

-- For this backend and transaction: what was said in another one is worth nothing here.
CREATE FUNCTION audit.scope_mac(said text) RETURNS text
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    SELECT encode(sha256(k.key || sha256(k.key || convert_to(
        pg_backend_pid() || ' ' || extract(epoch FROM transaction_timestamp()) || ' ' || said,
        'UTF8'))), 'hex')
    FROM audit.scope_key k
$$;

CREATE FUNCTION audit.look_as(tenants text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    said text := coalesce(to_jsonb(tenants)::text, 'null');
    place integer := pg_backend_pid();
BEGIN
    -- the lock, unlike the setting, cannot be taken back before the transaction ends
    IF EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = place
          AND classid = 7368035::oid AND objid = place::oid AND objsubid = 2
    ) THEN
        RAISE EXCEPTION 'on whose behalf this transaction looks is said already'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    PERFORM pg_advisory_xact_lock(7368035, place);
    PERFORM set_config('otel_audit.scope', audit.scope_mac(said) || said, true);
END
$$;
COMMENT ON FUNCTION audit.look_as(text[]) IS
    'Narrows this transaction to the records of these tenants, once; NULL: it is not narrowed.';

CREATE FUNCTION audit.scope(OUT everything boolean, OUT tenants text[])
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    stored text := coalesce(current_setting('otel_audit.scope', true), '');
    said text := substr(stored, 65);
BEGIN
    everything := false;
    tenants := '{}';
    IF stored = '' THEN
        everything := NOT EXISTS (
            SELECT FROM audit.reader_tenants t JOIN pg_roles r ON r.rolname = t.role_name
            WHERE t.is_scoped AND pg_has_role(session_user, r.oid, 'MEMBER'));
    ELSIF left(stored, 64) = audit.scope_mac(said) THEN
        everything := said = 'null';
        IF NOT everything THEN
            tenants := ARRAY(SELECT jsonb_array_elements_text(said::jsonb));
        END IF;
    END IF;
END
$$;
COMMENT ON FUNCTION audit.scope() IS
    'The tenants that this transaction was narrowed to; the policies ask it.';

-- An export takes records out of the store, so it is another event than a look.
CREATE FUNCTION audit.record_export(asked jsonb, behalf_of text DEFAULT NULL) RETURNS uuid
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF octet_length(asked::text) > 16384 THEN
        RAISE EXCEPTION 'no export of the audit trail looks like this'
            USING ERRCODE = 'invalid_parameter_value';
    END IF;
    RETURN audit.record_event('audit.exported', 'EXPORT', NULL, NULL,
        jsonb_build_object('asked', asked), behalf_of);
END
$$;
COMMENT ON FUNCTION audit.record_export(jsonb, text) IS
    'Records that records are taken out, before the first of them is; by the role that logged in.';

REVOKE ALL ON FUNCTION audit.scope_mac(text), audit.look_as(text[]), audit.scope(),
    audit.record_export(jsonb, text) FROM PUBLIC;
