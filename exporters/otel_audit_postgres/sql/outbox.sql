-- In the application's own database: audit records that were written in its own transactions, and
-- wait there for the relay. The id is a UUIDv7, so its order is about the order of time.
CREATE SCHEMA IF NOT EXISTS audit;
CREATE TABLE IF NOT EXISTS audit.outbox (
    record_id uuid PRIMARY KEY,
    written_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    record text NOT NULL
) WITH (
    -- rows come and go: vacuum by their number, not by a share of the table
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_insert_scale_factor = 0.2
);
COMMENT ON TABLE audit.outbox IS
    'Audit records of committed transactions, until otel-audit has relayed them to the store.';
REVOKE ALL ON audit.outbox FROM PUBLIC;
