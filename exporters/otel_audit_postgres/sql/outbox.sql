-- In the application's own database: audit records that were written in its own transactions, and
-- wait there for the relay. The id is a UUIDv7, so its order is about the order of time.
CREATE SCHEMA IF NOT EXISTS audit;
CREATE TABLE IF NOT EXISTS audit.outbox (
    record_id uuid PRIMARY KEY,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    record text NOT NULL,
    claimed_by integer,
    claimed_until timestamptz
) WITH (
    -- rows come and go: vacuum by their number, not by a share of the table
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.2
);
ALTER TABLE audit.outbox ADD COLUMN IF NOT EXISTS claimed_by integer,
    ADD COLUMN IF NOT EXISTS claimed_until timestamptz;
COMMENT ON COLUMN audit.outbox.claimed_by IS
    'The backend of the relay that writes it to the store; NULL behind a pooler.';
COMMENT ON COLUMN audit.outbox.claimed_until IS
    'Until when other relays leave it to that one, if it is still there.';
COMMENT ON TABLE audit.outbox IS
    'Audit records of committed transactions, until otel-audit has relayed them to the store.';
REVOKE ALL ON audit.outbox FROM PUBLIC;
