-- Counts by the hour, so that a histogram over millions of records reads some thousand rows. They are
-- kept by the sealer in the transaction that seals, are no evidence, and can be made anew.

-- No row is sealed while this counts those that are.
LOCK TABLE audit.ledger_blocks IN SHARE ROW EXCLUSIVE MODE;

CREATE TABLE audit.rollup (
    hour        timestamptz NOT NULL,
    tenant_id   text NOT NULL,
    event_name  text NOT NULL,
    outcome     text NOT NULL,
    records     bigint NOT NULL,
    PRIMARY KEY (hour, tenant_id, event_name, outcome)
);
COMMENT ON TABLE audit.rollup IS
    'How many sealed records there are of each hour, tenant, event and outcome; for histograms.';

-- Counts what is in the queue under these positions; the sealer calls it before it takes them out.
CREATE FUNCTION audit.roll_up(positions bigint[]) RETURNS void
LANGUAGE sql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
    INSERT INTO audit.rollup AS known (hour, tenant_id, event_name, outcome, records)
    SELECT date_trunc('hour', l.occurred_at, 'UTC'), l.tenant_id, l.event_name, l.outcome, count(*)
    FROM audit.ledger_queue q JOIN audit.audit_logs l ON l.id = q.id AND l.tenant_id = q.tenant_id
    WHERE q.position = ANY(positions) AND isfinite(l.occurred_at)
    -- in one order, so that no two that write wait for each other
    GROUP BY 1, 2, 3, 4 ORDER BY 1, 2, 3, 4
    ON CONFLICT (hour, tenant_id, event_name, outcome)
    DO UPDATE SET records = known.records + excluded.records
$$;
COMMENT ON FUNCTION audit.roll_up(bigint[]) IS
    'Adds to audit.rollup what waits in the queue under these positions.';
REVOKE ALL ON FUNCTION audit.roll_up(bigint[]) FROM PUBLIC;

INSERT INTO audit.rollup (hour, tenant_id, event_name, outcome, records)
SELECT date_trunc('hour', occurred_at, 'UTC'), tenant_id, event_name, outcome, count(*)
FROM audit.audit_logs l
WHERE isfinite(occurred_at)
  AND NOT EXISTS (SELECT FROM audit.ledger_queue q WHERE q.id = l.id AND q.tenant_id = l.tenant_id)
GROUP BY 1, 2, 3, 4;
