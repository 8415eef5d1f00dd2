"""A backlog passes through what is slow: a link, or a short limit of the server."""

from __future__ import annotations

import asyncio
import random
import socket
import time
from urllib.parse import urlsplit

import asyncpg
import pytest
from otel_audit_otlp.endpoint import Endpoint
from otel_audit_otlp.sink import OtlpSink
from otel_audit_postgres import PostgresSink
from otel_audit_postgres.connection import connect, disconnect
from otel_audit_postgres.query import pool
from otlp_receiver import receiving
from slow_link import behind, slow_link, socket_of
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit.delivery.delivery import Delivery, DeliveryOptions
from otel_audit.delivery.metrics import Counters
from otel_audit.errors import StoreUnavailableError

QUICK = DeliveryOptions(batch_interval=0.01, first_pause=0.02, longest_pause=0.2)


def a_backlog(count: int, size: int) -> list:
    """Records that no compression makes small."""
    chance = random.Random(7)
    return [
        a_record(record_id=uuid7(), metadata={"note": chance.randbytes(size // 2).hex()})
        for _ in range(count)
    ]


async def deliver(make_sink, backlog: list, within: float, options=QUICK) -> tuple[float, Counters]:
    counters = Counters()
    delivery = Delivery(make_sink, counters, options)
    began = time.monotonic()
    try:
        for record in backlog:
            delivery.submit(record)
        assert await asyncio.to_thread(delivery.flush, within), counters.snapshot()
        return time.monotonic() - began, counters
    finally:
        await asyncio.to_thread(delivery.close, 1)


@pytest.mark.slow
@pytest.mark.parametrize("size", [15_000, 60_000])
async def test_postgres_behind_a_slow_link(audit_store, size):
    """Three times as much as passes within the limit of one statement, and records of any size."""
    backlog = a_backlog(1_800_000 // size, size)
    async with slow_link(socket_of(audit_store), 200_000) as port:
        took, counters = await deliver(
            lambda: PostgresSink(behind(audit_store, port), statement_timeout=3.0), backlog, 60
        )
    assert took < 45
    assert counters.snapshot()["exported"] == len(backlog)


async def test_a_short_limit_of_the_role(audit_store):
    """Statements that take longer are cancelled; smaller ones pass."""
    name = audit_store.partition("?")[0].rpartition("/")[2]
    admin = await asyncpg.connect(audit_store)
    await admin.execute(
        "CREATE FUNCTION public.slow() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN PERFORM pg_sleep(0.01); RETURN NULL; END $$"
    )
    await admin.execute(
        "CREATE TRIGGER slow AFTER INSERT ON audit.audit_logs FOR EACH ROW "
        "EXECUTE FUNCTION public.slow()"
    )
    await admin.execute(f"ALTER DATABASE {name} SET statement_timeout = '400ms'")
    backlog = a_backlog(200, 200)
    _, counters = await deliver(lambda: PostgresSink(audit_store), backlog, 60)
    assert counters.snapshot()["exported"] == 200
    assert await admin.fetchval("SELECT count(*) FROM audit.audit_logs") == 200
    await admin.close()


async def test_a_check_of_a_store_that_falls_silent(audit_store):
    """The server's own limits do not reach the one who waits; the limit on this side does."""
    silent = asyncio.Event()
    async with slow_link(socket_of(audit_store), silent=silent) as port:
        sink = PostgresSink(behind(audit_store, port), connect_timeout=30.0)
        await sink.check()
        silent.set()
        sink._statement_timeout = 2.0
        async with asyncio.timeout(60):
            with pytest.raises(StoreUnavailableError, match="no answer in time"):
                await sink.check()
        await sink.close()


async def test_an_idle_connection_of_a_pool_that_falls_silent(audit_store, monkeypatch):
    """Who comes next is told, and does not wait without end."""
    monkeypatch.setattr(pool, "_CONNECT_TIMEOUT", 30.0)
    silent = asyncio.Event()
    async with slow_link(socket_of(audit_store), silent=silent) as port:
        trails = pool.TrailPool(behind(audit_store, port), size=1)
        async with trails.connection():
            pass
        silent.set()
        monkeypatch.setattr(pool, "_CONNECT_TIMEOUT", 2.0)
        async with asyncio.timeout(60):
            with pytest.raises(StoreUnavailableError):
                async with trails.connection():
                    pass
        await trails.close()


@pytest.mark.parametrize(("query", "seconds"), [("", 30), ("?keepalives_idle=77", 77)])
async def test_the_system_asks_whether_the_server_is_there(audit_store, query, seconds):
    """Of each TCP connection, where the connection string does not say otherwise."""
    async with slow_link(socket_of(audit_store)) as port:
        connection = await connect(f"{behind(audit_store, port)}{query}")
        link = connection._transport.get_extra_info("socket")
        assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert link.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == seconds
        assert not link.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        await disconnect(connection)


@pytest.mark.slow
async def test_a_receiver_behind_a_slow_link():
    """Three times as much as passes within the time of one request."""
    backlog = a_backlog(60, 20_000)
    with receiving() as receiver:
        port = urlsplit(receiver.url).port
        async with slow_link(("127.0.0.1", port), 200_000) as slow:
            endpoint = Endpoint(f"http://127.0.0.1:{slow}/v1/traces", timeout=2.0)
            took, _ = await deliver(lambda: OtlpSink(endpoint, _nothing_refused), backlog, 60)
        stored = {record.record_id for asked in receiver.asked for record in asked.records}
    assert stored == {record.record_id for record in backlog}
    assert took < 45


def _nothing_refused(refused) -> None:
    raise AssertionError(refused)
