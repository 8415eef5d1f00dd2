"""The OTLP sink under load while something breaks: what it answered with 200 is stored, once."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Self

import asyncpg
import httpx
import psutil
import pytest
from postgres_servers import synchronous_standby
from sinks import Sink, request, serving, span

_SPANS = 5


class Senders:
    """Clients that send batches, each until it is answered with 200, to any of several sinks."""

    def __init__(self, sinks: list[Sink], count: int = 6) -> None:
        self._sinks = sinks
        self._numbers = itertools.count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send) for _ in range(count)]
        self.run = uuid.uuid4().hex[:8]
        self.acknowledged: list[str] = []
        self.statuses: set[int] = set()
        self.retry_after: set[str | None] = set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def until_more(self, count: int = 20, within: float = 80.0) -> None:
        wanted = len(self.acknowledged) + count
        deadline = time.monotonic() + within
        while len(self.acknowledged) < wanted:
            assert time.monotonic() < deadline, (len(self.acknowledged), wanted, self.statuses)
            time.sleep(0.05)

    def until_answered(self, status: int, within: float = 60.0) -> None:
        deadline = time.monotonic() + within
        while status not in self.statuses:
            assert time.monotonic() < deadline, self.statuses
            time.sleep(0.05)

    def _send(self) -> None:
        while not self._stop.is_set():
            actor = f"{self.run}-{next(self._numbers)}"
            body = request(*[span(n, audit__actor__id=actor) for n in range(1, _SPANS + 1)])
            self._until_taken(actor, body)

    def _until_taken(self, actor: str, body: bytes) -> None:
        for sink in itertools.cycle(self._sinks):
            if self._stop.is_set():
                return
            headers = {
                "Authorization": f"Bearer {sink.token}", "Content-Type": "application/x-protobuf",
            }  # fmt: skip
            with contextlib.suppress(httpx.TransportError):
                answer = httpx.post(f"{sink.url}/v1/traces", content=body, headers=headers,
                                    timeout=60)  # fmt: skip
                self.statuses.add(answer.status_code)
                if answer.status_code == 200:
                    self.acknowledged.append(actor)
                    return
                self.retry_after.add(answer.headers.get("retry-after"))
            time.sleep(0.1)


async def stored(dsn: str) -> dict[str, int]:
    connection = await asyncpg.connect(dsn)
    try:
        rows = await connection.fetch(
            "SELECT actor_id, count(*) AS rows, count(DISTINCT id) AS ids FROM audit.audit_logs "
            "GROUP BY actor_id"
        )
        assert all(row["rows"] == row["ids"] for row in rows)
        return {row["actor_id"]: row["rows"] for row in rows}
    finally:
        await connection.close()


async def assert_nothing_lost(senders: Senders, dsn: str) -> None:
    found = await stored(dsn)
    assert senders.acknowledged
    assert {actor: found.get(actor) for actor in senders.acknowledged} == dict.fromkeys(
        senders.acknowledged, _SPANS
    )


@pytest.mark.slow
class TestPostgres:
    @pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
    async def test_stopped_under_load_and_started_again(self, tmp_path, own_store, how):
        """503 with Retry-After meanwhile, alive but not ready; then everything goes on by itself."""
        with serving(tmp_path, own_store.dsn) as sink, Senders([sink]) as senders:
            await asyncio.to_thread(senders.until_more)
            await asyncio.to_thread(own_store.stop, how)
            await asyncio.to_thread(senders.until_answered, 503)
            assert sink.client.get("/health").status_code == 200
            assert sink.client.get("/ready").status_code == 503

            await asyncio.to_thread(own_store.start)
            await asyncio.to_thread(senders.until_more)
            assert sink.client.get("/ready").json() == {"ready": True}

        assert senders.statuses == {200, 503}
        assert senders.retry_after == {"5"}
        await assert_nothing_lost(senders, own_store.dsn)

    async def test_failover_under_load(self, tmp_path, own_store):
        """The primary is killed, its synchronous standby promoted: all that 200 stood for is there."""
        async with synchronous_standby(own_store) as standby:
            first, second = own_store.data, standby.dsn.partition("host=")[2].partition("&")[0]
            dsn = (
                f"postgresql://postgres@/postgres?host={first},{second}&port=5432,5432"
                "&target_session_attrs=read-write"
            )
            with serving(tmp_path, dsn) as sink, Senders([sink]) as senders:
                await asyncio.to_thread(senders.until_more)
                await asyncio.to_thread(own_store.stop, signal.SIGKILL)
                await asyncio.to_thread(senders.until_answered, 503)
                await asyncio.to_thread(standby.promote)
                await asyncio.to_thread(senders.until_more)
                assert sink.client.get("/ready").json() == {"ready": True}

            assert senders.statuses == {200, 503}
            await assert_nothing_lost(senders, standby.dsn)

    async def test_without_a_schema_nothing_is_taken_and_the_remedy_said(
        self, tmp_path, postgres, database
    ):
        with serving(tmp_path, database) as sink:
            answer = sink.traces(request(span(1)))
            ready = sink.client.get("/ready")
            output = sink.output

        assert answer.status_code == 503
        assert ready.status_code == 503
        assert "otel-audit init" in ready.json()["reason"]
        assert "NO RECORDS ACCEPTED" in output


@pytest.mark.slow
class TestSinks:
    async def test_one_of_two_is_killed_under_load(self, tmp_path, audit_store):
        with _two(tmp_path, audit_store) as (first, second), Senders([first, second]) as senders:
            await asyncio.to_thread(senders.until_more)
            first.process.send_signal(signal.SIGKILL)
            await asyncio.to_thread(senders.until_more)

        await assert_nothing_lost(senders, audit_store)

    async def test_told_to_stop_under_load_it_finishes_what_it_has(self, tmp_path, audit_store):
        with _two(tmp_path, audit_store) as (first, second), Senders([first, second]) as senders:
            await asyncio.to_thread(senders.until_more)
            first.process.send_signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.process.wait, 60) in (0, -signal.SIGTERM)
            await asyncio.to_thread(senders.until_more)
            output = first.output

        assert senders.statuses <= {200, 503}
        assert "Traceback" not in output
        await assert_nothing_lost(senders, audit_store)


@pytest.mark.slow
async def test_memory_is_bounded_while_the_store_does_not_answer(tmp_path, audit_store):
    """What is beyond the bound is sent away with 429, and nothing that waits is lost."""
    bound = {"OTEL_AUDIT_SERVE_MAX_IN_FLIGHT_BYTES": "8000000"}
    text = "x" * 2000
    bodies = [
        request(*[span(n, audit__actor__id=f"a{m}", audit__error__message=text)
                  for n in range(1, 401)]) for m in range(60)
    ]  # fmt: skip
    statuses: list[int] = []

    def send(sink: Sink, body: bytes) -> None:
        statuses.append(sink.traces(body).status_code)

    with serving(tmp_path, audit_store, environment=bound) as sink:
        assert sink.traces(bodies[0]).status_code == 200
        process = psutil.Process(sink.process.pid)
        before = process.memory_info().rss
        blocker = await asyncpg.connect(audit_store)
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE audit.audit_logs IN ACCESS EXCLUSIVE MODE")
            threads = [threading.Thread(target=send, args=(sink, body)) for body in bodies[1:]]
            for thread in threads:
                thread.start()
            highest = before
            for _ in range(40):
                await asyncio.sleep(0.1)
                highest = max(highest, process.memory_info().rss)
            # a slow machine takes longer to send what is beyond the bound
            async with asyncio.timeout(60):
                while 429 not in statuses:  # noqa: ASYNC110 - another thread's
                    await asyncio.sleep(0.1)
            assert sink.client.get("/health").status_code == 200
        for thread in threads:
            await asyncio.to_thread(thread.join)
        await blocker.close()

    assert set(statuses) == {200, 429}
    # the requests have 50 MB in all; of 8 MB under way each byte is there a few times
    assert highest - before < 8 * 8_000_000
    taken = statuses.count(200) + 1
    assert sum((await stored(audit_store)).values()) == 400 * taken


@contextlib.contextmanager
def _two(directory, dsn) -> Iterator[tuple[Sink, Sink]]:
    folders = [directory / "first", directory / "second"]
    for folder in folders:
        folder.mkdir()
    with serving(folders[0], dsn) as first, serving(folders[1], dsn) as second:
        yield first, second
