"""Each thread of ours is killed in its middle: the work goes on, and the health report says so."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import gc
import sys
import threading
from collections.abc import Awaitable, Callable

import asyncpg
import pytest
from otel_audit_postgres.outbox import init_outbox
from strategies import a_record

from otel_audit._util.ids import uuid7
from otel_audit._util.loop_thread import LoopThread
from otel_audit.config import AuditConfig
from otel_audit.delivery.spool import FrameKind
from otel_audit.record import to_json
from otel_audit.runtime import Runtime


class Site:
    """A runtime with all threads that there are, and the store that it delivers to."""

    def __init__(
        self, runtime: Runtime, connection: asyncpg.Connection, others: set[threading.Thread]
    ) -> None:
        self.runtime = runtime
        self.connection = connection
        self._others = others

    def threads(self) -> list[threading.Thread]:
        """The threads that are there since; an earlier test of this process may have left some."""
        return [one for one in threading.enumerate() if one not in self._others]

    async def delivery(self) -> None:
        """Have a record delivered."""
        record = a_record(record_id=uuid7())
        self.runtime.delivery.submit(record)
        await self.until("SELECT EXISTS (SELECT FROM audit.audit_logs WHERE id = $1)", record)

    async def intents(self) -> None:
        """Have an intent stored."""
        assert await self.runtime._producer.intended(a_record(record_id=uuid7()), None)

    async def relay(self) -> None:
        """Have an entry of the outbox brought over."""
        record = a_record(record_id=uuid7())
        await self.connection.execute(
            "INSERT INTO audit.outbox (record_id, record) VALUES ($1, $2)",
            record.record_id,
            to_json(record).decode(),
        )
        await self.until("SELECT EXISTS (SELECT FROM audit.audit_logs WHERE id = $1)", record)

    async def sealing(self) -> None:
        """Have a record sealed."""
        record = a_record(record_id=uuid7())
        self.runtime.delivery.submit(record)
        await self.until(
            "SELECT EXISTS (SELECT FROM audit.audit_logs WHERE id = $1) "
            "AND NOT EXISTS (SELECT FROM audit.ledger_queue)",
            record,
        )

    async def sync(self) -> None:
        """Have the spool brought to disk."""
        delivery = self.runtime.delivery
        begun = a_record(record_id=uuid7())
        delivery.queue.note(FrameKind.OPENED, begun.record_id, begun)
        assert await delivery._group.wait()

    async def until(self, question: str, record) -> None:
        parameters = [record.record_id] if "$1" in question else []
        async with asyncio.timeout(60):
            while not await self.connection.fetchval(question, *parameters):  # noqa: ASYNC110
                await asyncio.sleep(0.02)


@pytest.fixture
async def site(audit_store: str):
    await init_outbox(audit_store)
    others = set(threading.enumerate())
    runtime = Runtime(
        AuditConfig(
            dsn=audit_store,
            orm="transactional",
            outbox_dsn=audit_store,
            seal=True,
            seal_interval=0.05,
            outbox_interval=0.05,
            batch_interval=0.01,
            delivery="strict",
            strict_timeout=60,
            spool_fsync="always",
        )
    )
    await runtime.started()
    connection = await asyncpg.connect(audit_store)
    yield Site(runtime, connection, others)
    await runtime.stopping()
    await asyncio.to_thread(runtime.close)
    await connection.close()


THREADS = {
    "delivery": "otel-audit-delivery",
    "intents": "otel-audit-intents",
    "relay": "otel-audit-relay",
    "sealing": "otel-audit-seal",
    "sync": "otel-audit-sync",
}


@pytest.mark.allow_errors
@pytest.mark.parametrize("name", THREADS)
async def test_it_goes_on(site: Site, name: str) -> None:
    """Its thread gets a SystemExit in its middle: what it is for is done all the same."""
    does: Callable[[], Awaitable[None]] = getattr(site, name)
    await does()
    assert site.runtime.health()["threads"][name] == "ok"
    before = site.runtime.health()["thread_restarts"]
    kill(site, THREADS[name])
    async with asyncio.timeout(60):
        while site.runtime.health()["thread_restarts"] == before:
            # what waits for an event takes notice of the kill when it is woken
            site.runtime.delivery.hurry()
            # an intent that is under way then is refused, which is what strict mode promises
            with contextlib.suppress(*((AssertionError,) if name == "intents" else ())):
                await asyncio.wait_for(does(), 60)
    await does()
    health = site.runtime.health()
    assert health["threads"][name] == "ok"
    assert health["healthy"], health
    assert health["dropped"] == 0


async def test_every_thread_is_in_the_health_report(site: Site) -> None:
    """No thread of this process that bears our name is left out of it."""
    for name in THREADS:
        await getattr(site, name)()
    ours = {one.name for one in site.threads() if one.name.startswith("otel-audit-")}
    # those that only make a call that blocks end with their loop; the check is over by itself
    ours -= {"otel-audit-blocking", "otel-audit-check"}
    assert ours == set(THREADS.values())
    assert site.runtime.health()["threads"] == dict.fromkeys(THREADS, "ok")


def kill(site: Site, name: str) -> None:
    """Raise SystemExit in a thread: in its event loop, or wherever it is where that never turns.

    Wherever it is, that may be in the C code of the database's driver, which does not survive it;
    `test_cut_off_threads.py` cuts our own code off at every place.
    """
    (thread,) = [one for one in site.threads() if one.name == name]
    # the one that syncs sleeps in a queue of the standard library, and its loop does nothing else
    workers = () if name == THREADS["sync"] else gc.get_objects()
    for worker in workers:
        if issubclass(type(worker), LoopThread) and worker._thread is thread:
            assert worker._loop is not None
            worker._loop.call_soon_threadsafe(sys.exit)
            return
    assert thread.ident is not None
    done = ctypes.pythonapi.PyThreadState_SetAsyncExc(
        ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit)
    )
    assert done == 1
