-- Rows in the default partition, from a wrong clock or of when there was no partition, do not keep
-- their month from having one: they are moved into it as it is made. Nothing else of them changes,
-- so leaves, seals and hashes hold. Many are moved only when that is asked for.

CREATE FUNCTION audit.move_from_default(partition text, lowest uuid, above uuid) RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    columns text := (SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
                     FROM pg_attribute WHERE attrelid = 'audit.audit_logs'::regclass
                     AND attnum > 0 AND NOT attisdropped AND attgenerated = '');
    moved bigint;
    taken bigint;
BEGIN
    -- ATTACH needs this lock anyway
    LOCK TABLE audit.audit_logs_default IN ACCESS EXCLUSIVE MODE;
    EXECUTE format('INSERT INTO audit.%1$I (%2$s) SELECT %2$s FROM audit.audit_logs_default '
                   'WHERE id >= %3$L AND id < %4$L', partition, columns, lowest, above);
    GET DIAGNOSTICS moved = ROW_COUNT;
    IF moved = 0 THEN
        RETURN 0;
    END IF;
    ALTER TABLE audit.audit_logs_default DISABLE TRIGGER refuse_change;
    ALTER TABLE audit.audit_logs_default DISABLE TRIGGER refuse_row_change;
    DELETE FROM audit.audit_logs_default WHERE id >= lowest AND id < above;
    GET DIAGNOSTICS taken = ROW_COUNT;
    ALTER TABLE audit.audit_logs_default ENABLE ALWAYS TRIGGER refuse_change;
    ALTER TABLE audit.audit_logs_default ENABLE ALWAYS TRIGGER refuse_row_change;
    IF taken <> moved THEN
        RAISE EXCEPTION 'moving rows into % is given up: % were copied, % would go',
            partition, moved, taken;
    END IF;
    RETURN moved;
END
$$;

-- As before, but for the rows; most is how many are moved at the most.
CREATE FUNCTION audit.make_month_partition(
    month date, most bigint, OUT partition text, OUT state text, OUT detail text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    first_day date := date_trunc('month', month)::date;
    next_first_day date := (date_trunc('month', month) + interval '1 month')::date;
    owner text := (SELECT pg_get_userbyid(relowner) FROM pg_class
                   WHERE oid = 'audit.audit_logs'::regclass);
    lowest uuid := audit.uuid_at(first_day::timestamp AT TIME ZONE 'UTC');
    above uuid := audit.uuid_at(next_first_day::timestamp AT TIME ZONE 'UTC');
    moved bigint;
BEGIN
    partition := 'audit_logs_' || to_char(first_day, 'YYYY_MM');
    IF EXISTS (
        SELECT FROM pg_inherits
        WHERE inhparent = 'audit.audit_logs'::regclass
          AND inhrelid = to_regclass('audit.' || partition)
    ) THEN
        state := 'exists';
        RETURN;
    END IF;
    IF EXISTS (SELECT FROM audit.ledger_prunings p WHERE p.partition = make_month_partition.partition)
    THEN
        state := 'dropped';
        detail := 'this month was retired; what comes late is kept in audit.audit_logs_default';
        RETURN;
    END IF;
    IF (SELECT count(*) FROM (
            SELECT FROM audit.audit_logs_default d WHERE d.id >= lowest AND d.id < above
            LIMIT most + 1) AS found) > most THEN
        state := 'blocked';
        detail := format('more than %s rows of this month are in audit.audit_logs_default; to move '
                         'them: otel-audit maintain --month %s', most, to_char(first_day, 'YYYY-MM'));
        RETURN;
    END IF;
    -- ATTACH, unlike CREATE TABLE … PARTITION OF, does not stop those who are inserting
    EXECUTE format(
        'CREATE TABLE audit.%I (LIKE audit.audit_logs INCLUDING DEFAULTS INCLUDING CONSTRAINTS)',
        partition);
    IF current_user <> owner THEN
        EXECUTE format('ALTER TABLE audit.%I OWNER TO %I', partition, owner);
    END IF;
    PERFORM audit.guard(format('audit.%I', partition)::regclass);
    moved := audit.move_from_default(partition, lowest, above);
    EXECUTE format(
        'ALTER TABLE audit.audit_logs ATTACH PARTITION audit.%I FOR VALUES FROM (%L) TO (%L)',
        partition, lowest, above);
    state := 'made';
    IF moved > 0 THEN
        detail := format('%s rows of it were moved here from audit.audit_logs_default', moved);
    END IF;
EXCEPTION
    WHEN check_violation THEN
        state := 'blocked';
        detail := 'rows of this month came into audit.audit_logs_default just now; try again';
    WHEN duplicate_table THEN
        state := 'blocked';
        detail := 'a table of this name is there, but it is no partition of audit.audit_logs';
    WHEN unique_violation THEN
        state := 'exists';  -- somebody else made it just now
    WHEN lock_not_available THEN
        state := 'busy';
        detail := 'a lock could not be had in time; it is tried again';
END
$$;

-- Whoever writes makes partitions, too: what is moved in passing must not take long.
CREATE OR REPLACE FUNCTION audit.make_partition(
    month date, OUT partition text, OUT state text, OUT detail text
)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    SELECT made.partition, made.state, made.detail INTO partition, state, detail
    FROM audit.make_month_partition(month, 5000) AS made;
END
$$;

CREATE FUNCTION audit.ensure_month(month date)
RETURNS TABLE (partition text, state text, detail text)
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET lock_timeout = '5s' AS $$
DECLARE
    lowest uuid := audit.uuid_at(date_trunc('month', month)::timestamp AT TIME ZONE 'UTC');
    above uuid := audit.uuid_at((date_trunc('month', month) + interval '1 month')::timestamp
                                AT TIME ZONE 'UTC');
BEGIN
    -- a partition for each month that somebody thinks of would fill the catalog
    IF NOT EXISTS (SELECT FROM audit.audit_logs_default d WHERE d.id >= lowest AND d.id < above)
    THEN
        RETURN QUERY SELECT 'audit_logs_' || to_char(month, 'YYYY_MM'), 'empty',
            'no rows of this month are in audit.audit_logs_default';
        RETURN;
    END IF;
    RETURN QUERY SELECT made.partition, made.state, made.detail
        FROM audit.make_month_partition(month, 9223372036854775806) AS made;
END
$$;
COMMENT ON FUNCTION audit.ensure_month(date) IS
    'Gives a month of which there are rows in the default partition one of its own.';

CREATE FUNCTION audit.rows_in_default(most bigint) RETURNS bigint
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
    SELECT count(*) FROM (SELECT FROM audit.audit_logs_default
                          LIMIT least(greatest(most, 0), 1000000)) AS found;
END;
COMMENT ON FUNCTION audit.rows_in_default(bigint) IS
    'How many rows are in the default partition, counted up to a bound.';

REVOKE ALL ON FUNCTION
    audit.move_from_default(text, uuid, uuid), audit.make_month_partition(date, bigint),
    audit.ensure_month(date), audit.rows_in_default(bigint)
FROM PUBLIC;

-- Where the event trigger is, functions that need DDL belong to otel_audit_maintainer.
SELECT set_config('otel_audit.migrates_as', current_user, true);
DO $$
DECLARE
    maker name := (SELECT pg_get_userbyid(proowner) FROM pg_proc
                   WHERE oid = 'audit.ensure_partitions(integer)'::regprocedure);
BEGIN
    IF maker = 'otel_audit_maintainer' THEN
        PERFORM set_config('role', 'none', true);
        ALTER FUNCTION audit.ensure_month(date) OWNER TO otel_audit_maintainer;
    END IF;
END
$$;
SELECT set_config('role', current_setting('otel_audit.migrates_as'), true)
WHERE current_user <> current_setting('otel_audit.migrates_as');
