"""Rows stay as they are, whoever tries and however."""

from __future__ import annotations

import asyncio
from datetime import date

import asyncpg
import pytest
from click.testing import CliRunner
from otel_audit_postgres import PostgresSink, init, maintain
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.cli.main import cli

CHANGES = (
    "UPDATE {table} SET recorded_at = recorded_at",
    "DELETE FROM {table}",
    "TRUNCATE {table}",
    "TRUNCATE ONLY {table}",
    "DELETE FROM ONLY {table}",
    "MERGE INTO {table} t USING (SELECT 1) s ON true WHEN MATCHED THEN DELETE",
)

# in the middle of a month, where neither the server's time zone nor the days of months matter
IN_FOUR_MONTHS = "(date_trunc('month', now(), 'UTC') + interval '4 months 15 days')"


@pytest.fixture
async def owner(audit_store):
    """A connection of the tables' owner, who is a superuser too, to a store with rows."""
    sink = PostgresSink(audit_store)
    await sink.write([a_record(), a_record(record_id=uuid7()), a_record(record_id="no id")])
    await sink.close()
    connection = await asyncpg.connect(audit_store)
    yield connection
    await connection.close()


async def tables(connection):
    rows = await connection.fetch(
        "SELECT 'audit.' || relname FROM pg_class WHERE relnamespace = 'audit'::regnamespace "
        "AND relkind IN ('r', 'p') AND relname NOT IN "
        "('schema_version', 'ledger_queue', 'quarantine_queue', 'reader_tenants', 'rollup', "
        "'restored_logs', 'streams') "
        "ORDER BY 1"
    )
    return [row[0] for row in rows]


async def contents(connection):
    return (
        await connection.fetch("SELECT *, payload::text FROM audit.audit_logs ORDER BY id"),
        await connection.fetch("SELECT * FROM audit.quarantine"),
    )


WITHOUT_TIME = (
    "audit.receiving_key", "audit.quarantine_releases", "audit.quarantine_records",
    "audit.stream_locks",
)  # fmt: skip


class TestGuards:
    @pytest.mark.parametrize("mode", ["origin", "replica", "local"])
    @pytest.mark.parametrize("change", CHANGES)
    async def test_refuse_on_every_table(self, owner, change, mode):
        """The trail, each partition and the quarantine refuse, also their owner as a replica."""
        before = await contents(owner)
        await owner.execute(f"SET session_replication_role = {mode}")
        for table in await tables(owner):
            if change.startswith("TRUNCATE ONLY") and table == "audit.audit_logs":
                continue  # PostgreSQL itself refuses this one
            if "recorded_at" in change and table in WITHOUT_TIME:
                continue
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await owner.execute(change.format(table=table))
        assert await contents(owner) == before

    async def test_refuse_an_upsert(self, owner):
        """ON CONFLICT DO UPDATE is an update."""
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await owner.execute(
                "INSERT INTO audit.quarantine SELECT * FROM audit.quarantine "
                "ON CONFLICT (content_hash) DO UPDATE SET reason = ''"
            )

    async def test_refuse_truncate_cascade(self, owner):
        """Nor does a TRUNCATE of another table reach them."""
        await owner.execute("CREATE TABLE other (x int)")
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await owner.execute("TRUNCATE other, audit.audit_logs CASCADE")

    async def test_are_on_partitions_made_later(self, owner):
        """A partition of a later month is guarded from its first moment."""
        made = await owner.fetchrow("SELECT * FROM audit.make_partition('2031-05-17')")
        assert tuple(made) == ("audit_logs_2031_05", "made", None)
        for change in CHANGES:
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await owner.execute(change.format(table="audit.audit_logs_2031_05"))
        enabled = await owner.fetch(
            "SELECT tgenabled::text FROM pg_trigger "
            "WHERE tgrelid = 'audit.audit_logs_2031_05'::regclass AND NOT tgisinternal"
        )
        assert [row[0] for row in enabled] == ["A", "A"]

    async def test_are_on_rows_of_partitions_made_by_hand(self, owner):
        """Rows are guarded even in a partition that somebody attached without our function."""
        await owner.execute(
            "CREATE TABLE audit.by_hand PARTITION OF audit.audit_logs FOR VALUES "
            "FROM (audit.uuid_at('2015-01-01Z')) TO (audit.uuid_at('2015-02-01Z'))"
        )
        await owner.execute("SET session_replication_role = replica")
        await owner.execute(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object("
            "'id', audit.uuid_at('2015-01-02Z')))).* FROM audit.audit_logs a LIMIT 1"
        )
        with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
            await owner.execute("DELETE FROM audit.by_hand")


@pytest.mark.usefixtures("one_day")
class TestPartitions:
    async def test_hold_the_records_of_their_month(self, owner):
        """A record of now is in this month's partition, one of last year in the default one."""
        found = await owner.fetch(
            "SELECT tableoid::regclass::text FROM audit.audit_logs ORDER BY id"
        )
        month = await owner.fetchval("SELECT to_char(now() AT TIME ZONE 'UTC', 'YYYY_MM')")
        assert found[-1][0] == f"audit.audit_logs_{month}"

    async def test_reach_from_last_month_to_the_one_after_the_next(self, owner):
        """Asked again, all of them are there."""
        found = await owner.fetch("SELECT * FROM audit.ensure_partitions()")
        assert [row["state"] for row in found] == ["exists"] * 4

    async def test_take_their_rows_out_of_the_default_partition(self, audit_store, owner):
        """A month whose rows are in the default one gets its partition, and the rows are in it."""
        others = await owner.fetchval("SELECT audit.rows_in_default(10)")
        late = await self._in_default(audit_store, owner, IN_FOUR_MONTHS)
        before = await owner.fetchrow("SELECT * FROM audit.audit_logs WHERE id = $1", late)
        found = await owner.fetch("SELECT * FROM audit.ensure_partitions(6)")
        assert [row["state"] for row in found].count("made") == 4
        assert [row["detail"] for row in found if row["detail"]] == [
            "1 rows of it were moved here from audit.audit_logs_default"
        ]
        assert dict(before) == dict(
            await owner.fetchrow("SELECT * FROM audit.audit_logs WHERE id = $1", late)
        )
        assert await owner.fetchval("SELECT audit.rows_in_default(10)") == others
        for statement in ("DELETE FROM", "TRUNCATE"):
            with pytest.raises(asyncpg.InsufficientPrivilegeError, match="append-only"):
                await owner.execute(f"{statement} audit.audit_logs_default")

    async def test_leave_many_rows_to_whoever_asks_for_it(self, audit_store, owner):
        """In passing no more than 5,000 are moved; by its month any number."""
        when = IN_FOUR_MONTHS
        late = await self._in_default(audit_store, owner, when)
        await owner.execute(
            "INSERT INTO audit.audit_logs SELECT (jsonb_populate_record(a, jsonb_build_object('id', "
            f"replace(audit.uuid_at({when})::text, '00000000', lpad(n::text, 8, '0'))))).* "
            "FROM audit.audit_logs a, generate_series(1, 5000) n WHERE a.id = $1", late,
        )  # fmt: skip
        found = await owner.fetch("SELECT * FROM audit.ensure_partitions(6)")
        (blocked,) = [row for row in found if row["state"] == "blocked"]
        assert "otel-audit maintain --month" in blocked["detail"]
        month = (await owner.fetchval(f"SELECT {when}")).date()
        done = await maintain(audit_store, months=[month, date(2015, 1, 1)])
        assert [one.state for one in done.partitions[-2:]] == ["made", "empty"]
        assert "5001 rows of it were moved" in (done.partitions[-2].detail or "")
        assert f"{month:%Y-%m}" not in done.in_default

    async def _in_default(self, audit_store, owner, when):
        late = await owner.fetchval(f"SELECT audit.uuid_at({when})::text")
        # as an older version of the store would have taken it from anybody
        await owner.execute("ALTER TABLE audit.audit_logs DISABLE TRIGGER queue_for_sealing")
        sink = PostgresSink(audit_store)
        assert (await sink.write([a_record(record_id=late)])).stored == 1
        await sink.close()
        return late

    async def test_are_no_way_to_fill_the_catalog(self, owner):
        """However many months a writer asks for, it gets a year."""
        assert len(await owner.fetch("SELECT * FROM audit.ensure_partitions(100000)")) == 14

    async def test_are_not_made_while_somebody_holds_on_to_the_default_one(
        self, audit_store, owner
    ):
        """A lock that cannot be had is reported in seconds; inserting goes on meanwhile."""
        other = await asyncpg.connect(audit_store)
        transaction = other.transaction()
        await transaction.start()
        await other.execute("SELECT count(*) FROM audit.audit_logs_default")
        made = await owner.fetch("SELECT state FROM audit.ensure_partitions(3)")
        assert [row["state"] for row in made][-1] == "busy"
        await transaction.rollback()
        await other.close()
        made = await owner.fetch("SELECT state FROM audit.ensure_partitions(3)")
        assert [row["state"] for row in made][-1] == "made"

    @pytest.mark.parametrize("moment", ["1970-01-01Z", "2026-11-01Z", "2026-11-21 12:34:56.789Z"])
    async def test_begin_where_uuids_of_that_time_begin(self, owner, moment):
        """The bound is the smallest UUIDv7 of its millisecond."""
        bound = await owner.fetchval("SELECT audit.uuid_at($1::text::timestamptz)::text", moment)
        ns = (
            await owner.fetchval(
                "SELECT (extract(epoch FROM $1::text::timestamptz) * 1000)::bigint", moment
            )
            * 1_000_000
        )
        assert uuid7(ns - 1) < bound < uuid7(ns) if ns else bound < uuid7(0)

    async def test_are_pruned_by_time(self, owner):
        """A question about a time looks only at its partitions."""
        # a second that is not at the end of a month
        moment = "date_trunc('day', now(), 'UTC')"
        plan = await owner.fetch(
            "EXPLAIN SELECT * FROM audit.audit_logs WHERE id >= "
            f"audit.uuid_at({moment}) AND id < audit.uuid_at({moment} + interval '1 second')"
        )
        text = "\n".join(row[0] for row in plan)
        # five; one more if the month has changed since the server's first store was made
        partitions = await owner.fetchval(
            "SELECT count(*) FROM pg_inherits WHERE inhparent = 'audit.audit_logs'::regclass"
        )
        assert partitions >= 5
        assert f"Subplans Removed: {partitions - 1}" in text
        assert "audit_logs_default" not in text


async def test_a_detached_default_partition_is_told(audit_store, owner):
    """By init, by maintain, which then fails, and until it is attached again."""
    await owner.execute("ALTER TABLE audit.audit_logs DETACH PARTITION audit.audit_logs_default")
    attach = "ATTACH PARTITION audit.audit_logs_default DEFAULT"
    done = await maintain(audit_store)
    assert not done.has_default
    assert not done.ok
    told = await asyncio.to_thread(
        CliRunner().invoke, cli, ["maintain", "--dsn", audit_store], catch_exceptions=False
    )
    assert told.exit_code == 1
    assert attach in told.output.replace("\n", " ")
    assert any(attach in line for line in (await init(audit_store)).lines)
    await owner.execute(f"ALTER TABLE audit.audit_logs {attach}")
    assert (await maintain(audit_store)).ok
    assert not any(attach in line for line in (await init(audit_store)).lines)
