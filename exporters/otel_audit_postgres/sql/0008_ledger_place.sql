-- Which database the log belongs to: a copy of it, with the key, must not go on with it unsaid.

-- By the server's system identifier (a new one for each cluster; a copy of its files keeps it) and the
-- database's number in it. NULL where the server does not tell.
CREATE FUNCTION audit.this_place() RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN (SELECT system_identifier::text FROM pg_control_system())
        || '/' || (SELECT oid::text FROM pg_database WHERE datname = current_database());
EXCEPTION WHEN insufficient_privilege OR undefined_function OR feature_not_supported THEN
    RETURN NULL;
END
$$;

CREATE TABLE audit.ledger_places (
    step         integer PRIMARY KEY,
    place        text NOT NULL,
    said_by      text NOT NULL DEFAULT session_user,
    recorded_at  timestamptz NOT NULL DEFAULT clock_timestamp()
);
COMMENT ON TABLE audit.ledger_places IS
    'Which database the log belongs to; the last step counts, those before are where it was.';
SELECT audit.guard('audit.ledger_places');

CREATE FUNCTION audit.ledger_place(OUT here text, OUT recorded text)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT audit.this_place(),
           (SELECT p.place FROM audit.ledger_places p ORDER BY p.step DESC LIMIT 1);
END;
COMMENT ON FUNCTION audit.ledger_place() IS
    'Which database this is, and which one the log belongs to.';

CREATE FUNCTION audit.move_ledger_here() RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    INSERT INTO audit.ledger_places (step, place)
    SELECT (SELECT coalesce(max(p.step), 0) + 1 FROM audit.ledger_places p), here
    FROM audit.ledger_place() WHERE here IS NOT NULL AND here IS DISTINCT FROM recorded;
END;
COMMENT ON FUNCTION audit.move_ledger_here() IS
    'Says that the log belongs to this database from now on.';

REVOKE ALL ON FUNCTION audit.this_place(), audit.ledger_place(), audit.move_ledger_here()
    FROM PUBLIC;

INSERT INTO audit.ledger_places (step, place)
SELECT 1, audit.this_place() FROM audit.ledger_log WHERE audit.this_place() IS NOT NULL;
