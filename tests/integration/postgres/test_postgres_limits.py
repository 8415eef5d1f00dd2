"""No statement of ours outlives our patience in the server, whatever the kind of connection."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime

import asyncpg
import otel_audit_postgres
import pytest
from opentelemetry.sdk.trace import TracerProvider
from otel_audit_postgres import PostgresSink, retention
from otel_audit_postgres.checks.inspect import inspect
from otel_audit_postgres.connection import TimeLimits, connect, disconnect_later
from otel_audit_postgres.ledger import prove
from otel_audit_postgres.ledger.health import inspect_ledger
from otel_audit_postgres.ledger.sealer import Sealer
from otel_audit_postgres.ledger.verify.verify import verify
from otel_audit_postgres.outbox import PostgresOutbox, init_outbox, inspect_outbox
from otel_audit_postgres.query.gaps import find_gaps
from otel_audit_postgres.query.queries import Criteria, opened, search
from otel_audit_postgres.schema.partitions import maintain
from otel_audit_postgres.span_exporter import PostgresAuditSpanExporter
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.intent import Intents
from otel_audit.delivery.metrics import Counters
from otel_audit.delivery.sink import Refused

OURS = (
    "SELECT count(*) FROM pg_stat_activity "
    "WHERE application_name = 'otel-audit' AND datname = current_database()"
)
TABLES = (
    "audit.audit_logs, audit.quarantine, audit.schema_version, audit.ledger_log, "
    "audit.ledger_queue, audit.ledger_blocks, audit.ledger_checkpoints, audit.outbox, "
    "audit.receiving_key"
)


@pytest.fixture
async def locked(audit_store, admin) -> AsyncIterator[None]:
    """Somebody holds every table, as ALTER TABLE or VACUUM FULL does for minutes."""
    await init_outbox(audit_store)
    async with admin.transaction():
        await admin.execute(f"LOCK TABLE {TABLES} IN ACCESS EXCLUSIVE MODE")
        yield


def a_batch(count: int) -> list:
    return [a_record(record_id=uuid7()) for _ in range(count)]


@contextlib.asynccontextmanager
async def a_sink(dsn: str) -> AsyncIterator[PostgresSink]:
    sink = PostgresSink(dsn)
    try:
        yield sink
    finally:
        await sink.close()


async def writing(dsn: str, count: int = 1) -> None:
    async with a_sink(dsn) as sink:
        await sink.write(a_batch(count))


async def accepting(dsn: str) -> None:
    async with a_sink(dsn) as sink:
        await sink.accept(a_batch(3))


async def putting_aside(dsn: str) -> None:
    async with a_sink(dsn) as sink:
        await sink.quarantine([Refused("", b"{}", "no record")])


async def checking(dsn: str) -> None:
    async with a_sink(dsn) as sink:
        await sink.check()


async def asking_for_receipts(dsn: str) -> None:
    async with a_sink(dsn) as sink:
        await sink.receipts([uuid7()])


async def sealing(dsn: str) -> None:
    sealer = Sealer(dsn)
    try:
        await sealer.seal()
    finally:
        await sealer.close()


async def relaying(dsn: str) -> None:
    outbox = PostgresOutbox(dsn)
    try:
        await outbox.take(10, 10**6)
    finally:
        await outbox.close()


async def searching(dsn: str) -> None:
    async with opened(dsn) as connection:
        await search(connection, Criteria())


KINDS: dict[str, Callable[[str], Awaitable[object]]] = {
    "sink": writing,
    "sink, by COPY": lambda dsn: writing(dsn, 50),
    "sink of serve": accepting,
    "sink, quarantine": putting_aside,
    "sink, check": checking,
    "receipts": asking_for_receipts,
    "sealer": sealing,
    "relay": relaying,
    "search": searching,
    "gaps": find_gaps,
    "doctor": inspect,
    "doctor, ledger": inspect_ledger,
    "doctor, outbox": inspect_outbox,
    "verify": verify,
    "prove": lambda dsn: prove.prove_record(dsn, str(uuid.uuid4()), []),
    "maintain": maintain,
    "retire": lambda dsn: retention.retire(dsn, f"audit_logs_{datetime.now(UTC):%Y_%m}"),
    "init": otel_audit_postgres.init,
    "migrate": otel_audit_postgres.migrate,
    "init --outbox": lambda dsn: init_outbox(dsn, application="postgres"),
}


async def ours(admin, condition: str = "") -> int:
    """Backends of ours now; within a transaction the server would tell what it saw first."""
    await admin.execute("SELECT pg_stat_clear_snapshot()")
    return await admin.fetchval(OURS + condition)


async def none_left(admin, patience: float = 30.0) -> None:
    async with asyncio.timeout(patience):
        while await ours(admin):  # noqa: ASYNC110 - another's
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("locked")
async def test_what_is_given_up_ends_in_the_server(audit_store, admin, kind):
    """Cut off while it waits for a lock, five times: no backend is left while the lock is held."""
    for _ in range(5):
        try:
            async with asyncio.timeout(0.3):
                await KINDS[kind](audit_store)
        except TimeoutError:
            pass
        else:
            raise AssertionError("it did not wait for the lock")
    await none_left(admin)


@pytest.mark.usefixtures("locked")
async def test_strict_mode_leaves_nothing(audit_store, admin):
    """Requests that are refused one after another leave no backend each."""
    intents = Intents(lambda: PostgresSink(audit_store), Counters(), 0.2)
    try:
        for _ in range(6):
            assert not await intents.store(a_record(record_id=uuid7()))
            # the one at work, and those that are about to be closed
            async with asyncio.timeout(20):
                while await ours(admin) > 3:  # noqa: ASYNC110 - another's
                    await asyncio.sleep(0.02)
    finally:
        await asyncio.to_thread(intents.close)
    await none_left(admin)


@pytest.mark.usefixtures("locked")
async def test_the_span_exporter_leaves_nothing(audit_store, admin):
    """One export after another that fails."""
    exporter = PostgresAuditSpanExporter(audit_store, timeout=0.3)
    provider = TracerProvider()
    spans = []
    for _ in range(3):
        span = provider.get_tracer("x").start_span("x", attributes={"audit.flagged": True})
        span.end()
        spans.append(span)
    for span in spans:
        exporter.export([span])
    exporter.shutdown()
    await none_left(admin)


def test_a_loop_that_ends_at_once_leaves_no_connection(audit_store):
    """A task that is cancelled before its first step has closed nothing."""

    async def leave():
        connection = await connect(audit_store, 10.0)
        disconnect_later(connection)
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
        return connection

    assert asyncio.run(leave()).is_closed()


@pytest.mark.usefixtures("locked")
async def test_the_servers_own_limit_ends_a_statement(audit_store, admin):
    """Where no cancel request arrives, as the network is gone."""
    connection = await connect(audit_store, 5, TimeLimits(2.0, 0.3))
    with pytest.raises(asyncpg.LockNotAvailableError):
        await connection.fetch("SELECT * FROM audit.audit_logs")
    with pytest.raises(asyncpg.QueryCanceledError):
        await connection.fetch("SELECT pg_sleep(60)")
    await connection.close()
    await none_left(admin)


async def test_stricter_limits_of_a_role_stay(audit_store, admin):
    """What an administrator has set is not loosened."""
    database = await admin.fetchval("SELECT current_database()")
    await admin.execute(f"ALTER DATABASE {database} SET statement_timeout = '20s'")
    await admin.execute(f"ALTER DATABASE {database} SET lock_timeout = '2h'")
    connection = await connect(audit_store, 5, TimeLimits.of_statements(30))
    assert await connection.fetchval("SHOW statement_timeout") == "20s"
    assert await connection.fetchval("SHOW lock_timeout") == "22500ms"
    await connection.close()
    await admin.execute(f"ALTER DATABASE {database} RESET ALL")


@pytest.mark.slow
async def test_a_killed_process_leaves_nothing(audit_store, admin):
    """The server looks whether who asked is there."""
    code = (
        "import asyncio, sys\n"
        "from otel_audit_postgres.connection import connect\n"
        "async def main():\n"
        "    connection = await connect(sys.argv[1], 5)\n"
        "    await connection.fetch('SELECT pg_sleep(600)')\n"
        "asyncio.run(main())\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code, audit_store])
    try:
        async with asyncio.timeout(60):
            while not await ours(admin, " AND state = 'active'"):  # noqa: ASYNC110
                await asyncio.sleep(0.05)
    finally:
        # one that is left running fails another file's test, by its ResourceWarning
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    await none_left(admin, 60)
