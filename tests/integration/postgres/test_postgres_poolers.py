"""Behind a pooler that gives each transaction another backend: everything works, nothing stays."""

from __future__ import annotations

import asyncio

import asyncpg
import otel_audit_postgres
import pytest
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.checks.inspect import inspect
from otel_audit_postgres.connection import TimeLimits, connect
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.outbox import PostgresOutbox, init_outbox
from otel_audit_postgres.query.gaps import find_gaps
from otel_audit_postgres.query.queries import Criteria, opened, search
from otel_audit_postgres.schema.partitions import maintain
from poolers import pgbouncer
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.outbox_relay import relay_all
from otel_audit.errors import StoreError


@pytest.fixture(params=["transaction", "session"])
def mode(request) -> str:
    return request.param


@pytest.fixture
def pooler(postgres, mode):
    """Where the servers' databases are behind a pgbouncer, as a DSN."""
    with pgbouncer(postgres.server_dsn, mode) as template:
        yield template


@pytest.fixture
def pooled(pooler, audit_store) -> str:
    """The audit store behind it."""
    return pooler.format(audit_store.partition("?")[0].rpartition("/")[2])


def records(count: int) -> list:
    return [a_record(record_id=uuid7()) for _ in range(count)]


async def write(dsn: str, batches: int, size: int) -> int:
    sink, stored = PostgresSink(dsn), 0
    try:
        await sink.check()
        for _ in range(batches):
            stored += (await sink.write(records(size))).stored
    finally:
        await sink.close()
    return stored


async def test_many_writers_share_few_backends(pooled, audit_store):
    """Twelve processes' worth of writers on four backends: all is stored."""
    done = await asyncio.gather(*(write(pooled, 5, size) for size in (1, 3, 20, 40) * 3))
    assert sum(done) == 5 * 3 * (1 + 3 + 20 + 40)
    connection = await asyncpg.connect(audit_store)
    assert await connection.fetchval("SELECT count(*) FROM audit.audit_logs") == sum(done)
    await connection.close()


async def test_nothing_is_left_in_the_sessions_of_others(pooled, audit_store):
    """No setting, prepared statement or temporary table of ours stays in a backend."""
    await asyncio.gather(*(write(pooled, 3, size) for size in (1, 30, 1, 30)))
    async with opened(pooled) as connection:
        await search(connection, Criteria())
    look = await asyncpg.connect(pooled, statement_cache_size=0)
    for setting in ("statement_timeout", "lock_timeout", "plan_cache_mode"):
        for _ in range(8):
            async with look.transaction():
                found = await look.fetchval(f"SHOW {setting}")
                assert found == {"plan_cache_mode": "auto"}.get(setting, "0")
                assert await look.fetchval("SELECT count(*) FROM pg_prepared_statements") == 0
                assert not await look.fetchval("SELECT count(*) FROM pg_class WHERE relname = "
                                               "'otel_audit_batch'")  # fmt: skip
    await look.close()


async def test_settings_hold_in_each_transaction(pooled, audit_store):
    """Whatever backend a transaction gets, COMMIT waits and limits hold."""
    database = audit_store.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(audit_store)
    await admin.execute(f"ALTER DATABASE {database} SET synchronous_commit = off")
    await admin.execute(
        "CREATE TABLE public.seen (commit text, timeout text);"
        "CREATE FUNCTION public.look() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "INSERT INTO public.seen VALUES (current_setting('synchronous_commit'), "
        "current_setting('statement_timeout')); RETURN NULL; END $$;"
        "CREATE TRIGGER looking AFTER INSERT ON audit.audit_logs FOR EACH STATEMENT "
        "EXECUTE FUNCTION public.look()"
    )
    await asyncio.gather(*(write(pooled, 7, 1 + number) for number in range(8)))
    seen = await admin.fetch("SELECT DISTINCT commit, timeout FROM public.seen")
    assert [tuple(row) for row in seen] == [("on", "30s")]
    assert await admin.fetchval("SELECT count(*) FROM public.seen") == 56
    await admin.close()


async def test_it_is_detected_and_can_be_asked_for(pooled, audit_store):
    """By the backend's number, which a pooler hides; or by the parameter of Prisma's."""
    for dsn, expected in ((pooled, True), (f"{pooled}?pgbouncer=true", True), (audit_store, False)):
        connection = await connect(dsn, 5)
        assert connection.is_pooled is expected
        await connection.close()


async def test_all_that_reads_and_keeps_the_store(pooler, pooled, database):
    """Setting up, sealing, verifying, searching, relaying: each through the pooler."""
    empty = pooler.format(database.partition("?")[0].rpartition("/")[2])
    await otel_audit_postgres.init(empty)
    await otel_audit_postgres.migrate(empty)
    await init_outbox(empty)
    assert await write(pooled, 2, 20) == 40
    sealer = Sealer(pooled)
    await sealer.seal()
    await sealer.close()
    assert (await verify(pooled)).ok
    assert (await verify(pooled, jobs=2)).ok
    async with opened(pooled) as connection:
        assert len((await search(connection, Criteria())).records) == 40
    await find_gaps(pooled)
    await maintain(pooled)
    assert all(finding.ok is not False for finding in await inspect(pooled)
               if finding.name in ("reachable", "takes_records", "schema"))  # fmt: skip
    outbox, sink = PostgresOutbox(empty), PostgresSink(pooled)
    plain = await asyncpg.connect(database)
    for record in records(5):
        await plain.execute(
            "INSERT INTO audit.outbox (record_id, record) VALUES ($1, '{}')", record.record_id
        )
    counters = Counters()
    assert await relay_all(outbox, sink, counters) == 5
    assert await plain.fetchval("SELECT count(*) FROM audit.outbox") == 0
    await plain.close()
    await outbox.close()
    await sink.close()


async def test_what_is_given_up_ends_behind_it(pooled, audit_store):
    """A cancelled statement leaves no backend at work."""
    admin, look = await asyncpg.connect(audit_store), await asyncpg.connect(audit_store)
    async with admin.transaction():
        await admin.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
        for _ in range(3):
            sink = PostgresSink(pooled)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(sink.write(records(1)), 0.5)
            await sink.close()
        async with asyncio.timeout(20):
            while await look.fetchval(  # noqa: ASYNC110 - another's
                "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' "
                "AND datname = current_database()"
            ):
                await asyncio.sleep(0.02)
    await look.close()
    await admin.close()


async def test_a_parameter_that_it_does_not_take_is_named(pooled):
    """Not taken for a missing schema, nor for a server that is away."""
    with pytest.raises(StoreError, match="options") as raised:
        await connect(f"{pooled}?options=-c%20jit%3Doff", 5, TimeLimits())
    assert "OTEL_AUDIT_DSN" in str(raised.value)


@pytest.mark.parametrize("mode", ["statement"], indirect=True)
async def test_one_without_transactions_is_refused_by_name(pooled):
    """Each statement on another connection: nothing can be written, and the start says why."""
    sink = PostgresSink(pooled)
    for _ in range(2):
        with pytest.raises(StoreError, match="pool_mode = statement"):
            await sink.check()
    await sink.close()
