"""Acknowledged is what the synchronous standby has: a real one, which takes the primary's place."""

from __future__ import annotations

import asyncio
import logging
import signal
import subprocess
import sys

import asyncpg
import msgspec
import pytest
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.connection import connect, wait_until_durable
from postgres_servers import in_time
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.intent import Intents
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused
from otel_audit.errors import StoreUnavailableError

pytestmark = pytest.mark.slow


def records(count: int) -> list:
    return [a_record(record_id=uuid7(), sequence_number=None) for _ in range(count)]


@pytest.fixture
async def sink(own_store):
    sink = PostgresSink(own_store.dsn, statement_timeout=1.0)
    yield sink
    await sink.close()


async def count(dsn: str, table: str = "audit_logs") -> int:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(f"SELECT count(*) FROM audit.{table}")
    finally:
        await connection.close()


async def refused_until_seen(write, dsn: str, expected: int, table: str = "audit_logs") -> None:
    """Write until the rows can be seen, though no standby has them; each time it is refused."""
    for _ in range(20):
        with pytest.raises(StoreUnavailableError):
            await write()
        if await count(dsn, table) == expected:
            return
    raise AssertionError("the rows never came")


@pytest.mark.parametrize("size", [6, 40])
async def test_a_retry_that_finds_its_rows_waits_for_the_standby(own_store, standby, sink, size):
    """What is only visible is not acknowledged, and what is acknowledged is on the new primary."""
    earlier, batch = records(3), records(size)
    await in_time(lambda: sink.write(earlier))
    await asyncio.to_thread(standby.stop)
    await refused_until_seen(lambda: sink.write(batch), own_store.dsn, 3 + size)
    ids = [record.record_id for record in batch]
    for ask in (sink.write, sink.accept):
        with pytest.raises(StoreUnavailableError):
            await ask(batch)
    for ask in (sink.receipts, sink.known):
        with pytest.raises(StoreUnavailableError):
            await ask(ids)
    await asyncio.to_thread(standby.launch)
    assert (await in_time(lambda: sink.write(batch))).stored == size
    assert set(await in_time(lambda: sink.receipts(ids))) == set(ids)
    assert await in_time(lambda: sink.known(ids)) == set(ids)
    await asyncio.to_thread(own_store.stop, signal.SIGKILL)
    await asyncio.to_thread(standby.promote)
    assert await count(standby.dsn) == 3 + size


async def test_so_does_what_is_put_aside(own_store, standby, sink):
    """The quarantine is acknowledged by the same rule."""
    refused = [Refused(uuid7(), b"{}", "no record")]
    await asyncio.to_thread(standby.stop)
    await refused_until_seen(lambda: sink.quarantine(refused), own_store.dsn, 1, "quarantine")
    with pytest.raises(StoreUnavailableError):
        await sink.quarantine(refused)


async def test_a_wait_that_somebody_cuts_off_is_no_acknowledgement(own_store, standby, sink):
    """A cancelled wait ends in a warning and a COMMIT that succeeds: nothing is acknowledged."""
    patient = PostgresSink(own_store.dsn, statement_timeout=60.0)
    await patient.check()
    pid = patient._connection.get_server_pid()
    await asyncio.to_thread(standby.stop)
    writing = asyncio.create_task(patient.write(records(2)))
    connection = await asyncpg.connect(own_store.dsn)
    waits = "SELECT wait_event FROM pg_stat_activity WHERE pid = $1"
    async with asyncio.timeout(30):
        while await connection.fetchval(waits, pid) != "SyncRep":  # noqa: ASYNC110 - another's
            await asyncio.sleep(0.02)
    await connection.execute("SELECT pg_cancel_backend($1)", pid)
    with pytest.raises(StoreUnavailableError, match="standby"):
        await writing
    await connection.close()
    await patient.close()


@pytest.mark.parametrize("default", ["off", "local", "remote_write", "remote_apply"])
async def test_whatever_the_role_waits_for_by_default(own_store, standby, default):
    """A role that waits for less does not do so here."""
    admin = await asyncpg.connect(own_store.dsn)
    await admin.execute(f"ALTER ROLE postgres SET synchronous_commit = {default}")
    await admin.close()
    connection = await connect(own_store.dsn, 5)
    assert await connection.fetchval("SHOW synchronous_commit") == (
        "remote_apply" if default == "remote_apply" else "on"
    )
    await wait_until_durable(connection)
    await asyncio.to_thread(standby.stop)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(wait_until_durable(connection), 1)
    await connection.close()


async def test_an_intent_is_stored_when_the_standby_has_it(own_store, standby, caplog):
    """Strict mode refuses while the standby is away, the same intent asked again, too."""
    caplog.set_level(logging.CRITICAL)
    intents = Intents(lambda: PostgresSink(own_store.dsn, statement_timeout=1.0), Counters(), 1.0)
    (record,) = records(1)
    async with asyncio.timeout(60):
        while not await intents.store(record):  # a busy machine takes longer than the limit
            pass
    await asyncio.to_thread(standby.stop)
    (second,) = records(1)
    for _ in range(3):
        assert not await intents.store(second)
    await asyncio.to_thread(intents.close)


WRITING = """
import asyncio, sys
from otel_audit_postgres import PostgresSink
from otel_audit.record import AuditRecord
import msgspec

async def main():
    records = msgspec.json.decode(sys.stdin.buffer.read(), type=list[AuditRecord])
    await PostgresSink(sys.argv[1], statement_timeout=60.0).write(records)

asyncio.run(main())
"""


async def test_a_process_killed_while_its_commit_waits(own_store, standby):
    """Its backend waits on; who delivers the same again stores each once, on both servers."""
    batch = records(4)
    await asyncio.to_thread(standby.stop)
    writer = subprocess.Popen([sys.executable, "-c", WRITING, own_store.dsn], stdin=subprocess.PIPE)
    assert writer.stdin is not None
    writer.stdin.write(msgspec.json.encode(batch))
    writer.stdin.close()
    admin = await asyncpg.connect(own_store.dsn)
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
    async with asyncio.timeout(60):
        while not await admin.fetchval(waiting):  # noqa: ASYNC110 - another's
            await asyncio.sleep(0.05)
    writer.kill()
    writer.wait()
    await asyncio.to_thread(standby.launch)
    sink = PostgresSink(own_store.dsn)
    assert (await sink.write(batch)).stored == 4
    await sink.close()
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 4
    await admin.close()
    await asyncio.to_thread(own_store.stop, signal.SIGKILL)
    await asyncio.to_thread(standby.promote)
    assert await count(standby.dsn) == 4
