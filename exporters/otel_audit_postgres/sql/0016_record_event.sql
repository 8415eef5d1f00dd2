-- The store's own records say the version of the payload's schema that they have.

-- The actor is the role that logged in: nobody can say that he is another.
CREATE OR REPLACE FUNCTION audit.record_event(
    event_name text, action text, target_type text, target_id text, metadata jsonb, behalf_of text
) RETURNS uuid
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    moment timestamptz := clock_timestamp();
    microseconds bigint := (extract(epoch FROM moment) * 1000000)::bigint;
    -- RFC 9562, 5.7: a random UUID with the time in its first 48 bits, and version 7
    record_id uuid := (lpad(to_hex(microseconds / 1000), 12, '0') || '7'
        || substr(replace(gen_random_uuid()::text, '-', ''), 14))::uuid;
    thing text := left(target_id, 200);
    payload text;
BEGIN
    payload := jsonb_strip_nulls(jsonb_build_object(
        'record_id', record_id::text, 'action_id', record_id::text, 'phase', 'completed',
        'schema_version', '2', 'event_name', event_name, 'action', action,
        'outcome', 'success', 'occurred_at', microseconds * 1000, 'transaction', 'none',
        'actor', jsonb_build_object('id', session_user, 'type', 'user', 'verified', true,
            'source', 'database', 'on_behalf_of', left(behalf_of, 1000)),
        'target', CASE WHEN target_type IS NOT NULL THEN
            jsonb_build_object('type', target_type, 'id', thing) END,
        'metadata', metadata))::text;
    INSERT INTO audit.audit_logs (
        id, action_id, phase, occurred_at, duration_ms, event_name, action, outcome, actor_id,
        actor_type, target_type, target_id, transaction_outcome, entities, schema_version, payload,
        content_hash)
    VALUES (
        record_id, record_id::text, 'completed', moment, 0, event_name, action, 'success',
        session_user, 'user', target_type, thing, 'none',
        CASE WHEN target_type IS NULL OR thing IS NULL THEN '{}'::text[]
             ELSE ARRAY[target_type || ':' || thing] END,
        '2', payload::json, sha256(convert_to(payload, 'UTF8')));
    RETURN record_id;
END
$$;
