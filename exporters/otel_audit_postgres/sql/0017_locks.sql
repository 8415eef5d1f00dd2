-- Locks that only our functions take: an advisory lock can be taken, and kept, by whoever can connect,
-- and its key is seen in pg_locks while it is held, so a secret key protects nothing.

-- A row of its own: with the position's own row locked, pausing and rewinding would wait for a batch.
CREATE TABLE audit.stream_locks (
    stream text PRIMARY KEY
);
COMMENT ON TABLE audit.stream_locks IS
    'A row for each stream: whoever has locked it sends the stream.';
SELECT audit.guard('audit.stream_locks');
INSERT INTO audit.stream_locks (stream) SELECT s.name FROM audit.streams s;

CREATE FUNCTION audit.add_stream_lock() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    INSERT INTO audit.stream_locks (stream) VALUES (NEW.name);
    RETURN NULL;
END
$$;
CREATE TRIGGER add_stream_lock AFTER INSERT ON audit.streams
    FOR EACH ROW EXECUTE FUNCTION audit.add_stream_lock();

-- A row lock is a write. So a process takes it only if it has something to send: then it writes in any case.
CREATE FUNCTION audit.hold_stream(stream text) RETURNS audit.streams
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    at audit.streams;
BEGIN
    PERFORM FROM audit.stream_locks l WHERE l.stream = hold_stream.stream FOR UPDATE SKIP LOCKED;
    IF FOUND THEN
        -- as it is under the lock: another process may have moved it since it was looked at
        SELECT * INTO at FROM audit.streams s WHERE s.name = hold_stream.stream;
    END IF;
    RETURN at;
END
$$;
COMMENT ON FUNCTION audit.hold_stream(text) IS
    'Makes this transaction the one that sends a stream, and tells its position; NULL: another one is.';

-- The mode is nobody else's on this table, and keeps nobody out: whoever has it has spoken.
CREATE OR REPLACE FUNCTION audit.look_as(tenants text[]) RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    said text := coalesce(to_jsonb(tenants)::text, 'null');
BEGIN
    -- the lock, unlike the setting, cannot be taken back before the transaction ends
    IF EXISTS (
        SELECT FROM pg_locks WHERE locktype = 'relation' AND pid = pg_backend_pid()
          AND relation = 'audit.scope_key'::regclass AND mode = 'RowShareLock'
    ) THEN
        RAISE EXCEPTION 'on whose behalf this transaction looks is said already'
            USING ERRCODE = 'insufficient_privilege';
    END IF;
    LOCK TABLE audit.scope_key IN ROW SHARE MODE;
    PERFORM set_config('otel_audit.scope', audit.scope_mac(said) || said, true);
END
$$;

CREATE FUNCTION audit.lock_erasures() RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    LOCK TABLE audit.erasures IN SHARE UPDATE EXCLUSIVE MODE;
END
$$;
COMMENT ON FUNCTION audit.lock_erasures() IS
    'Makes this transaction the one that erases; waits for another one.';

REVOKE ALL ON FUNCTION audit.add_stream_lock(), audit.hold_stream(text), audit.lock_erasures()
FROM PUBLIC;
